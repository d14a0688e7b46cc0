"""list the released models that run by their names, and whether their weights are here"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.checkpoints import zoo

EXAMPLES = """
  ktn models
  ktn models R_101 WC1                  # those whose names have both
  ktn predict photo.jpg --model densepose_rcnn_R_50_FPN_WC1_s1x

box, GPS and GPSm are the published average precisions, MB the size of the weights. Weights are
fetched the first time, into KTN_CACHE (else ktn_jax under XDG_CACHE_HOME or ~/.cache). Families:
charts (people) and evolution (animals) are detectron2's DensePose R-CNN; embedding (people and
animals), its continuous surface embeddings; KTN's files, where they were released, have to be
fetched by hand.
"""

_COLUMNS = ("name", "family", "box", "GPS", "GPSm", "MB", "licence", "weights")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="parts of names to list")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="as the table of the documentation: not what is on this machine",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints a table, and where to find what a program cannot fetch."""
    from ktn_jax.checkpoints import zoo

    words = [word.lower() for word in arguments.words]
    models = [
        model for name, model in zoo.models().items() if all(word in name.lower() for word in words)
    ]
    if not models:
        raise ValueError(f"no model has {' and '.join(arguments.words)} in its name")
    rows = [_row(model) for model in models]
    if arguments.markdown:
        lines = ["|".join(row[:-1]) for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows)]
        print("\n".join(f"|{line}|" for line in lines))  # noqa: T201
        return 0
    print(_table([_COLUMNS, *rows]))  # noqa: T201
    for model in models:
        if model.file and not model.url and not model.is_here:
            print(f"{model.name}: {model.place}; put it at {model.cached}")  # noqa: T201
    return 0


def _row(model: "zoo.Model") -> list[str]:
    numbers = (model.box, model.GPS, model.GPSm)
    return [
        model.name,
        model.family,
        *("" if number is None else f"{number:.1f}" for number in numbers),
        "" if model.num_values is None else f"{4 * model.num_values / 1e6:.0f}",
        model.licence,
        _state(model),
    ]


def _state(model: "zoo.Model") -> str:
    if model.is_here:
        return "here"
    if not model.file:
        return "not released"
    return "" if model.url else "by hand"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_text = [0, 1, 6, 7]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in is_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
