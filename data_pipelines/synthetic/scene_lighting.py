"""Light on surfaces: one sun, a sky and a ground, all drawn at random."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lighting:
    """Light that is the same all over a scene, in the camera frame.

    Attributes:
        direction: [3] unit vector towards the sun.
        sun: [3] RGB strength.
        sky: [3] RGB strength of the ambient light from above.
        ground: [3] the same from below.
    """

    direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    ground: np.ndarray

    def shade(self, albedo: np.ndarray, normals: np.ndarray, shininess: np.ndarray) -> np.ndarray:
        """Lights surface points.

        Args:
            albedo: [N, 3] RGB in [0, 1].
            normals: [N, 3] in the camera frame, of length about 1.
            shininess: [N].

        Returns:
            [N, 3] RGB, not limited to 1.
        """
        normals = normals.astype(np.float32)
        # einsum, here and for textures: BLAS would start threads for these thin products, which
        # slows down rendering on all cores and may round differently with their number.
        towards = np.einsum("nd,d->n", normals, self.direction.astype(np.float32))
        upward = (0.5 - 0.5 * normals[:, 1:2]).clip(0, 1)  # y runs down in the camera frame
        light = self.ground + upward * (self.sky - self.ground)
        light = light + np.maximum(towards, 0)[:, None] * self.sun
        # Blinn-Phong with the viewer straight ahead, which is close enough for a highlight.
        halfway = self.direction + [0, 0, -1]
        halfway = (halfway / max(np.linalg.norm(halfway), 1e-6)).astype(np.float32)
        highlight = shininess * np.maximum(np.einsum("nd,d->n", normals, halfway), 0) ** 16
        shaded: np.ndarray = albedo * light + highlight[:, None] * self.sun
        return shaded.astype(np.float32)


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """Draws a light: mostly from above and from the viewer's side, of any strength and warmth."""
    direction = np.array([rng.normal(0, 0.8), -abs(rng.normal(0.6, 0.5)), rng.normal(-0.5, 0.6)])
    direction /= max(np.linalg.norm(direction), 1e-6)
    warmth = rng.normal(0, 0.08)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    ambient = rng.uniform(0.4, 0.8)
    sun = rng.uniform(0.25, 1.0) * tint
    sky = ambient * (2 - tint)
    return Lighting(direction, sun, sky, sky * rng.uniform(0.5, 0.95))
