"""The subcommands of `ktn`: each parses its arguments and calls the library.

Each module has a one-line docstring (its help), `EXAMPLES`, `add_arguments(parser)` and
`run(arguments) -> int`, which returns the exit code. Nothing heavy is imported before `run`.
"""

import argparse
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ktn_jax.runtime import addresses

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.runtime.processes import Processes
    from ktn_jax.runtime.program_store import ProgramStore

_Description = TypeVar("_Description")
# sysexits' EX_TEMPFAIL: what is done is kept, the same command resumes. Neither 0 nor 1, so that a
# scheduler can tell them apart.
EXIT_INTERRUPTED = 75

# The convention of ml_collections' config_flags.
_CHANGE = "--config."
_RECOGNISED = ""  # value of --cluster without a KIND


class CommandParser(argparse.ArgumentParser):
    """A parser that reads `--config.KEY=VALUE` and `--config.KEY VALUE` as `--set KEY=VALUE`."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses as argparse does, after rewriting `--config.KEY` arguments.

        argparse calls this of each subparser too, with that subparser's arguments.
        """
        if args is not None and self.get_default("changes") is not None:
            args = list(self._with_changes_as_set(args))
        return super().parse_known_args(args, namespace)

    def _with_changes_as_set(self, args: Sequence[str]) -> Iterator[str]:
        rest = iter(args)
        for argument in rest:
            if argument == "--":  # no options after it
                yield argument
                yield from rest
                return
            if not argument.startswith(_CHANGE):
                yield argument
                continue
            change = argument.removeprefix(_CHANGE)
            if "=" not in change:
                value = next(rest, "--")
                if value.startswith("--"):
                    self.error(f"argument {argument}: expected one argument")
                change = f"{change}={value}"
            yield f"--set={change}"


def add_quiet_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --quiet, which `cli.main` reads, to a command that shows progress."""
    parser.add_argument(
        "--quiet", action="store_true", help="show no progress; warnings and results only"
    )


def track_numbers(text: str) -> tuple[int, ...]:
    """The type of arguments that are numbers of people.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"wanted numbers such as 1,3, got {text!r:.50}")
    return tuple(int(number) for number in text.split(","))


def finite(text: str) -> float:
    """The type of arguments that are numbers: neither NaN nor infinite.

    Raises:
        argparse.ArgumentTypeError: another text.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r:.50}")
    return number


def positive(text: str) -> int:
    """The type of arguments that are whole numbers above 0.

    Raises:
        argparse.ArgumentTypeError: another text.
    """
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r:.50}")
    return number


def size_hw(text: str) -> tuple[int, int]:
    """The type of arguments that are sizes, HEIGHTxWIDTH in pixels.

    Raises:
        argparse.ArgumentTypeError: another text.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"HEIGHTxWIDTH wanted, such as 800x1344, got {text!r:.30}")
    return int(sides[0]), int(sides[1])


def folder_or_address(text: str) -> "pathlib.Path | str":
    """The type of arguments that name a local path or an address of a store, gs://bucket/folder."""
    return text if addresses.is_store(text) else pathlib.Path(text)


def run_resumable(name: str, run: Callable[[], int]) -> int:
    """Runs a command whose work is kept when it is stopped, by Ctrl-C or SIGTERM.

    Args:
        name: of the command, without `ktn`.
        run: its work.

    Returns:
        Its exit code; `EXIT_INTERRUPTED` if it was stopped.
    """
    try:
        return run()
    except KeyboardInterrupt:
        print(f"ktn {name}: stopped; the same command resumes it", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED


def fetch_inputs(arguments: argparse.Namespace, *names: str) -> None:
    """Puts local copies in place of the addresses of stores that inputs are named by.

    Args:
        arguments: parsed.
        names: of those that may be addresses, or lists that may hold some.

    Raises:
        OSError: nothing is at an address, or it cannot be read.
    """
    from ktn_jax.runtime import stores

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(one) for one in value]
        is_address = isinstance(value, str) and stores.is_address(value)
        return stores.fetched(value) if is_address else value

    for name in names:
        setattr(arguments, name, local(getattr(arguments, name)))


def refuse_addresses(arguments: argparse.Namespace) -> None:
    """Refuses addresses of stores in arguments that take local paths only.

    Raises:
        ValueError: there is one; it would become a local folder of a strange name.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, pathlib.Path):
            try:
                addresses.local_path(value)
            except ValueError as error:
                raise ValueError(f"--{name.replace('_', '-')}: {error}") from error


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config and --set, which `named.load_config` takes."""
    _add_config_argument(parser, required)
    _add_set_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `load_model_config` and `load_model_variables` read."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a released model (`ktn models`), whose weights are fetched the first time",
    )
    _add_config_argument(model, required=False)
    _add_set_argument(parser)
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        help=".pkl, .pth, .safetensors file, orbax folder or work folder of `ktn train`; or an "
        "address of one, gs://bucket/run",
    )
    weights.add_argument(
        "--random-weights",
        action="store_true",
        help="untrained weights, to measure speed and memory",
    )
    add_verify_argument(parser)


def load_model_config(arguments: argparse.Namespace, default: str = "") -> "ConfigDict":
    """Loads the configuration that the arguments of `add_model_arguments` name, and checks it.

    Args:
        arguments: parsed.
        default: what to load where they name neither a configuration nor weights. Of weights
            alone the released model is recognised that has such parameters.

    Raises:
        ValueError: an unknown name, or a configuration that is not supported.
    """
    from ktn_jax.checkpoints import named, zoo

    if arguments.model is not None:
        zoo.find(arguments.model)  # a model has a better message than a configuration
    name = arguments.model or arguments.config
    if name is None and arguments.weights is not None:
        name = named.recognise_weights(arguments.weights)
    return named.load_config(name or default, arguments.changes)


def load_model_variables(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    default: str = "",
    programs: "ProgramStore | None" = None,
) -> Mapping[str, Any]:
    """Reads the weights that the arguments of `add_model_arguments` name.

    Args:
        arguments: parsed.
        config: from `load_model_config`.
        default: the model where they name none.
        programs: see `weights.load`.

    Raises:
        ValueError: no weights are named, or they do not fit.
        OSError: they are not there or could not be fetched.
    """
    from ktn_jax.checkpoints import named, weights

    if arguments.random_weights:
        return weights.initialise(config, seed=0)
    path = arguments.weights
    if path is None:
        path = named.find_weights(arguments.model or arguments.config or default)
    return weights.load(config, path, verify=arguments.verify, programs=programs)


def load_predictor(
    arguments: argparse.Namespace, config: "ConfigDict", default: str = ""
) -> "Predictor":
    """Loads the predictor of the weights that the arguments of `add_model_arguments` name.

    For the arguments and the errors see `load_model_variables`.
    """
    return _load_predictor(arguments, config, default, describe=lambda _: None)[0]


def load_described_predictor(
    arguments: argparse.Namespace, config: "ConfigDict", default: str = ""
) -> "tuple[Predictor, dict[str, Any]]":
    """Loads a predictor as `load_predictor` does, and describes it for the results of a run.

    Returns:
        The predictor, and `dataset.describe_run` of its configuration and weights.
    """
    from ktn_jax.inference import dataset

    def describe(variables: Mapping[str, Any]) -> dict[str, Any]:
        return dataset.describe_run(config, variables, data=b"")

    return _load_predictor(arguments, config, default, describe)


def _load_predictor(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    default: str,
    describe: Callable[[Mapping[str, Any]], _Description],
) -> "tuple[Predictor, _Description]":
    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.inference.stages import Stages
    from ktn_jax.runtime.program_store import ProgramStore

    programs = ProgramStore()
    variables = load_model_variables(arguments, config, default, programs)
    described = describe(variables)
    # What inference does not need of the weights is freed at the return.
    return Predictor(Stages(config, variables, programs)), described


def _add_config_argument(parser: "argparse._ActionsContainer", required: bool) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="NAME[:VARIANT]",
        help="a configuration of the package, such as ktn:r50, a yaml file of detectron2, or a "
        "Python file of your own, own.py:VARIANT, which is run",
    )


def _add_set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the configuration; may be repeated, and the last value of a key "
        "wins. --config.KEY=VALUE does the same. Keys in capitals are detectron2's, for its yaml "
        "files and models",
    )


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --no-verify, for commands that read checkpoints of our own."""
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="read checkpoints without comparing their files with the checksums",
    )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `join_processes` reads."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")
    group.add_argument(
        "--cluster",
        nargs="?",
        const=_RECOGNISED,
        metavar="KIND",
        help="take these three from the environment: of SLURM, Open MPI, TPU VMs, GKE, Kubernetes, "
        "which is recognised, or KIND: slurm, ompi, mpi4py, gcetpu or gketpu",
    )


def join_processes(arguments: argparse.Namespace) -> "Processes":
    """Joins the processes that the arguments name, before anything else touches JAX.

    Returns:
        The processes of the run: only this one where the arguments name no others.

    Raises:
        ValueError: arguments are missing, or the processes cannot be joined.
    """
    from ktn_jax.runtime.processes import Processes

    if arguments.cluster is not None or arguments.coordinator is not None:
        from ktn_jax.training import distributed

        kinds = (None, _RECOGNISED, *distributed.CLUSTERS)
        if arguments.cluster not in kinds:
            raise ValueError(f"--cluster {arguments.cluster}: one of {', '.join(kinds[2:])}")
        distributed.join_processes(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            cluster=None if arguments.cluster == _RECOGNISED else arguments.cluster,
        )
        return distributed.this_process()
    if arguments.num_processes is not None or arguments.process_id is not None:
        raise ValueError("--num-processes and --process-id need --coordinator")
    return Processes()
