"""Toy notebooks and the words that run them, for tests of studies."""

import json
import sys
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook

from handclip_lib.report import plan
from handclip_lib.report.runs import HEADER, resolved

TITLE = "drawn hands (demonstration)"
LIBRARY = "the library"
PARAMETERS = 'aspect = "dorsal_r"\nstudy = "demo"\nseed = 0\ntag = ""\noverrides = {}'
STAMP = {
    "handclip": "0",
    "git": {"commit": None, "dirty": None},
    "packages": {},
    "peak_memory_mb": {},
    "python": "3",
    "device": "cpu",
    "platform": "x",
    "data": TITLE,
    "manifest_sha256": "abc",
}


def notebook(folder, name, source):
    """A notebook with the parameters cell and one more; returns its path as text."""
    given = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [given, new_code_cell(f"NAME = '{name}'"), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return str(folder / f"{name}.ipynb")


def command(task, study):
    """As `workflow.command`, by `toy_run.py`."""
    p = task.params
    head = {"notebook": task.notebook.stem} | {k: getattr(p, k) for k in HEADER[1:]}
    told = {
        "notebook": str(task.notebook),
        "folder": str(task.folder),
        "params": resolved(p),
        "stamp": STAMP | {"library_sha256": LIBRARY},
        "metrics": head | {"data": TITLE, "manifest_sha256": "abc", "variants": {}},
    }
    return [sys.executable, str(Path(__file__).with_name("toy_run.py")), json.dumps(told)]


def no_data(monkeypatch):
    """Studies read no data: a table without rows, and a manifest whose hash is `abc`."""
    table = pd.DataFrame({"aspect": ["dorsal_r"]})
    table.attrs["title"] = TITLE
    monkeypatch.setattr(plan.tables, "read", lambda p: table)
    monkeypatch.setattr(plan.splits, "manifest_for", lambda p, table: p.aspect)
    monkeypatch.setattr(plan.splits, "sha256", lambda manifest: "abc")
