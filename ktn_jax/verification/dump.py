"""Dumps of the PyTorch original, and how one of our arrays is compared with theirs.

A dump is an .npz file with the original's configuration (`config`), weights (`state/...`), inputs
and what each stage made of them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.checkpoints import torch_names, weights
from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.runtime import npz_files

Array = jax.Array

# Fractions of the largest reference value, a stage fed the stored input.
CONVOLUTION = 1e-4
GEOMETRY = 1e-5  # pooling, interpolation, box coding
# From the image on: fractions of the reference's standard deviation, pixels, probabilities.
END_TO_END = 1e-3
BOX_PIXELS = 1e-2
SCORE = 1e-4
LABEL_FRACTION = 2e-3  # an argmax may flip where two classes tie
MASK_FRACTION = 5e-4  # of the pixels of pasted masks, where a probability is one half
UV_LEVELS = 1  # of 255: the reference truncates
NOISE_FACTOR = 10  # the reference's own noise, where it was recorded, times this is allowed


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: `error` must not exceed `limit`."""

    key: str
    shape: tuple[int, ...]
    error: float  # largest absolute difference, or a fraction of labels
    relative: float  # error over the standard deviation of the reference
    limit: float

    @property
    def is_ok(self) -> bool:
        """Whether the comparison passes; NaN does not."""
        return self.error <= self.limit


class Dump:
    """A dump, opened and checked."""

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no dump, or asks for what this project does not have.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist")
        self._file = npz_files.NpzFile(self.path)
        self.keys = set(self._file)
        if "config" not in self.keys:
            raise ValueError(f"{self.path} has no 'config': it is no dump of a model")
        try:
            self.config: ConfigDict = from_detectron2(json.loads(str(self["config"])))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        state = {key[6:]: self[key] for key in self.keys if key.startswith("state/")}
        self.variables = weights.fit(self.config, torch_names.to_flax(state), str(self.path))
        noise = self._read_noise()
        # Differences between two runs of the original: largest differences of arrays by key, and
        # relative L2 differences of gradients by parameter.
        self.noise: Mapping[str, float] = noise.get("max_abs", {})
        self.gradient_noise: Mapping[str, float] = noise.get("grad_relative_l2", {})

    def __getitem__(self, key: str) -> np.ndarray:
        """Reads an array; a KeyError names what the file lacks."""
        if key not in self.keys:
            raise KeyError(f"{self.path} has no {key!r}")
        return self._file[key]

    def under(self, prefix: str) -> list[str]:
        """Names that follow `prefix` + "/", up to the next slash, in order."""
        start = len(prefix) + 1
        names = [key[start:].split("/")[0] for key in self._file if key.startswith(prefix + "/")]
        return list(dict.fromkeys(names))

    def _read_noise(self) -> Mapping[str, Any]:
        """Reads what the noise*.json files beside the dump, if any, say about this dump."""
        case = json.loads(str(self["meta_json"])).get("case") if "meta_json" in self.keys else None
        for path in sorted(self.path.parent.glob("noise*.json")):
            noise: dict[str, dict[str, Any]] = json.loads(path.read_text())
            if case in noise:
                return noise[case]
        return {}


def compare(
    dump: Dump, key: str, actual: Any, fraction: float = CONVOLUTION, *, limit: float | None = None
) -> Row:
    """Compares an array with the stored one of that key.

    Args:
        dump: where the reference is.
        key: its name.
        actual: ours, of the same shape.
        fraction: of the largest reference value, the error allowed.
        limit: the error allowed, instead. The recorded noise of the key, NOISE_FACTOR times, is
            always allowed.

    Returns:
        A row; of infinite error where the shapes differ.

    Raises:
        KeyError: the dump lacks the key.
    """
    expected, actual = np.asarray(dump[key], np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape:
        return Row(f"{key} (ours {actual.shape})", expected.shape, np.inf, np.inf, 0.0)
    scale = float(np.abs(expected).max(initial=0))
    limit = fraction * scale if limit is None else limit
    limit = max(limit, NOISE_FACTOR * dump.noise.get(key, 0.0))
    error = float(np.abs(expected - actual).max(initial=0))
    return Row(key, expected.shape, error, error / max(float(expected.std()), 1e-12), limit)


def to_nhwc(array: np.ndarray) -> Array:
    """Moves the channels of stored maps [N, C, H, W] last."""
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def to_nchw(array: Array | np.ndarray) -> np.ndarray:
    """Moves the channels of our maps [N, H, W, C] to where stored ones have them."""
    return np.asarray(array).transpose(0, 3, 1, 2)


def format_rows(rows: list[Row]) -> str:
    """Lays rows out as a table, one line each, with a summary."""
    width = max((len(row.key) for row in rows), default=3)
    lines = [f"{'key':<{width}}  {'shape':<20} {'max error':>10} {'/ std':>10} {'limit':>10}  ok"]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        lines.append(
            f"{row.key:<{width}}  {shape:<20} {row.error:>10.2e} {row.relative:>10.2e} "
            f"{row.limit:>10.2e}  {'yes' if row.is_ok else 'NO'}"
        )
    failed = sum(not row.is_ok for row in rows)
    lines.append(f"{len(rows)} compared, {failed} out of tolerance")
    return "\n".join(lines)
