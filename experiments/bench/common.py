"""Shared code of the benchmarks: taking turns, memory, and one form of output.

Every figure is a row: a name, the seconds of each repetition, and where they apply the images that
a repetition processes, its share of a whole, and the peak memory of the process that ran it.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass
class Row:
    """One figure."""

    name: str
    seconds: Sequence[float]  # of each repetition
    images: float | None = None  # done by one repetition
    whole: float | None = None  # median seconds of what this is a part of
    peak_bytes: int | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Median seconds of a repetition."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """The row for a JSON file."""
        row = {
            "name": self.name,
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "repeats": len(self.seconds),
        }
        if self.images:
            row["images_per_s"] = self.images / self.median
        if self.whole:
            row["share"] = self.median / self.whole
        if self.peak_bytes:
            row["peak_bytes"] = self.peak_bytes
        if self.note:
            row["note"] = self.note
        return row

    def __str__(self) -> str:
        row = self.as_dict()
        spread = f"{format_seconds(row['min_s'])}..{format_seconds(row['max_s'])}"
        line = f"  {self.name:38s} {format_seconds(self.median):>9s}  {spread:>20s}"
        line += f"  {row['share']:6.1%}" if self.whole else " " * 8
        line += f"  {row['images_per_s']:8.2f} images/s" if self.images else ""
        line += f"  {self.peak_bytes / 2**30:6.2f} GiB" if self.peak_bytes else ""
        return (line + (f"  {self.note}" if self.note else "")).rstrip()


def format_seconds(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


class Report:
    """Prints rows as they come and keeps them for a JSON file."""

    def __init__(self, bench: str, output: pathlib.Path | None = None):
        """Names the benchmark; `output` is the JSON file to write, if any."""
        self.bench, self.output = bench, output
        self.sections: list[dict[str, Any]] = []

    def say(self, line: str) -> None:
        """Prints a line."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def section(self, title: str, rows: Sequence[Row], **values: Any) -> None:
        """Prints rows under a title; `values` (ratios, sizes, errors) follow them."""
        self.say(title)
        for row in rows:
            self.say(str(row))
        for name, value in values.items():
            self.say(f"  {name.replace('_', ' ')}: {_format(value)}")
        self.sections.append({"title": title, "rows": [r.as_dict() for r in rows], **values})

    def close(self) -> None:
        """Writes the file."""
        if self.output is not None:
            content = {
                "bench": self.bench,
                "command": " ".join(sys.argv),
                "date": datetime.date.today().isoformat(),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "sections": self.sections,
            }
            self.output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Adds what every benchmark takes."""
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file")


def add_peer_arguments(
    parser: argparse.ArgumentParser, peers: Sequence[str] = ("eager", "tuned"), tuning: str = ""
) -> None:
    """Adds what benchmarks with a process for each side take.

    Args:
        parser: The benchmark's.
        peers: What ours can be compared with; the first is the default.
        tuning: What those after the first do besides allocating memory as ours does.
    """
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX takes every core")
    parser.add_argument(
        "--peer",
        dest="peers",
        nargs="+",
        default=peers[:1],
        choices=peers,
        help="what to compare with, in turn: plain PyTorch with the system's malloc, or with the "
        f"`ktn` command's{tuning} (default: {peers[0]})",
    )
    parser.add_argument("--serve", choices=("ours", *peers), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)


def prepare_side(arguments: argparse.Namespace) -> None:
    """Calls `prepare` in the process of one side, or in the one that controls both."""
    prepare(tunes_memory=arguments.serve != "eager")


def take_turns(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1
) -> dict[str, list[Any]]:
    """Makes calls in turn, so that other load on the machine slows all alike.

    Returns:
        For each call what it returned, or the seconds that it took where it returned nothing.
    """
    answers: dict[str, list[Any]] = {name: [] for name in calls}
    for repetition in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            answer = call()
            answer = time.perf_counter() - start if answer is None else answer
            if repetition >= warm_up:
                answers[name].append(answer)
    return answers


class Server:
    """This script in a process of its own, which answers one question at a time with JSON."""

    def __init__(self, arguments: Sequence[str]):
        """Starts the process; it should call `answer_questions`."""
        command = [sys.executable, sys.argv[0], *arguments]
        # The child decides how it allocates; this process's settings must not decide for it.
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, question: str) -> Any:
        """Sends a line and waits for the answer."""
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that was asked to {question!r} ended")
        return json.loads(line)


def time_warm(call: Callable[[], Any]) -> dict[str, Any]:
    """Calls twice and times the second call, for a process that waits between its turns.

    Virtual machines take away memory that a process leaves alone for some seconds, and touching it
    again costs up to a third of a repetition.

    Returns:
        {"seconds", "processor", "peak_bytes", "result"}.
    """
    call()
    return time_once(call)


def time_once(call: Callable[[], Any]) -> dict[str, Any]:
    """Times a call, see `time_warm`."""
    start, processor = time.perf_counter(), time.process_time()
    result = call()
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor,
        "peak_bytes": peak_memory(),
        "result": result,
    }


def answer_questions(answer: Callable[[str], Any]) -> None:
    """Answers the lines of standard input until it ends."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(line.strip())) + "\n")
        sys.stdout.flush()


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of repetitions that ran one after the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def ratios(peer: str, ours: Row, theirs: Row, scale: float = 1.0) -> dict[str, float]:
    """Ours over a peer's seconds, times `scale`, and peak memory where both rows have it."""
    found = {f"ratio_to_{peer}": median_ratio(ours.seconds, theirs.seconds) * scale}
    if ours.peak_bytes and theirs.peak_bytes:
        found[f"memory_ratio_to_{peer}"] = ours.peak_bytes / theirs.peak_bytes
    return found


def compare_whole(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], whole: str, images: int
) -> tuple[list[Row], dict[str, float]]:
    """Time and processor time of calls, and their ratios to that of one that holds the others.

    Args:
        answers: by call, what `time_once` returned in each turn.
        whole: the call that does what the others do, and more.
        images: done by each call.

    Returns:
        The rows, and the ratios by name.
    """
    rows, found = [], {}
    for key, kind in (("seconds", "time"), ("processor", "processor time")):
        of = {name: [answer[key] for answer in of_call] for name, of_call in answers.items()}
        for name, values in of.items():
            rows.append(Row(f"{name}: {kind}", values, images))
            if name != whole:
                title = f"{kind} ratio of {name} to {whole}".replace(" ", "_")
                found[title] = median_ratio(values, of[whole])
    return rows, found


def peak_memory() -> int | None:
    """Most memory that this process had resident so far, in bytes (Linux)."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def prepare(tunes_memory: bool = True) -> None:
    """Sets JAX and malloc up as the `ktn` command does.

    Call it first: it restarts the program where that gives it huge pages.
    """
    if not tunes_memory:
        return
    from ktn_jax.runtime import host_memory, jax_setup

    host_memory.restart_with_huge_pages()
    jax_setup.prepare()
