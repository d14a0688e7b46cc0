"""Compares every stage of a model, and a training step, with a dump of the PyTorch original."""

import os
from collections.abc import Iterator

import jax

from ktn_jax.verification import intermediates, people, training
from ktn_jax.verification.dump import Dump, Row


def verify(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Compares our model with a dump, stage by stage, end to end, and in a training step.

    Args:
        path: the dump; its configuration, widths and sizes are whatever it says.

    Yields:
        A row for every array compared.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no dump, or its weights do not fit its configuration.
        KeyError: it lacks an array.
    """
    dump = Dump(path)
    with jax.default_matmul_precision("highest"):
        yield from intermediates.compare_stages(dump)
        yield from people.results(dump)
        yield from people.end_to_end(dump)
        yield from training.training(dump)
