"""Compares embeddings of vertices with charts, on rendered people.

    python experiments/embeddings.py --size small --output embeddings            # two CPU cores
    python experiments/embeddings.py --size small --output embeddings --jobs 2   # a core for each

All models of a seed see the same pictures, those of `ktn demo`, in the same order, for as many
steps. "charts" and "embeddings" differ in the predictor and its losses alone; "KTN" is the model of
`ktn demo`. Their surface is the project's own body, so the numbers do not compare with published
ones. The same command resumes a stopped study.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import studies
import study_commands
import study_results
from studies import Run
from study_commands import FOUND
from study_results import Scores

from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.data_pipelines.synthetic.scene import FRONTAL
from ktn_jax.evaluation import template_files

CHARTS, EMBEDDINGS, KTN = "charts", "embeddings", "KTN"
# Configuration of each model, and what is changed of it.
MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    KTN: ("ktn:demo", ()),
    CHARTS: ("cse:demo", ("model.predictor.name=chart",)),
    EMBEDDINGS: ("cse:demo", ()),
}
COLUMNS = (
    *(("GPSm", "AP"), ("GPS", "AP"), ("GPSm", "AP50"), ("GPSm", "AP75")),
    *(("GPS", "AP50"), ("GPS", "AP75"), ("bbox", "AP"), ("IOU", "AP")),
)
PICTURE = "embeddings.png"
SCENE = dataclasses.replace(FRONTAL, image_size_hw=(160, 160))


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget, the same for all models.

    Attributes:
        steps: of each training.
        seeds: runs of each model.
        num_images: to train on.
        num_test_images: for the scores of a run.
        changes: of all configurations.
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
    "small": Size(steps=1200, seeds=3, num_images=2000, num_test_images=100),
}


def prepare(size: Size, output: pathlib.Path) -> None:
    """Renders the people of every seed, and makes the template that they are scored with."""
    for seed in range(size.seeds):
        people, test_people = _folders(output, seed)
        studies.render_people(people, size.num_images, seed=seed, scene=SCENE)
        studies.render_people(
            test_people, size.num_test_images, seed=HELD_OUT_SEED + seed, scene=SCENE
        )
    template_files.ensure_own_template(output / "template")


def _folders(output: pathlib.Path, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
    return output / f"people_seed{seed}", output / f"test_seed{seed}"


def make_runs(size: Size, output: pathlib.Path) -> dict[str, list[Run]]:
    """The runs of each model, one for each seed."""
    return {
        name: [_make_run(size, output, name, seed) for seed in range(size.seeds)] for name in MODELS
    }


def _make_run(size: Size, output: pathlib.Path, model: str, seed: int) -> Run:
    folder = output / f"{model.lower()}_seed{seed}"
    people, test_people = _folders(output, seed)
    config, own = MODELS[model]
    changes = (
        *size.changes,
        *own,
        *study_commands.people_changes(people),
        f"total_steps={size.steps}",
        f"seed={seed}",
    )
    workdir = folder / "training"
    scored = study_commands.eval_commands(
        config,
        changes,
        weights=workdir,
        people=test_people,
        template=output / "template",
        folder=folder,
    )
    train = study_commands.train_words(config, changes, workdir)
    return Run(folder, {"train": train, FOUND: scored[FOUND]})


def table(scores: Scores) -> str:
    """Markdown: a row for each model with its scores, and one of what embeddings gain."""
    gain = (f"{EMBEDDINGS}, over {CHARTS}", *(_format_gain(scores, *column) for column in COLUMNS))
    return study_results.score_table(scores, COLUMNS, [gain])


def _format_gain(scores: Scores, measure: str, name: str) -> str:
    """What embeddings gain over charts."""
    values = (
        study_results.score_of_seeds(scores[model], measure, name) for model in (EMBEDDINGS, CHARTS)
    )
    return study_results.format_gain(study_results.paired_gains(*values))


def report(size: Size, output: pathlib.Path, runs: Mapping[str, Sequence[Run]]) -> pathlib.Path:
    """Writes the page of the study; returns its path."""
    scores = {
        name: [studies.read_scores(run.folder / FOUND) for run in runs_of]
        for name, runs_of in runs.items()
    }
    study_results.draw_scores(scores, COLUMNS[:4], output / PICTURE)
    blocks = [
        f"{size.steps} steps on {size.num_images} pictures, {size.num_test_images} test pictures, "
        f"{size.seeds} seeds: mean ± standard deviation, gains seed by seed with their 90 % "
        "bootstrap interval.",
        table(scores),
        f"![Scores of every seed and their means]({PICTURE})",
    ]
    every = [run for runs_of in runs.values() for run in runs_of]
    return study_results.write_page(output, "Vertices in place of charts", blocks, every)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    arguments = studies.parse_arguments(__doc__ or "", SIZES, "embeddings", argv)
    size = studies.chosen_size(SIZES, arguments)
    with studies.resumable(arguments.output):
        prepare(size, arguments.output)
        runs = make_runs(size, arguments.output)
        studies.run_by_seed(runs, arguments.jobs)
        report(size, arguments.output, runs)


if __name__ == "__main__":
    main()
