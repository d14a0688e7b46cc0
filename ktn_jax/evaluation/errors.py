"""The one exception of this package, so that a caller can tell bad input from a slip of ours."""


class EvaluationError(ValueError):
    """A file that cannot be scored. The message names the file, the entry and what to do."""
