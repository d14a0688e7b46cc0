"""print a configuration: every key and its value, and what differs from configs/base.py"""

import argparse
import sys

EXAMPLES = """
  ktn config --config ktn:r50
  ktn config --config ktn:r50 --diff                  # only what differs from configs/base.py
  ktn config --config ktn:r50 --config.total_steps=12 > own.py
  ktn train --config own.py --workdir W

The output is a configuration file. `configs/base.py` says what every key means.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    commands.add_config_arguments(parser)
    parser.add_argument(
        "--diff", action="store_true", help="print only what differs from configs/base.py"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the configuration as a Python file."""
    from ktn_jax.runtime import configuration

    config = configuration.load_config(arguments.config, arguments.changes)
    sys.stdout.write(configuration.write_config(config, only_changes=arguments.diff))
    return 0
