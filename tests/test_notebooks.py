"""Every notebook: runs from nothing, replays the same, equals its golden, and notices errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from handclip_lib.params import ROOT

NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
GOLDEN = ROOT / "tests" / "golden"
CHECK = "nbval-check-output"
# What a page would fetch from elsewhere when it is opened
OUTSIDE = r"<(?:script|link)\b[^>]*|(?:src|srcset)=.?https?:|url\(.?https?:|@import|src=.?//"


def run(arguments: list[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A command from an empty cache and a runs root of its own, in a folder outside the project."""
    home.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"HANDCLIP_CACHE": f"{home}/cache", "HANDCLIP_REPORTS": f"{home}/reports"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=home,
        env=env | more,
        capture_output=True,
        text=True,
        timeout=900,
    )


def replay(notebook: Path, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """nbval executes the notebook again and compares the check cells' outputs."""
    options = "--nbval-lax --nbval-current-env --nbval-cell-timeout=300 -q -p no:cacheprovider"
    return run(["pytest", *options.split(), "-c", os.devnull, str(notebook)], home, **more)


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.notebook
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_run_from_nothing_leaves_a_report_and_its_golden_replays(
    name: str, tmp_path: Path
) -> None:
    """The command and nbval's replay of the golden, from nothing each, come to the same."""
    first, second = tmp_path / "first", tmp_path / "second"
    ok(run(["handclip_lib.cli", "run", name, "--study", "smoke"], first))
    folder = Path("reports/smoke/seed0/dorsal_r") / name
    for left in ("params.json", "manifest.csv", "stamp.json", "report.ipynb", "report.html"):
        assert (first / folder / left).stat().st_size > 0, left
    page = (first / folder / "report.html").read_text()
    assert "drawn hands" in page
    assert not re.findall(OUTSIDE, page)
    again = run(
        f"handclip_lib.cli study smoke --notebooks {name} --aspects dorsal_r".split(), first
    )
    ok(again)
    assert "done before" in again.stdout and "start" not in again.stdout, again.stdout
    ok(replay(GOLDEN / f"{name}.ipynb", second))
    one, two = (json.loads((h / folder / "metrics.json").read_text()) for h in (first, second))
    assert flat(one) == pytest.approx(flat(two), abs=1e-3)
    assert one["manifest_sha256"] == two["manifest_sha256"]


def flat(tree: object, prefix: str = "") -> dict[str, float]:
    """Every number of a nested result by its path, but how long something took."""
    if isinstance(tree, dict):
        items = [(f"{prefix}.{k}", v) for k, v in tree.items() if k != "seconds"]
    elif isinstance(tree, list):
        items = [(f"{prefix}.{i}", v) for i, v in enumerate(tree)]
    else:
        return {prefix: float(tree)} if isinstance(tree, int | float) else {}
    return {k: v for path, branch in items for k, v in flat(branch, path).items()}


@pytest.mark.notebook
def test_plain_papermill_works_from_any_folder(tmp_path: Path) -> None:
    notebook = ROOT / "notebooks" / "01_baseline.ipynb"
    ok(
        run(
            f"papermill {notebook} out.ipynb -p study smoke -p aspect dorsal_l".split(),
            tmp_path / "elsewhere",
        )
    )
    saved = tmp_path / "elsewhere/reports/smoke/seed0/dorsal_l/01_baseline/metrics.json"
    assert set(json.loads(saved.read_text())["variants"]) == {"tiny", "tiny_rn"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_golden_is_todays_notebook_and_its_checks_are_live(name: str) -> None:
    today = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    golden = nbformat.read(GOLDEN / f"{name}.ipynb", as_version=4).cells
    own = [c for c in golden if "injected-parameters" not in c.metadata.get("tags", [])]
    assert len(own) == len(golden) - 1
    assert [c.source for c in own] == [c.source for c in today], "run `make golden`"
    checks = [c for c in golden if CHECK in c.metadata.get("tags", [])]
    assert checks
    for cell in checks:
        assert cell.execution_count and cell.outputs, "nbval would compare nothing"


PLANTED = """

_true_metrics = retrieval_metrics


def retrieval_metrics(similarity, query_pids, gallery_pids):
    scores = _true_metrics(similarity, query_pids, gallery_pids)
    scores["per_query"]["ap"] = scores["per_query"]["ap"] ** 2
    return scores
"""


@pytest.mark.notebook
def test_an_error_planted_in_ap_fails_a_golden(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "handclip_lib", project / "handclip_lib")
    shutil.copytree(ROOT / "params", project / "params")
    (project / "data").symlink_to(ROOT / "data")
    with (project / "handclip_lib/evaluate/retrieval.py").open("a") as module:
        module.write(PLANTED)
    done = replay(GOLDEN / "01_baseline.ipynb", tmp_path / "planted", PYTHONPATH=str(project))
    assert done.returncode == 1 and "mAP" in done.stdout, done.stdout[-3000:]
    assert re.search(r"\b1 failed", done.stdout), "the check cell fails, and no other"


def results(home: Path, notebook: str) -> dict[str, Any]:
    saved = home / "reports/smoke/seed0/dorsal_r" / notebook / "metrics.json"
    return json.loads(saved.read_text())


@pytest.mark.notebook
def test_stage2_goes_on_from_the_stage1_that_notebook_02_left(tmp_path: Path) -> None:
    for name in ("02_stage1", "03_stage2_losses"):
        ok(run(["handclip_lib.cli", "run", name, "--study", "smoke"], tmp_path))
    first, second = results(tmp_path, "02_stage1"), results(tmp_path, "03_stage2_losses")
    page = tmp_path / "reports/smoke/seed0/dorsal_r/03_stage2_losses/report.html"
    assert "training it first" not in page.read_text()
    assert set(first["variants"]) == {"zero_shot", "stage1"}
    assert set(second["variants"]) == {"zero_shot", "stage1", "ce", "ce_triplet", "mba"}
    for row in ("zero_shot", "stage1"):  # one start, one evaluator, one feature
        assert flat(first["variants"][row]) == pytest.approx(flat(second["variants"][row]))
    assert first["paired"]["reference"] == "zero_shot" and second["paired"]["reference"] == "stage1"
    for result, base in ((first, "zero_shot"), (second, "stage1")):
        for metric, tests in result["paired"]["own"].items():
            for name, test in tests.items():
                one, other = (result["variants"][v]["own"][metric]["mean"] for v in (base, name))
                assert test["difference"] == pytest.approx(other - one, abs=1e-9)
        persons = {len(kept) for kept in result["per_person"].values()}
        assert persons == {result["variants"][base]["own"]["persons"]}


@pytest.mark.notebook
def test_the_baseline_of_stage2_trains_nothing(tmp_path: Path) -> None:
    told = ["--study", "smoke", "--set", "stage2.variant=baseline", "--tag", "baseline"]
    ok(run(["handclip_lib.cli", "run", "03_stage2_losses", *told], tmp_path))
    result = results(tmp_path, "03_stage2_losses/baseline")
    assert set(result["variants"]) == {"zero_shot", "stage1"} and result["training"] == {}
    assert result["paired"]["own"] == {"rank1": {}, "map": {}}


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n != "00_splits"])
@pytest.mark.parametrize("tower", ["ViT-B-16-quickgelu", "RN50-quickgelu", "tiny_rn"])
def test_other_towers(tower: str, name: str, tmp_path: Path) -> None:
    """Full-size towers with random weights, and the small ResNet with its own."""
    sets = {
        "model.name": tower,
        "model.pretrained": "" if tower == "tiny_rn" else "random",
        "model.fit": "squash",
        "data.root": f"{tmp_path}/hands",
        "data.drawn.persons": "4",
        "split.select": "none",
        "split.draws": "2",
        "baseline.beside": "null",
        "pretrain.epochs": "1",
        "pretrain.variants": "[moco_v3]",
        "stage1.epochs": "1",
        "stage1.head_epochs": "0",
        "stage1.batch_size": "4",
        "stage2.epochs": "1",
        "stage2.batch_size": "8",
        "stage2.variants": "[ce, {mba: {epochs: 1, batch_size: 4}}]",
        "comparator.backbone": "resnet50",
        "comparator.pretrained": "random",
        "comparator.image_size": "324",
        "stage3a.epochs": "1",
        "stage3b.epochs": "1",
        "stage3b.batch_size": "8",
        "stage3b.variants": "[clip_reid, promptsg, lora, attn_spatial, pcb]",
        "chain.remedies": "[wise_ft]",
        "chain.wise_ft": "[0, 0.5]",
    }
    told = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    told += ["--tag", "big"]
    ok(run(["handclip_lib.cli", "run", name, "--study", "smoke", *told], tmp_path / "big"))
