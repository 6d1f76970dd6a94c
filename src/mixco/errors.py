"""The one error that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake that the user can mend.

    Its message names the thing, what was expected, and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """
