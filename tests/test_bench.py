"""The speed table: that every row compares two ways to one result (never how fast)."""

import dataclasses

import numpy as np
import pytest
import torch

from handclip_lib.bench import evaluation, gpu, rerank, table, text, training
from handclip_lib.bench.row import Row
from handclip_lib.data import tables
from handclip_lib.schema_base import Model


def test_every_row_times_both_ways(monkeypatch):
    every = tables.read(table.load(study="smoke"))
    one = every[every["aspect"] == "dorsal_r"]
    monkeypatch.setattr(table.tables, "read", lambda _: one)
    for module in (evaluation, training):
        monkeypatch.setattr(module, "PHOTOGRAPHS", 24)
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr(text, "TOWER", "tiny")
    monkeypatch.setattr(text, "PROMPTS", 8)
    for name, size in {"QUERIES": 40, "GALLERY": 30, "PERSONS": 10}.items():
        monkeypatch.setattr(rerank, name, size)
    monkeypatch.setattr(rerank, "_peak_elsewhere", {"kit": 1.0, "dense": 9.0}.get)
    timed = table.bench(repeats=1)
    assert list(timed.columns) == table.COLUMNS
    here = timed.iloc[:10]
    assert (here[["kit", "other", "ratio"]] > 0).all(axis=None)
    assert (here["ratio"] == here["kit"] / here["other"]).all()
    assert "ready batches of 16" in "".join(timed.index)
    assert "texts of 8 prompts" in timed.index[8]
    assert "re-ranking 40 queries" in timed.index[9]
    assert timed.iloc[9][["kit_mb", "other_mb"]].tolist() == [1, 9]
    assert timed[["kit_mb", "other_mb"]].isna().all(axis=1).sum() == len(timed) - 1
    assert len(timed) == (15 if torch.cuda.is_available() else 10)


@pytest.mark.slow  # torch has to be imported again
def test_the_memory_of_a_way_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(rerank, "QUERIES", 1500)
    held = np.ones(1 << 28, dtype=np.uint8)  # of this process, and none of the other's business
    most = rerank._peak_elsewhere("dense")
    assert len(held) and 3 * 2500**2 * 4 / 1e6 < most < 10 * 2500**2 * 4 / 1e6


def test_dense_re_ranking_is_that_of_the_kit():
    query, gallery = rerank._features(60, 40, 16)
    ours = rerank.k_reciprocal(query, gallery, 7, 4, 0.2)
    np.testing.assert_allclose(rerank.dense(query, gallery, 7, 4, 0.2), ours, atol=1e-5)


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
def small(tmp_path_factory):
    """The rows of a GPU, timed where none is: on a tiny tower, nothing compiled."""
    patch = pytest.MonkeyPatch()
    patch.setattr(gpu, "TOWER", Model(name="tiny", pretrained=""))
    sizes = {"IMAGES": 16, "PERSONS": 4, "SIDE": 112, "BATCH": 8, "EPOCHS": 1, "_MATRIX": 256}
    for name, size in sizes.items():
        patch.setattr(gpu, name, size)
    patch.setattr(torch, "compile", lambda function, dynamic: function)
    yield tmp_path_factory.mktemp("bench")
    patch.undo()


def test_the_rows_of_a_gpu_work_in_their_order(small):
    timed = {}
    for row in gpu.rows(table.load(study="smoke"), small):
        timed[row.name] = table._timed(row, 1)
        assert len(timed) > 1 or (small / "history.csv").is_file(), "the stage runs first"
    assert len(timed) == 5 and all(kit > 0 and rate > 0 for kit, *_, rate in timed.values())


@pytest.fixture(scope="module")
def trainer(small):
    p = training.in_precision(table.load(study="smoke"), "32-true")
    settings = p.stage2.model_copy(update={"batch_size": 8})
    return training.make_trainer(p, settings, gpu._noise(p), small)


def test_ready_batches_are_those_of_the_stage(trainer):
    sizes = [len(images) for images, _ in trainer.ready]
    assert sizes == [len(batch) for batch in trainer.batches]
    training.data_path("x", trainer, "")  # compares the losses
    other = [(images.roll(1, 0), labels) for images, labels in trainer.ready]
    with pytest.raises(AssertionError, match="other batches"):
        training.data_path("x", dataclasses.replace(trainer, ready=other), "")


def test_both_ways_train(trainer):
    for steps in (trainer.from_pixels, trainer.from_batches):
        before = [x.detach().clone() for x in trainer.recipe.learner.parameters()]
        steps()
        after = trainer.recipe.learner.parameters()
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
