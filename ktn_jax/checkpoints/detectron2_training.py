"""Translates what a detectron2 configuration says of training, as far as we have it."""

from typing import Any

from ml_collections import ConfigDict

from ktn_jax.checkpoints.detectron2_tree import Tree, flatten, short

# Data sets by detectron2's names: annotation file, image folder. Paths as in configs/base.py.
_DATASETS = {
    f"densepose_coco_2014_{name}{end}": (
        f"data/coco/annotations/densepose_{name}2014{end}.json",
        images,
    )
    for name, images in (
        ("train", "data/coco/train2014"),
        ("minival", "data/coco/val2014"),
        ("valminusminival", "data/coco/val2014"),
    )
    for end in ("", "_cse")
} | {
    f"densepose_lvis_v1_{name}_v1": (f"data/lvis/densepose_lvis_v1_{name}_v1.json", "data/coco")
    for name in ("ds1_train", "ds1_val", "ds2_train", "ds2_val")
}
_DATASETS |= {
    "keypoints_coco_2017_train": (
        "data/coco/annotations/person_keypoints_train2017.json",
        "data/coco/train2017",
    ),
    "keypoints_coco_2017_val": (
        "data/coco/annotations/person_keypoints_val2017.json",
        "data/coco/val2017",
    ),
}
# Categories of LVIS by their ids: animals of which there are meshes.
_ANIMALS = {
    76: "bear",
    80: "cow",
    225: "cat",
    378: "dog",
    422: "elephant",
    496: "giraffe",
    569: "horse",
    943: "sheep",
    1202: "zebra",
}
_SCHEDULES = {"WarmupMultiStepLR": "multi_step", "WarmupCosineLR": "cosine"}
_CLIPS = {"value": "value", "norm": "norm", "full_model": "global_norm"}
_FLIPS = {"horizontal": 0.5, "none": 0.0}
# Samplers of bootstrapped labels, as options of `ktn data bootstrap`.
_SAMPLERS = {
    "densepose_uniform": "--sampler uniform",
    "densepose_UV_confidence": "--sampler uv_confidence --search-proportion 0.5",
} | {
    f"densepose_{name}": f"--sampler {name} --search-proportion 0.5"
    for name in ("fine_segm_confidence", "coarse_segm_confidence")
}
_OPTIMIZER_KEYS = {
    "learning_rate": "BASE_LR",
    "momentum": "MOMENTUM",
    "nesterov": "NESTEROV",
    "weight_decay": "WEIGHT_DECAY",
    "weight_decay_norm": "WEIGHT_DECAY_NORM",
    "decay_steps": "STEPS",
    "decay_factor": "GAMMA",
    "warmup_steps": "WARMUP_ITERS",
    "warmup_factor": "WARMUP_FACTOR",
}
# Settings of the machine, of detectron2's own data sets and evaluation, and of other heads.
_NO_EFFECT = (
    "VERSION",
    "OUTPUT_DIR",
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",
    "VIS_PERIOD",
    "GLOBAL.",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.",
    "DENSEPOSE_EVALUATION.",
    "BOOTSTRAP_MODEL.",
    "INPUT.MASK_FORMAT",
    "TEST.EXPECTED_RESULTS",
)


def translate_training(tree: Tree, config: ConfigDict) -> list[str]:
    """Sets how a model is trained and on what.

    Nothing here is an error: a model runs whatever it was trained with.

    Args:
        tree: detectron2's settings.
        config: gets ours.

    Returns:
        One line for each setting that has no counterpart here and is left out.
    """
    notes: list[str] = []
    _optimizer(tree, config, notes)
    _data(tree, config, notes)
    notes += [_bootstrap_note(entry) for entry in tree.find("BOOTSTRAP_DATASETS", ())]
    notes += [
        f"{key} {short(value)} has no counterpart here and is left out"
        for key, value in tree.unread().items()
        if not key.startswith(("MODEL.", *_NO_EFFECT))
    ]
    return notes


def _optimizer(tree: Tree, config: ConfigDict, notes: list[str]) -> None:
    optimizer = config.optimizer
    for ours, theirs in _OPTIMIZER_KEYS.items():
        optimizer[ours] = tree.find(f"SOLVER.{theirs}", optimizer[ours])
    bias = tree.find("SOLVER.WEIGHT_DECAY_BIAS", None)
    optimizer.weight_decay_bias = optimizer.weight_decay if bias is None else float(bias)
    config.total_steps = tree.find("SOLVER.MAX_ITER", config.total_steps)
    config.batch_size = tree.find("SOLVER.IMS_PER_BATCH", config.batch_size)
    config.checkpoint_every = tree.find("SOLVER.CHECKPOINT_PERIOD", config.checkpoint_every)
    config.seed = max(tree.find("SEED", 0), 0)  # a negative one is drawn there
    config.training.evaluate_every = tree.find("TEST.EVAL_PERIOD", 0)
    _choose(tree, "SOLVER.LR_SCHEDULER_NAME", _SCHEDULES, optimizer, "schedule", notes)
    if tree.find("SOLVER.CLIP_GRADIENTS.ENABLED", False):
        _choose(tree, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", _CLIPS, optimizer, "clip", notes)
        optimizer.clip_value = tree.find("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", optimizer.clip_value)
    else:
        for key in ("CLIP_TYPE", "CLIP_VALUE", "NORM_TYPE"):
            tree.find(f"SOLVER.CLIP_GRADIENTS.{key}", None)


def _data(tree: Tree, config: ConfigDict, notes: list[str]) -> None:
    data = config.data
    data.short_sides = tree.find("INPUT.MIN_SIZE_TRAIN", data.short_sides)
    data.max_long_side = tree.find("INPUT.MAX_SIZE_TRAIN", data.max_long_side)
    data.with_person_masks = (
        config.loss.coarse_segm_from_masks
        or config.loss.pixel_cycle.weight > 0
        or "masks" in config.model.tasks
    )
    _choose(tree, "INPUT.RANDOM_FLIP", _FLIPS, data, "flip_probability", notes)
    _categories(tree, data, notes)
    for key, targets in (
        ("DATASETS.TRAIN", (data, "annotations", "images")),
        ("DATASETS.TEST", (data.evaluation, "annotations", "images")),
    ):
        names = tree.find(key, ())
        names = (names,) if isinstance(names, str) else names
        known = [_DATASETS[name] for name in names if name in _DATASETS]
        unknown = [name for name in names if name not in _DATASETS]
        notes += [f"{key}: the data set {short(name)} is not known here" for name in unknown]
        section, annotations, images = targets
        if known and not unknown:
            several = key.endswith("TRAIN")
            section[annotations] = tuple(x[0] for x in known) if several else known[0][0]
            section[images] = tuple(x[1] for x in known) if several else known[0][1]


def _categories(tree: Tree, data: ConfigDict, notes: list[str]) -> None:
    """Sets the categories of the classes, which detectron2 orders by their ids."""
    start = "DATASETS.WHITELISTED_CATEGORIES"
    kept = {tuple(sorted(tree.find(f"{start}.{name}", ()))) for name in tree.names_under(start)}
    joined = tree.names_under("DATASETS.CATEGORY_MAPS")
    for numbers in kept:
        if joined or len(kept) > 1 or not set(numbers) <= _ANIMALS.keys():
            notes.append(
                f"{start} {short(numbers)}: name the annotation files' categories in "
                "data.categories, one for each class; several cannot be joined into one class"
            )
        else:
            data.categories = tuple(_ANIMALS[number] for number in numbers)


def _bootstrap_note(entry: Any) -> str:
    """How to train on one of BOOTSTRAP_DATASETS: its labels are made before the training here."""
    found = _settings_of(entry)
    sampler = found.get("DATA_SAMPLER.TYPE")
    options = _SAMPLERS.get(sampler) if isinstance(sampler, str) else None
    if options is None or found.get("FILTER.TYPE", "detection_score") != "detection_score":
        return f"BOOTSTRAP_DATASETS {short(entry)} has no counterpart here and is left out"
    options += f" --points-per-patch {short(found.get('DATA_SAMPLER.COUNT_PER_CLASS', 8))}"
    options += f" --min-score {short(found.get('FILTER.MIN_VALUE', 0.8))}"
    return (
        f"BOOTSTRAP_DATASETS {short(found.get('DATASET'))}: label its images with `ktn data "
        f"bootstrap {options}`, add them to data.annotations and data.images, and give them in "
        f"data.weights the RATIO {short(found.get('RATIO', 1.0))} times the number of annotated "
        "images over theirs"
    )


def _settings_of(entry: Any) -> dict[str, Any]:
    try:
        return flatten(entry)
    except ValueError:
        return {}


def _choose(
    tree: Tree, key: str, choices: dict[str, Any], section: ConfigDict, ours: str, notes: list[str]
) -> None:
    value = tree.find(key, None)
    if value is None:
        return
    if value in choices:
        section[ours] = choices[value]
    else:
        notes.append(
            f"{key} {short(value)} has no counterpart here: {ours} stays {section[ours]!r}"
        )
