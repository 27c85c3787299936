"""Growth within a run (model/growth has the operators): when, with what schedule, and the growth itself."""
