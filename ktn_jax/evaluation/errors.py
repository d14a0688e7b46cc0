"""The exception of this package, so that callers can tell bad input from bugs."""

TEMPLATE_ADVICE = (
    "--template is needed to score the surface: the folder with the three official files, or one "
    "made by `ktn data template --output template/`, whose scores do not compare with published "
    "ones"
)


class EvaluationError(ValueError):
    """A file that cannot be scored. The message names the file, the entry and what to do."""
