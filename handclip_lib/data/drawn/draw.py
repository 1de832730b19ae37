"""One picture: person, aspect and shot number in, a photograph of a hand out."""

import numpy as np

from handclip_lib.data.drawn.laboratory import LABORATORIES
from handclip_lib.data.drawn.nails import POLISH, add_nails
from handclip_lib.data.drawn.person import Person, hand_of, split_aspect, stream
from handclip_lib.data.drawn.pose import Shot, chains, make_shot
from handclip_lib.data.drawn.relief import Subject, layers
from handclip_lib.data.drawn.scene import compose, photograph
from handclip_lib.data.drawn.shape import Shape, build, make_frame
from handclip_lib.data.drawn.skin import paint
from handclip_lib.data.drawn.worn import add_band, add_pen, add_rings, add_sleeve


def draw_hand(
    person: Person,
    aspect: str,
    shot: int,
    *,
    accessories: bool = False,
    nail_polish: bool = False,
    irregular: bool = False,
    size: tuple[int, int] | None = None,
    laboratory: str = "white_table",
) -> np.ndarray:
    """A picture of the hand, (H, W, 3) uint8 RGB; size is (W, H), by default the laboratory's.

    aspect is dorsal_r, dorsal_l, palmar_r or palmar_l (ValueError otherwise); irregular: pen
    marks on the skin. The same person seed, aspect, shot number and laboratory give the same
    picture.
    """
    there = LABORATORIES[laboratory]
    subject, shape, pose = _laid(person, aspect, shot, accessories, size, laboratory)
    surface, frame = subject.surface, subject.frame
    rng = stream(person.seed, aspect, shot, "render")
    rgb = paint(subject, shape, layers(subject, shape), pose, rng)
    polish = int(rng.integers(len(POLISH)))
    if surface == "dorsal":
        add_nails(rgb, subject, shape, pose, polish if nail_polish else None)
    if irregular:
        add_pen(rgb, subject, rng)
    add_rings(rgb, subject, shape, pose, rng)
    alpha = np.clip(0.5 - shape.distance * frame.scale, 0, 1)
    add_band(rgb, alpha, subject, shape, pose, rng)
    add_sleeve(rgb, alpha, subject, pose, rng)
    scene = compose(rgb, alpha, frame, pose, rng, there)
    return photograph(scene, pose, rng, there)


def draw_mask(
    person: Person,
    aspect: str,
    shot: int,
    *,
    accessories: bool = False,
    size: tuple[int, int] | None = None,
    laboratory: str = "white_table",
) -> np.ndarray:
    """(H, W) float32, 0 to 1: how much of each pixel of `draw_hand`'s picture is hand.

    The hand ends at the crease of the wrist, so that neither arm nor sleeve, watch or bracelet
    count; rings and nails do. Only the outline is drawn, a sixth of the picture's work.
    """
    subject, shape, _ = _laid(person, aspect, shot, accessories, size, laboratory)
    x0, y0, x1, y1 = subject.frame.box
    inside = np.clip(0.5 - shape.distance * subject.frame.scale, 0, 1)
    above = np.clip(0.5 + subject.frame.grid()[1] * subject.frame.scale, 0, 1)
    mask = np.zeros(subject.frame.size[::-1], np.float32)
    mask[y0:y1, x0:x1] = inside * above
    return mask


def _laid(
    person: Person,
    aspect: str,
    shot: int,
    accessories: bool,
    size: tuple[int, int] | None,
    laboratory: str,
) -> tuple[Subject, Shape, Shot]:
    """The hand as it lies in a picture, before there is any colour."""
    surface, side = split_aspect(aspect)
    there = LABORATORIES[laboratory]
    pose = make_shot(person, aspect, shot, accessories, there)
    hand = hand_of(person, side)
    joints = chains(hand, pose)
    thumb = 1 if (surface == "dorsal") == (side == "r") else -1
    frame = make_frame(joints, pose, thumb, size or there.size)
    subject = Subject(person, surface, side, hand, joints, frame)
    return subject, build(frame, hand, joints, pose), pose
