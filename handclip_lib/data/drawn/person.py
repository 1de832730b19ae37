"""Who a drawn person is: the lasting traits that every picture of a hand shares.

Lengths are millimetres in the frame of a hand: the origin is the middle of the wrist crease, y
runs towards the finger tips and x towards the thumb, whichever hand it is. Fingers are ordered
thumb, index, middle, ring, little.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

SKIN_TONES = {  # sRGB 0..255 of the back of the hand and of the palm
    "very fair": ((224, 182, 153), (234, 186, 166)),
    "fair": ((208, 160, 124), (230, 178, 152)),
    "medium": ((182, 133, 94), (222, 169, 139)),
    "dark": ((142, 97, 68), (194, 140, 112)),
}
METACARPAL_HEADS = ((25.0, 15.0), (27.5, 88.0), (5.5, 91.5), (-16.0, 86.0), (-34.0, 76.0))
PHALANGES = ((45.0, 32.0, 25.0), (40, 24, 22), (44.5, 28, 23), (41, 27, 23), (32.5, 20, 20.5))
RADII = (11.2, 10.1, 10.3, 9.7, 8.5)


@dataclass(frozen=True)
class Person:
    """A drawn person. seed names everything that isn't listed; sizes are factors around 1."""

    seed: int
    gender: str  # male | female
    age: int  # years
    skin_color: str  # very fair | fair | medium | dark
    size: float
    wrinkles: float
    veins: float
    mottling: float


@dataclass(frozen=True, eq=False)
class Hand:
    """The bones of one hand: heads (5, 2) mm (thumb: root), bones (5, 3) mm, radii (5,) mm.

    profile (5, 7): radius factors along a finger; nail (3,): length, width, squareness.
    palm (4,): factors of wrist width, ball of the thumb, edge of the hand, web depth.
    """

    heads: np.ndarray
    bones: np.ndarray
    radii: np.ndarray
    profile: np.ndarray
    nail: np.ndarray
    palm: np.ndarray


def hashed(*parts: object) -> int:
    """The first 64 bits of sha256 of the parts joined by '|'."""
    text = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def person_seed(set_name: str, seed: int, index: int) -> int:
    """A 64-bit seed for person `index` of the set; sets of different name or seed share none."""
    return int.from_bytes(
        hashlib.sha256(f"{set_name}|{seed}|person{index}".encode()).digest()[:8], "big"
    )


def stream(*parts: object) -> np.random.Generator:
    """A random generator that depends on the parts alone."""
    return np.random.Generator(np.random.PCG64(hashed(*parts)))


def trait(person: Person, name: str, side: str, n: int, alike: float = 0.85) -> np.ndarray:
    """(n,) standard normals of one trait; `alike` is how much the two hands share, 0..1."""
    shared = stream(person.seed, name).standard_normal(n)
    own = stream(person.seed, name, side).standard_normal(n)
    return alike * shared + np.sqrt(1 - alike**2) * own


def choice(person: Person, name: str, low: int, high: int) -> int:
    """A whole number in low..high (both included) that lasts for the person."""
    return int(stream(person.seed, name).integers(low, high + 1))


def make_person(seed: int, ages: tuple[float, float, float] = (19, 1.3, 4.5)) -> Person:
    """The person with this seed, the same on every machine.

    ages: the youngest, in years, and shape and scale of the gamma distribution above it.
    """
    rng = stream(seed, "person")
    gender = "female" if rng.random() < 0.62 else "male"
    age = int(np.clip(ages[0] + rng.gamma(*ages[1:]), 18, 75))
    skin = str(rng.choice(list(SKIN_TONES), p=[0.08, 0.32, 0.47, 0.13]))
    z = np.clip(rng.standard_normal(4), -2.2, 2.2)
    aged = (age - 20) / 50
    return Person(
        seed=seed,
        gender=gender,
        age=age,
        skin_color=skin,
        size=float((0.955 if gender == "female" else 1.035) * (1 + 0.03 * z[0])),
        wrinkles=float(np.clip(0.85 + 0.22 * z[1] + 0.4 * aged, 0.4, 1.5)),
        veins=float(np.clip(0.5 + 0.35 * z[2] + (0.15 if gender == "male" else 0), 0.05, 1.2)),
        mottling=float(np.clip(1 + 0.3 * z[3], 0.4, 1.7)),
    )


def hand_of(person: Person, side: str) -> Hand:
    """The bones of the person's right ('r') or left ('l') hand, without any pose."""
    length = 1 + 0.05 * trait(person, "fingers", side, 1, 0.98)
    length = length * (1 + 0.052 * trait(person, "finger length", side, 5, 0.95))
    ratio = 1 + 0.06 * trait(person, "bones", side, 15, 0.93).reshape(5, 3)
    slender = 0.93 if person.gender == "female" else 1.03
    width = slender * (1 + 0.06 * trait(person, "slender", side, 1, 0.97))
    width = width * (1 + 0.05 * trait(person, "finger width", side, 5, 0.93))
    spread = 1 + 0.065 * trait(person, "palm", side, 2, 0.96)
    heads = np.array(METACARPAL_HEADS) + 1.5 * trait(person, "heads", side, 10, 0.9).reshape(5, 2)
    heads = heads * spread * np.array([0.53 + 0.51 * slender, 1.0])
    profile = np.array([0.95, 0.95, 1.02, 0.91, 0.92, 0.89, 0.8])
    profile = profile * (1 + 0.04 * trait(person, "profile", side, 7, 0.95))
    profile = profile * (1 + 0.02 * trait(person, "profiles", side, 35, 0.9).reshape(5, 7))
    profile[:, 5] = np.minimum(profile[:, 5], 0.97 * profile[:, 4])
    profile[:, 6] = np.clip(profile[:, 6], 0.84 * profile[:, 5], 0.93 * profile[:, 5])
    return Hand(
        heads=person.size * heads,
        bones=person.size
        * np.array(PHALANGES, float)
        * np.clip(length[:, None] * ratio, 0.8, 1.24),
        radii=person.size * np.array(RADII) * np.clip(width, 0.78, 1.22),
        profile=np.clip(profile, 0.66, 1.12),
        nail=trait(person, "nail", side, 3, 0.96),
        palm=1 + 0.1 * trait(person, "ball", side, 4, 0.93),
    )


def caption_attributes(
    person: Person, aspect: str, accessories: bool, nail_polish: bool
) -> dict[str, str]:
    """Words for a caption: aspect, surface, side, gender, age_band, skin, accessories, nail_polish.

    aspect is dorsal_r, dorsal_l, palmar_r or palmar_l; anything else raises ValueError.
    """
    surface, side = split_aspect(aspect)
    bands = ((25, "young adult"), (40, "adult"), (60, "middle-aged"), (200, "elderly"))
    word = {"r": "right", "l": "left"}[side]
    return {
        "aspect": f"{surface} {word}",
        "surface": surface,
        "side": word,
        "gender": person.gender,
        "age_band": next(name for limit, name in bands if person.age < limit),
        "skin": person.skin_color,
        "accessories": "accessories" if accessories else "no accessories",
        "nail_polish": "nail polish" if nail_polish else "no nail polish",
    }


def split_aspect(aspect: str) -> tuple[str, str]:
    """'dorsal_r' -> ('dorsal', 'r'); ValueError for an aspect there is not."""
    surface, _, side = aspect.partition("_")
    if surface not in ("dorsal", "palmar") or side not in ("r", "l"):
        raise ValueError(f"unknown aspect {aspect!r}; use dorsal_r, dorsal_l, palmar_r or palmar_l")
    return surface, side
