"""Errors that are the user's to mend, and what they are warned of."""


class PromptWarning(UserWarning):
    """A prompt asks for what the model was never taught; the message says what it knows."""


class UserError(ValueError):
    """A mistake that the user can mend: the message names the file or key, and what to do."""
