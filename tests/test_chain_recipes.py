"""Chains by the other stages' recipes, and what tunes the last model on all aspects at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_chain as toy
import toy_hands
from torch.nn import functional
from toy_chain import FAST, TWO, Chained, same, tensors, told

from handclip_lib.aspects import CHAIN
from handclip_lib.device import make_fabric
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.prompts import attribute_words
from handclip_lib.params import ParamError
from handclip_lib.schema import Params
from handclip_lib.train import chain, states, training
from handclip_lib.train.classes import classes_of
from handclip_lib.train.job import encoder_from, study_encoder
from handclip_lib.train.states import Task

PLAIN = FAST | {"sampler": {"type": "pk", "images": 3}}
CLIP_REID = {"text": "prompts"}


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of the squares; towers that see them are known from here on."""
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    return toy.squares(tmp_path_factory.mktemp("hands"))


def recipe(hands: Path, name: str, stage3b: dict[str, Any] | None = None, **more: Any) -> Params:
    """A chain of two steps by a recipe; stage3b: its variant `mine`."""
    variants = {"variants": {"mine": stage3b}} if stage3b is not None else {}
    return told(
        hands,
        chain={"steps": TWO, "recipe": name} | more,
        stage2=PLAIN | {"variants": ["ce_triplet"]},
        stage3b=PLAIN | variants,
    )


def line(p: Params, chained: Chained) -> list[str]:
    """The parents in the files, the study's tower first; that of the last file at the end."""
    chain.lineage(p, chained.files)
    held = [read_checkpoint(path) for path in chained.files]
    assert held[0]["parent"] == study_encoder(p).weights_sha256
    assert held[1]["parent"] == held[0]["sha256"]
    return [one["sha256"] for one in held]


def test_a_chain_by_a_variant_of_stage_2(hands, tmp_path):
    p = recipe(hands, "stage2/ce_triplet")
    chained, _ = toy.run(p, tmp_path)
    assert len(set(line(p, chained))) == 2
    for history in chained.histories:
        assert {"cross_entropy", "triplet"} <= set(history)


def test_prompts_are_learnt_anew_at_every_step(hands, tmp_path, capsys, monkeypatch):
    p, starts, real = recipe(hands, "stage3b/mine", CLIP_REID), [], chain.stages.stage3a
    watched = lambda *args: starts.append(args[1]) or real(*args)  # noqa: E731
    monkeypatch.setattr(chain.stages, "stage3a", watched)
    chained, tasks = toy.run(p, tmp_path)
    line(p, chained)
    assert starts == [None, chained.files[0]], "by the tower that they will guide"
    names = ["step1_dorsal_r", "step2_dorsal_l"]
    assert [path.stem for path in chained.files] == names
    learnt = [tmp_path / "checkpoints" / f"{name}_prompts.pth" for name in names]
    held = [torch.load(path, weights_only=True) for path in learnt]
    for task, one in zip(tasks.values(), held, strict=True):
        rows = task.manifest[task.manifest["split"] == "train"]
        assert one["pids"] == sorted(set(rows["pid"]))
    assert held[0]["key"] != held[1]["key"]
    assert all("i2t" in history for history in chained.histories)
    guides = [read_checkpoint(path)["guide"]["bank"] for path in chained.files]
    assert guides[0].shape == guides[1].shape and not torch.equal(*guides)
    stamps = [path.stat().st_mtime_ns for path in (*learnt, *chained.files)]
    capsys.readouterr()
    toy.run(p, tmp_path)
    assert [path.stat().st_mtime_ns for path in (*learnt, *chained.files)] == stamps
    assert chain.joint_model(p, tasks, tmp_path / "joint") is None
    assert "no joint model" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["prompts", "attributes", "number"])
@pytest.mark.parametrize("more", [{"remedies": ["replay"]}, {"classes": "union"}], ids=str)
def test_texts_of_a_steps_own_persons_are_not_for_others(hands, text, more):
    with pytest.raises(ParamError, match="with texts take replay out of chain.remedies"):
        recipe(hands, "stage3b/mine", {"text": text}, **more)


@pytest.mark.parametrize("word", ["ewc", "lora", "vpt"])
def test_remedies_that_need_losses_of_images_say_so(hands, word):
    with pytest.raises(ParamError, match="ewc, lora and vpt need a recipe with losses"):
        recipe(hands, "stage3b/mine", {"text": "number", "losses": []}, remedies=[word])


@pytest.mark.parametrize("adapt", [{"lora": 2}, {"prompts": 3}, {"view": "aspect"}], ids=str)
def test_adapters_go_along_the_chain(hands, tmp_path, adapt):
    frozen = {"text": "none", "unfreeze_blocks": 0, "weight_decay": 0.0, "adapt": adapt}
    two = ["dorsal_r", "palmar_r"]
    p = recipe(hands, "stage3b/mine", frozen, steps=two, remedies=[])
    chained, _ = toy.run(p, tmp_path)
    assert len(set(line(p, chained))) == 2
    first, last = map(read_checkpoint, chained.files)
    if "prompts" in adapt:
        state = [one["adapter"]["state"]["prompts"] for one in (first, last)]
        assert not torch.equal(*state)
    if "view" not in adapt:
        start = study_encoder(p).model.state_dict()
        assert same(start, first["state_dict"]) == ("prompts" in adapt)


@pytest.mark.parametrize("remedy", ["lwf", "l2_sp", "ewc", "wise_ft", "soup"])
@pytest.mark.parametrize("adapt", [{"lora": 2}, {"prompts": 3}], ids=str)
def test_adapters_have_no_remedies_of_weights(hands, remedy, adapt):
    with pytest.raises(ParamError, match="a recipe with `adapt` needs chain.remedies without"):
        recipe(hands, "stage3b/mine", {"text": "none", "adapt": adapt}, remedies=[remedy])


@pytest.mark.parametrize(
    ("adapt", "words"),
    [({"lora": 2, "prompts": 3}, "adapt has LoRA, or"), ({"prompts": 3}, "finals need a tower")],
)
def test_adapters_that_cannot_go_along_are_refused(hands, adapt, words):
    more = {"remedies": [], "finals": {"x": {"text": "none"}}}
    with pytest.raises(ParamError, match=words):
        recipe(hands, "stage3b/mine", {"text": "none", "adapt": adapt}, **more)


def test_recipes_may_differ_by_step(hands, tmp_path):
    mixed = [TWO[0], {"aspect": TWO[1], "recipe": "stage2/ce_triplet", "settings": {"lr": 1e-3}}]
    p = recipe(hands, "stage1", steps=mixed)
    chained, _ = toy.run(p, tmp_path)
    line(p, chained)
    assert ["triplet" in history for history in chained.histories] == [False, True]
    assert chain.chain_recipe(p).settings == p.stage1, "the joint model's is the chain's"


# The last model on all aspects


FINALS: dict[str, dict[str, Any]] = {
    "all": {"text": "attributes", "template": "a {aspect} hand of {person}.",
            "losses": [], "t2i": 1},
    "hard": {
        "text": "attributes", "losses": [{"type": "triplet"}],
        "sampler": {"type": "hard", "images": 2, "refresh": 1, "random": 0.0},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(hands, tmp_path_factory) -> tuple[Params, dict[str, Task], Chained, dict[str, Chained]]:
    """A chain of two views of two hands, and its last model tuned in two ways."""
    steps = ["dorsal_r", "palmar_l"]
    p = told(hands, chain={"steps": steps, "finals": FINALS})
    folder = tmp_path_factory.mktemp("finals")
    chained, tasks = toy.run(p, folder)
    found = chain.final_tunings(p, tasks, folder / "chains", chained.files[-1])
    return p, tasks, chained, found


def test_final_tunings_start_from_the_last_step(tuned):
    p, tasks, chained, found = tuned
    assert list(found) == ["all", "hard"]
    last = read_checkpoint(chained.files[-1])
    for name, one in found.items():
        held = read_checkpoint(one.files[0])
        assert one.files[0].name == f"{name}.pth" and held["parent"] == last["sha256"]
        assert not same(held["state_dict"], last["state_dict"])
        assert one.facts[name]["identities"] == 16 and one.facts[name]["images"] == 48
        assert one.learned == ((1, 1), (1, 1)) and held["taught"] == last["taught"]
    assert "triplet" in found["hard"].histories[0] and "triplet" not in found["all"].histories[0]


def test_texts_of_final_tunings_name_the_aspect_and_the_person(tuned):
    p, tasks, chained, found = tuned
    guide = read_checkpoint(found["all"].files[0])["guide"]
    manifests = [task.manifest for task in tasks.values()]
    names = classes_of("aspect_hand", manifests).names
    table = next(iter(tasks.values())).table.drop_duplicates("pid").set_index("pid")
    words = dict(zip(table.index, attribute_words(table), strict=True))
    titles = {"dorsal_r": "dorsal right", "palmar_l": "palmar left"}
    texts = [f"a {titles[aspect]} hand of {words[pid]}." for pid, aspect in names]
    encoder = encoder_from(p, chained.files[-1])
    with torch.no_grad():
        wanted = functional.normalize(encoder.encode_text(texts).float(), dim=1)
    torch.testing.assert_close(guide["bank"][guide["owner"]], wanted, atol=1e-5, rtol=1e-4)
    owner = dict(zip(names, guide["owner"].tolist(), strict=True))
    for pid in {pid for pid, _ in names}:
        assert owner[pid, "dorsal_r"] != owner[pid, "palmar_l"]


@pytest.mark.parametrize("text", ["prompts", "pseudo"])
def test_finals_are_for_texts_that_all_aspects_have(hands, text):
    with pytest.raises(ParamError, match=f"chain.finals.mine: text {text} is of one aspect"):
        told(hands, chain={"finals": {"mine": {"text": text}}})


def test_a_union_chain_hands_its_tower_to_a_final_tuning(hands, tmp_path, monkeypatch):
    """Its classes are others: the heads start anew."""
    seen: list[int] = []
    real = training.Learner

    def learner(encoder, criterion, *args):
        seen.append(len(criterion.state_dict()))
        return real(encoder, criterion, *args)

    monkeypatch.setattr(training, "Learner", learner)
    p = told(hands, chain={"steps": TWO, "classes": "union", "finals": {"x": FINALS["hard"]}})
    chained, tasks = toy.run(p, tmp_path)
    found = chain.final_tunings(p, tasks, tmp_path / "chains", chained.files[-1])["x"]
    assert found.facts["x"]["identities"] == 16 and len(seen) == 3
    frames = states.answered({"x": found.states}, tasks, make_fabric(p))
    assert list(frames["x"]) == ["zero_shot", "x"] and set(CHAIN) > set(frames["x"]["x"])
    assert not same(tensors(found.files[0]), tensors(chained.files[-1]))
