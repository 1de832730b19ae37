"""How well a tiny CLIP answers in words: zero-shot accuracy by attribute, as a Markdown table."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from handclip_lib import params
from handclip_lib.data import store, tables
from handclip_lib.data.drawn import caption_attributes
from handclip_lib.data.drawn.dataset import plan
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed
from handclip_lib.evaluate.zeroshot import TextEncoder, classify_by_text
from handclip_lib.models.clip import load_encoder
from handclip_lib.train.captions import CLASSES, codes, question


def accuracy(
    encoder: TextEncoder, proj: np.ndarray, rows: np.ndarray, persons: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Per attribute: accuracy, ci95, majority, n. proj (N, E); rows (N, 7) codes; persons (N,)."""
    found = {}
    for attribute in ("aspect", *CLASSES):
        phrases, templates = question(attribute)
        truth = 2 * rows[:, 0] + rows[:, 1] if attribute == "aspect" else _column(rows, attribute)
        seen = (truth >= 0) & (truth < len(phrases))
        labels = np.array(list(phrases))[truth[seen]]
        told = classify_by_text(encoder, proj[seen], labels, persons[seen], phrases, templates)
        found[attribute] = told["ensemble"] | {"majority": told["majority"], "n": told["images"]}
    return found


def report(folders: dict[str, Path]) -> str:
    """Markdown: every attribute's accuracy on the demo's persons, whom no tower has seen.

    folders: open_clip local-dirs by the name of their column.
    """
    measured = {name: measure(folder) for name, folder in folders.items()}
    head = ["attribute", *(f"{name} (95 % interval)" for name in measured), "majority class", "n"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    first = next(iter(measured.values()))
    for attribute, row in first.items():
        cells = [_percent(table[attribute]) for table in measured.values()]
        tail = [f"{100 * row['majority']:.0f}", str(row["n"])]
        lines.append(f"| {' | '.join([attribute.replace('_', ' '), *cells, *tail])} |")
    return "\n".join(lines)


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """`accuracy` of a tiny CLIP on every picture of the demo's drawn set."""
    p = params.load(study="demo")
    table = tables.read(p)
    encoder = load_encoder(f"local-dir:{folder}", fit="hand")
    images = list(table["image"])
    fabric = make_fabric(p)
    z = embed(encoder, store.open_store(table, encoder.preprocess), images, fabric)["proj"]
    with torch.no_grad():
        return accuracy(encoder, z, drawn_codes(images), table["pid"].to_numpy())


def drawn_codes(images: list[str]) -> np.ndarray:
    """(N, 7) caption codes of photographs of the demo's set, by file name."""
    drawn = params.load(study="demo").data.drawn
    rows = {row.name: row for row in plan(drawn.persons, drawn.seed, drawn.shots)}
    told = [rows[Path(image).name] for image in images]
    return np.stack(
        [
            codes(caption_attributes(row.person, row.aspect, row.accessories, row.nail_polish))
            for row in told
        ]
    )


def _column(rows: np.ndarray, attribute: str) -> np.ndarray:
    return np.asarray(rows[:, list(CLASSES).index(attribute)])


def _percent(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{100 * row['accuracy']:.0f} ({100 * low:.0f}-{100 * high:.0f})"
