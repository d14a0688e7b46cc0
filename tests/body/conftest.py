"""Meshes with known answers, the project's body, and the published charts where they are."""

import numpy as np
import pytest

from ktn_jax.body import loading
from ktn_jax.body.procedural import assembly


@pytest.fixture(scope="session")
def body():
    return assembly.make_body()


@pytest.fixture(scope="session")
def real_template(real_dir):
    """The published charts on a body of their topology, in metres."""
    bodies = np.load(real_dir / "geometry" / "bodies_smpl_topology.npz")
    return loading.load_template(
        real_dir / "geometry" / "UV_Processed.mat", bodies["rest_cm"], metres_per_unit=0.01
    )


@pytest.fixture(scope="session")
def make_cylinder():
    """Builds an open tube, y up, and returns its vertices and faces, seen from outside."""
    return _make_cylinder


@pytest.fixture(scope="session")
def signed_uv_area():
    """Computes the [F] area of every face in UV, positive where counter-clockwise there."""
    return _signed_uv_area


def _make_cylinder(around=64, along=41, radius=0.5, length=2.0):
    """An open tube of quads split into triangles: vertices [along * around, 3], row by row."""
    angle = 2 * np.pi * np.arange(around) / around
    height = np.linspace(0, length, along)
    vertices = np.stack(
        [
            np.tile(radius * np.cos(angle), along),
            np.repeat(height, around),
            np.tile(radius * np.sin(angle), along),
        ],
        axis=-1,
    )
    row, column = np.meshgrid(np.arange(along - 1), np.arange(around), indexing="ij")
    a = (row * around + column).ravel()
    b = (row * around + (column + 1) % around).ravel()
    faces = np.concatenate(
        [np.stack([a, a + around, b], 1), np.stack([b, a + around, b + around], 1)]
    )
    return vertices, faces


def _signed_uv_area(template):
    corners = template.chart_uv[template.chart_faces]
    edges = corners[:, 1:] - corners[:, :1]
    return (edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2
