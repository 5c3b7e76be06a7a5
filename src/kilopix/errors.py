"""Errors that are the user's to mend."""


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, and what to do."""
