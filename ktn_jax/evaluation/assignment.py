"""Which detection takes which person, for all measures, area ranges and thresholds at once.

The rules are those of the DensePose evaluation, a variant of COCO's; comments mark surprising ones.
People and detections are identified by their index, -1 is "none".
"""

import dataclasses

import numpy as np

AREA_NAMES = ("all", "medium", "large")
AREA_RANGES = np.array([[0, 1e5**2], [32**2, 96**2], [96**2, 1e5**2]])
MAX_DETECTIONS = 20
_IGNORED_BOX_IOU = 0.8

_State = tuple[np.ndarray, np.ndarray, np.ndarray]  # the first three arrays of `ImageMatches`


@dataclasses.dataclass(frozen=True)
class ImageMatches:
    """The matching of one image; M measures, A area ranges, T thresholds, D detections, G people.

    Attributes:
        detection_match: [M, A, T, D] int, the person a detection took, or -1.
        person_match: [M, A, T, G] int, the detection that a person got, or -1.
        is_detection_ignored: [M, A, T, D] bool.
        is_person_ignored: [A, G] bool.
    """

    detection_match: np.ndarray
    person_match: np.ndarray
    is_detection_ignored: np.ndarray
    is_person_ignored: np.ndarray


def is_outside(area: np.ndarray) -> np.ndarray:
    """Finds which areas [N] in square pixels are outside each range: [A, N] bool."""
    return (area < AREA_RANGES[:, :1]) | (area > AREA_RANGES[:, 1:])


def match_image(
    similarity: np.ndarray,
    box_iou: np.ndarray,
    is_crowd: np.ndarray,
    is_person_ignored: np.ndarray,
    is_detection_outside: np.ndarray,
    thresholds: np.ndarray,
) -> ImageMatches:
    """Matches the detections of an image, best score first.

    Args:
        similarity: [M, D, G] of each measure, detections by falling score.
        box_iou: [D, G].
        is_crowd: [G] bool: may be taken more than once.
        is_person_ignored: [A, G] bool, people who are neither found nor missed.
        is_detection_outside: [A, D] bool, detections whose area is outside the range.
        thresholds: [T] ascending.

    Returns:
        The matches.
    """
    measures, detections, people = similarity.shape
    shape = (measures, len(is_person_ignored), len(thresholds))
    detection_match = np.full((*shape, detections), -1)
    person_match = np.full((*shape, people), -1)
    is_ignored = np.zeros((*shape, detections), bool)
    # Nobody to find, or no person at all: no detection can be wrong.
    is_ignored |= np.asarray(is_person_ignored.all(axis=1))[None, :, None, None]
    if detections and people:
        _match_by_similarity(
            (detection_match, person_match, is_ignored),
            similarity,
            is_crowd,
            is_person_ignored,
            thresholds,
        )
        _forgive_by_box(
            (detection_match, person_match, is_ignored), box_iou, is_crowd, is_person_ignored
        )
    is_ignored |= (detection_match < 0) & is_detection_outside[None, :, None, :]
    return ImageMatches(
        detection_match=detection_match,
        person_match=person_match,
        is_detection_ignored=is_ignored,
        is_person_ignored=is_person_ignored,
    )


def _match_by_similarity(
    state: _State,
    similarity: np.ndarray,
    is_crowd: np.ndarray,
    is_person_ignored: np.ndarray,
    thresholds: np.ndarray,
) -> None:
    detection_match, person_match, is_ignored = state
    floor = np.minimum(thresholds, 1 - 1e-10)[:, None]
    is_regular = ~is_person_ignored[None, :, None, :]
    is_high = (similarity[:, :, None] >= floor) & (similarity != 0)[:, :, None]  # [M, D, T, G]
    for place in np.flatnonzero(is_high.any(axis=(0, 2, 3))):
        is_open = ((person_match < 0) | is_crowd) & is_high[:, place, None]
        is_open_regular = is_open & is_regular
        # An ignored person is taken only where no regular one is good enough.
        has_regular = is_open_regular.any(axis=-1, keepdims=True)
        pool = np.where(has_regular, is_open_regular, is_open)
        value = np.where(pool, similarity[:, place, None, None], -1.0)
        best = _last_argmax(value)
        has_match = pool.any(axis=-1)
        measure, area, threshold = np.nonzero(has_match)
        taken = best[has_match]
        detection_match[measure, area, threshold, place] = taken
        person_match[measure, area, threshold, taken] = place
        is_ignored[measure, area, threshold, place] = is_person_ignored[area, taken]


def _forgive_by_box(
    state: _State, box_iou: np.ndarray, is_crowd: np.ndarray, is_person_ignored: np.ndarray
) -> None:
    """Lets an unmatched detection take the ignore flag of a person its box covers.

    Decided by the matches of the last threshold only, and then applied to all: a detection matched
    at 0.5 but not at 0.95 is changed too, and a regular person clears the flag.
    """
    detection_match, person_match, is_ignored = state
    for area, ignored in enumerate(is_person_ignored):
        order = np.argsort(ignored, kind="stable")  # ignored people last; of equals the last wins
        overlap, crowd = box_iou[:, order], is_crowd[order]
        for place in np.flatnonzero((overlap >= _IGNORED_BOX_IOU).any(axis=1)):
            for measure in range(len(detection_match)):
                last = (measure, area, -1)
                if detection_match[(*last, place)] >= 0:
                    continue
                is_open = (person_match[last][order] < 0) | crowd
                value = np.where(is_open, overlap[place], -1.0)
                best = _last_argmax(value)
                if value[best] < _IGNORED_BOX_IOU:
                    continue
                person = order[best]
                is_ignored[measure, area, :, place] = ignored[person]
                if ignored[person]:
                    detection_match[(*last, place)] = person
                    person_match[(*last, person)] = place


def _last_argmax(values: np.ndarray) -> np.ndarray:
    last: np.ndarray = values.shape[-1] - 1 - np.argmax(values[..., ::-1], axis=-1)
    return last
