"""Trains a teacher on sparse points, and students on what it filled in, on rendered people.

    python experiments/inpainting.py --size small --jobs 2     # CPU
    python experiments/inpainting.py --size gpu --output inpainting_gpu

Distillation by in-painting is the other claim of the first DensePose paper (Gueler et al., CVPR
2018): a network that is trained on the few points that people annotated fills in the rest, and a
student learns better from both. Here the rest is known exactly. In each seed one teacher learns
from the points (at most 14 a part) and part masks of rendered people, and labels them and people
whom it never saw: this measures what is filled in. Another learns from the few pictures whose
people have points, and labels those of all pictures, of whom it knows part masks. Three students
with the same start and order of images learn from the points alone, from the points and what that
teacher filled in, and from the points and the dense truth, the upper bound. The same command
resumes a stopped study, run by run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import inpainting_tables
import studies
import study_commands
import study_results
from inpainting_truth import (
    Errors,
    RenderedSet,
    by_confidence,
    by_distance,
    measure,
    write_dense_truth,
    write_points_of_few,
    write_symmetry,
)
from study_commands import FOUND, TRUE_BOXES

from ktn_jax.data_pipelines.loading.configured import make_scene
from ktn_jax.data_pipelines.synthetic.dataset_files import ANNOTATION_FILE
from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.evaluation import template_files
from ktn_jax.runtime import atomic_files, configuration

STUDENTS = ("sparse points", "+ in-painted", "+ dense truth")
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
        teacher_steps: of the teacher that is measured.
        few_teacher_steps: of the one that labels for students.
        steps: of each student.
        seeds: how many of each.
        num_images: that teacher and students learn from.
        num_with_points: of these, how many show people with points to the students and their
            teacher. Of the others boxes, keypoints and part masks are known.
        num_test_images: of other people.
        scene: changes of both configurations, which say what the images show.
        teacher_changes: of the teacher's configuration.
        changes: of the students' configuration.
        dense_points: drawn of a person's labels for every step of a student.
    """

    teacher: str
    student: str
    teacher_steps: int
    few_teacher_steps: int
    steps: int
    seeds: int
    num_images: int
    num_with_points: int
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
        few_teacher_steps=2,
        steps=2,
        seeds=1,
        num_images=4,
        num_with_points=2,
        num_test_images=3,
        scene=("data.synthetic.preset=frontal", "data.synthetic.image_size_hw=(96, 96)"),
        changes=(*_PLAIN, "data.max_people=2", "test.short_side=128"),
        dense_points=20,
    ),
    "small": Size(
        "configs/teacher.py:demo",
        "configs/ktn.py:demo",
        teacher_steps=2500,
        few_teacher_steps=1200,
        steps=1200,
        seeds=3,
        num_images=400,
        num_with_points=60,
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
        few_teacher_steps=4000,
        steps=4000,
        seeds=3,
        num_images=1500,
        num_with_points=200,
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
        names = dict(zip(STUDENTS, ("few_points", "few_inpainted", "few_truth"), strict=True))
        return self.folder(names[student]) / ANNOTATION_FILE

    def filled_in(self, is_held_out: bool) -> pathlib.Path:
        """People as the teacher that is measured labels them."""
        name = "test_people.json" if is_held_out else ANNOTATION_FILE
        return self.folder("inpainted") / name

    def teacher(self) -> studies.Run:
        """Trains the teacher that is measured, which labels those it learnt from and others."""
        labelled = {
            is_held_out: (self.people(is_held_out).annotations, self.filled_in(is_held_out))
            for is_held_out in (False, True)
        }
        return self._teacher("teacher", self.size.teacher_steps, labelled)

    def teacher_of_few(self) -> studies.Run:
        """Trains the teacher whose labels a student learns from."""
        points, filled_in = (self.labelled(name) for name in STUDENTS[:2])
        labelled = {False: (points, filled_in)}
        return self._teacher("few_teacher", self.size.few_teacher_steps, labelled)

    def _teacher(
        self, name: str, steps: int, labelled: Mapping[bool, tuple[pathlib.Path, pathlib.Path]]
    ) -> studies.Run:
        """Trains a teacher on an annotation file, and labels the people of some.

        Args:
            name: of the run.
            steps: of the training.
            labelled: by whether people are held out, their annotation file and the one to write.
                The teacher learns from those who are not.
        """
        learnt, _ = labelled[False]
        size, folder = self.size, self.folder(name)
        own = {
            "seed": self.number,
            "total_steps": steps,
            "checkpoint_every": max(steps // 4, 1),
            "data.symmetry": str(self.output / SYMMETRY_FILE),
        }
        files = study_commands.data_changes(learnt, self.people(is_held_out=False).images)
        changes = (*size.teacher_changes, *files, *_as_changes(own))
        weights = folder / "training"
        commands = {"train": study_commands.train_words(size.teacher, changes, weights)}
        for is_held_out, (source, output) in labelled.items():
            output.parent.mkdir(parents=True, exist_ok=True)
            words = {
                "weights": weights,
                "annotations": source,
                "images": self.people(is_held_out).images,
                "output": output,
                "points": POINTS,
            }
            step = "inpaint_held_out" if is_held_out else "inpaint"
            commands[step] = (
                *("data", "inpaint", *study_commands.model_words(size.teacher, changes)),
                *(word for key, value in words.items() for word in (f"--{key}", str(value))),
                "--quiet",
            )
        return studies.Run(folder, commands)

    def student(self, name: str) -> studies.Run:
        """Trains and scores a student."""
        size, number = self.size, STUDENTS.index(name)
        folder = self.folder(f"few_student{number}")
        own = {
            "seed": self.number,
            "total_steps": size.steps,
            "checkpoint_every": max(size.steps // 4, 1),
            "data.dense_points": size.dense_points if number else 0,
            # As many points again as the annotator's would else make U and V count twice as much.
            "loss.dense_weight": 0.5,
        }
        files = study_commands.data_changes(
            self.labelled(name), self.people(is_held_out=False).images
        )
        changes = (*size.scene, *size.changes, *files, *_as_changes(own))
        weights = folder / "training"
        held_out = self.people(is_held_out=True).folder
        train = study_commands.train_words(size.student, changes, weights)
        scored = study_commands.eval_commands(
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
    """Renders the people of a seed, takes the points of most, and writes their dense truth."""
    for is_held_out in (False, True):
        people = seed.people(is_held_out)
        studies.render_people(people.folder, people.num_images, people.seed, people.scene, jobs)
    points, _, truth = (seed.labelled(name) for name in STUDENTS)
    people = seed.people(is_held_out=False)
    write_points_of_few(people, points, seed.size.num_with_points)
    write_dense_truth(people, points, truth, POINTS)


def measure_teachers(seed: Seed) -> dict[str, Any]:
    """The errors of what the teachers filled in; measured once."""
    path = seed.folder("few_inpainted") / ERRORS_FILE
    if not path.is_file():
        template = seed.output / "template"
        others, learnt = (
            measure(seed.people(is_held_out), seed.filled_in(is_held_out), template)
            for is_held_out in (True, False)
        )
        of_few = measure(seed.people(is_held_out=False), seed.labelled(STUDENTS[1]), template)
        content = {
            "held out": _summaries(by_distance(others)),
            "learnt from": _summaries(by_distance(learnt)),
            "confidence": _summaries(by_confidence(others, CONFIDENCES)),
            "of few": _summaries(by_distance(of_few)),
        }
        with atomic_files.replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
    measured: dict[str, Any] = json.loads(path.read_bytes())
    return measured


def _summaries(classes: Sequence[tuple[str, Errors]]) -> dict[str, Any]:
    return {name: errors.summary() for name, errors in classes}


def report(output: pathlib.Path, seeds: Sequence[Seed], runs: Sequence[studies.Run]) -> None:
    """Writes the page and the picture."""
    measured = [measure_teachers(seed) for seed in seeds]
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
        for kind in ("learnt from", "held out", "of few")
    }
    study_results.draw_bars(panels, output / "inpainting.png")
    size = seeds[0].size
    blocks = [
        f"Students ({size.student} without MID and KTM, {size.steps} steps) learn from "
        f"{size.num_images} images of rendered people, of whom those of {size.num_with_points} "
        "images have points, at most 14 a part, and the others part masks. Their teacher "
        f"({size.teacher}, {size.few_teacher_steps} steps) sees these points and labels all. They "
        f"are scored on {size.num_test_images} images of other people. Mean ± standard deviation "
        f"over {len(seeds)} seeds; the gain is that over the first student of the same seed, with "
        "its 90 % bootstrap interval.",
        inpainting_tables.score_table(scores),
        inpainting_tables.gain_table(scores),
        "![Scores and shares](inpainting.png)",
        "What their teacher fills in, by the distance of a pixel to the nearest point that it "
        "knows:",
        inpainting_tables.error_table(measured, "of few", "nearest point"),
        f"A teacher of {size.teacher_steps} steps that sees the points of all images: what it "
        "fills in for people whom it never saw, by the distance of a pixel to the nearest point of "
        "their annotation (which it does not see):",
        inpainting_tables.error_table(measured, "held out", "nearest point"),
        "For the people whose points it learnt from:",
        inpainting_tables.error_table(measured, "learnt from", "nearest point"),
        "For people whom it never saw, by its confidence:",
        inpainting_tables.error_table(measured, "confidence", "confidence"),
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
        teachers = [run for seed in seeds for run in (seed.teacher(), seed.teacher_of_few())]
        studies.run_all(teachers, arguments.jobs)
        students = [seed.student(name) for seed in seeds for name in STUDENTS]
        studies.run_all(students, arguments.jobs)
        report(output, seeds, [*teachers, *students])


if __name__ == "__main__":
    main()
