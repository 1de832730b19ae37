"""Run folders: where a notebook's parameters, figures and numbers go, and that nothing is mixed.

`reports/<study>/seed<k>/<aspect>/<notebook>[/<tag>]/` holds params.json, manifest.csv,
figures/*.png, stamp.json and, written last, metrics.json: a folder without it did not finish.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from handclip_lib.data.splits import sha256, write_manifest
from handclip_lib.losses import check_lists
from handclip_lib.params import ROOT, ParamError, load, read_study, resolve
from handclip_lib.report.stamp import library_sha256, stamp
from handclip_lib.schema import Params, leaves

HEADER = ("notebook", "study", "aspect", "seed", "tag")
_RESULTS = (
    *("stamp.json", "manifest.csv", "manifest.sha256"),
    *("figures", "report.ipynb", "report.html"),
)
_OWN_FOLDERS = ("figures", "checkpoints", "chains")  # a tag of that name would lie inside


@dataclass(frozen=True)
class Run:
    """An open run folder. `header` says whose it is; `facts` collects what the stamp reports."""

    folder: Path
    params: Params
    header: dict[str, Any]
    opened: float
    facts: dict[str, Any] = field(default_factory=dict)

    def write_manifest(self, manifest: pd.DataFrame) -> str:
        """Write manifest.csv and manifest.sha256; returns the hash, which `save` records too."""
        digest = sha256(manifest)
        write_manifest(manifest, self.folder / "manifest.csv")
        replace_text(self.folder / "manifest.sha256", digest + "\n")
        self.facts["manifest_sha256"] = digest
        return digest

    def figure(self, fig: Figure, name: str) -> Figure:
        """Save figures/<name>.png at the figure's own resolution and return the figure."""
        if Path(name).name != name or name.endswith(".png"):
            raise ValueError(f"figure name '{name}': a bare name without folder or ending")
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        partial = _partial(path)
        fig.savefig(partial, format="png", dpi=fig.dpi)
        partial.replace(path)
        return fig

    def beside(self, notebook: str) -> list[Path]:
        """Where another notebook of this study may have left its files: own tag, then none."""
        plain = self.params.model_copy(update={"tag": ""})
        return list(dict.fromkeys(run_folder(notebook, q) for q in (self.params, plain)))

    def save(self, metrics: Mapping[str, Any]) -> None:
        """Write stamp.json, then metrics.json: with it the run is finished.

        metrics: `data`, the title of the data that was used, and `variants`, a dict
        {variant: {"own" | "all": {metric: {"mean", "ci95", "per_draw"}, counts}}}, empty where
        nothing was scored; any further keys (`zero_shot`, `splits`, …) of plain values. Numpy
        numbers and arrays become numbers and lists. Raises ValueError with the path of what is
        missing, not finite, outside 0–1, or not writable as JSON; nothing is written then.
        """
        plain = _plain(metrics, "metrics")
        _check(plain)
        content = self.header | {"manifest_sha256": self.facts.get("manifest_sha256")} | plain
        told = stamp(self.params, time.monotonic() - self.opened)
        told |= self.facts | {"data": plain["data"]}
        told["manifest_sha256"] = content["manifest_sha256"]
        replace_text(self.folder / "stamp.json", _json(told))
        replace_text(self.folder / "metrics.json", _json(content))


def open_run(notebook: str, p: Params) -> Run:
    """The folder of this notebook and these parameters, made if need be, with its params.json.

    Raises ParamError when the parameters are not the study's and no tag says so, when a list of
    losses can't be built, when the folder was made with other parameters, or can't be written.
    An earlier metrics.json stays until `save` replaces it.
    """
    check_tag(p, p.study)
    check_lists(p)
    folder = run_folder(notebook, p)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, p)
    except OSError as error:
        raise ParamError(
            f"can't write the run folder {folder} ({error.strerror}); set 'reports' or"
            " $HANDCLIP_REPORTS to a folder that can be written"
        ) from error
    header = {"notebook": notebook} | {k: getattr(p, k) for k in HEADER[1:]}
    return Run(folder, p, header, time.monotonic(), {"library_sha256": library_sha256()})


def check_tag(p: Params, study: str) -> None:
    """ParamError when a run differs from the study, or its variant, whose folder it would take.

    A tag that is no variant of the study's sweep is the run's own name, and not checked.
    study: name or path. Only the stem of a path is in `p`: what is not found by it is not checked.
    """
    try:
        if p.tag and p.tag not in read_study(study).sweep:
            return
        plain = load(p.aspect, study, p.seed, p.tag)
    except ParamError:
        return
    changed = differences(resolved(plain), p, "study")
    if changed:
        raise ParamError(
            f"this run differs from the study '{p.study}'"
            + (f" with its variant '{p.tag}'" if p.tag else "")
            + " and would take its folder:\n  "
            + "\n  ".join(changed[:4])
            + "\nname the run: --tag NAME (papermill: -p tag NAME); a study file of your own"
            " needs a name that params/ doesn't have"
        )


@contextmanager
def replacing(folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Put an earlier result aside while a run makes a new one; give it back if that fails.

    So a failure is never taken for a success, and never costs a result. Yields where a failed run's
    notebook ends up: failed.ipynb beside an earlier result, until a run succeeds, else
    report.ipynb. After a kill the next run finds the earlier result in `.earlier/`.
    """
    earlier = folder / ".earlier"
    if earlier.is_dir() and not (folder / "metrics.json").is_file():
        _give_back(folder, earlier)  # the run before was killed
    elif earlier.is_dir():
        shutil.rmtree(earlier)
    finished = (folder / "metrics.json").is_file()
    if finished:
        earlier.mkdir()
        for name in ("metrics.json", *_RESULTS):  # without metrics.json it is unfinished
            if (folder / name).exists():
                (folder / name).rename(earlier / name)
    else:
        shutil.rmtree(folder / "figures", ignore_errors=True)  # of a run that did not finish
    failed = folder / "failed.ipynb"
    try:
        yield failed if finished else folder / "report.ipynb"
    except BaseException:
        if finished:
            _give_back(folder, earlier)
            say("the earlier result is kept; the failed notebook is failed.ipynb beside it")
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    failed.unlink(missing_ok=True)


def _give_back(folder: Path, earlier: Path) -> None:
    # a kill while things were put aside leaves some where they were: those are the good ones
    if (earlier / "report.ipynb").is_file() and (folder / "report.ipynb").is_file():
        (folder / "report.ipynb").replace(folder / "failed.ipynb")
    for name in (*_RESULTS, "metrics.json"):
        if (earlier / name).exists():
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (earlier / name).replace(folder / name)
    earlier.rmdir()


def reports_root(p: Params) -> Path:
    """Where reports go: `p.reports`, else $HANDCLIP_REPORTS, else reports/ of the project.

    Relative paths count from the project root, so that a notebook's kernel and the command
    line agree whatever folder they run in.
    """
    told = p.reports or os.environ.get("HANDCLIP_REPORTS", "")
    return resolve(told) if told else ROOT / "reports"


def run_folder(notebook: str, p: Params) -> Path:
    """Path of the run folder of a notebook; nothing is made."""
    if p.tag in _OWN_FOLDERS:
        raise ParamError(f"tag: '{p.tag}' is the name of a run's own folder; choose another")
    return reports_root(p) / p.study / f"seed{p.seed}" / p.aspect / notebook / p.tag


def resolved(p: Params) -> dict[str, Any]:
    """The complete parameters as params.json holds them."""
    return p.model_dump(mode="json")


def differences(old: Mapping[str, Any], p: Params, whose: str = "folder") -> list[str]:
    """`model.fit: folder has 'squash', this run 'hand'` for each value but `reports`."""
    was, now = dict(leaves(old)), dict(leaves(resolved(p)))
    return [
        f"{key}: {whose} has {_shown(was, key)}, this run {_shown(now, key)}"
        for key in sorted(was.keys() | now.keys())
        if key != "reports" and _shown(was, key) != _shown(now, key)
    ]


REMOVE = "remove metrics.json there, and the run is done again, with the weights that it has"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder; ValueError with the path when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {REMOVE}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object; {REMOVE}")
    return content


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old or the new one, never a part."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _claim(folder: Path, p: Params) -> None:
    path = folder / "params.json"
    if path.is_file():
        different = differences(read_json(path), p)
        if different:
            more = f" (and {len(different) - 4} more)" if len(different) > 4 else ""
            raise ParamError(
                f"{folder} holds a run with other parameters:\n  "
                + "\n  ".join(different[:4])
                + f"{more}\ngive this run a tag of its own, or remove that folder"
            )
    replace_text(path, _json(resolved(p)))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _shown(tree: Mapping[str, Any], key: str) -> str:
    return repr(tree[key]) if key in tree else "nothing"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any, where: str) -> Any:
    """The same in plain JSON types; ValueError names what is not finite or has no such type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: only finite numbers are saved")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}: save plain numbers, text and lists")


def _check(metrics: Mapping[str, Any]) -> None:
    taken = sorted({*HEADER, "manifest_sha256"} & metrics.keys())
    if taken:
        raise ValueError(f"metrics.{taken[0]} is written by the run itself; leave it out")
    if not isinstance(metrics.get("data"), str) or not metrics["data"]:
        raise ValueError("metrics.data is missing: the title of the data, table.attrs['title']")
    if not isinstance(metrics.get("variants"), dict):
        raise ValueError("metrics.variants is missing: {name: {'own': …}}, or {} for none")
    for name, galleries in metrics["variants"].items():
        if not isinstance(galleries, dict) or "own" not in galleries:
            raise ValueError(f"metrics.variants.{name} has no 'own' gallery")
        for gallery, scores in galleries.items():
            _check_scores(scores, f"metrics.variants.{name}.{gallery}")


def _check_scores(scores: Any, where: str) -> None:
    if not isinstance(scores, dict) or not {"rank1", "map"} <= scores.keys():
        raise ValueError(f"{where} needs rank1 and map, as evaluate.protocol gives them")
    for metric, value in scores.items():
        if isinstance(value, int) and metric not in ("rank1", "map"):
            continue  # a count: queries, gallery, persons
        if not isinstance(value, dict) or "mean" not in value or len(value.get("ci95", ())) != 2:
            raise ValueError(f"{where}.{metric} needs 'mean' and 'ci95': [low, high]")
        for number in (value["mean"], *value["ci95"]):
            if not isinstance(number, int | float) or not 0 <= number <= 1:
                raise ValueError(f"{where}.{metric} is {number}: values are 0–1")
