"""The body surface and its 24 charts: between (I, U, V), points of the surface and vertices."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from ktn_jax.body import chart_index, parts, symmetry


class SurfacePoints(NamedTuple):
    """Points of a triangle mesh.

    Attributes:
        face: [N] int32.
        barycentric: [N, 3] float64 weights of the face's corners, non-negative, sum 1.
        uv_distance: [N] float64, how far outside of its chart the asked (u, v) lay; 0 inside.
    """

    face: np.ndarray
    barycentric: np.ndarray
    uv_distance: np.ndarray


class IUV(NamedTuple):
    """Chart coordinates: patch [N] int32 in 1..24, u and v [N] float64 in [0, 1]."""

    patch: np.ndarray
    u: np.ndarray
    v: np.ndarray


@dataclasses.dataclass(frozen=True)
class Template:
    """A body surface cut into 24 flat charts.

    A vertex on a seam has one chart vertex per chart island that it touches, so there are more
    chart vertices than vertices.

    Attributes:
        vertices: [V, 3] float64 rest pose in metres, y up, x to the person's left, z forward.
        chart_uv: [C, 2] float64 in [0, 1].
        chart_to_vertex: [C] int32.
        chart_faces: [F, 3] int32 into chart vertices, counter-clockwise seen from outside.
        face_patch: [F] int32 in 1..24.
        vertex_mirror: [V] int32, the vertex that takes each one's place in a mirror; None where
            the surface has no left-right symmetric mesh.
        uv_symmetry: tables of the mirrored U and V, or None to compute them from the mesh.
        mirrors_by_tables: `mirror_iuv` reads `uv_symmetry` although the mesh is symmetric, so that
            it agrees with the flip of annotations to the last bit.
    """

    vertices: np.ndarray
    chart_uv: np.ndarray
    chart_to_vertex: np.ndarray
    chart_faces: np.ndarray
    face_patch: np.ndarray
    vertex_mirror: np.ndarray | None = None
    uv_symmetry: symmetry.UVSymmetry | None = None
    mirrors_by_tables: bool = False

    def __post_init__(self) -> None:
        for name, dtype in _FIELD_DTYPES.items():
            array = np.asarray(getattr(self, name), dtype)
            object.__setattr__(self, name, array)
        num_vertices, num_chart = len(self.vertices), len(self.chart_uv)
        _check_range("chart_to_vertex", self.chart_to_vertex, 0, num_vertices - 1)
        _check_range("chart_faces", self.chart_faces, 0, num_chart - 1)
        _check_range("face_patch", self.face_patch, 1, parts.NUM_PATCHES)
        _check_range("chart_uv", self.chart_uv, 0, 1)
        if len(self.chart_to_vertex) != num_chart or len(self.face_patch) != len(self.chart_faces):
            raise ValueError(
                f"{len(self.chart_to_vertex)} chart_to_vertex for {num_chart} chart_uv, "
                f"{len(self.face_patch)} face_patch for {len(self.chart_faces)} chart_faces"
            )
        if len(np.unique(self.face_patch)) != parts.NUM_PATCHES:
            raise ValueError("face_patch must name every patch 1..24")

    @functools.cached_property
    def faces(self) -> np.ndarray:
        """[F, 3] int32 into vertices, in the order of chart_faces."""
        corners: np.ndarray = self.chart_to_vertex[self.chart_faces]
        return corners

    @functools.cached_property
    def chart_patch(self) -> np.ndarray:
        """[C] int32 patch of each chart vertex."""
        patch = np.zeros(len(self.chart_uv), np.int32)
        patch[self.chart_faces] = self.face_patch[:, None]
        return patch

    @functools.cached_property
    def chart_mirror(self) -> np.ndarray:
        """[C] int32 the chart vertex that takes each one's place in a mirror.

        Raises:
            ValueError: the mesh has no left-right symmetry.
        """
        if self.vertex_mirror is None:
            raise ValueError("this template has no vertex_mirror: its mesh is not symmetric")
        return symmetry.mirror_chart_vertices(
            self.chart_to_vertex, self.chart_faces, self.face_patch, self.vertex_mirror
        )

    @functools.cached_property
    def uv_symmetry_tables(self) -> symmetry.UVSymmetry:
        """The given tables of mirrored U and V, or those of the mesh's own symmetry.

        Raises:
            ValueError: there are neither tables nor a symmetric mesh.
        """
        if self.uv_symmetry is not None:
            return self.uv_symmetry
        if self.vertex_mirror is None:
            raise ValueError(
                "this template has neither symmetry tables nor a symmetric mesh: load it with "
                "UV_symmetry_transforms.mat, or with a body in a symmetric rest pose"
            )
        return symmetry.uv_symmetry_tables(self.mirror_iuv)

    @functools.cached_property
    def _chart_index(self) -> chart_index.ChartIndex:
        return chart_index.ChartIndex(self.chart_uv, self.chart_faces, self.face_patch)

    def iuv_to_surface(self, patch: np.ndarray, u: np.ndarray, v: np.ndarray) -> SurfacePoints:
        """Finds the surface point of chart coordinates, the nearest in UV where none is there.

        Args:
            patch: [N] in 1..24.
            u: [N].
            v: [N].

        Returns:
            The points. Where charts overlap themselves, the face with the lowest index.

        Raises:
            ValueError: a patch outside 1..24, or a u or v that is not finite.
        """
        return SurfacePoints(*self._chart_index.locate(patch, np.stack([u, v], axis=-1)))

    def surface_to_point(
        self, face: np.ndarray, barycentric: np.ndarray, vertices: np.ndarray | None = None
    ) -> np.ndarray:
        """Computes [N, 3] positions on the rest surface, or on `vertices` [V, 3] if given."""
        vertices = self.vertices if vertices is None else vertices
        points: np.ndarray = np.einsum("nk,nkd->nd", barycentric, vertices[self.faces[face]])
        return points

    def surface_to_iuv(self, face: np.ndarray, barycentric: np.ndarray) -> IUV:
        """Computes the chart coordinates of surface points; the inverse of `iuv_to_surface`."""
        uv = np.einsum("nk,nkd->nd", barycentric, self.chart_uv[self.chart_faces[face]])
        return IUV(self.face_patch[face], uv[:, 0], uv[:, 1])

    def nearest_corner(self, face: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
        """Finds the [N] vertex of each point's face that is nearest to it on the rest surface."""
        corners = self.faces[face]
        offsets = self.vertices[corners] - self.surface_to_point(face, barycentric)[:, None]
        nearest = np.square(offsets).sum(axis=-1).argmin(axis=1)
        vertices: np.ndarray = np.take_along_axis(corners, nearest[:, None], axis=1)[:, 0]
        return vertices

    def mirror_iuv(self, patch: np.ndarray, u: np.ndarray, v: np.ndarray) -> IUV:
        """Maps chart coordinates to those of the reflected surface point.

        Uses the mesh's own symmetry where it has one, which is exact, and else the tables that came
        with the charts, as the horizontal flip of annotations does.

        Raises:
            ValueError: a patch outside 1..24, or neither a symmetric mesh nor tables.
        """
        if self.mirrors_by_tables or self.vertex_mirror is None:
            return IUV(*symmetry.mirror_by_tables(self.uv_symmetry_tables, patch, u, v))
        points = self.iuv_to_surface(patch, u, v)
        corners = self.chart_mirror[self.chart_faces[points.face]]
        uv = np.einsum("nk,nkd->nd", points.barycentric, self.chart_uv[corners])
        return IUV(parts.PATCH_FLIP[np.asarray(patch)], uv[:, 0], uv[:, 1])


_FIELD_DTYPES = {
    "vertices": np.float64,
    "chart_uv": np.float64,
    "chart_to_vertex": np.int32,
    "chart_faces": np.int32,
    "face_patch": np.int32,
}


def _check_range(name: str, values: np.ndarray, low: float, high: float) -> None:
    if not values.size or not ((values >= low) & (values <= high)).all():
        span = f"{values.min()}..{values.max()}" if values.size else "nothing"
        raise ValueError(f"{name} must be in {low}..{high}, got {span}")
