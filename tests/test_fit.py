"""The one training loop: what it sums, logs, chooses and keeps; and that a kill changes nothing."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import pandas as pd
import pytest
import torch
import toy_training as toy
from torch import nn

from handclip_lib.device import seed_step
from handclip_lib.schema_train import Training
from handclip_lib.train import fit as loop
from handclip_lib.train import resume
from handclip_lib.train.fit import Recipe, fit, read_history

SHORT = toy.SETTINGS.model_copy(update={"epochs": 3, "ema": 0.0, "accumulate": 1})


def told(**changes) -> Training:
    return SHORT.model_copy(update=changes)


def state_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in recipe.learner.state_dict().items() if n != "seen"}


def far(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[n].detach() - two[n].detach()).double().abs().max()) for n in one)


def last(recipe: Recipe) -> Recipe:
    """The same training without selection."""
    return replace(recipe, select="", validate=None)


# --- kills and repeats ------------------------------------------------------------------------


def test_a_training_killed_six_times_ends_as_one_that_never_was(tmp_path):
    recipe = toy.make()
    untouched = toy.train(recipe, tmp_path / "whole")
    killed = tmp_path / "killed"
    run = subprocess.run(
        [sys.executable, toy.__file__, str(killed)], capture_output=True, text=True, timeout=120
    )
    assert not run.returncode, run.stderr
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert outcome["signals"] == [9] * len(toy.KILLS) + [0]
    assert run.stdout.count("goes on after epoch") >= len(toy.KILLS) - 1
    both = [(folder / "history.csv").read_bytes() for folder in (tmp_path / "whole", killed)]
    assert both[0] == both[1]
    assert outcome["weights"] == toy.digest(recipe.learner)
    assert len(untouched) == 12 and untouched["step"].iloc[-1] == 72
    assert not list(killed.glob("checkpoints/*")) and not list(killed.glob("*.part"))


def test_the_same_seed_repeats_and_another_differs(tmp_path):
    frames, weights = [], []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        recipe = toy.make(seed=seed)
        frames.append(toy.train(recipe, tmp_path / name, told()))
        weights.append(toy.digest(recipe.learner))
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert weights[0] == weights[1] != weights[2]
    assert (frames[0]["total"] != frames[2]["total"]).all()


def test_seeds_of_a_step_reach_every_generator():
    def draws(seed: int, step: int) -> tuple[float, float, float]:
        seed_step(seed, step)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draws(0, 5)
    assert draws(0, 5) == first
    for other in (draws(0, 6), draws(1, 5), draws(5, 0)):
        assert all(a != b for a, b in zip(first, other, strict=True))


def test_what_a_step_draws_depends_on_its_number_alone(tmp_path):
    recipe, drawn = toy.make(), []

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return recipe.step(rows)

    wasteful = replace(recipe, step=step, begin_epoch=lambda _: torch.rand(3))
    toy.train(wasteful, tmp_path, told(accumulate=2))
    for k in (0, 1, 13, 35):
        seed_step(0, k)
        assert drawn[k] == (random.random(), float(np.random.rand()), float(torch.rand(())))


class Stopped(Exception):
    """Ends a training in the middle, as a kill would, but inside this process."""


def stopping(recipe: Recipe, epoch: int) -> Recipe:
    def begin_epoch(now: int) -> None:
        if now == epoch:
            raise Stopped

    return replace(recipe, begin_epoch=begin_epoch)


def test_only_a_readable_file_of_the_same_training_is_gone_on_from(tmp_path, capsys):
    expected = toy.make()
    toy.train(expected, tmp_path / "whole", told())
    file = tmp_path / "checkpoints" / "toy.resume.pt"
    damages: dict[str, Callable[[], object]] = {
        "goes on after epoch 2": lambda: None,
        "of other parameters": lambda: resume.write_state(file, "other 0", {}),
        "cannot be read": lambda: file.write_bytes(file.read_bytes()[:200]),
        "its best weights are gone": lambda: file.with_name("toy.best.pt").unlink(),
    }
    for words, damage in damages.items():
        with pytest.raises(Stopped):
            toy.train(stopping(toy.make(), 3), tmp_path, told())
        damage()
        capsys.readouterr()
        recipe = toy.make()
        toy.train(recipe, tmp_path, told())
        said = capsys.readouterr().out.strip()
        assert words in said and "\n" not in said
        assert toy.digest(recipe.learner) == toy.digest(expected.learner)
        assert not list((tmp_path / "checkpoints").iterdir())


def test_files_to_go_on_from_are_at_least_save_seconds_apart(tmp_path):
    with pytest.raises(Stopped):
        toy.train(stopping(toy.make(), 3), tmp_path, told(save_seconds=1000.0))
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["toy.best.pt"]


# --- what is chosen ---------------------------------------------------------------------------


def test_the_best_weights_are_read_from_their_file(tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    recipe = toy.make()
    scores = iter([0.9, 0.2, 0.9, 0.1])

    def validate(scored: nn.Module) -> dict[str, float]:
        assert not scored.training
        seen.append({n: v.clone() for n, v in scored.state_dict().items() if n != "seen"})
        return {"score": next(scores)}

    history = toy.train(
        replace(recipe, validate=validate, select="score"), tmp_path, told(epochs=4)
    )
    assert history["score"].tolist() == [0.9, 0.2, 0.9, 0.1]
    assert far(state_of(recipe), seen[2]) == 0, "the last of the best is chosen"
    assert far(state_of(recipe), seen[3]) > 0 and not recipe.learner.training

    def altered(path: Path, key: str, state: dict) -> Path:
        if "best" in path.name:
            blank = {n: torch.zeros_like(v) for n, v in state["learner"].items()}
            state = state | {"learner": blank}
        return resume.write_state(path, key, state)

    monkeypatch.setattr(loop, "write_state", altered)
    recipe = toy.make()
    toy.train(recipe, tmp_path / "altered", told())
    assert all(not value.any() for value in recipe.learner.state_dict().values())


def test_without_selection_the_last_weights_are_kept(tmp_path):
    recipe, scored = toy.make(), []
    chosen = replace(recipe, select="", validate=lambda m: scored.append(state_of(recipe)) or {})
    toy.train(chosen, tmp_path, told())
    assert far(state_of(recipe), scored[-1]) == 0 and len(scored) == 3
    assert not list((tmp_path / "checkpoints").iterdir())


def test_patience_counts_validations(tmp_path):
    values = iter([1.0, 3.0, 2.0, 3.0, 9.0])
    recipe = replace(toy.make(), validate=lambda _: {"v": next(values)}, select="v")
    settings = told(epochs=20, patience=2, validate_every=2)
    history = toy.train(recipe, tmp_path, settings)
    assert history["epoch"].tolist() == list(range(1, 9))
    assert history["v"].dropna().tolist() == [1.0, 3.0, 2.0, 3.0]
    assert history["v"].isna().tolist() == [True, False] * 4
    ignored = replace(toy.make(), select="")
    assert len(toy.train(ignored, tmp_path / "b", told(patience=1))) == 3


def test_the_last_epoch_is_always_validated(tmp_path):
    history = toy.train(toy.make(), tmp_path, told(validate_every=2))
    assert history["nearness"].isna().tolist() == [True, False, False]


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    recipe = replace(toy.make(), validate=lambda _: {"nearness": float("nan")})
    with pytest.raises(FloatingPointError, match="nearness is nan"):
        toy.train(recipe, tmp_path, told())


def test_averaged_weights_follow_their_formula_and_are_what_is_kept(tmp_path):
    """Without EMA the weights after each step; then their average, by timm's warmed-up decay."""
    steps: list[dict[str, torch.Tensor]] = []
    plain = toy.make()

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        steps.append({n: p.detach().clone() for n, p in plain.learner.named_parameters()})
        return plain.step(rows)

    toy.train(last(replace(plain, step=step)), tmp_path / "plain", told())
    steps.append({n: p.detach().clone() for n, p in plain.learner.named_parameters()})
    average = dict(steps[0])
    for k, now in enumerate(steps[1:], 1):
        decay = min(0.9, 1 - k ** (-2 / 3)) if k > 1 else 0.0
        average = {n: decay * average[n] + (1 - decay) * now[n] for n in now}
    kept = toy.make()
    toy.train(last(kept), tmp_path / "ema", told(ema=0.9))
    weights = dict(kept.learner.named_parameters())
    assert far(average, {n: weights[n].detach() for n in average}) < 1e-5
    assert far(average, steps[-1]) > 1e-3


def test_averaged_weights_are_scored_and_chosen(tmp_path):
    recipe, scored, learnt = toy.make(), [], []

    def validate(module: nn.Module) -> dict[str, float]:
        scored.append({n: p.detach().clone() for n, p in module.named_parameters()})
        learnt.append({n: p.detach().clone() for n, p in recipe.learner.named_parameters()})
        return {"score": -abs(len(scored) - 2)}

    toy.train(replace(recipe, validate=validate, select="score"), tmp_path, told(ema=0.9))
    assert far(scored[1], dict(recipe.learner.named_parameters())) == 0
    assert min(far(a, b) for a, b in zip(scored, learnt, strict=True)) > 1e-4


# --- a step -----------------------------------------------------------------------------------


def large_batches(recipe: Recipe, sizes: list[int]) -> Recipe:
    def batches(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng(epoch).permutation(toy.IMAGES)
        return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])

    return last(replace(recipe, batches=batches))


@pytest.mark.parametrize(
    ("parts", "whole", "steps"), [([16, 16], [32], 1), ([8, 8, 12, 4, 16], [16, 16, 16], 3)]
)
def test_accumulated_batches_equal_one_large_one(parts, whole, steps, tmp_path):
    """The last group may be short, and batches may differ in size."""
    ends = []
    for sizes, accumulate in ((parts, 2), (whole, 1)):
        recipe = large_batches(toy.make(plain=True, noise=0.0, sgd=0.1), sizes)
        history = toy.train(recipe, tmp_path / str(accumulate), told(accumulate=accumulate))
        assert history["step"].tolist() == [steps, 2 * steps, 3 * steps]
        ends.append(state_of(recipe))
    assert far(*ends) < 1e-6 < far(ends[0], state_of(toy.make(plain=True)))


def test_gradients_are_clipped_before_the_step(tmp_path):
    moved = {}
    for clip in (0.5, 0.0):
        recipe = last(replace(toy.make(sgd=0.1), weights=lambda: {"ce": 1e4, "size": 1e4}))
        recipe = replace(recipe, batches=lambda epoch: [np.arange(toy.IMAGES)])
        before = {n: p.detach().clone() for n, p in recipe.learner.named_parameters()}
        settings = told(epochs=1, clip_norm=clip, warmup=0.0, schedule="constant")
        toy.train(recipe, tmp_path / str(clip), settings)
        after = dict(recipe.learner.named_parameters())
        moved[clip] = (
            sum(float((after[n].detach() - v).square().sum()) for n, v in before.items()) ** 0.5
        )
    assert moved[0.5] == pytest.approx(0.1 * 0.5, rel=1e-3) and moved[0.0] > 10


def test_total_is_the_weighted_sum_of_the_terms(tmp_path):
    history = toy.train(toy.make(), tmp_path, told())
    expected = sum(history[name] * weight for name, weight in toy.WEIGHTS.items())
    assert history["total"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-6)
    wanted = ["variant", "epoch", "step", "lr", "total", "ce", "size", "seen", "constant"]
    assert list(history) == [*wanted, "nearness", "other"]
    assert history["epoch"].tolist() == [1, 2, 3] and history["step"].tolist() == [12, 24, 36]
    assert history["seen"].tolist() == [6.5, 18.5, 30.5], "means of what each batch had"
    assert (history["constant"] == 0.25).all() and (history["variant"] == "toy").all()


def test_removing_a_loss_changes_what_is_learnt(tmp_path):
    ends = []
    for weights in (toy.WEIGHTS, toy.WEIGHTS | {"size": 0.0}, {"ce": 0.0, "size": 0.1}):
        recipe = last(replace(toy.make(), weights=lambda told=weights: told))
        toy.train(recipe, tmp_path / str(weights), told())
        ends.append(state_of(recipe))
    assert min(far(ends[0], ends[1]), far(ends[0], ends[2]), far(ends[1], ends[2])) > 1e-3


def test_weights_may_learn(tmp_path):
    recipe = toy.make()
    recipe.learner.doubt = nn.Parameter(torch.zeros(()))
    recipe.optimizer.add_param_group({"params": [recipe.learner.doubt], "lr": 0.1})
    weights = lambda: {"ce": torch.exp(-recipe.learner.doubt), "size": 0.1}  # noqa: E731
    toy.train(last(replace(recipe, weights=weights)), tmp_path, told())
    assert recipe.learner.doubt.item() > 0.1


def test_the_rate_of_each_group_follows_the_schedule(tmp_path):
    recipe, seen = toy.make(), []
    recipe.optimizer.param_groups[0]["lr"] = 5e-3  # half of settings.lr

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        seen.append(recipe.optimizer.param_groups[0]["lr"])
        return recipe.step(rows)

    settings = told(warmup=1 / 9, schedule="cosine", min_lr=0.0)
    history = toy.train(last(replace(recipe, step=step)), tmp_path, settings)
    assert seen[0] == pytest.approx(5e-5) and seen[4] == pytest.approx(5e-3)
    assert seen[20] == pytest.approx(2.5e-3) and seen[35] < 2e-5
    assert history["lr"].to_numpy() == pytest.approx(2 * np.array(seen)[[11, 23, 35]])


def test_epochs_of_other_lengths_end_at_the_schedules_end(tmp_path):
    recipe = toy.make()
    grows = lambda epoch: recipe.batches(epoch)[: 12 if epoch == 1 else 5]  # noqa: E731
    history = toy.train(last(replace(recipe, batches=grows)), tmp_path, told())
    assert history["step"].tolist() == [12, 17, 22]
    assert history["lr"].is_monotonic_decreasing and history["lr"].iloc[-1] < 1e-3


def test_frozen_parts_stay_after_train_is_called(tmp_path):
    recipe = toy.make()
    norm = recipe.learner.body[1]

    def begin_epoch(epoch: int) -> None:
        assert norm.training, "train() comes first"
        norm.eval()
        recipe.learner.body[0].requires_grad_(epoch > 2)

    still = {n: v.clone() for n, v in recipe.learner.body.state_dict().items()}
    moving = replace(last(recipe), begin_epoch=begin_epoch)
    toy.train(moving, tmp_path, told(epochs=2))
    now = recipe.learner.body.state_dict()
    for name in ("0.weight", "1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(now[name], still[name])
    assert not torch.equal(now["1.weight"], still["1.weight"])
    toy.train(moving, tmp_path, told(epochs=3))
    assert not torch.equal(recipe.learner.body[0].weight, still["0.weight"])


# --- errors -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named_with_its_batch(tmp_path):
    recipe, calls = toy.make(), []

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        calls.append(1)
        terms = recipe.step(rows)
        return terms | {"size": terms["size"] * (np.nan if len(calls) == 17 else 1.0)}

    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 17: size \(ce \d"):
        toy.train(replace(recipe, step=step), tmp_path, told())
    assert len(read_history(tmp_path, "toy")) == 1
    state = torch.load(tmp_path / "checkpoints" / "toy.resume.pt", weights_only=True)
    assert all(v.isfinite().all() for v in state["learner"].values())


def test_losses_are_looked_at_within_an_epoch(tmp_path):
    recipe, calls = toy.make(), []

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        calls.append(1)
        return {name: term * np.inf for name, term in recipe.step(rows).items()}

    long = replace(recipe, step=step, batches=lambda _: [np.arange(4)] * 1000)
    with pytest.raises(FloatingPointError, match="batch 1: ce, size"):
        toy.train(long, tmp_path, told())
    assert len(calls) <= 50


def test_a_parameter_that_the_optimizer_has_not_got_is_named(tmp_path):
    recipe = toy.make()
    optimizer = torch.optim.SGD(recipe.learner.body.parameters(), lr=0.1)
    with pytest.raises(AssertionError, match=r"classifier\.weight, classifier\.bias"):
        toy.train(replace(recipe, optimizer=optimizer), tmp_path, told())


def test_losses_and_weights_must_pair(tmp_path):
    for weights in ({"ce": 1.0}, toy.WEIGHTS | {"triplet": 1.0}):
        with pytest.raises(ValueError, match=r"\['size'\]|\['triplet'\]"):
            toy.train(replace(toy.make(), weights=lambda told=weights: told), tmp_path, told())
    with pytest.raises(ValueError, match="both a loss and a diagnostic.*ce"):
        toy.train(replace(toy.make(), diagnostics=lambda: {"ce": 1.0}), tmp_path, told())


def test_an_epoch_without_a_batch_says_so(tmp_path):
    with pytest.raises(ValueError, match="toy: no batch"):
        toy.train(replace(toy.make(), batches=lambda _: []), tmp_path, told())


def test_an_epoch_in_which_nothing_trains_says_so(tmp_path):
    recipe = toy.make()
    closed = replace(recipe, begin_epoch=lambda _: recipe.learner.requires_grad_(False))
    with pytest.raises(RuntimeError, match="nothing here trains"):
        toy.train(closed, tmp_path, told())


# --- history ----------------------------------------------------------------------------------


def test_rows_of_other_variants_stay_to_the_letter(tmp_path):
    (tmp_path / "history.csv").write_text(
        "variant,epoch,total,odd\nNA,1,0.10,7e-5\ntoy,1,9.0,\nNA,2,0.1000,x y\n"
    )
    history = toy.train(toy.make(), tmp_path, told())
    assert len(history) == 3 and "odd" not in history
    text = (tmp_path / "history.csv").read_text().splitlines()
    assert text[0].startswith("variant,epoch,total,odd,step,lr,ce")
    assert [line.rstrip(",") for line in text[1:3]] == ["NA,1,0.10,7e-5", "NA,2,0.1000,x y"]
    assert len(text) == 6
    pd.testing.assert_frame_equal(read_history(tmp_path, "toy"), history, check_exact=True)
    with pytest.raises(KeyError, match="no 'other', only"):
        read_history(tmp_path, "other")


def test_a_training_again_replaces_its_rows(tmp_path):
    first = toy.train(toy.make(), tmp_path, told())
    again = toy.train(toy.make(), tmp_path, told(epochs=2))
    assert len(first) == 3 and len(again) == len(pd.read_csv(tmp_path / "history.csv")) == 2


# --- devices and precision --------------------------------------------------------------------


def test_bf16_mixed_trains_and_keeps_float32_weights(tmp_path):
    fabric = lf.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    recipe, kinds = toy.make(), set()
    before = state_of(recipe)
    recipe.learner.body.register_forward_hook(lambda m, i, out: kinds.add(out.dtype))

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        with fabric.autocast():
            return recipe.step(rows)

    one = replace(last(recipe), step=step, batches=lambda _: [np.arange(toy.IMAGES)])
    history = fit(one, told(epochs=1), fabric, tmp_path)
    assert kinds == {torch.bfloat16} and np.isfinite(history["total"]).all()
    assert {p.dtype for p in recipe.learner.parameters()} == {torch.float32}
    assert far(before, state_of(recipe)) > 0


def test_the_device_is_not_waited_for_in_every_step(tmp_path, monkeypatch):
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, real=real: reads.append(1) or real(t))
    recipe = last(toy.make(sgd=0.01))
    long = replace(recipe, batches=lambda _: [np.arange(4)] * 40)
    toy.train(long, tmp_path, told(epochs=1, save_seconds=1000.0))
    assert 0 < len(reads) < 20
