"""The explorer: its lists are the evaluator's, its lasso takes what it encloses, widgets obey."""

import base64
import io
import json
from datetime import UTC, datetime

import ipywidgets as widgets
import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import toy_hands
from matplotlib.colors import to_hex
from PIL import Image

from handclip_lib.data.splits import make_manifest
from handclip_lib.device import make_fabric
from handclip_lib.evaluate import protocol
from handclip_lib.evaluate.explanation import held_against, maps_of
from handclip_lib.models.checkpoint import save_checkpoint
from handclip_lib.models.clip import load_encoder
from handclip_lib.params import load
from handclip_lib.report import explorer, explorer_plots, explorer_widgets, export
from handclip_lib.report.canvas import BAD, GOOD, QUIET
from handclip_lib.report.explorer import Explored, Scene
from handclip_lib.report.explorer_widgets import Board
from handclip_lib.report.lineup import Contender
from handclip_lib.schema_base import Model

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
LINE = (0xD5, 0x5E, 0x00)
RIGHT = Scene("dorsal_r", "own", "first")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    """Two aspects of twelve persons of squares, and two towers with random weights."""
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    root = tmp_path_factory.mktemp("hands")
    table = toy_hands.squares(root, 12, 3)
    for name in table["image"]:
        (root / f"p{name}").write_bytes((root / name).read_bytes())
    both = pd.concat(
        [table, table.assign(aspect="palmar_r", image="p" + table["image"])], ignore_index=True
    )
    both.attrs = table.attrs
    told = {
        "data": {"dataset": "own"},
        "split": {"draws": 2},
        "model": {"name": "toy-vit", "pretrained": "random", "fit": "squash"},
        "device": {"accelerator": "cpu"},
    }
    path = tmp_path_factory.mktemp("study") / "squares.yaml"
    path.write_text(json.dumps(told))
    p = load("dorsal_r", str(path))
    torch.manual_seed(0)
    models = {}
    for name, tower in {"first": "toy-vit", "second": "toy-rn"}.items():
        file = path.with_name(f"{name}.pth")
        save_checkpoint(file, load_encoder(tower, "random"), {}, "", "k", {"taught": {}})
        models[name] = Contender(name, Model(name=str(file), pretrained=""))
    manifests = {a: make_manifest(both, a, draws=2) for a in ("dorsal_r", "palmar_r")}
    offered = {"dorsal_r": models, "palmar_r": {"first": models["first"]}}
    return Explored(p, both, manifests, offered, make_fabric(p))


def queries(known: Explored, draw: int = 0) -> list[str]:
    rows = known.manifests["dorsal_r"]
    return rows.loc[(rows["split"] == "query") & (rows["draw"] == draw), "image"].tolist()


# -- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("gallery", ["own", "all"])
def test_every_list_is_the_evaluators(known, gallery):
    at = Scene("dorsal_r", gallery, "first")
    space, manifest = known.space(at), known.manifests["dorsal_r"]
    for draw in (0, 1):
        theirs = protocol.ranking(space.z, space.images, manifest, draw, gallery, top=5)
        first_asked = [q for q in queries(known, draw) if draw == 0 or q not in queries(known)]
        mine = [explorer.answer(known, at, q, maps=False).ranking for q in first_asked]
        theirs = theirs[theirs["query"].isin(first_asked)]
        assert explorer.same_lists(mine, theirs) and first_asked
        assert not explorer.same_lists(mine[::-1], theirs)
        wrong = theirs.assign(similarity=theirs["similarity"] + 1e-3)
        assert not explorer.same_lists(mine, wrong)


def test_maps_and_pictures_follow_the_list(known):
    query = queries(known)[0]
    found = explorer.answer(known, RIGHT, query, top=4)
    images = [query, *found.ranking["gallery"]]
    np.testing.assert_array_equal(found.pixels, known.store(RIGHT).pixels(images).numpy())
    assert {kind: maps.shape for kind, maps in found.maps.items()} == {
        "attention": (5, 4, 4),
        "raises the cosine": (5, 4, 4),
    }
    tower, space = (known.encoder(RIGHT), known.store(RIGHT)), known.space(RIGHT)
    for k, other in ((0, images[1]), (1, query), (4, query)):  # each against the other side
        held = held_against(*tower, images[k : k + 1], space.of([other]), known.fabric)[1]
        for kind, maps in maps_of(held)[0].items():
            close = {"rtol": 0, "atol": 0.1 * maps.max()}  # the toy towers see little apart
            np.testing.assert_allclose(found.maps[kind][k], maps[0], **close)
    assert found.note == "gallery of draw 0" and not found.left_out
    assert not explorer.answer(known, RIGHT, query, maps=False).maps


def test_the_photograph_of_the_gallery_is_asked_in_a_draw_that_asks_for_it(known):
    manifest = known.manifests["dorsal_r"]
    entries = manifest[(manifest["split"] == "gallery") & (manifest["draw"] == 0)]["image"]
    other = [image for image in entries if image in queries(known, 1)]
    assert other
    found = explorer.answer(known, RIGHT, other[0], maps=False)
    assert found.note == "gallery of draw 1" and other[0] not in set(found.ranking["gallery"])


def test_a_hand_that_is_never_a_query_is_searched_without_itself(known):
    at = Scene("dorsal_r", "all", "first")
    palm = next(image for image in known.space(at).images if image.startswith("p"))
    found = explorer.answer(known, at, palm, top=50, maps=False)
    pid = known.facts([palm])["pid"].iloc[0]
    assert "never a query" in found.note and palm not in set(found.ranking["gallery"])
    first = found.ranking.iloc[0]
    same = known.facts(found.ranking["gallery"].tolist())["pid"].to_numpy() == pid
    assert found.ranking["correct"].tolist() == same.tolist() and same.any()
    assert first["rank_of_first_match"] == same.argmax() + 1


def test_no_match_is_no_error():
    z = np.eye(3, dtype=np.float32)
    entries = pd.DataFrame({"image": ["b", "c"], "pid": [2, 3]})
    found = explorer.ranked(z, ["a", "b", "c"], pd.DataFrame({"image": ["a"], "pid": [1]}), entries)
    assert found["gallery"].tolist() == ["b", "c"], "equals stay in the gallery's order"
    assert found["rank_of_first_match"].tolist() == [0, 0] and not found["correct"].any()


def test_a_photograph_of_ones_own_is_found_like_the_evaluators(known, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query = queries(known)[0]
    mine = explorer.answer(known, RIGHT, query)
    own = explorer.answer_own(known, RIGHT, known.photograph(query))
    assert own.ranking["gallery"].tolist() == mine.ranking["gallery"].tolist()
    np.testing.assert_allclose(own.ranking["similarity"], mine.ranking["similarity"], atol=2e-6)
    np.testing.assert_array_equal(own.pixels, mine.pixels)
    for kind, maps in mine.maps.items():
        np.testing.assert_allclose(own.maps[kind], maps, atol=1e-5)
    assert own.ranking["correct"].isna().all() and "nobody here knows" in own.note
    assert not list(tmp_path.iterdir()), "nothing of it is kept"
    with pytest.raises(ValueError, match="no picture that can be read"):
        explorer.answer_own(known, RIGHT, b"%PDF-1.4 no picture")
    assert not list(tmp_path.iterdir())


def test_where_two_models_disagree():
    ranks = {"a": [1, 3, 1, 9], "b": [1, 1, 6, 2]}
    frames = {
        name: pd.DataFrame({"query": list("wxyz"), "pid": [5, 6, 7, 8], "rank_of_first_match": r})
        for name, r in ranks.items()
    }
    found = explorer.disagreements(frames)
    assert found.index.tolist() == ["y", "x"] and found["person"].tolist() == [7, 6]
    assert found["a"].tolist() == [1, 3] and found["b"].tolist() == [6, 1]
    assert explorer.disagreements(frames, most=1).index.tolist() == ["y"]
    assert explorer.disagreements({"a": frames["a"]}).empty


# -- points ---------------------------------------------------------------------------------------


def test_a_line_takes_what_it_encloses():
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [5, 5]], dtype=float)
    box = [(-0.5, -0.5), (1.5, -0.5), (1.5, 0.5), (-0.5, 0.5)]
    assert explorer.inside(points, box).tolist() == [0, 1]
    assert explorer.inside(points, [(2, 2), (3, 2), (3, 3)]).tolist() == []
    notch = [(-1, -1), (2, -1), (2, 2), (0.5, 0.2), (-1, 2)]  # drawn by hand: hollows count
    assert explorer.inside(points, notch).tolist() == [0, 1]
    assert explorer.inside(points, [(4.8, 4.9), (4.81, 4.9)]).tolist() == [4], "a click"


def test_columns_that_tell_photographs_apart(known):
    facts = known.facts(known.space(RIGHT).images)
    columns = explorer.coloured_by(facts.assign(one="x", each=range(len(facts))))
    assert columns == ["pid", "aspect", "camera", "gender", "age", "skinColor", "nailPolish"]


def test_colours_of_categories_numbers_and_what_is_missing():
    rgba, named = explorer_plots.colours(pd.Series(["m", "f", "", "m", None], name="gender"))
    assert list(named) == ["f", "m", "–"] and (rgba[0] == rgba[3]).all()
    assert to_hex(rgba[2]) == to_hex(rgba[4]) == QUIET.lower() and (rgba[0] != rgba[1]).any()
    rgba, named = explorer_plots.colours(pd.Series(range(20, 40), name="age"))
    assert list(named) == ["20", "29.5", "39"] and len(np.unique(rgba, axis=0)) == 20
    rgba, named = explorer_plots.colours(pd.Series(range(20), name="pid"))
    assert not named and len(np.unique(rgba, axis=0)) == 20
    assert explorer_plots.colours(pd.Series(["", ""], name="x"))[1] == {"–": QUIET}


def test_a_sheet_frames_right_wrong_and_unknown(known):
    query = queries(known)[0]
    found = explorer.answer(known, RIGHT, query, top=3)
    fig = explorer_plots.answer_sheet(found, "t")
    frames = [to_hex(ax.spines["left"].get_edgecolor()) for ax in fig.axes[1:4]]
    wanted = [GOOD if right else BAD for right in found.ranking["correct"]]
    assert frames == [colour.lower() for colour in wanted]
    shown = [ax.get_xlabel() for ax in fig.axes[1:4]]
    assert shown == [f"{s:.3f}".replace("-", "−") for s in found.ranking["similarity"]]
    assert fig.axes[0].get_xlabel() == f"match: {found.ranking['rank_of_first_match'][0]}"
    assert len(fig.axes) == 3 * 4
    own = explorer.answer_own(known, RIGHT, known.photograph(query), top=3, maps=False)
    fig = explorer_plots.answer_sheet(own, "t")
    assert to_hex(fig.axes[1].spines["left"].get_edgecolor()) == QUIET.lower()
    assert len(fig.axes) == 4 and fig.axes[0].get_title() == "yours"


def test_thumbnails_are_small_jpegs():
    files = explorer_plots.thumbnails(np.zeros((3, 90, 60, 3), np.uint8), side=30)
    assert [Image.open(io.BytesIO(f)).size for f in files] == [(20, 30)] * 3
    assert Image.open(io.BytesIO(files[0])).format == "JPEG"


# -- the widgets ----------------------------------------------------------------------------------


@pytest.fixture
def board(known) -> Board:
    backend = matplotlib.get_backend()
    made = explorer_widgets.explorer(known, RIGHT, "second", "pca")
    assert matplotlib.get_backend() == backend, "other cells' figures keep theirs"
    return made


def leftmost(board: Board, k: int) -> tuple[list[tuple[float, float]], list[int]]:
    """A line around the k points at the left of the plane, and which they are."""
    points = board.now["points"].astype(float)
    order = points[:, 0].argsort()
    low, high = points.min() - 1, points.max() + 1
    edge = points[order[k - 1 : k + 1], 0].mean()
    return [(low, low), (edge, low), (edge, high), (low, high)], sorted(order[:k].tolist())


def orange(board: Board) -> int:
    """How many pixels of the plane have the line's colour."""
    board.canvas.draw()
    pixels = np.asarray(board.canvas.buffer_rgba())[..., :3]
    return int((pixels == LINE).all(axis=2).sum())


def drag(board: Board, corners: list[tuple[float, float]]) -> None:
    """Mouse events as the browser sends them; corners in shares of the axes, from the top left.

    Before the button is released, the line has to be seen.
    """
    before = orange(board)
    box = board.canvas.figure.axes[0].bbox
    top = board.canvas.figure.bbox.height
    kinds = ["button_press", *["motion_notify"] * (len(corners) - 1), "button_release"]
    for kind, (x, y) in zip(kinds, [*corners, corners[-1]], strict=True):
        at = {"x": box.x0 + x * box.width, "y": top - box.y1 + y * box.height}
        keys = {"button": 0, "buttons": 1, "modifiers": [], "guiEvent": {}}
        if kind == "button_release":
            assert orange(board) > before, "no line is seen while it is drawn"
        board.canvas.manager.handle_json({"type": kind} | at | keys)


def test_k_points_give_k_thumbnails(board, known):
    line, inside = leftmost(board, 3)
    explorer_widgets.lasso(board, line)
    images = [known.space(RIGHT).images[k] for k in inside]
    assert {b.tooltip for b in board.thumbs.children} == set(images)
    assert len(board.thumbs.children) == 3 == board.pictures.value.count("data:image/jpeg")
    assert "3 photographs of" in board.message.value
    faded = board.canvas.figure.axes[0].collections[0].get_facecolor()[:, 3] < 1
    assert np.flatnonzero(~faded).tolist() == inside
    drag(board, [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)])
    assert len(board.thumbs.children) == len(known.space(RIGHT).images)
    assert all("handclip-thumb" in b._dom_classes for b in board.thumbs.children)
    drag(board, [(0.01, 0.01), (0.04, 0.01), (0.04, 0.04)])
    assert not board.thumbs.children and "Draw a line" in board.message.value


def png(picture: widgets.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.value)))


def test_a_click_ranks_the_gallery_by_both_models(board, known):
    explorer_widgets.lasso(board, leftmost(board, 2)[0])
    answers = list(board.answers.values())
    assert [a.layout.display for a in answers] == ["none", "none"]
    button = board.thumbs.children[1]
    button.click()
    assert [a.layout.display for a in answers] == ["", ""]
    assert f"{button.tooltip}: gallery of draw" in board.message.value
    assert [b for b in board.thumbs.children if "handclip-asked" in b._dom_classes] == [button]
    for name, model in (("model", "first"), ("beside", "second")):
        found = explorer.answer(known, Scene("dorsal_r", "own", model), button.tooltip)
        sheet = explorer_plots.answer_sheet(found, f"{model}: {button.tooltip}")
        wanted = np.asarray(Image.open(io.BytesIO(explorer_plots.png(sheet))))
        np.testing.assert_array_equal(png(board.answers[name]), wanted)
    board.menus["beside"].value = ""
    assert [a.layout.display for a in answers] == ["", "none"]
    tall = png(board.answers["model"]).shape[0]
    board.maps.value = False
    assert png(board.answers["model"]).shape[0] < tall / 2


def test_menus_change_the_scene(board, known):
    explorer_widgets.lasso(board, leftmost(board, 2)[0])
    board.menus["projection"].value = "tsne"
    board.menus["colour"].value = "gender"
    assert "t-SNE" in board.canvas.figure.get_suptitle() and len(board.thumbs.children) == 2
    board.thumbs.children[0].click()
    board.menus["model"].value = "second"
    assert (
        board.now["points"].shape == known.plane(Scene("dorsal_r", "own", "second"), "tsne").shape
    )
    assert "second" in board.canvas.figure.get_suptitle()
    board.menus["gallery"].value = "all"
    assert not board.thumbs.children and board.answers["model"].layout.display == "none"
    assert len(board.now["images"]) > len(known.space(RIGHT).images)
    board.menus["aspect"].value = "palmar_r"
    assert (
        board.menus["model"].options == (("first", "first"),)
        and board.menus["model"].value == "first"
    )
    assert board.menus["beside"].value == "" and board.menus["gallery"].value == "all"
    assert "error" not in board.message.value


def test_a_photograph_is_dropped_in_and_what_is_none_is_said(board, known):
    def dropped(content: bytes) -> tuple[dict, ...]:
        file = {"name": "a.jpg", "type": "", "size": len(content), "last_modified": WHEN}
        return (file | {"content": memoryview(content)},)

    board.upload.set_trait("value", dropped(known.photograph(queries(known)[0])))
    assert board.answers["model"].layout.display == "" and "nobody" in board.message.value
    board.upload.set_trait("value", dropped(b"<no picture>"))
    assert "handclip-error" in board.message.value and "no picture" in board.message.value
    board.upload.set_trait("value", dropped(known.photograph(queries(known)[1])))
    assert "handclip-error" not in board.message.value


def test_without_widgets_there_is_a_still_picture(board, monkeypatch):
    shown = {}
    monkeypatch.setattr(explorer_widgets, "display", lambda data, raw: shown.update(data))
    still = explorer_plots.plane(np.eye(4)[:, :2], pd.Series([1, 1, 2, 2], name="pid"), "t")
    explorer_widgets.show(board, still)
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == board.whole.model_id
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", shown)])
    bar = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "100%"}
    cell.outputs.append(nbformat.v4.new_output("display_data", bar))
    page = export._body(nbformat.v4.new_notebook(cells=[export._tidy(cell)]))
    assert page.count("data:image/png") == 1 and "100%" not in page and "<script" not in page
