"""compare every stage of a model with a dump of the PyTorch original"""

import argparse

EXAMPLES = """
  ktn verify golden.npz
  ktn verify golden.npz --failures      # print only what is out of tolerance
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument("dump", help=".npz file with config, weights, inputs and stages")
    parser.add_argument(
        "--failures", action="store_true", help="print only rows that are out of tolerance"
    )
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; the exit code is 1 if anything is out of tolerance."""
    from ktn_jax.runtime.progress import Progress
    from ktn_jax.verification.comparison import verify
    from ktn_jax.verification.dump import Row, format_rows

    rows: list[Row] = []
    with Progress("verify", "rows") as progress:
        for row in verify(arguments.dump):
            rows.append(row)
            progress.advance()
    shown = [row for row in rows if not (arguments.failures and row.is_ok)]
    print(format_rows(shown))  # noqa: T201
    failed = sum(not row.is_ok for row in rows)
    print(f"{len(rows)} compared, {failed} out of tolerance")  # noqa: T201
    return 1 if failed or not rows else 0
