"""The look of every page, nothing from outside; the words for numbers there and in figures."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from handclip_lib.evaluate.retrieval import HEADLINE, METRICS

_WORDS = ("rank-1", "rank-5", "rank-10", "mAP", "mAP (trapezoid)", "mINP")
WORDS = dict(zip(METRICS, _WORDS, strict=True))
SHOWN = {metric: WORDS[metric] for metric in HEADLINE}
GALLERIES = {"own": "own gallery", "all": "all aspects"}
CSS = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#52606d;--line:#d9dfe6;--paper:#fff;
--shade:#f4f6f8;--link:#0b63a5;--warn:#fff4e0;--warnline:#e69f00;--good:#00795a}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--soft:#9aa5b1;--line:#37424d;
--paper:#14191f;--shade:#1d242b;--link:#6cb8f0;--warn:#33290f;--warnline:#c98a00;--good:#3fc79a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.6rem 1.2rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.6rem 0 .4rem}h1,h3,p,li{overflow-wrap:anywhere}
p{margin:.5rem 0}a{color:var(--link)}small,.soft{color:var(--soft)}
a.quiet{color:inherit;text-decoration:none}a.quiet:hover{text-decoration:underline}
:target{background:var(--warn)}
.over{color:var(--soft);font-size:.9rem;margin:0}
nav{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:1.2rem 0 0;font-size:.92rem}
.scroll table{width:100%}
.banner{background:var(--warn);border-left:4px solid var(--warnline);padding:.7rem 1rem;
border-radius:0 6px 6px 0;margin:1rem 0}
.scroll,.output_area,.output_html{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;border:0}
th,td{padding:.34rem .7rem;text-align:right;border:0;border-bottom:1px solid var(--line);
white-space:nowrap}
th{font-weight:600;color:var(--soft)}thead th{border-bottom:2px solid var(--line)}
th.name,td.name,tbody th,thead th:first-child{text-align:left}th[colspan]{text-align:center}
th.name[colspan]{text-align:left}
tbody th,td.name{color:var(--ink)}
.output_html tbody th:first-child,.output_html thead th:first-child,
.scroll th.name,.scroll td.name{position:sticky;left:0;background:var(--paper);z-index:1}
tr.group th{padding-top:.9rem}tr.group td{padding:0}
td small,th small{display:block;font-size:.87em;font-weight:400}
td.axis,th.axis{padding:.1rem .4rem;min-width:168px}
th.axis span{display:inline-block;width:33%;text-align:center;font-weight:400;font-size:.8rem}
th.axis span:first-child{text-align:left}th.axis span:last-child{text-align:right}
svg.bar{display:block;margin:auto}
.dot{display:inline-block;width:.6rem;height:.6rem;border-radius:50%;margin-right:.35rem}
td.heat{text-align:center;background:rgba(0,114,178,calc(.04 + .5*var(--v)));
border:2px solid var(--paper);-webkit-print-color-adjust:exact;print-color-adjust:exact}
td.none{text-align:center;color:var(--soft)}
#heat th:not(.name){text-align:center;white-space:normal;padding:.34rem .2rem;min-width:4.2rem}
#parameters td:not(.name){white-space:normal;min-width:9rem;overflow-wrap:anywhere}
#parameters th:not(.name),#parameters td{text-align:left;vertical-align:top}
code,pre{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;white-space:pre-wrap;background:var(--shade)}
pre{padding:.7rem .9rem;border-radius:6px;margin:.5rem 0}
code{background:var(--shade);padding:.1em .3em;border-radius:4px}pre code{background:none;padding:0}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--link)}
figure{margin:0}figcaption{color:var(--soft);font-size:.85rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.82rem;color:var(--soft)}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:1rem}
.pair{display:flex;flex-wrap:wrap}.pair svg{flex:1 1 200px;min-width:0;max-width:50%}
.galleries{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));
gap:1.2rem}
.galleries img{display:block;width:100%;border:1px solid var(--line)}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.7rem;
margin:.6rem 0}
.thumbs a{display:block;border:1px solid var(--line);border-radius:6px;overflow:hidden;
text-decoration:none;color:var(--soft);font-size:.8rem;background:var(--shade)}
.thumbs img{display:block;width:100%;height:110px;object-fit:cover;object-position:top left;
border-radius:0}
.thumbs span{display:block;padding:.25rem .5rem;white-space:nowrap;overflow:hidden;
text-overflow:ellipsis}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.85rem}
footer dl,.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:0;
font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
@media (max-width:600px){main{padding:1rem .8rem 3rem}h1{font-size:1.35rem}
th,td{padding:.3rem .3rem}table{font-size:.8rem}
.scroll td.name,.scroll th.name{white-space:normal;min-width:8rem;overflow-wrap:anywhere}
.pair svg{flex-basis:100%;max-width:100%}td small,th small{font-size:.8em}
footer dl,.facts{grid-template-columns:1fr}dt{margin-top:.3rem}}
@page{margin:14mm}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--shade:#fff;
--link:#000;--warn:#fff;--warnline:#e69f00;--good:#000}
html,body{font-size:11px}main{max-width:none;padding:0}a{color:inherit}
.scroll,.output_html{overflow:visible}.scroll .name,.output_html th{position:static!important}
table{font-size:.85em}th,td{padding:.15rem .3rem;white-space:normal!important;
min-width:0!important;overflow-wrap:anywhere}
td.axis,th.axis{min-width:0}svg.bar{width:110px}
h2,h3,legend,summary,thead{break-after:avoid}
img,tr,figure,.thumbs a,.banner{break-inside:avoid}
.thumbs img{height:auto}.galleries{grid-template-columns:1fr 1fr}.thumbs{grid-template-columns:
repeat(4,1fr)}.curves{grid-template-columns:1fr 1fr}
details::details-content{content-visibility:visible;display:block;height:auto}
details:not([open])>*{display:block}.facts dd,.facts dt{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
    """A whole HTML page that asks nobody for anything. title: text; body: HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


TOYS = {"tiny", "tiny_rn"}  # towers that have seen drawn hands only


def banner(data: str, variants: Iterable[str]) -> str:
    """What data it is, said before any number: drawings prove nothing, nor do towers that saw them.

    variants: the names in metrics.json, which are the towers'.
    """
    text = f"<strong>Data: {html.escape(data)}.</strong>"
    if data.startswith("drawn hands"):
        text += (
            " These hands are drawn by a program, to show that everything runs."
            " Figures from drawn hands say nothing about real ones."
        )
    elif TOYS & set(variants):
        text += (
            " The towers tiny and tiny_rn were trained on drawn hands, to show that everything"
            " runs: their figures say nothing about CLIP."
        )
    return f'<p class="banner">{text}</p>'


def contents(sections: Mapping[str, str]) -> str:
    """A line of links, then every section that has something to show. {title: HTML or ""}."""
    told = {title: body for title, body in sections.items() if body}
    names = {title: title.lower().replace(" ", "-") for title in told}
    links = "".join(f'<a href="#to-{n}">{html.escape(t)}</a>' for t, n in names.items())
    parts = "\n".join(
        f'<section id="to-{names[title]}"><h2>{html.escape(title)}</h2>{body}</section>'
        for title, body in told.items()
    )
    return f'<nav aria-label="contents">{links}</nav>\n{parts}'


def facts(rows: dict[str, str]) -> str:
    """A list of names and values."""
    items = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in rows.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def provenance(stamp: dict[str, Any]) -> dict[str, str]:
    """The facts of a stamp.json that a reader asks for first."""
    commit = stamp["git"]["commit"]
    code = f"{commit[:12]}{' with changes' if stamp['git']['dirty'] else ''}" if commit else "?"
    kept = ("torch", "open_clip_torch", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {stamp['packages'].get(name)}" for name in kept)
    memory = ", ".join(f"{where} {mb:.0f} MB" for where, mb in stamp["peak_memory_mb"].items())
    return {
        "data": stamp["data"],
        "manifest sha256": stamp["manifest_sha256"] or "none written",
        "code": f"handclip {stamp['handclip']}, commit {code}",
        "versions": f"Python {stamp['python']}, {versions}",
        "machine": f"{stamp['device']}; {stamp['platform']}",
        "time and memory": f"{stamp['seconds']:.0f} s; peak {memory}",
    }


def percent_cell(mean: float, interval: Iterable[float]) -> str:
    """A table cell of a 0–1 metric in per cent, its interval (low, high) below it."""
    low, high = interval
    return f"<td>{100 * mean:.1f}<small>{100 * low:.1f}–{100 * high:.1f}</small></td>"


def p_text(p: float) -> str:
    """`0.034`, or `< 0.001`."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def signed(value: float) -> str:
    """`+3.1` or `−0.4`: a difference of 0–1 metrics, in points of per cent."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")  # no −0.0


def in_points(value: float) -> str:
    """`signed`, but `0` without sign and digit where that is all there is."""
    return signed(value) if abs(value) >= 5e-4 else "0"


def signed_span(value: float, span: Iterable[float]) -> str:
    """A difference in points with its interval: `+3.1 [−0.4, +6.2]`."""
    low, high = span
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"
