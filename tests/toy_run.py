"""Stands in for `handclip run` in tests of studies: executes a notebook's cells, without a kernel.

`python toy_run.py TOLD`: a JSON object with the notebook, the folder, what params.json is to hold
and what a finished run says of itself. It imports nothing of the kit, so that it takes no time.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(told):
    folder, params = Path(told["folder"]), told["params"]
    folder.mkdir(parents=True, exist_ok=True)
    notebook = json.loads(Path(told["notebook"]).read_text())
    names = {key: params[key] for key in ("aspect", "seed", "tag")} | {"folder": folder}
    names |= {"os": os, "time": time, "Path": Path}
    since = time.monotonic()
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "report.ipynb").write_text(json.dumps(notebook))
    for cell in notebook["cells"]:
        if "parameters" not in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    stamp = told["stamp"] | {"seconds": time.monotonic() - since}
    (folder / "stamp.json").write_text(json.dumps(stamp))
    (folder / "metrics.json").write_text(json.dumps(told["metrics"] | names.get("more", {})))
    (folder / "report.html").write_text("x")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
