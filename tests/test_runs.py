"""Run folders: nothing is mixed, nothing is half written, and the numbers' origin is recorded."""

import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from handclip_lib import params
from handclip_lib.data.splits import read_manifest, sha256
from handclip_lib.report import runs, stamp
from handclip_lib.report.stamp import git_state, library_sha256

SCORE = {"mean": 0.5, "ci95": [0.4, 0.6], "per_draw": [0.5, 0.5]}
OWN = {"rank1": SCORE, "map": SCORE, "queries": 10, "gallery": 4, "persons": 4}
METRICS = {"data": "drawn hands (demonstration)", "variants": {"tiny": {"own": OWN}}}


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def _p(tag="", **overrides):
    return params.load("dorsal_r", "smoke", tag=tag, overrides=overrides)


def _bad(metrics=None, **scores):
    return metrics or METRICS | {"variants": {"tiny": {"own": OWN | scores}}}


def test_folder_layout(reports):
    p = params.load("palmar_l", "smoke", seed=2, tag="wide")
    run = runs.open_run("01_baseline", p)
    assert run.folder == reports / "smoke" / "seed2" / "palmar_l" / "01_baseline" / "wide"
    assert json.loads((run.folder / "params.json").read_text()) == p.model_dump(mode="json")


def test_reports_parameter_wins_over_the_environment(tmp_path):
    p = params.load("dorsal_r", "smoke", overrides={"reports": str(tmp_path / "mine")})
    assert runs.run_folder("00_splits", p).is_relative_to(tmp_path / "mine")


def test_relative_reports_folder_counts_from_the_project(monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", "elsewhere")
    assert runs.reports_root(_p()) == params.ROOT / "elsewhere"
    monkeypatch.delenv("HANDCLIP_REPORTS")
    assert runs.reports_root(_p()) == params.ROOT / "reports"


def test_other_parameters_never_share_a_folder():
    first = runs.open_run("01_baseline", _p("wide"))
    before = (first.folder / "params.json").read_bytes()
    with pytest.raises(params.ParamError, match="model.fit: folder has None, this run 'pad'"):
        runs.open_run("01_baseline", _p("wide", **{"model.fit": "pad"}))
    with pytest.raises(params.ParamError, match=r"\(and 2 more\)\ngive this run a tag"):
        changed = {f"stage{i}.{k}": 7 for i in (1, 2) for k in ("epochs", "lr", "batch_size")}
        runs.open_run("01_baseline", _p("wide", **changed))
    assert (first.folder / "params.json").read_bytes() == before


def test_overrides_need_a_tag(reports, tmp_path):
    words = r"model\.fit: study has None, this run 'pad'\n.*--tag NAME"
    with pytest.raises(params.ParamError, match=words):
        runs.open_run("01_baseline", _p(**{"model.fit": "pad"}))
    assert not reports.exists()
    runs.open_run("01_baseline", _p(**{"stage1.lr": _p().stage1.lr}))
    (tmp_path / "mine.yaml").write_text("model.fit: pad")
    runs.open_run("01_baseline", params.load(study=str(tmp_path / "mine.yaml")))


def test_a_variant_of_a_sweep_is_a_run_of_its_study(tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text("extends: smoke\nsweep: {wide: {model.fit: pad}}")
    told = params.load(study=str(study), tag="wide")
    assert runs.open_run("01_baseline", told).folder.name == "wide"
    runs.check_tag(told, str(study))
    more = params.load(study=str(study), tag="wide", overrides={"stage1.lr": 1.0})
    words = r"the study 'mine' with its variant 'wide' and would take its folder:\n  stage1\.lr"
    with pytest.raises(params.ParamError, match=words):
        runs.check_tag(more, str(study))
    mine = params.load(study=str(study), tag="mine", overrides={"stage1.lr": 1.0})
    runs.check_tag(mine, str(study))
    assert params.load(study="lr", tag="lr_1e-4").study == "lr"
    with pytest.raises(params.ParamError, match="differs from the study 'lr' with its variant"):
        runs.open_run(
            "02_stage1", params.load(study="lr", tag="lr_1e-4", overrides="split.seed: 4")
        )


def test_moved_reports_are_the_same_run(reports):
    runs.open_run("01_baseline", _p())
    run = runs.open_run("01_baseline", _p(reports=str(reports)))
    assert run.folder.is_relative_to(reports)


def test_tag_may_not_be_a_folder_of_the_run():
    p = params.load("dorsal_r", "smoke", tag="figures")
    with pytest.raises(params.ParamError, match="tag: 'figures'"):
        runs.open_run("01_baseline", p)


def test_reports_root_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "file"))
    with pytest.raises(params.ParamError, match=r"can't write the run folder .*HANDCLIP_REPORTS"):
        runs.open_run("01_baseline", _p())


def test_params_file_that_is_no_json_is_named():
    folder = runs.run_folder("01_baseline", _p())
    folder.mkdir(parents=True)
    (folder / "params.json").write_text("{")
    with pytest.raises(ValueError, match=r"params\.json is not valid JSON"):
        runs.open_run("01_baseline", _p())


def test_save_writes_header_stamp_and_metrics():
    run = runs.open_run("01_baseline", _p())
    rows = [("query", 0, 1, "dorsal_r", "a.jpg"), ("gallery", 0, 1, "dorsal_r", "b.jpg")]
    manifest = pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])
    digest = run.write_manifest(manifest)
    assert digest == sha256(manifest) == sha256(read_manifest(run.folder / "manifest.csv"))
    numbers = {"count": np.int64(3), "share": np.float32(0.5), "row": np.arange(2)}
    run.save(METRICS | {"zero_shot": numbers})
    saved = json.loads((run.folder / "metrics.json").read_text())
    header = {"notebook": "01_baseline", "study": "smoke", "aspect": "dorsal_r", "seed": 0}
    assert saved.items() >= (header | METRICS | {"tag": "", "manifest_sha256": digest}).items()
    assert saved["zero_shot"] == {"count": 3, "share": 0.5, "row": [0, 1]}
    told = json.loads((run.folder / "stamp.json").read_text())
    assert told["data"] == METRICS["data"] and told["manifest_sha256"] == digest
    assert told["packages"]["numpy"] == np.__version__ and told["peak_memory_mb"]["host"] > 1
    assert told["library_sha256"] == library_sha256()
    assert told.keys() >= {"git", "python", "platform", "device", "seconds"}
    assert not list(run.folder.rglob("*.partial"))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (_bad(rank1=SCORE | {"mean": float("nan")}), r"own\.rank1\.mean is nan"),
        (_bad(rank1=SCORE | {"per_draw": [float("inf")]}), r"per_draw\[0\] is inf"),
        (_bad(map=SCORE | {"mean": 55.0}), r"own\.map is 55\.0: values are 0–1"),
        (_bad(map={"mean": 0.5}), r"own\.map needs 'mean' and 'ci95'"),
        (_bad({"variants": {}}), "metrics.data is missing"),
        (_bad({"data": "x"}), "metrics.variants is missing"),
        (_bad({"data": "x", "variants": {"tiny": {"all": OWN}}}), "tiny has no 'own'"),
        (_bad({"data": "x", "variants": {"tiny": {"own": {}}}}), "needs rank1 and map"),
        (_bad(METRICS | {"study": "mine"}), r"metrics\.study is written by the run itself"),
        (_bad(METRICS | {"model": object()}), r"metrics\.model is a object"),
    ],
)
def test_what_is_not_saved(metrics, message):
    run = runs.open_run("01_baseline", _p())
    run.save(METRICS)
    before = (run.folder / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run.save(metrics)
    assert (run.folder / "metrics.json").read_bytes() == before


def test_opening_again_keeps_metrics_until_save():
    folder = runs.open_run("01_baseline", _p()).folder
    runs.open_run("01_baseline", _p()).save(METRICS)
    old = os.stat(folder / "metrics.json").st_ino
    run = runs.open_run("01_baseline", _p())
    assert (folder / "metrics.json").is_file()
    run.save(METRICS | {"extra": 1})
    assert os.stat(folder / "metrics.json").st_ino != old


def test_figure_is_saved_and_returned():
    run = runs.open_run("01_baseline", _p())
    fig = Figure((2, 1), dpi=100)
    assert run.figure(fig, "cmc") is fig
    assert (run.folder / "figures" / "cmc.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="a bare name"):
        run.figure(fig, "deep/cmc")


def test_new_and_changed_files_that_make_results_are_dirty(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "safe.directory=*"]
        subprocess.run(["git", *who, "-C", str(tmp_path), *words], check=True, capture_output=True)

    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mine.yaml").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "out.txt").touch()
    state = git_state(tmp_path)
    assert state["dirty"] is False and len(state["commit"]) == 40
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_state(tmp_path) == state, "a clone of another user"
    (tmp_path / "params" / "new.yaml").touch()
    assert git_state(tmp_path)["dirty"] is True


def test_the_librarys_hash_follows_code_and_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(stamp, "ROOT", tmp_path)
    tower = tmp_path / "handclip_lib" / "models" / "tiny" / "vit"
    tower.mkdir(parents=True)
    seen = {library_sha256()}
    for path in (tower / "weights.safetensors", tower.parents[1] / "clip.py"):
        for text in ("one", "two"):
            path.write_text(text)
            seen.add(library_sha256())
    assert len(seen) == 5


def test_losses_are_checked_before_there_is_a_folder(reports):
    bad = {"stage2.variants": {"mine": [{"type": "cross_entropy"}, {"type": "tripplet"}]}}
    p = params.load(study="smoke", tag="y", overrides=bad)
    with pytest.raises(
        params.ParamError, match=r"^stage2, variant mine: losses\.1\.type: .*triplet"
    ):
        runs.open_run("03_stage2_losses", p)
    assert not runs.run_folder("03_stage2_losses", p).exists()
