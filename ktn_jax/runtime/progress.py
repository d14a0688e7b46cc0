"""The one way to show how far work is and to say something meanwhile, on the standard error.

On a terminal `Progress` is a bar; elsewhere, in a log file, it is a plain line now and then. What
is said with `say` and `warn` stands above the bars. `hidden` shows neither bars nor lines, and is
what `--quiet` does (`commands.add_quiet_argument`).
"""

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from tqdm import tqdm

_BAR_SECONDS = 0.5  # between two states of a bar
# In a log file: at most a hundred lines, but a sign of life every ten minutes.
_LINE_SECONDS = 30
_LINE_SHARE = 0.01
_LONGEST_SILENCE = 600
BYTES = "B"  # the unit of sizes

_hidden_count = 0  # of the blocks of `hidden` that are open


@contextlib.contextmanager
def hidden(is_hidden: bool = True) -> Iterator[None]:
    """Shows no progress of what its block does, and nothing that is said with `say`."""
    global _hidden_count
    _hidden_count += is_hidden
    try:
        yield
    finally:
        _hidden_count -= is_hidden


def has_bars() -> bool:
    """Whether progress is shown as bars, so that those of other libraries may be shown too."""
    return not _hidden_count and sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """Prints a line above the bars, unless `hidden`."""
    if not _hidden_count:
        warn(text)


def warn(text: str) -> None:
    """Prints a line above the bars in any case."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """How far a piece of work is; several may be shown at once.

    with Progress("predict", "photos", total=4000) as progress:
        progress.advance()
    """

    def __init__(
        self,
        description: str,
        unit: str,
        total: float | None = None,
        *,
        done: float = 0,
        is_shown: bool = True,
    ):
        """Begins; a bar without a total is shown when something is done.

        Args:
            description: what is done, in a word.
            unit: of what is counted, in the plural; `BYTES` of sizes.
            total: how many there are. None: unknown, or told by `set` later.
            done: how many were done before.
            is_shown: False keeps silent, as other processes than the first do.
        """
        self._description, self._unit = description, unit
        self._total, self._done, self._first = total, done, done
        self._is_shown = is_shown and not _hidden_count
        self._values: dict[str, str] = {}
        self._bar: tqdm[Any] | None = None
        self._lock = threading.Lock()
        self._begin()
        if total is not None:
            self._show_bar()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: float = 1) -> None:
        """Counts what is done; any thread may call it."""
        with self._lock:
            if self._bar is None:
                self._show_bar()
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif self._is_shown and self._is_line_due():
                self._print_line()

    def set(self, done: float, total: float) -> None:
        """Says how many are done, and of how many: a callback of functions that report so."""
        if self._total is None:
            self._total = total
            self._begin()
        self.advance(done - self._done)

    def show(self, values: Mapping[str, str]) -> None:
        """Shows values by name from now on."""
        self._values = dict(values)
        if self._bar is not None:
            self._bar.set_postfix(self._values, refresh=False)

    def close(self) -> None:
        """Shows how far it came."""
        if self._bar is not None:
            self._bar.close()
        elif self._is_shown and self._done != self._last_done:
            self._print_line()
        self._is_shown = False

    def _begin(self) -> None:
        self._started = self._last_line = time.monotonic()
        self._last_done = self._done

    def _show_bar(self) -> None:
        if self._is_shown and has_bars():
            self._bar = tqdm(
                desc=self._description,
                total=self._total,
                initial=self._done,
                unit=self._unit if self._unit == BYTES else f" {self._unit}",
                unit_scale=self._unit == BYTES,
                unit_divisor=1024,
                mininterval=_BAR_SECONDS,
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def _is_line_due(self) -> bool:
        silence = time.monotonic() - self._last_line
        is_much = self._total is None or self._done - self._last_done >= _LINE_SHARE * self._total
        return silence >= (_LINE_SECONDS if is_much else _LONGEST_SILENCE)

    def _print_line(self) -> None:
        self._last_line, self._last_done = time.monotonic(), self._done
        seconds = self._last_line - self._started
        of_total = f" of {self._number(self._total)}" if self._total else ""
        unit = "MiB" if self._unit == BYTES else self._unit
        parts = [f"{self._description}: {self._number(self._done)}{of_total} {unit}"]
        if self._total:
            parts[0] += f" ({self._done / self._total:.0%})"
        rate = (self._done - self._first) / max(seconds, 1e-9)
        if self._total and self._done < self._total and rate > 0:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        else:
            parts.append(f"in {_duration(seconds)}")
        parts += [f"{name} {value}" for name, value in self._values.items()]
        warn(", ".join(parts))

    def _number(self, count: float) -> str:
        return f"{count / (1 << 20):,.1f}" if self._unit == BYTES else f"{count:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Above(logging.Handler):
    """Writes what libraries log above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        warn(f"{record.levelname.lower()}: {record.getMessage()}")


@contextlib.contextmanager
def on_command_line(is_quiet: bool) -> Iterator[None]:
    """Takes over the standard error for a command: messages of libraries do not break bars.

    Args:
        is_quiet: show no progress.
    """

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warn(f"warning: {message}")

    def show_unraisable(lost: Any) -> None:
        # TensorStore's threads, once another part of the same checkpoint has failed: dozens.
        if not (lost.exc_type is RuntimeError and str(lost.exc_value) == "Event loop is closed"):
            hook(lost)

    root, absl = logging.getLogger(), logging.getLogger("absl")
    hook = sys.unraisablehook
    handler, shown, level = _Above(), warnings.showwarning, absl.level
    root.addHandler(handler)
    # orbax reports every step of every save there, and every error, which it raises too.
    absl.setLevel(logging.CRITICAL)
    warnings.showwarning, sys.unraisablehook = show_warning, show_unraisable
    try:
        with hidden(is_quiet):
            yield
    finally:
        root.removeHandler(handler)
        absl.setLevel(level)
        warnings.showwarning, sys.unraisablehook = shown, hook
