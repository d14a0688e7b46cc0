"""From `config.data` to datasets: the one module of the pipeline that knows names of the config."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.annotations import parse_dataset
from data_pipelines.pipeline import Datasets, DataSettings, make_datasets
from data_pipelines.plan import Augmentation
from data_pipelines.scene import Scene
from data_pipelines.sources import ConcatenatedSource, FolderSource, RenderedSource, Source
from data_pipelines.synthetic import SyntheticSource
from ktn_jax.template import loading, procedural
from ktn_jax.template.symmetry import UVSymmetry

SOURCES = ("synthetic", "folder", "tfds")


def default_config() -> dict[str, Any]:
    """Every key of `config.data`, with the values of DensePose-COCO training.

    Keys of `DataSettings` and `Augmentation` lie flat beside these:

    `source`: synthetic, folder or tfds; the keys below that begin with its name belong to it.
    `synthetic_*`: images and seeds of the sets to train and to evaluate on, the image's size, and
    whether rendered images stay in memory.
    `folder_train`, `folder_eval`: (annotation file, image folder) pairs.
    `tfds_config`, `tfds_data_dir`, `tfds_train`, `tfds_eval`: what `ktn data build` built, splits.
    `on_bad`, `max_skipped_fraction`: as for `parse_dataset`.
    `uv_symmetry`: path of UV_symmetry_transforms.mat, or "procedural" for the project's own body,
    which is right for synthetic people and only for them.
    """
    config = {
        "source": "tfds",
        "synthetic_train_images": 1000,
        "synthetic_train_seed": 0,
        "synthetic_eval_images": 100,
        "synthetic_eval_seed": 1,
        "synthetic_image_size_hw": (256, 256),
        "synthetic_keep": False,
        "folder_train": (),
        "folder_eval": (),
        "tfds_config": "densepose_coco_2014",
        "tfds_data_dir": "data/tfds",
        "tfds_train": ("train", "valminusminival"),
        "tfds_eval": ("minival",),
        "on_bad": "raise",
        "max_skipped_fraction": 0.01,
        "uv_symmetry": "data/UV_symmetry_transforms.mat",
    }
    for settings in (DataSettings, Augmentation):
        for field in dataclasses.fields(settings):
            if field.name != "augmentation":
                config[field.name] = field.default
    return config


def open_datasets(
    config: Mapping[str, Any],
    process_index: int = 0,
    process_count: int = 1,
    *,
    for_training: bool = True,
    for_evaluation: bool = True,
) -> Datasets:
    """Opens the sources that a configuration names and plans their batches.

    Args:
        config: `config.data`: a mapping with the keys of `default_config`.
        process_index: of this process.
        process_count: how many processes share the batches.
        for_training: whether to open what is trained on.
        for_evaluation: whether to open what is evaluated on.

    Returns:
        The datasets, None for what was not asked for.

    Raises:
        ValueError: keys that are missing or unknown, or what opening the sources raises.
    """
    _check_keys(config)
    augmentation = Augmentation(**_fields(config, Augmentation))
    settings = DataSettings(**_fields(config, DataSettings), augmentation=augmentation)
    train = open_source(config, "train") if for_training else None
    evaluation = open_source(config, "eval") if for_evaluation else None
    symmetry = None
    if train is not None and augmentation.flip_probability > 0:
        symmetry = _open_symmetry(config["uv_symmetry"])
    return make_datasets(settings, train, evaluation, symmetry, process_index, process_count)


def open_source(config: Mapping[str, Any], use: str) -> Source:
    """Opens the images to train ("train") or to evaluate ("eval") on.

    Args:
        config: a mapping with the keys of `default_config`.
        use: "train" or "eval".

    Returns:
        The source.

    Raises:
        ValueError: an unknown source, or one that names no data; whatever reading them raises.
    """
    if config["source"] not in SOURCES:
        raise ValueError(f"source must be one of {SOURCES}, got {config['source']!r}")
    if config["source"] == "synthetic":
        scene = Scene(image_size_hw=tuple(config["synthetic_image_size_hw"]))
        count, seed = config[f"synthetic_{use}_images"], config[f"synthetic_{use}_seed"]
        return RenderedSource(SyntheticSource(count, seed, scene), config["synthetic_keep"])
    if config["source"] == "folder":
        return _join(
            [
                FolderSource(
                    parse_dataset(path, config["on_bad"], config["max_skipped_fraction"]), images
                )
                for path, images in config[f"folder_{use}"]
            ],
            f"folder_{use}",
        )
    from data_pipelines.builder import TfdsSource  # heavy, and only this source needs it

    name, data_dir = config["tfds_config"], config["tfds_data_dir"]
    splits = [TfdsSource(name, split, data_dir) for split in config[f"tfds_{use}"]]
    return _join(splits, f"tfds_{use}")


def _join(sources: Sequence[Source], key: str) -> Source:
    if not sources:
        raise ValueError(f"{key} names no data")
    return sources[0] if len(sources) == 1 else ConcatenatedSource(sources)


def _open_symmetry(path: str) -> UVSymmetry:
    if path == "procedural":
        return procedural.make_body().template.uv_symmetry_tables
    return loading.load_uv_symmetry(path)


def _check_keys(config: Mapping[str, Any]) -> None:
    known = set(default_config())
    missing, unknown = sorted(known - set(config)), sorted(set(config) - known)
    if missing or unknown:
        raise ValueError(f"data configuration: missing {missing}, unknown {unknown}")


def _fields(config: Mapping[str, Any], settings: type) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(settings) if field.name != "augmentation"]
    values = {name: config[name] for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
