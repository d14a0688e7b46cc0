"""The exception of this package, so that callers can tell bad input from bugs."""


class EvaluationError(ValueError):
    """A file that cannot be scored. The message names the file, the entry and what to do."""
