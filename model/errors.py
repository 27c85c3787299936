"""The one exception a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user's: one sentence that names the key or file and the fix.

    The command line prints it without a traceback and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that cannot go on although its input was right; one sentence, exit status 1."""
