"""Vertices of a person's pixels as a results file holds them: a grey picture of 16 bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.png_text import decode_grey, encode_png

MOST_VERTICES = 65_535  # numbers of 16 bits but 0, which is background


def encode_vertices(vertices: np.ndarray, mesh: str) -> dict[str, Any]:
    """Encodes the vertices of a person for a results file.

    Args:
        vertices: int32 [h, w], -1 beside the person.
        mesh: whose vertices they are.

    Returns:
        {"mesh": name, "shape": [h, w], "data": base64 of a grey PNG of 16 bits}, 0 beside the
        person, else the vertex plus 1.

    Raises:
        ResultsError: a vertex of `MOST_VERTICES` or more.
    """
    if vertices.max(initial=0) >= MOST_VERTICES:
        raise ResultsError(
            f"vertex {vertices.max()} of {mesh}: results files hold meshes of up to "
            f"{MOST_VERTICES} vertices"
        )
    data = encode_png((vertices + 1).astype(np.uint16))
    return {"mesh": mesh, "shape": list(vertices.shape), "data": data}


def decode_vertices(where: str, encoded: Mapping[str, Any]) -> np.ndarray:
    """Decodes the vertices of a record that `check_record` gave.

    Args:
        where: names the record in messages.
        encoded: see `encode_vertices`.

    Returns:
        int32 [h, w], -1 beside the person.

    Raises:
        ResultsError: the picture is damaged, or not grey with 16 bits and of the given shape.
    """
    numbers = decode_grey(f"{where}: vertices", encoded["data"], tuple(encoded["shape"]))
    return numbers.astype(np.int32) - 1
