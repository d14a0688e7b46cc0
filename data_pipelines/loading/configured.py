"""Datasets as a configuration's `data` section describes them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ktn_jax.body.loading import load_uv_symmetry
from ktn_jax.body.meshes import load_mesh
from ktn_jax.body.procedural import assembly
from ktn_jax.body.symmetry import UVSymmetry, uv_symmetry_tables
from ktn_jax.data_pipelines.coco.annotations import parse_dataset
from ktn_jax.data_pipelines.loading import pipeline
from ktn_jax.data_pipelines.loading.examples import ArraySpec, batch_spec
from ktn_jax.data_pipelines.loading.few_labels import FewLabels
from ktn_jax.data_pipelines.loading.known_meshes import KnownMeshes
from ktn_jax.data_pipelines.loading.person_crops import CropShape, PersonCrops
from ktn_jax.data_pipelines.loading.pipeline import DataSettings, TrainingData
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import (
    ConcatenatedSource,
    FolderSource,
    RenderedSource,
    Source,
)
from ktn_jax.data_pipelines.synthetic.scene import PRESETS, Scene
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.runtime import stores


def augmentation_of(config: Any) -> Augmentation:
    """What a configuration varies from epoch to epoch, and the shapes that follow from it.

    Args:
        config: a whole configuration, of which `data` is read; nothing has to be there.

    Returns:
        The augmentation; `plan.canvases_for` says the sizes of its images.

    Raises:
        ValueError: a value that does not fit; the message names it.
    """
    data = config.data
    augmentation = Augmentation(
        short_sides=tuple(data.short_sides),
        max_long_side=data.max_long_side,
        flip_probability=data.flip_probability,
        max_rotation_degrees=data.max_rotation_degrees,
        zoom_range=tuple(data.zoom_range),
        colour_jitter=data.colour_jitter,
        aspect_limits=tuple(data.aspect_limits),
        canvas_levels=data.canvas_levels,
    )
    shape = crop_shape(data)
    if shape is not None:  # crops are of one size already
        short, long = min(shape.size_hw), max(shape.size_hw)
        return dataclasses.replace(
            augmentation,
            short_sides=(short,),
            max_long_side=long,
            aspect_limits=(long / short,),
            canvas_levels=1,
        )
    return augmentation


def make_training_data(config: Any, process_index: int = 0, process_count: int = 1) -> TrainingData:
    """Makes the training batches of one process.

    Args:
        config: a whole configuration; `data`, `batch_size`, `seed`, `model.tasks` and the weights
            of the losses are read.
        process_index: of this process.
        process_count: how many share the batches.

    Returns:
        The batches.

    Raises:
        ValueError: no image, or a value that does not fit; see `pipeline.make_training_data`.
        FileNotFoundError: an annotation file or the symmetry tables are missing.
    """
    data, augmentation, shape = config.data, augmentation_of(config), crop_shape(config.data)
    settings = DataSettings(
        batch_size=config.batch_size,
        max_people=data.max_people,
        max_points=data.max_points,
        dense_points=data.dense_points,
        seed=config.seed,
        loader=data.loader,
        workers=data.workers,
        batches_ahead=data.batches_ahead,
        with_person_masks=_learns_person_masks(config),
        needs_surface=data.needs_surface and _trains_surface(config),
        on_bad=data.on_bad,
        max_skipped_fraction=data.max_skipped_fraction,
        augmentation=augmentation,
    )
    meshes = _known_meshes(config)
    source = make_source(data, needs_symmetry=meshes is None)
    if not len(source):
        raise ValueError("data: the dataset is empty")
    if data.labelled_people:
        source = FewLabels(source, data.labelled_people, config.seed, data.labelled_share)
    if shape is not None:
        source = PersonCrops(source, shape)
    symmetry = _symmetry(data) if data.flip_probability > 0 and meshes is None else None
    return pipeline.make_training_data(
        settings, source, symmetry, process_index, process_count, meshes
    )


def training_batch_spec(config: Any, canvas_hw: tuple[int, int]) -> dict[str, ArraySpec]:
    """Describes the batches of all processes together, without data.

    Args:
        config: a whole configuration.
        canvas_hw: of their images.

    Returns:
        Shape and dtype by name, see `examples.batch_spec`, where annotators set all points.
    """
    return batch_spec(
        config.batch_size,
        canvas_hw,
        config.data.max_people,
        config.data.max_points,
        with_person_masks=_learns_person_masks(config),
        with_vertices=_learns_vertices(config),
    )


def _learns_person_masks(config: Any) -> bool:
    wanted = config.data.with_person_masks or config.loss.coarse_segm_from_masks
    return bool(wanted) or "masks" in config.model.tasks


def _learns_vertices(config: Any) -> bool:
    return config.model.predictor.name == "embedding" and "densepose" in config.model.tasks


def _known_meshes(config: Any) -> KnownMeshes | None:
    """The meshes of a whole configuration; None for models of charts.

    Raises:
        ValueError: an unknown mesh; labels that an embedding model cannot learn from; or not one
            category for each class.
    """
    meshes, data = config.model.meshes, config.data
    if not _learns_vertices(config):
        return None
    if data.dense_points:
        raise ValueError("data.dense_points draws points on charts, and the model learns vertices")
    if len(data.categories) > config.model.box_head.num_classes:
        raise ValueError(
            f"data.categories {tuple(data.categories)}: more than model.box_head.num_classes, "
            f"{config.model.box_head.num_classes}"
        )
    mirrors = {}
    if data.flip_probability > 0:
        for name in meshes.names:
            mirror = load_mesh(name, tuple(meshes.files)).mirror
            if mirror is not None:
                mirrors[name] = mirror
    return KnownMeshes(dict(zip(meshes.names, meshes.num_vertices, strict=True)), mirrors)


def crop_shape(data: Any) -> CropShape | None:
    """The crops that a `data` section describes; None for whole images.

    Raises:
        ValueError: a size or a margin that does not fit.
    """
    crops = data.person_crops
    return CropShape(tuple(crops.size_hw), crops.margin) if crops.size_hw else None


def make_source(data: Any, needs_symmetry: bool = True) -> Source:
    """Makes the images that a `data` section names.

    Args:
        data: the section.
        needs_symmetry: whether flips need the symmetry tables of the charts.

    Raises:
        ValueError: an unknown source, or not one image folder, or not one weight, for each
            annotation file.
        FileNotFoundError: annotation files or image folders are missing, or the symmetry tables
            that flips need; all are named.
    """
    if data.dense_points and data.source in ("synthetic", "tfds"):
        raise ValueError(
            f"data.dense_points draws from pictures that annotation files name, and data.source is "
            f"{data.source!r}: set it to densepose_coco"
        )
    if data.source == "synthetic":
        if len(data.weights):
            raise ValueError(f"data.weights {data.weights} are of files, not of synthetic people")
        synthetic = data.synthetic
        people = SyntheticSource(synthetic.num_images, synthetic.seed, make_scene(synthetic))
        return RenderedSource(people, keep=synthetic.keep)
    if data.source == "tfds":
        from ktn_jax.data_pipelines.densepose_coco.builder import (
            TfdsSource,  # TensorFlow Datasets is heavy
        )

        return _as_one(
            [TfdsSource(data.tfds.config, split, data.tfds.dir) for split in data.tfds.splits],
            data.weights,
        )
    if data.source != "densepose_coco":
        raise ValueError(f"data.source {data.source!r}: densepose_coco, tfds or synthetic")
    if len(data.annotations) != len(data.images) or not data.annotations:
        raise ValueError(
            f"data.annotations names {len(data.annotations)} files, data.images "
            f"{len(data.images)} folders: give one folder for each file"
        )
    _check_files(data, needs_symmetry)
    datasets = [
        parse_dataset(
            stores.fetched(file),
            data.on_bad,
            data.max_skipped_fraction,
            categories=tuple(data.categories),
        )
        for file in data.annotations
    ]
    if data.dense_points and not any(dataset.images.have_pictures() for dataset in datasets):
        files = ", ".join(data.annotations)
        raise ValueError(
            f"data.dense_points is {data.dense_points}, but nobody in {files} has a picture of "
            "labels (dp_iuv): `ktn data inpaint` writes them"
        )
    return _as_one(
        [
            FolderSource(dataset, stores.fetched(folder), labels_dir=stores.fetched(file).parent)
            for dataset, file, folder in zip(datasets, data.annotations, data.images, strict=True)
        ],
        data.weights,
    )


def _check_files(data: Any, needs_symmetry: bool) -> None:
    """Checks the files and folders that annotations are read from.

    Raises:
        FileNotFoundError: some are missing; all are named.
        ValueError: an address of what is read one by one.
    """
    for name in data.images:
        if stores.is_address(name):
            raise ValueError(
                f"data.images: {name}: photos are read one by one, at random: mount the bucket, "
                "copy them here, or set data.source=tfds, whose data.tfds.dir may be an address"
            )
    for name in data.annotations:
        if data.dense_points and stores.is_address(name):
            raise ValueError(
                f"data.annotations: {name}: data.dense_points reads the pictures beside the file "
                "one by one, at random: mount the bucket, or copy file and pictures here"
            )
    missing = [
        f"data.annotations: {name}"
        for name in data.annotations
        if not stores.fetched(name).exists()
    ]
    missing += [f"data.images: {name}" for name in data.images if not stores.fetched(name).is_dir()]
    needs_symmetry = needs_symmetry and data.flip_probability > 0 and bool(data.symmetry)
    if needs_symmetry and not stores.fetched(data.symmetry).exists():
        missing.append(f"data.symmetry: {data.symmetry}")
    if missing:
        listed = "\n".join(f"  {line}" for line in missing)
        raise FileNotFoundError(
            f"not there:\n{listed}\n"
            "Name yours, as --config.data.annotations=FILE --config.data.images=DIR, or train on "
            "rendered people, --config.data.source=synthetic. docs/data.md says where to get "
            "DensePose-COCO and which file is for what"
        )


def _as_one(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    if len(sources) == 1 and not len(weights):
        return sources[0]
    try:
        return ConcatenatedSource(sources, weights)
    except ValueError as error:
        raise ValueError(f"data.weights: {error}") from error


def make_scene(synthetic: Any, preset: str | None = None) -> Scene:
    """Makes the scene that a `data.synthetic` section describes.

    Args:
        synthetic: the section.
        preset: name of a scene, of which only the image size is set by the section; None for the
            section's scene.

    Raises:
        ValueError: an unknown preset.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"scene {preset!r}: one of {sorted(PRESETS)}")
        return dataclasses.replace(PRESETS[preset], image_size_hw=tuple(synthetic.image_size_hw))
    if synthetic.preset not in PRESETS:
        raise ValueError(f"data.synthetic.preset {synthetic.preset!r}: one of {sorted(PRESETS)}")
    return dataclasses.replace(
        PRESETS[synthetic.preset],
        image_size_hw=tuple(synthetic.image_size_hw),
        people_range=tuple(synthetic.people_range),
    )


def _trains_surface(config: Any) -> bool:
    """Whether any loss needs DensePose annotations; those of boxes, keypoints and masks do not."""
    names = ("point", "fine_segm", "coarse_segm", "body_mask")
    weights = [config.loss[f"{name}_weight"] for name in names]
    if config.model.predictor.name == "embedding":
        weights = [config.loss.embedding.weight]
    return "densepose" in config.model.tasks and any(weights)


def _symmetry(data: Any) -> UVSymmetry | None:
    if data.source == "synthetic":
        return uv_symmetry_tables(assembly.make_body().template.mirror_iuv)
    return load_uv_symmetry(stores.fetched(data.symmetry)) if data.symmetry else None
