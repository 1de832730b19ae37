"""Which models are compared: what finished runs left, nobody twice, none that knows the tested."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy_hands

from handclip_lib.aspects import CHAIN_FILES
from handclip_lib.data.own import read_own
from handclip_lib.data.splits import make_manifest
from handclip_lib.device import make_fabric
from handclip_lib.models.checkpoint import save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.params import ParamError, load
from handclip_lib.report import lineup
from handclip_lib.report.lineup import Contender
from handclip_lib.report.runs import open_run, run_folder
from handclip_lib.report.spaces import Space, images_of, space_of
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model
from handclip_lib.train import stages
from handclip_lib.train.job import check_start, job_of
from handclip_lib.train.taught import also_taught, persons_taught

FACTS = {
    "images": 10, "shown_again": 2, "persons": 3, "identities": 3, "epochs": 4, "seconds": 1.5,
    "trained_parameters": 70, "chosen_epoch": 1, "selected_by": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    toy_hands.small_towers(tmp_path_factory.mktemp("configs"))
    return toy_hands.squares(tmp_path_factory.mktemp("hands"), 8, 3)


@pytest.fixture(scope="module")
def manifest(table: pd.DataFrame) -> pd.DataFrame:
    return make_manifest(table, "dorsal_r", draws=1)


@pytest.fixture(scope="module")
def encoder(table: pd.DataFrame) -> Encoder:
    return load_encoder("toy-vit", "random")


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDCLIP_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.fixture
def told(tmp_path: Path):
    def make(tag: str = "", **comparison) -> Params:
        study = {
            "data": {"dataset": "own"},
            "split": {"draws": 1},
            "model": {"name": "toy-vit", "pretrained": "random"},
            "device": {"accelerator": "cpu"},
            "stage1": {"epochs": 1, "batch_size": 6, "head_epochs": 0, "save_seconds": 0},
            "comparison": comparison,
        }
        path = tmp_path / "squares.yaml"
        path.write_text(json.dumps(study))
        return load("dorsal_r", str(path), tag=tag, overrides={"experiment": tag})

    return make


@pytest.fixture
def finished(encoder, table):
    """A run folder with checkpoints, as its notebook leaves it."""

    def make(p, notebook, files, *, taught=(), done=True, device=None, also=(), **header) -> Path:
        q = p.model_copy(update=header)
        folder = run_folder(notebook, q)
        whom = {f"own {Path(table.attrs['root']).resolve()}": list(taught)}
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in files:
            extra = {"facts": FACTS, "taught": whom}
            save_checkpoint(folder / f"checkpoints/{name}.pth", encoder, {}, "", "k", extra)
        facts = {name: FACTS for name in (*files, *also)}
        steps = dict.fromkeys(files, FACTS | {"trained_parameters": 90})
        if files:
            steps[files[0]] = FACTS
        metrics = {k: getattr(q, k) for k in ("study", "aspect", "seed", "tag")} | {
            "notebook": notebook,
            "variants": {name: {} for name in ("zero_shot", *files)},
            "training": {"chain": steps} if notebook.startswith("05") else facts,
        }
        memory = {"host": 300.0} | ({"device": device} if device else {})
        (folder / "stamp.json").write_text(json.dumps({"peak_memory_mb": memory}))
        if done:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return make


@pytest.fixture
def found(table, manifest):
    def run(p: Params) -> dict[str, Contender]:
        models = lineup.lineup(open_run("06_eval_rerank", p), table, manifest)
        return {one.name: one for one in models}

    return run


def test_models_come_in_the_order_of_the_notebooks(told, finished, found, capsys):
    p = told()
    folder = finished(p, "05_sequential_chain", ["step1_dorsal_r", "step2_palmar_r"])
    finished(p, "04_prompt_learning", ["clip_reid"], also=["prompts"])
    finished(p, "03_stage2_losses", ["mba", "ce"], device=900.0)
    finished(p, "03_stage2_losses", ["ce"], tag="slow")
    first = finished(p, "02_stage1", ["stage1"])
    finished(p, "01_baseline_clip", ["beside"])
    models = found(p)
    assert list(models) == [
        "zero_shot", "stage1", "mba", "ce", "ce, slow", "clip_reid", "chain"
    ]  # fmt: skip
    stage1, slow, chain = models["stage1"], models["ce, slow"], models["chain"]
    assert stage1.tower.name == str(first / "checkpoints/stage1.pth")
    assert (stage1.source, stage1.losses) == ("02_stage1", "cross-entropy")
    assert slow.tower.name.endswith("03_stage2_losses/slow/checkpoints/ce.pth")
    assert slow.source == "03_stage2_losses, slow"
    assert chain.tower.name == str(folder / "checkpoints/step2_palmar_r.pth")
    own = {"image_passes": 12 * 4, "seconds": 1.5, "trained_parameters": 70, "kept_epoch": 1}
    assert stage1.cost == own
    more = {"image_passes": 2 * 12 * 4, "seconds": 3.0, "trained_parameters": 90}
    assert chain.cost == own | more and chain.losses == "chain of stage1"
    assert models["zero_shot"] == Contender("zero_shot", taught={})
    assert not models["zero_shot"].cost
    assert (models["mba"].memory_mb, stage1.memory_mb) == (900.0, 300.0)
    shown = lineup.model_table(list(models.values()))
    assert shown.loc["zero_shot"].tolist() == ["the study's tower", "–", "–", "–"]
    row = ["05_sequential_chain", "chain of stage1", "1", chain.weights[:16]]
    assert shown.loc["chain"].tolist() == row
    same = lineup.distinct(list(models.values()), p)
    assert [one.name for one in same] == ["zero_shot", "stage1"], "copies of one toy tower"
    seen = lineup.looked_at(list(models.values()), told(shown=["mba", "ce", "mbaa"]))
    assert [one.name for one in seen] == ["stage1", "mba", "ce", "ce, slow"]
    said = capsys.readouterr().out
    assert "ce, slow has the very weights of stage1: kept from epoch 1" in said
    (folder / "checkpoints/step2_palmar_r.pth").rename(folder / "gone.pth")
    (first.parent / "03_stage2_losses/checkpoints/mba.pth").unlink()
    assert "mba" not in found(p)
    assert "mba of 03_stage2_losses is left out: there is no " in capsys.readouterr().out
    assert "comparison.shown: no model 'mbaa' is there; did you mean 'mba'?" in said


def test_the_chains_last_file(told, finished, found):
    p = told()
    finished(p, "02_stage1", ["stage1"])
    many = [f"step{k}_dorsal_r" for k in range(1, 11)]
    for files in (many, CHAIN_FILES):
        folder = finished(p, "05_sequential_chain", files, aspect="palmar_l")
        more = (
            folder / "checkpoints" / f"{files[-1]}_prompts.pth"
        )  # beside a step's, by some recipes
        more.write_bytes(b"no tower")
        assert Path(found(p)["chain"].tower.name) == folder / "checkpoints" / f"{files[-1]}.pth"
    (folder / "checkpoints" / f"{files[-1]}.pth").unlink()
    assert "chain" not in found(p)


def test_other_runs_are_not_of_this_comparison(told, finished, found):
    p = told()
    finished(p, "02_stage1", ["stage1"])
    finished(p, "03_stage2_losses", ["of_seed_1"], seed=1)
    finished(p, "03_stage2_losses", ["of_palm"], aspect="palmar_r")
    finished(p, "03_stage2_losses", ["unfinished"], done=False, tag="x")
    finished(p, "05_sequential_chain", ["step1_dorsal_r"], seed=1)
    finished(p, "08_pretrain", ["moco_v3"], seed=1)
    assert list(found(p)) == ["zero_shot", "stage1"]


def test_one_pre_training_is_of_all_aspects_and_this_ones_own_counts_first(
    told, finished, found, table, manifest
):
    p = told()
    finished(p, "02_stage1", ["stage1"])
    for aspect in ("palmar_l", "palmar_r"):
        folder = finished(p, "08_pretrain", ["moco_v3", "pretrain"], aspect=aspect)
    first = folder.parents[1] / "palmar_r" / "08_pretrain"
    models = found(p)
    assert list(models) == ["zero_shot", "stage1", "moco_v3", "pretrain"]
    assert Path(models["moco_v3"].tower.name) == first / "checkpoints" / "moco_v3.pth"
    assert (models["pretrain"].source, models["moco_v3"].losses) == ("08_pretrain", "–")
    assert models["pretrain"].losses == "contrast of views"
    other = p.model_copy(update={"aspect": "palmar_l"})
    of_other = {one.name: one for one in lineup.finished_models(other, table, manifest)}
    assert Path(of_other["moco_v3"].tower.name) == folder.parents[1] / (
        "palmar_l/08_pretrain/checkpoints/moco_v3.pth"
    )


def test_a_name_that_two_have_is_refused(told, finished, found, encoder, tmp_path):
    finished(told(), "02_stage1", ["stage1"])
    path = save_checkpoint(tmp_path / "ce.pth", encoder, {}, "", "k", {"taught": {}})
    p = told(models=[str(path)])
    assert list(found(p)) == ["zero_shot", "stage1", "ce"]
    finished(p, "03_stage2_losses", ["ce"])
    with pytest.raises(ParamError, match="two models would be called ce; rename"):
        found(p)


def test_further_models_by_path_and_by_name(told, finished, found, encoder, tmp_path, table):
    finished(told(), "02_stage1", ["stage1"])
    path = save_checkpoint(tmp_path / "mine.pth", encoder, {}, "", "k", {"taught": {}})
    p = told(models=[str(path), "tiny_rn"])
    models = found(p)
    assert list(models)[2:] == ["mine", "tiny_rn"]
    assert models["mine"].source == "comparison.models" and models["mine"].seconds is None
    assert models["mine"].encoder(p).weights_sha256 == encoder.weights_sha256
    assert models["tiny_rn"].encoder(p).dims["proj"] == load_encoder("tiny_rn").dims["proj"]
    assert models["zero_shot"].encoder(p).name == "toy-vit"


def test_who_was_taught_a_tested_person_is_left_out(told, finished, found, manifest, capsys):
    p = told()
    trained = set(manifest.loc[manifest["split"] == "train", "pid"])
    tested = sorted(set(manifest.loc[manifest["split"] == "query", "pid"]))
    finished(p, "02_stage1", ["stage1"], taught=trained)
    finished(p, "03_stage2_losses", ["leaky"], taught={*trained, *tested[:2]})
    assert list(found(p)) == ["zero_shot", "stage1"]
    said = capsys.readouterr().out
    assert f"leaky is left out: it was taught persons who are tested here: {tested[0]}, " in said
    assert "stage1" not in said
    finished(p, "02_stage1", ["stage1"], taught=tested)
    with pytest.raises(ParamError, match=r"no model 'stage1'; there are zero_shot$"):
        found(p)


def test_a_weights_file_is_asked_wherever_it_is_named_from(
    told, finished, found, manifest, encoder, table, tmp_path, monkeypatch, capsys
):
    finished(told(), "02_stage1", ["stage1"])
    tested = sorted(set(manifest.loc[manifest["split"] == "query", "pid"]))
    whom = {f"own {Path(table.attrs['root']).resolve()}": tested}
    path = save_checkpoint(tmp_path / "leaky.pth", encoder, {}, "", "k", {"taught": whom})
    monkeypatch.setenv("HOME", str(tmp_path))
    for tag, name in (("whole", str(path)), ("home", "~/leaky.pth")):
        assert "leaky" not in found(told(tag, models=[name]))
        assert "leaky is left out" in capsys.readouterr().out
    told_to = found(told("random", models=[{"name": "toy-vit", "pretrained": "random"}]))
    assert list(told_to)[2:] == ["toy-vit"]


def test_a_tower_that_cannot_be_had_is_said_before_stage_1_is_trained(told, found, monkeypatch):
    monkeypatch.setattr(stages, "stage1_weights", lambda *_: pytest.fail("trained"))
    for tag, model, why in (
        ("none", "toy-vit", "toy-vit needs weights: set pretrained"),
        ("typo", "tinny_rn", "unknown model 'tinny_rn'; did you mean 'tiny_rn'"),
        ("lost", {"name": "toy-vit", "pretrained": "lost.pth"}, "no weights file .*lost.pth"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            found(told(tag, models=[model]))


def test_persons_of_another_data_set_are_others(table):
    mine = f"own {Path(table.attrs['root']).resolve()}"
    held = {mine: [1, 2], "11k": [3]}
    assert persons_taught(held, table) == {1, 2}
    assert persons_taught(held, table.assign(dataset="11k")) == {3}
    assert persons_taught(held, table.assign(dataset="HD")) == set()


def test_persons_of_a_folder_that_was_moved_copied_or_filled_up_are_known_again(
    table, told, finished, manifest, encoder, tmp_path
):
    mine = sorted(set(manifest.loc[manifest["split"] == "train", "pid"]))
    folder = shutil.copytree(table.attrs["root"], tmp_path / "a folder")
    here = table.copy()
    here.attrs = {**table.attrs, "root": str(folder)}
    p = told()
    job = job_of("a", p.stage1, p, None, here, manifest, tmp_path)
    held = check_start(job)
    moved = table.copy()
    moved.attrs = {**table.attrs, "root": str(shutil.move(folder, tmp_path / "another #2"))}
    assert persons_taught(held, moved) == persons_taught(held, here) == set(mine)
    fuller = table.iloc[1:].copy()
    fuller.attrs = here.attrs
    assert persons_taught(held, fuller) == set(mine), "a folder that changed where it lies"
    fuller.attrs = moved.attrs
    assert persons_taught(held, fuller) == set(), "another folder with other photographs"
    photograph = Path(moved.attrs["root"]) / table["image"].iloc[0]
    photograph.write_bytes(photograph.read_bytes() + b"0")
    assert persons_taught(held, moved) == set(), "the same names, other photographs"


def test_own_persons_are_known_by_their_ids_when_a_new_one_moves_the_numbers(tmp_path):
    """Named persons are numbered in the order of their names; ids may turn into names."""

    def read(ids, names=None):
        rows = [f"{one}.png,{one}" + (f",{names[i]}" if names else "") for i, one in enumerate(ids)]
        path = tmp_path / "own.csv"
        path.write_text("\n".join(["image,pid" + (",name" if names else ""), *rows]))
        return read_own(path, check_files=False)

    def who(table):
        return {table.set_index("pid")["image"][pid] for pid in persons_taught(taught, table)}

    taught = also_taught({}, read(["dora", "emil", "finn"]), [0, 2])
    assert "dora" not in str(taught)
    assert who(read(["adam", "dora", "emil", "finn", "gina"])) == {"dora.png", "finn.png"}
    assert who(read(["bea", "emil", "finn"])) == {"finn.png"}
    taught = also_taught(taught, read(["adam", "dora"]), [0])
    assert who(read(["adam", "dora", "emil", "finn"])) == {"adam.png", "dora.png", "finn.png"}
    taught = also_taught({}, read(["10", "11", "12"], ["Anna", "Ben", "Cem"]), [10, 11])
    both = {"10.png", "11.png"}
    assert who(read(["10", "11", "12", "13"], ["Anna", "Ben", "Cem", "Anna"])) == both
    assert who(read(["10", "11", "12"], ["Anna B.", "", "Cem"])) == both
    assert who(read(["10", "11", "12", "anna"])) == both, "numbers that became names"
    (tmp_path / "b.csv").write_text("image,pid\n10.png,10\n11.png,11\n13.png,12")
    other = read_own(tmp_path / "b.csv", check_files=False)
    assert persons_taught(taught, other) == set(), "another list of the same folder"


def test_a_reference_that_is_no_model(told, finished, found):
    finished(told(), "02_stage1", ["stage1"])
    with pytest.raises(ParamError, match=r"no model 'stage2'; did you mean 'stage1'\?.*zero_shot"):
        found(told(reference="stage2"))


def test_stage_1_is_trained_where_it_is_missing(told, found, reports, capsys, monkeypatch):
    p = told()
    one = found(p)["stage1"]
    assert "training it first" in capsys.readouterr().out
    assert one.tower.name == str(run_folder("02_stage1", p) / "checkpoints/stage1.pth")
    assert one.seconds > 0 and one.image_passes == 8 and one.source == "02_stage1"
    assert list(found(p)) == ["zero_shot", "stage1"]
    assert "training it first" not in capsys.readouterr().out
    tagged = told(tag="again")
    monkeypatch.setattr(stages, "stage1", None)  # nothing is trained: the plain run's serves
    assert found(tagged)["stage1"].tower == one.tower


# --- features -----------------------------------------------------------------------------------


def test_a_space_knows_its_images():
    z = np.eye(3, dtype=np.float32)
    space = Space(("a", "b", "c"), z)
    assert (space.of(["c", "a", "c"]) == z[[2, 0, 2]]).all()
    with pytest.raises(ValueError, match="no feature of x"):
        space.of(["a", "x", "y"])


def test_a_models_space(told, table, encoder, tmp_path):
    path = save_checkpoint(tmp_path / "mine.pth", encoder, {}, "", "k", {"taught": {}})
    images = table["image"].tolist()[:5]
    p = told()
    one = Contender("mine", Model(name=str(path), pretrained=""))
    space = space_of(one, p, table, images, make_fabric(p))
    assert space.images == tuple(images) and space.z.shape == (5, 48)
    flipped = space_of(one, p, table, images, make_fabric(p), flipped=True).z
    for rows in (space.z, flipped):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert not np.allclose(space.z, flipped, atol=1e-3)
    short = p.model_copy(
        update={"evaluation": p.evaluation.model_copy(update={"feature": ("proj",)})}
    )
    part = space_of(one, short, table, images, make_fabric(p))
    assert part.z.shape == (5, 16)


def test_manifests_of_all_aspects_or_one(told, table):
    p = told()
    assert list(lineup.manifests(p, table)) == ["dorsal_r"]
    both = pd.concat([table, table.assign(aspect="palmar_r", image="p" + table["image"])])
    both.attrs = table.attrs
    found = lineup.manifests(p, both)
    assert list(found) == ["dorsal_r", "palmar_r"]
    for aspect, rows in found.items():
        assert set(rows.loc[rows["split"] == "query", "aspect"]) == {aspect}
    names = images_of(*found.values())
    assert len(names) == len(set(names)) == len(both)
