"""What is done against forgetting: it does what it says, and nothing where its strength is 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_chain as toy
import toy_hands
from torch.nn import functional
from toy_chain import TWO, Chained, apart, same, tensors, told

from handclip_lib.data.manifest import TESTING
from handclip_lib.device import make_fabric
from handclip_lib.evaluate import transfer
from handclip_lib.losses import build_loss
from handclip_lib.models import towers
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.params import ParamError, chain_steps
from handclip_lib.report import steps
from handclip_lib.schema import Params
from handclip_lib.train import blends, chain, remedies, states, training
from handclip_lib.train.job import Past, encoder_from, study_encoder
from handclip_lib.train.states import State, Task

NONE: dict[str, dict[str, Any]] = {
    "replay": {"replay": {"share": 0}},
    "lwf": {"lwf": {"weight": 0}},
    "l2_sp": {"l2_sp": 0},
    "ewc": {"ewc": {"weight": 0}},
}
SOME: dict[str, dict[str, Any]] = {
    "replay": {"replay": {"share": 0.25}},
    "lwf": {"lwf": {"weight": 5.0}},
    "l2_sp": {"l2_sp": 1.0},
    "ewc": {"ewc": {"weight": 10.0}},
}


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of the squares; towers that see them are known from here on."""
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    return toy.squares(tmp_path_factory.mktemp("hands"))


@pytest.fixture(scope="module")
def p(hands: Path) -> Params:
    return told(hands)


@pytest.fixture(scope="module")
def tasks(p: Params) -> dict[str, Task]:
    return states.tasks_of(p)


@pytest.fixture(scope="module")
def plain(p, tasks, tmp_path_factory) -> Chained:
    """The user's four steps without a remedy; its first two are the chain that remedies change."""
    return chain.run_chain(p, tasks, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def second(hands, tasks, plain, tmp_path) -> Callable[..., Path]:
    """The weights after step 2 under a remedy, from step 1 of `plain`."""

    def run(remedy: str, told_: dict[str, Any], first: Path | None = None) -> Path:
        changed = told(hands, chain={"steps": TWO} | told_)
        folder = tmp_path / f"{remedy}{len(list(tmp_path.iterdir()))}"
        two = {name: tasks[name] for name in TWO}
        two = {n: Task(n, changed.model_copy(update={"aspect": n, "split": t.p.split}),
                       t.table, t.manifest) for n, t in two.items()}  # fmt: skip
        first = first or plain.files[0]
        return chain.run_chain(changed, two, folder, remedy, first=first).files[-1]

    return run


# Strength


@pytest.mark.parametrize("remedy", list(NONE))
def test_a_remedy_of_no_strength_is_none_bit_for_bit(remedy, second, plain):
    found = second(remedy, NONE[remedy])
    assert same(tensors(found), tensors(plain.files[1]))


@pytest.mark.parametrize("remedy", list(SOME))
def test_a_remedy_changes_the_step_after_it(remedy, second, plain):
    found = read_checkpoint(second(remedy, SOME[remedy]))
    assert not same(found["state_dict"], tensors(plain.files[1]))
    usual = read_checkpoint(plain.files[1])
    assert found["parent"] == usual["parent"] == read_checkpoint(plain.files[0])["sha256"]
    assert found["key"] != usual["key"]
    shown = found["facts"]["shown_again"]
    assert shown == (16 if remedy == "replay" else 0)
    assert found["facts"]["images"] == usual["facts"]["images"]


def test_a_remedys_strength_is_part_of_its_key(hands, tasks, plain):
    earlier = [(chain_steps(told(hands))[0], tasks["dorsal_r"], plain.files[0])]
    words = set()
    for told_ in (*SOME.values(), {"lwf": {"weight": 6.0}}, {"ewc": {"decay": 0.5}}, {"l2_sp": 2}):
        changed = told(hands, chain=told_)
        name = next(iter(told_))
        past, _ = remedies.remedied(changed, name, tasks["dorsal_l"], earlier, Past())
        words.add(past.remedy)
    assert len(words) == 7 and "" not in words


@pytest.mark.parametrize(
    ("remedy", "told_"), [("ewc", {"ewc": {"weight": 1e9}}), ("l2_sp", {"l2_sp": 1e6})]
)
def test_a_huge_bond_holds_the_tower_where_the_step_began(remedy, told_, second, plain):
    """Adam's steps do not grow with a gradient: a bond turns them back, it cannot forbid them."""
    long = [TWO[0], {"aspect": TWO[1], "settings": {"epochs": 10, "lr": 1e-3}}]
    start = tensors(plain.files[0])
    free, held = (
        apart(start, tensors(second(name, told_ | {"steps": long}))) for name in ("", remedy)
    )
    assert held < free / 3, (held, free)


def test_a_bond_is_to_the_weights_before_the_step_and_at_every_step(p, tasks, plain, monkeypatch):
    """Whatever a remedy looks back at are the last done step's tensors, not those of another."""
    towers_seen: list[dict[str, torch.Tensor]] = []
    for name in ("lwf", "l2_sp", "ewc"):
        real = getattr(remedies, name)

        def watched(visual, *args, real=real):
            towers_seen.append({f"visual.{k}": v for k, v in visual.state_dict().items()})
            return real(visual, *args)

        monkeypatch.setattr(remedies, name, watched)
    done = list(zip(chain_steps(p), tasks.values(), plain.files, strict=True))
    for count in (1, 2):
        for remedy in ("lwf", "l2_sp", "ewc"):
            past, manifest = remedies.remedied(p, remedy, done[count][1], done[:count], Past())
            assert manifest is done[count][1].manifest and past.retain is not None
            assert list(past.retain().terms) == [remedy]
            before = tensors(plain.files[count - 1])
            mine = {n: v for n, v in before.items() if n.startswith("visual.")}
            assert same(towers_seen.pop(), mine)
    first = remedies.remedied(p, "ewc", done[0][1], [], Past())
    assert first == (Past(), done[0][1].manifest), "before the first step there is nothing to keep"


# Importance


def _by_hand(p: Params, task: Task, path: Path, images: list[str]) -> dict[str, torch.Tensor]:
    """Squared gradients of each image's own cross-entropy, one after the other."""
    encoder, held = encoder_from(p, path), read_checkpoint(path)
    rows = task.manifest[task.manifest["split"] == "train"]
    people = sorted(set(rows["pid"]))
    whose = dict(zip(rows["image"], rows["pid"], strict=True))
    criterion = build_loss(p.stage1.losses, len(people), encoder.dims).eval()
    criterion.load_state_dict(held["heads"])
    store, visual = states.open_store(task.table, encoder.preprocess), encoder.visual.eval()
    total = {name: torch.zeros_like(w) for name, w in visual.named_parameters()}
    for image in images:
        visual.zero_grad()
        seen = towers.features(visual, encoder.preprocess.normalise(store.pixels([image])))
        label = torch.tensor([people.index(whose[image])])
        functional.cross_entropy(criterion.logits(seen), label).backward()
        for name, w in visual.named_parameters():
            total[name] += w.grad**2 / len(images) if w.grad is not None else 0
    return total


def test_importance_is_the_mean_of_squared_gradients(hands, p, tasks, plain):
    task, path, step = tasks["dorsal_l"], plain.files[1], chain_steps(p)[1]
    rows = task.manifest[task.manifest["split"] == "train"]
    wanted = _by_hand(p, task, path, rows["image"].tolist())
    found = remedies._importance(p, step, task, path, Past())
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-9)
    assert sum(float(v.sum()) for v in wanted.values()) > 0
    few = told(hands, chain={"ewc": {"images": 3}})
    less = remedies._importance(few, step, task, path, Past())
    assert not same(less, found)


def test_importance_of_earlier_steps_fades(p, tasks, plain, hands):
    done = list(zip(chain_steps(p), tasks.values(), plain.files, strict=True))[:2]
    each = [remedies.normalised(remedies._importance(p, s, t, f, Past())) for s, t, f in done]
    past, _ = remedies.remedied(p, "ewc", tasks["palmar_r"], done, Past())
    half = past.retain().terms["ewc"].factor
    for name, value in half.items():
        wanted = (p.chain.ewc.decay * each[0][name] + each[1][name]) / 2
        torch.testing.assert_close(value, wanted)


# Replay


@pytest.mark.parametrize("choose", ["herding", "random"])
def test_replay_shows_training_images_of_earlier_steps_alone(hands, tasks, plain, choose):
    p = told(hands, chain={"replay": {"images": 2, "choose": choose}})
    done = list(zip(chain_steps(p), tasks.values(), plain.files, strict=True))[:2]
    _, manifest = remedies.remedied(p, "replay", tasks["palmar_r"], done, Past())
    own = manifest[manifest["split"] != "replay"]
    pd.testing.assert_frame_equal(own, tasks["palmar_r"].manifest, check_like=True)
    again = manifest[manifest["split"] == "replay"]
    assert set(again["aspect"]) == set(TWO) and again["image"].is_unique
    assert (again.groupby(["aspect", "pid"]).size() == 2).all() and len(again) == 2 * 8 * 2
    rows = pd.concat([task.manifest for task in tasks.values()])
    trained = rows[(rows["split"] == "train") & rows["aspect"].isin(TWO)]
    assert set(again["image"]) < set(trained["image"])
    kept_out = rows.loc[rows["split"].isin((*TESTING, "select")), "pid"] % 1_000_000
    assert not set(again["pid"]) & set(kept_out)
    leaking = {int(again["pid"].iloc[0])}  # as the literature's splits have them
    _, fewer = remedies.remedied(p, "replay", tasks["palmar_r"], done, Past(), leaking)
    shown = fewer.loc[fewer["split"] == "replay", "pid"]
    assert set(shown) == set(again["pid"]) - leaking
    _, same = remedies.remedied(p, "replay", tasks["dorsal_l"], done, Past())
    assert set(same.loc[same["split"] == "replay", "aspect"]) == {"dorsal_r"}, "not its own"


@pytest.mark.parametrize("sampler", ["shuffle", "pk", "hard"])
def test_each_batch_has_its_share_of_photographs_shown_again(
    hands, tasks, second, monkeypatch, sampler
):
    recipes = []
    real = training.make_recipe

    def watching(job, learner, data, *args):
        recipes.append((real(job, learner, data, *args), data))
        return recipes[-1][0]

    monkeypatch.setattr(training, "make_recipe", watching)
    how = {"type": sampler, "images": 2, "refresh": 1, "random": 0.0}
    told_ = {"settings": {"sampler": how, "batch_size": 8}, "replay": {"share": 0.5}}
    for remedy in ("", "replay"):
        second(remedy, told_)
    (alone, _), (recipe, data) = recipes
    assert (len(data.images), data.old) == (24 + 16, 16)
    assert all(name.startswith("dorsal_r") for name in data.images[-16:])
    assert all(name.startswith("dorsal_l") for name in data.images[:-16])
    shown = set()
    for epoch in (1, 2, 3, 4):
        batches = recipe.batches(epoch)
        assert len(batches) == len(alone.batches(epoch))
        for batch in batches:
            assert (np.sort(batch)[-4:] >= 24).all() and (batch >= 24).sum() == 4
            assert len(batch) <= 8
            shown |= set(batch[batch >= 24].tolist())
    assert shown == set(range(24, 40)), "all of them come again"


# Weights in between


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_wise_ft_are_bit_for_bit_those_of_the_chain(
    alpha, p, tasks, plain, tmp_path, monkeypatch
):
    monkeypatch.setattr(blends, "_held", lambda encoder, *_: next(scores))
    scores = iter([1.0, 0.0] if alpha == 0 else [0.0, 1.0])
    two = p.model_copy(update={"chain": p.chain.model_copy(update={"wise_ft": (0.0, 1.0)})})
    made, sweep = blends.wise_ft(two, tasks, plain.states, tmp_path, make_fabric(p))
    assert sweep.alpha == alpha and len(made) == 5
    for state, end in zip(made[1:], plain.files, strict=True):
        start = study_encoder(p).model.state_dict()
        assert same(tensors(state.file), start if alpha == 0 else tensors(end))
        held = read_checkpoint(state.file)
        assert held["taught"] == read_checkpoint(end)["taught"]
    frames = states.answered({"chain": [plain.states[0], plain.states[-1]]}, tasks, make_fabric(p))
    for share, frame in zip(("0", "1"), frames["chain"].values(), strict=True):
        for task in tasks:
            pd.testing.assert_frame_equal(sweep.answers[share][task], frame[task])


def _planted(of: dict[str, int]) -> Callable[..., np.ndarray]:
    """Features that know everybody at one alpha and nobody at others; of: whom at which."""
    weights: list[str] = []

    def unit_features(encoder, task, images, fabric):
        if encoder.weights_sha256 not in weights:
            weights.append(encoder.weights_sha256)
        at = weights.index(encoder.weights_sha256)
        held = set(task.manifest.loc[task.manifest["split"] == "select", "image"])
        knows = [of["held" if image in held else "tested"] == at for image in images]
        noise = np.random.default_rng(at).normal(size=(len(images), 32))
        perfect = np.eye(32)[task.table.set_index("image").loc[list(images), "pid"]]
        z = np.where(np.array(knows)[:, None], perfect, noise)
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype("f4")

    return unit_features


@pytest.mark.parametrize(("held", "tested"), [(1, 0), (1, 2), (0, 2)])
def test_held_out_persons_alone_choose_alpha(held, tested, p, tasks, plain, monkeypatch):
    monkeypatch.setattr(blends, "unit_features", _planted({"held": held, "tested": tested}))
    three = p.model_copy(update={"chain": p.chain.model_copy(update={"wise_ft": (0.0, 0.5, 1.0)})})
    sweep = blends.sweep(three, tasks, plain.states[1].file, make_fabric(p))
    assert sweep.alpha == (0.0, 0.5, 1.0)[held] and "held-out" in sweep.how
    best = max(sweep.answers, key=lambda a: sum(f["ap"].mean() for f in sweep.answers[a].values()))
    assert best == ("0", "0.5", "1")[tested], "what the test would have chosen"


def test_without_held_out_persons_alpha_was_chosen_beforehand(p, tasks, plain, tmp_path):
    bare = {n: Task(n, t.p, t.table, t.manifest[t.manifest["split"] != "select"])
            for n, t in list(tasks.items())[:1]}  # fmt: skip
    two = p.model_copy(update={"chain": p.chain.model_copy(update={"wise_ft": (0.0, 1.0)})})
    made, sweep = blends.wise_ft(two, bare, plain.states[:2], tmp_path, make_fabric(p))
    assert sweep.alpha == 0.5 and "beforehand" in sweep.how
    start, end, found = (
        study_encoder(p).model.state_dict(),
        *map(tensors, (plain.files[0], made[1].file)),
    )
    for name, value in found.items():
        wanted = (
            (start[name].double() + end[name].double()) / 2
            if value.is_floating_point()
            else end[name]
        )
        assert torch.allclose(value.double(), wanted.double(), atol=1e-6)


def test_a_soup_is_the_mean_of_the_steps_so_far(p, tasks, plain, tmp_path):
    made = blends.checkpoint_soup(p, tasks, plain.states, tmp_path)
    assert same(tensors(made[1].file), tensors(plain.files[0]))
    for count in (2, 4):
        found, each = tensors(made[count].file), [tensors(f) for f in plain.files[:count]]
        for name, value in found.items():
            mean = torch.stack([one[name].double() for one in each]).mean(0)
            assert torch.allclose(value.double(), mean, atol=1e-6)
    stamp = made[4].file.stat().st_mtime_ns
    again = blends.checkpoint_soup(p, tasks, plain.states, tmp_path)
    assert again[4].file.stat().st_mtime_ns == stamp
    fewer = blends.checkpoint_soup(p, tasks, plain.states[:1] + plain.states[2:], tmp_path)
    assert not same(tensors(fewer[2].file), each[1]), "made anew where it is of others"


def test_remedies_by_name_share_the_first_step(hands, plain, tasks, tmp_path):
    p = told(hands, chain={"steps": TWO, "remedies": ["lwf", "wise_ft", "soup"], "wise_ft": [0, 1]})
    two = {name: tasks[name] for name in TWO}
    chained = Chained(plain.states[:3], plain.learned[:2], {})
    found = chain.with_remedies(p, two, chained, tmp_path, make_fabric(p))
    assert list(found) == ["lwf", "wise_ft", "soup"]
    assert found["lwf"].files[0] == plain.files[0]
    assert found["wise_ft"].sweep is not None and not found["soup"].facts
    assert {path.parent.name for path in found["soup"].files} == {"soup"}
    assert all(c.learned == ((1, 1), (2, 2)) for c in found.values())


# An aspect's own weights


@pytest.mark.parametrize("remedy", ["lora", "vpt"])
def test_an_aspect_keeps_its_own_lora_or_prompts(remedy, hands, tmp_path):
    per = {"rank": 2, "tokens": 3, "lr": 1e-2}
    p = told(hands, chain={"steps": TWO, "per_aspect": per})
    tasks, fabric = states.tasks_of(p), make_fabric(p)
    made = chain.own_models(p, tasks, tmp_path, remedy)
    assert [sorted(state.own) for state in made.states] == [[], TWO[:1], sorted(TWO)]
    assert all(state.file is None for state in made.states)
    start = study_encoder(p).weights_sha256
    for state in made.states[1:]:
        held = read_checkpoint(state.own[state.task])
        assert held["parent"] == start, "each begins with the study's tower"
        assert (held["adapter"] is None) == (remedy == "lora")
    frames = states.answered({"chain": made.states}, tasks, fabric)
    r = transfer.matrix(steps.cells_of(frames, tasks)["chain"]["map"])
    assert r[2, 0] == r[1, 0] and r[1, 1] == r[0, 1], "columns move at their own step alone"
    for name, task in tasks.items():
        z = []
        for state in made.states:
            row = dict(zip(*states.look(state, tasks, fabric)[name], strict=True))
            z.append(np.stack([row[image] for image in task.images]))
        changed = TWO.index(name) + 1
        for k in (1, 2):
            assert np.allclose(z[k - 1], z[k], atol=1e-6) == (k != changed)
        alone = encoder_from(p, made.states[-1].own[name])
        np.testing.assert_allclose(
            states.unit_features(alone, task, task.images, fabric), z[2], atol=1e-6
        )


def test_an_adapter_has_no_weights_in_between(hands, tasks, tmp_path):
    p = told(hands, chain={"steps": TWO})
    two = {name: tasks[name] for name in TWO}
    own = chain.own_models(p, two, tmp_path, "vpt").states[1].own["dorsal_r"]
    with pytest.raises(ParamError, match="towers without an adapter"):
        blends.checkpoint_soup(p, two, [State("zero_shot"), State("1", "dorsal_r", own)], tmp_path)


def test_ewc_needs_a_classifier(hands, tasks, plain):
    p = told(hands, stage1={"losses": [{"type": "triplet"}], "sampler": {"type": "pk"}})
    step, earlier = chain_steps(p)[0], tasks["dorsal_r"]
    with pytest.raises((ParamError, RuntimeError), match="classifier|state_dict"):
        remedies._importance(p, step, earlier, plain.files[0], Past())
