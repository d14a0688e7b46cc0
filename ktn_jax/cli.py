"""The `ktn` command."""

import argparse
import importlib
import io
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

import ktn_jax
from ktn_jax import commands
from ktn_jax.runtime import host_memory, jax_setup, progress

EXIT_STOPPED = 128 + signal.SIGINT  # as shells report it
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
COMMANDS = (
    *("predict", "draw", "models", "convert", "verify", "train", "eval", "config", "data", "demo"),
    *("texture", "export", "serve"),
)


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
        The exit code: 0 for success, 1 for a mistake in arguments or files (reported on stderr),
        130 for Ctrl-C where the command cannot be resumed.
    """
    _accept_every_character()
    arguments = build_parser().parse_args(argv)
    _expand_home(arguments)
    if argv is None:
        host_memory.restart_with_huge_pages()
    jax_setup.prepare()
    jax_setup.silence_compiler()
    try:
        commands.refuse_addresses(arguments)
        with progress.on_command_line(is_quiet=getattr(arguments, "quiet", False)):
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `ktn ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return EXIT_BROKEN_PIPE
    # Errors that a user can correct become a message; others are bugs and keep their traceback.
    except (ValueError, OSError, KeyError, ImportError) as error:
        if os.environ.get("KTN_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"ktn {arguments.command}: {message}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        if os.environ.get("KTN_TRACEBACK"):
            raise
        print(f"ktn {arguments.command}: stopped", file=sys.stderr)  # noqa: T201
        return EXIT_STOPPED


def _expand_home(arguments: argparse.Namespace) -> None:
    """Takes a `~` at the start for the home folder: shells leave that of `--output=~/x` alone."""
    for name, value in vars(arguments).items():
        if isinstance(value, (str, pathlib.Path)) and os.fspath(value).startswith("~"):
            setattr(arguments, name, type(value)(os.path.expanduser(value)))


def _accept_every_character() -> None:
    """Escapes what a terminal's encoding lacks: a file's name must not cost the report."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
