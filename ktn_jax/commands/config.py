"""print a configuration: every key and its value, and what differs from configs/base.py"""

import argparse
import sys

EXAMPLES = """
  ktn config --config ktn:r50
  ktn config --config ktn:r50 --diff                  # only what differs from configs/base.py
  ktn config --config densepose_rcnn_R_50_FPN_s1x.yaml --diff
  ktn config --config ktn:r50 --config.total_steps=12 > own.py
  ktn train --config own.py --workdir W

The output is a configuration file. `configs/base.py` and `configs/base_model.py` say what every key
means.
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
    from ktn_jax.checkpoints import named
    from ktn_jax.runtime import configuration, progress

    config = named.load_config(arguments.config, arguments.changes)
    for note in named.training_notes(arguments.config, arguments.changes):
        progress.warn(f"note: {note}")
    sys.stdout.write(configuration.write_config(config, only_changes=arguments.diff))
    return 0
