"""Dresses people: skin, hair, faces and clothes, painted on the rest pose."""

import dataclasses

import numpy as np

from ktn_jax.body import parts
from ktn_jax.data_pipelines.synthetic import textures
from ktn_jax.data_pipelines.synthetic.textures import Landmarks, Material

_SKIN, _TOP, _BOTTOM, _SHOES, _SOCKS, _HAIR, _HAT, _GLOVES = range(8)
_EYE_WHITE = np.array([0.85, 0.84, 0.82], np.float32)


def _patches(*coarse_suffixes: str) -> np.ndarray:
    """[25] bool: patches of the coarse parts that end so, on either side."""
    names = [parts.COARSE_NAMES[coarse] for coarse in parts.FINE_TO_COARSE]
    return np.array([name.endswith(coarse_suffixes) for name in names])


_IS_TORSO, _IS_HEAD = _patches("torso"), _patches("head")
_IS_ARM, _IS_LEG = _patches("upper_arm", "lower_arm"), _patches("upper_leg", "lower_leg")
_IS_HAND, _IS_FOOT = _patches("hand"), _patches("foot")


@dataclasses.dataclass(frozen=True)
class Outfit:
    """What one person wears.

    Attributes:
        materials: [8] skin, top, bottom, shoes, socks, hair, hat, gloves.
        sleeve: How far down the arm the top reaches: 0 shoulder, 1 elbow, 2 wrist.
        leg: How far down the leg the bottom reaches: 0 hip, 1 knee, 2 ankle.
        sock: From where on the leg socks are seen.
        waist: Height of the waist between the hips (0) and the shoulders (1).
        neckline: Radius of bare skin below the neck in metres.
        hem: Colour change at the hem of sleeves and legs: width along the limb, 0 for none.
        hairline: Height of the hairline at the forehead, of the head: 0 chin, 1 crown.
        hair_length: Height at the back of the head down to which hair hangs.
        hat_brim: Height from which the hat covers the head; above 1 without a hat.
        has_beard: Whether hair also covers chin and cheeks.
        iris: [3] colour of the eyes.
        lips: [3] colour of the mouth.
    """

    materials: tuple[Material, ...]
    sleeve: float
    leg: float
    sock: float
    waist: float
    neckline: float
    hem: float
    hairline: float
    hair_length: float
    hat_brim: float
    has_beard: bool
    iris: np.ndarray
    lips: np.ndarray


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Draws skin, hair and clothes of one person."""
    skin_colour = textures.sample_skin(rng)
    skin = textures.sample_material(rng, skin_colour, "plain")
    skin = dataclasses.replace(skin, unevenness=rng.uniform(0.02, 0.08), shininess=0.1)
    hair_tone = textures.HAIR_TONES[rng.integers(len(textures.HAIR_TONES))]
    hair_colour = (hair_tone * rng.uniform(0.7, 1.2)).clip(0.02, 1)
    if rng.random() < 0.05:
        hair_colour = textures.sample_colour(rng)
    hair = textures.sample_material(rng, hair_colour, "plain")
    hair = dataclasses.replace(hair, unevenness=rng.uniform(0.15, 0.4), axes=hair.axes * 2)
    top, bottom, shoes, socks, hat, gloves = (textures.sample_material(rng) for _ in range(6))
    kind = rng.random()
    if kind < 0.12:  # dress or overall
        bottom = top
    elif kind < 0.15:
        top = skin
    if rng.random() < 0.6:  # plain trousers are the rule
        bottom = dataclasses.replace(bottom, pattern="plain")
    if rng.random() < 0.12:
        shoes = skin
    long_leg = rng.random() < 0.6
    return Outfit(
        materials=(skin, top, bottom, shoes, socks, hair, hat, gloves),
        sleeve=float(
            rng.choice([0.0, rng.uniform(0.3, 0.95), rng.uniform(1.7, 2.0)], p=[0.15, 0.45, 0.4])
        ),
        leg=rng.uniform(1.75, 2.2) if long_leg else rng.uniform(0.25, 1.25),
        sock=rng.uniform(1.4, 1.95) if rng.random() < 0.5 else 9.0,
        waist=rng.uniform(0.02, 0.35),
        neckline=rng.uniform(0.05, 0.125),
        hem=rng.uniform(0.05, 0.12) if rng.random() < 0.3 else 0.0,
        hairline=rng.uniform(0.72, 0.9) if rng.random() < 0.93 else 2.0,
        hair_length=rng.uniform(-0.1, 0.5),
        hat_brim=rng.uniform(0.68, 0.8) if rng.random() < 0.15 else 9.0,
        has_beard=bool(rng.random() < 0.15),
        iris=np.array([rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.25), rng.uniform(0.05, 0.35)]),
        lips=(skin_colour * [0.85, 0.55, 0.55]).clip(0, 1),
    )


def _head_slots(outfit: Outfit, landmarks: Landmarks, points: np.ndarray) -> np.ndarray:
    """Chooses skin, hair or hat for points [N, 3] of the head."""
    size = landmarks.head_high - landmarks.head_low
    centre = (landmarks.head_high + landmarks.head_low) / 2
    height = (points[:, 1] - landmarks.head_low[1]) / size[1]
    forward = (points[:, 2] - centre[2]) / size[2]  # -0.5 back of the head, 0.5 tip of the nose
    # The line falls from the forehead to the nape, steeply past the ears.
    line = np.interp(forward, [-0.25, 0.05, 0.35], [outfit.hair_length, 0.55, outfit.hairline])
    is_hair = (height > line) if outfit.hairline <= 1 else np.zeros(len(points), bool)
    if outfit.has_beard:
        mouth = (landmarks.named("nose")[1] - landmarks.head_low[1]) / size[1] - 0.06
        is_hair |= (height < mouth) & (forward > 0.0) & (height > 0.08)
    slots = np.where(is_hair, _HAIR, _SKIN)
    return np.where(height > outfit.hat_brim, _HAT, slots)


def _paint_face(
    albedo: np.ndarray, outfit: Outfit, landmarks: Landmarks, points: np.ndarray
) -> np.ndarray:
    """Paints eyes, brows and mouth over albedo [N, 3] of the head's points [N, 3]."""
    nose = landmarks.named("nose")
    is_front = points[:, 2] > (landmarks.head_low[2] + landmarks.head_high[2]) / 2
    eye = landmarks.named("left_eye")
    beside = np.abs(points[:, 0]) - np.abs(eye[0])
    above = points[:, 1] - eye[1]
    is_eye = is_front & ((beside / 0.017) ** 2 + (above / 0.010) ** 2 < 1)
    is_iris = is_front & (beside**2 + above**2 < 0.008**2)
    is_brow = is_front & (np.abs(beside) < 0.022) & (np.abs(above - 0.024) < 0.005)
    below = nose[1] - 0.042 - points[:, 1]
    is_mouth = is_front & ((points[:, 0] / 0.027) ** 2 + (below / 0.009) ** 2 < 1)
    albedo = np.where(is_eye[:, None], _EYE_WHITE, albedo)
    albedo = np.where(is_iris[:, None], outfit.iris, albedo)
    albedo = np.where(is_brow[:, None], outfit.materials[_HAIR].colours[0] * 0.6, albedo)
    return np.where(is_mouth[:, None], outfit.lips, albedo)


def _choose_slots(
    outfit: Outfit, landmarks: Landmarks, patch: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the material of each point: slots [N], and is_hem [N] bool."""
    slots = np.zeros(len(points), np.int64)
    is_hem = np.zeros(len(points), bool)
    hip, shoulder = landmarks.named("left_hip")[1], landmarks.named("left_shoulder")[1]

    on_torso = np.flatnonzero(_IS_TORSO[patch])
    height = (points[on_torso, 1] - hip) / (shoulder - hip)
    slots[on_torso] = np.where(height > outfit.waist, _TOP, _BOTTOM)
    neck = np.array([0, landmarks.head_low[1], landmarks.head_high[2]])
    bare = np.linalg.norm((points[on_torso] - neck) * [1, 0.8, 0.5], axis=1) < outfit.neckline
    slots[on_torso[bare]] = _SKIN

    on_arm = np.flatnonzero(_IS_ARM[patch])
    position = landmarks.limb_position(points[on_arm], ("shoulder", "elbow", "wrist"))
    slots[on_arm] = np.where(position < outfit.sleeve, _TOP, _SKIN)
    is_hem[on_arm] = np.abs(position - outfit.sleeve + outfit.hem / 2) < outfit.hem / 2

    on_leg = np.flatnonzero(_IS_LEG[patch])
    position = landmarks.limb_position(points[on_leg], ("hip", "knee", "ankle"))
    slots[on_leg] = np.where(position > outfit.sock, _SOCKS, _SKIN)
    slots[on_leg[position < outfit.leg]] = _BOTTOM
    is_hem[on_leg] = np.abs(position - outfit.leg + outfit.hem / 2) < outfit.hem / 2

    slots[_IS_HAND[patch]] = _GLOVES if outfit.sleeve > 1.97 else _SKIN
    slots[_IS_FOOT[patch]] = _SHOES
    on_head = np.flatnonzero(_IS_HEAD[patch])
    slots[on_head] = _head_slots(outfit, landmarks, points[on_head])
    return slots, is_hem


def paint_person(
    outfit: Outfit, landmarks: Landmarks, patch: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colours points of one person.

    Args:
        outfit: What the person wears.
        landmarks: Of the rest pose.
        patch: [N] in 1..24.
        points: [N, 3] on the rest pose, metres.

    Returns:
        albedo [N, 3] RGB in [0, 1], and shininess [N].
    """
    slots, is_hem = _choose_slots(outfit, landmarks, patch, points)
    albedo = np.empty((len(points), 3), np.float32)
    shininess = np.empty(len(points), np.float32)
    for slot in np.unique(slots):
        chosen = np.flatnonzero(slots == slot)
        albedo[chosen] = outfit.materials[slot].colour(points[chosen])
        shininess[chosen] = outfit.materials[slot].shininess
    albedo[is_hem] *= 0.6
    on_head = np.flatnonzero(_IS_HEAD[patch] & (slots == _SKIN))
    albedo[on_head] = _paint_face(albedo[on_head], outfit, landmarks, points[on_head])
    return albedo.clip(0, 1), shininess
