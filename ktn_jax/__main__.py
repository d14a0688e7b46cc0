"""`python -m ktn_jax` is `ktn`."""

import sys

from ktn_jax import cli

# Spawned worker processes import this file under another name.
if __name__ == "__main__":
    sys.exit(cli.main())
