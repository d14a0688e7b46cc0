"""Trains DensePose beside other tasks, and in a cascade with them, on rendered people.

    python experiments/cascade.py --size small --output cascade            # two CPU cores
    python experiments/cascade.py --size small --output cascade --jobs 2   # a core for each run

The table is that of the first DensePose paper (Gueler, Neverova and Kokkinos, CVPR 2018): DensePose
alone, with masks, with keypoints, and in two stages that read what all tasks predicted before
(`model.cascade`); then two other designs of the second stage. All models of a seed see the same
pictures in the same order for as many steps. Few people carry surface points, but all have
keypoints and a mask, as in COCO; the test people all carry points, and nobody was trained on. Their
surface is the project's own body, so the numbers do not compare with published ones. The same
command resumes a stopped study.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import studies
import study_commands
import study_results
from studies import Run
from study_commands import FOUND, TRUE_BOXES
from study_results import Scores

from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.data_pipelines.synthetic.scene import FRONTAL, Scene
from ktn_jax.evaluation import template_files

CONFIG = "densepose_rcnn:cascade_demo"
# What each model changes of the configuration, which is that of "cascade with keypoints".
_ONE_STAGE = (
    "model.cascade.num_stages=1",
    # Each task has its own ROIs; in a cascade all share three, of which as many are DensePose's.
    *(f"loss.{task}_rois_per_image=2" for task in ("densepose", "keypoint", "mask")),
)
MODELS = {
    "DensePose": ("model.tasks=('densepose',)", *_ONE_STAGE),
    "+ masks": ("model.tasks=('densepose','masks')", *_ONE_STAGE),
    "+ keypoints": ("model.tasks=('densepose','keypoints')", *_ONE_STAGE),
    "cascade with keypoints": (),
}
# Other designs of the second stage, beyond the paper's table.
DESIGNS = {
    "cascade with keypoints, gradients stopped": ("model.cascade.stop_gradient=True",),
    "cascade with keypoints, maps added": ("model.cascade.adds_to_previous=True",),
}
# Measure and name of what the table shows. Without a mask head, masks are the pixels of the charts.
SURFACE = (("GPSm", "AP"), ("GPSm in true boxes", "AP"))
COLUMNS = (
    *SURFACE,
    *(("GPSm", "AP50"), ("GPSm", "AP75"), ("GPS", "AP")),
    *(("bbox", "AP"), ("segm", "AP"), ("keypoints", "AP")),
)
PICTURE = "cascade.png"


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget, the same for all models.

    Attributes:
        steps: of each training.
        seeds: runs of each model.
        num_images: to train on.
        num_test_images: for the scores of a run.
        changes: of the configuration.
    """

    steps: int
    seeds: int
    num_images: int
    num_test_images: int
    changes: tuple[str, ...] = ()


SIZES = {
    "smoke": Size(
        steps=2,
        seeds=1,
        num_images=8,
        num_test_images=4,
        changes=("training.num_devices=1",),  # the batch does not divide into any number
    ),
    "small": Size(steps=1400, seeds=3, num_images=2000, num_test_images=200),
}
# That of the demo: large people, who are found soon, so that the surface decides the scores.
SCENE = dataclasses.replace(FRONTAL, image_size_hw=(160, 160), densepose_fraction=0.3)
TEST_SCENE = dataclasses.replace(SCENE, densepose_fraction=1.0)


def prepare(size: Size, output: pathlib.Path) -> None:
    """Renders the people of every seed, and makes the template that they are scored with."""
    for seed in range(size.seeds):
        for folder, number, first, scene in _people(size, output, seed):
            studies.render_people(folder, number, seed=first, scene=scene)
    template_files.ensure_own_template(output / "template")


def _people(
    size: Size, output: pathlib.Path, seed: int
) -> tuple[tuple[pathlib.Path, int, int, Scene], ...]:
    """Folder, number of images, seed and scene of the training and the test people."""
    return (
        (output / f"people_seed{seed}", size.num_images, seed, SCENE),
        (output / f"test_seed{seed}", size.num_test_images, HELD_OUT_SEED + seed, TEST_SCENE),
    )


def make_runs(size: Size, output: pathlib.Path) -> dict[str, list[Run]]:
    """The runs of each model, one for each seed."""
    return {
        name: [_make_run(size, output, name, seed) for seed in range(size.seeds)]
        for name in MODELS | DESIGNS
    }


def _make_run(size: Size, output: pathlib.Path, model: str, seed: int) -> Run:
    models = MODELS | DESIGNS
    folder = output / f"model{list(models).index(model)}_seed{seed}"
    people, test_people = (entry[0] for entry in _people(size, output, seed))
    changes = (
        *size.changes,
        *models[model],
        *study_commands.people_changes(people),
        f"total_steps={size.steps}",
        f"seed={seed}",
    )
    workdir = folder / "training"
    scored = study_commands.eval_commands(
        CONFIG,
        changes,
        weights=workdir,
        people=test_people,
        template=output / "template",
        folder=folder,
    )
    return Run(folder, {"train": study_commands.train_words(CONFIG, changes, workdir), **scored})


def read_scores(run: Run) -> dict[str, Any]:
    """The scores of a run, those in the annotated boxes beside them."""
    found, in_boxes = (studies.read_scores(run.folder / step) for step in (FOUND, TRUE_BOXES))
    return {**found, "GPSm in true boxes": in_boxes["GPSm"]}


def gain_table(scores: Scores) -> str:
    """Markdown: what each model gains over the one before it in the paper's table, and the first.

    Other designs of the cascade are compared with what the paper's has before it.

    Seed by seed: seeds differ in their people, the models of a seed do not.
    """
    names = [name for name in scores if name not in DESIGNS]
    pairs = list(zip(names[1:], names, strict=False))
    pairs += [(name, names[0]) for name in names[2:]]
    pairs += [(name, names[-2]) for name in scores if name in DESIGNS]
    rows = []
    for name, base in pairs:
        cells = []
        for column in SURFACE:
            values = (
                study_results.score_of_seeds(scores[model], *column) for model in (name, base)
            )
            gains = study_results.paired_gains(*values)
            better = sum(gain > 0 for gain in gains)
            cells += [study_results.format_gain(gains), f"{better} of {len(gains)}"]
        rows.append((f"{name}, over {base}", *cells))
    columns = [cell for measure, name in SURFACE for cell in (f"{measure} {name}", "seeds")]
    return study_results.markdown_table(("gain", *columns), rows)


def report(size: Size, output: pathlib.Path, runs: Mapping[str, Sequence[Run]]) -> pathlib.Path:
    """Writes the page of the study; returns its path."""
    scores = {name: [read_scores(run) for run in runs_of] for name, runs_of in runs.items()}
    study_results.draw_scores(scores, COLUMNS[:4], output / PICTURE)
    blocks = [
        f"{CONFIG}, {size.steps} steps on {size.num_images} pictures, of whose people "
        f"{SCENE.densepose_fraction:.0%} carry surface points; {size.num_test_images} test "
        f"pictures; {size.seeds} seeds: mean ± standard deviation, gains seed by seed with their "
        "90 % bootstrap interval.",
        study_results.score_table(scores, COLUMNS),
        "Gains with the number of seeds that gain:",
        gain_table(scores),
        f"![Scores of every seed and their means]({PICTURE})",
    ]
    every = [run for runs_of in runs.values() for run in runs_of]
    return study_results.write_page(output, "Tasks beside DensePose, and a cascade", blocks, every)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    documentation = __doc__ or ""
    arguments = studies.parse_arguments(documentation, SIZES, "cascade", argv)
    size = studies.chosen_size(SIZES, arguments)
    with studies.resumable(arguments.output):
        prepare(size, arguments.output)
        runs = make_runs(size, arguments.output)
        studies.run_by_seed(runs, arguments.jobs)
        report(size, arguments.output, runs)


if __name__ == "__main__":
    main()
