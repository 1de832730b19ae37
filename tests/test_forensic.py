"""Figures of verification, evidence and open-set search: they show what the numbers say."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy.stats import norm

from handclip_lib.evaluate.openset import open_set_metrics
from handclip_lib.evaluate.verification import verification_metrics
from handclip_lib.report import forensic
from handclip_lib.report.canvas import PALETTE


def gaussian(distance, genuine=400, impostor=6000, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat([True, False], [genuine, impostor])
    return rng.normal(distance * labels, 1), labels


def strangers(seed=0):
    rng = np.random.default_rng(seed)
    mated = rng.random(900) < 0.6
    columns = {"mated": mated, "correct": mated & (rng.random(900) < 0.8)}
    columns |= {"similarity": rng.normal(mated, 1), "image": np.arange(900)}
    return open_set_metrics(pd.DataFrame(columns))


MODELS = {name: verification_metrics(*gaussian(d)) for name, d in (("tiny", 1.0), ("mba", 3.0))}
PERFECT = verification_metrics([5.0, 6.0, 0.0, 1.0], [True, True, False, False])
RATIOS = {"tiny": (np.array([2.0, -1.0, 1.0]), np.array([-2.0, 0.5]))}
KINDS = {"same hand": np.array([0.8, 0.9]), "other person": np.linspace(0, 0.6, 30)}
FIGURES = {
    "det": lambda: forensic.det(MODELS, "Title"),
    "det of a perfect model": lambda: forensic.det({"perfect": PERFECT}, "Title"),
    "roc": lambda: forensic.roc({**MODELS, "perfect": PERFECT}, "Title"),
    "tippett": lambda: forensic.tippett(RATIOS, "Title", {"tiny": 0.5}),
    "histograms": lambda: forensic.score_histograms({"a": KINDS, "b": KINDS}, "Title", {"a": 0.7}),
    "no pairs": lambda: forensic.score_histograms({}, "Title"),
    "open set": lambda: forensic.fpir_fnir({"a": strangers(), "b": strangers(1)}, "Title"),
}


def labelled(fig):
    return {line.get_label(): line for ax in fig.axes for line in ax.get_lines()}


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_a_title_and_are_the_same_every_time(name):
    pixels = []
    for _ in range(2):
        fig, file = FIGURES[name](), io.BytesIO()
        fig.savefig(file, format="raw")
        pixels.append(file.getvalue())
        assert fig.get_suptitle() == "Title" and fig.dpi == forensic.canvas("")[0].dpi
    assert pixels[0] == pixels[1]


def test_det_lines_are_straight_for_gaussian_scores_and_meet_their_eer():
    fig = FIGURES["det"]()
    x, y = labelled(fig)[f"mba: EER {100 * MODELS['mba']['eer']:.3g} %"].get_data()
    middle = (x > -2) & (x < -0.5)
    np.testing.assert_allclose(y[middle], -x[middle] - 3, atol=0.35)
    dots = [line for line in fig.axes[0].get_lines() if line.get_marker() == "o"]
    assert [float(norm.cdf(dot.get_xdata()[0])) for dot in dots] == pytest.approx(
        [told["eer"] for told in MODELS.values()]
    )
    low, high = norm.cdf(fig.axes[0].get_xlim())
    assert low < 0.01 and high == pytest.approx(0.6)


def test_det_of_hardly_any_errors_keeps_its_axes_and_shows_the_equal_error_rate():
    similarity = [0.9, 0.8, 0.7, *np.linspace(0, 0.72, 60)]
    few = verification_metrics(similarity, [True] * 3 + [False] * 60)
    fig = forensic.det({"few": few, "perfect": PERFECT}, "Title")
    low, high = norm.cdf(fig.axes[0].get_xlim())
    assert low < few["eer"] < 0.05 and high == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["det", "roc", "open set"])
def test_models_keep_their_colours_and_weak_parts_are_faint(name):
    fig = FIGURES[name]()
    of_model = [line for line in fig.axes[0].get_lines() if len(line.get_xdata()) > 1]
    strong = [line for line in of_model if not line.get_label().startswith("_")]
    assert [to_hex(line.get_color()) for line in strong[:2]] == [c.lower() for c in PALETTE[:2]]
    faint = [line for line in of_model if line.get_alpha() == 0.35]
    rates = [norm.cdf(s.get_xdata()) if name == "det" else s.get_xdata() for s in strong[:2]]
    trials = 6000 if name != "open set" else strangers()["n_non_mated"]
    assert min(map(min, rates)) >= 30 / trials * 0.9
    assert all(len(line.get_xdata()) for line in faint[:2])


def test_roc_shows_the_true_match_rate_of_each_false_match_rate():
    fig = FIGURES["roc"]()
    ax = fig.axes[0]
    line = labelled(fig)[f"tiny: AUC {100 * MODELS['tiny']['auc']:.4g} %"]
    x, y = line.get_data()
    found = y[np.argmin(np.abs(x - 0.1))]
    assert found == pytest.approx(1 - MODELS["tiny"]["fnmr_at_fmr"]["1e-1"], abs=0.02)
    assert line.get_drawstyle() == "steps-pre" and ax.get_xscale() == "log"
    fig.canvas.draw()
    assert "10 %" in [tick.get_text() for tick in ax.get_xticklabels()]


def test_thin_curves_keep_their_ends_and_shape():
    x = np.linspace(0, 1, 50_000)
    few = forensic._thin(x, x**3)
    assert len(few[0]) <= 2002 and (few[0][0], few[0][-1]) == (0, 1)
    assert np.abs(np.interp(x, *few) - x**3).max() < 1e-5


def test_tippett_curves_fall_from_one_to_none():
    fig = FIGURES["tippett"]()
    genuine, impostor, zero = fig.axes[0].get_lines()
    np.testing.assert_allclose(genuine.get_ydata(), [1, 1, 2 / 3, 2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(impostor.get_ydata(), [1, 0.5, 0.5, 0, 0, 0])
    assert (genuine.get_linestyle(), impostor.get_linestyle()) == ("-", "--")
    assert set(zero.get_xdata()) == {0} and legend(fig) == ["tiny: Cllr 0.50"]


def test_histograms_name_kinds_with_their_numbers_and_show_thresholds():
    fig = FIGURES["histograms"]()
    assert legend(fig) == [
        "same hand (2 pairs)", "other person (30 pairs)", "threshold from other persons",
    ]  # fmt: skip
    lines = [ax.get_lines() for ax in fig.axes]
    assert set(lines[0][0].get_xdata()) == {0.7} and not lines[1]
    uneven = {"a": KINDS, "b": {"same hand": np.array([0.5, 0.6, 0.7])}}
    assert legend(forensic.score_histograms(uneven, "T"))[0] == "same hand"
    whole = {"same hand": np.ones(2), "other hand of the person": np.zeros(2), **KINDS}
    three = forensic.score_histograms({"own": KINDS, "all": whole}, "T")
    assert [words.split(" (")[0] for words in legend(three)] == list(whole)


def test_open_set_curves_start_where_rank_one_leaves_them():
    told = strangers()
    fig = forensic.fpir_fnir({"a": told}, "T")
    strong, faint = (np.array(line.get_data()) for line in fig.axes[0].get_lines())
    whole = np.concatenate([strong, faint], axis=1)
    assert whole[:, 0] == pytest.approx([1, 1 - told["rank1"]]) and whole[1].max() == 1
    assert legend(fig) == [f"a: rank-1 {100 * told['rank1']:.3g} %"]
