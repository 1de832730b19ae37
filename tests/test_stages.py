"""Stages 1 and 2 on a tower of nothing: they learn, repeat, go on, and see no test person."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

from handclip_lib.data.splits import SplitError, make_manifest
from handclip_lib.losses import build_loss
from handclip_lib.params import load
from handclip_lib.schema import Params
from handclip_lib.schema_train import LossSpec, Stage2
from handclip_lib.train import job, selection, stages, training
from handclip_lib.train import learner as learners
from handclip_lib.train.job import study_encoder
from handclip_lib.train.selection import held_manifest

PERSONS, SHOTS = 20, 5
STUDY = {
    "data": {"dataset": "own"},
    "split": {"mode": "published", "select": "persons", "draws": 2},
    "model": {"name": "stage-vit", "pretrained": "random"},
    "baseline": {"beside": None},
    "device": {"accelerator": "cpu"},
}
FAST = {
    "epochs": 3, "batch_size": 16, "lr": 3e-3, "head_epochs": 1, "save_seconds": 0,
    "layer_decay": 1.0, "augment": {"erasing": 0.0, "degrees": 5.0},
}  # fmt: skip
CE = (LossSpec(type="cross_entropy"),)


def of(p: Params, losses: Sequence[LossSpec] = CE) -> Stage2:
    """Stage 2's settings with these losses."""
    return p.stage2.model_copy(update={"losses": tuple(losses)})


@pytest.fixture(scope="module", autouse=True)
def _config(tmp_path_factory: pytest.TempPathFactory) -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
    folder = tmp_path_factory.mktemp("configs")
    (folder / "stage-vit.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Persons are colours of four squares; a shot adds noise."""
    root, rng = tmp_path_factory.mktemp("hands"), np.random.default_rng(0)
    rows = []
    for pid in range(PERSONS):
        traits = rng.integers(40, 216, (2, 2, 3)).repeat(16, 0).repeat(16, 1)
        for shot in range(SHOTS):
            noisy = (traits + rng.normal(0, 25, traits.shape)).clip(0, 255).astype(np.uint8)
            name = f"{pid:02d}_{shot}.png"
            Image.fromarray(noisy).save(root / name)
            rows.append((name, pid, "dorsal_r", "own"))
    frame = pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset"])
    frame.attrs = {"root": str(root), "title": "squares"}
    return frame


@pytest.fixture(scope="module")
def manifest(table: pd.DataFrame) -> pd.DataFrame:
    return make_manifest(table, "dorsal_r", select="persons", draws=2)


def told(tmp_path: Path, **changes) -> Params:
    study = tmp_path / "squares.yaml"
    stage1 = FAST | changes.pop("stage1", {})
    stage2 = FAST | {"head_epochs": 0} | changes.pop("stage2", {})
    study.write_text(json.dumps(STUDY | {"stage1": stage1, "stage2": stage2} | changes))
    return load("dorsal_r", str(study))


@pytest.fixture
def train(table, manifest, tmp_path):
    """Stage 1 with changed settings in a folder of its own."""

    def run(name: str, rows: pd.DataFrame | None = None, **stage1) -> stages.Trained:
        p = told(tmp_path, stage1=stage1)
        rows = manifest if rows is None else rows
        return stages.stage1(p, table, rows, tmp_path / name)

    return run


def test_stage_1_learns_and_repeats_itself(train, tmp_path):
    long = {"epochs": 12}
    one, two = train("one", **long), train("two", **long)
    pd.testing.assert_frame_equal(one.history, two.history)
    assert one.encoder.weights_sha256 == two.encoder.weights_sha256
    total = one.history["total"]
    assert total.iloc[-1] < 0.6 * total.iloc[0]
    assert one.history["val_accuracy"].max() > 0.5
    saved = pd.read_csv(tmp_path / "one" / "history.csv")
    assert saved["variant"].eq("stage1").all() and len(saved) == 12
    assert {"cross_entropy", "total", "lr", "select_map"} <= set(saved)


def test_another_seed_gives_another_history(table, manifest, tmp_path, train):
    p = told(tmp_path)
    other = p.model_copy(update={"seed": 1})
    first = stages.stage1(p, table, manifest, tmp_path / "a")
    second = stages.stage1(other, table, manifest, tmp_path / "b")
    assert not first.history["total"].equals(second.history["total"])


def test_overfits_a_batch(train, manifest):
    few = manifest[manifest["split"] == "train"].groupby("pid").head(2).groupby("pid").head(2)
    few = few[few["pid"].isin(few["pid"].unique()[:4])]
    settings = {"epochs": 60, "batch_size": 8, "head_epochs": 0, "lr": 3e-3}
    plain = {"degrees": 0, "translate": 0, "scale": [1, 1], "colour": 0, "erasing": 0}
    losses = [{"type": "cross_entropy", "label_smoothing": 0.0}, {"type": "triplet"}]
    trained = train("few", few, **settings, augment=plain, losses=losses)
    last = trained.history.iloc[-1]
    assert last["cross_entropy"] < 0.05 and last["triplet"] < 0.05


def test_the_text_tower_stays_as_it_is(train, tmp_path):
    before = study_encoder(told(tmp_path)).state_dict()
    after = train("text").encoder.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert {k for k in before if ".visual." not in k} <= same
    assert "model.visual.proj" not in same


def test_heads_learn_first(train, tmp_path):
    """While only heads learn the tower's weights stay, bit for bit (LP-FT)."""
    start = study_encoder(told(tmp_path))
    trained = train("lp", epochs=2, head_epochs=2)
    assert trained.encoder.weights_sha256 == start.weights_sha256
    assert trained.history["total"].iloc[-1] < trained.history["total"].iloc[0]


def test_what_was_trained_is_taken_again_and_nothing_else(train, capsys):
    first = train("again")
    stamp = first.checkpoint.stat().st_mtime_ns
    again = train("again")
    assert "trained before" in capsys.readouterr().out
    assert again.checkpoint.stat().st_mtime_ns == stamp
    assert again.encoder.weights_sha256 == first.encoder.weights_sha256
    assert again.facts == first.facts
    pd.testing.assert_frame_equal(again.history, first.history)
    train("again", lr=1e-3)
    assert first.checkpoint.stat().st_mtime_ns != stamp


def test_selection_sees_training_persons_only(manifest):
    held = held_manifest(manifest)
    tested = set(manifest.loc[manifest["split"].isin(["query", "gallery"]), "pid"])
    trained = set(manifest.loc[manifest["split"] == "train", "pid"])
    assert held is not None and len(held)
    assert not set(held["pid"]) & (tested | trained)
    for _, rows in held.groupby("draw"):
        assert rows[rows["split"] == "gallery"]["pid"].is_unique
        assert set(rows["split"]) == {"query", "gallery"}
    only = set(held["pid"].unique()[:1])
    one = manifest[(manifest["split"] != "select") | manifest["pid"].isin(only)]
    assert held_manifest(one) is None


def test_that_too_few_are_held_out_is_said_once(manifest, monkeypatch, capsys):
    rows = manifest["split"] == "select"
    one = manifest[~rows | (manifest["pid"] == manifest.loc[rows, "pid"].iloc[0])]
    held = SimpleNamespace(images=["one.jpg"], pids=[7])
    monkeypatch.setattr(selection, "pictures", lambda *_: held)
    selection._say.cache_clear()
    for _ in range(2):  # two variants of a run
        _, column = selection.scorer(load(study="smoke"), one, None, None, None)
        assert column == ""
    assert capsys.readouterr().out.count("held out: 1 of the training persons, too few") == 1


def test_test_images_are_never_opened_in_training(train, table, manifest, monkeypatch):
    from handclip_lib.data.store import Store

    seen: set[str] = set()
    real = Store.pixels

    def watching(self, images):
        seen.update(images)
        return real(self, images)

    monkeypatch.setattr(Store, "pixels", watching)
    train("watched")
    tested = manifest.loc[manifest["split"].isin(["query", "gallery", "gallery_all"]), "image"]
    assert seen and not seen & set(tested)


def test_the_best_file_is_what_is_kept(train, monkeypatch):
    """Selection is made to fall from epoch to epoch: the first epoch's weights must come back."""
    real, states = training.scorer, []

    def falling(*args):
        validate, select = real(*args)

        def score(learner):
            states.append({k: v.clone() for k, v in learner.visual.state_dict().items()})
            return validate(learner) | {select: 1.0 / len(states)}

        return score, select

    monkeypatch.setattr(training, "scorer", falling)
    trained = train("best", epochs=3, head_epochs=0)
    kept = trained.encoder.visual.state_dict()
    assert all(torch.equal(kept[k], states[0][k]) for k in kept)
    assert not all(torch.equal(kept[k], states[-1][k]) for k in kept)
    assert trained.facts["chosen_epoch"] == 1


def test_stage_2_starts_from_stage_1(table, manifest, tmp_path, capsys):
    p, folder = told(tmp_path), tmp_path / "02_stage1"
    start = stages.stage1_weights(p, table, manifest, [folder])
    assert "training it first" in capsys.readouterr().out
    assert start == folder / "checkpoints" / "stage1.pth"
    assert stages.stage1_weights(p, table, manifest, [folder]) == start
    assert "training it first" not in capsys.readouterr().out
    losses = (LossSpec(type="cross_entropy"), LossSpec(type="triplet"), LossSpec(type="center"))
    run = tmp_path / "03"
    trained = stages.stage2(p, "three", of(p, losses), start, table, manifest, run)
    ce = stages.stage2(p, "ce", of(p), start, table, manifest, run)
    one = torch.load(start, weights_only=True)["sha256"]
    assert torch.load(trained.checkpoint, weights_only=True)["parent"] == one
    assert torch.load(ce.checkpoint, weights_only=True)["parent"] == one
    history = pd.read_csv(run / "history.csv")
    assert set(history["variant"]) == {"three", "ce"}
    three = history[history["variant"] == "three"]
    assert three[["cross_entropy", "triplet", "center"]].notna().all(axis=None)


def test_a_named_start_that_is_missing_is_an_error(table, manifest, tmp_path):
    p = told(tmp_path, stage2={"resume_from": str(tmp_path / "nothing.pth")})
    with pytest.raises(FileNotFoundError, match="stage2.resume_from: no file"):
        stages.stage1_weights(p, table, manifest, [tmp_path / "x"])


def test_save_dir_gets_the_weights_too(table, manifest, tmp_path, train):
    p = told(tmp_path, stage2={"save_dir": str(tmp_path / "kept"), "epochs": 1})
    start = train("start", epochs=1).checkpoint
    trained = stages.stage2(p, "ce", of(p), start, table, manifest, tmp_path / "r")
    kept = tmp_path / "kept" / "squares_dorsal_r_seed0_ce.pth"
    assert kept.read_bytes() == trained.checkpoint.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": {"type": "hard", "refresh": 1}, "losses": [{"type": "supcon"}]},
        {"sampler": {"type": "pk"}, "augment": {"mixup": 0.4, "mix": 1.0},
         "losses": [{"type": "cross_entropy"}, {"type": "triplet"}]},
        {"augment": {"cutmix": 1.0, "mix": 1.0}},
        {"projection": 8, "losses": [{"type": "supcon", "on": ["head"]}]},
        {"losses": [{"type": "arcface"}, {"type": "center"}]},
        {"loss_balance": "uncertainty", "losses": [{"type": "cross_entropy"}, {"type": "center"}]},
        {"ema": 0.9, "accumulate": 2, "optimizer": "adam", "schedule": "one_cycle"},
        {"gradual": {"start": 1, "every": 1}, "head_epochs": 0},
    ],
    ids=lambda s: "+".join(s),
)  # fmt: skip
def test_settings_train(train, settings):
    trained = train("some", **settings)
    terms = [name for name in ("cross_entropy", "triplet", "supcon") if name in trained.history]
    assert len(trained.history) == 3 and np.isfinite(trained.history["total"]).all()
    assert terms or "arcface" in trained.history


def test_hard_batches_look_at_the_identities_anew(train, monkeypatch):
    from handclip_lib.train import recipe

    looked = []
    real = recipe.nearest_identities
    monkeypatch.setattr(recipe, "nearest_identities", lambda *a: looked.append(1) or real(*a))
    losses = [{"type": "supcon"}]
    train("hard", epochs=5, sampler={"type": "hard", "refresh": 2}, losses=losses)
    assert len(looked) == 3


def test_a_loss_without_gradient_is_found_before_training():
    criterion = build_loss([{"type": "cross_entropy"}, {"type": "triplet"}], 5, 8)
    dims = {"penult": 8, "pool": 8, "proj": 8}
    before = {k: v.clone() for k, v in criterion.state_dict().items()}
    learners.check_losses(criterion, dims, 5)
    after = criterion.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "the check leaves no trace"

    real = type(criterion).forward

    def cut(self, features, *args, **kwargs):
        return real(self, {**features, "proj": features["proj"].detach()}, *args, **kwargs)

    criterion.forward = cut.__get__(criterion)
    with pytest.raises(RuntimeError, match="no gradient to proj"):
        learners.check_losses(criterion, dims, 5)


def test_features_do_not_depend_on_batch_mates(table, manifest, train, tmp_path):
    from handclip_lib.data.store import open_store

    encoder = train("mates").encoder
    store = open_store(table, encoder.preprocess)
    x = encoder.preprocess.normalise(store.pixels(table["image"][:6].tolist()))
    with torch.no_grad():
        together, alone = encoder.features(x), encoder.features(x[:1])
    for a, b in zip(together[:3], alone[:3], strict=True):
        assert torch.allclose(a[:1], b, atol=1e-6)


def test_a_kill_before_the_weights_are_kept_costs_no_epoch(train, monkeypatch, tmp_path):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train("late", epochs=4)
    left = {f.name for f in (tmp_path / "late" / "checkpoints").glob("*.pt")}
    assert left == {"stage1.best.pt", "stage1.resume.pt"}
    epochs = []
    real = training.make_recipe

    def counting(*args):
        recipe = real(*args)
        was = recipe.begin_epoch
        object.__setattr__(recipe, "begin_epoch", lambda e: epochs.append(e) or was(e))
        return recipe

    monkeypatch.setattr(training, "make_recipe", counting)
    again, whole = train("late", epochs=4), train("whole", epochs=4)
    assert epochs == [4, 1, 2, 3, 4], "the last epoch alone is trained again"
    assert again.encoder.weights_sha256 == whole.encoder.weights_sha256
    assert not list((tmp_path / "late" / "checkpoints").glob("*.pt"))


def test_weights_that_were_taught_a_test_person_are_refused(train, table, manifest, tmp_path):
    start = train("taught", epochs=1).checkpoint
    halves = manifest["split"].map(
        {"train": "query", "val": "gallery", "select": "train", "query": "val"}
    )
    other = manifest.assign(split=halves.fillna("train"))
    p = told(tmp_path, stage2={"epochs": 1})
    with pytest.raises(SplitError, match=r"taught persons who are tested or held out here: 1, 2, "):
        stages.stage2(p, "ce", of(p), start, table, other, tmp_path / "leak")
    assert not (tmp_path / "leak" / "checkpoints" / "ce.pth").exists()
    foreign = tmp_path / "foreign.pth"
    torch.save(torch.load(start, weights_only=True)["state_dict"], foreign)
    stages.stage2(p, "ce", of(p), foreign, table, manifest, tmp_path / "foreign")


def test_what_is_taught_is_carried_on(train, table, manifest, tmp_path):
    start = train("first", epochs=1).checkpoint
    p = told(tmp_path, stage2={"epochs": 1})
    rows = manifest[~manifest["pid"].isin(manifest["pid"].unique()[:2])]
    trained = stages.stage2(p, "ce", of(p), start, table, rows, tmp_path / "next")
    before, after = (
        torch.load(f, weights_only=True)["taught"] for f in (start, trained.checkpoint)
    )
    assert after == before and len(next(iter(before.values()))) > 5


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"stage1": {"save_seconds": 5}}, True),
        ({"evaluation": {"bootstrap": 100}}, True),
        ({"stage1": {"lr": 1e-4}}, False),
        ({"stage1": {"augment": {"degrees": 6}}}, False),
        ({"stage1": {"losses": [{"type": "cross_entropy", "label_smoothing": 0.2}]}}, False),
        ({"device": {"accelerator": "cpu", "training": "bf16-mixed"}}, False),
    ],
    ids=str,
)
def test_a_key_says_what_decides_the_weights_and_nothing_else(
    change, same, table, manifest, tmp_path
):
    def key(rows: pd.DataFrame = manifest, **more) -> str:
        return stages._stage1(told(tmp_path, **more), table, rows, Path()).key

    changed = {k: v for k, v in change.items()}
    assert (key(**changed) == key()) == same
    other_gallery = manifest[(manifest["split"] != "query") | (manifest["draw"] == 0)]
    assert key(other_gallery) == key(), "galleries decide no weights"
    assert key(manifest[manifest["image"] != manifest["image"].iloc[0]]) != key()


def test_a_key_knows_the_code_that_decides_weights_and_no_other(monkeypatch):
    real, read = Path.read_bytes, set[str]()

    def watched(path: Path) -> bytes:
        read.add(f"{path.parent.name}/{path.name}")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    job._code_sha256()
    assert {"data/augment.py", "train/fit.py", "evaluate/embed.py", "losses/term.py"} <= read
    assert not {"data/spoil.py", "evaluate/robustness.py", "report/plan.py"} & read


def test_a_key_knows_the_activation_and_the_normalisation(table, manifest, tmp_path):
    from dataclasses import replace

    job = stages._stage1(told(tmp_path), table, manifest, Path())
    plain = job.key
    usual = job.encoder.preprocess
    job.encoder.preprocess = replace(usual, mean=(0.5, 0.5, 0.5))
    assert job.key != plain
    job.encoder.preprocess = usual
    job.encoder.model_cfg = job.encoder.model_cfg | {"quick_gelu": True}
    assert job.key != plain


def test_patience_does_not_count_epochs_of_the_closed_tower(train):
    trained = train("patient", epochs=6, head_epochs=3, patience=2)
    assert len(trained.history) >= 5


def test_a_batch_too_small_to_mix_is_said(train):
    losses = [{"type": "cross_entropy"}, {"type": "triplet"}]
    small = {"sampler": {"type": "pk"}, "batch_size": 8, "augment": {"mixup": 0.4, "mix": 1.0}}
    with pytest.raises(ValueError, match="batch_size 16 or more"):
        train("small", losses=losses, **small)


def test_learnt_weights_of_losses_move_at_fine_tuning_rates(train, tmp_path, monkeypatch):
    """And proxies of the library turn: neither may stay where it started for all 40 epochs."""
    moved = {}
    real = training.make_recipe

    def watching(job, learner, *args):
        moved["criterion"] = learner.criterion
        return real(job, learner, *args)

    monkeypatch.setattr(training, "make_recipe", watching)
    losses = [{"type": "cross_entropy"}, {"type": "ProxyAnchorLoss"}]
    settings = {"lr": 5e-6, "head_epochs": 0, "epochs": 40}
    before = build_loss(losses, 8, {"penult": 32, "pool": 32, "proj": 16}, "uncertainty")
    assert before.terms["ProxyAnchorLoss"].parts["proj"].loss.proxies.std() < 0.02
    train("slow", loss_balance="uncertainty", losses=losses, **settings)
    assert moved["criterion"].balance.s.abs().max() > 0.1
