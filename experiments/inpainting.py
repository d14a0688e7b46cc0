"""Trains a teacher on sparse points, and students on what it filled in, on rendered people.

    python experiments/inpainting.py --size small --jobs 2     # CPU
    python experiments/inpainting.py --size gpu --output inpainting_gpu

Distillation by in-painting is the other claim of the first DensePose paper (Gueler et al., CVPR
2018): a network that is trained on the few points that people annotated fills in the rest, and a
student learns better from both. Here the rest is known exactly. In each seed a teacher learns from
the points (at most 14 a part) and part masks of a few rendered people, labels them and people that
it never saw, and three students with the same start and order of images learn from the points
alone, from the points and what the teacher filled in, and from the points and the dense truth, the
upper bound. The same command resumes a stopped study, run by run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import studies
import study_results
from inpainting_truth import (
    Errors,
    RenderedSet,
    by_confidence,
    by_distance,
    measure,
    write_dense_truth,
    write_symmetry,
)
from studies import FOUND, TRUE_BOXES

from ktn_jax.data_pipelines.loading.configured import make_scene
from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.evaluation import template_files
from ktn_jax.runtime import atomic_files, configuration

STUDENTS = ("sparse points", "+ in-painted", "+ dense truth")
SCORES = (("GPSm", "AP"), ("GPSm", "AP50"), ("GPS", "AP"), ("bbox", "AP"))
NEAR_CM = 10
CONFIDENCES = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
ERRORS_FILE = "errors.json"
SYMMETRY_FILE = "UV_symmetry_transforms.mat"  # of the rendered body
POINTS = 180  # of a person in a file that was filled up


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget.

    Attributes:
        teacher: configuration of the teacher.
        student: configuration of the students.
        teacher_steps: of the teacher.
        steps: of each student.
        seeds: how many of each.
        num_images: that teacher and students learn from.
        num_test_images: of other people.
        scene: changes of both configurations, which say what the images show.
        teacher_changes: of the teacher's configuration.
        changes: of the students' configuration.
        dense_points: drawn of a person's labels for every step of a student.
    """

    teacher: str
    student: str
    teacher_steps: int
    steps: int
    seeds: int
    num_images: int
    num_test_images: int
    scene: tuple[str, ...]
    teacher_changes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    dense_points: int = 100


_BUSY = (
    "data.synthetic.preset=busy",
    "data.synthetic.people_range=(1, 3)",
    "data.synthetic.image_size_hw=(224, 224)",
)
# People of 190 pixels in the middle: on those of 126 a pixel is 0.045 of a chart, which no teacher
# is much better than. The students see these pictures smaller.
_FRONTAL = (
    "data.synthetic.preset=frontal",
    "data.synthetic.people_range=(1, 2)",
    "data.synthetic.image_size_hw=(224, 224)",
)
# DensePose R-CNN with KTN's head: the shortest way from labels to charts.
_PLAIN = ("model.decoder.name=none", "model.predictor.name=chart")
SIZES = {
    "smoke": Size(
        "configs/teacher.py:tiny",
        "configs/ktn.py:tiny",
        teacher_steps=2,
        steps=2,
        seeds=1,
        num_images=4,
        num_test_images=3,
        scene=("data.synthetic.preset=frontal", "data.synthetic.image_size_hw=(96, 96)"),
        changes=(*_PLAIN, "data.max_people=2", "test.short_side=128"),
        dense_points=20,
    ),
    "small": Size(
        "configs/teacher.py:demo",
        "configs/ktn.py:demo",
        teacher_steps=2500,
        steps=1200,
        seeds=3,
        num_images=400,
        num_test_images=150,
        scene=_FRONTAL,
        teacher_changes=(
            "data.person_crops.size_hw=(192, 128)",
            "test.crop_sizes_hw=((192, 128), (224, 160))",
        ),
        changes=(
            *_PLAIN,
            "data.max_people=2",
            "loss.densepose_rois_per_image=2",
            "data.short_sides=(160,)",
            "data.max_long_side=160",
            "test.short_side=160",
            "test.max_side=160",
            "test.size_buckets=((160,160),)",
        ),
    ),
    "gpu": Size(
        "configs/teacher.py:demo",
        "configs/ktn.py:demo_gpu",
        teacher_steps=8000,
        steps=4000,
        seeds=3,
        num_images=1500,
        num_test_images=400,
        scene=_BUSY,
        teacher_changes=("batch_size=32", "data.workers=8"),
        changes=(*_PLAIN, "data.max_people=3", "loss.densepose_rois_per_image=3"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Seed:
    """The files of one seed."""

    output: pathlib.Path
    size: Size
    number: int

    def folder(self, name: str) -> pathlib.Path:
        """A folder of this seed."""
        return self.output / f"{name}_seed{self.number}"

    def people(self, is_held_out: bool) -> RenderedSet:
        """Those to learn from, or others."""
        size = self.size
        config = configuration.load_config(size.student, size.scene)
        scene = make_scene(config.data.synthetic)
        if is_held_out:
            seed = HELD_OUT_SEED + self.number
            return RenderedSet(self.folder("test_people"), size.num_test_images, seed, scene)
        return RenderedSet(self.folder("people"), size.num_images, self.number, scene)

    def labelled(self, student: str) -> pathlib.Path:
        """The annotation file that a student learns from."""
        if student == STUDENTS[0]:
            return self.people(is_held_out=False).annotations
        name = "inpainted" if student == STUDENTS[1] else "truth"
        return self.folder(name) / "annotations.json"

    def labelled_held_out(self) -> pathlib.Path:
        """Held-out people as the teacher labels them."""
        return self.folder("inpainted") / "test_people.json"

    def teacher(self) -> studies.Run:
        """Trains the teacher, and labels with it those it learnt from and others."""
        size, folder = self.size, self.folder("teacher")
        own = {
            "seed": self.number,
            "total_steps": size.teacher_steps,
            "checkpoint_every": max(size.teacher_steps // 4, 1),
            "data.symmetry": str(self.output / SYMMETRY_FILE),
        }
        learnt, others = (self.people(is_held_out) for is_held_out in (False, True))
        files = studies.people_changes(learnt.folder)
        changes = (*size.teacher_changes, *files, *_as_changes(own))
        weights = folder / "training"
        self.folder("inpainted").mkdir(parents=True, exist_ok=True)

        def inpaint(people: RenderedSet, output: pathlib.Path) -> studies.Words:
            paths = {"weights": weights, "annotations": people.annotations, "images": people.images}
            words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
            model = studies.model_words(size.teacher, changes)
            points = ["--output", str(output), "--points", str(POINTS), "--quiet"]
            return ("data", "inpaint", *model, *words, *points)

        return studies.Run(
            folder,
            {
                "train": studies.train_words(size.teacher, changes, weights),
                "inpaint": inpaint(learnt, self.labelled(STUDENTS[1])),
                "inpaint_held_out": inpaint(others, self.labelled_held_out()),
            },
        )

    def student(self, name: str) -> studies.Run:
        """Trains and scores a student."""
        size, number = self.size, STUDENTS.index(name)
        folder = self.folder(f"student{number}")
        own = {
            "seed": self.number,
            "total_steps": size.steps,
            "checkpoint_every": max(size.steps // 4, 1),
            "data.source": "densepose_coco",
            "data.annotations": (str(self.labelled(name)),),
            "data.images": (str(self.people(is_held_out=False).images),),
            "data.dense_points": size.dense_points if number else 0,
            # As many points again as the annotator's would else make U and V count twice as much.
            "loss.dense_weight": 0.5,
        }
        changes = (*size.scene, *size.changes, *_as_changes(own))
        weights = folder / "training"
        held_out = self.people(is_held_out=True).folder
        train = studies.train_words(size.student, changes, weights)
        scored = studies.eval_commands(
            size.student, changes, weights, held_out, self.output / "template", folder
        )
        return studies.Run(folder, {"train": train, **scored})

    def scores(self, name: str) -> dict[str, Any]:
        """The scores of a student by evaluation."""
        folder = self.student(name).folder
        return {step: studies.read_scores(folder / step) for step in (FOUND, TRUE_BOXES)}


def _as_changes(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value!r}" for key, value in values.items()]


def prepare(seed: Seed, jobs: int) -> None:
    """Renders the people of a seed, and writes their dense truth."""
    for is_held_out in (False, True):
        people = seed.people(is_held_out)
        studies.render_people(people.folder, people.num_images, people.seed, people.scene, jobs)
    write_dense_truth(seed.people(is_held_out=False), seed.labelled(STUDENTS[2]), POINTS)


def measure_teacher(seed: Seed) -> dict[str, Any]:
    """The errors of what the teacher filled in; measured once."""
    path = seed.folder("inpainted") / ERRORS_FILE
    if not path.is_file():
        template = seed.output / "template"
        held_out = measure(seed.people(is_held_out=True), seed.labelled_held_out(), template)
        learnt = measure(seed.people(is_held_out=False), seed.labelled(STUDENTS[1]), template)
        content = {
            "held out": _summaries(by_distance(held_out)),
            "learnt from": _summaries(by_distance(learnt)),
            "confidence": _summaries(by_confidence(held_out, CONFIDENCES)),
        }
        with atomic_files.replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
    measured: dict[str, Any] = json.loads(path.read_bytes())
    return measured


def _summaries(classes: Sequence[tuple[str, Errors]]) -> dict[str, Any]:
    return {name: errors.summary() for name, errors in classes}


def error_table(measured: Sequence[Mapping[str, Any]], kind: str, head: str) -> str:
    """Errors of what was filled in by class; mean ± standard deviation over the seeds."""
    columns = {"right": 1, "uv": 3, "mean_cm": 1, "median_cm": 1}
    rows = []
    for name in measured[0][kind]:
        values = [seed[kind][name] for seed in measured]
        share = [
            100 * row["cells"] / _all_cells(seed[kind]) if row["cells"] else None
            for row, seed in zip(values, measured, strict=True)
        ]
        cells = [
            study_results.format_mean([row[key] for row in values], digits)
            for key, digits in columns.items()
        ]
        rows.append([name, study_results.format_mean(share, 0), *cells])
    heads = [head, "% of the cells", "% on the right patch", "median UV error"]
    return study_results.markdown_table([*heads, "mean cm", "median cm"], rows)


def _all_cells(classes: Mapping[str, Any]) -> int:
    if "all" in classes:
        return int(classes["all"]["cells"])
    return sum(row["cells"] or 0 for row in classes.values())


def score_table(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Scores of the students in the boxes that they find and in the true ones."""
    heads = ["student", *(f"{measure} {column}" for measure, column in SCORES)]
    heads += ["true boxes: GPSm AP", "mean cm of points", f"% within {NEAR_CM} cm"]
    rows = []
    for name, runs in scores.items():
        cells = [
            study_results.format_mean([run[FOUND][measure].get(column) for run in runs])
            for measure, column in SCORES
        ]
        true = [run[TRUE_BOXES] for run in runs]
        cells.append(study_results.format_mean([run["GPSm"]["AP"] for run in true]))
        for key in ("mean_cm", f"within_{NEAR_CM}cm_percent"):
            points = [run["patches"]["all"][key] if "patches" in run else None for run in true]
            cells.append(study_results.format_mean(points))
        rows.append([name, *cells])
    return study_results.markdown_table(heads, rows)


def gain_table(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What each student gains in GPSm AP over the points alone, seed by seed."""
    rows = []
    for name in STUDENTS[1:]:
        cells = []
        for step in (FOUND, TRUE_BOXES):
            values, base = (
                [run[step]["GPSm"]["AP"] for run in scores[student]]
                for student in (name, STUDENTS[0])
            )
            gains = study_results.paired_gains(values, base)
            cells.append(study_results.format_gain(gains))
            cells.append(", ".join(f"{value:+.1f}" for value in gains))
        rows.append([name, *cells])
    heads = ["student", "gain in GPSm AP", "of each seed", "in true boxes", "of each seed"]
    return study_results.markdown_table(heads, rows)


def report(output: pathlib.Path, seeds: Sequence[Seed], runs: Sequence[studies.Run]) -> None:
    """Writes the page and the picture."""
    measured = [measure_teacher(seed) for seed in seeds]
    scores: dict[str, list[Any]] = {
        name: [seed.scores(name) for seed in seeds] for name in STUDENTS
    }
    panels = {
        f"GPSm AP{where}": {
            name: [run[step]["GPSm"]["AP"] for run in runs_] for name, runs_ in scores.items()
        }
        for step, where in ((FOUND, ""), (TRUE_BOXES, " in true boxes"))
    }
    panels["% on the right patch"] = {
        kind: [seed[kind]["all"]["right"] for seed in measured]
        for kind in ("learnt from", "held out")
    }
    study_results.draw_bars(panels, output / "inpainting.png")
    size = seeds[0].size
    blocks = [
        f"{size.num_images} images of rendered people; the teacher ({size.teacher}, "
        f"{size.teacher_steps} steps) sees their points, at most 14 a part, and part masks. The "
        f"students ({size.student} without MID and KTM, {size.steps} steps) are scored on "
        f"{size.num_test_images} images of other people. Mean ± standard deviation over "
        f"{len(seeds)} seeds; the gain is that over the first student of the same seed, with its "
        "90 % bootstrap interval.",
        score_table(scores),
        gain_table(scores),
        "![Scores and shares](inpainting.png)",
        "What the teacher fills in for people whom it never saw, by the distance of a pixel to the "
        "nearest point of their annotation (which the teacher does not see):",
        error_table(measured, "held out", "nearest point"),
        "For the people whose points it learnt from:",
        error_table(measured, "learnt from", "nearest point"),
        "For people whom it never saw, by its confidence:",
        error_table(measured, "confidence", "confidence"),
    ]
    study_results.write_page(output, "In-painting what was not annotated", blocks, runs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    arguments = studies.parse_arguments(str(__doc__), SIZES, "inpainting", argv)
    size: Size = studies.chosen_size(SIZES, arguments)
    output: pathlib.Path = arguments.output
    seeds = [Seed(output, size, number) for number in range(size.seeds)]
    with studies.resumable(output):
        template_files.ensure_own_template(output / "template")
        write_symmetry(output / SYMMETRY_FILE)
        for seed in seeds:
            prepare(seed, arguments.jobs)
        teachers = [seed.teacher() for seed in seeds]
        studies.run_all(teachers, arguments.jobs)
        students = [seed.student(name) for seed in seeds for name in STUDENTS]
        studies.run_all(students, arguments.jobs)
        report(output, seeds, [*teachers, *students])


if __name__ == "__main__":
    main()
