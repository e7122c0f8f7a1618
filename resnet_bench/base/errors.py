"""The one error type that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can put right: bad input, a missing file, a store that is away.

    The message is one clear sentence (what is wrong, where, what would be right). The command line prints
    it without a traceback and exits with code 2.
    """
