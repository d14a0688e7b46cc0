"""The studies import each other by name, as scripts of one folder do."""

import pathlib
import sys

_FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
sys.path[:0] = [str(_FOLDER), str(_FOLDER / "bench")]
