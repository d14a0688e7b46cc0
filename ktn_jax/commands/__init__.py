"""The subcommands of `ktn`: each parses its arguments and calls the library.

A module here has a one-line docstring (the help), `EXAMPLES`, `add_arguments(parser)` and
`run(arguments) -> int`, the exit code. Nothing heavy is imported before `run`.
"""

import argparse


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
