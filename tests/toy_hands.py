"""Persons of four coloured squares, and towers small enough to learn them in a second."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
from PIL import Image


def small_towers(folder: Path) -> None:
    """`toy-vit` and `toy-rn` of 32 pixels, among the architectures that open_clip knows."""
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
    vit = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    rn = {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "head_width": 32,
        "patch_size": None,
    }
    for name, vision in (("toy-vit", vit), ("toy-rn", rn)):
        told = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(told))
    open_clip.add_model_config(folder)


def squares(root: Path, persons: int, shots: int) -> pd.DataFrame:
    """Persons that are colours of four squares, with metadata; a shot adds noise."""
    rng, rows = np.random.default_rng(0), []
    for pid in range(persons):
        traits = rng.integers(40, 216, (2, 2, 3)).repeat(16, 0).repeat(16, 1)
        about = {
            "gender": ("male", "female")[pid % 2],
            "age": 20 + 5 * (pid // 2),
            "skinColor": ("fair", "dark")[pid // 2 % 2],
            "nailPolish": pid // 4 % 2,
        }
        for shot in range(shots):
            noisy = (traits + rng.normal(0, 25, traits.shape)).clip(0, 255).astype(np.uint8)
            name = f"{pid:02d}_{shot}.png"
            Image.fromarray(noisy).save(root / name)
            row = {"image": name, "pid": pid, "aspect": "dorsal_r", "dataset": "own"}
            rows.append(row | {"camera": "ab"[shot % 2]} | about)
    frame = pd.DataFrame(rows)
    frame.attrs = {"root": str(root), "title": "squares"}
    return frame
