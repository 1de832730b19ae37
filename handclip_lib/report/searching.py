"""The commands `handclip search` and `handclip verify`: their arguments, and what they print."""

import argparse
import hashlib
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handclip_lib.aspects import ASPECTS
from handclip_lib.params import ParamError, load
from handclip_lib.schema_base import did_you_mean

if TYPE_CHECKING:
    from handclip_lib.report.search import Instrument, Search

_MODEL = "a weights file, a run folder, a model folder, or a tower's name (default: the study's)"
_ASPECT = "what the photographs show, where nothing else says it, such as dorsal_r"
_CALIBRATION = "a run folder of notebook 06 (default: what the model's study holds)"
_STUDY = "whose model and calibration are taken (default: the model's own, else demo)"
_FORCE = "go on where no hand is found; without a likelihood ratio"
_OUT = "the page of evidence (default: in reports/evidence/)"
_COMMON: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--model",), {"default": "", "metavar": "MODEL", "help": _MODEL}),
    (("--pretrained",), {"default": "", "metavar": "TAG", "help": "a tag or file of an open_clip"}),
    (("--variant",), {"default": "", "metavar": "NAME", "help": "which weights of a run folder"}),
    (("--study",), {"default": "", "metavar": "STUDY", "help": _STUDY}),
    (("--aspect",), {"default": "", "metavar": "ASPECT", "help": _ASPECT}),
    (("--calibration",), {"default": "", "metavar": "RUN", "help": _CALIBRATION}),
    (("--out",), {"default": "", "metavar": "PAGE.html", "help": _OUT}),
    (("--force",), {"action": "store_true", "help": _FORCE}),
]
_GALLERY = "photographs: a folder, or a CSV with a column image (and pid, aspect)"
SEARCH: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("query",), {"metavar": "QUERY", "help": "a photograph of a hand"}),
    (("--gallery",), {"required": True, "metavar": "FOLDER|CSV", "help": _GALLERY}),
    (("--top",), {"type": int, "default": 10, "metavar": "N", "help": "entries (%(default)s)"}),
    *_COMMON,
]
VERIFY: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("first",), {"metavar": "A", "help": "a photograph of a hand"}),
    (("second",), {"metavar": "B", "help": "another one"}),
    *_COMMON,
]


def search(asked: argparse.Namespace) -> int:
    """Run `handclip search`; returns the exit status."""
    from handclip_lib.report import evidence, findings, outside
    from handclip_lib.report.search import search as searched

    page, instrument = _page("search", asked, asked.query), _instrument(asked)
    query, gallery = Path(asked.query), Path(asked.gallery)
    found = searched(instrument, query, gallery, asked.top, asked.aspect, asked.force)
    print("\n".join(_table(found)) + "\n")
    _say(findings.of_search(found, instrument))
    _cannot((*outside.CLOSED, *outside.LIMITS))
    print(f"\npage: {evidence.search_page(found, instrument, page)}")
    return 0


def verify(asked: argparse.Namespace) -> int:
    """Run `handclip verify`; returns the exit status."""
    from handclip_lib.report import evidence, findings, outside
    from handclip_lib.report.search import compare

    page, instrument = _page("verify", asked, asked.first, asked.second), _instrument(asked)
    first, second = Path(asked.first), Path(asked.second)
    found = compare(instrument, first, second, asked.aspect, asked.force)
    _say(findings.of_comparison(found, instrument))
    _cannot(outside.LIMITS)
    print(f"\npage: {evidence.comparison_page(found, instrument, page)}")
    return 0


def _instrument(asked: argparse.Namespace) -> "Instrument":
    from handclip_lib.report.search import open_instrument

    if asked.aspect and asked.aspect not in ASPECTS:
        near = did_you_mean(asked.aspect, ASPECTS)
        raise ParamError(f"--aspect: no aspect '{asked.aspect}'{near}; one of {', '.join(ASPECTS)}")
    names = ("model", "pretrained", "variant", "study", "aspect", "calibration")
    instrument = open_instrument(**{name: getattr(asked, name) for name in names})
    print(f"model: {instrument.source}, weights {instrument.encoder.weights_sha256[:16]}")
    return instrument


def _page(command: str, asked: argparse.Namespace, *photographs: str) -> Path:
    """Where the page goes: by default a name that tells the command, photographs and the rest."""
    from handclip_lib.report.runs import reports_root

    if asked.out:
        out = Path(asked.out).expanduser().absolute()
        if out.suffix.lower() not in (".html", ".htm"):
            raise ParamError(f"--out {asked.out}: a page ends in .html")
        return out
    told = {k: str(v) for k, v in sorted(vars(asked).items()) if k not in ("does", "debug")}
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
    names = "_".join([command, *(Path(name).stem for name in photographs)])
    return reports_root(load()) / "evidence" / f"{names}_{digest}.html"


def _table(found: "Search") -> Iterable[str]:
    """The ranking in lines; ratios and persons only where there are any."""
    calibrated, persons = bool(found.ranking["llr"].notna().any()), found.ranking["person"]
    width = max(6, *(len(person) for person in persons)) if (persons != "").any() else 0
    heads = ["rank", "similarity", *(["log10 LR"] * calibrated)]
    yield "  ".join([*heads, *(["person".ljust(width)] if width else []), "photograph"])
    for row in found.ranking.to_dict("records"):
        llr = "-" if math.isnan(row["llr"]) else f"{row['llr']:+.2f}"
        cells = [f"{row['rank']:4d}", f"{row['similarity']:10.3f}", *([f"{llr:>8}"] * calibrated)]
        yield "  ".join([*cells, *([row["person"].ljust(width)] if width else []), row["image"]])


def _say(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(textwrap.fill(sentence, 96, break_long_words=False, break_on_hyphens=False))


def _cannot(limits: Iterable[str]) -> None:
    print("\nwhat this cannot say:")
    for limit in limits:
        print(textwrap.fill(limit, 96, initial_indent="  - ", subsequent_indent="    "))


COMMANDS: dict[str, tuple[Any, list[tuple[tuple[str, ...], dict[str, Any]]], str]] = {
    "search": (
        search,
        SEARCH,
        "rank the photographs of a gallery by their likeness to one, and write a page of evidence",
    ),
    "verify": (
        verify,
        VERIFY,
        "hold two photographs against each other: similarity, and the likelihood ratio where a"
        " study has calibrated the model; writes a page of evidence",
    ),
}
