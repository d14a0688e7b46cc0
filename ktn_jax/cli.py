"""The `ktn` command."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

import ktn_jax
from ktn_jax import commands
from ktn_jax.runtime import host_memory

COMMANDS = ("predict", "convert", "verify", "train", "eval", "config", "data", "demo")

# Where compiled programs are kept, so that the second run starts at once.
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"

# On CPUs, these releases of jaxlib send single convolutions to a library that is slow at their
# gradients; without it training is up to three times as fast. Other devices do not read the flag.
_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_CONVOLUTION_FLAG_VERSIONS = ((0, 10, 2), (0, 11, 2))


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all subcommands, without importing anything heavy."""
    parser = commands.CommandParser(
        prog="ktn", description=ktn_jax.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ktn_jax {ktn_jax.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"ktn_jax.commands.{name}")
        summary = str(module.__doc__).splitlines()[0]
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"examples:{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: arguments after `ktn`; None for those of the process.

    Returns:
        The exit code: 0 done, 1 something is wrong in what was asked for (said on stderr).
    """
    arguments = build_parser().parse_args(argv)
    if argv is None:
        host_memory.restart_with_huge_pages()
    prepare_jax()
    try:
        code: int = arguments.run(arguments)
        return code
    # What a user can mend is a message; anything else is a bug and keeps its traceback.
    except (ValueError, OSError, KeyError, ImportError) as error:
        if os.environ.get("KTN_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"ktn {arguments.command}: {message}", file=sys.stderr)  # noqa: T201
        return 1


def prepare_jax() -> None:
    """Sets what must be set before JAX starts."""
    cache = os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ktn_jax", "compiled"
    )
    os.environ.setdefault(_CACHE_VARIABLE, cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = os.environ.get("XLA_FLAGS", "")
    if _knows_convolution_flag() and _CONVOLUTION_FLAG.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CONVOLUTION_FLAG}".strip()
    host_memory.divide_by_size()


def _knows_convolution_flag() -> bool:
    """Whether the jaxlib that is installed has the flag: an unknown one ends the process."""
    numbers = importlib.metadata.version("jaxlib").split(".")[:3]
    if not all(number.isdigit() for number in numbers):
        return False  # a build of somebody's own
    first, last = _CONVOLUTION_FLAG_VERSIONS
    return first <= tuple(map(int, numbers)) <= last
