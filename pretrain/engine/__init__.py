"""DeepSpeed as the engine, for one process and for many, behind a handful of methods."""
