"""A study's page and tables: what they show is what the files hold, and nothing is lost."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from handclip_lib.params import load
from handclip_lib.report.charts import interval_chart
from handclip_lib.report.index import write_index
from handclip_lib.report.page import banner
from handclip_lib.report.runs import open_run, run_folder

TITLE = "drawn hands (demonstration)"
METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid", "minp")


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.fixture
def sweep(tmp_path):
    """A study with two variants."""
    told = "extends: smoke\nseeds: [3, 1]\nsweep:\n  wide: {model.fit: pad}\n"
    told += "  other_data: {data.drawn.seed: 5}"
    (tmp_path / "mine.yaml").write_text(told)
    return str(tmp_path / "mine.yaml")


class _Tables(HTMLParser):
    """Rows of cells' texts of every table by its id."""

    def __init__(self):
        super().__init__()
        self.tables, self.rows, self.asks = {}, [], []

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag == "table":
            self.rows = self.tables[told["id"]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "small" and self.rows and self.rows[-1]:
            self.rows[-1][-1] += "|"
        self.asks += [told[k] for k in ("src", "href") if k in told]

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows = []

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def _score(rng):
    low, mean, high = np.sort(rng.random(3))
    return {"mean": mean, "ci95": [low, high], "per_draw": [mean]}


def _scored(aspect, rng, title=TITLE):
    run = open_run("01_baseline", load(aspect, "smoke"))
    counts = {"queries": 9, "gallery": 5, "persons": 4}
    variants = {
        tower: {g: {m: _score(rng) for m in METRICS} | counts for g in ("own", "all")}
        for tower in ("tiny", "tiny & rn")
    }
    answer = {"ensemble": {"accuracy": 0.25, "ci95": [0.1, 0.4]}, "chance": 0.25, "images": 7}
    run.figure(Figure((9, 4)), "cmc_curve")
    (run.folder / "report.html").write_text("x")
    run.save({"data": title, "variants": variants, "zero_shot": {"tiny": answer}})
    return variants


def test_index_shows_the_numbers_of_the_files(reports):
    rng = np.random.default_rng(0)
    saved = {aspect: _scored(aspect, rng) for aspect in ("palmar_r", "dorsal_l")}
    text = write_index(load(study="smoke")).read_text()
    parser = _Tables()
    parser.feed(text)
    rows = {row[0].split("|")[0]: row for row in parser.tables["headline"][2:]}
    assert list(rows)[0] == "dorsal left · tiny", "aspects in their own order"
    for aspect, words in (("palmar_r", "palmar right"), ("dorsal_l", "dorsal left")):
        for tower, galleries in saved[aspect].items():
            expected = [
                f"{100 * s['mean']:.1f}|{100 * s['ci95'][0]:.1f}–{100 * s['ci95'][1]:.1f}"
                for g in ("own", "all")
                for s in (galleries[g]["rank1"], galleries[g]["map"])
            ]
            assert rows[f"{words} · {tower}"][1:] == [*expected, "4"]
    assert parser.tables["zero-shot"][1][1:] == ["25.0|10.0–40.0", "25.0", "7"]
    _check_page(text, parser.asks, reports / "smoke")


def _check_page(text, asks, root):
    assert f"<h1>{TITLE}</h1>" in text and "say nothing about real ones" in text
    assert "seed0/dorsal_l/01_baseline/report.html" in asks
    for ask in asks:
        inside = ask.startswith(("data:image/jpeg;base64,", "#"))
        assert inside or (root / ask).is_file(), f"a dead or outside link: {ask[:80]}"
    assert "cmc curve" in text and "<script" not in text and "@import" not in text


def test_long_names_fit_into_the_chart():
    label = "palmar right · ViT-B-16-quickgelu, seed 0"
    chart = interval_chart([(label, {"own": (0.5, 0.4, 0.6)})], {"own": "own gallery"})
    left = float(re.search(r'viewBox="-(\d+) 0 ', chart).group(1))
    assert left >= 7.5 * len(label) and label in chart


def test_numbers_csv_is_tidy_and_whole(reports):
    saved = _scored("dorsal_r", np.random.default_rng(1))
    write_index(load(study="smoke"))
    frame = pd.read_csv(reports / "smoke" / "numbers.csv", keep_default_na=False)
    assert len(frame) == 2 * 2 * 6
    row = frame.query("variant == 'tiny' and gallery == 'all' and metric == 'minp'").iloc[0]
    expected = saved["tiny"]["all"]["minp"]
    assert [row["mean"], row["ci95_low"], row["ci95_high"]] == [
        expected["mean"],
        *expected["ci95"],
    ]
    assert row["queries"] == 9 and row["data"] == TITLE and row["study"] == "smoke"


def test_results_csv_has_a_row_a_model(reports):
    saved = _scored("dorsal_r", np.random.default_rng(1))
    write_index(load(study="smoke"))
    frame = pd.read_csv(reports / "smoke" / "results.csv", keep_default_na=False)
    assert list(frame["variant"]) == list(saved), "one row for each"
    row = frame.set_index("variant").loc["tiny"]
    minp = saved["tiny"]["all"]["minp"]
    assert [row["all_minp"], row["all_minp_low"], row["all_minp_high"]] == [
        minp["mean"],
        *minp["ci95"],
    ]
    assert row["map"] == saved["tiny"]["own"]["map"]["mean"] and row["all_queries"] == 9
    assert (row["notebook"], row["aspect"], row["data"]) == ("01_baseline", "dorsal_r", TITLE)


def _variant(mean_r1, mean_ap, persons):
    told = {"rank1": mean_r1, "map": mean_ap}
    score = {
        k: {"mean": v, "ci95": [v - 0.01, min(1.0, v + 0.01)], "per_draw": [v]}
        for k, v in told.items()
    }
    return {"own": score | {"queries": 8, "gallery": 4, "persons": persons}}


def _trained(study_file, tag, seed, scores, per_person=None):
    run = open_run("01_baseline", load("dorsal_r", study_file, seed, tag))
    variants = {name: _variant(*two, 4) for name, two in scores.items()}
    told = {"data": TITLE, "variants": variants}
    run.save(told | ({"per_person": per_person} if per_person else {}))


def _table(page, name):
    parser = _Tables()
    parser.feed(page)
    return parser.tables.get(name, [])


def test_what_06_scores_again_is_listed_once(reports):
    for notebook, names in {"02_stage1": ("stage1", "old"), "06_eval_rerank": ("stage1",)}.items():
        run = open_run(notebook, load("dorsal_r", "smoke"))
        run.save({"data": TITLE, "variants": {name: _variant(0.5, 0.6, 4) for name in names}})
    rows = _table(write_index(load(study="smoke")).read_text(), "headline")
    listed = [row[0].split("|") for row in rows[2:]]
    assert [name for name, _ in listed] == ["dorsal right · old", "dorsal right · stage1"]
    assert listed[1][1].startswith("06_eval_rerank")


def test_variants_of_a_sweep_stand_beside_the_study(sweep, reports):
    _trained(sweep, "", 3, {"stage1": (0.5, 0.6), "old": (0.2, 0.2)})
    _trained(sweep, "wide", 3, {"stage1": (0.625, 0.55), "new": (0.7, 0.7)})
    _trained(sweep, "wide", 1, {"stage1": (0.9, 0.9)})
    page = write_index(load(study=sweep)).read_text()
    rows = _table(page, "variants")
    assert [row[0].split("|")[0] for row in rows[1:]] == [
        *("dorsal right · stage1", "wide"),
        *("dorsal right · stage1", "the study itself", "wide"),
        *("dorsal right · new", "wide"),
    ], "one block an aspect, variant and seed; what only the study has is in the table above"
    assert rows[2][1:] == ["90.0|89.0–91.0", "90.0|89.0–91.0", "–", "–"], "no such seed to compare"
    assert rows[5][1:] == ["62.5|61.5–63.5", "55.0|54.0–56.0", "+12.5", "−5.0"]
    assert rows[7][3:] == ["–", "–"]
    frame = pd.read_csv(reports / "mine" / "numbers.csv")
    told = frame[frame["difference"].notna()]
    assert set(told["variant"]) == {"stage1"} and set(told["seed"]) == {3}
    assert list(told["difference"].round(6)) == [0.125, -0.05] and told["p"].isna().all()


def test_the_same_persons_are_tested_in_pairs(sweep, reports):
    # mean rank-1, mean AP and the number of queries of four persons: unequal numbers must weigh
    before = {"1": [0.0, 0.5, 5], "2": [1.0, 0.5, 1], "3": [1.0, 0.5, 1], "4": [1.0, 0.5, 1]}
    after = {pid: [1.0, 0.6, n] for pid, (_, _, n) in before.items()}
    fewer = {pid: [1.0, 0.6, 1] for pid in before}
    _trained(sweep, "", 3, {"stage1": (0.375, 0.5)}, {"stage1": before})
    _trained(sweep, "wide", 3, {"stage1": (1.0, 0.6)}, {"stage1": after})
    _trained(sweep, "other_data", 3, {"stage1": (1.0, 0.6)}, {"stage1": fewer})
    page = write_index(load(study=sweep)).read_text()
    frame = pd.read_csv(reports / "mine" / "numbers.csv").set_index(["tag", "metric"])
    rank1, ap = frame.loc[("wide", "rank1")], frame.loc[("wide", "map")]
    assert rank1["difference"] == pytest.approx(0.625) and rank1["p"] == 1.0, "one person differs"
    assert ap["difference"] == pytest.approx(0.1) and ap["p"] == pytest.approx(2 / 16)
    assert ap["difference_low"] == pytest.approx(0.1) == ap["difference_high"]
    assert np.isnan(frame.loc[("other_data", "map"), "p"]), "other queries: no pairs"
    rows = {row[0]: row for row in _table(page, "variants")}
    assert rows["wide"][4] == "+10.0|+10.0 to +10.0, p 0.125"
    assert rows["other_data"][4] == "+10.0"


def test_several_tests_are_corrected_together(sweep, reports):
    flat = {str(pid): [0.5, 0.5, 2] for pid in range(6)}
    up = {pid: [0.6, 0.6, 2] for pid in flat}
    _trained(sweep, "", 3, {"stage1": (0.5, 0.5)}, {"stage1": flat})
    for tag in ("wide", "other_data"):
        _trained(sweep, tag, 3, {"stage1": (0.6, 0.6)}, {"stage1": up})
    write_index(load(study=sweep))
    frame = pd.read_csv(reports / "mine" / "numbers.csv").dropna(subset="p")
    assert list(frame["p"]) == pytest.approx([2 / 64] * 4)
    assert list(frame["p_holm"]) == pytest.approx([4 / 64] * 4)


def test_means_over_seeds(sweep, reports):
    for seed, (plain, wide) in {0: (0.2, 0.3), 1: (0.4, 0.7)}.items():
        _trained(sweep, "", seed, {"stage1": (plain, plain), "once": (0.1, 0.1)})
        _trained(sweep, "wide", seed, {"stage1": (wide, wide)})
    _trained(sweep, "other_data", 0, {"stage1": (0.9, 0.9)})
    rows = _table(write_index(load(study=sweep)).read_text(), "seeds")
    wide = next(row for row in rows if row[0].endswith("wide"))
    assert wide[1:] == ["50.0|30.0–70.0", "50.0|30.0–70.0", "+20.0", "+20.0", "2"]
    assert not any("other_data" in row[0] for row in rows), "one seed is no mean"
    frame = pd.read_csv(reports / "mine" / "means.csv")
    row = frame[(frame["tag"] == "wide") & (frame["metric"] == "map")].iloc[0]
    assert (row["mean"], row["lowest"], row["highest"], row["seeds"]) == (0.5, 0.3, 0.7, 2)
    assert row["sd"] == pytest.approx(np.std([0.3, 0.7], ddof=1))


def test_a_plain_study_of_one_seed_has_neither_table(reports):
    _scored("dorsal_r", np.random.default_rng(1))
    page = write_index(load(study="smoke")).read_text()
    assert not _table(page, "variants") and not _table(page, "seeds")
    assert not (reports / "smoke" / "means.csv").exists()


def test_index_names_every_data_set_and_real_ones_without_the_warning():
    _scored("dorsal_r", np.random.default_rng(1), "11k Hands")
    text = write_index(load(study="smoke")).read_text()
    assert "<h1>11k Hands</h1>" in text and "say nothing about real ones" not in text
    _scored("dorsal_l", np.random.default_rng(1), "own hands: mine <3 persons>")
    text = write_index(load(study="smoke")).read_text()
    assert "11k Hands, own hands: mine &lt;3 persons&gt;" in text


def test_index_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no finished run in .*handclip study smoke"):
        write_index(load(study="smoke"))


def test_a_broken_metrics_file_is_named():
    folder = run_folder("01_baseline", load("dorsal_r", "smoke"))
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is not valid JSON"):
        write_index(load(study="smoke"))


def test_the_banner_names_toys_on_photographs_and_drawings_everywhere():
    drawn = banner("drawn hands (demonstration)", ["tiny"])
    assert "say nothing about real ones" in drawn and "CLIP" not in drawn
    assert "say nothing about CLIP" in banner("11k Hands", ["tiny", "RN50-quickgelu"])
    assert "nothing" not in banner("own hands: redrawn", ["RN50-quickgelu"])
