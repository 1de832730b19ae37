"""The speed table: that every row compares two ways to one result (never how fast)."""

import dataclasses

import pytest
import torch

from handclip_lib.bench import gpu, table, training
from handclip_lib.bench.row import Row
from handclip_lib.data import tables


def test_every_row_times_both_ways(monkeypatch):
    every = tables.read(table.load(study="smoke"))
    one = every[every["aspect"] == "dorsal_r"]
    monkeypatch.setattr(table.tables, "read", lambda _: one)
    monkeypatch.setattr(training, "STEPS", 1)
    monkeypatch.setattr(training, "BATCH", 16)
    timed = table.bench(repeats=1)
    assert list(timed.columns) == table.COLUMNS
    here = timed.iloc[:8]
    assert (here[["kit", "other", "ratio"]] > 0).all(axis=None)
    assert (here["ratio"] == here["kit"] / here["other"]).all()
    assert "ready batches of 16" in "".join(timed.index)
    assert len(timed) == (13 if torch.cuda.is_available() else 8)


def test_both_ways_take_turns_and_the_best_counts(monkeypatch):
    order, clock = [], iter([0, 9, 9, 14, 14, 20, 20, 27])  # other 9, kit 5, other 6, kit 7
    monkeypatch.setattr(table.time, "perf_counter", lambda: next(clock))
    row = Row("x", lambda: order.append("kit"), lambda: order.append("other"), "≤ 1", 10)
    assert table._timed(row, 2) == [5, 6, 5 / 6, "≤ 1", 2]
    assert order == ["other", "kit", "other", "kit"]


def test_a_row_that_stands_alone_is_timed_once():
    calls = []
    kit, other, ratio, goal, rate = table._timed(Row("x", lambda: calls.append(1), None), 5)
    assert len(calls) == 1 and kit > 0 and goal == ""
    assert other != other and ratio != ratio and rate != rate  # not numbers


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(gpu, "IMAGES", 24)
    patch.setattr(gpu, "PERSONS", 6)
    patch.setattr(gpu, "SIDE", 112)
    p = training.in_precision(table.load(study="smoke"), "32-true")
    data = gpu._noise(p)
    patch.undo()
    folder = tmp_path_factory.mktemp("bench")
    return training.make_trainer(p, p.stage2.model_copy(update={"batch_size": 8}), data, folder)


def test_ready_batches_are_those_of_the_stage(trainer):
    assert all(
        len(images) == len(b) for (images, _), b in zip(trainer.ready, trainer.batches, strict=True)
    )
    training.data_path("x", trainer, "")  # compares the losses
    other = [(images.roll(1, 0), labels) for images, labels in trainer.ready]
    with pytest.raises(AssertionError, match="other batches"):
        training.data_path("x", dataclasses.replace(trainer, ready=other), "")


def test_steps_train(trainer):
    before = [x.detach().clone() for x in trainer.recipe.learner.parameters()]
    trainer.from_pixels()
    trainer.from_batches()
    after = trainer.recipe.learner.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_stage_that_is_timed_whole_runs_to_its_end(trainer, tmp_path):
    settings = trainer.settings.model_copy(update={"epochs": 1})
    row = gpu._stage(trainer, settings, tmp_path)
    row.kit()
    assert row.other is None and (tmp_path / "history.csv").is_file()


def test_the_peak_is_measured_by_as_many_operations(trainer, monkeypatch):
    monkeypatch.setattr(gpu, "_MATRIX", 512)
    row = gpu._peak("x", trainer, trainer)
    assert row.other is not None
    row.other()
