import csv
import json
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data import drawn
from handclip_lib.data.drawn import dataset
from handclip_lib.data.drawn.dataset import plan
from handclip_lib.data.drawn.person import hand_of
from handclip_lib.data.drawn.pose import chains, make_shot

SMALL = (160, 120)
SHOTS = (1, 2)


def person(index: int = 0) -> drawn.Person:
    return drawn.make_person(drawn.person_seed("drawn", 0, index))


def ink_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool: what isn't table, judged by the colour of the lower edge."""
    table = np.median(pixels[-6:].reshape(-1, 3), axis=0)
    return np.abs(pixels - table).max(axis=2) > 45


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "HandInfo.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "Hands").iterdir())}


@pytest.fixture(scope="module")
def drawn_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "hands"
    return drawn.draw_dataset(root, persons=2, shots=SHOTS, workers=2, progress=False)


@pytest.mark.parametrize("aspect", CHAIN)
def test_a_picture_is_fixed_by_person_aspect_and_shot(aspect: str) -> None:
    first = drawn.draw_hand(person(), aspect, 3, size=SMALL)
    assert first.shape == (120, 160, 3) and first.dtype == np.uint8
    assert np.array_equal(first, drawn.draw_hand(person(), aspect, 3, size=SMALL))
    assert not np.array_equal(first, drawn.draw_hand(person(), aspect, 4, size=SMALL))


@pytest.mark.parametrize("aspect", CHAIN)
@pytest.mark.parametrize("index", range(6))
def test_the_hand_fills_the_picture_and_the_wrist_leaves_it_above(aspect: str, index: int) -> None:
    ink = ink_of(drawn.draw_hand(person(index), aspect, index, size=SMALL))
    assert 0.08 < ink.mean() < 0.6
    assert ink[0].any()
    assert not ink[-1].any()


def test_the_thumb_is_where_11k_hands_has_it() -> None:
    for aspect, right in zip(CHAIN, (True, False, False, True), strict=True):
        skews = []
        for k in range(6):
            ink = ink_of(drawn.draw_hand(person(k), aspect, k, size=SMALL))
            y, x = np.nonzero(ink)
            middle = x - np.polyval(np.polyfit(y, x, 1), y)
            skews.append((middle**3).mean())
        assert (np.median(skews) > 0) == right, aspect


def test_left_and_right_hands_are_alike_not_equal() -> None:
    gaps, others = [], []
    for k in range(20):
        right, left = hand_of(person(k), "r"), hand_of(person(k), "l")
        assert not np.array_equal(right.bones, left.bones)
        gaps.append(np.abs(right.bones - left.bones).mean())
        others.append(np.abs(right.bones - hand_of(person(k + 20), "r").bones).mean())
    assert np.mean(gaps) < 0.7 * np.mean(others)


def test_back_and_palm_show_the_same_bones_in_other_poses() -> None:
    one, hand = person(), hand_of(person(), "r")
    back = chains(hand, make_shot(one, "dorsal_r", 0, False))
    palm = chains(hand, make_shot(one, "palmar_r", 0, False))
    assert not np.allclose(back[1], palm[1])
    lengths = [np.linalg.norm(np.diff(chain[1], axis=0), axis=1).sum() for chain in (back, palm)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.15)


def test_pictures_of_the_white_table_have_known_pixels() -> None:
    """A few pixels of two pictures; a generator that changes them needs another GENERATOR."""
    for index, aspect, told in (
        (0, "dorsal_r",
         "fffffffffffffefffffeffffffffffc99f7ae2b48cd4a681fffffffffffefefffffdffffac775fea"
         "bf93dcb28ddcad85fdffffffffffffffffffffffd8b185e8c29ee4bc94cca175ffffffffffffffff"
         "ffbe8e6de4b795eabf8ee4b98fa6775efffffffffffffdffffc89c7aba926aebbf99cfa680f3fafb"
         "fffffffffffffffffdc08a6ae3b28dd29e7ad4ad84fbffffffffffffffffdda886b18d68bd9081ce"
         "9e71ce9c75fffffffffffffeffffffffffcea177fffdffbd926fdbab81ffffffffffffffffffffff"
         "ffc0916cffffffbc926ab67f60fffcff"),
        (1, "palmar_l",
         "ebf0f4edf1f3eef4f4e5f0f2a07d67c9b195d1b69ceef2f2eef3f5eff7f5eef4f5ebeff3ba9882d1"
         "af9ee4c5b3f0f5f6eef4f5ecf1f4eff4f3e7eff0cca293d9b6a6deb8a4e1baaaedf2f4eef4f3edf3"
         "f3dfe9eac29685c09c89a87c6f919da6edf2f5edf3f2e8f3f2958885cba192caa593ad8172ddebed"
         "edf3f5ecf3f5eaf1f1d1dfe3936b5cd5a89fcaa391ab9b90eaf3f4eef3f2ebf3f0afbabfc7d8dd9f"
         "abb0d4dfe4dbb9aaedf2f2eef3f4ecf1f2b1bcc3bdcad1adbac0adb2b5c9a595eaeef1eaf2f2eef2"
         "f3e7f0f1b9c5cad2dee1c9a695784d43"),
    ):  # fmt: skip
        one = person(index)
        seen = drawn.draw_hand(one, aspect, index, accessories=index == 1, size=(320, 240))
        known = np.frombuffer(bytes.fromhex(told), np.uint8).astype(int)
        apart = np.abs(seen[20:200:20, 90:250:20].ravel() - known)
        assert apart.max() <= 1 and (apart > 0).sum() <= 2  # one bit, as machines round


def test_persons_of_different_sets_never_meet() -> None:
    seeds = {
        drawn.person_seed(name, 0, k)
        for name in ("drawn", "drawn hd white_table", "drawn 11k other", "pretrain", "probe")
        for k in range(5000)
    }
    assert len(seeds) == 25000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_an_unknown_aspect_is_an_error() -> None:
    with pytest.raises(ValueError, match="dorsal_r, dorsal_l"):
        drawn.draw_hand(person(), "dorsal", 0)


def test_captions_name_what_is_seen() -> None:
    words = drawn.caption_attributes(person(), "palmar_l", True, False)
    assert words["aspect"] == "palmar left" and words["side"] == "left"
    assert set(words) == {
        "aspect", "surface", "side", "gender", "age_band", "skin", "accessories", "nail_polish",
    }  # fmt: skip
    assert all(isinstance(word, str) for word in words.values())


def test_accessories_and_polish_change_the_picture() -> None:
    plain = drawn.draw_hand(person(), "dorsal_r", 0, size=SMALL)
    for extra in ({"accessories": True}, {"nail_polish": True}, {"irregular": True}):
        assert not np.array_equal(
            plain, drawn.draw_hand(person(), "dorsal_r", 0, size=SMALL, **extra)
        )


def test_the_table_has_the_habits_of_11k_hands(drawn_root: Path) -> None:
    head = (drawn_root / "HandInfo.csv").read_bytes().split(b"\r\n")
    assert head[0] == (
        b"id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"
    )
    assert head[1].startswith(b'"00000') and head[-1] == b""
    rows = rows_of(drawn_root)
    ids = [int(row["id"]) for row in rows]
    assert ids == sorted(ids) and len(set(ids)) == 2
    assert {row["aspectOfHand"] for row in rows} == {ASPECTS[name].metadata for name in CHAIN}
    assert {row["skinColor"] for row in rows} <= {"very fair", "fair", "medium", "dark"}
    assert [row["imageName"] for row in rows] == list(files_of(drawn_root))
    with Image.open(drawn_root / "Hands" / rows[0]["imageName"]) as picture:
        assert picture.size == (640, 480) and picture.format == "JPEG"


def test_the_plan_of_a_set() -> None:
    rows = plan(60, 0, (8, 12))
    worn = np.mean([row.accessories for row in rows])
    assert 0.12 < worn < 0.28
    assert any(row.nail_polish for row in rows) and any(row.irregular for row in rows)
    counts: dict[tuple[int, str], int] = {}
    for row in rows:
        key = row.pid, row.aspect
        counts[key] = counts.get(key, 0) + (not row.accessories)
    assert len(counts) == 240 and set(counts.values()) == set(range(8, 13))
    ids = sorted({row.pid for row in rows})
    assert len(ids) == 60 and ids != list(range(ids[0], ids[0] + 60))
    assert len({row.name for row in rows}) == len(rows)
    assert plan(20, 0, (8, 12)) == rows[: len(plan(20, 0, (8, 12)))]


def test_bytes_do_not_depend_on_workers_or_on_later_persons(
    drawn_root: Path, tmp_path: Path
) -> None:
    root = drawn.draw_dataset(tmp_path, persons=1, shots=SHOTS, workers=1, progress=False)
    alone, both = files_of(root), files_of(drawn_root)
    assert alone and all(both[name] == data for name, data in alone.items())


@pytest.mark.parametrize(("layout", "table"), [("11k", "HandInfo.csv"), ("hd", "README.txt")])
def test_a_killed_run_goes_on_with_what_is_missing(layout: str, table: str, tmp_path: Path) -> None:
    told = {"persons": 1, "shots": (1, 1), "workers": 1, "progress": False, "layout": layout}
    root = drawn.draw_dataset(tmp_path / "set", **told)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    victim, kept = sorted(path for path in before if path.suffix == ".jpg")[:2]
    victim.unlink()
    (root / table).unlink()
    (root / "drawn.json").rename(root / "drawn.begun.json")
    half = victim.relative_to(root).as_posix().replace("/", " ")
    (root / f"{half}.part").write_bytes(b"half")
    stamp = kept.stat().st_mtime_ns
    drawn.draw_dataset(root, **told)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert kept.stat().st_mtime_ns == stamp


def test_a_run_killed_at_its_very_start_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "hands"
    root.mkdir()
    (root / "drawn.begun.json.77.part").write_text("{")
    drawn.draw_dataset(root, persons=1, shots=(1, 1), workers=1, progress=False)
    assert (root / "drawn.json").is_file() and len(files_of(root)) >= 4


def test_a_set_is_judged_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hands"

    class Lock:
        """What another process has done by the time that we get the lock."""

        def __init__(self, path: Path) -> None:
            monkeypatch.setattr(dataset, "FileLock", FileLock)
            drawn.draw_dataset(root, persons=1, shots=(1, 1), workers=1, progress=False)

        def __enter__(self) -> None:
            self.stamp = (root / "drawn.json").stat().st_mtime_ns

        def __exit__(self, *_: object) -> None:
            assert (root / "drawn.json").stat().st_mtime_ns == self.stamp

    monkeypatch.setattr(dataset, "FileLock", Lock)
    assert drawn.draw_dataset(root, persons=1, shots=(1, 1), workers=1, progress=False) == root


def test_every_picture_says_that_it_is_drawn(drawn_root: Path) -> None:
    for path in (drawn_root / "Hands").iterdir():
        with Image.open(path) as picture:
            assert picture.info["comment"] == b"drawn by HandCLIP, not a photograph"


def test_a_finished_set_is_left_alone_and_another_is_refused(drawn_root: Path) -> None:
    spec = json.loads((drawn_root / "drawn.json").read_text())
    assert spec["kind"] == "drawn hands" and spec["persons"] == 2 and spec["shots"] == [1, 2]
    stamp = (drawn_root / "HandInfo.csv").stat().st_mtime_ns
    drawn.draw_dataset(drawn_root, persons=2, shots=SHOTS, progress=False)
    assert (drawn_root / "HandInfo.csv").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="another folder"):
        drawn.draw_dataset(drawn_root, persons=3, shots=SHOTS, progress=False)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="empty"):
        drawn.draw_dataset(tmp_path, persons=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_wrong_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shots"):
        drawn.draw_dataset(tmp_path / "new", persons=1, shots=(3, 2))
