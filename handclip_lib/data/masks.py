"""Where the hand is in the pixels that a model sees."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from handclip_lib.data.drawn.dataset import MARKER, masks_of
from handclip_lib.data.foreground import hand_mask
from handclip_lib.data.preprocess import to_rgb
from handclip_lib.data.store import Store


def hand_masks(store: Store, images: Sequence[str]) -> np.ndarray:
    """(N, H, W) float32, 0 to 1: how much of each of a store's pixels is hand.

    Fitted and mirrored as the pixels are. Of drawn hands the generator knows it, up to the wrist's
    crease; of photographs it is the foreground, arm and sleeve with it, and NaN throughout where
    none is believable. Raises StoreError on unknown names.
    """
    store.rows(images)
    drawn = (store.root / MARKER).is_file()
    known = masks_of(store.root, images) if drawn else [None] * len(images)
    masks = []
    for name, told in zip(images, known, strict=True):
        with Image.open(store.root / name) as opened:
            picture = to_rgb(opened)
        mask = told if told is not None else hand_mask(picture)
        if mask is None:
            fitted = np.full(store.preprocess.size, np.nan, np.float32)
        else:
            fitted = store.preprocess.fit_mask(picture, mask)
        masks.append(fitted[:, ::-1] if name in store.mirrored else fitted)
    return np.stack(masks)
