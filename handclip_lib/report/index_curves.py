"""How all trainings of a study went: a pair of small diagrams for each run and chain."""

import html
from pathlib import Path

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.charts import Curve, legend, panel
from handclip_lib.report.results import Finished

_HISTORY, _CHAINS = "history.csv", "chains"
# What a training is followed by, the first that it has; the words of its diagram
_SCORES = {
    "select_map": "mAP, held-out persons",
    "val_accuracy": "accuracy, known persons (val)",
    "val_i2t": "nearest text is the owner's (val)",
}

Groups = dict[tuple[str, str, str], list[tuple[Finished, pd.DataFrame]]]


def histories(runs: list[Finished]) -> Groups:
    """{(notebook, chain or "", aspect): [(run, its history.csv)]}; chains: those beside a run's."""
    found: Groups = {}
    for run in runs:
        m = run.metrics
        for path in [run.folder / _HISTORY, *sorted(run.folder.glob(f"{_CHAINS}/*/{_HISTORY}"))]:
            chain = path.parent.name if path.parent != run.folder else ""
            if path.is_file():
                table = pd.read_csv(path)
                found.setdefault((m["notebook"], chain, m["aspect"]), []).append((run, table))
    return found


def curves(runs: list[Finished]) -> str:
    """HTML: total loss and validation score by epoch of all runs; "" where nothing was trained.

    A row of diagrams a notebook, a pair an aspect (a chain, for those of many); seeds share colour.
    """
    groups = histories(runs)
    parts = []
    for notebook in dict.fromkeys(key[0] for key in groups):
        mine = {key: told for key, told in groups.items() if key[0] == notebook}
        names = _names(mine)
        panels = [
            f'<figure><figcaption>{html.escape(_caption(key))}</figcaption><div class="pair">'
            f"{_pair(told, names)}</div></figure>"
            for key, told in mine.items()
        ]
        parts.append(
            f"<h3>{html.escape(notebook)}</h3>{legend(names)}"
            f'<div class="curves">{"".join(panels)}</div>'
        )
    if not parts:
        return ""
    return "".join(parts) + (
        "<p><small>By epoch, all seeds in one colour. The loss is the weighted sum of its terms; "
        "losses of different terms can't be compared. Held-out persons choose the epoch that is "
        "kept, where there are some; known persons choose nothing.</small></p>"
    )


def _caption(key: tuple[str, str, str]) -> str:
    _, chain, aspect = key
    return ASPECTS[aspect].title + (f" · {chain}" if chain else "")


def _names(groups: Groups) -> list[str]:
    """What was trained, in the order of its first mention: a colour each."""
    told = (
        _name(run, str(variant))
        for pairs in groups.values()
        for run, table in pairs
        for variant in dict.fromkeys(table["variant"])
    )
    return list(dict.fromkeys(told))


def _name(run: Finished, variant: str) -> str:
    tag = run.metrics["tag"]
    short = Path(variant).name.removeprefix("handclip_finetuned_")
    return f"{short}, {tag}" if tag else short


def _pair(told: list[tuple[Finished, pd.DataFrame]], names: list[str]) -> str:
    """The diagram of the loss, and one for each score that some training is followed by."""
    losses: list[Curve] = []
    scores: dict[str, list[Curve]] = {}
    for run, table in told:
        for variant, part in table.groupby("variant", sort=False):
            name = _name(run, str(variant))
            whose, place = f"{name}, seed {run.metrics['seed']}", names.index(name)
            epochs = part["epoch"].tolist()
            losses.append(Curve(whose, epochs, part["total"].tolist(), place))
            known = [c for c in _SCORES if c in part and part[c].notna().any()]
            if known:
                curve = Curve(whose, epochs, part[known[0]].tolist(), place)
                scores.setdefault(known[0], []).append(curve)
    shown = [panel(_SCORES[column], scores[column], True) for column in _SCORES if column in scores]
    return panel("total loss", losses) + "".join(shown)
