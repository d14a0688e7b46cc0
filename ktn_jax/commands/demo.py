"""train a model on rendered people and see what it finds: ten minutes, nothing to download"""

import argparse
import pathlib
import sys
from typing import Any

EXAMPLES = """
  ktn demo                              # demo/report.html at the end
  ktn demo --steps 300 --output quick/  # a first look
  ktn demo --seed 1 --output demo1/     # other people, other initial weights
  ktn demo --model cse --output cse/    # vertices of the body in place of its charts

Renders training and test people, trains ktn:demo from scratch (with a GPU ktn:demo_gpu, a
larger model; with --model cse cse:demo), scores it on the test people and writes
OUTPUT/report.html with losses, scores and pictures. The same command resumes a stopped demo.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("demo"), help="folder (default demo/)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="default: the configuration's")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides people and weights (default 0)"
    )
    parser.add_argument(
        "--test-images", type=int, default=100, metavar="N", help="images to test on (default 100)"
    )
    parser.add_argument(
        "--model",
        choices=("ktn", "cse"),
        default="ktn",
        help="what is learnt: charts by KTN (default), or vertices by embeddings",
    )
    commands.add_config_arguments(parser, required=False)
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo; the exit code is that of `ktn train` where training stops early."""
    from ktn_jax import commands
    from ktn_jax.commands import train
    from ktn_jax.demo.run import DemoRequest, run_demo
    from ktn_jax.training.trainer import NonFiniteError

    if arguments.steps is not None and arguments.steps < 1 or arguments.test_images < 1:
        raise ValueError("--steps and --test-images must be at least 1")
    if arguments.config and arguments.model != "ktn":
        raise ValueError("give --model or --config, not both")
    request = DemoRequest(
        output=arguments.output,
        config_name=arguments.config or ("cse:demo" if arguments.model == "cse" else ""),
        changes=tuple(arguments.changes),
        steps=arguments.steps,
        seed=arguments.seed,
        num_test_images=arguments.test_images,
    )
    try:
        outcome = run_demo(request, (lambda text: None) if arguments.quiet else _say)
    except NonFiniteError as error:
        print(f"ktn demo: {error}", file=sys.stderr)  # noqa: T201
        return train.EXIT_NOT_FINITE
    except KeyboardInterrupt:  # in a stage other than training, which handles it
        outcome = None
    if outcome is None or not outcome.is_complete:
        print("ktn demo: stopped; the same command resumes it", file=sys.stderr)  # noqa: T201
        return commands.EXIT_INTERRUPTED
    _show(outcome.record)
    print(f"Report: {outcome.report.resolve()}")  # noqa: T201
    return 0


def _show(record: dict[str, Any]) -> None:
    for name in ("bbox", "GPS", "GPSm", "keypoints"):
        values = record["scores"].get(name, {})
        shown = [f"{key} {value:5.1f}" for key, value in values.items() if value is not None]
        if shown:
            print(f"{name:10s}", "  ".join(shown[:3]))  # noqa: T201
    minutes = sum(record["seconds"].values()) / 60
    print(f"{record['settings']['steps']} steps, {minutes:.1f} minutes in all")  # noqa: T201


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
