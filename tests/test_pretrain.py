"""Pre-training on toy hands: whom it sees, that it repeats and goes on, what is kept of it."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from toy_hands import small_towers

from handclip_lib.data.leaks import persons
from handclip_lib.data.manifest import TRAINING, TooFew
from handclip_lib.data.splits import SplitError, all_aspects, manifest_for
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.soup import interpolate
from handclip_lib.params import ROOT, ParamError, load, pretrain_variants
from handclip_lib.schema import Params
from handclip_lib.train import job, pretrain, stages, views
from handclip_lib.train.contrast import first_convolution
from handclip_lib.train.job import study_encoder
from handclip_lib.train.taught import persons_taught

PERSONS, SHOTS = 20, 4
ASPECTS = ("dorsal_r", "palmar_r")
FAST = {
    "epochs": 3, "batch_size": 16, "lr": 3e-3, "layer_decay": 1.0, "save_seconds": 0,
    "hidden": 16, "projection": 8, "augment": {"degrees": 5.0, "blur": 0.0}, "wise_ft": [0, 0.5, 1],
}  # fmt: skip
STUDY = {
    "data": {"dataset": "own"},
    "split": {"mode": "person_disjoint", "select": "persons", "draws": 2},
    "model": {"name": "toy-vit", "pretrained": "random"},
    "baseline": {"beside": None},
    "device": {"accelerator": "cpu"},
    "stage1": {"epochs": 1, "batch_size": 16, "head_epochs": 0},
}
VARIANTS = ("moco_v3", "moco_v2", "supcon", "hybrid")


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    small_towers(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Persons of four coloured squares in two aspects; the last shot of each shows a ring."""
    root, rng, rows = tmp_path_factory.mktemp("hands"), np.random.default_rng(0), []
    for pid in range(PERSONS):
        for aspect in ASPECTS:
            traits = rng.integers(40, 216, (2, 2, 3)).repeat(16, 0).repeat(16, 1)
            for shot in range(SHOTS):
                noisy = (traits + rng.normal(0, 25, traits.shape)).clip(0, 255).astype(np.uint8)
                name = f"{aspect}_{pid:02d}_{shot}.png"
                Image.fromarray(noisy).save(root / name)
                rows.append((name, pid, aspect, "own", int(shot == SHOTS - 1)))
    frame = pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset", "accessories"])
    frame.attrs = {"root": str(root), "title": "squares"}
    return frame


def told(folder: Path, aspect: str = "dorsal_r", variants=("moco_v3",), **changes) -> Params:
    study = folder / "squares.yaml"
    own = FAST | changes.pop("pretrain", {})
    own["variants"] = variants if isinstance(variants, dict) else list(variants)
    study.write_text(json.dumps(STUDY | {"pretrain": own} | changes))
    return load(aspect, str(study))


def learn(p: Params, table: pd.DataFrame, folder: Path, name: str = "moco_v3") -> stages.Trained:
    manifest = pretrain.pretrain_manifest(p, table)
    return pretrain.pretrain(p, name, pretrain_variants(p)[name], table, manifest, folder)


def weights(trained: stages.Trained) -> dict[str, torch.Tensor]:
    return trained.encoder.visual.state_dict()


# -- whom it sees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["person_disjoint", "published"])
@pytest.mark.parametrize("select", ["persons", "none"])
def test_it_sees_training_persons_of_all_aspects_and_nobody_who_is_tested(
    table, tmp_path, mode: str, select: str
):
    # the other aspect has three persons less, so that halves differ and persons are in both sides
    some = table[(table["aspect"] == "dorsal_r") | (table["pid"] >= 3)]
    p = told(tmp_path, split={"mode": mode, "select": select, "draws": 2})
    pool = pretrain.pretrain_manifest(p, some)
    tested, held = set(), set()
    for each in ("person_disjoint", "published"):
        for manifest in all_aspects(p, some, each).values():
            tested |= set(persons(manifest.loc[~manifest["split"].isin(TRAINING), "pid"]))
    for manifest in all_aspects(p, some, mode).values():
        held |= set(manifest.loc[manifest["split"] == "select", "pid"]) - tested
    assert set(pool["split"]) == {"train", "val"} | ({"select"} if select == "persons" else set())
    assert not set(pool["pid"]) & tested and not pool["image"].duplicated().any()
    assert set(pool.loc[pool["split"] == "select", "pid"]) == held
    assert set(pool["pid"]) == set(range(10)), "person 10 and more are tested somewhere"
    assert set(pool.loc[pool["split"] == "train", "aspect"]) == set(ASPECTS)
    worn = set(some.loc[some["accessories"] == 1, "image"])
    mine = some[some["pid"].isin(set(range(10)) - held) & (some["accessories"] == 1)]
    assert set(pool["image"]) & worn == set(mine["image"])
    assert set(pool.loc[pool["image"].isin(worn), "split"]) == {"train"}
    plain = some[some["pid"].isin(range(10)) & (some["accessories"] == 0)]
    assert set(pool["image"]) - worn == set(plain["image"])


def test_the_pool_is_the_same_whatever_the_aspect(table, tmp_path):
    one, two = (pretrain.pretrain_manifest(told(tmp_path, a), table) for a in ASPECTS)
    pd.testing.assert_frame_equal(one, two)


def test_data_of_one_aspect_or_without_a_word_on_accessories_is_enough(table, tmp_path):
    one = table[table["aspect"] == "dorsal_r"].drop(columns="accessories")
    pool = pretrain.pretrain_manifest(told(tmp_path), one)
    assert set(pool["aspect"]) == {"dorsal_r"} and set(pool["pid"]) == set(range(10))
    with pytest.raises(TooFew, match="tested nowhere"):
        pretrain.pretrain_manifest(told(tmp_path), one[one["pid"] < 1])


def test_nobody_learns_from_one_person(table, tmp_path):
    palms = (table["aspect"] == "palmar_r") & (table["pid"] < 2)  # 1 is tested there
    some = table[palms | ((table["aspect"] == "dorsal_r") & (table["pid"] < 4))]
    p = told(tmp_path, split={"mode": "published", "select": "none", "draws": 2})
    with pytest.raises(TooFew, match="1 person to learn from"):
        pretrain.pretrain_manifest(p, some)


@pytest.mark.parametrize("who", [15, 10])
def test_a_test_person_is_refused_by_name(table, tmp_path, who: int):
    p = told(tmp_path)
    pool = pretrain.pretrain_manifest(p, table)
    extra = table[(table["pid"] == who) & (table["accessories"] == 1)]
    rows = extra.assign(split="train", draw=-1)[pool.columns]
    leaky = pd.concat([pool, rows], ignore_index=True)
    with pytest.raises(SplitError, match=f"person in training and in test: {who}$"):
        pretrain.pretrain(p, "moco_v3", pretrain_variants(p)["moco_v3"], table, leaky, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_stage_refuses_pretrained_weights_that_know_its_test_persons(table, tmp_path):
    p = told(tmp_path, pretrain={"epochs": 1})
    made = learn(p, table, tmp_path / "pre")
    pool = pretrain.pretrain_manifest(p, table)
    people = sorted(persons_taught(read_checkpoint(made.checkpoint)["taught"], table))
    assert people == sorted(pool.loc[pool["split"] == "train", "pid"].unique())
    manifest = manifest_for(p, table)
    swapped = manifest.assign(pid=manifest["pid"].replace({15: people[0], people[0]: 15}))
    with pytest.raises(SplitError, match=f"who are tested or held out here: {people[0]}"):
        job.check_start(job.job_of("x", p.stage1, p, made.checkpoint, table, swapped, tmp_path))


def test_a_tower_that_knows_test_persons_is_refused(table, tmp_path):
    """The study's own tower may be a file of ours, too."""
    p = told(tmp_path, pretrain={"epochs": 1})
    made = learn(p, table, tmp_path / "pre")
    people = sorted(persons_taught(read_checkpoint(made.checkpoint)["taught"], table))
    own = p.model.model_copy(update={"name": str(made.checkpoint), "pretrained": ""})
    known = p.model_copy(update={"model": own})
    manifest = manifest_for(p, table)
    job.check_start(job.job_of("x", p.stage1, known, None, table, manifest, tmp_path))
    swapped = manifest.assign(pid=manifest["pid"].replace({15: people[0], people[0]: 15}))
    with pytest.raises(SplitError, match=f"who are tested or held out here: {people[0]}"):
        job.check_start(job.job_of("x", p.stage1, known, None, table, swapped, tmp_path))


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_repeats_itself_and_is_taken_again(table, tmp_path, capsys, name):
    p = told(tmp_path, variants=VARIANTS, pretrain={"epochs": 2, "patience": 0})
    one, two = (learn(p, table, tmp_path / folder, name) for folder in "ab")
    pd.testing.assert_frame_equal(one.history, two.history)
    assert one.encoder.weights_sha256 == two.encoder.weights_sha256
    assert len(one.history) == 2 and {"contrast", "total", "select_map", "top1"} <= set(one.history)
    assert one.facts | {"seconds": 0} == two.facts | {"seconds": 0}
    assert set(one.facts["held"]) == {"0", "0.5", "1"} and one.facts["selected_by"] == "select_map"
    labelled = {"supcon": 8, "hybrid": 4}.get(name, 0)
    assert (one.facts["persons"], one.facts["labelled"]) == (8, labelled)
    if name == "moco_v2":  # of 8 persons, 2 aspects, 3 shots but one, and one with a ring
        assert one.facts["queue"] == one.facts["images"] // 4 == 12
        assert "a quarter of the 48 photographs" in capsys.readouterr().out
    again = learn(p, table, tmp_path / "a", name)
    assert "trained before" in capsys.readouterr().out
    assert again.encoder.weights_sha256 == one.encoder.weights_sha256
    assert again.facts == one.facts


def test_the_loss_falls_and_the_patch_projection_does_not_move(table, tmp_path):
    p = told(tmp_path, pretrain={"epochs": 8, "patience": 0, "wise_ft": [1]})
    made = learn(p, table, tmp_path / "a")
    assert made.history["contrast"].iloc[-3:].mean() < 0.9 * made.history["contrast"].iloc[0]
    fresh = study_encoder(p).visual
    stem = first_convolution(made.encoder.visual).weight
    assert torch.equal(stem, first_convolution(fresh).weight)
    moved = [n for n, v in fresh.state_dict().items() if not torch.equal(v, weights(made)[n])]
    assert len(moved) > 10 and "class_embedding" in moved
    loose = told(tmp_path, pretrain={"epochs": 1, "freeze_stem": False, "wise_ft": [1]})
    other = learn(loose, table, tmp_path / "b")
    assert not torch.equal(first_convolution(other.encoder.visual).weight, stem)
    count = other.facts["trained_parameters"] - made.facts["trained_parameters"]
    assert count == stem.numel()


def test_a_batch_is_two_different_views_of_each_image(table, tmp_path, monkeypatch):
    asked, usual = [], views.Contrast.forward

    def spy(self, first, second, images, labels):
        asked.append((first, second, images, labels))
        return usual(self, first, second, images, labels)

    monkeypatch.setattr(views.Contrast, "forward", spy)
    colours = {"degrees": 5.0, "blur": 0.0, "crop": 0.0, "colour": 0.01, "grey": 0.0}
    p = told(
        tmp_path, variants=["supcon"], pretrain={"epochs": 1, "augment": colours, "batch_size": 32}
    )
    learn(p, table, tmp_path / "a", "supcon")
    for first, second, images, labels in asked:
        assert not (first == second).flatten(1).all(dim=1).any()
        means = [view.mean((2, 3)) for view in (first, second)]  # of squares: they tell who it is
        nearest = torch.cdist(*means).argmin(dim=1)
        assert (labels[nearest] == labels).float().mean() > 0.8
        assert len(images) == len(labels) == 32 and (labels >= 0).all()


def test_another_seed_is_another_training(table, tmp_path):
    p = told(tmp_path, pretrain={"epochs": 1})
    one = learn(p, table, tmp_path / "a")
    two = learn(p.model_copy(update={"seed": 1}), table, tmp_path / "b")
    assert one.history["contrast"].tolist() != two.history["contrast"].tolist()


def test_a_killed_training_ends_with_the_same_bits(table, tmp_path):
    name = "moco_v2"  # a copy, a queue and its pointer
    p = told(tmp_path, variants=[name], pretrain={"patience": 0})
    whole = learn(p, table, tmp_path / "whole", name)
    child = os.fork()
    if not child:
        usual = views._begin

        def dies(settings, job, epoch):
            if epoch == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            usual(settings, job, epoch)

        views._begin = dies
        learn(p, table, tmp_path / "killed", name)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoints" / f"{name}.resume.pt").is_file()
    after = learn(p, table, tmp_path / "killed", name)
    pd.testing.assert_frame_equal(after.history, whole.history)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(after)[key]), key
    left = sorted(file.name for file in (tmp_path / "killed" / "checkpoints").glob("*.pt"))
    assert not left, "nothing is left that only a killed run needs"


def test_several_devices_are_no_hindrance(table, tmp_path):
    p = told(tmp_path, pretrain={"epochs": 1}, device={"accelerator": "cpu", "devices": 2})
    alone = told(tmp_path, pretrain={"epochs": 1})
    one, two = learn(p, table, tmp_path / "a"), learn(alone, table, tmp_path / "b")
    keys = [read_checkpoint(made.checkpoint)["key"] for made in (one, two)]
    assert keys[0] == keys[1]


# -- what is kept ---------------------------------------------------------------------------------


def test_held_out_persons_alone_choose_the_epoch_and_alpha(table, tmp_path, monkeypatch):
    shown: list[set[str]] = []
    usual = views.scorer

    def spy(p, manifest, *rest):
        shown.append(set(manifest["split"]))
        return usual(p, manifest, *rest)

    monkeypatch.setattr(views, "scorer", spy)
    p = told(tmp_path, pretrain={"patience": 0})
    made = learn(p, table, tmp_path / "a")
    assert shown == [{"select"}]
    held, alpha = made.facts["held"], made.facts["alpha"]
    assert held[f"{alpha:g}"] == max(held.values())
    best = made.history.loc[made.history["epoch"] == made.facts["chosen_epoch"], "select_map"]
    assert best.item() == pytest.approx(made.history["select_map"].max())
    assert held["1"] == pytest.approx(best.item()), "the end is the chosen epoch's"


def rigged(monkeypatch, scores: list[float]) -> None:
    """Held-out persons who give these scores one after the other, the last one ever after."""
    told = list(scores)

    def scorer(*_):
        return lambda _: {"select_map": told.pop(0) if len(told) > 1 else told[0]}, "select_map"

    monkeypatch.setattr(views, "scorer", scorer)


def test_a_harmful_training_leaves_the_start_and_says_so(table, tmp_path, monkeypatch, capsys):
    rigged(monkeypatch, [0.5, 0.6, 0.9, 0.8, 0.7, 0.6])  # an epoch, then alpha 0, 0.5 and 1
    p = told(tmp_path, pretrain={"epochs": 2})
    made = learn(p, table, tmp_path / "a")
    assert made.facts["alpha"] == 0 and made.facts["held"] == {"0": 0.9, "0.5": 0.8, "1": 0.7}
    assert "found best by its start" in capsys.readouterr().out
    for name, value in study_encoder(p).visual.state_dict().items():
        assert torch.equal(value, weights(made)[name])


def test_of_equal_shares_the_larger_one_and_its_weights_are_between_the_ends(
    table, tmp_path, monkeypatch
):
    ends = []
    for scores in ([0.5, 0.5, 0.9, 0.1], [0.5, 0.1, 0.1, 0.9], [0.5, 0.1, 0.8, 0.8]):
        rigged(monkeypatch, scores)
        p = told(tmp_path, pretrain={"epochs": 1, "wise_ft": [0, 0.25, 1]})
        made = learn(p, table, tmp_path / f"{len(ends)}")
        ends.append((made.facts["alpha"], weights(made)))
    (quarter, between), (one, end), (equal, _) = ends
    assert (quarter, one, equal) == (0.25, 1, 1)
    start = study_encoder(told(tmp_path)).visual.state_dict()
    for name, value in interpolate(start, end, 0.25).items():
        assert torch.equal(value, between[name]), name


def test_patience_ends_a_training_that_held_out_persons_do_not_like(table, tmp_path, monkeypatch):
    rigged(monkeypatch, [0.9, 0.5])
    made = learn(told(tmp_path, pretrain={"epochs": 9, "patience": 2}), table, tmp_path / "a")
    assert len(made.history) == 3 and made.facts["chosen_epoch"] == 1


@pytest.mark.parametrize(("shares", "kept"), [([0, 0.4, 1], 0.5), ([1], 1), ([0.3], 0.3)])
def test_without_held_out_persons_the_last_weights_and_a_fixed_share(
    table, tmp_path, capsys, shares, kept
):
    nobody = {"mode": "person_disjoint", "select": "none", "draws": 2}
    p = told(tmp_path, split=nobody, pretrain={"epochs": 2, "wise_ft": shares})
    made = learn(p, table, tmp_path / "a")
    assert (made.facts["alpha"], made.facts["held"], made.facts["selected_by"]) == (kept, {}, "")
    assert made.facts["chosen_epoch"] == 2
    assert f"nobody is held out to choose alpha: {kept} of" in capsys.readouterr().out


def test_batchnorms_that_learn_take_their_statistics_anew_between_the_ends(
    table, tmp_path, monkeypatch
):
    asked = []
    sizes = lambda visual, batches: asked.append([len(b) for b in batches])  # noqa: E731
    monkeypatch.setattr(views.soup, "reestimate_bn", sizes)
    tower = {"name": "toy-rn", "pretrained": "random"}
    for frozen in (True, False):
        own = {"epochs": 1, "freeze_bn": frozen, "wise_ft": [0, 0.5, 1]}
        p = told(tmp_path, model=tower, pretrain=own)
        made = learn(p, table, tmp_path / str(frozen))
        buffers = study_encoder(p).visual.named_buffers()
        still = all(torch.equal(v, weights(made)[n]) for n, v in buffers)
        if frozen:
            assert still and not asked
        else:
            assert len(asked) == 1 + (made.facts["alpha"] == 0.5)
            assert set(asked[0]) == {p.pretrain.batch_size} != {p.evaluation.batch_size}


# -- stage 1 from it ------------------------------------------------------------------------------


def run_folder(reports: Path, aspect: str, notebook: str, tag: str = "") -> Path:
    return reports / "squares" / "seed0" / aspect / notebook / tag


def test_stage_1_starts_from_it_and_one_serves_all_aspects(table, tmp_path, capsys, monkeypatch):
    made = {}
    for aspect in ASPECTS:
        stage1 = STUDY["stage1"] | {"pretrain": "moco_v3"}
        p = told(tmp_path, aspect, pretrain={"epochs": 1}, stage1=stage1)
        folder = run_folder(tmp_path, aspect, "02_stage1", "moco")
        made[aspect] = stages.stage1(p, table, manifest_for(p, table), folder)
    words = capsys.readouterr().out
    assert words.count("no pre-training moco_v3 of study squares") == 1
    files = list(tmp_path.rglob("moco_v3.pth"))
    assert files == [run_folder(tmp_path, "dorsal_r", "08_pretrain") / "checkpoints/moco_v3.pth"]
    held = read_checkpoint(files[0])
    for trained in made.values():
        assert read_checkpoint(trained.checkpoint)["parent"] == held["sha256"]
        assert trained.facts["pretrained_on"] == held["facts"]["manifest_sha256"]
    plain = told(tmp_path, pretrain={"epochs": 1})
    folders = [run_folder(tmp_path, "dorsal_r", "02_stage1", tag) for tag in ("moco", "")]
    manifest = manifest_for(p := p.model_copy(update={"aspect": "dorsal_r"}), table)
    assert stages.stage1_weights(p, table, manifest, folders).parent.parent == folders[0]
    other = stages.stage1_weights(plain, table, manifest, folders)
    assert other.parent.parent == folders[1], "stage 1 without it is another training"
    for path, told_on in ((made["dorsal_r"].checkpoint, True), (other, False)):
        second = stages.stage2(p, "ce", p.stage2, path, table, manifest, tmp_path / str(told_on))
        assert ("pretrained_on" in second.facts) == told_on
    monkeypatch.setattr(job.Job, "pretrained_on", "others, from whom nothing was kept")
    again = stages.stage1_weights(p, table, manifest, folders)
    assert read_checkpoint(again)["facts"]["pretrained_on"].startswith("others")


def test_what_another_aspects_run_left_is_found_and_other_settings_are_not(table, tmp_path):
    there = run_folder(tmp_path, "palmar_r", "08_pretrain", "wide")
    p = told(tmp_path, pretrain={"epochs": 1}, stage1={"pretrain": "moco_v3"})
    made = learn(p, table, there)
    folders = pretrain.pretraining_folders(p, run_folder(tmp_path, "dorsal_r", "02_stage1", "t"))
    mine = run_folder(tmp_path, "dorsal_r", "08_pretrain")
    assert folders == [mine, there, mine], "the run has no tag"
    assert pretrain.pretrained_weights(p, table, folders) == made.checkpoint
    longer = told(tmp_path, pretrain={"epochs": 2}, stage1={"pretrain": "moco_v3"})
    assert pretrain.pretrained_weights(longer, table, folders) != made.checkpoint
    assert pretrain.pretraining_folders(p, tmp_path) == [tmp_path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage1.pretrain": "moco_v4"}, "no 'moco_v4'; did you mean 'moco_v3'"),
        ({"pretrain.variants": ["moco_v5"]}, r"no pretrain 'moco_v5'; did you mean 'moco_v"),
        ({"pretrain.accumulate": 2}, "enlarges no batch"),
        ({"pretrain.ema": 0.9}, "interpolated instead"),
        ({"pretrain.losses": [{"type": "triplet"}]}, "leave them empty"),
        ({"pretrain.augment.mixup": 0.2}, "no view of an image"),
        ({"pretrain.sampler.type": "pk"}, "only with labelled: 1"),
        ({"pretrain.keys": "tower"}, "those of a momentum tower"),
        ({"pretrain.wise_ft": [1, 0]}, "do not rise"),
        ({"pretrain.queu": 3}, "did you mean 'pretrain.queue'"),
        ({"pretrain.variants": {"a": {"variants": {}}}}, "no variants of its own"),
        ({"pretrain.variants": {"stage1": {}}}, "the name of another row"),
    ],
)
def test_what_cannot_be_is_said_at_once(change: dict, words: str):
    with pytest.raises(ParamError, match=words):
        load(overrides={"pretrain.variants": ["moco_v3"]} | change)


def test_every_file_of_pre_training_builds_and_says_what_it_is():
    files = sorted((ROOT / "params" / "pretrain").glob("*.yaml"))
    assert sorted(VARIANTS) == [file.stem for file in files]
    found = pretrain_variants(load(overrides={"pretrain.variants": list(VARIANTS)}))
    assert len({str(settings) for settings in found.values()}) == len(VARIANTS)
    assert (found["moco_v3"].queue, found["moco_v3"].predictor) == (0, True)
    assert (found["moco_v2"].queue, found["moco_v2"].momentum) == (4096, (0.999, 0.999))
    assert (found["supcon"].keys, found["supcon"].temperature) == ("tower", 0.1)
    assert 0 < found["hybrid"].labelled < 1
    assert all(file.read_text().startswith("# ") for file in files)
    for study in ("demo", "smoke", "11k_vitb16", "hd_vitb16"):
        names = {name.removesuffix("_whole") for name in pretrain_variants(load(study=study))}
        assert names <= set(VARIANTS)
    assert list(pretrain_variants(load(overrides={"pretrain.variants": {}}))) == ["pretrain"]
