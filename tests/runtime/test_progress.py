"""What a user sees of long work, on a terminal and in a log file."""

import io
import logging
import sys
import warnings

import pytest

from ktn_jax import cli
from ktn_jax.runtime import progress
from ktn_jax.runtime.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _stderr(monkeypatch, kind=io.StringIO):
    """What is written to the standard error from now on; pytest has set its own before."""
    monkeypatch.setattr(sys, "stderr", kind())
    return sys.stderr


def test_a_log_file_gets_a_line_now_and_then(clock, monkeypatch):
    log_file = _stderr(monkeypatch)
    with Progress("train", "steps", 130_000, done=30_000) as shown:
        shown.show({"loss": "2.5"})
        for _ in range(100_000):
            clock[0] += 1
            shown.advance()
    lines = log_file.getvalue().splitlines()
    assert lines[0] == "train: 30,600 of 130,000 steps (24%), 27 h 37 min left, loss 2.5"
    assert lines[-1] == "train: 130,000 of 130,000 steps (100%), in 27 h 47 min, loss 2.5"
    assert len(lines) == 167  # one in ten minutes, and the end


def test_fast_work_does_not_fill_a_log_file(clock, monkeypatch):
    log_file = _stderr(monkeypatch)
    with Progress("predict", "photos", 40_000) as shown:
        for done in range(0, 40_001, 8):
            clock[0] += 1
            shown.set(done, 40_000)
    assert 80 < len(log_file.getvalue().splitlines()) <= 101


def test_short_work_is_one_line(clock, monkeypatch):
    log_file = _stderr(monkeypatch)
    with Progress("score", "images") as shown:
        clock[0] = 100  # before anything is known
        shown.set(2, 6)
        clock[0] = 103
        shown.set(6, 6)
    assert log_file.getvalue() == "score: 6 of 6 images (100%), in 3 s\n"
    with Progress("score", "images", 6, done=6):
        pass
    assert len(log_file.getvalue().splitlines()) == 1  # nothing was done


def test_sizes_are_shown_as_such(clock, monkeypatch):
    log_file = _stderr(monkeypatch)
    with Progress("download", progress.BYTES, 5 << 20) as shown:
        shown.advance(3 << 20)
        clock[0] = 60
        shown.advance(1 << 20)
    assert log_file.getvalue() == "download: 4.0 of 5.0 MiB (80%), 15 s left\n"


def test_messages_stand_above_the_bar(monkeypatch):
    terminal = _stderr(monkeypatch, _Terminal)
    with Progress("predict", "photos", 10) as shown, progress.on_command_line(is_quiet=False):
        shown.advance()
        progress.say("a note")
        logging.getLogger("jax._src.xla_bridge").warning("no %s", "GPU")
        logging.getLogger("absl").warning("saved a step")
        warnings.showwarning(UserWarning("odd"), UserWarning, "a.py", 1)
    lines = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert lines[:3] == ["a note", "warning: no GPU", "warning: odd"]
    assert "predict:  10%" in terminal.getvalue() and "1/10" in terminal.getvalue()
    assert not any(type(one).__name__ == "_Above" for one in logging.getLogger().handlers)


@pytest.mark.parametrize("kind", [_Terminal, io.StringIO])
def test_hidden_progress_leaves_the_warnings(kind, monkeypatch):
    written = _stderr(monkeypatch, kind)
    with progress.hidden(), Progress("predict", "photos", 2) as shown:
        shown.advance(2)
        progress.say("a note")
        progress.warn("a warning")
        assert not progress.has_bars()
    assert written.getvalue() == "a warning\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "p", "--config=c", "--weights=w", "--output=o"],
        ["eval"],
        ["train", "--config=c", "--workdir=w"],
        ["verify", "d"],
        ["demo"],
        ["data", "synth", "--output=o", "--images=2"],
        ["data", "build", "custom", "--manual-dir=m", "--data-dir=d"],
    ],
)
def test_commands_that_show_progress_can_be_quiet(arguments):
    parse = cli.build_parser().parse_args
    assert parse([*arguments, "--quiet"]).quiet and not parse(arguments).quiet
