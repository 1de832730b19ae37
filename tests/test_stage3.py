"""Stage 3 on towers of nothing: the text side trains, guides, and leaves no trace in the test."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hands as toy
from PIL import Image

from handclip_lib import params
from handclip_lib.data.drawn.dataset import MARKER, draw_dataset
from handclip_lib.data.splits import make_manifest
from handclip_lib.data.store import open_store
from handclip_lib.data.tables import read_11k
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.models.checkpoint import save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder, sha256_of
from handclip_lib.models.prompts import PromptLearner
from handclip_lib.models.promptsg import Composer
from handclip_lib.params import ParamError, load
from handclip_lib.schema import Params
from handclip_lib.schema_train import Stage3b
from handclip_lib.train import guide as guides
from handclip_lib.train import job as jobs
from handclip_lib.train import prompting, stages, training
from handclip_lib.train.guide import Guide, composed
from handclip_lib.train.job import Trained, study_encoder
from handclip_lib.train.prompting import Learnt
from handclip_lib.train.terms import weighted_total

PERSONS, SHOTS = 20, 5
STUDY = {
    "data": {"dataset": "own"},
    "split": {"mode": "published", "select": "persons", "draws": 2},
    "model": {"name": "toy-vit", "pretrained": "random"},
    "baseline": {"beside": None},
    "device": {"accelerator": "cpu"},
}
LEARN = {"epochs": 4, "batch_size": 16, "lr": 1e-2, "save_seconds": 0}
TUNE: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "lr": 1e-3, "head_lr": 3.0, "save_seconds": 0,
    "layer_decay": 1.0, "schedule": "constant", "warmup": 0,
    "augment": {"erasing": 0.0, "degrees": 5.0},
}  # fmt: skip
BY_IMAGE = {"cross_entropy": 0.25, "triplet": 1.0}  # what stage 3b's own losses weigh
FUSED = [
    {"type": "cross_entropy", "on": ["pool_bn", "fused_bn"]},
    {"type": "triplet", "on": ["penult", "pool", "fused"]},
]
PSEUDO = {"text": "pseudo", "template": "a photo of a {person} hand.", "i2t": 0.5, "t2i": 0.25}
PROMPTSG = PSEUDO | {"interact": True, "losses": FUSED}
FROZEN = {"text": "none", "unfreeze_blocks": 0, "weight_decay": 0.0}
# settings of stage 3b, and what each of its losses weighs
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "prompts": ({"text": "prompts", "i2t": 0.5}, BY_IMAGE | {"i2t": 0.5}),
    "dot": (
        {"text": "prompts", "similarity": "dot", "t2i": 0.3, "losses": []},
        {"i2t": 1.0, "t2i": 0.3},
    ),
    "attributes": ({"text": "attributes", "t2i": 2.0}, BY_IMAGE | {"i2t": 1.0, "t2i": 2.0}),
    "number": ({"text": "number", "losses": []}, {"i2t": 1.0}),
    "promptsg": (PROMPTSG, {"cross_entropy": 1.0, "triplet": 1.0, "i2t": 0.5, "t2i": 0.25}),
    "clip_handid": (PSEUDO | {"style": "clip_handid"}, BY_IMAGE | {"i2t": 0.5, "t2i": 0.25}),
    "vpt": (FROZEN | {"adapt": {"prompts": 3}}, BY_IMAGE),
    "lora": (FROZEN | {"adapt": {"lora": 2}}, BY_IMAGE),
    "aspect": ({"text": "none", "adapt": {"view": "aspect"}}, BY_IMAGE),
    "camera": ({"text": "number", "adapt": {"view": "camera", "lora": 2}}, BY_IMAGE | {"i2t": 1.0}),
}


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    toy.small_towers(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return toy.squares(tmp_path_factory.mktemp("hands"), PERSONS, SHOTS)


@pytest.fixture(scope="module")
def manifest(table: pd.DataFrame) -> pd.DataFrame:
    return make_manifest(table, "dorsal_r", select="persons", draws=2)


def told(folder: Path, seed: int = 0, **changes: Any) -> Params:
    study = folder / "squares.yaml"
    stage3a = LEARN | changes.pop("stage3a", {})
    study.write_text(json.dumps(STUDY | {"stage3a": stage3a} | changes))
    return load("dorsal_r", str(study), seed=seed)


def settings_of(**changes: Any) -> Stage3b:
    return Stage3b.model_validate(TUNE | changes)


@pytest.fixture(scope="module")
def learnt(table, manifest, tmp_path_factory) -> Learnt:
    """What a few epochs of stage 3a leave; tests look at it only."""
    folder = tmp_path_factory.mktemp("learnt")
    return stages.stage3a(told(folder), None, table, manifest, folder)


@pytest.fixture
def learn(table, manifest, tmp_path) -> Callable[..., Learnt]:
    """Stage 3a with changed settings in a folder of its own."""

    def run(name: str, rows: pd.DataFrame = table, start: Path | None = None, **more) -> Learnt:
        top = {key: more.pop(key) for key in ("seed", "model") if key in more}
        p = told(tmp_path, stage3a=more, **top)
        return stages.stage3a(p, start, rows, manifest, tmp_path / name)

    return run


@pytest.fixture
def tune(table, manifest, tmp_path, learnt) -> Callable[..., Trained]:
    """Stage 3b with changed settings in a folder of its own, against the prompts of `learnt`."""

    def run(name: str, rows: pd.DataFrame = table, model: str = "toy-vit", **more) -> Trained:
        p = told(tmp_path, model={"name": model, "pretrained": "random"})
        args = (p, name, settings_of(**more), None, learnt, rows, manifest, tmp_path / name)
        return stages.stage3b(*args)

    return run


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in module.named_parameters()}


@pytest.fixture
def fits(monkeypatch) -> list[SimpleNamespace]:
    """Each training from here on: its learner, with the parameters `before` and `after`."""
    seen: list[SimpleNamespace] = []

    def watched(real: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        def fit(recipe, *args):
            seen.append(one := SimpleNamespace(recipe=recipe, before=tensors(recipe.learner)))
            history = real(recipe, *args)
            one.after = tensors(recipe.learner)
            return history

        return fit

    for module in (training, prompting):
        monkeypatch.setattr(module, "fit", watched(module.fit))
    return seen


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """How many images each call of an image tower saw from here on."""
    calls: list[int] = []

    def encoder(p: Params) -> Encoder:
        made = study_encoder(p)
        made.visual.conv1.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
        return made

    monkeypatch.setattr(jobs, "study_encoder", encoder)
    return calls


def hash_of_text(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {n: v for n, v in encoder.model.state_dict().items() if not n.startswith("visual.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# Stage 3a


def test_prompts_learn_while_the_image_tower_rests(learn, looks, fits, monkeypatch):
    during: list[int] = []
    real = prompting.fit

    def counting(*args):
        start = len(looks)
        history = real(*args)
        during.append(len(looks) - start)
        return history

    monkeypatch.setattr(prompting, "fit", counting)
    one = learn("one", seed=11, epochs=12)  # a tower of this seed: its features are in no cache
    assert sum(looks) == one.facts["images"] + len(one.pids), "train and val, each image once"
    assert during == [0]
    moved = (fits[0].after["ctx"] - fits[0].before["ctx"]).abs().amax(dim=(0, 2, 3))
    assert (moved > 1e-3).all(), "every identity's words move"
    assert set(fits[0].after) == {"ctx"}
    assert one.history["i2t"].iloc[-1] < 0.8 * one.history["i2t"].iloc[0]
    assert one.facts["trained_parameters"] == one.prompts.ctx.numel()
    assert one.facts["train_i2t"] > 0.5, "of eight persons"
    assert 0 <= one.facts["val_i2t"] <= 1 and one.history["val_i2t"].notna().all()


def test_towers_stay_as_they_are_in_3a(learn, monkeypatch):
    held: list[tuple[Encoder, str]] = []

    def encoder(p: Params) -> Encoder:
        made = study_encoder(p)
        held.append((made, made.weights_sha256))
        return made

    monkeypatch.setattr(jobs, "study_encoder", encoder)
    one = learn("one", init="image", prompts=2, dropout=0.2, lr=0.1, epochs=2)
    (found, before), *_ = held
    assert found.weights_sha256 == before
    assert all(w.grad is None for w in found.parameters())
    one.prompts.requires_grad_().forward().sum().backward()
    assert (one.prompts.ctx.grad.abs().amax(dim=3) > 0).all(), "through the frozen text tower"
    assert all(w.grad is None for w in found.parameters())


def test_texts_of_two_identities_differ_from_the_start(learnt):
    assert learnt.before.shape == learnt.after.shape == (len(learnt.pids), 16)
    for rows in (learnt.before, learnt.after):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
        assert torch.pdist(rows).min() > 1e-5
    near = [(rows * learnt.images).sum(dim=1).mean() for rows in (learnt.before, learnt.after)]
    assert near[1] > near[0] + 0.1, "a text comes near its owner's images"
    assert torch.allclose(torch.nn.functional.normalize(learnt.raw, dim=1), learnt.after, atol=1e-6)


def test_what_was_learnt_is_taken_again_and_nothing_else(learn, fits, capsys):
    first, again = learn("one"), learn("one")
    assert "learnt before" in capsys.readouterr().out and len(fits) == 1
    assert torch.equal(first.prompts.ctx, again.prompts.ctx)
    for name in ("before", "after", "raw", "images"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.facts == again.facts
    pd.testing.assert_frame_equal(first.history, again.history)
    learn("one", n_ctx=5)
    assert len(fits) == 2


def test_a_killed_3a_goes_on_where_it_was(learn, monkeypatch, capsys):
    settings = {"epochs": 5, "dropout": 0.3, "prompts": 2, "init": "words"}
    whole = learn("whole", **settings)
    real = prompting.fit

    def killed(recipe, *args):
        steps: list[int] = []

        def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
            steps.append(1)
            if len(steps) > 3 * len(recipe.batches(1)):
                raise KeyboardInterrupt
            return recipe.step(batch)

        return real(replace(recipe, step=step), *args)

    with monkeypatch.context() as patch:
        patch.setattr(prompting, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            learn("killed", **settings)
    capsys.readouterr()
    again = learn("killed", **settings)
    assert "goes on after epoch 3" in capsys.readouterr().out
    assert torch.equal(again.prompts.ctx, whole.prompts.ctx)
    pd.testing.assert_frame_equal(again.history, whole.history)


def start_file(folder: Path, seed: int = 0) -> Path:
    """The study's tower as weights to start from, whatever the seed of what follows."""
    path = folder / f"start{seed}.pth"
    p = told(folder, seed=seed)
    more = {"facts": {}, "taught": {}}
    return save_checkpoint(path, study_encoder(p), p.model_dump(mode="json"), "", "", more)


def test_another_seed_gives_other_prompts_of_the_same_tower(learn, tmp_path):
    start = start_file(tmp_path)
    one, two = (learn(f"seed{seed}", start=start, seed=seed) for seed in (0, 1))
    assert torch.equal(one.images, two.images)
    assert not torch.allclose(one.before, two.before, atol=1e-3)
    assert not torch.allclose(one.prompts.ctx, two.prompts.ctx)
    assert not one.history["i2t"].equals(two.history["i2t"])


@pytest.mark.parametrize("init", ["words", "attributes", "image"])
def test_prompts_learn_from_any_start(learn, init, learnt):
    one = learn("some", init=init, n_ctx=6, template="{person}, {aspect}")
    assert one.history["total"].iloc[-1] < one.history["total"].iloc[0]
    assert one.prompts.ctx.shape == (1, len(one.pids), 6, 32)
    assert not torch.allclose(one.before, learnt.before, atol=1e-3)
    assert torch.pdist(one.before).min() > 1e-5


def test_attributes_without_their_column_are_an_error(learn, table):
    for missing in ("gender", "nailPolish"):
        with pytest.raises(ValueError, match=rf"need the columns {missing} of the metadata"):
            learn("none", table.drop(columns=missing), init="attributes")


def test_dot_compares_raw_features(learn, monkeypatch):
    seen = []
    real = prompting.cross_modal
    monkeypatch.setattr(prompting, "cross_modal", lambda *a: seen.append(a) or real(*a))
    one = learn("dot", similarity="dot", lr=3e-2)
    assert {told[6] for told in seen} == {"dot"}
    assert not torch.allclose(seen[0][1].norm(dim=1), torch.ones(1), atol=0.05), "raw texts"
    assert not torch.allclose(one.raw, one.after, atol=0.05)
    assert one.history["i2t"].iloc[-1] < one.history["i2t"].iloc[0]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_several_prompts_are_kept_apart_by_a_weighted_term(learn, weight):
    one = learn("two", prompts=2, diversity=weight)
    history = one.history
    assert one.prompts.ctx.shape[0] == 2
    total = history["i2t"] + history["t2i"] + weight * history["diversity"]
    np.testing.assert_allclose(history["total"], total, rtol=1e-5)
    assert (history["diversity"].abs() > 1e-3).all()
    plain = learn("one").history
    assert "diversity" not in plain
    np.testing.assert_allclose(plain["total"], plain["i2t"] + plain["t2i"], rtol=1e-5)


def test_the_diversity_term_does_something(learn):
    free, apart = (learn(f"w{w}", prompts=2, diversity=w, epochs=8) for w in (0.0, 20.0))
    with torch.no_grad():
        near, far = (PromptLearner.diversity(one.prompts.each()) for one in (free, apart))
    assert far < near - 0.01


def test_features_and_prompts_are_made_anew_for_other_towers_and_pixels(
    learn, looks, table, manifest, tmp_path
):
    start, count = start_file(tmp_path, seed=21), {}

    def seen(name: str, *args, **more) -> Learnt:
        before = sum(looks)
        one = learn("one", *args, epochs=1, **more)
        count[name] = sum(looks) - before
        return one

    first = seen("first", seed=22)
    seen("again", seed=22)
    weights = seen("weights", seed=22, start=start)
    model = {"name": "toy-vit", "pretrained": "random", "mirror_left": True}
    seen("preprocess", seed=22, model=model)
    changed = Path(tmp_path / "changed")
    changed.mkdir()
    other = manifest.loc[manifest["split"] == "train", "image"].iloc[0]
    for name in table["image"]:
        pixels = np.asarray(Image.open(Path(table.attrs["root"]) / name))
        Image.fromarray(255 - pixels if name == other else pixels).save(changed / name)
    moved = table.copy()
    moved.attrs = table.attrs | {"root": str(changed)}
    pixels = seen("pixels", moved, seed=22)
    images = first.facts["images"] + len(first.pids)
    assert count.pop("again") == 0
    assert set(count.values()) == {images}, count
    assert not torch.allclose(weights.images, first.images)
    assert (pixels.images != first.images).any(dim=1).sum() == 1, "one photograph is another"


def test_keys_follow_weights_preprocess_and_images(table, manifest, tmp_path):
    p, start = told(tmp_path), start_file(tmp_path, seed=3)

    def key(model: dict[str, Any] | None = None, start: Path | None = None, rows=manifest) -> str:
        asked = p if model is None else told(tmp_path, model=STUDY["model"] | model)
        job = jobs.job_of("prompts", asked.stage3a, asked, start, table, rows, tmp_path)
        return job.key

    fewer = manifest[
        manifest["image"] != manifest.loc[manifest["split"] == "train", "image"].iloc[0]
    ]
    keys = [key(), key({"mirror_left": True}), key({"fit": "pad"}), key(start=start)]
    keys.append(key(rows=fewer))
    assert key() == keys[0] and len(set(keys)) == len(keys)


def test_prompts_that_start_from_attributes_follow_the_metadata(learn, table, fits):
    learn("one", init="attributes")
    learn("one", table.assign(gender="female"), init="attributes")
    assert len(fits) == 2


# Stage 3b


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_is_taken_again(name, tune, fits, learnt, tmp_path, capsys):
    changes, weights = VARIANTS[name]
    one = tune(name, **changes)
    history = one.history
    assert weights.keys() <= set(history) and len(history) == TUNE["epochs"]
    total = sum(weight * history[term] for term, weight in weights.items())
    np.testing.assert_allclose(history["total"], total, rtol=1e-5)
    assert {"i2t", "t2i"} & set(history) == {"i2t", "t2i"} & weights.keys()
    assert same(hash_of_text(one.encoder), hash_of_text(study_encoder(told(tmp_path))))
    if changes["text"] == "prompts":
        assert one.guide is not None
        texts = learnt.raw if changes.get("similarity") == "dot" else learnt.after
        assert torch.equal(one.guide.bank, texts)
    (fitted,) = fits
    moved = {n for n, w in fitted.after.items() if not torch.equal(w, fitted.before[n])}
    assert one.facts["trained_parameters"] == sum(fitted.after[n].numel() for n in moved)
    capsys.readouterr()
    again = tune(name, **changes)
    assert "trained before" in capsys.readouterr().out and len(fits) == 1
    assert again.encoder.weights_sha256 == one.encoder.weights_sha256
    assert (again.guide is None) == (one.guide is None)
    if one.guide is not None and again.guide is not None:
        assert sha256_of(again.guide) == sha256_of(one.guide)
    kept = load_encoder(str(one.checkpoint))
    assert kept.weights_sha256 == one.encoder.weights_sha256


@pytest.mark.parametrize("name", ["promptsg", "clip_handid", "attributes"])
def test_texts_guide_a_resnet_too(name, tune, tmp_path):
    changes, weights = VARIANTS[name]
    one = tune(name, model="toy-rn", **changes)
    start = study_encoder(told(tmp_path, model={"name": "toy-rn", "pretrained": "random"}))
    assert weights.keys() <= set(one.history)
    assert same(hash_of_text(one.encoder), hash_of_text(start))
    assert not same(one.encoder.visual.state_dict(), start.visual.state_dict())


def test_visual_prompts_alone_learn(tune, fits, tmp_path):
    one = tune("vpt", **VARIANTS["vpt"][0])
    start = study_encoder(told(tmp_path))
    assert same(one.encoder.visual.state_dict(), start.visual.state_dict())
    assert one.encoder.adapter is not None
    prompts = one.encoder.adapter.prompts
    assert prompts is not None and prompts.shape == (2, 3, 32)
    assert not torch.equal(prompts, fits[0].before["adapter.prompts"])
    assert one.encoder.weights_sha256 != start.weights_sha256


def test_lora_learns_and_leaves_a_plain_tower(tune, fits, tmp_path, table):
    one = tune("lora", **VARIANTS["lora"][0])
    start = study_encoder(told(tmp_path))
    before, after = start.model.state_dict(), one.encoder.model.state_dict()
    assert one.encoder.adapter is None and after.keys() == before.keys()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(".resblocks." in n and n.endswith("weight") for n in changed)
    frozen = [n for n in fits[0].before if n.endswith(".original") or ".parametriz" not in n]
    tower = [n for n in frozen if n.startswith("visual.")]
    assert tower and all(torch.equal(fits[0].before[n], fits[0].after[n]) for n in tower)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(one.encoder.features(x).proj, start.features(x).proj, atol=1e-4)


def test_a_camera_is_told_where_it_is_known(tune, table):
    one = tune("camera", **VARIANTS["camera"][0])
    adapter = one.encoder.adapter
    assert adapter is not None and adapter.views == ("a", "b") and adapter.sie is not None
    assert (adapter.sie.abs().amax(dim=1) > 0).all(), "both cameras were trained with"
    assert (adapter.sie[0] - adapter.sie[1]).abs().max() > 1e-4, "each by its own photographs"
    with pytest.raises(ParamError, match=r"adapt.view camera needs this column"):
        tune("none", table.drop(columns="camera"), **VARIANTS["camera"][0])


def test_other_cameras_are_another_training(tune, table, fits):
    tune("camera", **VARIANTS["camera"][0])
    swapped = table.assign(camera=table["camera"].map({"a": "b", "b": "a"}))
    tune("camera", swapped, **VARIANTS["camera"][0])
    assert len(fits) == 2


def test_a_killed_3b_goes_on_where_it_was(tune, monkeypatch, capsys):
    adapt = {"prompts": 2, "prompt_dropout": 0.1, "lora": 1}
    settings = PROMPTSG | {"epochs": 3, "ema": 0.5, "adapt": adapt}
    whole, real = tune("whole", **settings), training.fit

    def killed(recipe, *args):
        steps: list[int] = []

        def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
            steps.append(1)
            if len(steps) > 2 * len(recipe.batches(1)):
                raise KeyboardInterrupt
            return recipe.step(batch)

        return real(replace(recipe, step=step), *args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            tune("killed", **settings)
    capsys.readouterr()
    again = tune("killed", **settings)
    assert "goes on after epoch 2" in capsys.readouterr().out
    assert again.encoder.weights_sha256 == whole.encoder.weights_sha256
    assert again.guide is not None and whole.guide is not None
    assert sha256_of(again.guide) == sha256_of(whole.guide)


@pytest.mark.parametrize(
    "losses", [[], [{"type": "cross_entropy"}], [{"type": "triplet"}]], ids=str
)
def test_texts_teach_where_images_are_mixed(losses, tune):
    mixing = TUNE["augment"] | {"mixup": 0.4, "mix": 1.0}
    one = tune("mixed", text="attributes", losses=losses, augment=mixing)
    assert (one.history["i2t"] > 0).all()


def test_prompts_teach_the_image_tower(tune, monkeypatch):
    """Without the text loss gradient and weights of the image tower are others."""
    grads: dict[str, torch.Tensor] = {}

    def first_step(recipe, *args):
        recipe.begin_epoch(1)
        torch.manual_seed(0)
        terms = recipe.step(recipe.batches(1)[0])
        weighted_total(terms, recipe.weights()).backward()
        grads[text] = recipe.learner.visual.conv1.weight.grad.clone()
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", first_step)
        for text in ("none", "prompts"):
            with pytest.raises(InterruptedError):
                tune("gradient", text=text)
    change = (grads["prompts"] - grads["none"]).norm() / grads["none"].norm()
    assert change > 0.05
    without, guided, again = tune("without", text="none"), tune("guided"), tune("guided2")
    assert without.guide is None and "i2t" not in without.history
    one, two, three = (x.encoder.visual.state_dict() for x in (without, guided, again))
    assert not torch.allclose(one["conv1.weight"], two["conv1.weight"], atol=1e-5)
    assert same(two, three), "the rest repeats itself"


@pytest.mark.parametrize("text", ["prompts", "attributes", "number", "pseudo"])
def test_texts_that_would_teach_nothing_are_refused(text):
    with pytest.raises(ValueError, match="i2t and t2i are both 0"):
        settings_of(text=text, i2t=0.0)


def test_dot_guides_by_raw_features(tune, learnt, monkeypatch):
    seen = []
    real = guides.cross_modal
    monkeypatch.setattr(guides, "cross_modal", lambda *a: seen.append(a) or real(*a))
    for text in ("prompts", "attributes", "pseudo"):
        seen.clear()
        tune(text, text=text, similarity="dot", epochs=1, losses=[])
        assert {told[6] for told in seen} == {"dot"}
        lengths = torch.cat([told[1].detach().norm(dim=1) for told in seen])
        assert (lengths - 1).abs().max() > 0.05, text


def test_prompts_need_stage_3a(table, manifest, tmp_path):
    p = told(tmp_path)
    with pytest.raises(ParamError, match="text prompts needs those of stage 3a"):
        stages.stage3b(p, "alone", settings_of(), None, None, table, manifest, tmp_path / "alone")


def test_prompts_of_other_persons_are_refused(table, manifest, tmp_path, learnt):
    """As many persons, one of them another: each prompt might be a neighbour's."""
    held = manifest[manifest["split"] == "select"]
    other = held[held["pid"] == held["pid"].iloc[0]].assign(split="train")
    taught = manifest[(manifest["split"] == "train") & (manifest["pid"] != learnt.pids[0])]
    rows = pd.concat([taught, other])
    assert rows["pid"].nunique() == len(learnt.pids)
    p, name = told(tmp_path), "others"
    with pytest.raises(ValueError, match="other training persons"):
        stages.stage3b(p, name, settings_of(), None, learnt, table, rows, tmp_path / name)


def test_fused_features_are_there_with_interaction_only(tune):
    losses = [{"type": "cross_entropy", "on": ["fused_bn"]}]
    for settings in (PSEUDO, {"text": "attributes"}, {"text": "none"}):
        with pytest.raises(ParamError, match="fused"):
            tune("plain", **settings | {"losses": losses})
    assert "cross_entropy" in tune("fused", **PROMPTSG | {"losses": losses}).history


def test_a_detached_text_is_found_before_training(tune, monkeypatch, fits):
    real = Composer.forward

    def cut(self, *args):
        text, fused = real(self, *args)
        return text.detach(), fused

    monkeypatch.setattr(Composer, "forward", cut)
    with pytest.raises(RuntimeError, match="no gradient to what makes the texts"):
        tune("text", **PROMPTSG)
    assert not fits


@pytest.mark.parametrize("name", ["prompts", "attributes", "number", "promptsg", "clip_handid"])
def test_a_detached_image_is_found_before_training(name, tune, monkeypatch, fits):
    real = Guide.forward

    def blind(self, features, *args):
        return real(self, features._replace(proj=features.proj.detach()), *args)

    monkeypatch.setattr(Guide, "forward", blind)
    with pytest.raises(RuntimeError, match="gradient to proj"):
        tune("image", **VARIANTS[name][0])
    assert not fits


@pytest.fixture
def asked(table, tmp_path) -> Callable[..., np.ndarray]:
    """Composed features of the photographs in these rows, by a trained stage 3b."""

    def run(trained: Trained, rows: pd.DataFrame = table, size: int = 64) -> np.ndarray:
        assert trained.guide is not None
        store = open_store(rows.assign(dataset="own"), trained.encoder.preprocess)
        fabric = make_fabric(told(tmp_path))
        names = rows["image"].tolist()
        return composed(trained.encoder, trained.guide, store, names, fabric, size)

    return run


def test_composed_features_are_of_one_image_alone(tune, asked, table):
    one = tune("promptsg", **PROMPTSG | {"epochs": 4, "lr": 3e-3})
    rows = table.iloc[:9]
    z = asked(one, rows)
    assert z.shape == (9, 16) and np.isfinite(z).all()
    for size in (1, 2, 7):
        np.testing.assert_allclose(asked(one, rows, size), z, atol=1e-5)
    np.testing.assert_allclose(asked(one, rows.iloc[::-1])[::-1], z, atol=1e-5)
    others = rows.assign(pid=rows["pid"].to_numpy()[::-1], gender="other", age=1)
    np.testing.assert_allclose(asked(one, others), z, atol=1e-6)
    x = open_store(table, one.encoder.preprocess).pixels(rows["image"].tolist())
    with torch.no_grad():
        proj = one.encoder.features(one.encoder.preprocess.normalise(x)).proj.numpy()
    assert np.abs(z - proj).max() > 1e-3, "the text has found something"
    assert np.abs(np.diff(z, axis=0)).max(axis=1).min() > 1e-3, "and not in all images the same"


def test_nothing_is_composed_without_interaction(tune, asked):
    for settings in (PSEUDO, {"text": "number"}):
        with pytest.raises(ValueError, match="set interact"):
            asked(tune("plain", epochs=1, **settings))


@pytest.mark.parametrize("name", ["prompts", "promptsg", "attributes"])
def test_no_label_and_no_text_reaches_the_features_of_a_test(
    name, tune, table, manifest, tmp_path, monkeypatch
):
    one = tune(name, **VARIANTS[name][0])
    names = manifest.loc[manifest["split"].isin(("query", "gallery")), "image"].unique().tolist()
    fabric = make_fabric(told(tmp_path))
    z = embed(one.encoder, open_store(table, one.encoder.preprocess), names, fabric)
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path / "cache"))  # nothing is found there
    bare = load_encoder(str(one.checkpoint))
    with torch.no_grad():
        for weight in hash_of_text(bare).values():
            weight.zero_()
    others = table.assign(pid=np.random.default_rng(0).permutation(table["pid"]))
    others = others.drop(columns=["gender", "age", "skinColor", "nailPolish", "camera"])
    again = embed(bare, open_store(others, bare.preprocess), names, fabric)
    assert all(np.array_equal(z[key], again[key]) for key in z)
    first = study_encoder(told(tmp_path))
    start = embed(first, open_store(table, first.preprocess), names, fabric)
    assert not np.allclose(z["proj"], start["proj"], atol=1e-3), "it was trained"


# What it is for


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The drawn persons of the study of seeds where they are there, else a few of their kind."""
    root = params.ROOT / "data" / "drawn_seeds"
    if not (root / MARKER).is_file():
        root = tmp_path_factory.mktemp("drawn") / "hands"
        draw_dataset(root, persons=24, seed=1, shots=(6, 8), progress=False)
    return read_11k(root)


def hits(z: np.ndarray, labels: np.ndarray, bank: torch.Tensor) -> np.ndarray:
    """(N,) whether the text nearest to an image is its owner's."""
    return (z @ bank.numpy().T).argmax(axis=1) == labels


@pytest.mark.slow
def test_learned_texts_know_unseen_photographs_of_their_owners(hands, tmp_path, capsys):
    """Better than the owner's number, and than prompts of shuffled owners, in three seeds."""
    manifest = make_manifest(hands, "dorsal_r", mode="person_disjoint", draws=1)
    val, train = (manifest[manifest["split"] == split] for split in ("val", "train"))
    scores: dict[str, list[np.ndarray]] = {"learned": [], "number": [], "shuffled": []}
    for seed in range(3):
        p = load("dorsal_r", "demo_seeds", seed=seed)
        wrong = manifest.copy()
        order = np.random.default_rng(seed).permutation(len(train))
        wrong.loc[train.index, "pid"] = train["pid"].to_numpy()[order]
        owners = pd.Series(wrong["pid"].to_numpy(), wrong["image"])
        owners = hands["image"].map(owners[train["image"]]).fillna(hands["pid"]).astype(int)
        folder = tmp_path / str(seed)
        learned = stages.stage3a(p, None, hands, manifest, folder / "right")
        others = hands.assign(pid=owners)
        shuffled = stages.stage3a(p, None, others, wrong, folder / "wrong")
        assert learned.pids == shuffled.pids
        encoder = study_encoder(p)
        store = open_store(hands, encoder.preprocess)
        z = embed(encoder, store, val["image"].tolist(), make_fabric(p))["proj"]
        numbers = [f"a photo of a person {pid} dorsal right hand." for pid in learned.pids]
        bank, _ = guides.bank_of(encoder, numbers)
        labels = np.array([learned.pids.index(pid) for pid in val["pid"]])
        banks = {"learned": learned.after, "number": bank, "shuffled": shuffled.after}
        for name, texts in banks.items():
            scores[name].append(hits(z, labels, texts))
    found = {}
    for name, parts in scores.items():
        pooled, persons = np.concatenate(parts), np.tile(val["pid"].to_numpy(), len(parts))
        found[name] = (pooled.mean(), *person_bootstrap(pooled, persons))
    with capsys.disabled():
        print(f"\n{len(val)} images of as many persons, chance {1 / len(val):.3f}:", found)
    for control in ("number", "shuffled"):
        assert found["learned"][1] > found[control][2], found
