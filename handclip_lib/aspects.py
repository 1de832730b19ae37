"""The aspects of a hand: names, the data sets' own words for them, and words for prompts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """One view of a hand. `metadata` is 11k Hands' spelling; `words` are phrases for prompts."""

    name: str
    metadata: str
    title: str
    words: tuple[str, ...]
    distractors: tuple[str, ...] = ()  # the other aspects, in the order of gallery_all's offsets


ASPECTS = {
    a.name: a
    for a in (
        Aspect(
            "dorsal_r",
            "dorsal right",
            "dorsal right",
            ("dorsal right", "back of the right"),
            ("dorsal_l", "palmar_r", "palmar_l"),
        ),
        Aspect(
            "dorsal_l",
            "dorsal left",
            "dorsal left",
            ("dorsal left", "back of the left"),
            ("dorsal_r", "palmar_r", "palmar_l"),
        ),
        Aspect(
            "palmar_r",
            "palmar right",
            "palmar right",
            ("palmar right", "palm of the right"),
            ("dorsal_l", "dorsal_r", "palmar_l"),
        ),
        Aspect(
            "palmar_l",
            "palmar left",
            "palmar left",
            ("palmar left", "palm of the left"),
            ("palmar_r", "dorsal_r", "dorsal_l"),
        ),
        # HD does not always say which side a hand is; own photographs may say nothing at all
        Aspect("dorsal", "dorsal", "dorsal", ("dorsal",)),
        Aspect("hand", "hand", "hand (aspect not given)", ("",)),
    )
}
LEFT = ("dorsal_l", "palmar_l")  # views of left hands
CHAIN = ("dorsal_r", "dorsal_l", "palmar_r", "palmar_l")  # the four, in the user's order
# The files of a chain in that order, by how many steps are done
CHAIN_FILES = tuple(
    f"handclip_finetuned_{name}"
    for name in ("dorsal_r", "dorsal_rl", "dorsal_rlp", "final_all_views")
)
OFFSETS = (11_000_000, 21_000_000, 31_000_000)  # identity offsets of gallery_all's distractors
BY_METADATA = {a.metadata: a.name for a in ASPECTS.values()}
