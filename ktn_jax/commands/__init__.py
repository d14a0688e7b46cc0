"""The subcommands of `ktn`: each parses its arguments and calls the library.

A module here has a one-line docstring (the help), `EXAMPLES`, `add_arguments(parser)` and
`run(arguments) -> int`, the exit code. Nothing heavy is imported before `run`.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.runtime.processes import Processes


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config and --set, which `configuration.load_config` takes."""
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE.py:VARIANT",
        help="such as configs/ktn.py:r50 or configs/densepose_rcnn.py:r50",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the configuration; may be repeated",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `join_processes` takes."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="from 0")
    group.add_argument(
        "--cluster", action="store_true", help="take all three from the cluster's environment"
    )


def join_processes(arguments: argparse.Namespace) -> "Processes":
    """Joins the processes that the arguments name, before anything else touches JAX.

    Returns:
        The processes of the run; one where no argument names any.

    Raises:
        ValueError: arguments are missing, or the processes cannot be joined.
    """
    from ktn_jax.runtime.processes import Processes

    if arguments.cluster or arguments.coordinator is not None:
        from ktn_jax.training import distributed

        distributed.initialise(arguments.coordinator, arguments.num_processes, arguments.process_id)
        import jax
        from jax.experimental import multihost_utils

        wait = multihost_utils.sync_global_devices
        return Processes(jax.process_index(), jax.process_count(), wait)
    if arguments.num_processes is not None or arguments.process_id is not None:
        raise ValueError("--num-processes and --process-id need --coordinator")
    return Processes()
