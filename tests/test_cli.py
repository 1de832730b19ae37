"""The command line: what is asked reaches the library, and errors are one clear message."""

import os
import signal
import subprocess
import sys

import pytest

from handclip_lib import __version__, cli
from handclip_lib.params import ROOT, ParamError
from handclip_lib.report import notebook, study
from handclip_lib.report.notebook import RunFailed


@pytest.fixture
def asked(monkeypatch):
    calls = []
    monkeypatch.setattr(notebook, "run_notebook", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(study, "run_study", lambda *a, **k: calls.append((a, k)) or 0)
    return calls


def test_run_passes_everything_on(asked):
    line = "run 01 --aspect palmar_l --study smoke --seed 3 --tag wide --set stage1.lr=1e-5"
    assert cli.main([*line.split(), "--set", "evaluation.feature=[pool]"]) == 0
    overrides = {"stage1.lr": "1e-5", "evaluation.feature": ["pool"]}
    expected = {"aspect": "palmar_l", "study": "smoke", "seed": 3, "tag": "wide"}
    assert asked == [(("01", expected | {"overrides": overrides}), {"index": True})]


def test_run_without_options_leaves_all_to_the_notebook(asked):
    assert cli.main(["run", "01", "--no-index"]) == 0
    assert asked == [(("01", {}), {"index": False})]


def test_study_and_demo_pass_everything_on(asked, capsys):
    line = "study smoke --aspects dorsal_r palmar_l --seeds 0 1 --notebooks 00 --cores 2 --dry-run"
    assert cli.main([*line.split(), "--gpus", "0,1"]) == 0
    assert asked[0] == (
        ("smoke", ["00"], ["dorsal_r", "palmar_l"], [0, 1]),
        {"jobs": 2, "force": False, "dry_run": True, "executor": "local", "gpus": "0,1"},
    )
    assert cli.main(["demo", "--cores", "1", "--force"]) == 0
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert asked[1] == (
        ("demo", [name for name in names if name != "08_pretrain"], None, [0]),
        {"jobs": 1, "force": True, "others": ["00_splits", "01_baseline"]},
    )
    assert "the demo took" in capsys.readouterr().out


def test_version_and_help(capsys):
    for option, words in (("--version", __version__), ("--help", "export-tree")):
        with pytest.raises(SystemExit) as left:
            cli.main([option])
        assert left.value.code == 0 and words in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0 and "--debug" in capsys.readouterr().out


def test_misspelt_command_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["stdy"])
    assert left.value.code == 2
    assert "no command 'stdy'; did you mean 'study'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run 01_baselin", "no notebook '01_baselin'; notebooks/ has 00_splits"),
        ("run 01 --set stage1.lrate=1", "unknown parameter 'stage1.lrate'; did you mean"),
        ("run 01 --set stage1.lr", "write it as key=value"),
        ("run 01 --set stage1.lr=[", "the value is not valid YAML"),
        ("run 01 --study smokes", "no study 'smokes'; did you mean 'smoke'"),
        ("study smokes", "no study 'smokes'"),
        ("index smokes", "no study 'smokes'"),
    ],
)
def test_wrongly_asked_is_one_message_and_status_2(line, message, capsys):
    assert cli.main(line.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("handclip: ") and message in said.err
    assert "Traceback" not in said.err and not said.out


@pytest.mark.parametrize(
    ("error", "status"), [(RunFailed("x"), 1), (ParamError("x"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_status(monkeypatch, capsys, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(notebook, "run_notebook", fail)
    assert cli.main(["run", "01"]) == status
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_of_batch_systems_stop_it_as_ctrl_c_does(monkeypatch, number):
    monkeypatch.setattr(notebook, "run_notebook", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert cli.main(["run", "01"]) == 130
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # as nohup does
            assert cli.main(["run", "01"]) == 0
    finally:
        signal.signal(number, before)


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["run", "01_baselin", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_demo_data_draws_what_is_asked(tmp_path):
    root = tmp_path / "hands"
    line = f"demo-data --root {root} --persons 2 --seed 5 --workers 1 --shots 1 1"
    assert cli.main(line.split()) == 0
    assert (root / "HandInfo.csv").is_file() and (root / "drawn.json").is_file()


def test_as_a_module_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "handclip_lib.cli", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"handclip {__version__}\n", done.stderr


def test_bare_on_is_a_key_of_a_loss(asked):
    told = "stage2.losses=[{type: cross_entropy, on: [pool_bn]}]"
    assert cli.main(["run", "03", "--no-index", "--set", told]) == 0
    overrides = asked[0][0][1]["overrides"]
    assert overrides["stage2.losses"] == [{"type": "cross_entropy", "on": ["pool_bn"]}]
