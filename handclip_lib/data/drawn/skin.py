"""From layers to colour: tone, mottling, light on the relief, specular shine."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from handclip_lib.data.drawn.person import SKIN_TONES, stream, trait
from handclip_lib.data.drawn.pose import Shot
from handclip_lib.data.drawn.relief import Skin, Subject
from handclip_lib.data.drawn.shape import Shape, blurred, enlarged

SUBSURFACE = (0.82, 1.05, 1.16)  # red light travels farther in skin: shadows are red


def paint(
    subject: Subject, shape: Shape, skin: Skin, shot: Shot, rng: np.random.Generator
) -> np.ndarray:
    """(h, w, 3) float32 0..1: the lit skin over the frame's box; rng is the shot's."""
    grain = rng.standard_normal(shape.height.shape, dtype=np.float32)
    pores = gaussian_filter(grain, 0.33 * subject.frame.scale)
    height = shape.height + skin.relief + 0.075 * pores
    shade, shine = light(height, subject.frame.scale, shot)
    shade = shade * _occlusion(shape.height + skin.relief, subject.frame.scale)
    colour = _albedo(subject, shape, skin)
    logs = np.log(np.maximum(shade, 0.05))
    out = np.empty((*shade.shape, 3), np.float32)
    for c in range(3):
        out[..., c] = colour[..., c] * np.exp(SUBSURFACE[c] * logs)
    out += (0.10 * shine + 0.010 * pores)[..., None]
    return out


def light(height: np.ndarray, scale: float, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse shade (about 0.3..1.1) and shine (0..1) of a height field in mm at px per mm."""
    gy, gx = np.gradient(height * np.float32(scale))
    slope = np.sqrt(gx * gx + gy * gy)
    soften = 1 / (1 + 0.35 * slope)
    gx, gy = gx * soften, gy * soften
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    lx, ly, lz = (np.float32(value) for value in shot.light)
    lit = np.maximum((lz - gx * lx - gy * ly) * nz, 0)
    shade = shot.ambient + (1.08 - shot.ambient) * lit / lz + 0.06 * (1 - nz)
    hx, hy, hz = lx / 2, ly / 2, (lz + 1) / 2
    norm = np.float32(1 / np.sqrt(hx * hx + hy * hy + hz * hz))
    half = np.maximum((hz - gx * hx - gy * hy) * nz * norm, 0)
    return shade.astype(np.float32), (half**24).astype(np.float32)


def _occlusion(height: np.ndarray, scale: float) -> np.ndarray:
    """Less light where the surroundings stand higher: between fingers, in deep folds."""
    wide = blurred(height, 3.5 * scale)
    return np.clip(1 - 0.075 * np.maximum(wide - height, 0), 0.3, 1)


def _albedo(subject: Subject, shape: Shape, skin: Skin) -> np.ndarray:
    """(h, w, 3) float32 0..1: tone, flush, mottling, lines, veins and moles."""
    person = subject.person
    back, palm = (np.array(tone) / 255 for tone in SKIN_TONES[person.skin_color])
    z = np.clip(trait(person, "tone", subject.side, 4, 0.97), -2, 2)
    habit = 1 + np.array([0.011, 0.015, 0.02]) * (0.8 * z[0] + 0.5 * z[1:])
    if subject.surface == "dorsal":
        tone = [np.full_like(shape.height, value) for value in back * habit]
        strength = {"dark": 0.3, "medium": 0.25, "fair": 0.17}.get(person.skin_color, 0.12)
        tint = (strength * 0.75, strength * 1.15, strength * 1.2)
    else:
        _, y = subject.frame.grid()
        arm = np.clip((10 - y) / 30, 0, 0.7) * np.float32(0.65)
        tone = [np.float32(p) + arm * np.float32(b - p) for b, p in zip(back, palm, strict=True)]
        tone = [one * np.float32(factor) for one, factor in zip(tone, habit, strict=True)]
        tint = (0.01, 0.125, 0.095)
    mottled = person.mottling * {"very fair": 0.6, "fair": 0.75}.get(person.skin_color, 1.0)
    blotch, fine = (mottled * plane for plane in _mottling(subject, shape))
    deep = 0.36 if subject.surface == "palmar" else 0.46
    out = np.empty((*shape.height.shape, 3), np.float32)
    for c in range(3):
        plane = tone[c] * (1 - tint[c] * skin.flush)
        plane = plane * (1 + (0.013, 0.026, 0.026)[c] * blotch + (0.016, 0.023, 0.024)[c] * fine)
        plane = plane * (1 - (0.72, 1.06, 1.1)[c] * deep * skin.lines)
        plane = plane * (1 - (0.22, 0.11, 0.06)[c] * skin.veins)
        plane = plane * (1 - (0.36, 0.5, 0.52)[c] * shape.seam)
        out[..., c] = plane * (1 - (0.55, 0.68, 0.72)[c] * skin.spots)
    return out


def _mottling(subject: Subject, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Blotches and finer specks that stay where they are on the skin, (h, w) each, sd about 1."""
    person, side = subject.person, subject.side
    rng = stream(person.seed, "mottling", subject.surface, side)
    texture = gaussian_filter(rng.standard_normal((2, 64, 64)), (0, 0.8, 0.8), mode="wrap")
    texture = (texture / texture.std()).astype(np.float32)
    x, y = (plane[1::2, 1::2] for plane in subject.frame.grid())
    owner, s = shape.owner[1::2, 1::2], shape.along[1::2, 1::2]
    across = shape.across[1::2, 1::2] * 9
    u = np.where(owner > 0, across + 40.0 * owner, x) + 400
    v = np.where(owner > 0, s + 90, y) + 400
    out = []
    for plane, cell in zip(texture, (4.2, 1.6), strict=True):
        coarse = map_coordinates(plane, [v / cell, u / cell], order=1, mode="grid-wrap")
        out.append(enlarged(coarse, 2, shape.height.shape))
    return out[0], out[1]
