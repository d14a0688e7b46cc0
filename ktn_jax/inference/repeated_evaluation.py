"""Scores a model during its training, on the images of `data.evaluation`."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ktn_jax.data_pipelines.loading.configured import make_scene
from ktn_jax.data_pipelines.synthetic.held_out import HeldOutPeople
from ktn_jax.evaluation import template_files
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.options import ScoringOptions
from ktn_jax.inference.model_evaluation import (
    PEOPLE_FOLDER,
    TEMPLATE_FOLDER,
    AnnotatedFiles,
    AnnotatedImages,
    evaluate_model,
)
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.runtime import stores
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.program_store import ProgramStore

_RENDERED_IMAGES = 100  # where the configuration gives no number
# Average precision in per cent: name of the score -> measure of `Metrics`.
_SCORES = {"box": "bbox", "GPS": "GPS", "GPSm": "GPSm"}


class RepeatedEvaluation:
    """Scores different weights of one configuration with the same compiled programs.

    Several processes share the images; each makes one and calls it with the same weights.
    """

    def __init__(
        self, config: ConfigDict, output_dir: pathlib.Path, processes: Processes | None = None
    ):
        """Reads the annotations and the template, or makes them, before training starts.

        Args:
            config: a whole configuration. `data.evaluation` names the images; if it names none and
                training is on rendered people, other people are rendered.
            output_dir: folder for `metrics.json` and `report.html` of the last call, and for
                rendered people and their template; all processes must see it.
            processes: those that share the images.

        Raises:
            ValueError: files are not named, missing or do not fit, or the annotations do not
                define `training.best_metric`.
        """
        self._config = config
        self._folder = output_dir
        self._processes = processes or Processes()
        files, template = config.data.evaluation, config.data.evaluation.template
        is_rendered = config.data.source == "synthetic" and not files.annotations
        # Vertices may be annotated, which need none; scoring says if they are not.
        has_template = template or has_embeddings(config.model)
        if not is_rendered and not (files.annotations and files.images and has_template):
            raise ValueError(
                "training.evaluate_every needs data.evaluation.annotations, images and template"
            )
        self._template = stores.fetched(template) if template else None
        if is_rendered and not template:
            self._template = output_dir / TEMPLATE_FOLDER
        if not is_rendered:
            given = AnnotatedFiles(stores.fetched(files.annotations), stores.fetched(files.images))
            if not given.images.is_dir():
                raise ValueError(f"data.evaluation.images: there is no folder {files.images}")
        if self._processes.is_first:
            output_dir.mkdir(parents=True, exist_ok=True)
            if is_rendered:
                number = files.num_images or _RENDERED_IMAGES
                people = HeldOutPeople(make_scene(config.data.synthetic), number)
                people.write(output_dir / PEOPLE_FOLDER)
            if self._template is not None:
                if not template:
                    template_files.ensure_own_template(self._template)
                # Official files are converted now, once.
                template_files.load_evaluation_template(self._template)
        self._processes.wait("evaluation prepared")
        if is_rendered:
            self._images = AnnotatedFiles.in_folder(output_dir / PEOPLE_FOLDER).read()
        else:
            self._images = _first_images(given.read(_options(config)), files.num_images)
            _check_best_metric(config.training.best_metric, self._images)
        self._predictor: Predictor | None = None

    def __call__(self, variables: Mapping[str, Any]) -> dict[str, float]:
        """Scores weights.

        Args:
            variables: {"params", "batch_stats"} of the configuration's model. They are not kept.

        Returns:
            Average precision in per cent: `box`, `GPS` and `GPSm`, without those that the
            annotations do not define; the same in all processes.

        Raises:
            ValueError: an image is missing or does not fit, see `evaluate_model`.
        """
        if self._predictor is None:
            self._predictor = Predictor(Stages(self._config, variables, ProgramStore()))
        else:
            self._predictor.stages.replace_variables(variables)
        metrics = evaluate_model(
            self._predictor,
            self._images,
            self._template,
            _options(self._config),
            output_dir=self._folder,
            processes=self._processes,
        )
        values = self._tell_all(metrics)
        return {
            name: float(value)
            for name, value in zip(_SCORES, values, strict=True)
            if not math.isnan(value)
        }

    def _tell_all(self, metrics: Metrics | None) -> np.ndarray:
        """[3] scores, sent by process 0, which alone has `metrics`; NaN where there is no score."""
        values = np.full(len(_SCORES), np.nan)
        if metrics is not None:
            found = (metrics.summaries.get(measure, {}).get("AP") for measure in _SCORES.values())
            values[:] = [np.nan if value is None else value for value in found]
        if self._processes.count == 1:
            return values
        return np.asarray(multihost_utils.broadcast_one_to_all(values))


def _check_best_metric(name: str, data: AnnotatedImages) -> None:
    people = [person for truth in data.truths for image in truth.images for person in image.people]
    if name != "box" and not any(person.points is not None for person in people):
        raise ValueError(
            f"{data.truths[0].name}: 0 of {len(people)} people have surface points, which "
            f"training.best_metric {name!r} needs: take other data.evaluation.annotations, or "
            "training.best_metric=box"
        )


def _first_images(data: AnnotatedImages, number: int) -> AnnotatedImages:
    """The first images of a set by id; 0 for all."""
    if not number:
        return data
    kept = {image.image_id for image in data.truths[0].images[:number]}
    return dataclasses.replace(data, truths=tuple(truth.only(kept) for truth in data.truths))


def _options(config: ConfigDict) -> ScoringOptions:
    """Scores all classes."""
    return ScoringOptions(on_bad=config.data.on_bad, categories=tuple(config.data.categories))
