"""Makes the golden notebooks anew: `make golden`. Look at the difference before committing it.

A golden is an executed smoke run that keeps only the outputs of its check cells.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

from handclip_lib.params import ROOT

CHECK = "nbval-check-output"


def bless(name: str) -> Path:
    """Execute a notebook on study `smoke` and write its golden; returns the golden's path."""
    source, target = ROOT / "notebooks" / f"{name}.ipynb", Path(__file__).parent / f"{name}.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HANDCLIP_REPORTS"] = folder
        os.environ["HANDCLIP_CACHE"] = str(Path(folder) / "cache")
        done = Path(folder) / "done.ipynb"
        papermill.execute_notebook(source, done, parameters={"study": "smoke"}, progress_bar=False)
        book = nbformat.read(done, as_version=4)
    for key in ("papermill", "widgets"):
        book.metadata.pop(key, None)
    for cell in book.cells:
        cell.source = cell.source.rstrip()  # papermill's own cell ends in an empty line
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code" and CHECK not in cell.metadata.get("tags", []):
            cell.outputs = []
    nbformat.write(book, target)
    return target


if __name__ == "__main__":
    for stem in sys.argv[1:] or sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")):
        print(bless(stem))
