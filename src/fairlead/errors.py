"""The one exception that a user is meant to read."""


class FairleadError(Exception):
    """Something the user can mend: the message says what is wrong and how.

    The command line prints it on one line and exits with code 2.
    """
