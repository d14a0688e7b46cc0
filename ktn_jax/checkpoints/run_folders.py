"""Folders of a training run's checkpoints: which there are, and whether they are whole.

WORKDIR/checkpoints/STEP is written under a temporary name and renamed when complete. What has such
a name and lacks a file is damaged.
"""

import json
import logging
import os
import pathlib
from collections.abc import Sequence

from ktn_jax.runtime import checksums

FOLDER = "checkpoints"
SET_ASIDE = "set_aside"  # beside it: checkpoints after the one that a run was told to resume from
STATE, RUN, METRICS = "state", "run", "metrics"  # parts of a checkpoint
RESUME = "ktn train ... --from-step {step} resumes from it"  # advice, see `checkpoint_before`
NONE_BEFORE = "there is no whole checkpoint before it"

_LOGGER = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


def find_checkpoint(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Finds the checkpoint that a path refers to.

    Args:
        path: a work folder, its folder of checkpoints, or one checkpoint.

    Returns:
        The checkpoint, the newest of several, be it damaged or not; None if the path holds none.
    """
    path = pathlib.Path(path)
    if _is_checkpoint(path):
        return path
    for folder in (path / FOLDER, path):
        steps = checkpoint_steps(folder)
        if any(_is_checkpoint(folder / str(step)) for step in steps):
            return folder / str(steps[-1])
    return None


def _is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder is a checkpoint: one that lost some of its files is one too."""
    return (folder / STATE).is_dir() or (
        (folder / RUN).is_dir() and (folder / checksums.CHECKSUM_FILE).is_file()
    )


def checkpoint_steps(directory: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending: they get such a name when complete."""
    if not directory.is_dir():
        return []
    return sorted(
        int(child.name) for child in directory.iterdir() if is_step(child.name) and child.is_dir()
    )


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: a step, without zeros before it."""
    return name.isdecimal() and name == str(int(name))


def check_checkpoint(path: pathlib.Path, advice: str) -> None:
    """Compares the files of a checkpoint with their checksums.

    Args:
        path: the checkpoint.
        advice: see `checkpoint_before`.

    Raises:
        CheckpointError: one is missing or damaged; the message names a checkpoint before that is
            whole.
    """
    try:
        if not checksums.check_files(path):
            _LOGGER.info("%s: without checksums, as earlier versions wrote it: not checked", path)
    except (checksums.ChecksumError, OSError) as error:
        raise CheckpointError(f"{error}; {checkpoint_before(path, advice)}") from error


def checkpoint_before(path: pathlib.Path, advice: str) -> str:
    """Names the newest checkpoint before another one that is whole, for messages.

    Args:
        path: of the one that is damaged.
        advice: what to do with the one that is named: a sentence with {step} or {path}.
    """
    steps = checkpoint_steps(path.parent) if path.name.isdecimal() else []
    for step in reversed([step for step in steps if step < int(path.name)]):
        other = path.parent / str(step)
        try:
            is_checked = checksums.check_files(other)
        except (checksums.ChecksumError, OSError):
            continue
        how = "is whole" if is_checked else "has no checksums and may be whole"
        return f"the checkpoint of step {step} {how}: {advice.format(step=step, path=other)}"
    return NONE_BEFORE


def check_metrics(path: pathlib.Path) -> None:
    """Checks that the metrics of a checkpoint can be read: orbax reads those of all at once.

    Raises:
        CheckpointError: they are damaged.
    """
    file = path / METRICS / METRICS
    if not file.is_file():  # it has none
        return
    try:
        parse_metrics(file.read_bytes())
    except (OSError, ValueError) as error:
        is_newest = path.name == str(checkpoint_steps(path.parent)[-1])
        rest = checkpoint_before(path, RESUME) if is_newest else f"move the folder {path} away"
        raise CheckpointError(f"{file}: damaged: {error}; {rest}") from error


def parse_metrics(content: bytes) -> dict[str, float]:
    """Reads the file of a checkpoint's metrics, which orbax writes.

    Raises:
        ValueError: it is damaged.
    """
    try:
        metrics: dict[str, float] = json.loads(content)
        is_whole = all(type(value) in (int, float) for value in metrics.values())
    except (AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not is_whole:
        raise ValueError("not all are numbers")
    return metrics


def first_lines(error: Exception) -> str:
    """The beginning of a message: those of orbax and TensorStore go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500] or type(error).__name__


def return_to(workdir: str | os.PathLike[str], step: int, *, verify: bool = True) -> list[int]:
    """Moves the checkpoints after a step out of the way, to WORKDIR/set_aside/STEP.

    Args:
        workdir: of a run that no process is working on.
        step: of the checkpoint that becomes the newest.
        verify: first compare its files with their checksums.

    Returns:
        The steps that were moved, ascending.

    Raises:
        CheckpointError: there is no checkpoint of that step, or it is damaged; nothing is moved.
    """
    directory = pathlib.Path(workdir).absolute() / FOLDER
    later = steps_after(checkpoint_steps(directory), step, directory)
    if verify:
        check_checkpoint(directory / str(step), RESUME)
    for number in later:
        target, copy = directory.parent / SET_ASIDE / str(number), 1
        while target.exists():
            copy += 1
            target = target.with_name(f"{number}-{copy}")
        target.parent.mkdir(exist_ok=True)
        os.rename(directory / str(number), target)
    return later


def steps_after(steps: Sequence[int], step: int, folder: object) -> list[int]:
    """The steps of a folder's checkpoints after one that has to be there.

    Raises:
        CheckpointError: it is not; the message names the folder.
    """
    if step not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{folder}: no checkpoint of step {step}, it has {have}")
    return [number for number in steps if number > step]
