"""Annotations made of the people that a model finds, to train on photos without any labels.

The samplers of detectron2's DensePose (`densepose/data/samplers`), of Sanakoyeu et al.,
"Transferring Dense Pose to Proximal Animal Classes", CVPR 2020: points of each patch, drawn evenly
or among the surest pixels, and masks of the parts and of the person from the charts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco.part_masks import encode_part_masks, resample_part_labels
from ktn_jax.data_pipelines.coco.record_checks import BORDER_TOLERANCE
from ktn_jax.results import maps
from ktn_jax.results.categories import PERSON_CATEGORY
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult

# The map that each sampler by confidence reads; None draws evenly.
SAMPLERS = {
    "uniform": None,
    "uv_confidence": "sigma",
    "fine_segm_confidence": "fine_segm_confidence",
    "coarse_segm_confidence": "coarse_segm_confidence",
}
_MIN_VARIANCE = 0.01  # what the models of confidences are trained with, loss.min_uv_variance


@dataclasses.dataclass(frozen=True)
class BootstrapSettings:
    """Who is labelled, and with which points.

    Attributes:
        min_score: people with a lower score are not labelled.
        ignore_score: from here up to `min_score` the box of a person is a crowd region, where
            training takes no background from; below it is background.
        sampler: of `SAMPLERS`.
        points_per_patch: most points of each of the 24 patches of a person.
        search_multiplier: points are drawn among so many times as many of the surest pixels.
        search_proportion: points are drawn among this share of a patch's pixels, the surest. Of
            these two at most one is given; without them the surest pixels are taken.
        seed: of the drawing.
    """

    min_score: float = 0.8
    ignore_score: float = 0.1
    sampler: str = "uniform"
    points_per_patch: int = 8
    search_multiplier: float | None = None
    search_proportion: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values; ValueError names the field."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {self.sampler!r}")
        if not 0 <= self.ignore_score <= self.min_score <= 1:
            raise ValueError(
                "wanted 0 <= ignore_score <= min_score <= 1, got "
                f"{self.ignore_score} and {self.min_score}"
            )
        if self.points_per_patch < 1 or self.seed < 0:
            raise ValueError(
                "points_per_patch must be at least 1 and seed at least 0, got "
                f"{self.points_per_patch} and {self.seed}"
            )
        multiplier, proportion = self.search_multiplier, self.search_proportion
        if multiplier is not None and proportion is not None:
            raise ValueError("give search_multiplier or search_proportion, not both")
        if SAMPLERS[self.sampler] is None and (multiplier, proportion) != (None, None):
            raise ValueError("search_multiplier and search_proportion need a sampler by confidence")
        if multiplier is not None and multiplier < 1:
            raise ValueError(f"search_multiplier must be at least 1, got {multiplier}")
        if proportion is not None and not 0 < proportion <= 1:
            raise ValueError(f"search_proportion must be above 0, at most 1, got {proportion}")


def label_people(
    image_id: int,
    people: Sequence[PersonResult],
    image_size_hw: tuple[int, int],
    settings: BootstrapSettings,
) -> list[dict[str, Any]]:
    """Makes the annotations of an image.

    Args:
        image_id: of the image; the points that are drawn depend on it, the seed and the order of
            the people.
        people: who was found, and other objects, which are left out.
        image_size_hw: height and width of the image.
        settings: who is labelled, and how.

    Returns:
        Records in the DensePose-COCO format without their `id`: of people with a score from
        `min_score` on and a surface, see `label_person`, and crowd regions of those below and of
        those whose box leaves the image, as that of some systems does, where annotations do not.

    Raises:
        ValueError: a sampler by confidence, and a person without that confidence.
    """
    rng = np.random.default_rng([settings.seed, image_id])
    limits = np.tile(image_size_hw[::-1], 2)
    entries = []
    for person in people:
        box = np.clip(person.box_xyxy, 0, limits)
        is_inside = (np.abs(person.box_xyxy - box) <= BORDER_TOLERANCE).all()
        is_person = person.category_id == PERSON_CATEGORY
        is_empty = (box[2:] <= box[:2]).any()
        if not is_person or is_empty or person.score < settings.ignore_score:
            continue
        labels = None
        if is_inside and person.score >= settings.min_score:
            labels = label_person(person, image_size_hw, settings, rng)
            box = person.box_xyxy
        x0, y0, x1, y1 = box.tolist()
        entry = {
            "image_id": image_id,
            "category_id": PERSON_CATEGORY,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": person.score,
        }
        if labels is None:
            labels = {"iscrowd": 1, "area": (x1 - x0) * (y1 - y0)}
        entries.append(entry | labels)
    return entries


def label_person(
    person: PersonResult,
    image_size_hw: tuple[int, int],
    settings: BootstrapSettings,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Makes the fields of a person's annotation that come from the charts.

    Args:
        person: with an IUV picture.
        image_size_hw: height and width of the image.
        settings: how points are drawn.
        rng: draws them.

    Returns:
        `iscrowd`, `area`, `segmentation` (of the mask head, or without one where the charts are)
        and all `dp_` keys. `dp_annotated` is 0, `dp_confidence` the person's score times
        `point_confidence`. None where there is no surface in the image.

    Raises:
        ValueError: the sampler needs a confidence that the person lacks.
    """
    if person.iuv is None:
        raise ValueError("bootstrapping needs a model with DensePose: the people have no charts")
    patches, levels = person.iuv[0], person.iuv[1:]
    mask = person.mask or _mask_of_charts(person, image_size_hw)
    pixels = sample_pixels(patches, _certainty(person, settings.sampler), settings, rng)
    if not len(pixels) or not mask.mask.any():
        return None
    height, width = patches.shape
    rows, columns = np.divmod(pixels, width)
    # In float64, so that a level / 255 is what the file gets.
    uv = levels / 255 if person.uv is None else person.uv.astype(np.float64).clip(0, 1)
    confidence = person.score * point_confidence(person)
    coarse = parts.FINE_TO_COARSE.astype(np.uint8)[patches]
    return {
        "iscrowd": 0,
        "area": float(mask.mask.sum()),
        "segmentation": mask.to_rle(),
        "dp_x": _rounded((columns + 0.5) / width * PART_GRID, 4),
        "dp_y": _rounded((rows + 0.5) / height * PART_GRID, 4),
        "dp_I": patches[rows, columns].tolist(),
        "dp_U": _rounded(uv[0, rows, columns], 6),
        "dp_V": _rounded(uv[1, rows, columns], 6),
        "dp_masks": encode_part_masks(resample_part_labels(coarse)),
        "dp_annotated": [0] * len(pixels),
        "dp_confidence": _rounded(confidence[rows, columns].clip(0, 1), 4),
    }


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    rounded: list[float] = np.round(values.astype(np.float64), digits).tolist()
    return rounded


def _mask_of_charts(person: PersonResult, image_size_hw: tuple[int, int]) -> PlacedMask:
    """Where a person's charts show the body, within the image."""
    in_image, in_picture = maps.overlap(person, image_size_hw)
    body = np.zeros((0, 0), bool) if person.iuv is None else person.iuv[0][in_picture] > 0
    return PlacedMask(in_image[0].start, in_image[1].start, body, image_size_hw)


def sample_pixels(
    patches: np.ndarray,
    certainty: np.ndarray | None,
    settings: BootstrapSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws pixels of each patch, without repeating one.

    Args:
        patches: uint8 [h, w] patch 0..24, 0 for background.
        certainty: [h, w], larger for surer pixels, of which points are drawn alone; None draws from
            all evenly.
        settings: how many points, and among how many.
        rng: draws.

    Returns:
        [K] int64 flat indices, by patch and then ascending; at most `points_per_patch` of each.
    """
    chosen = []
    for patch in range(1, parts.NUM_PATCHES + 1):
        members = np.flatnonzero(patches == patch)
        count = min(settings.points_per_patch, len(members))
        if certainty is not None and count < len(members):
            order = np.argsort(-certainty.reshape(-1)[members], kind="stable")
            members = members[order[: _search_count(settings, count, len(members))]]
        if count < len(members):
            members = rng.choice(members, count, replace=False)
        chosen.append(np.sort(members))
    return np.concatenate(chosen)


def _search_count(settings: BootstrapSettings, count: int, pixels: int) -> int:
    """How many of a patch's pixels are surest."""
    if settings.search_multiplier is not None:
        return min(int(count * settings.search_multiplier), pixels)
    if settings.search_proportion is not None:
        return max(int(pixels * settings.search_proportion), count)
    return count


def _certainty(person: PersonResult, sampler: str) -> np.ndarray | None:
    name = SAMPLERS[sampler]
    if name is None:
        return None
    if name not in person.confidences:
        raise ValueError(
            f"sampler {sampler!r} needs the confidence {name}, which the model does not predict or "
            "the results do not hold (`ktn predict --confidences` writes it): take another model, "
            "or sampler 'uniform'"
        )
    return -_variance(person) if name == "sigma" else person.confidences[name]


def _variance(person: PersonResult) -> np.ndarray:
    """[h, w] variance of U and V, the mean of both: `sigma` is it before the softplus."""
    sigma = person.confidences["sigma"].astype(np.float64)
    variance = np.logaddexp(0, sigma) + _MIN_VARIANCE
    along = [person.confidences[k] for k in ("kappa_u", "kappa_v") if k in person.confidences]
    spread: np.ndarray = variance + sum(kappa.astype(np.float64) ** 2 for kappa in along) / 2
    return spread


def point_confidence(person: PersonResult) -> np.ndarray:
    """How sure the charts are at each pixel.

    Args:
        person: with an IUV picture.

    Returns:
        [h, w] float64 in 0..1: 0.01 over the variance of U and V, the smallest that a model can
        predict, so that points weigh as in the mean of least variance; times c / (1 + c) for the
        factor c of the fine segmentation's logits. 1 where the model predicts neither.
    """
    confidence = np.ones(person.size_hw)
    if "sigma" in person.confidences:
        confidence *= _MIN_VARIANCE / _variance(person)
    if "fine_segm_confidence" in person.confidences:
        factor = np.maximum(person.confidences["fine_segm_confidence"].astype(np.float64), 0)
        confidence *= factor / (1 + factor)
    return confidence
