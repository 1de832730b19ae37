"""Studies: what is done stays, what fails is told, and the page shows what the files hold."""

import json
import os
import re
import shutil
import signal
import threading
import time
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook

from handclip_lib.aspects import CHAIN
from handclip_lib.params import ROOT, ParamError, load
from handclip_lib.report import study
from handclip_lib.report.charts import interval_chart
from handclip_lib.report.index import finished_runs, write_index
from handclip_lib.report.page import banner
from handclip_lib.report.runs import open_run, run_folder
from handclip_lib.report.stamp import library_sha256

TITLE = "drawn hands (demonstration)"
METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid", "minp")
PARAMETERS = 'aspect = "dorsal_r"\nstudy = "demo"\nseed = 0\ntag = ""\noverrides = {}'
# What run.save leaves, without the seconds that importing the kit takes in each kernel
SAVE = f"""import json, os
from pathlib import Path
folder = Path(os.environ["HANDCLIP_REPORTS"], "smoke", f"seed{{seed}}", aspect, NAME)
git = {{"commit": None, "dirty": None}}
same = {{"data": "{TITLE}", "manifest_sha256": "abc"}}
stamp = {{"git": git, "packages": {{}}, "peak_memory_mb": {{}}, "seconds": 1, "python": "3"}}
stamp |= {{"library_sha256": "{library_sha256()}"}}
stamp |= same | {{"handclip": "0", "device": "cpu", "platform": "x"}}
head = {{"notebook": NAME, "study": "smoke", "aspect": aspect, "seed": seed, "tag": ""}}
(folder / "stamp.json").write_text(json.dumps(stamp))
(folder / "metrics.json").write_text(json.dumps(head | same | {{"variants": {{}}}}))"""


def _notebook(folder, name, source):
    given = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    path = folder / f"{name}.ipynb"
    cells = [given, new_code_cell(f"NAME = '{name}'"), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), path)
    return str(path)


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    table = pd.DataFrame({"aspect": ["dorsal_r"]})
    table.attrs["title"] = TITLE
    monkeypatch.setattr(study.tables, "read", lambda p: table)
    monkeypatch.setattr(study.splits, "manifest_for", lambda p, table: p.aspect)
    monkeypatch.setattr(study.splits, "sha256", lambda manifest: "abc")
    return tmp_path / "reports"


def test_a_failure_stops_nobody_and_what_is_done_stays(tmp_path, reports):
    good = _notebook(tmp_path, "00_good", SAVE)
    bad = _notebook(tmp_path, "01_bad", "raise ValueError(f'no {aspect} today')")
    said: list[str] = []
    asked = ([bad, good], ["palmar_l"], [0], 2)
    assert study.run_study("smoke", *asked, say=said.append) == 1
    text = "\n".join(said)
    assert re.search(r"FAILED 1/2   01_bad  palmar_l  seed 0  \d+ s", text), text
    assert re.search(r"done   2/2   00_good  palmar_l", text), text
    assert "ValueError: no palmar_l today" in text
    assert str(reports / "smoke" / "seed0" / "palmar_l" / "01_bad") in text
    assert "1 of 2 runs failed" in text and "index.html" in text
    assert "Not finished" in (reports / "smoke" / "index.html").read_text()
    again: list[str] = []
    assert study.run_study("smoke", [good], *asked[1:], say=again.append) == 0
    assert "done before" in again[0] and len(again) == 2


def _finished(tmp_path, name="00_good"):
    p = load("dorsal_r", "smoke")
    run = open_run(name, p)
    shutil.copy(_notebook(tmp_path, name, "1"), run.folder / "report.ipynb")
    run.facts["manifest_sha256"] = "abc"
    run.save({"data": TITLE, "variants": {}})
    (run.folder / "report.html").write_text("x")
    return run.folder


def _todo(tmp_path, force=False, source="1", say=lambda line: None):
    chains = study.plan("smoke", [_notebook(tmp_path, "00_good", source)], ["dorsal_r"], [0])
    return study._remaining(chains, force, False, say)


def test_the_demo_is_brief_with_all_but_its_first_aspect():
    brief = ["00_splits", "01_baseline"]
    chains = study.plan("demo", None, None, [0], brief)
    ran = {chain[0].params.aspect: [task.notebook.stem for task in chain] for chain in chains}
    assert list(ran) == list(CHAIN)
    assert ran[CHAIN[0]][:4] == [*brief, "02_stage1", "03_stage2_losses"]
    assert all(ran[aspect] == brief for aspect in CHAIN[1:])


def test_what_makes_a_run_stay(tmp_path, monkeypatch):
    folder = _finished(tmp_path)
    assert not _todo(tmp_path)
    assert _todo(tmp_path, force=True)
    for name in ("metrics.json", "report.html"):
        kept = (folder / name).read_text()
        (folder / name).unlink()
        assert _todo(tmp_path), f"without {name} it is run again"
        (folder / name).write_text(kept)
    assert not _todo(tmp_path)
    os.utime(folder / "report.html", (0, 0))
    assert _todo(tmp_path), "the report is of an earlier run"
    (folder / "report.html").touch()
    monkeypatch.setattr(study.splits, "sha256", lambda manifest: "other photographs")
    assert _todo(tmp_path)


def test_another_notebook_or_library_is_run_again(tmp_path, monkeypatch):
    _finished(tmp_path)
    said: list[str] = []
    assert _todo(tmp_path, source="2", say=said.append)
    assert said == ["again        00_good  dorsal_r  seed 0: notebook or library changed"]
    assert not _todo(tmp_path)
    monkeypatch.setattr(study, "library_sha256", lambda: "other code")
    assert _todo(tmp_path, say=said.append) and said[1] == said[0]


def test_other_data_by_another_title_is_run_again(tmp_path, monkeypatch):
    _finished(tmp_path)
    table = study.tables.read(None).copy()
    table.attrs["title"] = "11k Hands"
    monkeypatch.setattr(study.tables, "read", lambda p: table)
    assert _todo(tmp_path)


def test_other_parameters_are_run_again(tmp_path):
    folder = _finished(tmp_path)
    told = json.loads((folder / "params.json").read_text())
    told["model"]["fit"] = "pad"
    (folder / "params.json").write_text(json.dumps(told))
    assert _todo(tmp_path), "and the run itself says why it can't share the folder"


def test_plan_is_every_aspect_and_seed_with_notebooks_in_order():
    chains = study.plan("smoke", None, None, [0, 1])
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    others = [name for name in names if name != "05_sequential_chain"]
    ran = [[t.notebook.stem for t in c] for c in chains]
    assert ran == [names, others, others, others] * 2, "the chain looks at all aspects at once"
    assert len(names) == len(others) + 1
    assert [(c[0].params.seed, c[0].params.aspect) for c in chains[:2]] == [
        (0, "dorsal_r"),
        (0, "dorsal_l"),
    ]


def test_a_chain_is_run_once_a_seed_for_the_first_aspect_that_is_asked_for():
    chains = study.plan("smoke", ["05"], ["palmar_l", "dorsal_r"], [0, 3])
    ran = [(t.params.aspect, t.params.seed) for c in chains for t in c]
    assert ran == [("palmar_l", 0), ("palmar_l", 3)]
    kept = study.plan("chain_remedies", None, None, None)
    ran = [(t.notebook.stem, t.params.aspect, t.params.seed) for c in kept for t in c]
    assert ran == [("05_sequential_chain", "dorsal_r", seed) for seed in (0, 1, 2)]


@pytest.mark.parametrize("tag", ["chains", "checkpoints", "figures"])
def test_a_tag_by_the_name_of_a_runs_own_folder_is_refused(tag):
    p = load("dorsal_r", "smoke", tag=tag, overrides={"model.fit": "pad"})
    with pytest.raises(ParamError, match=f"'{tag}' is the name of a run's own folder"):
        run_folder("05_sequential_chain", p)


def test_a_chains_splits_are_those_it_is_compared_by(tmp_path, monkeypatch):
    """Also where the study splits single aspects as the literature does."""
    seen = []

    def watched(p, table):
        seen.append(p.split.mode)
        return p.aspect

    monkeypatch.setattr(study.splits, "manifest_for", watched)
    published = load("dorsal_r", "smoke", overrides={"split.mode": "published"})
    for name in ("00_good", "05_sequential_chain"):
        folder = _finished(tmp_path, name)
        one = study.Task(folder / f"{name}.ipynb", published)
        study._same_data(one, study.tables.read(None))
    assert seen == ["published", "person_disjoint"]


def test_what_is_named_twice_is_planned_once():
    (chain,) = study.plan("smoke", ["00", "00_splits"], ["dorsal_r"] * 2, [0, 0])
    assert len(chain) == 1


def test_a_study_of_one_aspect_is_planned_for_that(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("aspect: palmar_l\ndata: {dataset: drawn}")
    assert {c[0].params.aspect for c in study.plan(str(mine), ["00"], None, [0])} == {"palmar_l"}
    with pytest.raises(ParamError, match="is for palmar_l"):
        study.plan(str(mine), ["00"], ["dorsal_r"], [0])


@pytest.fixture
def sweep(tmp_path):
    """A study with two variants and its own notebook and seeds."""
    told = f"extends: smoke\nnotebooks: [{_notebook(tmp_path, '00_good', '1')}]\nseeds: [3, 1]"
    told += "\nsweep:\n  wide: {model.fit: pad}\n  other_data: {data.drawn.seed: 5}"
    (tmp_path / "mine.yaml").write_text(told)
    return str(tmp_path / "mine.yaml")


def test_a_sweep_is_the_study_and_each_variant(sweep):
    chains = study.plan(sweep, None, ["dorsal_r"], None)
    told = [[(t.notebook.stem, t.params.seed, t.params.tag) for t in chain] for chain in chains]
    assert told == [[("00_good", s, tag) for tag in ("", "wide", "other_data")] for s in (3, 1)]
    assert chains[0][1].params.model.fit == "pad" and chains[0][0].params.model.fit is None
    assert chains[0][1].name == "00_good  dorsal_r  seed 3  wide"
    assert chains[0][1].folder.parts[-2:] == ("00_good", "wide")
    (asked,) = study.plan(sweep, ["01"], ["dorsal_r"], [7])
    assert {(t.notebook.stem, t.params.seed) for t in asked} == {("01_baseline", 7)}


def test_a_sweep_runs_each_variant_under_its_tag(sweep, monkeypatch):
    commands = []

    class Child:
        returncode = 0

        def __init__(self, command, **kwargs):
            commands.append(command)

        def communicate(self):
            return "", None

        def poll(self, seconds=0):
            return 0

        wait = poll

    monkeypatch.setattr(study.subprocess, "Popen", Child)
    assert study.run_study(sweep, None, ["palmar_l"], None, say=lambda line: None) == 0
    told = [{key: c[c.index(key) + 1] for key in ("--tag", "--seed", "--study")} for c in commands]
    assert {t["--study"] for t in told} == {sweep}
    tags = ["", "wide", "other_data"]
    assert sorted((t["--seed"], tags.index(t["--tag"])) for t in told) == [
        (seed, tag) for seed in ("1", "3") for tag in range(3)
    ]


def test_each_variant_stays_by_its_own_data(sweep, monkeypatch):
    (chain,) = study.plan(sweep, None, ["dorsal_r"], [0])
    for task in chain:
        run = open_run("00_good", task.params)
        shutil.copy(task.notebook, run.folder / "report.ipynb")
        run.facts["manifest_sha256"] = f"of {task.params.data.drawn.seed}"
        run.save({"data": TITLE, "variants": {}})
        (run.folder / "report.html").write_text("x")
    table = study.tables.read(None)
    seen = []
    monkeypatch.setattr(study.tables, "read", lambda p: seen.append(p.data.drawn.seed) or table)
    manifest = lambda p, table: p.data.drawn.seed  # noqa: E731
    monkeypatch.setattr(study.splits, "manifest_for", manifest)
    monkeypatch.setattr(study.splits, "sha256", lambda manifest: f"of {manifest}")
    assert not study._remaining([chain], False, False, lambda line: None)
    assert sorted(seen) == [0, 5], "each data set is read once"
    monkeypatch.setattr(study.splits, "sha256", lambda manifest: "of 0")
    ((left,),) = study._remaining([chain], False, False, lambda line: None)
    assert left.params.tag == "other_data"


def test_dry_run_runs_nothing(tmp_path, reports):
    said: list[str] = []
    path = _notebook(tmp_path, "00_good", "1")
    assert study.run_study("smoke", [path], ["dorsal_l"], dry_run=True, say=said.append) == 0
    assert said == ["would run    00_good  dorsal_l  seed 0"]
    assert not reports.exists()


def test_ctrl_c_ends_the_children(tmp_path):
    alive = tmp_path / "pid"
    source = f"import os, time\nopen({str(alive)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    path = _notebook(tmp_path, "00_long", source)

    def stop():
        while not (alive.is_file() and alive.read_text()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            study.run_study("smoke", [path], ["dorsal_r"], say=lambda line: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 60
    for _ in range(100):
        if not _is_alive(int(alive.read_text())):
            return
        time.sleep(0.1)
    raise AssertionError("the kernel lives on")


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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


def test_what_a_killed_run_left_aside_is_no_run(tmp_path, reports):
    folder = _finished(tmp_path)
    shutil.copytree(folder, tmp_path / "aside")
    (tmp_path / "aside").rename(folder / ".earlier")
    assert [run.folder for run in finished_runs(reports / "smoke")] == [folder]
