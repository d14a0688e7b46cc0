"""Mirrored views of a photo: boxes, and charts turned back."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.symmetry import UVSymmetry, mirror_by_tables, table_cells
from ktn_jax.results.detection_checks import CONFIDENCES
from ktn_jax.structures import DensePoseOutputs, EmbeddingOutputs

# The outputs that are mirrored and averaged; others are dropped.
_AVERAGED = ("coarse_segm", "fine_segm", "u", "v", "keypoints", *CONFIDENCES)


def mirror_outputs(
    outputs: DensePoseOutputs[np.ndarray], symmetry: UVSymmetry
) -> DensePoseOutputs[np.ndarray]:
    """Converts the charts of mirrored people to charts of the people.

    Args:
        outputs: NumPy maps [N, S, S, C].
        symmetry: mirrored U and V. They are looked up channel by channel, as if every pixel were on
            the patch of the channel.

    Returns:
        The same, columns reversed, left and right swapped in coarse and fine parts, U, V,
        keypoints and confidences of patches; the directions of kappa are mirrored as U and V are.
        Two coarse channels, person and background, have no sides. Outputs that are not averaged by
        test-time augmentation become None.
    """
    maps: DensePoseOutputs[np.ndarray] = jax.tree.map(
        lambda x: x[:, :, ::-1], keep_averaged(outputs)
    )
    patch = np.broadcast_to(np.arange(maps.u.shape[-1]), maps.u.shape)
    _, u, v = mirror_by_tables(symmetry, patch, maps.u, maps.v)
    coarse = maps.coarse_segm
    if coarse.shape[-1] > 2:
        coarse = coarse[..., parts.COARSE_FLIP]
    keypoints, sigma = maps.keypoints, maps.sigma
    kappa_u, kappa_v = maps.kappa_u, maps.kappa_v
    if kappa_u is not None and kappa_v is not None:
        kappa = np.stack([kappa_u, kappa_v], axis=-1)
        kappa = np.einsum("pij,...pj->...pi", mirror_slopes(symmetry), kappa).astype(np.float32)
        kappa_u, kappa_v = np.moveaxis(kappa[..., parts.PATCH_FLIP, :], -1, 0)
    return dataclasses.replace(
        maps,
        sigma=None if sigma is None else sigma[..., parts.PATCH_FLIP],
        kappa_u=kappa_u,
        kappa_v=kappa_v,
        coarse_segm=coarse,
        fine_segm=maps.fine_segm[..., parts.PATCH_FLIP],
        u=u[..., parts.PATCH_FLIP].astype(np.float32),
        v=v[..., parts.PATCH_FLIP].astype(np.float32),
        keypoints=None if keypoints is None else keypoints[..., parts.KEYPOINT_FLIP],
    )


def mirror_slopes(symmetry: UVSymmetry) -> np.ndarray:
    """How a small step (du, dv) on each patch is mirrored.

    Args:
        symmetry: mirrored U and V.

    Returns:
        [25, 2, 2], rotations or reflections, so that lengths are kept: for each patch that which is
        nearest to the plane fitted to its tables. The identity for background.
    """
    _, u, v = table_cells()
    steps = np.stack([u, v], axis=-1).reshape(parts.NUM_PATCHES, -1, 2)
    steps -= steps.mean(1, keepdims=True)
    mirrored = np.stack([symmetry.u, symmetry.v], axis=-1).reshape(steps.shape)
    # Least squares: U and V of the cells are a grid, so their covariance is a multiple of 1.
    slopes = np.einsum("pni,pnj->pij", mirrored, steps) / (steps[..., 0] ** 2).sum(1)[:, None, None]
    left, _, right = np.linalg.svd(slopes)
    return np.concatenate([np.eye(2)[None], left @ right])


def keep_averaged(outputs: DensePoseOutputs[np.ndarray]) -> DensePoseOutputs[np.ndarray]:
    """Drops the outputs that test-time augmentation does not average."""
    names = [field.name for field in dataclasses.fields(outputs)]
    dropped: dict[str, Any] = {name: None for name in names if name not in _AVERAGED}
    return dataclasses.replace(outputs, **dropped)


def doubled_embeddings(
    maps: EmbeddingOutputs[np.ndarray], share: np.float32, is_mirrored: bool
) -> EmbeddingOutputs[np.ndarray]:
    """Puts embeddings into the first half of twice as many channels, of mirrored views the last."""
    halves = [share * maps.embedding, np.zeros_like(maps.embedding)]
    return dataclasses.replace(
        maps, embedding=np.concatenate(halves[::-1] if is_mirrored else halves, axis=-1)
    )


def mirror_boxes(boxes_xyxy: np.ndarray, width: int) -> np.ndarray:
    """Mirrors boxes [..., 4] in an image of this width."""
    x0, y0, x1, y1 = np.moveaxis(boxes_xyxy, -1, 0)
    return np.stack([width - x1, y0, width - x0, y1], axis=-1).astype(np.float32)
