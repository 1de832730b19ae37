"""Studies: what is done stays, what fails is told, and the page shows what the files hold."""

import json
import os
import re
import shutil
import signal
import threading
import time

import pandas as pd
import pytest
from toy_study import STAMP, TITLE, no_data, notebook

from handclip_lib.aspects import CHAIN
from handclip_lib.params import ROOT, ParamError, load
from handclip_lib.report import plan, study, workflow
from handclip_lib.report.results import finished_runs
from handclip_lib.report.runs import open_run, run_folder
from handclip_lib.report.stamp import library_sha256

# What run.save leaves, without the seconds that importing the kit takes in each kernel
SAVE = f"""import json, os
from pathlib import Path
folder = Path(os.environ["HANDCLIP_REPORTS"], "smoke", f"seed{{seed}}", aspect, NAME)
same = {{"data": "{TITLE}", "manifest_sha256": "abc"}}
stamp = json.loads({json.dumps(json.dumps(STAMP))}) | {{"seconds": 1}}
stamp |= {{"library_sha256": "{library_sha256()}"}}
head = {{"notebook": NAME, "study": "smoke", "aspect": aspect, "seed": seed, "tag": ""}}
(folder / "stamp.json").write_text(json.dumps(stamp))
(folder / "metrics.json").write_text(json.dumps(head | same | {{"variants": {{}}}}))"""


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    no_data(monkeypatch)
    return tmp_path / "reports"


def test_a_failure_stops_nobody_and_what_is_done_stays(tmp_path, reports, capsys):
    good = notebook(tmp_path, "00_good", SAVE)
    bad = notebook(tmp_path, "01_bad", "raise ValueError(f'no {aspect} today')")
    asked = ([bad, good], ["palmar_l"], [0], 2)
    assert study.run_study("smoke", *asked) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAILED [12]/2   01_bad  palmar_l  seed 0  \d+ s", text), text
    assert re.search(r"done   [12]/2   00_good  palmar_l", text), text
    assert "ValueError: no palmar_l today" in text
    assert str(reports / "smoke" / "seed0" / "palmar_l" / "01_bad") in text
    assert "1 of 2 runs failed" in text and "index.html" in text
    assert "Not finished" in (reports / "smoke" / "index.html").read_text()
    assert study.run_study("smoke", [good], *asked[1:]) == 0
    again = capsys.readouterr().out.splitlines()
    assert "done before" in again[0] and len(again) == 2


def _finished(tmp_path, name="00_good"):
    p = load("dorsal_r", "smoke")
    run = open_run(name, p)
    shutil.copy(notebook(tmp_path, name, "1"), run.folder / "report.ipynb")
    run.facts["manifest_sha256"] = "abc"
    run.save({"data": TITLE, "variants": {}})
    (run.folder / "report.html").write_text("x")
    return run.folder


def _todo(tmp_path, force=False, source="1"):
    tasks = plan.plan("smoke", [notebook(tmp_path, "00_good", source)], ["dorsal_r"], [0])
    return plan.remaining(tasks, force, False)


def test_the_demo_is_brief_with_all_but_its_first_aspect():
    brief = ["00_splits", "01_baseline"]
    ran: dict[str, list[str]] = {}
    for task in plan.plan("demo", None, None, [0], brief):
        ran.setdefault(task.params.aspect, []).append(task.notebook.stem)
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
    monkeypatch.setattr(plan.splits, "sha256", lambda manifest: "other photographs")
    assert _todo(tmp_path)


def test_another_notebook_or_library_is_run_again(tmp_path, monkeypatch, capsys):
    _finished(tmp_path)
    assert _todo(tmp_path, source="2")
    said = capsys.readouterr().out
    assert said == "again        00_good  dorsal_r  seed 0: notebook or library changed\n"
    assert not _todo(tmp_path)
    assert capsys.readouterr().out == "done before  00_good  dorsal_r  seed 0\n"
    monkeypatch.setattr(plan, "library_sha256", lambda: "other code")
    assert _todo(tmp_path) and capsys.readouterr().out == said


def test_other_data_by_another_title_is_run_again(tmp_path, monkeypatch):
    _finished(tmp_path)
    table = plan.tables.read(None).copy()
    table.attrs["title"] = "11k Hands"
    monkeypatch.setattr(plan.tables, "read", lambda p: table)
    assert _todo(tmp_path)


def test_other_parameters_are_run_again(tmp_path):
    folder = _finished(tmp_path)
    told = json.loads((folder / "params.json").read_text())
    told["model"]["fit"] = "pad"
    (folder / "params.json").write_text(json.dumps(told))
    assert _todo(tmp_path), "and the run itself says why it can't share the folder"


def test_plan_is_every_aspect_and_seed_with_notebooks_in_order():
    ran: dict[tuple[int, str], list[str]] = {}
    for task in plan.plan("smoke", None, None, [0, 1]):
        ran.setdefault((task.params.seed, task.params.aspect), []).append(task.notebook.stem)
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    others = [name for name in names if name not in ("05_sequential_chain", "08_pretrain")]
    told = [names, others, others, others] * 2
    assert list(ran.values()) == told, "chain and pre-training are of all aspects at once"
    assert len(names) == len(others) + 2
    assert list(ran)[:2] == [(0, "dorsal_r"), (0, "dorsal_l")]


def test_a_chain_is_run_once_a_seed_for_the_first_aspect_that_is_asked_for():
    tasks = plan.plan("smoke", ["05"], ["palmar_l", "dorsal_r"], [0, 3])
    ran = [(t.params.aspect, t.params.seed) for t in tasks]
    assert ran == [("palmar_l", 0), ("palmar_l", 3)]
    kept = plan.plan("chain_remedies", None, None, None)
    ran = [(t.notebook.stem, t.params.aspect, t.params.seed) for t in kept]
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

    monkeypatch.setattr(plan.splits, "manifest_for", watched)
    published = load("dorsal_r", "smoke", overrides={"split.mode": "published"})
    for name in ("00_good", "05_sequential_chain"):
        folder = _finished(tmp_path, name)
        one = plan.Task(folder / f"{name}.ipynb", published)
        plan._same_data(one, plan.tables.read(None))
    assert seen == ["published", "person_disjoint"]


def _same(tmp_path, name, kept, p):
    """Whether a run that kept this in its metrics.json was shown what it would be shown today."""
    folder = _finished(tmp_path, name)
    told = {"data": TITLE, "manifest_sha256": None} | kept
    (folder / "metrics.json").write_text(json.dumps(told))
    return plan._same_data(plan.Task(folder / f"{name}.ipynb", p), plan.tables.read(None))


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A folder for `_same`; manifests tell the folder of their data, and are their own digests."""

    def manifest(p, table):
        return pd.DataFrame({"split": ["train", "query"], "of": [p.aspect, p.data.root]})

    def read(p):
        table = pd.DataFrame({"aspect": ["dorsal_r"]})
        table.attrs = {"title": TITLE, "root": p.data.root if p else "here"}
        return table

    monkeypatch.setattr(plan.tables, "read", read)
    monkeypatch.setattr(plan.splits, "manifest_for", manifest)
    monkeypatch.setattr(plan.splits, "sha256", lambda m: " ".join(m["of"]))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("08_pretrain", "manifest_sha256"),
        ("02_stage1", "pretrained_on"),
        ("03_stage2_losses", "pretrained_on"),
    ],
)
def test_what_learnt_from_other_photographs_is_done_again(shown, monkeypatch, name, key):
    """Those of other aspects, and with accessories, are in no manifest of the aspect."""
    p = load("dorsal_r", "smoke")
    now = pd.DataFrame({"of": ["now"]})
    monkeypatch.setattr(plan.pretrain, "pretrain_manifest", lambda p, table: now)
    for digest in ("now", "then"):
        facts = {"one": {key: "now"}, "two": {key: digest}}
        assert _same(shown, name, {"training": facts}, p) == (digest == "now")

    def nobody(p, table):
        raise plan.SplitError("nobody is left to learn from")

    monkeypatch.setattr(plan.pretrain, "pretrain_manifest", nobody)
    assert not _same(shown, name, {"training": {"one": {key: "now"}}}, p)
    assert _same(shown, name, {"training": {"one": {}}}, p), "it never asked for any"


def test_models_that_were_asked_of_other_photographs_elsewhere_are_asked_again(shown):
    others = {"near": {"root": "near"}, "far": {"root": "far", "aspect": "palmar_l"}}
    p, name = load(study="smoke", overrides={"comparison": {"others": others}}), "06_eval_rerank"
    for digest in ("far", "another far"):
        there = {"near": {"manifest_sha256": "near"}, "far": {"manifest_sha256": digest}}
        assert _same(shown, name, {"abroad": there}, p) == (digest == "far")


def test_what_is_named_twice_is_planned_once():
    assert len(plan.plan("smoke", ["00", "00_splits"], ["dorsal_r"] * 2, [0, 0])) == 1


def test_a_study_of_one_aspect_is_planned_for_that(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("aspect: palmar_l\ndata: {dataset: drawn}")
    assert {t.params.aspect for t in plan.plan(str(mine), ["00"], None, [0])} == {"palmar_l"}
    with pytest.raises(ParamError, match="is for palmar_l"):
        plan.plan(str(mine), ["00"], ["dorsal_r"], [0])


@pytest.fixture
def sweep(tmp_path):
    """A study with two variants and its own notebook and seeds."""
    told = f"extends: smoke\nnotebooks: [{notebook(tmp_path, '00_good', '1')}]\nseeds: [3, 1]"
    told += "\nsweep:\n  wide: {model.fit: pad}\n  other_data: {data.drawn.seed: 5}"
    (tmp_path / "mine.yaml").write_text(told)
    return str(tmp_path / "mine.yaml")


def test_a_sweep_is_the_study_and_each_variant(sweep):
    tasks = plan.plan(sweep, None, ["dorsal_r"], None)
    told = [(t.notebook.stem, t.params.seed, t.params.tag) for t in tasks]
    assert told == [("00_good", s, tag) for s in (3, 1) for tag in ("", "wide", "other_data")]
    assert tasks[1].params.model.fit == "pad" and tasks[0].params.model.fit is None
    assert tasks[1].name == "00_good  dorsal_r  seed 3  wide"
    assert tasks[1].key == "00_good.dorsal_r.seed3.wide"
    assert tasks[1].folder.parts[-2:] == ("00_good", "wide")
    asked = plan.plan(sweep, ["01"], ["dorsal_r"], [7])
    assert {(t.notebook.stem, t.params.seed) for t in asked} == {("01_baseline", 7)}


def test_a_variant_is_run_under_its_tag(sweep):
    wide = plan.plan(sweep, None, ["palmar_l"], [1])[1]
    words = workflow.command(wide, sweep)
    told = {key: words[words.index(key) + 1] for key in ("--tag", "--seed", "--study", "--aspect")}
    assert told == {"--tag": "wide", "--seed": "1", "--study": sweep, "--aspect": "palmar_l"}
    assert "--no-index" in words, "the page is made once, in the end"


def test_each_variant_stays_by_its_own_data(sweep, monkeypatch):
    tasks = plan.plan(sweep, None, ["dorsal_r"], [0])
    for task in tasks:
        run = open_run("00_good", task.params)
        shutil.copy(task.notebook, run.folder / "report.ipynb")
        run.facts["manifest_sha256"] = f"of {task.params.data.drawn.seed}"
        run.save({"data": TITLE, "variants": {}})
        (run.folder / "report.html").write_text("x")
    table = plan.tables.read(None)
    seen = []
    monkeypatch.setattr(plan.tables, "read", lambda p: seen.append(p.data.drawn.seed) or table)
    manifest = lambda p, table: p.data.drawn.seed  # noqa: E731
    monkeypatch.setattr(plan.splits, "manifest_for", manifest)
    monkeypatch.setattr(plan.splits, "sha256", lambda manifest: f"of {manifest}")
    assert not plan.remaining(tasks, False, False)
    assert sorted(seen) == [0, 5], "each data set is read once"
    monkeypatch.setattr(plan.splits, "sha256", lambda manifest: "of 0")
    (left,) = plan.remaining(tasks, False, False)
    assert left.params.tag == "other_data"


def test_dry_run_runs_nothing(tmp_path, reports, capsys):
    path = notebook(tmp_path, "00_good", "1")
    assert study.run_study("smoke", [path], ["dorsal_l"], dry_run=True) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would run    00_good  dorsal_l  seed 0  unknown",
        "1 run, 1 at a time: unknown, 1 not timed before",
    ]
    assert not reports.exists()


def _after(tasks, one):
    """What a run waits for, as (notebook, aspect, tag)."""
    found = plan.needed(next(t for t in tasks if t.key == one), tasks)
    return [(t.notebook.stem[:2], t.params.aspect, t.params.tag) for t in found]


def test_a_run_waits_for_what_it_takes_and_for_no_more():
    tasks = plan.plan("smoke", None, ["palmar_l", "dorsal_r"], [0, 1])
    assert _after(tasks, "00_splits.dorsal_r.seed0") == []
    for name in ("01_baseline", "02_stage1"):
        assert _after(tasks, f"{name}.dorsal_r.seed1") == [("00", "dorsal_r", "")]
    assert _after(tasks, "05_sequential_chain.palmar_l.seed0") == [("00", "palmar_l", "")]
    for name in ("03_stage2_losses", "04_prompt_learning"):
        assert _after(tasks, f"{name}.dorsal_r.seed0") == [("02", "dorsal_r", "")]
    waits = _after(tasks, "06_eval_rerank.dorsal_r.seed0")
    others = [(n, "dorsal_r", "") for n in ("02", "03", "04")]
    across = [(n, "palmar_l", "") for n in ("05", "08")]
    assert waits == [*across, *others], "those of that seed that are of all aspects"
    alone = plan.plan("smoke", ["03", "06"], ["dorsal_r"], [0])
    assert _after(alone, "03_stage2_losses.dorsal_r.seed0") == [], "it makes what it takes"


def test_stage_1_waits_for_its_pretraining_of_whatever_aspect(tmp_path):
    told = "extends: smoke\nsweep:\n  moco: {stage1.pretrain: moco_v3}\n"
    told += "  longer: {pretrain.epochs: 3, stage1.pretrain: moco_v3}"
    (tmp_path / "mine.yaml").write_text(told)
    tasks = plan.plan(
        str(tmp_path / "mine.yaml"), ["02", "03", "08"], ["palmar_l", "dorsal_r"], [0]
    )
    made = [(t.params.aspect, t.params.tag) for t in tasks if t.notebook.stem == "08_pretrain"]
    assert made == [("palmar_l", ""), ("palmar_l", "longer")], "once for what is one pre-training"
    assert _after(tasks, "02_stage1.dorsal_r.seed0") == []
    assert _after(tasks, "02_stage1.dorsal_r.seed0.moco") == [("08", "palmar_l", "")]
    assert _after(tasks, "02_stage1.dorsal_r.seed0.longer") == [("08", "palmar_l", "longer")]
    assert _after(tasks, "03_stage2_losses.dorsal_r.seed0.moco") == [("02", "dorsal_r", "moco")]
    less = [t for t in tasks if t.notebook.stem != "02_stage1"]
    waits = _after(less, "03_stage2_losses.dorsal_r.seed0.moco")
    assert waits == [("08", "palmar_l", "")], "it makes stage 1 itself"


def test_a_variant_takes_from_its_own_and_else_from_the_study_itself(tmp_path):
    told = "extends: smoke\nsweep:\n  wide: {model.fit: pad}"
    (tmp_path / "mine.yaml").write_text(told)
    tasks = plan.plan(str(tmp_path / "mine.yaml"), ["02", "03", "06"], ["dorsal_r"], [0])
    assert _after(tasks, "03_stage2_losses.dorsal_r.seed0.wide") == [("02", "dorsal_r", "wide")]
    plain = [t for t in tasks if t.key != "02_stage1.dorsal_r.seed0.wide"]
    assert _after(plain, "03_stage2_losses.dorsal_r.seed0.wide") == [("02", "dorsal_r", "")]
    every = [(n, "dorsal_r", tag) for tag in ("", "wide") for n in ("02", "03")]
    assert _after(tasks, "06_eval_rerank.dorsal_r.seed0") == every, "it scores all variants"


def _all_finished(names):
    tasks = plan.plan("smoke", names, ["dorsal_r"], [0])
    for task in tasks:
        run = open_run(task.notebook.stem, task.params)
        shutil.copy(task.notebook, run.folder / "report.ipynb")
        run.facts["manifest_sha256"] = "abc"
        run.save({"data": TITLE, "variants": {}})
        (run.folder / "report.html").write_text("x")
    return tasks


def test_what_is_older_than_the_weights_it_took_is_done_again(capsys):
    tasks = _all_finished(["02", "03", "06"])
    for task in tasks[1:]:
        os.utime(task.folder / "metrics.json", (1, 1))
    assert [t.notebook.stem[:2] for t in plan.remaining(tasks, False, False)] == ["06"]
    assert "06_eval_rerank  dorsal_r  seed 0: 02_stage1 is newer" in capsys.readouterr().out
    (tasks[0].folder / "checkpoints").mkdir(exist_ok=True)
    weights = tasks[0].folder / "checkpoints" / "stage1.pth"
    weights.touch()
    assert [t.notebook.stem[:2] for t in plan.remaining(tasks, False, False)] == ["03", "06"]
    os.utime(weights, (0, 0))
    os.utime(tasks[0].folder / "metrics.json", (0, 0))
    assert plan.remaining(tasks, False, False) == []


def test_what_took_from_a_run_is_done_again_with_it(tmp_path, capsys):
    tasks = _all_finished(["01", "02", "03", "06"])

    def left():
        names = [t.notebook.stem[:2] for t in plan.remaining(tasks, False, False)]
        return names, capsys.readouterr().out

    assert left()[0] == []
    _change(tasks[1].folder / "report.ipynb")
    names, text = left()
    assert names == ["02", "03", "06"], "02 is made again, and 01 takes nothing of it"
    assert "03_stage2_losses  dorsal_r  seed 0: 02_stage1 is run" in text
    (tasks[1].folder / "metrics.json").unlink()
    assert left()[0] == ["02", "06"], "03 has made itself what 02 has never finished"


def _change(notebook_file):
    told = json.loads(notebook_file.read_text())
    told["cells"][-1]["source"] = ["another"]
    notebook_file.write_text(json.dumps(told))


def test_ctrl_c_ends_the_children_and_shows_what_was_done(tmp_path, reports):
    alive = tmp_path / "pid"
    source = f"import os, time\nopen({str(alive)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    paths = [notebook(tmp_path, "00_good", SAVE), notebook(tmp_path, "01_long", source)]
    good = reports / "smoke/seed0/dorsal_r/00_good"

    def stop():
        while not (alive.is_file() and alive.read_text() and (good / "report.html").is_file()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            study.run_study("smoke", paths, ["dorsal_r"], jobs=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 120
    assert (reports / "smoke/index.html").is_file()
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


def test_what_a_killed_run_left_aside_is_no_run(tmp_path, reports):
    folder = _finished(tmp_path)
    shutil.copytree(folder, tmp_path / "aside")
    (tmp_path / "aside").rename(folder / ".earlier")
    assert [run.folder for run in finished_runs(reports / "smoke")] == [folder]
