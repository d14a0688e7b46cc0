"""What is written of a video, and of which of its frames and people."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ktn_jax.results import pictures
from ktn_jax.results.people_over_time import PeopleOverTime
from ktn_jax.results.styles import StyleSettings
from ktn_jax.runtime.video_frames import ALL_FRAMES, Selection


def check_pictures(names: Sequence[str], settings: StyleSettings) -> tuple[str, ...]:
    """Checks names of a video's pictures, and returns each once.

    Raises:
        ValueError: as `pictures.check_names`, or a map.
    """
    checked = pictures.check_names(names, settings)
    maps = [name for name in checked if name in pictures.MAPS]
    if maps:
        raise ValueError(
            f"{maps[0]} is a map of numbers, which a video's compression changes: NAME.jsonl "
            "has the numbers, and frames that are predicted as photos get their maps"
        )
    return checked


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """Options of a run over videos.

    Attributes:
        pictures: names of `results.pictures`, drawn besides our own overlay. Maps (iuv, instances,
            labels) are refused: compression changes their numbers, which the JSON lines have.
        settings: of detectron2's styles.
        selection: which frames.
        min_score: people with a lower score are left out.
        with_confidences: of a model that predicts them, confidences in the JSON lines.
        is_tracked: number people through the video.
        smooth_s: see `PeopleOverTime`, as `only_tracks`.
        only_tracks: numbers of people.

    Raises:
        ValueError: a picture that cannot be drawn, a score that is not a number, or smoothing or a
            choice of people who are not tracked.
    """

    pictures: tuple[str, ...] = ()
    settings: StyleSettings = dataclasses.field(default_factory=StyleSettings)
    selection: Selection = ALL_FRAMES
    min_score: float = 0.0
    with_confidences: bool = False
    is_tracked: bool = True
    smooth_s: float = 0.0
    only_tracks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields, and adds the overlay to the pictures."""
        if math.isnan(self.min_score):
            raise ValueError("min_score must be a number, got nan")
        names = check_pictures((pictures.OVERLAY, *self.pictures), self.settings)
        if not self.is_tracked and (self.smooth_s or self.only_tracks):
            raise ValueError("only people who are tracked can be smoothed or chosen by number")
        object.__setattr__(self, "pictures", names)
        self.make_people_over_time()  # which checks what it takes

    def make_people_over_time(self) -> PeopleOverTime | None:
        """What numbers and smooths the people of one video; None where nothing does."""
        if not self.is_tracked:
            return None
        return PeopleOverTime(smooth_s=self.smooth_s, only_tracks=self.only_tracks)

    def facts(self) -> list[Any]:
        """JSON values that differ where the outputs would.

        Raises:
            OSError: a file of a mesh cannot be read.
        """
        chosen = [str(value) for value in dataclasses.astuple(self.selection)]
        people = [self.min_score, self.with_confidences, self.is_tracked, self.smooth_s]
        return [list(self.pictures), self.settings.facts(), chosen, people, list(self.only_tracks)]
