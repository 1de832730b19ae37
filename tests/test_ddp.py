"""Several processes of one training: the gradient of one, one writer, and one end for all."""

import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hands as hands
import toy_ranks as toy
from torch import nn

from handclip_lib.data.splits import make_manifest
from handclip_lib.device import make_fabric
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.files import save_local_dir
from handclip_lib.params import ChainStep, ParamError
from handclip_lib.schema import Params
from handclip_lib.schema_train import Stage3b, Training
from handclip_lib.train import guided, launch, remedies, stages, training
from handclip_lib.train.job import Job, Past, job_of
from handclip_lib.train.ranks import sync_norms
from handclip_lib.train.states import Task

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order: 4e-5 on some processors
STAGE = {
    "epochs": 3, "batch_size": 14, "lr": 1e-3, "head_epochs": 0, "layer_decay": 1.0,
    "save_seconds": 0, "sampler": {"type": "identity", "images": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model folder of the toy tower, which other processes can read."""
    found = tmp_path_factory.mktemp("ranks")
    hands.small_towers(tmp_path_factory.mktemp("configs"))
    torch.manual_seed(0)
    save_local_dir(load_encoder("toy-vit", "random"), found / "toy")
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return hands.squares(tmp_path_factory.mktemp("hands"), 16, 5)


@pytest.fixture(scope="module")
def manifest(table: pd.DataFrame) -> pd.DataFrame:
    return make_manifest(table, "dorsal_r", select="persons", draws=2)


def told(folder: Path, devices: int) -> Params:
    return Params.model_validate({
        "data": {"dataset": "own"},
        "model": {"name": str(folder / "toy"), "pretrained": ""},
        "split": {"select": "persons", "draws": 2},
        "device": {"accelerator": "cpu", "devices": devices},
        "stage1": STAGE,
    })  # fmt: skip


@pytest.fixture(scope="module")
def caught(folder: Path, table: pd.DataFrame) -> ValueError:
    """How two processes end of which one stumbles when all has been computed."""
    p = told(folder, 2)
    work = partial(toy.everything_and_stumble, p, table, folder / "two")
    with pytest.raises(ValueError, match="the second rank stumbled") as error:
        launch.in_ranks(p, work, folder / "exchange")
    return error.value


@pytest.fixture(scope="module")
def both(folder: Path, table: pd.DataFrame, caught) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process finds, and what two find."""
    p = told(folder, 1)
    one = toy.everything(p, table, folder / "one", make_fabric(p, training=True))
    return one, torch.load(folder / "two" / toy.FOUND, weights_only=True)


# --- what is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", toy.STEPS)
def test_losses_and_gradients_are_those_of_one_process(both, name):
    one, two = (found[name] for found in both)
    assert one.keys() == two.keys() and any(n.startswith("visual.") for n in one)
    for part, expected in one.items():
        torch.testing.assert_close(two[part], expected, **NEAR, msg=lambda m, n=part: f"{n}: {m}")


def test_each_loss_of_a_step_pulls(both):
    """The comparison would be of nothing if these were zero."""
    assert {"cross_entropy", "triplet", "supcon", "center", "arcface"} <= both[0]["odd"].keys()
    for name, term in (("texts of persons", "t2i"), ("texts of images", "i2t"), ("before", "lwf")):
        assert both[0][name][term] > 0
    assert both[0]["views"]["adapter.sie"].abs().sum() > 0


def test_a_batch_too_small_for_all_ranks(both):
    torch.testing.assert_close(both[1]["alone"], both[0]["alone"], **NEAR)


def test_trained_weights_are_those_of_one_process(both):
    """Though rank 1 begins elsewhere, has other batches, and may neither validate nor write."""
    one, two = (found["trained"] for found in both)
    for part, expected in one.items():
        torch.testing.assert_close(two[part], expected, **NEAR, msg=lambda m, n=part: f"{n}: {m}")


def test_ranks_go_on_where_they_broke_off(both):
    whole, again = both[1]["trained"], both[1]["again"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_ranks_share_batches_of_persons(both, folder, table):
    made = toy.Made(told(folder, 1), table, folder / "shares", make_fabric(told(folder, 1)))
    labels, batches = made.data.labels.numpy(), made.recipe().batches(1)
    assert len(both[1]["shares"]) == len(batches) > 1
    for batch, parts in zip(batches, both[1]["shares"], strict=True):
        assert [len(part) for part in parts] == [6, 6]
        assert [row for part in parts for row in part] == batch.tolist()
        assert set(np.bincount(labels[np.concatenate(parts)])) - {0} == {3}  # K of each of P


# --- a stage -----------------------------------------------------------------------------------


def test_a_stage_on_two_devices(folder, table, manifest, capsys):
    one = stages.stage1(told(folder, 1), table, manifest, folder / "stage_one")
    capsys.readouterr()
    two = stages.stage1(told(folder, 2), table, manifest, folder / "stage_two")
    assert "stage1 3/3" in capsys.readouterr().out  # rank 0's bar
    pd.testing.assert_frame_equal(two.history, one.history, rtol=1e-3)
    assert {k: v for k, v in two.facts.items() if k != "seconds"} == {
        k: v for k, v in one.facts.items() if k != "seconds"
    }
    begun = load_encoder(str(folder / "toy"))
    near, far = (_apart(one.encoder, other) for other in (two.encoder, begun))
    assert near < 0.1 * far
    left = [path for path in (folder / "stage_two").rglob("*") if path.suffix != ".lock"]
    assert {path.name for path in left} == {"checkpoints", "history.csv", "stage1.pth"}
    stages.stage1(told(folder, 2), table, manifest, folder / "stage_two")
    assert "trained before" in capsys.readouterr().out


def _apart(one: Encoder, two: Encoder) -> float:
    """Mean distance of the towers' weights. AdamW makes a step of a gradient that is but noise."""
    pairs = zip(one.visual.parameters(), two.visual.parameters(), strict=True)
    return float(torch.cat([(a - b).detach().abs().flatten() for a, b in pairs]).mean())


STAGE3 = {
    "pseudo": {"text": "pseudo", "interact": True, "i2t": 0.5},
    "prompts": {"text": "prompts", "i2t": 0.5},
    "lora": {"text": "none", "adapt": {"lora": 2}},
}


@pytest.mark.parametrize("name", [*STAGE3, "remedy"])
def test_another_process_makes_the_same_training(name, folder, table, manifest, tmp_path):
    p = told(folder, 2)
    task, start = (
        Task("dorsal_r", p, table, manifest),
        stages.stage1(told(folder, 1), table, manifest, folder / "stage_one"),
    )
    if name == "remedy":
        step = ChainStep("dorsal_r", "dorsal_r", "stage1", p.stage1, p.data)
        told_by = remedies.remedied(p, "lwf", task, [(step, task, start.checkpoint)], Past())
        job: Job[Training] = job_of(
            name, p.stage1, p, start.checkpoint, table, told_by[1], tmp_path, told_by[0]
        )
    else:
        settings = Stage3b.model_validate(STAGE3[name])
        persons = manifest.loc[manifest["split"] == "train", "pid"].unique()
        words = (tuple(map(int, sorted(persons))), torch.eye(len(persons), 16))
        job = guided._job(p, name, settings, None, words, table, manifest, tmp_path, None)
    other = pickle.loads(pickle.dumps(job.again))()
    assert other.key == job.key
    if name == "remedy":
        assert other.past.retain().terms.keys() == {"lwf"}


def test_a_training_that_nothing_can_make_again_is_an_error(folder, table, manifest, tmp_path):
    p = told(folder, 2)
    job = job_of("x", p.stage1, p, None, table, manifest, tmp_path)
    bare = Job("x", p.stage1, p, job.encoder, table, manifest, job.fabric, tmp_path)
    with pytest.raises(ValueError, match="another process"):
        training.train(bare)


# --- BatchNorms --------------------------------------------------------------------------------


def _fabric(kind: str, ranks: int = 2) -> Any:
    return SimpleNamespace(world_size=ranks, device=torch.device(kind))


def test_a_tower_with_batchnorms_needs_gpus(folder):
    encoder, vit = load_encoder("toy-rn", "random"), load_encoder("toy-vit", "random")
    with pytest.raises(ParamError, match="device.devices=1"):
        sync_norms(encoder, False, _fabric("cpu"))
    for tower, frozen, fabric in (
        (encoder, True, _fabric("cpu")),
        (vit, False, _fabric("cpu")),
        (encoder, False, _fabric("cpu", 1)),
        (vit, False, _fabric("cuda")),
    ):
        sync_norms(tower, frozen, fabric)
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in tower.modules())
    parameters = list(encoder.parameters())
    names = list(encoder.state_dict())
    sync_norms(encoder, False, _fabric("cuda"))
    kinds = {type(m) for m in encoder.visual.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {nn.SyncBatchNorm}
    assert list(encoder.state_dict()) == names
    assert all(a is b for a, b in zip(encoder.parameters(), parameters, strict=True))


# --- how it ends -------------------------------------------------------------------------------


def test_an_error_in_one_rank_is_the_callers(caught, folder):
    assert "in rank 1" in caught.__notes__[0] and "everything_and_stumble" in caught.__notes__[0]
    assert not (folder / "exchange").exists()


def test_who_was_killed_is_named_before_who_noticed(tmp_path):
    launch._tell(tmp_path, 0, RuntimeError("connection closed by peer"))
    (tmp_path / "1.stderr").write_text("its last words")
    error = launch._error([tmp_path / "0.error"], [1, -9], tmp_path)
    assert "process 1 of 2" in str(error) and "signal 9" in str(error)
    assert "its last words" in str(error)
    assert "closed" in str(launch._error([tmp_path / "0.error"], [1, None], tmp_path))
    (tmp_path / "0.stderr").write_text("no such module")
    assert "exit code 2" in str(launch._error([], [2, None], tmp_path))


def test_an_error_without_a_pickle_keeps_its_words(tmp_path):
    class Local(Exception):
        pass

    launch._tell(tmp_path, 1, Local("something of its own"))
    error = launch._error([tmp_path / "1.error"], [None, 1], tmp_path)
    assert type(error) is RuntimeError and "Local: something of its own" in str(error)


def test_ranks_end_with_whoever_started_them(tmp_path):
    starter = os.fork()
    if not starter:
        launch.in_ranks(toy.TWO, partial(toy.linger, tmp_path), tmp_path / "exchange")
        os._exit(0)
    until = time.monotonic() + 120
    pids = [tmp_path / f"{rank}.pid" for rank in range(2)]
    while not all(path.is_file() for path in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    ranks = [int(path.read_text()) for path in pids]
    until = time.monotonic() + 20
    while any(_runs(pid) for pid in ranks):
        assert time.monotonic() < until, "a rank outlives its notebook"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
