"""The processes of a run that share a file system."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run that share a file system.

    Attributes:
        index: of this one, from 0.
        count: how many there are.
        wait: called with a name, returns when all processes have called it with that name.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None

    @property
    def is_first(self) -> bool:
        """Whether this process does the work that is done only once."""
        return self.index == 0
