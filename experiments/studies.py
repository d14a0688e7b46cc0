"""Runs of the studies in this folder, which resume.

`study_commands` makes their commands, `study_results` shows what came of them.

A study trains several models with several seeds. The models of a seed share people, start and order
of images, so they are compared seed by seed. A run is a few `ktn` commands one after the other in a
folder of its own; what is done is not done again, and the same study resumes after a stop or kill.

    people = studies.render_people(output / "people_seed0", 500, seed=0, scene=scene)
    run = studies.Run(output / "mid_seed0", {
        "train": study_commands.train_words(config, changes, output / "mid_seed0" / "training"),
        **study_commands.eval_commands(config, changes, ..., people=test_people, folder=run_folder),
    })
    studies.run_all([run, ...], jobs=2)
    scores = studies.read_scores(run.folder / study_commands.FOUND)
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from study_commands import Words

from ktn_jax import cli
from ktn_jax.commands import EXIT_INTERRUPTED
from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.runtime import atomic_files, locks

_LOG_LINES = 5  # shown of a run that failed


@dataclasses.dataclass(frozen=True)
class Run:
    """A model that is trained and scored.

    Attributes:
        folder: its own, for logs and for what its commands write.
        commands: arguments of `ktn` by the name of the step, in order.
    """

    folder: pathlib.Path
    commands: Mapping[str, Words]


class RunError(RuntimeError):
    """Runs that failed; the message names their logs."""


def parse_arguments(
    documentation: str,
    sizes: Iterable[str],
    output: str,
    argv: Sequence[str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """Parses what all studies take: size, output, steps, seeds and jobs.

    Args:
        documentation: of the study, for --help.
        sizes: names; "small" is the default.
        output: default folder.
        argv: arguments; None for those of the program.
        flags: help of the study's own flags by name.

    Raises:
        SystemExit: unknown or bad arguments.
    """
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(sizes), default="small")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(output))
    parser.add_argument("--steps", type=int, help="of each training (default: of the size)")
    parser.add_argument("--seeds", type=int, help="runs of each model (default: of the size)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default 1)")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    arguments = parser.parse_args(argv)
    for name in ("steps", "seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return arguments


def chosen_size(sizes: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    """The size that arguments name, a dataclass, with the steps and seeds that they give."""
    size = sizes[arguments.size]
    return dataclasses.replace(
        size, steps=arguments.steps or size.steps, seeds=arguments.seeds or size.seeds
    )


def render_people(
    folder: pathlib.Path, num_images: int, seed: int, scene: Scene, jobs: int | None = None
) -> pathlib.Path:
    """Renders a set of people, or what is missing of it; returns its folder.

    Held-out people have seeds from `held_out.HELD_OUT_SEED` on.
    """
    workers = (jobs or os.cpu_count() or 1) if num_images > 200 else 1
    dataset_files.write_dataset(folder, num_images, seed=seed, scene=scene, num_processes=workers)
    return folder


def run_all(runs: Sequence[Run], jobs: int = 1) -> None:
    """Runs the commands of all runs that are not done yet, `jobs` runs side by side.

    Several runs get a share of the cores each, where `taskset` is there. The output of a command
    goes to STEP.log in the run's folder, and STEP.json there says its arguments and its cost.

    Raises:
        RunError: commands failed; the other runs were finished first.
        ValueError: a folder holds a step of other arguments.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Commands that ran were told to save and stop.
    """
    waiting = collections.deque((run, 0) for run in runs)
    free = collections.deque(_core_lists(jobs))
    active: dict[int, tuple[_Attempt, list[int]]] = {}
    failures: list[str] = []
    with _sigterm_as_interrupt():
        try:
            while waiting or active:
                while waiting and free:
                    run, index = waiting.popleft()
                    if index == len(run.commands):
                        continue
                    attempt = _start(run, index, free[0])
                    if attempt is None:
                        waiting.appendleft((run, index + 1))
                        continue
                    active[attempt.process.pid] = attempt, free.popleft()
                if not active:
                    continue
                attempt, cores = active.pop(_wait_for(active))
                free.append(cores)
                if attempt.process.returncode == 0:
                    waiting.appendleft((attempt.run, attempt.index + 1))
                else:
                    failures.append(_failure(attempt))
        finally:
            for attempt, _ in active.values():
                attempt.process.terminate()
            while active:
                active.pop(_wait_for(active))
    if failures:
        raise RunError(f"{len(failures)} of {len(runs)} runs failed:\n" + "\n".join(failures))


def run_by_seed(runs: Mapping[str, Sequence[Run]], jobs: int = 1) -> None:
    """As `run_all`, the models of a seed first, so that those of a stopped study can be compared.

    Args:
        runs: of each model, one for each seed.
        jobs: runs side by side.
    """
    run_all([run for of_seed in zip(*runs.values(), strict=True) for run in of_seed], jobs)


def run_here(runs: Sequence[Run]) -> None:
    """Runs the commands that are not done yet in this process, one after the other.

    Programs that a command compiled are there for the next one. Records are those of `run_all`, and
    what commands say goes to this process's output.

    Raises:
        RunError: a command failed.
        ValueError: a folder holds a step of other arguments.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after which the command has saved and stopped.
    """
    for run in runs:
        for step, words in run.commands.items():
            run.folder.mkdir(parents=True, exist_ok=True)
            if _read_record(run.folder / f"{step}.json", words)["is_done"]:
                continue
            say(f"{run.folder}: {step}")
            start, processor = time.perf_counter(), time.process_time()
            code = cli.main(words)
            seconds = time.perf_counter() - start
            _book(run, step, seconds, time.process_time() - processor, code)
            if code in (EXIT_INTERRUPTED, cli.EXIT_STOPPED):
                raise KeyboardInterrupt
            if code:
                raise RunError(f"{run.folder}: {step} failed ({code})")


@dataclasses.dataclass
class _Attempt:
    """A command that runs."""

    run: Run
    index: int
    process: subprocess.Popen[bytes]
    started: float

    @property
    def step(self) -> str:
        return list(self.run.commands)[self.index]


def _core_lists(jobs: int) -> list[list[int]]:
    """Which cores each of the jobs gets; empty for all."""
    if jobs == 1 or shutil.which("taskset") is None:
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    return [cores[job::jobs] for job in range(jobs)]


def _start(run: Run, index: int, cores: Sequence[int]) -> _Attempt | None:
    """Starts a step; None if it is done already.

    Raises:
        ValueError: the folder holds that step of other arguments.
    """
    step, words = list(run.commands.items())[index]
    run.folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(run.folder / f"{step}.json", words)
    if record["is_done"]:
        return None
    say(f"{run.folder}: {step}")
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    with open(run.folder / f"{step}.log", "ab") as log:
        process = subprocess.Popen(
            [*pinned, *_command(words)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process only, which tells the command once: twice would abort it.
            start_new_session=True,
        )
    return _Attempt(run, index, process, time.perf_counter())


def _command(words: Words) -> list[str]:
    return [sys.executable, "-m", "ktn_jax", *words]


def _read_record(path: pathlib.Path, words: Words) -> dict[str, Any]:
    """What the attempts at a step so far came to."""
    if not path.is_file():
        return {"arguments": list(words), "seconds": 0.0, "cpu_seconds": 0.0, "is_done": False}
    record: dict[str, Any] = json.loads(path.read_bytes())
    if record["arguments"] != list(words):
        raise ValueError(
            f"{path} is of `ktn {shlex.join(record['arguments'])}`, wanted `ktn "
            f"{shlex.join(words)}`: give another --output, or remove {path.parent}"
        )
    return record


def _wait_for(active: Mapping[int, tuple[_Attempt, list[int]]]) -> int:
    """Waits until one of the processes ends, and books it; returns its id."""
    while True:
        for pid, (attempt, _) in active.items():
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                # Popen would wait for it again.
                attempt.process.returncode = os.waitstatus_to_exitcode(status)
                seconds = time.perf_counter() - attempt.started
                cpu_seconds = usage.ru_utime + usage.ru_stime
                _book(attempt.run, attempt.step, seconds, cpu_seconds, attempt.process.returncode)
                return pid
        time.sleep(0.2)


def _book(run: Run, step: str, seconds: float, cpu_seconds: float, code: int) -> None:
    path = run.folder / f"{step}.json"
    record = _read_record(path, run.commands[step])
    record["seconds"] += round(seconds, 2)
    record["cpu_seconds"] += round(cpu_seconds, 2)
    record["is_done"] = code == 0
    with atomic_files.replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def _failure(attempt: _Attempt) -> str:
    log = attempt.run.folder / f"{attempt.step}.log"
    last = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    how = "was stopped" if attempt.process.returncode == EXIT_INTERRUPTED else "failed"
    lines = [f"{log}: {attempt.step} {how} ({attempt.process.returncode})", *last]
    return "\n    ".join(lines)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGTERM too."""

    def interrupt(number: int, frame: Any) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def resumable(output: pathlib.Path) -> Iterator[None]:
    """Holds the folder of a study; at Ctrl-C and SIGTERM says how to resume and exits."""
    try:
        with locks.hold(output):
            yield
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
        sys.exit(EXIT_INTERRUPTED)


def say(text: str) -> None:
    """Prints a line with the time."""
    now = datetime.datetime.now().strftime("%H:%M:%S")
    print(f"{now} {text}", flush=True)  # noqa: T201


def read_scores(evaluation: pathlib.Path) -> dict[str, Any]:
    """The content of metrics.json in the folder of an evaluation: AP by measure, patches, people.

    Raises:
        FileNotFoundError: the evaluation is not done.
    """
    content: dict[str, Any] = json.loads((evaluation / "metrics.json").read_bytes())
    return content


def cost_of(runs: Iterable[Run]) -> tuple[float, float]:
    """Seconds and processor seconds of all commands of the runs."""
    records = [
        json.loads((run.folder / f"{step}.json").read_bytes())
        for run in runs
        for step in run.commands
    ]
    seconds, cpu_seconds = (
        sum(float(record[name]) for record in records) for name in ("seconds", "cpu_seconds")
    )
    return seconds, cpu_seconds
