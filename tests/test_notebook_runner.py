"""The strict runner: what papermill lets pass is refused, and a success is a written result."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from handclip_lib.params import ROOT, ParamError, load
from handclip_lib.report import notebook as runner
from handclip_lib.report.export import export_html
from handclip_lib.report.notebook import RunFailed, find_notebook, run_notebook
from handclip_lib.report.runs import open_run, read_json

PARAMETERS = """aspect: str = "dorsal_r"  # one of four
study: str = "demo"
seed: int = 0
tag: str = ""
overrides: dict = {}
top: int = 3"""
OPEN = """import sys
from handclip_lib.params import load
from handclip_lib.report.runs import open_run
p = load(aspect, study, seed, tag, overrides)
run = open_run("toy", p)
p.table()"""
PICTURE = """from handclip_lib.report import plots
run.figure(plots.confusion([[top, 1], [0, 2]], ["a", "b"], "toy figure"), "toy")"""
NOISE = """import sys, time
from tqdm.auto import tqdm
for _ in tqdm(range(3), desc="noisy bar"):
    pass
print("executable", sys.executable)"""
SAVE = 'run.save({"data": "drawn hands (demonstration)", "variants": {}, "top": top})'


def _toy(folder: Path, *cells: str, parameters: str = PARAMETERS, name: str = "toy") -> Path:
    given = new_code_cell(parameters)
    given.metadata["tags"] = ["parameters"]
    body = [new_markdown_cell("# Toy · a question\n\nwith prose and $x^2$"), given]
    for number, source in enumerate(cells):
        body += [new_markdown_cell(f"## Station {number}"), new_code_cell(source)]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=body), path)
    return path


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reports"


@pytest.fixture
def no_kernel(monkeypatch):
    def refuse():
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(runner, "_kernel", refuse)


def test_a_run_leaves_report_html_and_metrics(tmp_path, reports, monkeypatch, capsys):
    shadow = tmp_path / "jupyter" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text('{"argv": ["false"], "display_name": "x", "language": ""}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = _toy(tmp_path, OPEN, PICTURE, NOISE, SAVE)
    told = {"aspect": "palmar_l", "study": "smoke", "seed": 3, "tag": "wide", "top": 5}
    html = run_notebook(path, told | {"overrides": {"stage1": {"lr": 2e-5}}})
    assert "toy" in (reports / "smoke" / "index.html").read_text(), "the page's link leads there"
    folder = reports / "smoke" / "seed3" / "palmar_l" / "toy" / "wide"
    assert html == folder / "report.html"
    assert read_json(folder / "metrics.json")["top"] == 5
    assert read_json(folder / "params.json")["stage1"]["lr"] == 2e-5
    said = capsys.readouterr().out
    assert re.search(r"4/5 +\d+\.\d s  Station 2", said), said
    executed = (folder / "report.ipynb").read_text()
    assert f"executable {sys.executable}" in executed, "the kernel is this interpreter"
    _check_page(html.read_text())
    assert not list(folder.glob(".*partial*"))


def _check_page(text: str) -> None:
    assert "<title>Toy · a question · palmar left · drawn hands (demonstration)</title>" in text
    assert "say nothing about real ones" in text
    assert text.count("data:image/png;base64,") == 1, "the figure, once"
    assert "noisy bar" not in text and "widget" not in text and "run.save" not in text
    assert "executable" in text
    assert not re.search(r"<script|<link|@import|(src|srcset)\s*=\s*.http|url\(", text)
    assert 'href="../../../../index.html"' in text


def test_the_cells_values_count_where_nothing_is_given(tmp_path, reports):
    cell = PARAMETERS.replace("dorsal_r", "palmar_l").replace('tag: str = ""', 'tag = "edited"')
    cell = cell.replace("{}", '{"stage1.lr": 2e-5}').replace("seed: int = 0", "seed = 4")
    path = _toy(tmp_path, OPEN, SAVE, parameters=cell)
    html = run_notebook(path, {"study": "smoke"}, index=False)
    assert html.parent == reports / "smoke" / "seed4" / "palmar_l" / "toy" / "edited"
    told = read_json(html.parent / "params.json")
    assert told["stage1"]["lr"] == 2e-5 and told["seed"] == 4
    assert not (reports / "smoke" / "index.html").exists()


def test_a_computed_parameter_is_refused(tmp_path, no_kernel):
    cell = PARAMETERS.replace("seed: int = 0", "seed = int(4)")
    with pytest.raises(ParamError, match="'seed' in the parameters cell must be a plain value"):
        run_notebook(_toy(tmp_path, OPEN, SAVE, parameters=cell), {})


def test_overrides_need_a_tag(tmp_path, no_kernel, reports):
    (tmp_path / "mine.yml").write_text("stage1.lr: 1e-5")
    for study in ("smoke", "mine.yml"):
        given = {"study": study, "overrides": {"stage1.lr": 2e-5}}
        with pytest.raises(ParamError, match=r"stage1\.lr: study has .*\n.*--tag NAME"):
            run_notebook(_toy(tmp_path, OPEN, SAVE), given)
    assert not reports.exists()


def test_a_folder_is_used_by_one_run_at_a_time(tmp_path, no_kernel):
    folder = open_run("toy", load("dorsal_r", "smoke")).folder
    (folder / "metrics.json").write_text("{}")
    with FileLock(folder / ".lock"), pytest.raises(RunFailed, match="another run is using"):
        run_notebook(_toy(tmp_path, OPEN, SAVE), {"study": "smoke"})
    assert (folder / "metrics.json").exists(), "it is the other run's"


def test_failing_cell_is_named_and_kept(tmp_path, reports):
    path = _toy(tmp_path, "1", 'print("before")', 'raise KeyError("no such hand")', SAVE)
    with pytest.raises(RunFailed) as failed:
        run_notebook(path, {"study": "smoke"})
    folder = reports / "smoke" / "seed0" / "dorsal_r" / "toy"
    words = str(failed.value)
    assert "toy failed in cell 4/5 (Station 2)" in words and "KeyError: 'no such hand'" in words
    assert str(folder / "report.ipynb") in words and len(words.splitlines()) <= 12
    assert "no such hand" in (folder / "report.ipynb").read_text()
    assert not (folder / "metrics.json").exists() and not (folder / "report.html").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_failure_is_no_success_and_costs_no_earlier_result(tmp_path, reports, killed, capsys):
    folder = reports / "smoke" / "seed0" / "dorsal_r" / "toy"
    earlier = folder / ".earlier" if killed else folder  # a killed run left it aside
    (earlier / "figures").mkdir(parents=True)
    names = ("metrics.json", "report.html", "report.ipynb", "figures/old.png")
    for name in names:
        (earlier / name).write_text("{}")
    with pytest.raises(RunFailed, match=r"wrote no metrics\.json(.|\n)*toy/failed\.ipynb"):
        run_notebook(_toy(tmp_path, "print('failing', aspect)"), {"study": "smoke"})
    assert [(folder / name).read_text() for name in names] == ["{}"] * len(names)
    assert "failing" in (folder / "failed.ipynb").read_text()
    assert not (folder / ".earlier").exists()
    assert "the earlier result is kept" in capsys.readouterr().out


def test_a_kill_while_results_are_put_aside_costs_none(tmp_path, reports):
    folder = reports / "smoke" / "seed0" / "dorsal_r" / "toy"
    (folder / ".earlier").mkdir(parents=True)
    for path in (folder / ".earlier" / "metrics.json", folder / "report.ipynb"):
        path.write_text("{}")
    with pytest.raises(RunFailed):
        run_notebook(_toy(tmp_path, "1 / 0"), {"study": "smoke"})
    assert [(folder / n).read_text() for n in ("metrics.json", "report.ipynb")] == ["{}"] * 2


def test_a_success_replaces_an_earlier_result_whole(tmp_path, reports):
    folder = reports / "smoke" / "seed0" / "dorsal_r" / "toy"
    (folder / "figures").mkdir(parents=True)
    for name in ("metrics.json", "figures/old.png"):
        (folder / name).write_text("{}")
    run_notebook(_toy(tmp_path, OPEN, SAVE), {"study": "smoke"})
    assert read_json(folder / "metrics.json")["data"]
    assert not (folder / "figures" / "old.png").exists() and not (folder / ".earlier").exists()


def test_dead_kernel_is_a_failure(tmp_path, reports):
    path = _toy(tmp_path, "1", "import os; os._exit(9)", SAVE)
    with pytest.raises(RunFailed, match=r"the kernel died in cell 3/4 \(Station 1\)"):
        run_notebook(path, {"study": "smoke"})
    assert (reports / "smoke" / "seed0" / "dorsal_r" / "toy" / "report.ipynb").is_file()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"aspekt": "dorsal_l"}, "toy.ipynb has no parameter 'aspekt'; did you mean 'aspect'"),
        ({"aspect": "dorsal_right"}, "unknown aspect; did you mean 'dorsal_r'"),
        ({"study": "smokes"}, "no study 'smokes'; did you mean 'smoke'"),
        ({"overrides": {"stage2.lrate": 1}}, "unknown parameter 'stage2.lrate'; did you mean"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters_stop_before_the_kernel(tmp_path, no_kernel, parameters, message):
    with pytest.raises(ParamError, match=re.escape(message)):
        run_notebook(_toy(tmp_path, OPEN, SAVE), parameters)


def test_other_parameters_in_the_folder_stop_before_the_kernel(tmp_path, no_kernel, reports):
    folder = reports / "smoke" / "seed0" / "dorsal_r" / "toy"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text('{"aspect": "hand"}')
    with pytest.raises(ParamError, match="holds a run with other parameters"):
        run_notebook(_toy(tmp_path, OPEN, SAVE), {"study": "smoke"})


def test_exactly_one_parameters_cell(tmp_path, no_kernel):
    path = _toy(tmp_path, OPEN, SAVE)
    cells = nbformat.read(path, as_version=4).cells
    again = new_code_cell("seed = 1", metadata={"tags": ["parameters"]})
    for body, number in ((cells[:1] + cells[2:], 0), ([*cells, again], 2)):
        nbformat.write(new_notebook(cells=body), path)
        with pytest.raises(ParamError, match=f"tag 'parameters', found {number}"):
            run_notebook(path, {})


def test_a_copy_needs_a_run_of_its_own(tmp_path, no_kernel):
    with pytest.raises(ParamError, match=re.escape('write open_run("copy", p)')):
        run_notebook(_toy(tmp_path, OPEN, SAVE, name="copy"), {})


def test_what_is_no_notebook(tmp_path, no_kernel):
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.ipynb is not a notebook"):
        run_notebook(tmp_path / "broken.ipynb", {})


def test_study_path_counts_from_the_callers_folder(tmp_path, reports):
    (tmp_path / "mine.yml").write_text("aspect: palmar_r")
    (tmp_path / "deep").mkdir()
    with pytest.raises(RunFailed):
        run_notebook(_toy(tmp_path / "deep", "print(aspect, study)"), {"study": "mine.yml"})
    executed = reports / "mine" / "seed0" / "palmar_r" / "toy" / "report.ipynb"
    assert f"palmar_r {tmp_path / 'mine.yml'}" in executed.read_text()


def test_names_of_notebooks(tmp_path):
    expected = ROOT / "notebooks" / "01_baseline.ipynb"
    assert {find_notebook(n) for n in ("01", "01_baseline", "01_baseline.ipynb")} == {expected}
    assert find_notebook(expected) == expected
    with pytest.raises(FileNotFoundError, match="did you mean '01_baseline'"):
        find_notebook("01_baselin")
    with pytest.raises(FileNotFoundError, match="no notebook /"):
        find_notebook(f"x{os.sep}y.ipynb")


def test_progress_bars_and_widgets_leave_no_trace(tmp_path, reports):
    p = load("dorsal_r", "smoke")
    run = open_run("toy", p)
    run.save({"data": "11k Hands", "variants": {}})
    bar = "decoding:   0%|          | 0/9\rdecoding: 100%|####| 9/9 [00:01<00:00, 8.9it/s]\nkept\n"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "HBox"}
    cell = new_code_cell("1")
    cell.outputs = [new_output("stream", name="stderr", text=bar)]
    cell.outputs += [new_output("display_data", widget)]
    path = _toy(tmp_path, "1")
    executed = nbformat.read(path, as_version=4)
    executed.cells.append(cell)
    nbformat.write(executed, run.folder / "report.ipynb")
    text = export_html(run.folder, p).read_text()
    assert "kept" in text and "decoding" not in text and "HBox" not in text
    assert "11k Hands" in text and "drawn by a program" not in text
    assert 'href="../../../index.html"' in text
