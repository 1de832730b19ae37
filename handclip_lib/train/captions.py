"""Sentences about drawn hands that are true of them, and the prompts that question a model.

A caption mentions some of a picture's attributes and never who it is. Which ones it mentions is
kept as codes beside the text, so that the loss knows every picture of a batch that it is true of.
"""

import numpy as np

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.schema import Baseline

CLASSES = {
    "surface": ("dorsal", "palmar"),
    "side": ("right", "left"),
    "gender": ("male", "female"),
    "age_band": ("young adult", "adult", "middle-aged", "elderly"),
    "skin": ("very fair", "fair", "medium", "dark"),
    "accessories": ("no accessories", "accessories"),
    "nail_polish": ("no nail polish", "nail polish"),
}
UNSAID, UNSEEN = -1, -2  # not mentioned by a caption; not visible in a picture: never equal

_PREFIXES = (
    "a photo of", "a close-up photo of", "a picture of", "an image of", "a photograph of",
    "a scan of", "a biometric image of", "a view of", "", "",
)  # fmt: skip
_BOTH = {
    "dorsal": (
        "a dorsal {side} hand", "the back of the {side} hand", "the back of a {side} hand",
        "a {side} hand from the back", "the dorsal side of the {side} hand",
        "a {side} hand, dorsal view", "a {side} dorsal hand", "a dorsal view of a {side} hand",
    ),
    "palmar": (
        "a palmar {side} hand", "the palm of the {side} hand", "the palm of a {side} hand",
        "a {side} palm", "the palmar side of the {side} hand", "the {side} palm",
        "a {side} hand, palmar view", "a {side} palmar hand", "a palmar view of a {side} hand",
    ),
}  # fmt: skip
_SURFACE = {
    "dorsal": (
        "the back of a hand", "a dorsal hand", "a dorsal view of a hand",
        "the dorsal side of a hand", "a hand from the back",
    ),
    "palmar": (
        "the palm of a hand", "a palm", "a palmar hand", "a palmar view of a hand",
        "the palmar side of a hand", "the inside of a hand",
    ),
}  # fmt: skip
_SIDE = ("a {side} hand", "the {side} hand", "somebody's {side} hand")
_NONE = ("a hand", "a human hand", "somebody's hand")
_GENDER = {"male": ("man", "male person"), "female": ("woman", "female person")}
_AGE = {"young adult": "young"} | {k: k for k in ("adult", "middle-aged", "elderly")}
_WORN = {
    "accessories": ("with accessories", "wearing accessories", "wearing jewellery or a watch"),
    "no accessories": ("without accessories", "with no jewellery", "wearing nothing"),
    "nail polish": ("with nail polish", "with painted nails"),
    "no nail polish": ("without nail polish", "with bare nails"),
}
_WORDS = {
    "dorsal": ("back", "dorsal side"),
    "palmar": ("palm", "palmar side", "inside"),
    **_GENDER,
    **{band: (word,) for band, word in _AGE.items()},
    **_WORN,
}
_SAY = {"gender": 0.35, "age_band": 0.25, "skin": 0.35, "accessories": 0.35, "nail_polish": 0.3}
_QUESTIONS = {
    "surface": ("a photo of the {} of a hand.", "the {} of a hand."),
    "side": ("a photo of a {} hand.", "a picture of the {} hand.", "somebody's {} hand."),
    "gender": ("a photo of the hand of a {}.", "the hand of a {}.", "a picture of a hand of a {}."),
    "age_band": ("a photo of the hand of a {} person.", "a photo of a hand of a {} person."),
    "skin": ("a photo of a hand of a person with {} skin.", "a hand of a person with {} skin."),
    "accessories": ("a photo of a hand {}.", "a photo of a human hand {}."),
    "nail_polish": ("a photo of the back of a hand {}.", "the back of a hand {}."),
}  # fmt: skip


def codes(attributes: dict[str, str]) -> np.ndarray:
    """(7,) int8: the index of each attribute's value in CLASSES; nails are unseen from the palm.

    attributes: as `data.drawn.caption_attributes` gives them. ValueError on an unknown value.
    """
    row = np.array([CLASSES[name].index(attributes[name]) for name in CLASSES], dtype=np.int8)
    if attributes["surface"] == "palmar":
        row[list(CLASSES).index("nail_polish")] = UNSEEN
    return row


def caption(row: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A sentence that is true of a picture with these codes (7,), and what it says (7,).

    Three in four mention surface and side; every other attribute comes and goes by itself.
    """
    said = np.full(len(CLASSES), UNSAID, dtype=np.int8)
    value = {name: CLASSES[name][k] for name, k in zip(CLASSES, row, strict=True) if k >= 0}
    view = _view_of(value, rng)
    tell = {name for name, share in _SAY.items() if name in value and rng.random() < share}
    seen, comma, rest = view[0].partition(",")
    parts = [seen]
    if _about_owner(tell, seen, rng):
        parts = [seen.removesuffix(" of a person"), _owner(value, tell, rng)]
    parts += [_pick(_WORN[value[n]], rng) for n in ("accessories", "nail_polish") if n in tell]
    for position, name in enumerate(CLASSES):
        if name in tell | view[1]:
            said[position] = row[position]
    text = " ".join(part for part in parts if part).strip() + comma + rest
    return text + _pick((".", ".", ""), rng), said


def true_of(said: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(B, N) bool: caption n, which says `said` (N, 7), is true of picture b, coded rows (B, 7)."""
    same = said[None, :, :] == rows[:, None, :]
    return np.asarray((same | (said[None, :, :] == UNSAID)).all(axis=2))


def question(attribute: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Phrases of each class and the templates of a zero-shot question, as `evaluate.zeroshot`'s.

    `aspect` is asked with notebook 01's templates and words, its classes in `aspects.CHAIN`. Of
    the age bands only the two below 40: the others are so rare among drawn persons (1 in 70, none)
    that their words are hardly learnt, and words that say nothing to a model fit every picture.
    """
    if attribute == "aspect":
        return {name: ASPECTS[name].words for name in CHAIN}, Baseline().templates
    asked = CLASSES[attribute][:2] if attribute == "age_band" else CLASSES[attribute]
    phrases = {name: _WORDS.get(name, (name,)) for name in asked}
    return phrases, _QUESTIONS[attribute]


def _view_of(value: dict[str, str], rng: np.random.Generator) -> tuple[str, set[str]]:
    """What is seen, as a phrase, and which of surface and side it names."""
    surface, side, kind = value["surface"], value["side"], rng.random()
    prefix = _pick(_PREFIXES, rng)
    if kind < 0.35:
        name = next(n for n in CHAIN if ASPECTS[n].metadata == f"{surface} {side}")
        template = _pick(Baseline().templates, rng).removesuffix(".")
        return template.format(aspect=_pick(ASPECTS[name].words, rng)), {"surface", "side"}
    if kind < 0.75:
        return f"{prefix} {_pick(_BOTH[surface], rng).format(side=side)}", {"surface", "side"}
    if kind < 0.85:
        return f"{prefix} {_pick(_SURFACE[surface], rng)}", {"surface"}
    if kind < 0.95:
        return f"{prefix} {_pick(_SIDE, rng).format(side=side)}", {"side"}
    return f"{prefix} {_pick(_NONE, rng)}", set()


def _about_owner(tell: set[str], view: str, rng: np.random.Generator) -> bool:
    named = bool(tell & {"gender", "age_band", "skin"})
    return named or ("person" not in view and rng.random() < 0.1)


def _owner(value: dict[str, str], tell: set[str], rng: np.random.Generator) -> str:
    age = _AGE[value["age_band"]] if "age_band" in tell else ""
    who = _pick(_GENDER[value["gender"]], rng) if "gender" in tell else "person"
    noun = f"{age} {who}".strip()
    skin = f" with {value['skin']} skin" if "skin" in tell else ""
    return f"of {'an' if noun[0] in 'ae' else 'a'} {noun}{skin}"


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
