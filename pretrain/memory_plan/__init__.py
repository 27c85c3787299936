"""The memory of a run by arithmetic: a step is walked through buffer by buffer, and the worst moment is kept."""
