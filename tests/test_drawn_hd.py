"""Drawn hands in HD's folders, and those of the second laboratory."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from handclip_lib import cli, params
from handclip_lib.data import drawn, leaks, splits, tables
from handclip_lib.data.drawn import dataset
from handclip_lib.data.drawn import scene as scene_of
from handclip_lib.data.drawn.laboratory import LABORATORIES, Laboratory
from handclip_lib.data.drawn.plan import MOST_OF_HD, plan
from handclip_lib.data.foreground import find_hand, hand_mask
from handclip_lib.data.hd import EXTRA, EXTRA_OFFSET, MAIN, read_hd
from handclip_lib.data.masks import hand_masks
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.store import open_store
from handclip_lib.report.plan import _aspects
from handclip_lib.schema import Data, Drawn

OTHER = "other"
SMALL = (160, 120)


def study(root: Path | str, **told: object) -> params.Params:
    change = {"data": {"root": str(root), "drawn": told}, "split": {"draws": 3, "select": "none"}}
    return params.load(study="demo", overrides=change)


@pytest.fixture(scope="module")
def hd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "hd"
    return drawn.draw_dataset(root, 4, shots=(2, 3), workers=2, progress=False, layout="hd")


@pytest.fixture(scope="module")
def other_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "other"
    told = {"workers": 2, "progress": False, "laboratory": OTHER}
    return drawn.draw_dataset(root, 2, shots=(1, 1), **told)


def files_of(root: Path) -> dict[str, bytes]:
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


# --- HD's folders ------------------------------------------------------------------------------


def test_a_set_in_hds_folders_has_hds_names_and_proportions() -> None:
    rows = plan(32, 0, (6, 9), "hd")
    parts = {part: [r for r in rows if f"/{part}/" in r.image] for part in (MAIN, EXTRA)}
    assert sum(map(len, parts.values())) == len(rows) == len({r.image for r in rows})
    for row in rows:
        folder, name = row.image.split("/")[1:]
        pid, shot = re.fullmatch(r"(\d+)_(\d+)\.jpg", name).groups()  # type: ignore[union-attr]
        assert (folder, int(pid), int(shot)) == (folder, row.pid, row.shot + 1)
    main, extra = (sorted({r.pid for r in some}) for some in parts.values())
    assert len(main) == 32 and len(extra) / len(main) == pytest.approx(213 / 502, abs=0.02)
    assert main != list(range(main[0], main[0] + 32))  # not contiguous
    real = [*main, *(pid + EXTRA_OFFSET for pid in extra)]
    assert sorted(map(str, real)) != [str(pid) for pid in sorted(real)]  # as folders would sort
    assert set(main) & set(extra), "numbers of one folder are other persons' in the other"
    assert not set(main) & {pid + EXTRA_OFFSET for pid in extra}
    assert {r.aspect for r in rows} == {"dorsal_r"} and not any(r.accessories for r in rows)
    sizes = pd.Series([r.image.rsplit("_", 1)[0] for r in parts[MAIN]]).value_counts()
    assert sizes.min() == 6 and sizes.max() == 9


def test_a_persons_pictures_do_not_depend_on_the_sets_size() -> None:
    fewer, more = plan(8, 3, (2, 4), "hd"), plan(20, 3, (2, 4), "hd")
    assert set(fewer) <= set(more)


def test_numbers_of_the_two_folders_never_meet() -> None:
    rows = plan(MOST_OF_HD, 1, (1, 1), "hd")
    extra = {row.pid + EXTRA_OFFSET for row in rows if f"/{EXTRA}/" in row.image}
    assert max(row.pid for row in rows if f"/{MAIN}/" in row.image) < min(extra)
    with pytest.raises(ValueError, match="500 at most"):
        plan(MOST_OF_HD + 1, 1, (1, 1), "hd")


def test_sets_of_other_layouts_laboratories_and_seeds_share_nobody() -> None:
    kinds = [(layout, there) for layout in ("11k", "hd") for there in LABORATORIES]
    seen = [
        row.person.seed
        for layout, there in kinds
        for seed in (0, 1)
        for row in {r.person: r for r in plan(40, seed, (1, 1), layout, there)}.values()
    ]
    assert len(set(seen)) == len(seen) == 2 * (40 + 40 + 57 + 57)


def test_it_is_read_as_hd_and_never_passes_for_it(hd_root: Path) -> None:
    table = tables.read(study(hd_root, persons=4, shots=[2, 3], layout="hd"))
    assert table.attrs["title"] == "drawn hands (demonstration), read as HD"
    assert set(table["dataset"]) == {"drawn"} and set(table["aspect"]) == {"dorsal_r"}
    pd.testing.assert_frame_equal(table, read_hd(hd_root))
    rows = plan(4, 0, (2, 3), "hd")
    assert set(table["image"]) == {row.image for row in rows}
    known = {row.image: row.pid + EXTRA_OFFSET * (EXTRA in row.image) for row in rows}
    assert all(known[i] == pid for i, pid in zip(table["image"], table["pid"], strict=True))
    assert table.loc[table["distractor"], "pid"].nunique() == 2
    for path in (hd_root / "Original Images").rglob("*.jpg"):
        with Image.open(path) as picture:
            assert picture.info["comment"] == dataset.COMMENT and picture.size == (640, 480)


def test_its_distractors_are_in_every_gallery_under_their_own_numbers(hd_root: Path) -> None:
    p = study(hd_root, persons=4, shots=[2, 3], layout="hd")
    table = tables.read(p)
    manifest = splits.manifest_for(p, table)
    leaks.check_leaks(manifest)
    aside = table[table["distractor"]]
    assert manifest.attrs["distractors"] == sorted(set(aside["pid"]))
    for draw in range(3):
        shown = manifest[(manifest["draw"] == draw) & (manifest["split"] == "gallery")]
        found = shown[shown["pid"].isin(aside["pid"])]
        assert set(found["image"]) == set(aside["image"])
        assert len(shown) == len(aside) + 2  # and one photograph of each test person
    asked = manifest[manifest["split"] == "query"]
    assert asked["pid"].nunique() == 2 and not asked["pid"].isin(aside["pid"]).any()


def test_a_study_of_it_plans_the_aspect_that_is_there(hd_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    told = "extends: demo\ndata: {root: %s, drawn: {layout: hd, persons: 4, shots: [2, 3]}}\n"
    path.write_text(told % hd_root)
    assert _aspects(str(path)) == ["dorsal_r"]


def test_one_number_in_both_folders_is_drawn_twice(tmp_path: Path) -> None:
    rows = plan(32, 0, (1, 1), "hd")
    both = {r.pid for r in rows if MAIN in r.image} & {r.pid for r in rows if EXTRA in r.image}
    chosen = [row for row in rows if row.pid == min(both)]
    assert len({row.name for row in chosen}) == 1 and len({row.image for row in chosen}) == 2
    for row in chosen:
        (tmp_path / row.image).parent.mkdir(parents=True)
        dataset._save(tmp_path, "white_table", row)
    one, two = files_of(tmp_path).values()
    assert one != two


@pytest.mark.parametrize("told", [{"layout": "11k"}, {"laboratory": OTHER}, {"shots": [2, 4]}])
def test_another_set_in_its_folder_is_refused(hd_root: Path, told: dict[str, object]) -> None:
    usual = {"persons": 4, "shots": [2, 3], "layout": "hd"}
    with pytest.raises(ValueError, match="holds other drawn hands"):
        tables.read(study(hd_root, **usual | told))


def test_the_command_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "hd"
    line = f"demo-data --layout hd --root {root} --persons 2 --workers 1 --shots 1 1"
    assert cli.main(line.split()) == 0
    assert (root / "Original Images" / EXTRA).is_dir() and not (root / "HandInfo.csv").exists()
    assert read_hd(root)["pid"].nunique() == 3
    assert cli.main([*line.split()[:1], "--layout", "HD"]) == 2
    assert "data.drawn.layout" in capsys.readouterr().err


def test_the_command_draws_the_sets_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_sets: list[Data] = []
    monkeypatch.setattr(tables, "draw", lambda data, _: drawn_sets.append(data))
    for line in ("", "--layout hd", "--laboratory other", "--layout hd --persons 5"):
        assert cli.main(["demo-data", *line.split()]) == 0
    demo = params.load(study="demo")
    others = params.other_data(demo)
    known = [demo.data, others["drawn_hd"].data, others["drawn_other"].data]
    assert drawn_sets[:3] == known
    assert drawn_sets[3].drawn == known[1].drawn.model_copy(update={"persons": 5})
    assert cli.main(["demo-data", "--layout", "hd", "--laboratory", "other"]) == 0
    assert drawn_sets[4].root == "" and drawn_sets[4].drawn.laboratory == OTHER


def test_a_study_replaces_the_other_data_sets_of_the_one_it_extends() -> None:
    assert params.other_data(params.load(study="smoke")) == {}
    assert set(params.other_data(params.load(study="demo_hd"))) == {"drawn_11k"}
    usual = params.other_data(params.load(study="demo"))
    assert set(usual) == {"drawn_other", "drawn_hd"}
    assert usual["drawn_hd"].data == params.load(study="demo_hd").data  # one folder, one set


def test_every_kind_of_set_has_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "draw_dataset", lambda root, **_: root)
    layouts, places = (get_args(Drawn.model_fields[f].annotation) for f in ("layout", "laboratory"))
    assert set(places) == set(LABORATORIES)
    roots = {tables.draw(study("", layout=a, laboratory=b).data) for a in layouts for b in places}
    assert len(roots) == 4 and params.ROOT / "data" / "drawn_hands" in roots
    told = study(tmp_path / "here", layout="hd").data
    assert tables.draw(told) == tmp_path / "here"


# --- the second laboratory ---------------------------------------------------------------------


@cache
def pictures(there: str) -> list[np.ndarray]:
    """Backs and palms of five persons of the laboratory's set, (H, W, 3)."""
    rows = {(r.pid, r.aspect): r for r in plan(5, 0, (1, 1), "11k", there) if not r.accessories}
    chosen = [r for (_, aspect), r in rows.items() if aspect in ("dorsal_r", "palmar_l")]
    return [drawn.draw_hand(r.person, r.aspect, r.shot, laboratory=there) for r in chosen]


def of_both(measure: Callable[[np.ndarray], float]) -> Iterator[float]:
    return (float(np.mean([measure(one) for one in pictures(there)])) for there in LABORATORIES)


def test_its_pictures_are_taken_elsewhere() -> None:
    assert {one.shape for one in pictures(OTHER)} == {(384, 512, 3)}
    table, cloth = of_both(lambda one: np.median(one[-6:]))
    assert table > 235 and 20 < cloth < 110
    warm, cold = of_both(lambda one: np.subtract(*one[-6:].mean(axis=(0, 1))[[0, 2]]))
    assert abs(warm) < 10 and cold < -15  # the cloth is blue, the table has no colour
    # noise: what a pixel differs by from the mean of those beside it, in the emptiest corner
    calm, noisy = of_both(lambda one: np.std(np.diff(one[-12:, -60:].astype(float), axis=1)))
    assert noisy > 1.5 * calm


def test_corners_are_darker_and_colours_mixed_each_by_itself() -> None:
    scene = np.full((31, 41, 3), (0.5, 0.4, 0.3), np.float32)
    dark = scene_of._through_lens(scene, Laboratory(vignette=0.2))
    assert dark[0, 0] == pytest.approx(0.8 * scene[0, 0]) and dark[15, 20] == pytest.approx(
        scene[0, 0]
    )
    swapped = scene_of._through_lens(scene, Laboratory(mix=((0, 0, 1), (0, 1, 0), (1, 0, 0))))
    assert np.array_equal(swapped, scene[..., ::-1])
    assert scene_of._through_lens(scene, Laboratory()) is scene


def test_who_comes_there_is_older() -> None:
    ages = {
        there: [p.age for p in {r.person for r in plan(200, 0, (1, 1), "11k", there)}]
        for there in LABORATORIES
    }
    assert np.median(ages["white_table"]) < 26 and 40 < np.median(ages[OTHER]) < 60
    assert np.mean(np.array(ages[OTHER]) > 60) > 0.1


def test_hands_are_found_on_the_cloth() -> None:
    found = [find_hand(Image.fromarray(one)) for one in pictures(OTHER)]
    assert all(found)


def test_the_foreground_on_the_cloth_is_the_hand(other_root: Path) -> None:
    names = [row.image for row in plan(2, 0, (1, 1), "11k", OTHER) if not row.accessories]
    known = drawn.masks_of(other_root, names)
    for name, mask in zip(names, known, strict=True):
        with Image.open(other_root / name) as picture:
            seen = hand_mask(picture.convert("RGB"))
        assert seen is not None and mask.shape == seen.shape == (384, 512)
        assert (seen[mask > 0.9] > 0.5).mean() > 0.95  # all of the hand
        below = np.flatnonzero((mask > 0.5).any(axis=1))
        fingers = slice(below[0] + len(below) // 2, None)  # no arm there
        assert (mask[fingers][seen[fingers] > 0.5] > 0.1).mean() > 0.85, "and not its shadow"


def test_the_set_says_where_it_was_drawn(other_root: Path, tmp_path: Path) -> None:
    p = study(other_root, persons=2, shots=[1, 1], laboratory=OTHER)
    table = tables.read(p)
    assert table.attrs["title"] == "drawn hands (demonstration), other laboratory"
    assert set(table["dataset"]) == {"drawn"}
    spec = Preprocess((64, 64), "hand", (0.5,) * 3, (0.5,) * 3)
    store = open_store(table, spec, tmp_path)
    masks = hand_masks(store, table["image"].tolist())
    assert store.fallbacks == 0 and np.isfinite(masks).all()
    assert (masks.mean(axis=(1, 2)) > 0.1).all()


def test_a_hand_there_has_the_pose_and_mask_of_its_own_camera() -> None:
    one = drawn.make_person(drawn.person_seed("drawn", 0, 0))
    here = drawn.draw_mask(one, "dorsal_r", 0, size=SMALL)
    there = drawn.draw_mask(one, "dorsal_r", 0, size=SMALL, laboratory=OTHER)
    assert 0.7 < there.sum() / here.sum() < 0.95  # farther away
    assert drawn.draw_mask(one, "dorsal_r", 0, laboratory=OTHER).shape == (384, 512)
    assert drawn.draw_mask(one, "dorsal_r", 0).shape == (480, 640)
