"""Chains: figures hold the numbers they are given, tables say them, seeds are no persons."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from handclip_lib.aspects import CHAIN
from handclip_lib.evaluate import transfer
from handclip_lib.report import chains, heats, projections, transfers
from handclip_lib.report.canvas import BAD, DPI, GOOD, INK, PALETTE
from handclip_lib.report.index import write_index
from handclip_lib.report.results import Finished, finished_runs
from handclip_lib.report.runs import replace_text
from handclip_lib.schema import Params

ROWS = ("zero_shot", *CHAIN)
PLAIN = [(j + 1, j + 1) for j in range(4)]
R = np.array(
    [
        [0.40, 0.35, 0.30, 0.25],
        [0.71, 0.50, 0.41, 0.32],
        [0.62, 0.74, 0.43, 0.31],
        [0.48, 0.55, 0.69, 0.52],
        [0.42, 0.57, 0.61, 0.76],
    ]
)
SPREADS = {
    "chain": {"average": 0.5, "backward": -0.2, "forward": 0.1, "forgetting": 0.2},
    "replay": {"average": 0.6, "backward": 0.1, "forward": 0.01, "forgetting": -0.1},
    "joint": {"average": 0.7, "backward": None, "forward": None, "forgetting": None},
}


def told(values, half=0.05):
    ends = {k: None if v is None else [v - half, v + half] for k, v in values.items()}
    return {"transfer": values, "transfer_ci95": ends}


TOLD = {name: told(values) for name, values in SPREADS.items()}


def cross(size=4, lost=()):
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.2, 0.8, (size, size))
    persons = rng.integers(20, 30, (size, size))
    for at in lost:
        mean[at], persons[at] = np.nan, 0
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.05, "persons": persons}


def planes(ways=("pca",)):
    rng = np.random.default_rng(2)
    return projections.project_together({m: rng.normal(size=(24, 6)) for m in "ab"}, ways)


WHO, VIEWS = np.repeat(np.arange(6), 4), np.tile(CHAIN, 6)
ALPHAS = np.linspace(0, 1, 3)
KINDS = ("as they are", "left hands mirrored")
FIGURES = {
    "matrix": lambda t: heats.matrix_heat({"rank-1": R, "mAP": R / 2}, ROWS, CHAIN, PLAIN, t),
    "matrix of two steps": lambda t: heats.matrix_heat(
        {"rank-1": R[:3, :2]}, ROWS[:3], CHAIN[:2], PLAIN[:2], t
    ),
    "cross": lambda t: heats.cross_heat(
        {k: cross() for k in KINDS}, {k: cross(4, [(0, 3)]) for k in KINDS}, CHAIN, t, "mAP"
    ),
    "cross of two": lambda t: heats.cross_heat(
        {"plain": cross(2)},
        {"plain": cross(2, [(0, 0), (0, 1), (1, 0), (1, 1)])},
        CHAIN[:2],
        t,
        "m",
    ),
    "curves": lambda t: chains.forgetting_curves(
        R, R - 0.1, R + 0.05, ROWS, CHAIN, PLAIN, t, "rank-1"
    ),
    "curves of two steps": lambda t: chains.forgetting_curves(
        *[R[:3, :2]] * 3, ROWS[:3], CHAIN[:2], PLAIN[:2], t, "rank-1"
    ),
    "forest": lambda t: chains.transfer_forest(TOLD, t, "rank-1"),
    "forest of a bound": lambda t: chains.transfer_forest({"joint": TOLD["joint"]}, t, "rank-1"),
    "forest of nothing": lambda t: chains.transfer_forest({}, t, "rank-1"),
    "wise": lambda t: chains.wise_curve(
        ALPHAS, dict(zip(CHAIN, R[:3].T, strict=True)), *[R[:3].mean(1)] * 3, 0.5, t, "mAP", "so"
    ),
    "wise of one alpha": lambda t: chains.wise_curve(
        [0.0], {"dorsal_r": R[:1, 0]}, *[R[:1, 0]] * 3, 0.0, t, "mAP", "by nothing"
    ),
    "all aspects": lambda t: chains.all_aspects(planes(), WHO, VIEWS, t),
    "all aspects, two ways": lambda t: chains.all_aspects(planes(("pca", "tsne")), WHO, VIEWS, t),
}


@cache
def figure(name):
    return FIGURES[name]("four aspects, n = 40")


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, tmp_path):
    fig = figure(name)
    assert fig.get_suptitle() == "four aspects, n = 40"
    assert fig.dpi == DPI and max(fig.get_size_inches()) <= 12
    assert not plt.get_fignums(), "an open figure is shown twice in a notebook"
    fig.savefig(tmp_path / "a.png", dpi=30)


def shown(ax):
    """{(row, column): words} of a heat map's cells, in the order of rows."""
    found = {}
    for text in ax.texts:
        x, y = text.get_position()
        found.setdefault((round(y), round(x)), []).append(text.get_text())
    return found


def test_cells_hold_their_percentages():
    left, right = figure("matrix").axes[:2]
    assert shown(left) == {at: [f"{100 * v:.1f}"] for at, v in np.ndenumerate(R)}
    assert shown(right)[0, 1] == ["17.5"]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.125, 0.76)
    words = [[tick.get_text() for tick in ticks] for ticks in (left.get_yticklabels(),
             left.get_xticklabels())]  # fmt: skip
    assert words[0] == ["zero-shot", *(name.replace("\n", " ") for name in words[1])]
    assert words[1] == ["dorsal\nright", "dorsal\nleft", "palmar\nright", "palmar\nleft"]
    assert [line.get_ydata()[0] for line in left.lines] == [0.5], "the rule under the start"


def test_the_steps_that_taught_a_task_are_framed():
    taught = [(1, 4), (2, 2), (1, 3), (4, 4)]
    ax = heats.matrix_heat({"mAP": R}, ROWS, CHAIN, taught, "t").axes[0]
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    middles = {tuple(np.round(box.get_center()).astype(int)) for box in boxes}
    assert middles == {(0, 1), (0, 4), (1, 2), (2, 1), (2, 3), (3, 4)}  # column, row
    assert len(boxes) == 6


def test_words_on_a_cell_can_be_read():
    ax = figure("matrix").axes[0]
    colours = {tuple(map(round, text.get_position())): text.get_color() for text in ax.texts}
    assert colours[3, 4] == "white" and colours[3, 0] == INK


def test_small_differences_make_no_contrast():
    flat = 0.9 + 0.01 * R
    scale = heats.matrix_heat({"mAP": flat}, ROWS, CHAIN, PLAIN, "t").axes[0].images[0].norm
    assert scale.vmax - scale.vmin == pytest.approx(0.1)


def test_cross_cells_hold_score_and_half_width_and_missing_pairs_are_said():
    fig = figure("cross")
    panels = fig.axes[:4]
    titles = [ax.get_title("left").split("\n")[0] for ax in panels]
    assert titles == [f"{when}, {kind}" for when in ("before", "after") for kind in KINDS]
    cells, mean = shown(panels[0]), cross()["mean"]
    assert cells[1, 2] == [f"{100 * mean[1, 2]:.1f}", "± 7.5"]
    assert shown(panels[2])[0, 3] == ["–"], "no score, no interval"
    persons = np.delete(cross()["persons"].ravel(), 3)
    assert panels[2].get_title("left").endswith(f"n = {persons.min()} to {persons.max()} persons")
    assert len({ax.images[0].get_clim() for ax in panels}) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("HD dorsal_r", "HD dorsal right"), ("zero_shot", "zero-shot"), ("palmar_l", "palmar left")],
)
def test_names_in_words(name, words):
    assert heats.task_name(name) == words
    assert heats.ticked(name).replace("\n", " ") == words


def test_a_task_keeps_its_colour_and_its_own_steps_are_marked():
    ax = figure("curves").axes[0]
    large = [line for line in ax.lines if line.get_markersize() == 9]
    assert [line.get_color() for line in large] == list(PALETTE[:4])
    np.testing.assert_allclose([line.get_ydata()[0] for line in large], np.diag(R[1:]))
    assert [round(line.get_xdata()[0]) for line in large] == [1, 2, 3, 4]
    backwards = chains.forgetting_curves(
        *[R[:, ::-1]] * 3, ROWS, CHAIN[::-1], [(1, 4), *PLAIN[1:]], "t", "mAP"
    )
    large = [line for line in backwards.axes[0].lines if line.get_markersize() == 9]
    assert [line.get_color() for line in large] == list(PALETTE[:4][::-1])
    assert [len(line.get_xdata()) for line in large] == [2, 1, 1, 1], "taught twice, marked twice"


def test_whiskers_end_at_the_intervals():
    bars = figure("curves").axes[0].containers[2].lines[2][0].get_segments()
    np.testing.assert_allclose([[low[1], high[1]] for low, high in bars],
                               np.stack([R[:, 2] - 0.1, R[:, 2] + 0.05], 1))  # fmt: skip


def test_forest_says_every_number_and_colours_only_sure_changes():
    fig = figure("forest")
    words = [[text.get_text() for text in ax.texts] for ax in fig.axes]
    assert words[0] == ["50.0 %", "60.0 %", "70.0 %"]
    assert words[1] == ["−20.0", "+10.0", "–"] and words[3] == ["+20.0", "−10.0", "–"]
    dots = [[to_hex(line.get_color()) for line in ax.lines if line.get_marker() == "o"]
            for ax in fig.axes]  # fmt: skip
    good, bad, ink = GOOD.lower(), BAD.lower(), INK.lower()
    assert dots == [[ink] * 3, [bad, good], [good, ink], [ink, ink]], "a maximum says nothing"
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == list(TOLD)
    assert fig.axes[0].lines[-1].get_xdata()[0] == 0.5, "the first chain's average"


def test_wise_marks_the_chosen_alpha_and_says_how_it_was_chosen():
    ax = figure("wise").axes[0]
    assert ax.get_title("left") == "dashed: α = 0.5, chosen so"
    (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed.get_xdata()[0] == 0.5
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(lines["mean"], R[:3].mean(1))
    np.testing.assert_allclose(lines["palmar right"], R[:3, 2])


def test_all_aspects_colours_a_photograph_by_its_aspect_on_shared_axes():
    fig, points = figure("all aspects"), planes()["PCA"]
    titles = [ax.get_title("left") for ax in fig.axes]
    assert titles == [f"{m}, PCA: by {what}" for what in ("person", "aspect") for m in "ab"]
    dots = fig.axes[3].collections[0]
    for at, colour in zip(dots.get_offsets(), dots.get_facecolors(), strict=True):
        (k,) = np.flatnonzero(np.isclose(points["b"], at).all(axis=1))
        assert to_hex(colour) == PALETTE[CHAIN.index(VIEWS[k])].lower()
    assert len({ax.get_xlim() for ax in fig.axes}) == 1
    low, high = fig.axes[0].get_xlim()
    assert all(low <= p[:, 0].min() and p[:, 0].max() <= high for p in points.values())
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["dorsal right", "dorsal left", "palmar right", "palmar left"]
    both = figure("all aspects, two ways").axes
    assert both[0].get_xlim() == both[1].get_xlim() != both[2].get_xlim() == both[7].get_xlim()


# -- tables ---------------------------------------------------------------------------------------


def test_table_gives_means_in_per_cent_and_changes_with_their_sign():
    lower = {n: told({k: v and v - 0.1 for k, v in of.items()}) for n, of in SPREADS.items()}
    both = {n: {"rank1": TOLD[n], "map": lower[n]} for n in TOLD}
    table = transfers.transfer_table(both)
    assert table.index.tolist() == [(n, m) for n in TOLD for m in ("rank-1", "mAP")]
    row = table.loc[("replay", "mAP")]
    assert row["average (%)"] == "50.0 (45.0–55.0)"
    assert row["forgetting (points)"] == "−20.0 (−25.0 to −15.0)"
    assert table.loc[("replay", "rank-1")]["forward (points)"] == "+1.0 (−4.0 to +6.0)"
    assert table.loc[("joint", "rank-1")].tolist() == ["70.0 (65.0–75.0)", "–", "–", "–"]


def cells(gain, rows=ROWS, seed=0, persons=9):
    """Scores of 9 persons, some with more queries than others."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (4, persons))
    spread = rng.uniform(-0.1, 0.1, (len(rows), 4, persons))
    sums = counts * (np.asarray(gain)[:, :, None] + spread)
    who = tuple(f"11k {k}" for k in range(persons))
    return transfer.Cells(tuple(rows), CHAIN, who, sums, counts)


def parts(seed):
    held = R.copy()
    held[4] += 0.05
    joint = cells([R[0], R.max(0)], ("zero_shot", "joint"), seed)
    return {"chain": cells(R, seed=seed), "replay": cells(held, seed=seed), "joint": joint}


LEARNED = {"chain": PLAIN, "replay": PLAIN, "joint": [(1, 1)] * 4}


def run(seed, tag="", notebook="05_sequential_chain", aspect="dorsal_r"):
    plain = {n: {m: transfer.to_plain(c) for m in ("rank1", "map")} for n, c in parts(seed).items()}
    return {
        **{"study": "s", "notebook": notebook, "aspect": aspect, "seed": seed, "tag": tag},
        **{"data": "drawn hands", "variants": {}, "manifest_sha256": "0" * 64},
        **{"cells": plain, "learned": {n: [list(t) for t in told] for n, told in LEARNED.items()}},
    }


def finished(*metrics):
    return [Finished(None, json.loads(json.dumps(m)), {}) for m in metrics]


def test_seeds_are_pooled_over_queries_and_persons():
    table = transfers.pooled_transfers(finished(run(0), run(1)))
    assert table["chain"].tolist() == ["chain", "replay", "joint"] * 2
    row = table.set_index(["metric", "chain"]).loc["map", "replay"]
    both = {n: transfer.pool([parts(seed)[n] for seed in (0, 1)]) for n in LEARNED}
    wanted = transfer.transfer(transfer.matrix(both["replay"]), PLAIN)
    ends = transfer.intervals(both["replay"], PLAIN)
    for name in transfers.SCALARS:
        assert row[name] == pytest.approx(wanted[name])
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(ends[name])
    change = transfer.compare(both["chain"], both["replay"], PLAIN, PLAIN)["forgetting"]
    assert row["forgetting_difference"] == pytest.approx(change["difference"])
    assert row["forgetting_difference"] < 0, "replay less chain"
    low, high = row["forgetting_difference_low"], row["forgetting_difference_high"]
    assert (low, high) == pytest.approx(change["ci95"])
    assert (row["seeds"], row["persons"]) == (2, 9)


def test_where_a_chain_has_no_such_number():
    table = transfers.pooled_transfers(finished(run(0), run(1))).set_index(["metric", "chain"])
    joint, chain = table.loc["rank1", "joint"], table.loc["rank1", "chain"]
    assert joint[["backward", "forgetting_low", "forgetting_difference"]].isna().all()
    assert joint["average_difference"] > 0
    assert chain[["average_difference", "forgetting_difference_high"]].isna().all()


def test_what_is_not_pooled():
    alone, others = (
        [run(0)],
        [run(1, "lr"), run(1, notebook="02_stage1"), run(0, aspect="palmar_l")],
    )
    for metrics in (alone, alone + others):
        assert transfers.pooled_transfers(finished(*metrics)).empty
    other = run(1)
    other["learned"]["replay"] = [[1, 2], *other["learned"]["replay"][1:]]
    del other["cells"]["joint"]
    table = transfers.pooled_transfers(finished(run(0), other))
    assert set(table["chain"]) == {"chain"}, "other steps, or in one seed only"
    bare = [run(0), run(1)]
    for metrics in bare:
        del metrics["cells"]["chain"]
    table = transfers.pooled_transfers(finished(*bare))
    assert "average_difference" not in table and len(table) == 4
    assert "against" not in transfers.transfers_table(table)
    assert transfers.transfers_table(pd.DataFrame()) == ""


def test_a_page_shows_it():
    html = transfers.transfers_table(transfers.pooled_transfers(finished(run(0), run(1))))
    assert "2 seeds, 9 persons" in html and html.count(">replay<") == 2
    assert html.count("<td>–</td>") == 2 * (2 + 4), "the chain against itself; what joint has not"


def test_index_writes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path))
    stamp = {
        **{"git": {"commit": "0" * 40, "dirty": False}, "packages": {}, "peak_memory_mb": {}},
        **{"data": "drawn hands", "manifest_sha256": "", "handclip": "1", "python": "3"},
        **{"device": "cpu", "platform": "a machine", "seconds": 1.0},
    }
    for seed in (0, 1):
        folder = tmp_path / "s" / f"seed{seed}" / "dorsal_r" / "05_sequential_chain"
        folder.mkdir(parents=True)
        replace_text(folder / "metrics.json", json.dumps(run(seed)))
        replace_text(folder / "stamp.json", json.dumps(stamp))
    page = write_index(Params(study="s")).read_text()
    assert '<table id="transfers">' in page and 'href="transfers.csv"' in page
    table = transfers.pooled_transfers(finished_runs(tmp_path / "s"))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "s" / "transfers.csv"), table)
