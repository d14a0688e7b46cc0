"""What `ablation.py` trains: models, budgets, and the commands of each run."""

import dataclasses
import pathlib

import studies
import study_commands

from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.data_pipelines.synthetic.scene import LARGE
from ktn_jax.evaluation import template_files

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
# What may help KTNv2 where the order of the models is not the paper's, or beyond it.
REMEDIES = {
    "graph centred": (
        *KTM,
        "training.redraw=('predictor/transfer/edges_',)",
        "training.graph=centred",
    ),
    "edges fixed": (*KTM, "optimizer.frozen=('predictor/transfer/edges_',)"),
    "keypoints of the N only": (),
    "average of weights": (*KTM, "optimizer.ema_decay=0.99"),
    "scale jitter": (*KTM, "data.zoom_range=(0.7, 1.4)"),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A budget: the same for all models.

    Attributes:
        variant: of configs/ktn.py and configs/keypoint_mid.py.
        pretraining_steps: on keypoints.
        steps: of each training on surfaces.
        seeds: how many runs of each model and N.
        labelled: every N.
        redrawn_labelled: those at which the models of REDRAWN and REMEDIES are trained.
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
        labelled=(2,),
        redrawn_labelled=(2,),
        num_images=12,
        num_test_images=3,
        image_side=128,
        changes=(
            "batch_size=2",
            "training.num_devices=1",  # a batch so small is not for several
            "model.box_head.max_detections=4",
        ),
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
        *study_commands.people_changes(people),
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
        # The plain argmax for all: other thresholds are for masks of two channels.
        "model.predictor.mask_threshold=0.5",
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
    return studies.Run(
        folder, {"train": study_commands.train_words(config, changes, folder / "training")}
    )


def surface_run(
    size: Size, output: pathlib.Path, seed: int, name: str, labelled: int
) -> studies.Run:
    """The training of a model on N people with surface points, and its scores."""
    changes = (MODELS | REDRAWN | REMEDIES)[name]
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
    train = study_commands.train_words(config, trained, folder / "training", start / "training")
    scored = study_commands.eval_commands(
        config,
        model,
        weights=folder / "training",
        people=output / "test_people",
        template=output / "template",
        folder=folder,
    )
    return studies.Run(folder, {"train": train, **scored})


def models_at(size: Size, labelled: int) -> tuple[str, ...]:
    """Names of the models that are trained with so many people."""
    return (*size.models, *(REDRAWN if labelled in size.redrawn_labelled else ()))


def render(size: Size, output: pathlib.Path, seed: int) -> None:
    """Renders the people of a seed, and once the test people and their template."""
    scene = dataclasses.replace(LARGE, image_size_hw=(size.image_side, size.image_side))
    studies.render_people(output / f"people_seed{seed}", size.num_images, seed, scene)
    studies.render_people(output / "test_people", size.num_test_images, HELD_OUT_SEED, scene)
    template_files.ensure_own_template(output / "template")
