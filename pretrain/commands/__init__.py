"""One file per command: `EXAMPLE`, `add_arguments(parser)` and `run(args)`; heavy imports happen inside `run`."""
