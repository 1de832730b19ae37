"""The README's pictures, made again from a finished demonstration (drawn hands alone).

After `make demo`, with a Chromium on the machine: .venv/bin/python reports/gallery/pictures.py
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from handclip_lib.params import ROOT, load
from handclip_lib.report.runs import read_json, reports_root, run_folder

GALLERY = ROOT / "reports" / "gallery"
DEMO = load(study="demo")
FIGURES = {  # picture: the notebook and its figure
    "ranked.png": ("01_baseline", "ranked.png"),
    "feature_space.png": ("02_stage1", "feature_space.png"),
    "matrix.png": ("05_sequential_chain", "matrix.png"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, PAGE = 1100, (1100, 1000)  # pixels


def main() -> None:
    """Make them all; RuntimeError where the demonstration is not finished or is of other data."""
    for picture, (notebook, figure) in FIGURES.items():
        folder = run_folder(notebook, DEMO)
        if not (folder / "metrics.json").is_file():
            raise RuntimeError(f"{folder} has no finished run: make demo")
        if not read_json(folder / "metrics.json")["data"].startswith("drawn hands"):
            raise RuntimeError(f"{folder} is not of drawn hands: its pictures stay where they are")
        write(folder / "figures" / figure, GALLERY / picture)
    with tempfile.TemporaryDirectory() as name:
        write(
            screenshot(reports_root(DEMO) / DEMO.study / "index.html", name),
            GALLERY / "demo_page.png",
        )


def screenshot(page: Path, folder: str) -> Path:
    """The page's beginning; FileNotFoundError where no Chromium is."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is on this machine")
    shot = Path(folder, "page.png")
    size = "--window-size={},{}".format(*PAGE)
    told = ["--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={shot}"]
    subprocess.run([browser, *told, page.as_uri()], check=True, capture_output=True)
    return shot


def write(source: Path, target: Path) -> None:
    """A copy of at most WIDTH pixels and 255 colours: small enough for a repository."""
    with Image.open(source) as figure:
        small = figure.convert("RGB")
    small.thumbnail((WIDTH, 4 * WIDTH))
    small.quantize(255).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
