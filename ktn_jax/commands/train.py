"""train a model, or resume a training that was interrupted"""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from ktn_jax.commands import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXIT_NOT_FINITE = 76

EXAMPLES = f"""
  ktn train --config ktn:tiny --workdir W                     # synthetic people, on a CPU
  ktn train --config densepose_rcnn:r50 --workdir W --weights R-50.pkl
  ktn train --config ktn:r50 --workdir W --weights K \\
      --config.data.annotations=a.json --config.data.images=photos
  ktn train ... --config.training.evaluate_every=5000         # scores data.evaluation
  ktn train ... --workdir gs://bucket/run                     # or s3://..., see docs/training.md
  ktn train --config ktn:r50 --dry-run                        # what a step takes, without data
  ktn train ... --coordinator 10.0.0.1:8476 --num-processes 2 --process-id 0
  ktn convert W model.safetensors                             # the last checkpoint

The same command resumes from the last checkpoint in WORKDIR/checkpoints. SIGTERM and Ctrl-C
stop after the current step, save and exit with code {EXIT_INTERRUPTED}; a second one aborts. A \
loss that is not finite exits with {EXIT_NOT_FINITE} and saves nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    commands.add_config_arguments(parser)
    parser.add_argument(
        "--workdir",
        type=commands.folder_or_address,
        help="folder for checkpoints and metrics, or an address, gs://bucket/run; needed but with "
        "--dry-run",
    )
    parser.add_argument(
        "--weights",
        help="initial weights: a checkpoint file, an ImageNet ResNet, or a work folder",
    )
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="resume from the checkpoint of this step, not from the last one; those after it are "
        "moved to WORKDIR/set_aside",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compile the step without data and weights, print its memory, operations and the time "
        "to compile, and end",
    )
    parser.add_argument(
        "--size",
        type=commands.size_hw,
        metavar="HxW",
        help="of the images of --dry-run (default: the largest that the configuration trains on)",
    )
    commands.add_verify_argument(parser)
    commands.add_process_arguments(parser)
    commands.add_quiet_argument(parser)


def _dry_run(config: "ConfigDict", size_hw: tuple[int, int] | None) -> int:
    """Prints what a step takes."""
    from ktn_jax.data_pipelines.loading.configured import augmentation_of, training_batch_spec
    from ktn_jax.data_pipelines.loading.plan import canvases_for
    from ktn_jax.training import dry_run

    size_hw = size_hw or canvases_for(augmentation_of(config))[-1]
    cost = dry_run.measure_step(config, training_batch_spec(config, size_hw), size_hw)
    print(cost.report())  # noqa: T201
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Trains; the exit code says how it ended."""
    if arguments.workdir is None and not arguments.dry_run:
        raise ValueError("give --workdir, the folder for checkpoints and metrics, or --dry-run")
    if arguments.size and not arguments.dry_run:
        raise ValueError("--size is of --dry-run: a training has the sizes of its data")
    import jax

    from ktn_jax import commands
    from ktn_jax.checkpoints import named
    from ktn_jax.data_pipelines.loading.configured import make_training_data
    from ktn_jax.inference.repeated_evaluation import RepeatedEvaluation
    from ktn_jax.runtime import progress
    from ktn_jax.training import configured, workdirs
    from ktn_jax.training.trainer import NonFiniteError

    changes = list(arguments.changes)
    if arguments.weights is not None:
        changes.append(f"training.weights={arguments.weights!r}")
    config = named.load_config(arguments.config, changes)
    for note in named.training_notes(arguments.config, changes):
        progress.warn(f"note: {note}")
    processes = commands.join_processes(arguments)
    if arguments.dry_run:
        return _dry_run(config, arguments.size)
    data = make_training_data(config, processes.index, processes.count)
    if processes.is_first:
        print(f"training data: {data.summary}", file=sys.stderr)  # noqa: T201
    if config.training.evaluate_every and config.model.kind == "teacher":
        raise ValueError(
            "training.evaluate_every scores people that are found, and a teacher finds none: set "
            "it to 0"
        )
    try:
        with contextlib.ExitStack() as opened:
            evaluate = None
            if config.training.evaluate_every:
                folder, sharing = workdirs.evaluation_folder(arguments.workdir, processes, opened)
                evaluate = RepeatedEvaluation(config, folder, sharing)
            trainer = opened.enter_context(
                configured.make_trainer(
                    config,
                    arguments.workdir,
                    from_step=arguments.from_step,
                    verify=arguments.verify,
                )
            )
            end = trainer.fit(data.batches_from, evaluate)
    except NonFiniteError as error:
        print(f"ktn train: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_NOT_FINITE
    except jax.errors.JaxRuntimeError:
        if processes.count > 1:
            print(  # noqa: T201
                "ktn train: a step failed; another process of the run may have died. The same "
                "command, on any number of processes, resumes from the last checkpoint",
                file=sys.stderr,
            )
        raise
    if not end.is_complete:
        print(f"ktn train: stopped and saved at step {end.step}", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    return 0
