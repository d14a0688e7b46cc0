"""Arguments of the `ktn` commands that the runs of a study are made of."""

import pathlib
from collections.abc import Sequence

from ktn_jax.data_pipelines.synthetic import dataset_files

Words = tuple[str, ...]  # arguments of `ktn`

FOUND, TRUE_BOXES = "scores", "scores_true_boxes"  # the two evaluations of `eval_commands`


def people_changes(people: pathlib.Path) -> tuple[str, ...]:
    """Changes of a configuration, to train on the folder that `render_people` made."""
    return data_changes(people / dataset_files.ANNOTATION_FILE, people / dataset_files.IMAGE_FOLDER)


def data_changes(annotations: pathlib.Path, images: pathlib.Path) -> tuple[str, ...]:
    """Changes of a configuration, to train on an annotation file and its images."""
    return (
        "data.source=densepose_coco",
        f"data.annotations={(str(annotations),)!r}",
        f"data.images={(str(images),)!r}",
    )


def train_words(
    config: str,
    changes: Sequence[str],
    workdir: pathlib.Path,
    weights: pathlib.Path | None = None,
) -> Words:
    """Arguments of a training; `weights` is what it starts from."""
    start = ["--weights", str(weights)] if weights else []
    return ("train", *model_words(config, changes), "--workdir", str(workdir), *start, "--quiet")


def eval_commands(
    config: str,
    changes: Sequence[str],
    weights: pathlib.Path,
    people: pathlib.Path,
    template: pathlib.Path,
    folder: pathlib.Path,
) -> dict[str, Words]:
    """Arguments of the evaluations of a model: of the people that it finds, and in true boxes.

    Args:
        config: the model's configuration.
        changes: of it.
        weights: a file, or a training's folder.
        people: folder with annotated people.
        template: evaluation template.
        folder: of the run; scores go to its folders FOUND and TRUE_BOXES.

    Returns:
        Steps of a run, by the names of these folders.
    """
    commands: dict[str, Words] = {}
    for step, options in ((FOUND, ()), (TRUE_BOXES, ("--true-boxes",))):
        paths = {"weights": weights, "data": people, "template": template, "output": folder / step}
        words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        commands[step] = ("eval", *model_words(config, changes), *words, "--quiet", *options)
    return commands


def model_words(config: str, changes: Sequence[str]) -> list[str]:
    """Arguments that name a configuration and its changes."""
    return ["--config", config, *(word for change in changes for word in ("--set", change))]
