"""The chain on towers of nothing: what it teaches, leaves, takes up again and refuses."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_chain as toy
import toy_hands
from toy_chain import TWO, Chained, same, tensors, told

from handclip_lib.aspects import CHAIN
from handclip_lib.data.splits import SplitError
from handclip_lib.data.tables import read_11k
from handclip_lib.device import make_fabric
from handclip_lib.evaluate import transfer
from handclip_lib.evaluate.embed import retrieval_features
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ParamError, chain_steps, load
from handclip_lib.report import steps
from handclip_lib.schema import Params
from handclip_lib.train import chain, selection, states, training
from handclip_lib.train.classes import classes_of
from handclip_lib.train.job import Past, encoder_from, job_of, study_encoder
from handclip_lib.train.states import State, Task

USERS = (
    "handclip_finetuned_dorsal_r.pth",
    "handclip_finetuned_dorsal_rl.pth",
    "handclip_finetuned_dorsal_rlp.pth",
    "handclip_finetuned_final_all_views.pth",
)


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
    """The user's four steps, trained once; tests look at them only."""
    return chain.run_chain(p, tasks, tmp_path_factory.mktemp("plain"))


def hashes(chained: Chained) -> list[str]:
    return [read_checkpoint(path)["sha256"] for path in chained.files]


def stamps(chained: Chained) -> list[tuple[int, bytes]]:
    return [(path.stat().st_mtime_ns, path.read_bytes()) for path in chained.files]


# What it leaves


def test_the_four_files_have_the_users_names_and_are_one_line(p, plain):
    assert tuple(path.name for path in plain.files) == USERS
    assert [state.name for state in plain.states] == [
        "zero_shot",
        *(f"{k} {aspect}" for k, aspect in enumerate(CHAIN, 1)),
    ]
    held = [torch.load(path, weights_only=True) for path in plain.files]
    before = [study_encoder(p).weights_sha256, *(one["sha256"] for one in held)]
    assert [one["parent"] for one in held] == before[:-1], "each starts from the one before"
    assert len(set(before)) == 5, "and each step learns"
    table = chain.lineage(p, plain.files)
    assert list(table.index) == list(USERS)
    assert list(table["sha256"]) == [one["sha256"][:16] for one in held]
    assert list(table["parent"]) == [sha[:16] for sha in before[:-1]]
    assert plain.learned == ((1, 1), (2, 2), (3, 3), (4, 4)) and plain.states[0].file is None
    assert list(plain.facts) == [Path(name).stem for name in USERS] and len(plain.histories) == 4


def test_a_step_starts_from_the_tensors_of_the_one_before(p, tasks, tmp_path, monkeypatch, plain):
    """Not only its hash: the tower that the loop is given has them."""
    seen = []
    real = training.fit

    def fit(recipe, *args):
        seen.append({k: v.clone() for k, v in recipe.learner.visual.state_dict().items()})
        return real(recipe, *args)

    monkeypatch.setattr(training, "fit", fit)
    again = chain.run_chain(p, tasks, tmp_path / "again")
    starts = [study_encoder(p).model.state_dict(), *map(tensors, again.files)][:4]
    for one, start in zip(seen, starts, strict=True):
        assert same(one, {n[7:]: v for n, v in start.items() if n.startswith("visual.")})
    assert hashes(again) == hashes(plain), "and the chain repeats itself"


def test_another_order_has_plain_names(p):
    names = ["palmar_l", "dorsal_r", "dorsal_l", "palmar_r"]
    found = chain.file_names(chain.ordered(p, names))
    assert found == [f"step{k}_{name}" for k, name in enumerate(names, 1)]
    assert chain.file_names(chain.ordered(p)) == [Path(name).stem for name in USERS]
    two = p.model_copy(update={"chain": p.chain.model_copy(update={"steps": p.chain.steps[:2]})})
    assert chain.file_names(chain.ordered(two)) == ["step1_dorsal_r", "step2_dorsal_l"]


def test_altered_or_swapped_files_are_refused(p, plain, tmp_path):
    folder = Path(shutil.copytree(plain.files[0].parent, tmp_path / "files"))
    files = [folder / path.name for path in plain.files]
    chain.lineage(p, files)
    whole = files[2].read_bytes()
    held = torch.load(files[2], weights_only=True)
    held["state_dict"]["visual.proj"][0, 0] += 1e-3
    torch.save(held, files[2])
    with pytest.raises(WeightsError, match="dorsal_rlp.pth: its tensors are not those"):
        chain.lineage(p, files)
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(WeightsError, match="dorsal_rlp.pth was not trained from the weights of"):
        chain.lineage(p, files)
    files[2].write_bytes(whole)
    with pytest.raises(WeightsError, match="dorsal_rlp.pth was not trained"):
        chain.lineage(p, [files[0], files[2], files[1], files[3]])
    with pytest.raises(WeightsError, match="dorsal_rl.pth was not trained"):
        chain.lineage(p, files[1:])  # the first is missing


def test_a_chain_killed_in_step_3_goes_on_there(p, tasks, plain, tmp_path, monkeypatch):
    real, epochs = training.make_recipe, []

    def killing(job, *args):
        recipe = real(job, *args)
        begin = recipe.begin_epoch

        def begin_epoch(epoch: int) -> None:
            if job.name.endswith("_rlp") and epoch == 2 and not epochs:
                raise KeyboardInterrupt
            epochs.append((job.name, epoch)) if epochs else None
            begin(epoch)

        object.__setattr__(recipe, "begin_epoch", begin_epoch)
        return recipe

    monkeypatch.setattr(training, "make_recipe", killing)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        chain.run_chain(p, tasks, folder)
    done = sorted(path.name for path in (folder / "checkpoints").glob("*.pth"))
    assert done == sorted(USERS[:2])
    before = [(folder / "checkpoints" / name).stat().st_mtime_ns for name in USERS[:2]]
    epochs.append(("", 0))
    again = chain.run_chain(p, tasks, folder)
    assert [path.stat().st_mtime_ns for path in again.files[:2]] == before
    names = [Path(name).stem for name in USERS]
    assert epochs[1:] == [(names[2], 2), (names[3], 1), (names[3], 2)], "no epoch is gone twice"
    assert hashes(again) == hashes(plain)
    for one, other in zip(again.files, plain.files, strict=True):
        assert same(tensors(one), tensors(other))
        told = [{**read_checkpoint(f)["facts"], "seconds": 0} for f in (one, other)]
        assert told[0] == told[1]


def test_what_is_done_stays_and_later_steps_follow_an_earlier_one(hands, tmp_path):
    def run(*places: dict[str, Any]) -> tuple[list[str], list[tuple[int, bytes]]]:
        each = [{"aspect": a} | s for a, s in zip(TWO, places, strict=True)]
        made, _ = toy.run(told(hands, chain={"steps": each}), tmp_path / "run")
        return hashes(made), stamps(made)

    was, kept = run({}, {})
    assert run({}, {}) == (was, kept)
    slow = {"settings": {"lr": 1e-3}}
    second, later = run({}, slow)
    assert later[0] == kept[0] and second[1] != was[1]
    third, _ = run(slow, slow)
    assert not {*third} & {*was, *second}, "its parent is another now"


def test_settings_of_the_recipe_the_chain_and_the_step_follow_each_other(hands):
    mine = [
        {"aspect": "dorsal_r", "settings": {"unfreeze_blocks": 1, "epochs": 5}},
        {"aspect": "dorsal_l", "settings": {"gradual": {"start": 1, "every": 2}}},
        "palmar_r",
    ]
    p = told(hands, chain={"steps": mine, "settings": {"lr": 2e-4, "epochs": 4}})
    found = [step.settings for step in chain_steps(p)]
    assert [s.epochs for s in found] == [5, 4, 4] and {s.lr for s in found} == {2e-4}
    assert [s.unfreeze_blocks for s in found] == [1, None, None]
    assert found[1].gradual is not None and found[1].gradual.every == 2
    assert {s.batch_size for s in found} == {p.stage1.batch_size}


# Whom it teaches


def _chain(mode: str) -> Params:
    return load("dorsal_r", "11k_vitb16", overrides={"chain.mode": mode})


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("11k")
    shutil.copy(test_data / "HandInfo_full.csv", root / "HandInfo.csv")
    return read_11k(root, check_files=False)


def test_nobody_is_taught_and_tested_in_11k_hands(real, monkeypatch, recwarn):
    monkeypatch.setattr(states.tables, "read", lambda p: real)
    found = states.tasks_of(_chain("person_disjoint"))
    assert list(found) == list(CHAIN) and not recwarn.list
    sides = [("train", "val", "select"), ("query", "gallery")]
    taught, asked = (
        {pid for t in found.values() for pid in t.manifest[t.manifest["split"].isin(side)]["pid"]}
        for side in sides
    )
    assert len(taught) > 60 and len(asked) > 70 and not taught & asked


def test_the_published_splits_of_11k_hands_warn_and_name_who_leaks(real, monkeypatch):
    monkeypatch.setattr(states.tables, "read", lambda p: real)
    with pytest.warns(UserWarning, match="chain.mode published") as said:
        states.tasks_of(_chain("published"))
    (text,) = [str(one.message) for one in said]
    listed = text.partition("too good (")[2].partition("); person_disjoint")[0]
    who = {a: set(map(int, w.split(", "))) for a, w in (o.split(": ") for o in listed.split("; "))}
    assert {aspect: len(people) for aspect, people in who.items()} == {
        "dorsal_r": 1,
        "dorsal_l": 6,
        "palmar_l": 4,
    }
    assert {1039, 1043, 1046, 1050} <= who["dorsal_l"]


def _leaking(real: Any) -> Any:
    """Person 10, who is asked for in palmar_l, is taught dorsal_r."""

    def manifest_for(p: Params, table: pd.DataFrame) -> pd.DataFrame:
        made = real(p, table)
        made = made[made["split"] != "gallery_all"]
        mine = (made["pid"] == 10) & (p.aspect == "dorsal_r")
        return made.assign(split=made["split"].mask(mine, "train"))

    return manifest_for


def test_a_leak_across_aspects_is_refused_or_said(hands, monkeypatch, tmp_path):
    monkeypatch.setattr(states.splits, "manifest_for", _leaking(states.splits.manifest_for))
    two = {"steps": ["dorsal_r", "palmar_l"]}
    with pytest.raises(SplitError, match="person in training and in test: 10"):
        states.tasks_of(told(hands, chain=two))
    with pytest.warns(UserWarning, match=r"palmar_l: 10\)"):
        p = told(hands, chain=two | {"mode": "published"})
        tasks = states.tasks_of(p)
    with pytest.warns(UserWarning, match="was taught persons who are tested or held out here: 10"):
        chained = chain.run_chain(p, tasks, tmp_path / "lenient")
    assert len(chained.files) == 2
    split = told(hands, chain=two).split
    strict = {n: replace(t, p=t.p.model_copy(update={"split": split})) for n, t in tasks.items()}
    with pytest.raises(SplitError, match="tested or held out here: 10"):
        chain.run_chain(p, strict, tmp_path / "strict")


def test_an_aspect_that_the_chain_does_not_teach_cannot_be_shown(hands):
    with pytest.raises(ParamError, match="aspect palmar_l is not taught by this chain"):
        states.tasks_of(told(hands, "palmar_l", chain={"steps": TWO}))


# Classes


def test_each_step_has_a_classifier_of_its_own(plain):
    assert [one["identities"] for one in plain.facts.values()] == [8] * 4
    assert [one["persons"] for one in plain.facts.values()] == [8] * 4


@pytest.mark.parametrize("sampler", ["shuffle", "hard"])
def test_a_union_classifier_goes_on(hands, tmp_path, monkeypatch, sampler):
    heads: list[dict[str, torch.Tensor]] = []
    real = training.fit

    def fit(recipe, *args):
        heads.append({k: v.clone() for k, v in recipe.learner.criterion.state_dict().items()})
        return real(recipe, *args)

    monkeypatch.setattr(training, "fit", fit)
    told_ = {"sampler": {"type": sampler, "images": 2, "refresh": 1, "random": 0.0}}
    p = told(hands, chain={"steps": TWO, "classes": "union", "settings": told_})
    chained, _ = toy.run(p, tmp_path / "union")
    assert [one["identities"] for one in chained.facts.values()] == [16, 16]
    first, second = (read_checkpoint(path)["heads"] for path in chained.files)
    assert same(heads[1], first), "step 2 begins with what step 1 has learnt"
    assert not same(heads[0], first) and not same(second, first)
    named = [name for name in first if name.endswith("weight") and len(first[name]) == 16]
    assert named, "a classifier of all classes"


def test_heads_that_go_on_are_part_of_a_steps_key(p, tasks, plain):
    task, classes = tasks["dorsal_l"], classes_of("hand", [t.manifest for t in tasks.values()])
    told_ = ("x", p.stage1, task.p, plain.files[0], task.table, task.manifest, Path())
    pasts = [Past(), Past(classes), Past(classes, inherits=True), Past(remedy="a bond")]
    assert len({job_of(*told_, past=past).key for past in pasts}) == 4


def test_what_a_class_is_where_aspects_are_trained_together(tasks):
    joint = chain._all(tasks, "hand").manifest
    rows = joint[joint["split"] == "train"]
    counts = {kind: len(classes_of(kind, [joint])) for kind in ("person", "hand", "aspect_hand")}
    assert counts == {"person": 8, "hand": 16, "aspect_hand": 32}
    for kind in counts:
        found = pd.Series(classes_of(kind, [joint]).labels(rows), index=rows.index)
        assert sorted(found.unique()) == list(range(counts[kind]))
        each = rows.assign(label=found).groupby("label")
        assert (each["pid"].nunique() == 1).all()
        assert (each["aspect"].nunique() == 32 // counts[kind]).all()
    hand = classes_of("hand", [joint])
    mine = rows[rows["pid"] == rows["pid"].iloc[0]].drop_duplicates("aspect").set_index("aspect")
    label = dict(zip(mine.index, hand.labels(mine.reset_index()), strict=True))
    assert label["dorsal_r"] == label["palmar_r"] != label["dorsal_l"] == label["palmar_l"]
    assert set(classes_of("hand", [joint]).labels(joint[joint["split"] == "select"])) == {-1}


def test_alone_an_aspect_has_the_same_labels_whatever_a_class_is(tasks):
    manifest = tasks["palmar_l"].manifest
    rows = manifest[manifest["split"] == "train"]
    wanted = np.unique(rows["pid"], return_inverse=True)[1]
    for kind in ("person", "hand", "aspect_hand"):
        assert (classes_of(kind, [manifest]).labels(rows) == wanted).all()


def test_the_joint_model_is_chosen_by_each_aspect_on_its_own(p, tasks, tmp_path, capsys):
    chained = chain.joint_model(p, tasks, tmp_path)
    assert chained is not None and "no joint model" not in capsys.readouterr().out
    facts, history = chained.facts["joint"], chained.histories[0]
    assert (facts["images"], facts["identities"], facts["persons"]) == (32 * 3, 16, 8)
    manifest = chain._all(tasks, "hand").manifest
    assert set(manifest["split"]) == {"train", "val", "select"}
    searched = selection.held_manifests(manifest)
    assert [set(rows["aspect"]) for rows in searched] == [{a} for a in sorted(CHAIN)]
    images = manifest.loc[manifest["split"] == "select", "image"].tolist()
    encoder, scores = encoder_from(p, chained.states[-1].file), []
    for task in tasks.values():
        mine = [name for name in images if name.startswith(task.name)]
        z = states.unit_features(encoder, task, mine, make_fabric(p))
        rows = selection.held_manifest(task.manifest)
        scores.append(selection.per_query(z, mine, rows)["ap"].mean())
    chosen = history.set_index("epoch").loc[facts["chosen_epoch"], "select_map"]
    assert chosen == pytest.approx(np.mean(scores), abs=1e-3)


# Another data set


@pytest.fixture(scope="module")
def abroad(hands, tmp_path_factory) -> tuple[Params, dict[str, Task]]:
    """A chain whose second step teaches persons 6, 7, … of another data set: others."""
    other = toy.squares(tmp_path_factory.mktemp("others"), first=6, persons=12, seed=1)
    again = {"aspect": "dorsal_r", "data": {"root": str(other)}}
    p = told(hands, chain={"steps": ["dorsal_r", again], "bounds": ["joint"], "second": "none"})
    return p, states.tasks_of(p)


def test_a_step_on_another_data_set_has_its_own_column(abroad, tmp_path, capsys):
    p, tasks = abroad
    assert list(tasks) == ["dorsal_r", "own dorsal_r"]
    trained, asked = (
        {*t.manifest.loc[t.manifest["split"] == split, "pid"]}
        for t, split in zip(tasks.values(), ("query", "train"), strict=True)
    )
    assert trained & asked, "the numbers are shared, the persons are not"
    chained = chain.run_chain(p, tasks, tmp_path)
    assert [f.name for f in chained.files] == ["step1_dorsal_r.pth", "step2_own_dorsal_r.pth"]
    assert len(read_checkpoint(chained.files[-1])["taught"]) == 2
    frames = states.answered({"chain": chained.states}, tasks, make_fabric(p))
    cells = steps.cells_of(frames, tasks)["chain"]["rank1"]
    assert cells.tasks == ("dorsal_r", "own dorsal_r")
    queries = [t.manifest["split"].eq("query").sum() for t in tasks.values()]
    assert list(cells.counts.sum(axis=1)) == queries
    assert ((cells.counts > 0).sum(axis=0) == 1).all(), "nobody is in both"
    assert transfer.matrix(cells).shape == (3, 2)
    capsys.readouterr()
    assert chain.compared(p, tasks, tmp_path, chained.files[0]) == {}
    assert "no joint model" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [{"classes": "union"}, {"remedies": ["replay"]}, {"finals": {"x": {"text": "none"}}}],
    ids=str,
)
def test_what_several_data_sets_cannot_share_is_refused(hands, tmp_path, more):
    """Persons by the same numbers would be one class."""
    other = {"aspect": "dorsal_r", "data": {"root": str(tmp_path)}}
    with pytest.raises(ParamError, match="several data sets have no replay, finals or classes"):
        told(hands, chain={"steps": ["dorsal_r", other]} | more)


def test_two_other_data_sets_with_one_name_are_refused(hands, tmp_path):
    """They would share a column, and the second would never be read."""
    others = [str(tmp_path / name / "hands.csv") for name in "ab"]
    more = [{"aspect": "dorsal_r", "data": {"root": root}} for root in others]
    with pytest.raises(ParamError, match="two other data sets have one name"):
        told(hands, chain={"steps": ["dorsal_r", *more]})


# What it is held against


def test_another_order_changes_what_is_taught_and_not_how(hands):
    """Such as layers that open from step to step: these open in any order."""
    each = [("dorsal_r", 1e-3), ("dorsal_l", 2e-3), ("dorsal_r", 4e-3), ("palmar_r", 5e-3)]
    steps_ = [{"aspect": aspect, "settings": {"lr": lr}} for aspect, lr in each]
    p = told(hands, chain={"steps": steps_})
    order = ["palmar_r", "dorsal_r", "dorsal_r", "dorsal_l"]
    found = chain.ordered(p, order)
    assert [(step.name, step.aspect) for step in found] == [(name, name) for name in order]
    assert [step.settings.lr for step in found] == [lr for _, lr in each]
    assert chain.ordered(p) == list(chain_steps(p))
    names = ["dorsal_r", "dorsal_l", "palmar_r"]
    assert chain.learned_in([s.name for s in chain_steps(p)], names) == ((1, 3), (2, 2), (4, 4))
    assert chain.learned_in(order, names) == ((2, 3), (4, 4), (1, 1))


@pytest.mark.parametrize(
    ("second", "names"),
    [
        ("reversed", ["palmar_r", "dorsal_l", "dorsal_r"]),
        ("none", []),
        (["dorsal_l", "palmar_r", "dorsal_r"], ["dorsal_l", "palmar_r", "dorsal_r"]),
    ],
)
def test_the_second_order(hands, second, names):
    p = told(hands, chain={"steps": ["dorsal_r", "dorsal_l", "palmar_r"], "second": second})
    assert chain.second_order(p) == names


def test_the_chain_is_compared_with_what_the_study_names(hands, tmp_path, plain):
    p = told(hands, chain={"steps": TWO})
    tasks = states.tasks_of(p)
    beside = chain.compared(p, tasks, tmp_path, plain.files[0])
    assert list(beside) == ["second_order", "single", "joint"]
    second, single = beside["second_order"], beside["single"]
    assert [path.parent.parent.name for path in second.files] == ["second", "second"]
    assert [path.name for path in second.files] == ["step1_dorsal_l.pth", "step2_dorsal_r.pth"]
    assert second.learned == ((2, 2), (1, 1)), "in the order of the tasks"
    chain.lineage(p, second.files)
    own = single.states[-1].own
    assert own["dorsal_r"] == plain.files[0], "what the chain has made already"
    alone = read_checkpoint(own["dorsal_l"])
    assert alone["parent"] == study_encoder(p).weights_sha256
    assert alone["sha256"] == read_checkpoint(second.files[0])["sha256"]
    joint = read_checkpoint(beside["joint"].states[-1].file)
    assert joint["parent"] == study_encoder(p).weights_sha256
    less = told(hands, chain={"steps": TWO, "second": "none", "bounds": []})
    assert chain.compared(less, tasks, tmp_path / "none", plain.files[0]) == {}


def test_a_model_of_one_aspect_has_its_own_classes_and_the_chains_settings(hands, tmp_path):
    """What a chain made in its first step is such a model only where both are the same."""
    first, mine = tmp_path / "never read", {"aspect": TWO[0], "settings": {"lr": 1e-3}}
    for told_ in ({"classes": "union"}, {"steps": [mine, TWO[1]]}):
        p = told(hands, chain={"steps": TWO} | told_)
        made = chain.own_models(p, states.tasks_of(p), tmp_path / "single", first=first)
        assert [one["identities"] for one in made.facts.values()] == [8, 8]


def test_each_task_is_seen_by_its_own_weights(p, tasks, plain):
    """Its distractors, too: queries and gallery are of one space."""
    own = {"dorsal_l": plain.files[1], "palmar_r": plain.files[2]}
    fabric = make_fabric(p)
    seen = states.look(State("own", own=own), tasks, fabric)
    assert list(seen) == list(tasks)
    for name, task in tasks.items():
        images, z = seen[name]
        assert set(task.images) <= set(images)
        encoder = encoder_from(p, own.get(name))
        np.testing.assert_allclose(z, states.unit_features(encoder, task, images, fabric))
    shared = states.look(plain.states[1], tasks, fabric)
    assert len({id(z) for _, z in shared.values()}) == 1, "what all share is embedded once"


def test_mirrored_features_are_of_mirrored_left_hands_alone(p, tasks, plain):
    fabric, state = make_fabric(p), plain.states[-1]
    images, plainly = states.look(state, tasks, fabric, mirrored=False)["dorsal_l"]
    _, mirrored = states.look(state, tasks, fabric, mirrored=True)["dorsal_l"]
    assert np.array_equal(states.look(state, tasks, fabric)["dorsal_l"][1], plainly)
    moved = np.abs(plainly - mirrored).max(axis=1) > 1e-4
    assert moved.tolist() == ["_l_" in name for name in images]
    encoder, at = encoder_from(p, state.file), int(np.argmax(moved))
    store = states.open_store(tasks["dorsal_l"].table, encoder.preprocess)
    flipped = encoder.preprocess.normalise(store.pixels([images[at]]).flip(2))
    with torch.no_grad():
        told_ = encoder.eval().features(flipped)
    raw = {name: getattr(told_, name).numpy() for name in p.evaluation.feature}
    wanted = retrieval_features(raw, p.evaluation.feature)[0]
    np.testing.assert_allclose(mirrored[at], wanted, atol=1e-5)


def test_what_the_data_or_a_batch_can_not_give_is_said_before_the_chain_begins(hands):
    two = {"steps": ["dorsal_r", "hand"], "second": "none"}
    with pytest.raises(ParamError, match=r"no photographs of hand; .* chain.steps=\[dorsal_l"):
        states.tasks_of(told(hands, chain=two))
    much = {"remedies": ["replay"], "replay": {"share": 0.99}}
    with pytest.raises(ValueError, match=r"replay.share 0.99"):
        states.tasks_of(told(hands, chain=much))
