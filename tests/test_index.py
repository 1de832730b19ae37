"""A study's page and tables: what they show is what the files hold, and nothing is lost."""

import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.params import load
from handclip_lib.report import index_runs
from handclip_lib.report.charts import Curve, interval_bar, panel
from handclip_lib.report.index import write_index
from handclip_lib.report.page import banner
from handclip_lib.report.runs import open_run, run_folder

TITLE = "drawn hands (demonstration)"


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
    """Rows of cells' texts of every table by its id; what the page asks for, and its anchors."""

    def __init__(self):
        super().__init__()
        self.tables, self.rows, self.asks, self.ids, self.drawn = {}, [], [], set(), False

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
        self.drawn = tag == "svg" or (self.drawn and tag != "td")
        self.ids |= {told["id"]} if "id" in told else set()
        self.asks += [told[k] for k in ("src", "href") if k in told]

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows = []
        if tag == "svg":
            self.drawn = False

    def handle_data(self, data):
        if self.rows and self.rows[-1] and not self.drawn:
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


def _parsed(page):
    parser = _Tables()
    parser.feed(page)
    return parser


def _models(page):
    """{(aspect in words, variant, notebook and tag): cells} of the headline."""
    found, aspect = {}, ""
    for row in _parsed(page).tables.get("headline", [])[2:]:
        if len(row) == 2:
            aspect = row[0]
        else:
            found[aspect, *row[0].split("|")] = row[1:]
    return found


def _percent(mean, low, high):
    return f"{100 * mean:.1f}|{100 * low:.1f}–{100 * high:.1f}"


def test_a_link_leads_to_its_file_whatever_it_is_called(tmp_path):
    name = '50 % & more#1/"what"?.html'
    assert unquote(index_runs.href(tmp_path / name, tmp_path)) == name
    assert not set(index_runs.href(tmp_path / name, tmp_path)) & set('#?"&<')


def test_index_shows_the_numbers_of_the_files(reports):
    rng = np.random.default_rng(0)
    for aspect in ("palmar_r", "dorsal_l"):
        _scored(aspect, rng)
    text = write_index(load(study="smoke")).read_text()
    models = _models(text)
    assert [key[0] for key in models] == ["dorsal left"] * 2 + ["palmar right"] * 2
    table = pd.read_csv(reports / "smoke" / "results.csv", keep_default_na=False)
    assert len(table) == len(models) == 4
    names = {"dorsal_l": "dorsal left", "palmar_r": "palmar right"}
    for _, row in table.iterrows():
        expected = [
            _percent(*(row[f"{g}{m}{end}"] for end in ("", "_low", "_high")))
            for g in ("", "all_")
            for m in ("rank1", "map")
        ]
        shown = models[names[row["aspect"]], row["variant"], "01_baseline"]
        assert shown == [*expected, "", "4", "0"]
    parser = _parsed(text)
    told = ["tiny|dorsal left, palmar right; seed 0", "25.0|10.0–40.0", "25.0", "7"]
    assert parser.tables["zero-shot"][1:] == [told]  # of the same photographs: once
    _check_page(text, parser, reports / "smoke")


def test_models_that_score_the_same_are_named_but_not_where_everybody_is_found(reports):
    run = open_run("03_stage2_losses", load("dorsal_r", "smoke"))
    told = {"ce": (0.5, 0.6), "ce_triplet": (0.5, 0.6), "mba": (0.5, 0.7)}
    told |= {"one": (1.0, 1.0), "other": (1.0, 1.0)}
    variants = {name: _variant(*scores, 4) for name, scores in told.items()}
    run.save({"data": TITLE, "variants": variants})
    text = write_index(load(study="smoke")).read_text()
    (said,) = re.findall(r"The same to the last digit[^.]*\.", text)
    assert said.endswith("same weights: dorsal right: ce, ce_triplet.")


def _check_page(text, parser, root):
    assert f"<h1>{TITLE}</h1>" in text and "say nothing about real ones" in text
    assert "seed0/dorsal_l/01_baseline/report.html" in parser.asks
    for ask in parser.asks:
        if ask.startswith("#"):
            assert ask[1:] in parser.ids, f"a link into nothing: {ask}"
        elif not ask.startswith("data:image/jpeg;base64,"):
            assert (root / ask).is_file(), f"a dead or outside link: {ask[:80]}"
    assert "cmc curve" in text and "<script" not in text
    assert not re.search(r"@import|url\(|srcset|<link|<iframe", text)
    listed = re.findall(r'<a href="#to-([a-z-]+)">', text.partition("</nav>")[0])
    assert listed == re.findall(r'<section id="to-([a-z-]+)">', text)
    assert {"retrieval", "methods-by-aspect", "reports", "parameters"} <= set(listed)


def test_a_bar_ends_where_its_scale_does():
    bar = interval_bar([(0.1, 0.05, 0.2), (0.2, float("nan"), float("nan"))], top=0.2)
    assert re.findall(r'cx="([0-9.]+)"', bar) == ["75.0", "150.0"]
    assert 'd="M37.5' in bar and "H150.0" in bar and "nan" not in bar


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
    listed = list(_models(write_index(load(study="smoke")).read_text()))
    assert listed == [
        ("dorsal right", "old", "02_stage1"),
        ("dorsal right", "stage1", "06_eval_rerank"),
    ]


def test_another_result_of_06_is_not_hidden(reports):
    for notebook, score in {"02_stage1": 0.5, "06_eval_rerank": 0.6}.items():
        run = open_run(notebook, load("dorsal_r", "smoke"))
        run.save({"data": TITLE, "variants": {"stage1": _variant(score, 0.6, 4)}})
    models = _models(write_index(load(study="smoke")).read_text())
    assert [cells[0][:4] for cells in models.values()] == ["50.0", "60.0"]


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
    models = _models(write_index(load(study=sweep)).read_text())
    wide = models["dorsal right", "stage1", "01_baseline, wide"]
    assert wide == [
        *("50.0|(30.0–70.0)", "50.0|(30.0–70.0)", "–", "–", ""),
        *("+20.0", "+20.0", "4", "01"),
    ], "no interval over persons where a run does not hold their scores"
    once = models["dorsal right", "once", "01_baseline"]
    assert once[0] == "10.0|9.0–11.0", "what every seed finds keeps its interval"
    other = models["dorsal right", "stage1", "01_baseline, other_data"]
    assert other[0] == "90.0|89.0–91.0" and other[-1] == "0"
    frame = pd.read_csv(reports / "mine" / "means.csv")
    assert "other_data" not in set(frame["tag"]), "one seed is no mean"
    row = frame[(frame["tag"] == "wide") & (frame["metric"] == "map")].iloc[0]
    assert (row["mean"], row["lowest"], row["highest"], row["seeds"]) == (0.5, 0.3, 0.7, 2)
    assert row["sd"] == pytest.approx(np.std([0.3, 0.7], ddof=1))


def test_means_have_an_interval_over_persons_not_seeds(sweep, reports):
    told = [
        {str(pid): [rank1, 0.5, 2] for pid, rank1 in enumerate(row)}
        for row in ([0.0, 0.2, 0.4, 1.0], [0.2, 0.4, 0.6, 0.8])
    ]
    for seed, persons in enumerate(told):
        mean = float(np.mean([of[0] for of in persons.values()]))
        _trained(sweep, "", seed, {"stage1": (mean, 0.5)}, {"stage1": persons})
    models = _models(write_index(load(study=sweep)).read_text())
    row = pd.read_csv(reports / "mine" / "means.csv").set_index("metric").loc["rank1"]
    scores = np.repeat([of[0] for run in told for of in run.values()], 2)
    low, high = person_bootstrap(scores, np.repeat([0, 1, 2, 3] * 2, 2))
    assert (row["ci95_low"], row["ci95_high"]) == (pytest.approx(low), pytest.approx(high))
    assert high - low > 0.2 > row["highest"] - row["lowest"]
    shown = models["dorsal right", "stage1", "01_baseline"][0]
    assert shown == f"{_percent(row['mean'], low, high)}|(40.0–50.0)"


def test_a_study_that_is_one_seed_again_loses_its_means(sweep, reports):
    for seed in (0, 1):
        _trained(sweep, "", seed, {"stage1": (0.2 + 0.1 * seed, 0.3)})
    write_index(load(study=sweep))
    assert (reports / "mine" / "means.csv").is_file()
    shutil.rmtree(reports / "mine" / "seed1")
    write_index(load(study=sweep))
    assert not (reports / "mine" / "means.csv").exists()


def test_a_plain_study_of_one_seed_has_neither_table(reports):
    _scored("dorsal_r", np.random.default_rng(1))
    page = write_index(load(study="smoke")).read_text()
    assert not _table(page, "variants") and "against the study" not in page
    assert not (reports / "smoke" / "means.csv").exists()


def test_index_names_every_data_set_and_real_ones_without_the_warning():
    _scored("dorsal_r", np.random.default_rng(1), "11k Hands")
    text = write_index(load(study="smoke")).read_text()
    assert "<h1>11k Hands</h1>" in text and "say nothing about real ones" not in text
    _scored("dorsal_l", np.random.default_rng(1), "own hands: mine <3 persons>")
    text = write_index(load(study="smoke")).read_text()
    assert "11k Hands, own hands: mine &lt;3 persons&gt;" in text


def test_seeds_of_two_data_sets_are_no_mean_of_one(reports):
    for seed, title in enumerate(("11k Hands", "11k Hands (sample)")):
        run = open_run("01_baseline", load("dorsal_r", "smoke", seed))
        persons = {str(pid): [0.1 * pid + 0.1 * seed, 0.5, 2] for pid in range(4)}
        variants = {"tiny": _variant(0.15 + 0.1 * seed, 0.5, 4)}
        run.save({"data": title, "variants": variants, "per_person": {"tiny": persons}})
    found = _table(write_index(load(study="smoke")).read_text(), "headline")
    assert len([row for row in found if row and row[0].startswith("tiny")]) == 2
    assert not (reports / "smoke" / "means.csv").is_file()


def test_index_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no finished run in .*handclip study smoke"):
        write_index(load(study="smoke"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not valid JSON"),
        (b"{}", "has no aspect, notebook"),
        (b"[]", "does not hold"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_a_broken_metrics_file_is_named(content, said):
    folder = run_folder("01_baseline", load("dorsal_r", "smoke"))
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_bytes(content)
    (folder / "stamp.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"metrics\.json .*{said}.*is done again"):
        write_index(load(study="smoke"))


def test_the_banner_names_toys_on_photographs_and_drawings_everywhere():
    drawn = banner("drawn hands (demonstration)", ["tiny"])
    assert "say nothing about real ones" in drawn and "CLIP" not in drawn
    assert "say nothing about CLIP" in banner("11k Hands", ["tiny", "RN50-quickgelu"])
    assert "nothing" not in banner("own hands: redrawn", ["RN50-quickgelu"])


def test_heat_shows_every_aspect_and_says_where_nothing_is():
    by = {
        aspect: {"chain": _variant(score, score, 4), "zero_shot": _variant(0.25, 0.25, 4)}
        for aspect, score in {"dorsal_r": 0.5, "palmar_l": 0.625}.items()
    }
    chain = open_run("05_sequential_chain", load("dorsal_r", "smoke"))
    chain.save({"data": TITLE, "variants": by["dorsal_r"], "by_aspect": by})
    first = open_run("02_stage1", load("dorsal_r", "smoke"))
    both = {"zero_shot": _variant(0.25, 0.25, 4), "stage1": _variant(0.375, 0.5, 4)}
    first.save({"data": TITLE, "variants": both})
    page = write_index(load(study="smoke")).read_text()
    rows = {row[0]: row[1:] for row in _table(page, "heat")[2:]}
    assert _table(page, "heat")[1][1:] == ["dorsal right", "palmar left"] * 2
    assert rows == {
        "zero_shot|02, 05": ["25.0", "25.0", "25.0", "25.0"],
        "stage1|02": ["37.5", "n/a", "50.0", "n/a"],
        "chain|05": ["50.0", "62.5", "50.0", "62.5"],
    }, "one row for what two notebooks agree on"
    depths = re.findall(r'--v:([0-9.]+)">([0-9.]+)<', page)
    assert ("0.00", "25.0") in depths and ("1.00", "62.5") in depths and ("0.33", "37.5") in depths


def test_heat_keeps_apart_what_agrees_in_one_aspect_only():
    for notebook, palmar in {"02_stage1": 0.25, "04_prompt_learning": 0.5}.items():
        for aspect, score in {"dorsal_r": 0.375, "palmar_l": palmar}.items():
            run = open_run(notebook, load(aspect, "smoke"))
            run.save({"data": TITLE, "variants": {"stage1": _variant(score, score, 4)}})
    rows = _table(write_index(load(study="smoke")).read_text(), "heat")[2:]
    assert [row[:3] for row in rows] == [
        ["stage1|02", "37.5", "25.0"],
        ["stage1|04", "37.5", "50.0"],
    ]


def _test(difference, holm):
    return {"difference": difference, "ci95": [difference - 0.1, difference + 0.1], "holm": holm}


def test_what_holds_is_told_and_the_rest_is_not_hidden():
    for notebook, reference in {"03_stage2_losses": "stage1", "06_eval_rerank": "stage1"}.items():
        run = open_run(notebook, load("dorsal_r", "smoke"))
        tests = {"ce": _test(0.25, 0.05), "mba": _test(-0.02, 0.0501)}
        paired = {"reference": reference, "own": {"map": tests, "rank1": {"mba": _test(0, 1.0)}}}
        variants = {name: _variant(0.5, 0.5, 4) for name in ("ce", "mba")}
        run.save({"data": TITLE, "variants": variants, "paired": paired})
    page = write_index(load(study="smoke")).read_text()
    assert "1 of 3 comparisons hold at 0.05" in page, "06 tells again what 03 told"
    name = "dorsal right, seed 0 · 06_eval_rerank"
    held = [f"ce against stage1|{name}", "–", "★ +25.0|+15.0 to +35.0, p 0.050"]
    assert _table(page, "holds")[1:] == [held]
    rest = _table(page, "open")[1:]
    assert [row[0].split("|")[0] for row in rest] == ["mba against stage1"]
    assert rest[0][2] == "−2.0|−12.0 to +8.0, p 0.050", "just above the level holds nothing"


def test_every_training_has_its_curves(sweep):
    for tag in ("", "wide"):
        run = open_run("02_stage1", load("dorsal_r", sweep, 3, tag))
        epochs = {"variant": "stage1", "epoch": [1, 2, 3], "total": [6.0, 3.0, 1.5]}
        extra = {"select_map": [0.62, 0.7, 0.75]} if tag else {"val_accuracy": [0.2, 0.3, 0.31]}
        pd.DataFrame(epochs | extra).to_csv(run.folder / "history.csv", index=False)
        beside = run.folder / "chains" / "lwf" / "history.csv"
        beside.parent.mkdir(parents=True)
        pd.DataFrame({**epochs, "variant": "x<y"}).to_csv(beside, index=False)
        run.save({"data": TITLE, "variants": {}})
    page = write_index(load(study=sweep)).read_text()
    training = page.partition('id="to-training"')[2].partition("</section>")[0]
    titles = re.findall(r'font-weight="600">([^<]+)<', training)
    assert titles == [
        *("total loss", "mAP, held-out persons", "accuracy, known persons (val)"),
        "total loss",
    ]
    names = re.findall(r"<path[^>]*><title>([^<]+)</title>", training)
    assert names.count("stage1, wide, seed 3") == names.count("stage1, seed 3") == 2
    assert "x&lt;y, seed 3" in names and "dorsal right · lwf" in training


def test_a_panel_keeps_its_ends_and_leaves_out_what_is_no_number():
    long = list(range(1, 1001))
    drawn = panel("loss", [Curve("a", [*long, 1001], [*map(float, long), float("nan")], 0)])
    (path,) = re.findall(r'd="(M[^"]+L[^"]+)"', drawn)
    assert path.count("L") < 100 and "nan" not in path
    assert path.endswith("242.0 22.0") and ">1000 epochs<" in drawn, "the last one is there"
    assert panel("loss", [Curve("a", [1], [float("nan")], 0)]) == ""


def test_parameters_show_what_differs_first_and_weights_have_hashes(sweep, monkeypatch):
    for tag in ("", "wide"):
        _trained(sweep, tag, 3, {"stage1": (0.5, 0.5)})
    folder = run_folder("01_baseline", load("dorsal_r", sweep, 3))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "broken.pth").write_text("no weights")
    page = write_index(load(study=sweep)).read_text()
    rows = _table(page, "parameters")
    assert [cell.split("|")[0] for cell in rows[0]] == ["parameter", "no tag", "wide"]
    assert ["model.fit", "null", '"pad"'] in rows[1:] and len(rows) == 2
    assert "<dt>stage1.lr</dt>" in page and "weights broken" in page and "is damaged" in page
    stamp = json.loads((folder / "stamp.json").read_text())
    assert stamp["library_sha256"] in page, "whole, in the run's own block"
    told = {"sha256": "a" * 64, "parent": "b" * 64}
    monkeypatch.setattr(index_runs, "read_checkpoint", lambda path: told)
    page = write_index(load(study=sweep)).read_text()
    assert f"{'a' * 16} from {'b' * 16}" in page


def test_a_page_of_many_figures_stays_small(sweep, monkeypatch):
    monkeypatch.setattr(index_runs, "_MOST_THUMBS", 2)
    monkeypatch.setattr(index_runs, "_MOST_GALLERIES", 1)
    for seed in (0, 1):
        run = open_run("01_baseline", load("dorsal_r", sweep, seed))
        for name in ("cmc", "ranked"):
            run.figure(Figure((4, 3)), name)
        run.save({"data": TITLE, "variants": {}})
    page = write_index(load(study=sweep)).read_text()
    assert page.count("<img ") == 2 + 1, "thumbnails of the first seed and one gallery"
    assert "Of 2 runs, 1 are shown" in page
    asks = _parsed(page).asks
    assert "seed1/dorsal_r/01_baseline/figures/cmc.png" in asks, "the others are a link away"
