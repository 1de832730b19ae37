"""One decode per image ever, whoever asks, however it is interrupted; and the cache below it."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from handclip_lib.data import store as store_module
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.rowcache import Block, CacheError, RowCache, key_of
from handclip_lib.data.store import Store, StoreError, open_store

# children need not import torch again; elsewhere there is no fork, or it is not safe
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks")
PREP = Preprocess((16, 12), "squash", (0.5,) * 3, (0.5,) * 3)
HAND = Preprocess((16, 16), "hand", (0.5,) * 3, (0.5,) * 3)


def photograph(number: int) -> Image.Image:
    image = Image.new("RGB", (64, 48), (235, 235, 235))
    ImageDraw.Draw(image).rectangle((20, 0, 30 + number, 30), fill=(180, 130, 20 * number))
    return image


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    root = tmp_path / "data"
    root.mkdir()
    names = [f"hand_{k}.png" for k in range(8)]
    for k, name in enumerate(names):
        photograph(k).save(root / name)
    frame = pd.DataFrame({"image": names})
    frame.attrs = {"root": str(root), "title": "test"}
    return frame


@pytest.fixture
def decodes(monkeypatch) -> list[str]:
    """Names of the files decoded, in order."""
    seen: list[str] = []
    real = store_module.decode

    def counting(path: Path, preprocess: Preprocess) -> tuple[np.ndarray, bool]:
        seen.append(path.name)
        return real(path, preprocess)

    monkeypatch.setattr(store_module, "decode", counting)
    return seen


def opened(table: pd.DataFrame, tmp_path: Path, preprocess: Preprocess = PREP) -> Store:
    return open_store(table, preprocess, tmp_path / "cache")


# --- store --------------------------------------------------------------------------------------


def test_pixels_are_the_preprocesss_in_the_order_asked(table, tmp_path):
    names = ["hand_5.png", "hand_0.png", "hand_5.png"]
    store = opened(table, tmp_path)
    pixels = store.pixels(names)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 12, 3)
    for got, name in zip(pixels, names, strict=True):
        expected, _ = PREP.fit_image(Image.open(Path(table.attrs["root"]) / name))
        assert np.array_equal(got.numpy(), expected)
    assert store.pixels([]).shape == (0, 16, 12, 3)


def test_one_decode_per_image_over_opens_and_overlapping_requests(table, tmp_path, decodes):
    names = list(table["image"])
    first = opened(table, tmp_path)
    first.pixels(names[:5])
    first.pixels(names[3:7])
    again = opened(table, tmp_path)
    again.pixels(names[::-1])
    again.digest(names)
    assert sorted(decodes) == names


@needs_fork
def test_one_decode_per_image_over_processes(table, tmp_path, monkeypatch):
    log = tmp_path / "log"
    real = store_module.decode

    def counting(path: Path, preprocess: Preprocess) -> tuple[np.ndarray, bool]:
        time.sleep(0.05)  # long enough for both to want the same images
        with log.open("a") as file:
            file.write(path.name + "\n")
        return real(path, preprocess)

    monkeypatch.setattr(store_module, "decode", counting)
    names = list(table["image"])
    runs = [
        multiprocessing.get_context("fork").Process(
            target=lambda part: opened(table, tmp_path).pixels(part), args=(part,)
        )
        for part in (names[:6], names[2:])
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert [run.exitcode for run in runs] == [0, 0]
    assert sorted(log.read_text().split()) == names
    assert opened(table, tmp_path).pixels(names).float().std() > 0
    assert len(log.read_text().split()) == 8


def test_key_follows_fit_size_and_photographs_but_not_mean_and_std(table, tmp_path, decodes):
    key = opened(table, tmp_path).key
    other_mean = Preprocess(PREP.size, PREP.fit, (0.1,) * 3, (0.2,) * 3)
    assert opened(table, tmp_path, other_mean).key == key
    for change in (HAND, Preprocess((16, 12), "pad", PREP.mean, PREP.std)):
        assert opened(table, tmp_path, change).key != key
    opened(table, tmp_path).pixels(["hand_1.png"])
    file = Path(table.attrs["root"]) / "hand_1.png"
    photograph(7).save(file)
    fresh = opened(table, tmp_path)
    assert fresh.key != key
    expected, _ = PREP.fit_image(photograph(7))
    assert np.array_equal(fresh.pixels(["hand_1.png"])[0].numpy(), expected)
    assert decodes == ["hand_1.png", "hand_1.png"]


def test_photographs_of_left_aspects_alone_are_mirrored(table, tmp_path):
    aspects = ["dorsal_l", "palmar_l", "dorsal_r", "palmar_r", "dorsal", "hand"]
    sided = table.iloc[:6].assign(aspect=aspects)
    mirror = dataclasses.replace(PREP, mirror_left=True)
    plain = opened(sided, tmp_path, PREP).pixels(list(sided["image"]))
    store = opened(sided, tmp_path, mirror)
    pixels = store.pixels(list(sided["image"]))
    assert all(not torch.equal(picture, picture.flip(1)) for picture in plain)
    assert torch.equal(pixels[:2], plain[:2].flip(2)) and torch.equal(pixels[2:], plain[2:])
    assert store.digest(["hand_0.png"]) != opened(sided, tmp_path, PREP).digest(["hand_0.png"])
    again = opened(sided.assign(aspect=aspects[::-1]), tmp_path, mirror)
    assert torch.equal(again.pixels(["hand_0.png"])[0], plain[0])  # what is left is in the key
    with pytest.raises(StoreError, match="no column aspect"):
        opened(table, tmp_path, mirror)


def test_two_folders_that_look_alike_share_no_pixels(table, tmp_path):
    root, twin = Path(table.attrs["root"]), tmp_path / "twin"
    shutil.copytree(root, twin)
    flat = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    for folder, image in zip((root, twin), flat, strict=True):
        image.save(folder / "hand_0.bmp")  # of one size
        os.utime(folder / "hand_0.bmp", ns=(1, 1))
    names = pd.DataFrame({"image": ["hand_0.bmp"]})
    stores = []
    for folder in (root, twin):
        names.attrs = {"root": str(folder)}
        stores.append(opened(names, tmp_path))
    one, two = (store.pixels(["hand_0.bmp"]) for store in stores)
    assert not torch.equal(one, two)
    (tmp_path / "link").symlink_to(root)
    names.attrs = {"root": str(tmp_path / "link")}
    assert opened(names, tmp_path).key == stores[0].key


def test_all_unreadable_images_are_named_at_once_and_the_rest_is_kept(table, tmp_path, decodes):
    root = Path(table.attrs["root"])
    (root / "hand_1.png").write_bytes(b"not a picture")
    half = (root / "hand_4.png").read_bytes()
    (root / "hand_4.png").write_bytes(half[: len(half) // 2])
    (root / "hand_6.png").unlink()
    with pytest.raises(StoreError, match="3 of 8 images") as caught:
        opened(table, tmp_path).pixels(list(table["image"]))
    for name in ("hand_1.png", "hand_4.png", "hand_6.png"):
        assert name in str(caught.value)
    good = [name for name in table["image"] if name not in str(caught.value)]
    assert len(good) == 5
    before = len(decodes)
    assert opened(table, tmp_path).pixels(good).shape[0] == 5
    assert len(decodes) == before


def test_unknown_and_repeated_names_are_errors(table, tmp_path):
    with pytest.raises(StoreError, match="nobody.png"):
        opened(table, tmp_path).pixels(["nobody.png"])
    twice = pd.concat([table, table.iloc[:1]])
    twice.attrs = table.attrs
    with pytest.raises(StoreError, match="twice: hand_0.png"):
        opened(twice, tmp_path)


def test_digests_are_of_the_pixels(table, tmp_path):
    root = Path(table.attrs["root"])
    photograph(3).save(root / "hand_6.png")
    one, two, three = opened(table, tmp_path).digest(["hand_3.png", "hand_6.png", "hand_2.png"])
    assert one == two != three and len(one) == 64


def test_fallbacks_are_counted_in_later_runs_too(table, tmp_path, decodes):
    root = Path(table.attrs["root"])
    for name in ("hand_2.png", "hand_5.png"):
        Image.new("RGB", (64, 48), (90, 90, 90)).save(root / name)
    first = opened(table, tmp_path, HAND)
    assert first.fallbacks == 0
    first.pixels(["hand_1.png", "hand_2.png"])
    assert first.fallbacks == 1
    first.pixels(list(table["image"]))
    later = opened(table, tmp_path, HAND)
    later.pixels(list(table["image"])[:4])
    assert later.fallbacks == 1 and first.fallbacks == 2
    assert len(decodes) == 8


def test_a_data_root_that_cannot_be_written_is_enough(table, tmp_path):
    root = Path(table.attrs["root"])
    before = sorted(root.iterdir())
    root.chmod(0o555)
    try:
        opened(table, tmp_path).pixels(list(table["image"]))
    finally:
        root.chmod(0o755)
    assert sorted(root.iterdir()) == before


def test_a_cache_that_cannot_be_written_names_the_variable(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match="HANDCLIP_CACHE"):
        open_store(table, PREP).pixels(["hand_0.png"])


# --- rows ---------------------------------------------------------------------------------------

FIELDS = {"value": ((2,), "float32"), "flag": ((), "bool")}


def squares(rows: np.ndarray) -> Iterator[Block]:
    for part in np.array_split(rows, 3):
        if len(part):
            yield part, {"value": np.stack([part, part**2], 1), "flag": part % 2 == 0}


@settings(max_examples=20, deadline=None)
@given(requests=st.lists(st.lists(st.integers(0, 19), max_size=12), max_size=5))
def test_rows_are_computed_once_and_read_in_any_order(tmp_path_factory, requests):
    cache = RowCache(tmp_path_factory.mktemp("rows"), 20, FIELDS)
    computed: list[int] = []

    def counting(rows: np.ndarray) -> Iterator[Block]:
        computed.extend(rows)
        yield from squares(rows)

    for request in requests:
        rows = np.array(request, dtype=np.int64)
        cache.fill(rows, counting)
        assert np.array_equal(cache.read("value", rows)[:, 1], rows.astype(np.float32) ** 2)
        assert np.array_equal(cache.read("flag", rows), rows % 2 == 0)
    assert sorted(computed) == sorted({n for request in requests for n in request})
    assert cache.filled().sum() == len(computed)


def test_blocks_before_an_error_stay(tmp_path):
    cache = RowCache(tmp_path / "c", 10, FIELDS)

    def failing(rows: np.ndarray) -> Iterator[Block]:
        yield next(iter(squares(rows)))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cache.fill(np.arange(9), failing)
    assert np.flatnonzero(cache.filled()).tolist() == [0, 1, 2]
    cache.fill(np.arange(9), squares)
    assert np.array_equal(cache.read("value", np.arange(9))[:, 0], np.arange(9))


@needs_fork
def test_a_kill_while_writing_leaves_only_whole_rows(tmp_path):
    cache = RowCache(tmp_path, 5000, {"value": ((50000,), "float32")})

    def one_by_one(missing: np.ndarray) -> Iterator[Block]:
        for row in missing:
            yield np.array([row]), {"value": np.full((1, 50000), row, np.float32)}

    fork = multiprocessing.get_context("fork")
    run = fork.Process(target=cache.fill, args=(np.arange(5000), one_by_one))
    run.start()
    give_up = time.monotonic() + 30
    while cache.filled().sum() < 20 and time.monotonic() < give_up:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    rows = np.flatnonzero(cache.filled())
    assert 20 <= len(rows) < 5000
    assert (cache.read("value", rows) == rows[:, None]).all()
    again: list[int] = []

    def rest(missing: np.ndarray) -> Iterator[Block]:
        again.extend(missing)
        yield from one_by_one(missing)

    cache.fill(np.arange(5 + len(rows)), rest)  # the dead process holds no lock
    assert len(again) == 5 and not set(again) & set(rows)


def test_a_full_cache_is_read_without_a_lock_or_a_write(tmp_path, monkeypatch):
    cache = RowCache(tmp_path / "c", 6, FIELDS)
    cache.fill(np.arange(6), squares)
    (tmp_path / "c" / "lock").unlink()
    before = sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "c").iterdir())
    cache.fill(np.arange(6), squares)
    cache.read("value", np.arange(6))
    assert sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "c").iterdir()) == before


def test_a_damaged_or_foreign_cache_says_what_to_delete(tmp_path):
    cache = RowCache(tmp_path / "c", 6, FIELDS)
    cache.fill(np.arange(3), squares)
    with pytest.raises(CacheError, match="delete"):
        RowCache(tmp_path / "c", 7, FIELDS).filled()
    (tmp_path / "c" / "value.bin").write_bytes(b"")
    with pytest.raises(CacheError, match="delete"):
        cache.fill(np.arange(6), squares)


@pytest.mark.parametrize("held", [b"", b"\x93NUMPY", b"something else"])
def test_a_damaged_mask_says_what_to_delete(tmp_path, held):
    cache = RowCache(tmp_path / "c", 6, FIELDS)
    cache.fill(np.arange(3), squares)
    (tmp_path / "c" / "filled.npy").write_bytes(held)
    with pytest.raises(CacheError, match=r"filled\.npy cannot be read .*delete the folder"):
        cache.read("value", cache.filled().nonzero()[0])


@needs_fork
def test_files_of_a_cache_are_shared_as_far_as_the_umask_says(tmp_path):
    before = os.umask(0o002)
    try:
        RowCache(tmp_path / "c", 6, FIELDS).fill(np.arange(3), squares)
    finally:
        os.umask(before)
    for name in ("filled.npy", "value.bin"):
        assert (tmp_path / "c" / name).stat().st_mode & 0o777 == 0o664


def test_what_compute_owes_is_checked(tmp_path):
    cache = RowCache(tmp_path / "c", 6, FIELDS)
    with pytest.raises(ValueError, match="2 rows were not computed"):
        cache.fill(np.arange(6), lambda rows: squares(rows[:4]))
    wrong = {"value": np.zeros((1, 3)), "flag": np.zeros(1, bool)}
    with pytest.raises(ValueError, match="value: expected"):
        cache.fill(np.array([5]), lambda rows: iter([(rows, wrong)]))
    assert cache.filled().sum() == 4


def test_key_is_the_hash_of_everything_in_any_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})
