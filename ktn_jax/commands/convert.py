"""convert weights between PyTorch, detectron2, safetensors and orbax, in any direction"""

import argparse

EXAMPLES = """
  ktn convert --model densepose_rcnn_R_101_FPN_DL_s1x out.safetensors
  ktn convert model_final.pkl ktn_r50.safetensors
  ktn convert densepose_r50_fpn_dl.torchscript out.safetensors
  ktn convert ktn_r50.safetensors R.pth
  ktn convert R.pth weights/            # a folder: an orbax checkpoint
  ktn convert WORKDIR out.safetensors   # the last checkpoint of `ktn train`
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument(
        "source",
        nargs="?",
        help=".pth, .pkl, .safetensors, .torchscript or .npz file, orbax folder, or work folder of "
        "`ktn train`",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="in place of a source: a released model (`ktn models`)"
    )
    parser.add_argument("target", help=".pth, .pkl or .safetensors file, or a new folder (orbax)")
    commands.add_verify_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads, translates and writes the weights; unknown names are an error."""
    from ktn_jax.checkpoints import weights, zoo

    source = arguments.source
    if (source is None) == (arguments.model is None):
        raise ValueError("give a SOURCE and a TARGET, or --model NAME and a TARGET")
    if source is None:
        source = zoo.find(arguments.model).weights()
    count = weights.convert(source, arguments.target, verify=arguments.verify)
    print(f"{count:,} parameters written to {arguments.target}")  # noqa: T201
    return 0
