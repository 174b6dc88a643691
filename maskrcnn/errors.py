"""The one exception for a mistake that the user can mend."""


class UserError(Exception):
    """Something in the user's input is wrong.

    The message is one line that names the culprit (a file, an image id, a config key), says what is wrong
    with it and what to do. The commands print it without a traceback and exit with a non-zero status.
    """
