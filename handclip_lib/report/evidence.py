"""A page of evidence: photographs, similarity, what it is worth and what it cannot say. Offline."""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from handclip_lib import __version__
from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import DRAWN
from handclip_lib.data.preprocess import to_rgb
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.calibration import apply
from handclip_lib.evaluate.explanation import ROLLOUT, faced, look, maps_of
from handclip_lib.params import ROOT
from handclip_lib.report.calibrated import Population, signed
from handclip_lib.report.canvas import INK, PALETTE, QUIET, canvas, grid_lines, styled
from handclip_lib.report.explain import map_grid, pair_board
from handclip_lib.report.findings import of_comparison, of_search
from handclip_lib.report.outside import CLOSED, LIMITS, is_drawn
from handclip_lib.report.page import banner, facts, page
from handclip_lib.report.runs import replace_text
from handclip_lib.report.search import Comparison, Instrument, Search
from handclip_lib.report.stamp import git_state, library_sha256
from handclip_lib.schema import Params

_SIDE = 420  # pixels of a photograph's longer side on the page
_CARDS = """<style>
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.8rem;
margin:1rem 0}
.cards figure{margin:0;border:4px solid var(--line);border-radius:6px;overflow:hidden;
background:var(--shade);break-inside:avoid}
.cards img{display:block;width:100%;height:150px;object-fit:contain;border-radius:0;
background:#fff}
.cards figcaption{padding:.3rem .5rem .4rem;font-size:.82rem;line-height:1.35;
overflow-wrap:anywhere}
.cards.two{grid-template-columns:repeat(auto-fit,minmax(240px,470px))}.cards.two img{height:300px}
</style>"""


def search_page(found: Search, instrument: Instrument, file: Path) -> Path:
    """Write the page of a search; returns its path."""
    query = _row(found.query)
    first = found.ranking.iloc[0]
    sentences = list(of_search(found, instrument))
    colours = _colours(found.ranking["person"])
    cards = [_card(dict(row), colours[row["person"]]) for _, row in found.ranking.iterrows()]
    weighed = found.ranking.loc[found.ranking["llr"].notna(), "similarity"].tolist()
    same = "Frames of one strong colour: photographs of one person. " if any(colours) else ""
    body = (
        f'<h2>Query</h2><div class="cards two">{_card(query, INK)}</div>'
        f"<h2>The {len(cards)} most alike of {found.entries}</h2>"
        f'<p class="soft">{same}The order says who resembles most, not who it is.</p>'
        f'<div class="cards">{"".join(cards)}</div>'
        f"{_beside(query, dict(first), instrument)}"
        f"{_calibration(instrument, weighed, found.withheld)}"
    )
    name = found.query["image"].iloc[0]
    sides = [query, dict(first)]
    text = _whole(f"Search for {name}", sentences, body, (*CLOSED, *LIMITS), instrument, sides)
    return _written(file, text, f"Search for {name}")


def comparison_page(found: Comparison, instrument: Instrument, file: Path) -> Path:
    """Write the page of a comparison; returns its path."""
    sides = [_row(photograph) for photograph in (found.first, found.second)]
    cards = "".join(_card(side, INK) for side in sides)
    body = (
        f'<h2>Photographs</h2><div class="cards two">{cards}</div>'
        f"{_beside(sides[0], sides[1], instrument)}"
        f"{_calibration(instrument, [found.similarity], found.withheld)}"
    )
    title = f"{Path(sides[0]['image']).name} against {Path(sides[1]['image']).name}"
    sentences = list(of_comparison(found, instrument))
    return _written(file, _whole(title, sentences, body, LIMITS, instrument, sides), title)


@styled
def ratio_line(population: Population, similarities: Sequence[float], title: str) -> Figure:
    """From similarity to log10 likelihood ratio, a dot a pair; shaded: similarities seen there.

    Outside of the shade the line is a guess; its flat ends are the bounds.
    """
    fig, axes = canvas(title, size=(7.0, 3.2))
    ax, (low, high) = axes[0, 0], population.scores
    x = np.linspace(min([low, *similarities]) - 0.02, max([high, *similarities]) + 0.02, 400)
    ax.axvspan(low, high, color=QUIET, alpha=0.35, linewidth=0)
    ax.axhline(0, color=INK, linewidth=1)
    ax.plot(x, apply(population.calibration, x), color=PALETTE[0], linewidth=1.8)
    y = apply(population.calibration, similarities)
    ax.plot(similarities, y, "o", color=PALETTE[5], markeredgecolor="white", markersize=7)
    ax.set(xlabel="similarity (cosine)", ylabel="log₁₀ likelihood ratio", xlim=(x[0], x[-1]))
    grid_lines(ax)
    return fig


def _row(photograph: pd.DataFrame) -> dict[str, str]:
    told = photograph.iloc[0]
    image = Path(photograph.attrs["root"]) / told["image"]
    drawn = DRAWN if is_drawn(photograph) else "own photographs"
    return {"image": str(image), "aspect": told["aspect"], "person": told["person"], "data": drawn}


def _colours(persons: Iterable[str]) -> dict[str, str]:
    """A colour for each person that is named, while there are any."""
    names = [name for name in dict.fromkeys(persons) if name]
    return {"": ""} | dict.fromkeys(names, "") | dict(zip(names, PALETTE[:7], strict=False))


def _card(row: Mapping[str, object], colour: str) -> str:
    path = Path(str(row["image"]))
    told = [f"<strong>{row['rank']}</strong>"] if "rank" in row else []
    told += [f"person {html.escape(str(row['person']))}"] if row["person"] else []
    told += [ASPECTS[str(row["aspect"])].title] if row["aspect"] else []
    lines = [" · ".join(told), html.escape(path.name)]
    if "similarity" in row:
        lines[1:1] = [f"similarity {signed(float(str(row['similarity'])), 3).lstrip('+')}"]
        llr = float(str(row["llr"]))
        lines[2:2] = [] if np.isnan(llr) else [f"log₁₀ LR {signed(llr)}"]
        lines += [] if row["hand"] else ["no hand found"]
    style = f' style="border-color:{colour}"' if colour else ""
    alt, caption = html.escape(path.name), "<br>".join(filter(None, lines))
    return (
        f'<figure{style}><img src="{_thumbnail(path)}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _beside(first: Mapping[str, str], second: Mapping[str, str], instrument: Instrument) -> str:
    """What makes these two alike to the model: attention, maps, places that answer each other."""
    encoder = instrument.encoder
    names = [str(side["image"]) for side in (first, second)]  # absolute: whatever the root
    told = {"image": names, "aspect": [first["aspect"], second["aspect"]]}
    table = pd.DataFrame(told).drop_duplicates("image")
    table.attrs = {"root": Path(names[0]).anchor, "title": ""}
    other = instrument.features(table)[[-1, 0]]  # a row for each side
    store, fabric = open_store(table, encoder.preprocess), make_fabric(Params())
    seen = look(encoder, store, names, other, fabric, instrument.feature)
    facing, why = None, ""
    try:
        facing = faced(seen)
    except TypeError as error:  # of a tower that cannot be looked into
        why = str(error)
    figures = [pair_board(facing, "what makes the two alike to the model", why)]
    maps, left_out = maps_of(seen.held)
    if ROLLOUT in maps:
        shown = {ROLLOUT: maps[ROLLOUT]}
        figures.append(map_grid(seen.pixels, shown, "what the model attends to"))
    why = why or left_out.get(ROLLOUT, "")
    note = "" if not why else f'<p class="soft">{html.escape(why)}</p>'
    return f"<h2>Side by side</h2>{''.join(map(_figure, figures))}{note}"


def _calibration(instrument: Instrument, similarities: Sequence[float], withheld: str) -> str:
    population = instrument.population
    if population is None or withheld:
        return f"<h2>Calibration</h2><p>None is used: {html.escape(withheld)}.</p>"
    told = population.calibration
    bounds = f"{signed(told.low)} to {signed(told.high)} (log₁₀), as far as its pairs reach"
    rows = {
        "population": population.words(),
        "data": f"{population.data}; {ASPECTS[population.aspect].title}",
        "ratios lie within": bounds,
        "worth": population.worth(),
        "run": _short(population.run),
    }
    line = ratio_line(population, similarities, "from similarity to likelihood ratio")
    return (
        f"<h2>Calibration</h2>{facts(rows)}{_figure(line)}"
        '<p class="soft">Dots: these pairs. Shaded: similarities that the population had; outside'
        " of them the line is a guess.</p>"
    )


def _whole(
    title: str,
    sentences: Sequence[str],
    body: str,
    limits: Sequence[str],
    instrument: Instrument,
    sides: Sequence[Mapping[str, str]],
) -> str:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    cannot = "".join(f"<li>{html.escape(limit)}</li>" for limit in limits)
    return (
        f'{_CARDS}<p class="over">{html.escape(now)}</p><h1>{html.escape(title)}</h1>'
        f"{banner(sides[0]['data'], [instrument.encoder.name])}{said}{body}"
        f"<h2>What this cannot say</h2><ul>{cannot}</ul>"
        f"<h2>Made of</h2>{facts(_made_of(instrument, [side['image'] for side in sides]))}"
    )


def _made_of(instrument: Instrument, files: Sequence[str]) -> dict[str, str]:
    encoder, code = instrument.encoder, git_state(ROOT)
    pixels = encoder.preprocess
    left = ", left hands mirrored" if pixels.mirror_left else ""
    rows = {
        "model": f"{encoder.name}, from {_short(Path(instrument.source))}",
        "weights sha256": encoder.weights_sha256,
        "trained on": instrument.taught,
        "similarity": f"cosine of {' + '.join(instrument.feature)}",
        "pictures": f"{pixels.size[1]} × {pixels.size[0]} pixels, fitted by {pixels.fit}{left}",
        "code": f"handclip {__version__}, commit {(code['commit'] or '?')[:12]}"
        f"{' with changes' if code['dirty'] else ''}, library sha256 {library_sha256()[:16]}",
    }
    for file in dict.fromkeys(files):
        content = Path(file).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        rows[Path(file).name] = f"{len(content):,} bytes, sha256 {digest}"
    return rows


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _thumbnail(path: Path) -> str:
    with Image.open(path) as opened:
        picture = to_rgb(opened)
    picture.thumbnail((_SIDE, _SIDE))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def _figure(fig: Figure) -> str:
    held = io.BytesIO()
    fig.savefig(held, format="png", dpi=fig.dpi)
    code = base64.b64encode(held.getvalue()).decode()
    width = round(0.8 * fig.get_figwidth() * fig.dpi)
    # on a phone a wide figure scrolls in its box: shrunk, nothing on it could be told apart
    least = min(width, 640)
    return (
        f'<p class="scroll"><img src="data:image/png;base64,{code}" width="{width}"'
        f' style="min-width:{least}px" alt=""></p>'
    )


def _written(file: Path, body: str, title: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, page(title, body))
    return file
