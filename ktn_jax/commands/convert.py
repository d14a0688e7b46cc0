"""convert weights between PyTorch, detectron2, safetensors and orbax, in any direction"""

import argparse

EXAMPLES = """
  ktn convert model_final.pkl ktn_r50.safetensors
  ktn convert ktn_r50.safetensors R.pth
  ktn convert R.pth weights/            # a folder: an orbax checkpoint
  ktn convert WORKDIR out.safetensors   # the last checkpoint of `ktn train`
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument(
        "source",
        help=".pth, .pkl, .safetensors or .npz file, orbax folder, or work folder of `ktn train`",
    )
    parser.add_argument("target", help=".pth, .pkl or .safetensors file, or a new folder (orbax)")
    commands.add_verify_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads, translates and writes the weights; unknown names are an error."""
    from ktn_jax.checkpoints import weights

    count = weights.convert(arguments.source, arguments.target, verify=arguments.verify)
    print(f"{count:,} parameters written to {arguments.target}")  # noqa: T201
    return 0
