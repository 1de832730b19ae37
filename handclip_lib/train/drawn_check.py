"""Do the drawn hands deserve their place? `python -m handclip_lib.train.drawn_check`.

A set of hands is of use if pixels, colour and background do not tell who somebody is, and a
network that has learnt hands does. Five features are ranked on all 40 persons of the demo's set;
the last is a tiny tower trained on other drawn persons. Prints Markdown for reports/README.md.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from handclip_lib import params
from handclip_lib.aspects import CHAIN
from handclip_lib.data import splits, store, tables
from handclip_lib.data.foreground import border_colour, otsu
from handclip_lib.device import make_fabric
from handclip_lib.evaluate import protocol
from handclip_lib.evaluate.embed import embed, retrieval_features
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.train.probe import TAUGHT, Setting, train_probe
from handclip_lib.train.tiny_model import fast_fabric
from handclip_lib.train.tiny_pool import PERSONS, is_deep, open_pool

_Array = npt.NDArray[np.floating]
_ELSEWHERE = 1_000_000  # added to the pids of persons under test, see `all_tested`
LIMITS = {
    "raw pixels, 32x32, whole picture": "< 40",
    "raw pixels, 32x32, hand crop": "< 40",
    "mean colour of the picture": "<= 15",
    "mean colour of the hand crop": "<= 15",
    "background alone": "<= 5 (twice chance)",
    "tiny as shipped": "< 70",
    "tiny_rn as shipped": "< 70",
}


def all_tested(table: pd.DataFrame, aspect: str) -> pd.DataFrame:
    """A manifest with every person in the test half: queries and galleries of ten draws.

    A split tests the second half of the persons, so stand-ins of lower number fill the first.
    """
    stand_ins = table.assign(image="stand-in/" + table["image"])
    tested = table.assign(pid=table["pid"] + _ELSEWHERE)
    manifest = splits.make_manifest(pd.concat([stand_ins, tested], ignore_index=True), aspect)
    return manifest[manifest["split"].isin(["query", "gallery"])].reset_index(drop=True)


def as_cosines(vectors: _Array) -> _Array:
    """(N, D) -> (N, D + 1) unit rows whose cosines rank as the vectors' Euclidean distances do.

    1 - cos = |a - b|² / 2 up to the fourth power of the length, which is scaled to 0.05 at most.
    """
    x = np.asarray(vectors, dtype=np.float64)
    x = x - x.mean(axis=0)
    x = 0.05 * x / np.linalg.norm(x, axis=1).max()
    return np.hstack([x, np.sqrt(1 - (x**2).sum(axis=1, keepdims=True))])


def simple_features(table: pd.DataFrame, encoder: Encoder) -> dict[str, _Array]:
    """What needs no network, (N, D) each: pixels, mean colours, and what surrounds the hand."""
    root, images = Path(table.attrs["root"]), list(table["image"])
    crops = store.open_store(table, encoder.preprocess).pixels(images).numpy()
    small, around = [], []
    for image in images:
        picture = Image.open(root / image).convert("RGB")
        small.append(np.asarray(picture.resize((32, 32), Image.Resampling.BOX)))
        around.append(surroundings(picture))
    crop32 = [np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BOX)) for c in crops]
    found = {
        "raw pixels, 32x32, whole picture": np.stack(small),
        "raw pixels, 32x32, hand crop": np.stack(crop32),
        "mean colour of the picture": np.stack(small).mean(axis=(1, 2)),
        "mean colour of the hand crop": np.stack(crop32).mean(axis=(1, 2)),
        "background alone": np.stack(around),
    }
    return {name: as_cosines(x.reshape(len(images), -1)) for name, x in found.items()}


def surroundings(picture: Image.Image) -> _Array:
    """(15, 20, 3) colours of the background; hand, shadow's edge and sleeve are painted over.

    What is painted is a wide blur of the background around, so that no outline is left.
    """
    rgb = np.asarray(picture.resize((80, 60), Image.Resampling.BOX), dtype=np.float64)
    distance = np.linalg.norm(rgb - np.array(border_colour(picture)), axis=2)
    hand = ndimage.binary_dilation(distance > otsu(distance)[0], iterations=4)
    weight = (~hand).astype(np.float64)
    wide = [ndimage.gaussian_filter(rgb[..., c] * weight, 12) for c in range(3)]
    filled = np.stack(wide, axis=2) / (ndimage.gaussian_filter(weight, 12)[..., None] + 1e-6)
    return np.asarray(filled[2::4, 2::4])


def rank1(features: _Array, images: list[str], manifests: dict[str, pd.DataFrame]) -> list[str]:
    """`mean (low-high)` in percent of each manifest's own gallery, 95 % interval over persons."""
    cells = []
    for manifest in manifests.values():
        own: Any = protocol.evaluate(features, images, manifest)["own"]["rank1"]
        low, high = own["ci95"]
        cells.append(f"{100 * own['mean']:.1f} ({100 * low:.0f}-{100 * high:.0f})")
    return cells


def report(setting: Setting, persons: int, workers: int) -> str:
    """Train or find the probe, rank everything, and lay it out as Markdown."""
    p = params.load(study="demo")
    table = tables.read(p)
    images = list(table["image"])
    manifests = {aspect: all_tested(table, aspect) for aspect in CHAIN}
    fabric = make_fabric(p)
    features = simple_features(table, load_encoder("tiny", fit="hand"))
    for name in ("tiny", "tiny_rn"):
        features[f"{name} as shipped"] = _network(load_encoder(name, fit="hand"), table, fabric)
    trained = train_probe(setting, open_pool(persons, workers), fast_fabric())
    begun = {"tiny": "its shipped weights", "random": "random weights"}[setting.start]
    others = min(TAUGHT, sum(is_deep(k) for k in range(persons)))
    told = f"{setting.tower}, begun from {begun}, taught the hands of {others} other persons"
    features[told] = _network(trained, table, fabric)
    rows = [["feature", *CHAIN, "wanted"]]
    rows += [[n, *rank1(z, images, manifests), LIMITS.get(n, ">= 75")] for n, z in features.items()]
    count = table["pid"].nunique()
    rows.append(["chance", *[f"{100 / count:.1f}"] * len(CHAIN), ""])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]])


def _network(encoder: Encoder, table: pd.DataFrame, fabric: lf.Fabric) -> _Array:
    images = list(table["image"])
    found = embed(encoder, store.open_store(table, encoder.preprocess), images, fabric)
    return retrieval_features(found)


def main(argv: list[str] | None = None) -> None:
    """Print the table; what was trained before is found in the cache folder."""
    parser = argparse.ArgumentParser(
        prog="python -m handclip_lib.train.drawn_check", description=__doc__
    )
    usual = Setting()
    parser.add_argument("--tower", choices=("tiny", "tiny_rn"), default=usual.tower)
    parser.add_argument("--start", choices=("tiny", "random"), default=usual.start)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--persons", type=int, default=PERSONS, help="of the pool; 300 train it")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    told = parser.parse_args(argv)
    print(report(Setting(told.tower, told.start, told.minutes), told.persons, told.workers))


if __name__ == "__main__":
    main()
