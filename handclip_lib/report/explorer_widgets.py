"""The explorer of notebook 07 as widgets: menus, a plane to draw on, thumbnails, ranked lists.

Thin: what is shown is made by `report.explorer` and `report.explorer_plots`, and laid out in
`report.explorer_board`. CSS classes by which a page (or a test that drives one) finds the parts:
`handclip-explorer` the whole; `handclip-<menu>` each menu (`aspect`, `gallery`, `model`, `beside`,
`projection`, `colour`); `handclip-plane` the canvas that a line is drawn on, the leftmost tenth of
which is a toolbar's; `handclip-thumbs` the box of thumbnails and `handclip-thumb` each of them, a
button (`handclip-asked` too, once clicked); `handclip-answer` and `handclip-beside-answer` the
ranked lists, pictures that are hidden until there is something to show; `handclip-upload` the
button for a photograph of one's own, `handclip-maps` the box that switches maps off;
`handclip-message` the line that says what happened, `handclip-error` in it where it went wrong.
"""

import base64
import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import quantity
from handclip_lib.report import explorer_plots
from handclip_lib.report.explorer import Answer, Explored, Scene, answer, answer_own, inside
from handclip_lib.report.explorer_board import SIDE, Board, make_board, offers
from handclip_lib.report.projections import TITLES

_HINT = "Draw a line around points to see their photographs; click one to search for its person."
_TOP = 5  # answers a list
_ERRORS = (ValueError, TypeError, OSError, RuntimeError)  # of files, parameters, towers, memory


def explorer(known: Explored, start: Scene, beside: str, projection: str) -> Board:
    """An explorer of a study, at a scene, with the answers of a second model beside it.

    beside: a model, or empty for none; projection: `pca`, `tsne` or `umap`.
    """
    board = make_board(known, start, beside, projection)
    for name, menu in board.menus.items():
        menu.observe(_changed(board, name), names="value")
    board.maps.observe(lambda _: _search(board), names="value")
    board.upload.observe(lambda _: _dropped(board), names="value")
    _draw(board)
    return board


def show(board: Board, still: Figure) -> None:
    """Display an explorer; a front end without widgets, or a page, shows the still picture."""
    data = dict(board.whole._repr_mimebundle_())
    data["image/png"] = base64.b64encode(explorer_plots.png(still)).decode()
    display(data, raw=True)


def lasso(board: Board, outline: list[tuple[float, float]]) -> None:
    """What drawing a line on the plane does: k points inside it give k thumbnails."""
    with _telling(board):
        chosen = inside(board.now["points"], outline)
        board.now["chosen"] = chosen
        _show_thumbnails(board)
        explorer_plots.faint(board.canvas.figure, chosen if len(chosen) else None)
        board.canvas.draw_idle()


def scene(board: Board, name: str = "model") -> Scene:
    """What the menus say; name: the menu whose model it is."""
    menus = board.menus
    return Scene(menus["aspect"].value, menus["gallery"].value, menus[name].value)


def _changed(board: Board, name: str) -> Callable[[Any], None]:
    def react(_: Any) -> None:
        if board.now["quiet"]:
            return
        if name == "aspect":
            _offer(board)
        if name in ("aspect", "gallery"):
            board.now.update(chosen=None, query=None)
        if name != "beside":
            _draw(board)
        if name not in ("projection", "colour"):
            _search(board)

    return react


def _offer(board: Board) -> None:
    """The galleries and models of another aspect; what was chosen stays where there is such."""
    board.now["quiet"] = True
    for name, options in offers(board.known, board.menus["aspect"].value).items():
        menu, values = board.menus[name], [value for _, value in options]
        was = menu.value
        menu.options = options
        menu.value = was if was in values else values[0]
    board.now["quiet"] = False


def _draw(board: Board) -> None:
    """The plane anew, what was chosen on it, and a lasso to draw with."""
    with _telling(board):
        at, method = scene(board), board.menus["projection"].value
        images = list(board.known.space(at).images)
        points = board.known.plane(at, method)
        values = board.known.facts(images)[board.menus["colour"].value]
        board.now.update(images=images, points=points)
        title = f"{TITLES[method]}, {at.model}, {ASPECTS[at.aspect].title}"
        fig = explorer_plots.plane(points, values, title, board.canvas.figure)
        chosen = board.now["chosen"]
        if chosen is not None and len(chosen):
            explorer_plots.faint(fig, chosen)
        style = {"color": "#D55E00", "linewidth": 1.5}
        # this canvas cannot blit, and a line that is drawn for blitting would not be seen
        board.now["lasso"] = LassoSelector(
            fig.axes[0], lambda line: lasso(board, line), useblit=False, props=style
        )
        board.canvas.draw_idle()
        _show_thumbnails(board)


def _show_thumbnails(board: Board) -> None:
    """A button with its photograph for each chosen point, in the order of persons."""
    chosen, now = board.now["chosen"], board.now
    images = [] if chosen is None else [now["images"][k] for k in chosen]
    facts = board.known.facts(images).sort_values(["pid", "aspect", "image"])
    images = facts["image"].tolist()
    pixels = board.known.store(scene(board)).pixels(images).numpy()
    while len(board.buttons) < len(images):
        board.buttons.append(_button(board, len(board.buttons)))
    mark = board.whole.model_id[:8]
    rules = []
    for k, file in enumerate(explorer_plots.thumbnails(pixels, SIDE)):
        data = f"url(data:image/jpeg;base64,{base64.b64encode(file).decode()})"
        rules.append(f".handclip-explorer .handclip-{mark}-{k} {{ background-image: {data} }}")
    board.pictures.value = f"<style>{' '.join(rules)}</style>"
    for button, row in zip(board.buttons, facts.to_dict("records"), strict=False):
        button.description, button.tooltip = f"person {row['pid']}", row["image"]
    board.thumbs.children = board.buttons[: len(images)]
    board.now["shown"] = images
    persons = quantity(facts["pid"].nunique(), "person")
    found = f"{quantity(len(images), 'photograph')} of {persons}"
    board.now["said"] = found if images else _HINT


def _button(board: Board, place: int) -> widgets.Button:
    button = widgets.Button().add_class("handclip-thumb")
    button.add_class(f"handclip-{board.whole.model_id[:8]}-{place}")

    def clicked(_: widgets.Button) -> None:
        board.now["query"] = board.now["shown"][place]
        _search(board)

    button.on_click(clicked)
    return button


def _dropped(board: Board) -> None:
    if board.upload.value:
        board.now["query"] = bytes(board.upload.value[0]["content"])
        _search(board)


def _search(board: Board) -> None:
    """The ranked lists of what was asked for last, by one model or by two."""
    query = board.now["query"]
    for button, image in zip(board.buttons, board.now["shown"], strict=False):
        (button.add_class if image == query else button.remove_class)("handclip-asked")
    for name, picture in board.answers.items():
        if query is None or not board.menus[name].value:
            picture.layout.display = "none"
            continue
        with _telling(board):
            at = scene(board, name)
            found = _found(board, at, query)
            of = "your photograph" if isinstance(query, bytes) else query
            picture.value = explorer_plots.png(
                explorer_plots.answer_sheet(found, f"{at.model}: {of}")
            )
            picture.layout.display = ""
            board.now["said"] = f"{of}: {found.note}"


def _found(board: Board, at: Scene, query: str | bytes) -> Answer:
    maps = board.maps.value
    if isinstance(query, bytes):
        return answer_own(board.known, at, query, _TOP, maps)
    return answer(board.known, at, query, _TOP, maps)


@contextmanager
def _telling(board: Board) -> Iterator[None]:
    """Say that something is going on, then what came of it; a reader sees no log of the kernel."""
    board.message.value = "working …"
    try:
        yield
    except _ERRORS as error:
        words = html.escape(str(error)) or type(error).__name__
        board.message.value = f'<span class="handclip-error">{words}</span>'
    else:
        board.message.value = html.escape(board.now.get("said", _HINT))
