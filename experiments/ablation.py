"""How many people with surface points do the models need: what MID and KTM change.

    python experiments/ablation.py --size small --jobs 2     # 2 CPU cores, four hours, in pieces
    python experiments/ablation.py --size gpu                # one GPU

The experiment is that of the KTN paper (Wang et al., ACM MM 2020), on rendered people. Models first
learn keypoints from everybody, with the decoder that they will have (MID or none); then, from that
start, surfaces from N people, who are at most 14 points a part, and whatever else they can use:

    DensePose R-CNN, + MID   everybody's boxes; parts and surface points of the N
    + KTM, KTNv2             the same; body masks of the N and everybody's keypoints

All models of a seed see the same pictures, people with points (those of a smaller N are among those
of a larger one), steps and order; half of the pictures of a batch show somebody with points. KTNv2
is also trained with keypoint classifiers drawn anew and with a body graph of noise. Test people are
never trained on; their surface is the project's own body, so scores compare with no published ones.

Results go to OUTPUT/results.md, seed after seed. The same command resumes a stopped study.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import studies
from study_results import (
    draw_curves,
    format_gain,
    format_mean,
    markdown_table,
    paired_gains,
    write_page,
)

COLUMNS = ("AP", "AP50", "AP75", "AP_M", "AP_L")
CHART = ("model.predictor.name=chart", "model.predictor.num_coarse_channels=15")
# All people train their keypoints; the losses of the surface are those of people with points.
KTM = ("loss.densepose_people_only=False",)
NO_MID = ("model.decoder.name=none",)
MODELS = {
    "DensePose R-CNN": (*NO_MID, *CHART),
    "+ MID": CHART,
    "+ KTM": (*NO_MID, *KTM),
    "KTNv2 (MID + KTM)": KTM,
}
BASE, MID_ONLY, KTM_ONLY, BOTH = MODELS
# What the start and the graph are worth: parts of the start that KTNv2 does without.
REDRAWN = {
    "KTNv2, classifiers drawn anew": (*KTM, "training.redraw=('predictor/keypoint_',)"),
    "KTNv2, graph of noise": (
        *KTM,
        "training.redraw=('predictor/transfer/edges_',)",
        "training.graph=noise",
    ),
}
PATCHES = {
    "hands": ("right_hand", "left_hand"),
    "feet": ("left_foot", "right_foot"),
    "head": ("right_head", "left_head"),
    "torso": ("torso_back", "torso_front"),
}
FOUND, TRUE_BOXES = "scores", "scores_true_boxes"  # folders of the two evaluations of a run


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget: the same for all models.

    Attributes:
        variant: of configs/ktn.py and configs/keypoint_mid.py.
        pretraining_steps: on keypoints.
        steps: of each training on surfaces.
        seeds: how many runs of each model and N.
        labelled: every N.
        redrawn_labelled: those at which the models of REDRAWN are trained.
        num_images: rendered for the training of a seed.
        num_test_images: for the scores of one run.
        image_side: pixels.
        changes: of both configurations.
        models: those of MODELS that are trained.
    """

    variant: str
    pretraining_steps: int
    steps: int
    seeds: int
    labelled: tuple[int, ...]
    redrawn_labelled: tuple[int, ...]
    num_images: int
    num_test_images: int
    image_side: int
    changes: tuple[str, ...]
    models: tuple[str, ...] = tuple(MODELS)


SIZES = {
    "smoke": Size(
        variant="tiny",
        pretraining_steps=2,
        steps=2,
        seeds=1,
        labelled=(2, 3),
        redrawn_labelled=(2,),
        num_images=12,
        num_test_images=3,
        image_side=128,
        changes=("batch_size=2", "model.box_head.max_detections=4"),
        models=(BASE, BOTH),
    ),
    "small": Size(
        variant="demo",
        pretraining_steps=1200,
        steps=500,
        seeds=3,
        labelled=(30, 100, 300, 1000),
        redrawn_labelled=(30, 100),
        num_images=2500,
        num_test_images=150,
        image_side=192,
        changes=(
            "batch_size=4",
            # People are 80 to 220 pixels high.
            "model.rpn.anchor_sizes=((28,),(44,),(68,),(100,),(144,))",
            "loss.densepose_rois_per_image=3",
            "checkpoint_every=250",
            "optimizer.learning_rate=2e-3",
        ),
    ),
    "gpu": Size(
        variant="demo_gpu",
        pretraining_steps=3000,
        steps=1200,
        seeds=3,
        labelled=(30, 100, 300, 1000),
        redrawn_labelled=(30, 100),
        num_images=4000,
        num_test_images=300,
        image_side=320,
        changes=(
            "batch_size=16",
            "model.rpn.anchor_sizes=((40,),(70,),(110,),(160,),(230,))",
            "loss.densepose_rois_per_image=4",
            "checkpoint_every=600",
            "optimizer.learning_rate=2e-3",
        ),
    ),
}


def settings(size: Size, people: pathlib.Path, seed: int) -> tuple[str, ...]:
    """Changes that all trainings of a seed share."""
    side = size.image_side
    return (
        *size.changes,
        *test_settings(size),
        f"seed={seed}",
        "data.source=densepose_coco",
        f"data.annotations=({str(people / 'annotations.json')!r},)",
        f"data.images=({str(people / 'images')!r},)",
        "data.max_people=2",
        f"data.short_sides=({side},)",
        f"data.max_long_side={side}",
    )


def test_settings(size: Size) -> tuple[str, ...]:
    """Changes that decide how a model sees a picture."""
    side = size.image_side
    return (
        f"test.short_side={side}",
        f"test.max_side={side}",
        f"test.size_buckets=(({side},{side}),)",
        *(change for change in size.changes if change.startswith("model.")),
    )


def pretraining(size: Size, output: pathlib.Path, seed: int, with_mid: bool) -> studies.Run:
    """The training on keypoints that models with the same decoder start from."""
    folder = output / f"seed{seed}" / ("keypoints_mid" if with_mid else "keypoints")
    changes = (
        *settings(size, output / f"people_seed{seed}", seed),
        f"total_steps={size.pretraining_steps}",
        *(() if with_mid else NO_MID),
    )
    config = f"keypoint_mid:{size.variant}"
    return studies.Run(folder, {"train": studies.train_words(config, changes, folder / "training")})


def surface_run(
    size: Size, output: pathlib.Path, seed: int, name: str, labelled: int
) -> studies.Run:
    """The training of a model on N people with surface points, and its scores."""
    changes = (MODELS | REDRAWN)[name]
    start = pretraining(size, output, seed, with_mid=not set(NO_MID) <= set(changes)).folder
    slug = "_".join(name.lower().replace("+", " ").replace(",", " ").split())
    folder = output / f"seed{seed}" / f"n{labelled}" / slug.replace("(", "").replace(")", "")
    config = f"ktn:{size.variant}"
    trained = (
        *settings(size, output / f"people_seed{seed}", seed),
        f"total_steps={size.steps}",
        f"data.labelled_people={labelled}",
        "data.labelled_share=0.5",
        *changes,
    )
    model = (*test_settings(size), *(c for c in changes if c.startswith("model.")))
    commands = {
        "train": studies.train_words(config, trained, folder / "training", start / "training")
    }
    for step, options in ((FOUND, ()), (TRUE_BOXES, ("--true-boxes",))):
        words = studies.eval_words(
            config,
            model,
            weights=folder / "training",
            people=output / "test_people",
            template=output / "template",
            output=folder / step,
        )
        commands[step] = (*words, *options)
    return studies.Run(folder, commands)


def models_at(size: Size, labelled: int) -> tuple[str, ...]:
    """Names of the models that are trained with so many people."""
    return (*size.models, *(REDRAWN if labelled in size.redrawn_labelled else ()))


def render(size: Size, output: pathlib.Path, seed: int) -> None:
    """Renders the people of a seed, and once the test people and their template."""
    from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
    from ktn_jax.data_pipelines.synthetic.scene import LARGE
    from ktn_jax.evaluation import template_files

    scene = dataclasses.replace(LARGE, image_size_hw=(size.image_side, size.image_side))
    studies.render_people(output / f"people_seed{seed}", size.num_images, seed, scene)
    studies.render_people(output / "test_people", size.num_test_images, HELD_OUT_SEED, scene)
    template_files.ensure_own_template(output / "template")


class Results:
    """Scores of all runs of the seeds that are done."""

    def __init__(self, size: Size, output: pathlib.Path, seeds: Sequence[int]):
        """Reads metrics.json of every run."""
        self.size, self.seeds = size, tuple(seeds)
        self._scores = {
            (name, labelled, seed, step): studies.read_scores(
                surface_run(size, output, seed, name, labelled).folder / step
            )
            for seed in seeds
            for labelled in size.labelled
            for name in models_at(size, labelled)
            for step in (FOUND, TRUE_BOXES)
        }

    def values(
        self, name: str, labelled: int, step: str, read: Callable[[Mapping[str, Any]], Any]
    ) -> list[Any]:
        """A number of each seed."""
        return [read(self._scores[name, labelled, seed, step]) for seed in self.seeds]


def average_precision(scores: Mapping[str, Any]) -> float:
    """GPSm AP."""
    return float(scores["GPSm"]["AP"] or 0.0)


def near_share(names: Sequence[str]) -> Callable[[Mapping[str, Any]], float]:
    """Reads the per cent of the points on some patches that are within 10 cm of where they are."""

    def read(scores: Mapping[str, Any]) -> float:
        rows = [scores["patches"][name] for name in names]
        points = sum(row["points"] for row in rows)
        near = sum(row["points"] * (row["within_10cm_percent"] or 0.0) for row in rows)
        return near / max(points, 1)

    return read


def table_at(results: Results, labelled: int) -> str:
    """The paper's table for one N, with people found and with their true boxes."""
    rows = []
    for name in models_at(results.size, labelled):
        cells = [
            format_mean(results.values(name, labelled, FOUND, lambda s, c=c: s["GPSm"].get(c)))
            for c in COLUMNS
        ]
        cells.append(format_mean(results.values(name, labelled, FOUND, lambda s: s["bbox"]["AP"])))
        cells.append(format_mean(results.values(name, labelled, TRUE_BOXES, average_precision)))
        cells.append(format_mean(results.values(name, labelled, TRUE_BOXES, near_share(["all"]))))
        rows.append([name, *cells])
    heads = [f"{labelled} people", *(f"GPSm {column}" for column in COLUMNS), "box AP"]
    return markdown_table([*heads, "true boxes: GPSm AP", "points within 10 cm, %"], rows)


def gains(
    results: Results, name: str, step: str, base: str = BASE
) -> dict[int | str, Sequence[float]]:
    """What a model gains in GPSm AP over the base, of each seed: at every N, and in their mean."""
    at: dict[int | str, Sequence[float]] = {
        labelled: paired_gains(
            results.values(name, labelled, step, average_precision),
            results.values(base, labelled, step, average_precision),
        )
        for labelled in results.size.labelled
    }
    at["mean"] = [statistics.mean(values) for values in zip(*at.values(), strict=True)]
    return at


def gain_table(results: Results, step: str) -> str:
    """Paired gains over the base model with their intervals."""
    rows = []
    for name in results.size.models:
        if name != BASE:
            rows.append([name, *map(format_gain, gains(results, name, step).values())])
    heads = [f"{labelled} people" for labelled in results.size.labelled]
    return markdown_table(["gain in GPSm AP", *heads, "mean"], rows)


def patch_table(results: Results) -> str:
    """Points within 10 cm by patch, in true boxes, and what KTM changes of it."""
    rows = []
    names = results.size.models
    pairs = [(KTM_ONLY, BASE), (BOTH, MID_ONLY)] if KTM_ONLY in names else [(BOTH, BASE)]
    for group, patches in PATCHES.items():
        for labelled in results.size.labelled:
            shares = {
                name: results.values(name, labelled, TRUE_BOXES, near_share(patches))
                for name in names
            }
            changes = [paired_gains(shares[name], shares[base]) for name, base in pairs]
            of_seeds = [statistics.mean(values) for values in zip(*changes, strict=True)]
            cells = [format_mean(values) for values in shares.values()]
            rows.append([group, str(labelled), *cells, format_gain(of_seeds)])
    return markdown_table(["patches", "people", *names, "by KTM"], rows)


def blocks(results: Results, output: pathlib.Path) -> list[str]:
    """The text of the page; draws its picture."""
    size = results.size
    panels = {
        title: {
            name: {n: results.values(name, n, step, read) for n in size.labelled}
            for name in size.models
        }
        for title, step, read in (
            ("GPSm AP", FOUND, average_precision),
            ("GPSm AP in true boxes", TRUE_BOXES, average_precision),
            ("points within 10 cm in true boxes, %", TRUE_BOXES, near_share(["all"])),
        )
    }
    draw_curves(panels, output / "curves.png", label="people with surface points")
    setting = (
        f"Models of `ktn:{size.variant}`: {size.pretraining_steps} steps on keypoints, then "
        f"{size.steps} on surfaces; {size.num_images} pictures of one or two people to train on, "
        f"{size.num_test_images} to test on, {size.image_side} x {size.image_side} pixels. Mean ± "
        f"standard deviation of seeds {', '.join(map(str, results.seeds))}."
    )
    return [
        setting,
        "![curves](curves.png)",
        *(table_at(results, labelled) for labelled in size.labelled),
        f"Gain over {BASE} of the same seed, with the 90 % bootstrap interval of the mean:",
        gain_table(results, FOUND),
        "The same in true boxes:",
        gain_table(results, TRUE_BOXES),
        "Points within 10 cm of where they are, per cent, in true boxes; the last column is the "
        "gain by KTM, with and without MID:",
        patch_table(results),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    arguments = studies.parse_arguments(__doc__, SIZES, "ablation", argv)
    size, output = SIZES[arguments.size], arguments.output
    size = dataclasses.replace(
        size, steps=arguments.steps or size.steps, seeds=arguments.seeds or size.seeds
    )
    runs: list[studies.Run] = []
    with studies.resumable(output):
        for seed in range(size.seeds):
            render(size, output, seed)
            starts = [pretraining(size, output, seed, with_mid) for with_mid in (False, True)]
            studies.run_all(starts, arguments.jobs)
            surfaces = [
                surface_run(size, output, seed, name, labelled)
                for labelled in size.labelled
                for name in models_at(size, labelled)
            ]
            studies.run_all(surfaces, arguments.jobs)
            runs += starts + surfaces
            results = Results(size, output, range(seed + 1))
            write_page(output, "What MID and KTM change", blocks(results, output), runs)


if __name__ == "__main__":
    main()
