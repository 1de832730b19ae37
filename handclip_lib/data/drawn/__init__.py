"""Hands drawn by a program, in the layout of 11k Hands: nobody's biometrics, any number."""

from handclip_lib.data.drawn.dataset import draw_dataset, masks_of
from handclip_lib.data.drawn.draw import draw_hand, draw_mask
from handclip_lib.data.drawn.person import (
    Person,
    caption_attributes,
    make_person,
    person_seed,
)

__all__ = [
    "Person",
    "caption_attributes",
    "draw_dataset",
    "draw_hand",
    "draw_mask",
    "make_person",
    "masks_of",
    "person_seed",
]
