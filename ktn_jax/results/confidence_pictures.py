"""Pictures of how sure a model is, over the people of a photo."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ktn_jax.results.drawing import side_by_side
from ktn_jax.results.maps import overlap
from ktn_jax.results.palette import mix_colours
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import colours_of

_Maps = Mapping[str, np.ndarray]


def _deviation(maps: _Maps) -> np.ndarray:
    """Standard deviation of U and V in every direction but that of kappa."""
    return np.asarray(np.sqrt(np.logaddexp(0, maps["sigma"])))


def _extra_deviation(maps: _Maps) -> np.ndarray:
    """What is added to it, squared, in the direction of kappa."""
    return np.hypot(maps["kappa_u"], maps["kappa_v"])


# Title, the map it needs, the values shown, and whether they count on the body only.
_PANELS: tuple[tuple[str, str, Callable[[_Maps], np.ndarray], bool], ...] = (
    ("sigma", "sigma", _deviation, True),
    ("kappa", "kappa_u", _extra_deviation, True),
    ("fine segm", "fine_segm_confidence", lambda maps: maps["fine_segm_confidence"], False),
    ("coarse segm", "coarse_segm_confidence", lambda maps: maps["coarse_segm_confidence"], False),
)


def draw_confidences(
    image: np.ndarray, people: Sequence[PersonResult], *, opacity: float = 0.8
) -> np.ndarray:
    """Draws every confidence over the image, side by side.

    Yellow is the largest value of the picture, dark blue the smallest; the title has both. `sigma`
    is the standard deviation of U and V (the root of the softplus of the map), `kappa` the length
    of (kappa_u, kappa_v): for both, yellow is where the model is least sure. The confidences of the
    segmentation are large where it is sure.

    Args:
        image: [H, W, 3] uint8 RGB.
        people: In the image's pixels. The one with the higher score is in front.
        opacity: Of the colours, 0 to 1.

    Returns:
        uint8 RGB [h, w, 3], a panel for each kind of confidence; the image itself without people.

    Raises:
        ValueError: not an image in memory, or people without confidences.
    """
    ranked = sorted(people, key=lambda person: -person.score)
    panels, titles = [], []
    for title, needed, value_of, is_on_body in _PANELS:
        shown = [
            (person, value_of(person.confidences), person.is_body if is_on_body else None)
            for person in ranked
            if needed in person.confidences
        ]
        if shown:
            panel, low, high = _draw_values(image, shown, opacity)
            panels.append(panel)
            titles.append(f"{title} {low:.3g} to {high:.3g}")
    if people and not panels:
        raise ValueError("the people have no confidences: their model predicts none")
    return side_by_side(panels, titles) if panels else side_by_side([image])


def _draw_values(
    image: np.ndarray,
    shown: Sequence[tuple[PersonResult, np.ndarray, np.ndarray | None]],
    opacity: float,
) -> tuple[np.ndarray, float, float]:
    """Draws one map of all people, best first; the picture, and the values of its colours' ends."""
    values = np.zeros(image.shape[:2])
    is_drawn = np.zeros(image.shape[:2], bool)
    for person, own, is_counted in reversed(shown):
        image_part, person_part = overlap(person, (image.shape[0], image.shape[1]))
        counted = np.ones(own.shape, bool) if is_counted is None else is_counted
        counted = counted[person_part]
        values[image_part][counted] = own[person_part][counted]
        is_drawn[image_part] |= counted
    if not is_drawn.any():
        return image.copy(), 0.0, 0.0
    low, high = float(values[is_drawn].min()), float(values[is_drawn].max())
    levels = (values - low) * (255 / (high - low) if high > low else 0.0)
    levels = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    panel = image.copy()
    mix_colours(panel, is_drawn, levels, colours_of("viridis"), opacity)
    return panel, low, high
