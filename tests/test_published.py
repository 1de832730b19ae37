"""Published results as data: as printed, each with its protocol, and both mAPs where exact."""

import numpy as np
import pandas as pd
import pytest

from handclip_lib.aspects import CHAIN
from handclip_lib.report import published as module
from handclip_lib.report.matrix import published_table
from handclip_lib.report.published import published

RAW = pd.read_csv(module._FILE, keep_default_na=False)


def one(frame, method):
    (row,) = frame[frame["method"] == method].to_dict("records")
    return row


def test_the_number_of_results_of_each_aspect():
    assert {aspect: len(published("11k", aspect)) for aspect in CHAIN} == {
        "dorsal_r": 45, "dorsal_l": 4, "palmar_r": 7, "palmar_l": 4
    }  # fmt: skip
    assert len(published("HD", "dorsal")) == len(published("HD", "dorsal_r")) == 8
    assert published("drawn", "dorsal_r").empty and published_table("drawn", "dorsal_r").empty
    assert len(RAW) == 45 + 4 + 7 + 4 + 8


@pytest.mark.parametrize(
    ("aspect", "method", "rank1", "standard", "trapezoid"),
    [  # per cent; the derived one as the protocol's table has it
        ("dorsal_r", "MBA-Net", 97.45, 98.51, 97.98),
        ("dorsal_r", "CLIP zero-shot, ViT-B/16", 70.44, 78.18, 74.31),
        ("dorsal_r", "CLIP-FH stage 2 v5, ViT-B/16", 88.18, 92.20, 90.19),
        ("dorsal_r", "CLIP-FH zero-shot, RN50", 68.61, 75.78, 72.19),
        ("palmar_l", "GPA-Net", 95.72, 96.68, 96.20),
    ],
)
def test_both_definitions(aspect, method, rank1, standard, trapezoid):
    row = one(published("11k", aspect), method)
    got = [100 * row[c] for c in ("rank1", "map", "map_trapezoid")]
    assert got == pytest.approx([rank1, standard, trapezoid], abs=0.0051)


def test_conversion_is_exact_both_ways_and_keeps_what_was_printed():
    for dataset, aspect in [("11k", a) for a in CHAIN] + [("HD", "dorsal")]:
        frame = published(dataset, aspect)
        half = (frame["rank1"] + frame["map"]) / 2
        np.testing.assert_allclose(frame["map_trapezoid"], half, atol=1e-12)
        for row in frame.to_dict("records"):
            printed = row["map"] if row["ap"] == "standard" else row["map_trapezoid"]
            same = RAW[(RAW["method"] == row["method"]) & (RAW["trained"] == row["trained"])]
            same = same[same["dataset"] == dataset]
            assert f"{100 * printed:.2f}" in {f"{v:.2f}" for v in same["map"]}
        rates = frame[["rank1", "map", "map_trapezoid"]].to_numpy()
        assert ((rates > 0) & (rates < 1)).all()


def test_with_several_matches_nothing_is_derived(monkeypatch, tmp_path):
    changed = RAW.assign(matches=3)
    changed.to_csv(tmp_path / "changed.csv", index=False)
    monkeypatch.setattr(module, "_FILE", tmp_path / "changed.csv")
    module._rows.cache_clear()
    try:
        frame = published("11k", "dorsal_l")
        assert frame["map"].isna().all() and frame["map_trapezoid"].notna().all()
    finally:
        module._rows.cache_clear()


def test_every_row_says_under_which_protocol_and_whence():
    assert set(RAW["gallery"]) == {"own", "all"} and set(RAW["ap"]) == {"standard", "trapezoid"}
    assert (RAW["source"].str.contains("arXiv:|thesis")).all()
    galleries = RAW.groupby(["dataset", "gallery"])["entries"].unique().map(list).to_dict()
    assert galleries == {("11k", "all"): [290], ("11k", "own"): [71], ("HD", "own"): [1593]}
    tuned = RAW["method"].str.contains("CLIP-FH stage")
    assert RAW.loc[tuned, "notes"].str.contains("chosen on test persons").all()
    assert not RAW.duplicated(["method", "trained", "dataset", "aspect"]).any()


def test_table_for_readers_groups_by_gallery_and_marks_what_was_derived():
    table = published_table("11k", "dorsal_r")
    assert list(dict.fromkeys(table.index.get_level_values(0))) == [
        "all aspects (290)", "own gallery (71)", "HD, own gallery (1,593)"
    ]  # fmt: skip
    first = table.iloc[0]
    assert first.name == ("all aspects (290)", "MBA-Net")
    assert [first[c] for c in ("rank-1", "rank-5", "mAP", "mAP (trapezoid)")] == [
        "97.45", "–", "[98.51]", "97.98"
    ]  # fmt: skip
    assert table.iloc[-5]["mAP (trapezoid)"].startswith("[")


def test_what_is_given_out_is_a_copy():
    frame = published("11k", "dorsal_l")
    frame["map"] = 0.0
    assert (published("11k", "dorsal_l")["map"] > 0).all()


def test_what_was_trained_there_and_tested_elsewhere_stands_below_with_its_gallery():
    table = published_table("11k", "dorsal_r")
    away = table[table.index.get_level_values(0) == "HD, own gallery (1,593)"]
    assert away.index.get_level_values(1).tolist() == ["MBA-Net", "GPA-Net", "RGA-Net", "ABD-Net"]
    assert away.equals(table.tail(4)) and away.equals(published_table("11k", "palmar_l").tail(4))
    row = away.iloc[0]
    assert row[["trained on", "rank-1", "mAP", "mAP (trapezoid)"]].tolist() == [
        "11k dorsal_r", "84.41", "[87.55]", "85.98"
    ]  # fmt: skip
    assert len(published_table("HD", "dorsal_r")) == len(published("HD", "dorsal_r"))
