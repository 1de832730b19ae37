"""Studies on Snakemake: cores, GPUs, SLURM, kills and estimates, with toy notebooks."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
import toy_study
import yaml
from toy_study import notebook

from handclip_lib.params import ROOT, ParamError, load
from handclip_lib.report import estimate, node, plan, study, workflow
from handclip_lib.report.runs import open_run
from handclip_lib.train.history import read_history, write_history

SLEEPS = {"00_splits": 1.5, "02_stage1": 3, "03_stage2_losses": 4, "05_sequential_chain": 6}
SCORES = """value = {"mean": 0.1 * seed + 0.2 * len(tag), "ci95": [0, 1], "per_draw": [0.5]}
own = {"rank1": value, "map": value, "queries": 4, "gallery": 2, "persons": 2}
more = {"variants": {"stage1": {"own": own}}}"""


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports #1: {a}"))
    monkeypatch.setattr(workflow, "command", toy_study.command)
    monkeypatch.setattr(plan, "library_sha256", lambda: toy_study.LIBRARY)
    toy_study.no_data(monkeypatch)
    return tmp_path / "reports #1: {a}"


def _run(tmp_path, *names, source="", **asked):
    books = [notebook(tmp_path, name, source) for name in names]
    with redirect_stdout(io.StringIO()) as said:
        status = study.run_study("smoke", books, **asked)
    return status, said.getvalue()


def test_two_seeds_four_aspects_three_variants_in_one_command(tmp_path, reports, capsys):
    """Planned, run and tabulated; called again it does nothing."""
    told = {"extends": "smoke", "seeds": [0, 1], "sweep": {"pad": {"model.fit": "pad"}}}
    told["sweep"]["squash"] = {"model.fit": "squash"}
    told["notebooks"] = [notebook(tmp_path, "02_stage1", SCORES)]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(told))
    assert study.run_study(str(tmp_path / "mine.yaml"), jobs=4) == 0
    ended = [line for line in capsys.readouterr().out.splitlines() if line.startswith("done ")]
    assert len(ended) == 24 and ended[-1].startswith("done   24/24")
    root = reports / "mine"
    rows = pd.read_csv(root / "results.csv", keep_default_na=False)
    assert len(rows) == 24 and not rows.duplicated(["seed", "aspect", "tag"]).any()
    wide = rows.query("seed == 1 and tag == 'pad'")
    assert list(wide["rank1"].round(6)) == [0.7] * 4
    means = pd.read_csv(root / "means.csv", keep_default_na=False)
    assert (means["seeds"] == 2).all() and (root / "index.html").is_file()
    assert study.run_study(str(tmp_path / "mine.yaml")) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in again] == ["done"] * 24 + ["index:"]


def test_the_order_and_what_a_failure_leaves(tmp_path):
    ends, fail = tmp_path / "ends", tmp_path / "fail"
    source = f"open({str(ends)!r}, 'a').write(NAME[:2] + chr(32))\n"
    source += f"assert NAME[:2] != '03' or not Path({str(fail)!r}).exists(), 'no luck'"
    books = [*SLEEPS, "06_eval_rerank"]
    asked = {"aspects": ["dorsal_r"], "seeds": [0], "jobs": 2, "source": source}
    fail.touch()
    status, text = _run(tmp_path, *books, **asked)
    assert status == 1 and "FAILED" in text and "    AssertionError: no luck" in text, text
    assert re.search(r"done   5/5   06_eval", text), "it goes on with what there is"
    told = ends.read_text().split()
    assert told[0] == "00" and told[-1] == "06" and told.index("02") < told.index("03")
    assert "1 of 5 runs failed" in text and "index: " in text
    fail.unlink()
    status, text = _run(tmp_path, *books, **asked)
    assert status == 0 and "06_eval_rerank  dorsal_r  seed 0: 03_stage2_losses is run" in text
    assert sorted(re.findall("start +(..)", text)) == ["03", "06"], "what is done stays"


def test_the_estimate_is_within_a_factor_of_two(tmp_path):
    lines = [f"if NAME == {name!r}: time.sleep({s})" for name, s in SLEEPS.items()]
    asked = {"aspects": ["dorsal_r"], "jobs": 2, "source": "\n".join(lines)}
    status, text = _run(tmp_path, *SLEEPS, **asked, seeds=[1], dry_run=True)
    assert "4 runs, 2 at a time: unknown, 4 not timed before" in text
    for name, seconds in SLEEPS.items():
        run = open_run(name, load("dorsal_r", "smoke", 0))
        run.save({"data": toy_study.TITLE, "variants": {}})
        told = json.loads((run.folder / "stamp.json").read_text()) | {"whole_seconds": seconds}
        (run.folder / "stamp.json").write_text(json.dumps(told))
    status, text = _run(tmp_path, *SLEEPS, **asked, seeds=[1], dry_run=True)
    assert "would run    02_stage1  dorsal_r  seed 1  3 s" in text
    found = re.search(r"4 runs, 2 at a time: about (\d+) s", text)
    assert status == 0 and found, text
    started = time.monotonic()
    status, _ = _run(tmp_path, *SLEEPS, **asked, seeds=[1])
    took = time.monotonic() - started
    assert status == 0 and took / 2 < float(found.group(1)) < 2 * took, (took, text)


def test_the_simulation():
    before = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}
    seconds = {"a": 2, "b": 3, "c": 5, "d": 1, "e": 4}
    assert estimate.simulated(before, seconds, 1) == 15
    assert estimate.simulated(before, seconds, 2) == 10, "c waits for e"
    assert estimate.simulated(before, seconds, 9) == 2 + 5 + 1
    assert estimate.simulated(before, {}, 1) == estimate.simulated({}, {}, 1) == 0
    assert estimate.levels(before) == {"a": 1, "b": 2, "c": 2, "d": 3, "e": 1}
    assert (estimate.widest(before), estimate.widest({}), estimate.widest({"a": []})) == (2, 1, 1)
    words = [estimate.in_words(s) for s in (3.4, 600, 5400, 12000)]
    assert words == ["3 s", "10 min", "1 h 30 min", "3 h 20 min"]


WATCH = """since = time.time()
time.sleep(1.5)
told = [os.environ["CUDA_VISIBLE_DEVICES"], since, time.time()]
(folder / "seen.json").write_text(__import__("json").dumps(told))"""


def test_live_runs_never_share_a_gpu(tmp_path, reports):
    names = ("11_a", "12_b", "13_c")
    asked = {"aspects": ["dorsal_r", "palmar_l"], "seeds": [0], "gpus": "3,5", "source": WATCH}
    status, text = _run(tmp_path, *names, **asked)
    assert status == 0, text
    seen = [json.loads(f.read_text()) for f in reports.rglob("seen.json")]
    assert len(seen) == 6 and {gpu for gpu, *_ in seen} == {"3", "5"}
    pairs = [(a, b) for i, a in enumerate(seen) for b in seen[:i] if a[1] < b[2] and b[1] < a[2]]
    assert pairs, "two runs were never under way at the same time"
    assert all(a[0] != b[0] for a, b in pairs)


def test_a_gpu_is_waited_for_and_is_free_after_a_kill(tmp_path):
    code = "import sys, time; from pathlib import Path; from handclip_lib.report import node\n"
    code = code.replace("from handclip_lib.report import node", "import node")
    code += "with node.gpus(['0', '1'], int(sys.argv[2]), Path(sys.argv[1])) as mine:\n"
    code += "    print(','.join(mine), flush=True); time.sleep(60)"

    def holder(count):
        words = [sys.executable, "-c", code, str(tmp_path), str(count)]
        folder = ROOT / "handclip_lib" / "report"
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder)

    first = holder(1)
    assert first.stdout.readline() == "0\n"
    both = holder(2)
    time.sleep(1)
    second = holder(1)
    assert second.stdout.readline() == "1\n", "who waits for two holds none"
    first.kill(), second.kill()
    assert both.stdout.readline() == "0,1\n"
    both.kill()
    for child in (first, second, both):
        child.wait()
        child.stdout.close()


def test_a_gpu_stays_taken_while_a_run_lives_whose_caller_was_killed(tmp_path):
    alive, plan = tmp_path / "pid", tmp_path / "plan.json"
    code = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    run = {"folder": str(tmp_path), "gpu": 1, "command": [sys.executable, "-c", code]}
    told = {"runs": {"a": run}, "gpus": ["0"], "locks": str(tmp_path / "locks")}
    plan.write_text(json.dumps(told))
    (tmp_path / "runs").mkdir()
    caller = subprocess.Popen([sys.executable, node.__file__, str(plan), "a", "1"])
    for _ in range(200):
        if alive.is_file() and alive.read_text():
            break
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    host = socket.gethostname()
    assert not node._free(["0"], 1, tmp_path / "locks", host), "its run still computes there"
    os.kill(int(alive.read_text()), signal.SIGKILL)
    for _ in range(100):
        if held := node._free(["0"], 1, tmp_path / "locks", host):
            break
        time.sleep(0.1)
    assert list(held) == ["0"]
    os.close(held["0"])


def test_gpus_and_profiles_that_are_not_there(tmp_path, monkeypatch):
    path = notebook(tmp_path, "11_a", "1")
    for asked, words in (
        ({"gpus": ""}, "no GPU is seen here"),
        ({"gpus": "0", "executor": "slurm"}, "--executor slurm deals its own"),
        ({"executor": "slrm"}, "--executor slrm: one of gpus, kubernetes, local, slurm"),
    ):
        with pytest.raises(ParamError, match=words):
            study.run_study("smoke", [path], ["dorsal_r"], [0], **asked)
    monkeypatch.setattr(workflow, "find_spec", lambda name: None)
    with pytest.raises(ParamError, match=r"pip install -c constraints.txt -e '.\[cluster\]'"):
        study.run_study("smoke", [path], ["dorsal_r"], [0])
    assert workflow.gpus_here("2, 0,2", 1) == ("2", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert workflow.gpus_here(None, 2) == ("6", "7")


def test_a_run_of_several_gpus_has_them_all(tmp_path, monkeypatch):
    study_file = tmp_path / "mine.yaml"
    study_file.write_text("extends: smoke\ndevice: {devices: 2}")
    asked = ([notebook(tmp_path, "11_a", "1")], None, [0])
    tasks = plan.plan(str(study_file), *asked)
    p = tasks[0].params
    assert study._how("local", "0,1,2,3,4", None, p, 2, 4).jobs == 2
    assert workflow.gpus_of(p) == 2
    with pytest.raises(ParamError, match="a run takes 2 GPUs, and there are 1"):
        study._how("local", "0", None, p, 2, 4)
    with node.gpus(["0", "1", "2"], 2, tmp_path) as mine:
        assert list(mine) == ["0", "1"]


def test_two_runs_may_write_into_one_history(tmp_path):
    def write(variant):
        for epoch in range(1, 13):
            rows = [{"epoch": k, "step": k, "total": 1.0} for k in range(epoch)]
            write_history(tmp_path, variant, rows)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, ("ce", "ce_triplet", "ce_center")))
    for variant in ("ce", "ce_triplet", "ce_center"):
        assert len(read_history(tmp_path, variant)) == 12


FRONT = """import sys; sys.path.insert(0, {tests!r})
import toy_study
from handclip_lib.report import plan, study, workflow
class Patch:
    setattr = staticmethod(setattr)
toy_study.no_data(Patch)
workflow.command, plan.library_sha256 = toy_study.command, lambda: toy_study.LIBRARY
sys.exit(study.run_study("smoke", {books!r}, ["dorsal_r"], [0], executor={executor!r}))"""


def _front(books, executor="local"):
    told = {"tests": str(ROOT / "tests"), "books": books, "executor": executor}
    words = [sys.executable, "-u", "-c", FRONT.format(**told)]
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})


def _wait(path, seconds=60):
    """Until a file holds something; its text."""
    for _ in range(10 * seconds):
        if path.is_file() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no {path} after {seconds} s")


def _has_ended(pid, seconds=30):
    for _ in range(10 * seconds):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


LONG = """if (Path({once!r}) if NAME == "02_stage1" else Path("/")).exists() is False:
    Path({once!r}).write_text(str(os.getpid()))
    time.sleep(300)"""


def test_killed_in_the_middle_a_second_call_finishes(tmp_path):
    once = tmp_path / "pid"
    source = LONG.format(once=str(once))
    names = ("00_splits", "02_stage1")
    books = [notebook(tmp_path, name, source) for name in names]
    front = _front(books)
    pid = int(_wait(once))
    front.kill()
    front.wait()
    status, text = _run(tmp_path, *names, source=source, aspects=["dorsal_r"], seeds=[0])
    assert _has_ended(pid), "the run that nobody waits for lives on"
    assert status == 0, text
    assert "done before  00_splits" in text and "done   1/1   02_stage1" in text


STUBS = {
    "sbatch": """id=$(( $(ls "$S" | grep -c '^job') + 1 )); touch "$S/job$id"
printf '%s\\n' "$*" >> "$S/calls"
while [ $# -gt 0 ]; do case "$1" in
    --output) out=$(echo "$2" | sed "s/%j/$id/");; -D) cd "$2";; --wrap=*) wrap=${1#--wrap=};;
esac; shift; done
echo RUNNING > "$S/job$id"
SLURM_JOB_ID=$id setsid sh -c 'echo $$ > "$S/pid$0"
    if sh -c "$1"; then echo COMPLETED > "$S/job$0"; else echo FAILED > "$S/job$0"; fi' \\
    "$id" "$wrap" > "$out" 2>&1 < /dev/null &
echo $id""",
    "sacct": """case "$*" in *Account*) echo none; exit;; esac
for f in "$S"/job*; do echo "${f##*job}|$(cat "$f")"; done""",
    "squeue": """exec sacct""",
    "scancel": """for id in "$@"; do
    kill -- "-$(cat "$S/pid$id")"; echo CANCELLED > "$S/job$id"; echo "$id" >> "$S/cancelled"
done""",
    "sinfo": "echo 'main*'",
    "scontrol": "exit 1",
    "srun": """while [ "${1#-}" != "$1" ]; do shift; done; exec "$@" """,
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of this machine: stub commands that really run what is submitted; its state."""
    state, stubs = tmp_path / "state", tmp_path / "bin"
    state.mkdir(), stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/sh\n{text}\n".replace("\\\\", "\\"))
        (stubs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{stubs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("S", str(state))
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    profile |= {"slurm-init-seconds-before-status-checks": 1}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "config.yaml").write_text(yaml.safe_dump(profile))
    return state


def test_slurm_runs_jobs_and_resumes(tmp_path, slurm):
    once, names = tmp_path / "pid", ("00_splits", "02_stage1")
    source = LONG.format(once=str(once))
    books = [notebook(tmp_path, name, source) for name in names]
    (done, _) = plan.plan("smoke", books, ["dorsal_r"], [0])
    subprocess.run(toy_study.command(done, "smoke"), check=True)
    front = _front(books, str(tmp_path / "slurm"))
    pid = int(_wait(once))
    front.kill()
    front.wait()
    assert _has_ended(pid), "the job was not cancelled"
    assert (slurm / "cancelled").read_text() == "1\n"
    asked = {"source": source, "aspects": ["dorsal_r"], "seeds": [0]}
    status, text = _run(tmp_path, *names, executor=str(tmp_path / "slurm"), **asked)
    assert status == 0 and "done before  00_splits" in text and "done   1/1   02_stage1" in text
    calls = (slurm / "calls").read_text().splitlines()
    assert len(calls) == 2, "what is done is not submitted, and what was cancelled is"
    for call in calls:
        assert "--gpus=1" in call and "--cpus-per-task=8" in call
        assert re.search(r"--output .+/slurm_logs/rule_run/02_stage1.dorsal_r.seed0/%j.log", call)
