"""The widgets of the explorer and how they are laid out; `report.explorer_widgets` moves them."""

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import matplotlib
from matplotlib.figure import Figure

from handclip_lib.aspects import ASPECTS
from handclip_lib.evaluate.protocol import GALLERIES
from handclip_lib.report.explorer import Explored, Scene, coloured_by
from handclip_lib.report.explorer_plots import column_title
from handclip_lib.report.page import GALLERIES as GALLERY_TITLES
from handclip_lib.report.projections import TITLES

MENUS = {
    "aspect": "Aspect",
    "gallery": "Gallery",
    "model": "Model",
    "beside": "Beside it",
    "projection": "Projection",
    "colour": "Colour by",
}
SIDE = 84  # of a thumbnail, in pixels
_CSS = f"""
.handclip-explorer {{ max-width: 1180px; }}
.handclip-explorer .handclip-menus {{ display: flex; flex-flow: row wrap; gap: 4px 14px; }}
.handclip-explorer .handclip-plane {{ flex: 0 0 auto; width: auto; }}
.handclip-explorer .handclip-thumbs {{ display: flex; flex-flow: row wrap; gap: 6px;
 align-content: flex-start; overflow-y: auto; max-height: 500px; flex: 1 1 200px; padding: 4px; }}
.handclip-explorer .handclip-thumb {{ width: {SIDE + 8}px; height: {SIDE + 26}px; margin: 0;
 padding: {SIDE + 2}px 0 0; border: 1px solid #c9ced6; border-radius: 4px;
 background-color: #fff; background-position: center 4px; background-repeat: no-repeat;
 line-height: 20px; font-size: 12px; color: #1f2933; }}
.handclip-explorer .handclip-thumb.handclip-asked {{ border: 3px solid #0072b2; }}
.handclip-explorer .handclip-message {{ min-height: 24px; }}
.handclip-explorer .handclip-error {{ color: #c62828; font-weight: bold; }}
.handclip-explorer .handclip-answers {{ display: flex; flex-flow: row wrap; gap: 10px; }}
.handclip-explorer .handclip-answers img {{ height: auto; min-width: 0; flex: 1 1 400px;
 max-width: min(100%, 860px); }}
"""


@dataclass(frozen=True)
class Board:
    """The widgets of an explorer by what they are for. now: what is shown: `images`, `points`,
    `lasso`, `chosen` (positions), `shown` (images with thumbnails), `query` (an image, or the bytes
    of one's own), `said`; `quiet`: menus change, and nothing is to follow.
    """

    known: Explored
    whole: widgets.VBox
    menus: dict[str, widgets.Dropdown]
    canvas: Any  # ipympl's
    thumbs: widgets.Box
    pictures: widgets.HTML  # the thumbnails' style sheet
    maps: widgets.Checkbox
    upload: widgets.FileUpload
    answers: dict[str, widgets.Image]
    message: widgets.HTML
    buttons: list[widgets.Button]
    now: dict[str, Any]


def _menus(
    known: Explored, start: Scene, beside: str, projection: str
) -> dict[str, widgets.Dropdown]:
    aspects = [(ASPECTS[name].title, name) for name in known.models]
    offered = offers(known, start.aspect)
    columns = coloured_by(known.facts(known.space(start).images))
    told: dict[str, tuple[Any, Any]] = {
        "aspect": (aspects, start.aspect),
        "gallery": (offered["gallery"], start.gallery),
        "model": (offered["model"], start.model),
        "beside": (offered["beside"], beside),
        "projection": ([(title, name) for name, title in TITLES.items()], projection),
        "colour": ([(column_title(c), c) for c in columns], "pid"),
    }
    menus = {}
    for name, (options, value) in told.items():
        menu = widgets.Dropdown(options=options, value=value, description=MENUS[name])
        menus[name] = menu.add_class(f"handclip-{name}")
    return menus


def offers(known: Explored, aspect: str) -> dict[str, list[tuple[str, str]]]:
    """The (title, value) pairs of the menus that depend on the aspect."""
    there = set(known.manifests[aspect]["split"])
    models = [(name, name) for name in known.models[aspect]]
    return {
        "gallery": [(GALLERY_TITLES[n], n) for n, split in GALLERIES.items() if split in there],
        "model": models,
        "beside": [("–", ""), *models],
    }


def make_board(known: Explored, start: Scene, beside: str, projection: str) -> Board:
    """All widgets, at a scene; nothing is drawn yet, and none of them does anything."""
    menus = _menus(known, start, beside, projection)
    canvas = _canvas()
    thumbs = widgets.Box().add_class("handclip-thumbs")
    pictures, message = widgets.HTML(), widgets.HTML().add_class("handclip-message")
    maps = widgets.Checkbox(value=True, description="Maps of what the model looks at", indent=False)
    maps.add_class("handclip-maps")
    upload = widgets.FileUpload(accept="image/*", description="Your own photograph")
    upload.layout.width = "220px"
    upload.add_class("handclip-upload")
    answers = {}
    for name, css in (("model", "handclip-answer"), ("beside", "handclip-beside-answer")):
        answers[name] = widgets.Image(format="png").add_class(css)
        answers[name].layout.display = "none"
    whole = widgets.VBox(
        [
            widgets.HTML(f"<style>{_CSS}</style>"),
            widgets.Box(list(menus.values())).add_class("handclip-menus"),
            widgets.Box([upload, maps]).add_class("handclip-menus"),
            message,
            widgets.HBox([canvas, thumbs]),
            pictures,
            widgets.Box(list(answers.values())).add_class("handclip-answers"),
        ]
    ).add_class("handclip-explorer")
    now: dict[str, Any] = {
        "points": None,
        "images": [],
        "chosen": None,
        "query": None,
        "quiet": False,
        "shown": [],
    }
    return Board(
        known, whole, menus, canvas, thumbs, pictures, maps, upload, answers, message, [], now
    )


def _canvas() -> Any:
    """A canvas of its own: figures of other cells stay as they are."""
    backend = matplotlib.get_backend()
    # the import makes itself the backend of every figure
    from ipympl.backend_nbagg import Canvas, FigureManager

    matplotlib.use(backend)
    canvas = Canvas(Figure((5.9, 4.9), dpi=100))
    FigureManager(canvas, 0)
    canvas.toolbar_visible = "visible"
    canvas.header_visible = canvas.footer_visible = canvas.resizable = False
    return canvas.add_class("handclip-plane")
