"""All models in one table, every two against each other, and tables of errors."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from handclip_lib.evaluate.explanation import Explanation
from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import paired_test
from handclip_lib.params import load
from handclip_lib.report import errors, matrix, summary
from handclip_lib.report.explain import hand_table
from handclip_lib.report.lineup import Contender


def scored(mean: float, half: float = 0.05, *galleries: str) -> dict:
    told = {"mean": mean, "ci95": [mean - half, mean + half], "per_draw": [mean]}
    return {gallery: dict.fromkeys(METRICS, told) for gallery in galleries or ("own", "all")}


def queries(shift: float, persons: int = 8) -> pd.DataFrame:
    """Two queries of each person, AP as a wave over persons and higher by `shift` for most."""
    pid = np.repeat(np.arange(persons), 2)
    ap = 0.5 + 0.1 * np.sin(pid) + shift * (1 - 0.1 * (pid % 3))
    return pd.DataFrame({"pid": pid, "ap": ap, "rank1": (ap > 0.55).astype(float)})


@pytest.fixture(scope="module")
def tests() -> tuple[dict[str, pd.DataFrame], dict]:
    frames = {"weak": queries(0), "like it": queries(1e-9), "good": queries(0.1), "x": queries(0.2)}
    return frames, matrix.pairwise(frames, "map", seed=1, samples=500)


def test_every_two_models_are_compared_once(tests):
    frames, found = tests
    assert list(found) == list(combinations(frames, 2))
    for (a, b), test in found.items():
        assert test["difference"] == pytest.approx((frames[b]["ap"] - frames[a]["ap"]).mean())
    assert found["weak", "x"]["difference"] > 0.1
    pids = frames["weak"]["pid"]
    alone = paired_test(frames["weak"]["ap"], frames["good"]["ap"], pids, 500, 1)
    assert found["weak", "good"] == alone | {"holm": found["weak", "good"]["holm"]}


def test_holm_counts_all_pairs(tests):
    frames, found = tests
    least = min(test["p"] for test in found.values())
    assert least == pytest.approx(2 / 2**8)  # eight persons, all the same way
    first = min(found.values(), key=lambda test: test["p"])
    assert first["holm"] == pytest.approx(6 * least)
    assert all(test["holm"] >= test["p"] for test in found.values())
    two = matrix.pairwise({n: frames[n] for n in ("weak", "good")}, "map", 1, 500)
    assert two["weak", "good"]["holm"] == pytest.approx(least)


def test_another_metric_is_another_test(tests):
    frames, found = tests
    other = matrix.pairwise(frames, "rank1", seed=1, samples=500)
    assert other["weak", "x"]["difference"] != pytest.approx(found["weak", "x"]["difference"])


def test_the_heat_is_antisymmetric_and_marks_what_is_sure(tests):
    _, found = tests
    found = {pair: dict(test) for pair, test in found.items()}
    found["weak", "good"]["holm"] = 0.05
    found["weak", "x"]["holm"], found["weak", "like it"]["holm"] = 0.051, 1.0
    fig = matrix.pairwise_heat(found, "Title", "mAP")
    ax = fig.axes[0]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["weak", "like it", "good", "x"]
    np.testing.assert_array_equal(shown, -shown.T)
    assert np.isnan(np.diag(shown)).all()
    row, column = names.index("x"), names.index("weak")
    assert shown[row, column] == found["weak", "x"]["difference"] > 0  # row less column
    words = {tuple(int(v) for v in t.get_position()[::-1]): t for t in ax.texts}
    good = names.index("good")
    assert words[good, column].get_text().endswith("*")
    assert words[column, good].get_text().startswith("−")
    assert words[column, good].get_fontweight() == "bold"
    assert not words[row, column].get_text().endswith("*")
    assert words[0, 1].get_text() == "0"
    assert ax.images[0].get_clim()[1] == max(0.05, np.nanmax(np.abs(shown)))  # no full colour below
    alone = matrix.pairwise_heat({}, "Title", "mAP")
    assert "one model alone" in "".join(t.get_text() for t in [*alone.texts, *alone.axes[0].texts])


# --- the table ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    losses = ["cross_entropy", "triplet"]
    guided = {"reid": {"text": "prompts"}, "plain": {"text": "none"}}
    change = {
        "stage1.losses": [{"type": "cross_entropy"}],
        "stage2.variants": {"both": [{"type": name} for name in losses], "mba": {"epochs": 2}},
        "stage3b.variants": guided,
        "stage3b.losses": [{"type": "triplet"}],
        "pretrain.variants": ["moco_v3", "hybrid"],
    }
    return load(overrides=change)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stage1", "cross-entropy"),
        ("both", "cross-entropy + triplet"),
        ("chain", "chain of stage1"),
        ("reid", "triplet + text (prompts)"),
        ("plain", "triplet"),
        ("moco_v3", "contrast of views"),
        ("hybrid", "contrast of views and identities"),
        ("zero_shot", "–"),
        ("tiny_rn", "–"),
        ("both_of_them", "–"),
    ],
)
def test_losses_in_words(study, name, words):
    assert summary.losses_of(study, name) == words


def test_what_stage_1_began_with_is_said():
    told = load(study="smoke", overrides={"stage1.pretrain": "m", "pretrain.variants": {"m": {}}})
    assert summary.losses_of(told, "stage1") == "m, then cross-entropy"


def test_matrix_table():
    both = {"losses": "two", "image_passes": 3000, "seconds": 60.0}
    models = [
        Contender("zero_shot"),
        Contender("both", **both, trained_parameters=1_234_567, memory_mb=812.4),
        Contender("old", image_passes=3000, seconds=0.0, trained_parameters=5),
    ]
    scores = {"zero_shot": scored(0.4, 0.1), "both": scored(0.8), "old": scored(0.5, 0.05, "own")}
    scores["both"]["all"] = scored(0.6)["all"]
    spaces = {one.name: {"silhouette": 0.1234, "alignment": 0.5} for one in models}
    table = matrix.matrix_table(models, scores, spaces)
    assert list(table.columns.levels[0]) == ["scores (%)", "training and features"]
    found = table.droplevel(0, axis=1)
    cost = ["own training (s)", "images/s", "parameters trained", "memory of the run (MB)"]
    assert found.loc["zero_shot", cost].tolist() == ["–"] * 4
    assert found.loc["both", cost].tolist() == ["60.0", "50", "1,234,567", "812"]
    assert found.loc["old", cost].tolist() == ["0.0", "–", "5", "–"]
    assert found.loc["both", "mAP, all aspects"] == "60.0\u00a0[55.0,\u00a065.0]"
    assert found.loc["old", "mAP, all aspects"] == "–"
    assert found.loc["both", "silhouette"] == "0.123" and found.loc["old", "losses"] == "–"
    assert list(found.index) == ["zero_shot", "both", "old"]


def test_ways_beside_each_other():
    told = {
        "a": {"cosine": scored(0.5), "better": scored(0.6), "worse": scored(0.45)},
        "b": {"cosine": scored(0.7), "better": scored(0.7), "worse": scored(0.2)},
    }
    told["a"]["better"]["all"] = scored(0.9)["all"]
    found = matrix.ways_table(told)
    assert list(found.index) == ["cosine", "better", "worse"] and list(found) == ["a", "b"]
    assert found.loc["better", "a"].startswith("60.0") and found.loc["worse", "b"].startswith(
        "20.0"
    )
    others = matrix.ways_table(told, "all")
    assert others.loc["better", "a"].startswith("90.0") and found.index.name != others.index.name
    for of_way in told["b"].values():
        del of_way["all"]
    assert matrix.ways_table(told, "all")["b"].isna().all()
    fig = matrix.ways_change(told, "Title")
    dots = {
        line.get_label(): line.get_xdata() for line in fig.axes[1].lines if line.get_marker() == "o"
    }
    np.testing.assert_allclose(dots["a"], [0.1, -0.05])
    np.testing.assert_allclose(dots["b"], [0, -0.5])
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["better", "worse"]
    of_all = matrix.ways_change({"a": told["a"]}, "Title", gallery="all")
    np.testing.assert_allclose(of_all.axes[0].lines[0].get_xdata(), [0.4, -0.05])


# --- errors -------------------------------------------------------------------------------------


def rates(**changes) -> dict:
    levels = ("1e-1", "1e-2", "1e-3", "1e-4")
    told = {
        "eer": 0.05, "auc": 0.99, "d_prime": 3.456, "eer_upper": None,
        "fnmr_at_fmr": dict.fromkeys(levels, 0.2) | {"1e-4": None},
        "fnmr_upper": dict.fromkeys(levels), "n_genuine": 1234, "n_impostor": 56789,
        "thresholds": np.zeros(3), "fmr": np.zeros(3), "fnmr": np.zeros(3),
    }  # fmt: skip
    return told | changes


SPANS = {
    "eer": [0.03, 0.07], "auc": [0.98, 1.0], "persons": 7,
    "fnmr_at_fmr": {"1e-1": [0.1, 0.3], "1e-2": [0.1, 0.3], "1e-3": [0.1, 0.3], "1e-4": None},
}  # fmt: skip


def test_errors_table():
    few = {"1e-1": 0.0, "1e-2": None, "1e-3": None, "1e-4": None}
    nothing = rates(
        eer=0.0, eer_upper=0.003, d_prime=None, fnmr_at_fmr=few, fnmr_upper=few | {"1e-1": 0.0024}
    )
    found = errors.errors_table({"m": rates(), "perfect": nothing}, {"m": SPANS, "perfect": SPANS})
    m, perfect = found.loc["m"], found.loc["perfect"]
    assert (
        m["EER (%)"] == "5.0\u00a0[3.0,\u00a07.0]"
        and m["AUC (%)"] == "99.0\u00a0[98.0,\u00a0100.0]"
    )
    assert m["d′"] == "3.46" and perfect["d′"] == "–"
    assert m["FNMR at FMR 10 %"] == "20.0\u00a0[10.0,\u00a030.0]"
    assert m["FNMR at FMR 0.01 %"] == "too few pairs"
    assert perfect["EER (%)"] == "0.0 (< 0.3)"
    assert perfect["FNMR at FMR 10 %"] == "0.0 (< 0.24)"
    assert perfect["FNMR at FMR 1 %"] == "too few pairs"
    assert (m["genuine pairs"], m["impostor pairs"], m["persons"]) == ("1,234", "56,789", 7)


def test_operating_table():
    assert errors.operating_table({}).iloc[0, 0] == "none (the reason is printed above)"
    point = {"fmr": 0.0, "fmr_upper": 0.01, "fnmr": 0.1, "fnmr_upper": None, "chosen_on": "some"}
    point |= {"ci95": {"fmr": [0, 0], "fnmr": [0.05, 0.2]}}
    points = {"one": point | {"threshold_span": [0.12345, 0.12345], "aim": 0.001}}
    points["many"] = point | {"threshold_span": [-0.1, 0.2], "aim": 0.1}
    found = errors.operating_table(points)
    fnmr = "10.0\u00a0[5.0,\u00a020.0]"
    assert found.loc["one"].tolist() == ["0.123", "0.1", "0.0 (< 1)", fnmr, "some"]
    assert found.loc["many", "threshold (cosine)"] == "−0.100 to 0.200"


def test_evidence_table():
    told = {
        "cllr": 0.25, "cllr_min": 0.2, "misleading_genuine": 0.01, "misleading_impostor": 0.025,
        "strongest": [-1.5, 3.25], "persons": 20, "fitted_on": 12, "withheld": "",
    }  # fmt: skip
    few = dict.fromkeys(told) | {"persons": 3, "withheld": "3 persons; 5 are needed"}
    found = errors.evidence_table({"m": told, "few": few})
    assert found.loc["m", "bounds of ratios (log₁₀)"] == "−1.50 to 3.25"
    assert found.loc["m", "misleading, genuine (%)"] == "1.0" and found.loc["m", "fitted on"] == 12
    assert found.loc["few", "Cllr (bits)"] == "3 persons; 5 are needed"
    others = [c for c in found if c not in ("Cllr (bits)", "persons")]
    assert (found.loc["few", others] == "–").all() and found.loc["few", "persons"] == 3
    alone = errors.evidence_table({"few": few}).loc["few"]
    assert alone.tolist() == ["3 persons; 5 are needed", 3, "–"]


def test_open_set_table():
    told = {"rank1": 0.5, "dir_at_fpir": {"1e-1": 0.25, "1e-2": None}, "n_mated": 1000,
            "n_non_mated": 40}  # fmt: skip
    spans = {"rank1": [0.4, 0.6], "dir_at_fpir": {"1e-1": [0.2, 0.3], "1e-2": None}}
    found = errors.open_set_table({"m": told}, {"m": spans}).loc["m"]
    assert found.tolist() == [
        "50.0\u00a0[40.0,\u00a060.0]",
        "25.0\u00a0[20.0,\u00a030.0]",
        "too few photographs",
        "1,000",
        "40",
    ]
    assert list(found.index[1:3]) == ["found at FPIR 10 %", "found at FPIR 1 %"]


def test_what_is_kept_has_no_curves():
    assert errors.plain(rates()).keys() == rates().keys() - {"thresholds", "fmr", "fnmr"}


def explained(left_out=(), known=True) -> Explanation:
    blanked = {"top_less_random": {"mean": -0.1234, "ci95": [-0.2, 0.05]}}
    kinds = [k for k in ("attention", "raises the cosine") if k not in left_out]
    share = np.array([0.5, 0.7, np.nan]) if known else np.full(3, np.nan)
    told = {kind: share for kind in kinds} | {"hand": share / 2}
    return Explanation(
        ("a", "b", "c"), (1, 2, 3), np.zeros((3, 4, 4, 3), np.uint8),
        {kind: np.zeros((3, 2, 2)) for kind in kinds}, np.zeros((3, 4, 4)), told,
        {kind: blanked for kind in kinds}, dict.fromkeys(left_out, "it has none"),
    )  # fmt: skip


def test_hand_table():
    found = hand_table({"vit": explained(), "cnn": explained(["attention"], known=False)})
    told = ["60", "30", "−0.123 [−0.200, +0.050]"]
    assert found.loc[("vit", "attention")].tolist()[:3] == told
    assert found.loc[("cnn", "attention"), "note"] == "it has none"
    assert found.loc[("cnn", "raises the cosine")].tolist()[:2] == ["–", "–"]
    both = ["attention", "raises the cosine"]
    none = hand_table({"odd": explained(both)})
    assert none.iloc[:, 0].tolist() == ["it has none"] * 2


def test_a_whole_table_keeps_numbers_together_and_gives_prose_room():
    prose = "a sentence that is longer than any number of this kit is"
    page = summary.whole(pd.DataFrame({"n": ["12.0"], "notes": [prose]}, index=["a b"])).to_html()
    assert re.search(r"td\.col0 \{\s*white-space: nowrap;", page)
    assert re.search(r"td\.col1 \{\s*white-space: normal;\s*min-width", page) and prose in page
    nothing = summary.whole(pd.DataFrame(), "No row: nobody was asked.").to_html()
    assert "No row: nobody was asked." in nothing and "<th " not in nothing
