"""What is exported is what was trained: bit-equal in plain open_clip, and unit rows by name."""

from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

from handclip_lib import cli, export
from handclip_lib.data.check import TableError
from handclip_lib.data.photographs import read_photographs
from handclip_lib.models import files, run_weights
from handclip_lib.models.checkpoint import save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.files import save_local_dir
from handclip_lib.models.run_weights import find_encoder
from handclip_lib.models.weights import CONFIG, WEIGHTS
from handclip_lib.params import ParamError

PERSONS = {"anna": 2, "ben": 3}


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return load_encoder("tiny")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """photographs/<person>/<k>.png, of noise."""
    draw, root = np.random.default_rng(0), tmp_path / "photographs"
    for person, count in PERSONS.items():
        (root / person).mkdir(parents=True)
        for k in range(count):
            noise = draw.integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(noise).save(root / person / f"{k}.png")
    return root


def outputs(model: torch.nn.Module, size: tuple[int, int]) -> torch.Tensor:
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        features: torch.Tensor = model.eval().encode_image(images)
    return features


# -- a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [("tiny", None), ("tiny", (56, 112)), ("tiny_rn", None), ("tiny_rn", 96)]
)
def test_the_printed_lines_load_a_model_with_bit_equal_features(tmp_path, name, size):
    encoder = load_encoder(name, image_size=size)
    said = export.export_model(encoder, tmp_path / "it's a hand")
    assert "bit-equal" in said
    names: dict = {}
    exec("\n".join(line.strip() for line in said.splitlines() if line.startswith("    ")), names)
    size = encoder.preprocess.size
    assert torch.equal(outputs(names["model"], size), outputs(encoder.model, size))
    picture = Image.fromarray(np.full((30, 40, 3), 99, np.uint8))
    assert names["preprocess"](picture).shape == (3, *size)


def test_half_precision_is_said_with_what_it_costs(tmp_path, tiny):
    said = export.export_model(tiny, tmp_path / "half", half=True)
    export.export_model(tiny, tmp_path / "full")
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("half", "full")]
    assert "half-precision" in said and "1.0000" in said  # its own weights shipped in float16
    assert sizes[0] < 0.6 * sizes[1]


def test_a_tower_that_open_clip_cannot_rebuild_is_refused(tmp_path):
    encoder = load_encoder("tiny_rn", image_size=(64, 96))
    with pytest.raises(ValueError, match="square"):
        export.export_model(encoder, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_resnet_of_full_size(tmp_path):
    encoder = load_encoder("RN50-quickgelu", "random")
    assert "bit-equal" in export.export_model(encoder, tmp_path / "m")
    with pytest.raises(ValueError, match="square"):
        export.export_model(load_encoder("RN50", "random", (256, 128)), tmp_path / "wide")


def test_a_wrong_file_is_noticed_and_the_older_model_stays(tmp_path, monkeypatch, tiny):
    folder = tmp_path / "m"
    export.export_model(tiny, folder)
    before = (folder / WEIGHTS).read_bytes()
    real = files._write

    def damaged(encoder, new, dtype):
        real(encoder, new, torch.bfloat16)

    monkeypatch.setattr(files, "_write", damaged)
    with pytest.raises(RuntimeError, match="other features than tiny"):
        export.export_model(tiny, folder, force=True)
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_older_model_is_replaced_only_when_told_to_and_nothing_else_ever(tmp_path, tiny):
    folder = tmp_path / "m"
    export.export_model(tiny, folder)
    with pytest.raises(FileExistsError, match="--force"):
        export.export_model(tiny, folder)
    export.export_model(tiny, folder, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="no model folder"):
        export.export_model(tiny, tmp_path / "mine", force=True)


def test_what_open_clip_does_otherwise_is_said(tmp_path):
    encoder = load_encoder("tiny", mirror_left=True)
    said = export.export_model(encoder, tmp_path / "m")
    assert "fit 'hand'" in said and "mirror left hands" in said
    assert load_encoder(str(tmp_path / "m")).preprocess == encoder.preprocess


# -- which encoder ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    calls: list[tuple] = []
    monkeypatch.setattr(run_weights, "load_encoder", lambda *told: calls.append(told))
    return calls


def test_one_checkpoint_of_a_run_is_taken_and_several_are_listed(tmp_path, asked):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "ce.pth").touch()
    (folder / "prompts.pth").touch()  # learned words, no tower
    find_encoder(str(tmp_path))
    (folder / "ce_triplet.pth").touch()
    find_encoder(str(tmp_path), variant="ce_triplet")
    assert asked == [(str(folder / f"{name}.pth"), "") for name in ("ce", "ce_triplet")]
    with pytest.raises(ParamError, match="choose: --variant ce, ce_triplet"):
        find_encoder(str(tmp_path))
    with pytest.raises(ParamError, match="no 'ce_tripel'; did you mean 'ce_triplet'"):
        find_encoder(str(tmp_path), variant="ce_tripel")
    with pytest.raises(ParamError, match="weights of its own"):
        find_encoder(str(tmp_path), pretrained="openai", variant="ce")


@pytest.mark.parametrize(("name", "size"), [("tiny", (56, 112)), ("tiny_rn", None)])
def test_the_weights_of_a_run_arrive_in_open_clip(tmp_path, name, size):
    encoder = load_encoder(name, image_size=size, mirror_left=True)
    with torch.no_grad():
        for weight in encoder.visual.parameters():
            weight.mul_(1.01)
    run = tmp_path / "02_stage1"
    (run / "checkpoints").mkdir(parents=True)
    path = save_checkpoint(run / "checkpoints" / "stage1.pth", encoder, {}, "", "")
    for source in (run, path):
        again = find_encoder(str(source))
        assert again.weights_sha256 == encoder.weights_sha256
        assert again.preprocess == encoder.preprocess
        export.export_model(again, tmp_path / "m", force=True)
        theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'm'}")
        size = encoder.preprocess.size
        assert torch.equal(outputs(theirs, size), outputs(encoder.model, size))


def test_names_files_and_model_folders_go_to_load_encoder(tmp_path, asked):
    (tmp_path / CONFIG).touch()
    (tmp_path / "w.pth").touch()
    for source in ("tiny", str(tmp_path), str(tmp_path / "w.pth")):
        find_encoder(source)
    find_encoder("ViT-B-16", "openai")
    sources = [told for told, _ in asked]
    assert sources == ["tiny", str(tmp_path), str(tmp_path / "w.pth"), "ViT-B-16"]
    assert asked[-1] == ("ViT-B-16", "openai")
    with pytest.raises(ParamError, match="of a run folder; tiny is none"):
        find_encoder("tiny", variant="ce")


def test_a_folder_that_is_nothing_says_so(tmp_path):
    with pytest.raises(ParamError, match=r"neither .* nor checkpoints"):
        find_encoder(str(tmp_path))


# -- a table of features ---------------------------------------------------------------------------


def expected(encoder: Encoder, paths: list[Path], feature=("pool", "proj")) -> np.ndarray:
    pixels = np.stack([encoder.preprocess.fit_image(Image.open(path))[0] for path in paths])
    with torch.inference_mode():
        z = encoder.features(encoder.preprocess.normalise(torch.from_numpy(pixels)))
    joined = np.concatenate([getattr(z, name).numpy() for name in feature], axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


@pytest.mark.parametrize("feature", [("pool", "proj"), ("penult",)])
def test_csv_and_npz_hold_the_unit_features_of_every_photograph(
    tmp_path, photographs, tiny, feature
):
    for ending in export.TABLES:
        said = export.export_features(tiny, tmp_path / f"out{ending}", photographs, feature)
        assert "5 photographs of 2 persons" in said
    table = pd.read_csv(tmp_path / "out.csv", dtype={f"f{k}": np.float32 for k in range(999)})
    held = np.load(tmp_path / "out.npz", allow_pickle=False)
    names = [f"{person}/{k}.png" for person, count in PERSONS.items() for k in range(count)]
    assert table["image"].tolist() == names == held["image"].tolist()
    assert table["person"].tolist() == [n.split("/")[0] for n in names] == held["person"].tolist()
    z = held["features"]
    assert z.dtype == np.float32 and z.shape == (5, sum(tiny.dims[name] for name in feature))
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    assert np.allclose(z, expected(tiny, [photographs / n for n in names], feature), atol=1e-5)
    assert np.array_equal(table.filter(regex=r"^f\d+$").to_numpy(), z), "digits were lost"
    assert tuple(held["feature"]) == feature and held["weights_sha256"] == tiny.weights_sha256


def test_folders_are_persons_where_each_photograph_has_one(photographs):
    table = read_photographs(photographs)
    assert set(table["person"]) == set(PERSONS) and set(table["aspect"]) == {""}
    (photographs / "anna" / "dorsal_l").mkdir()
    for picture in photographs.glob("anna/*.png"):
        picture.rename(picture.parent / "dorsal_l" / picture.name)
    table = read_photographs(photographs)
    assert set(zip(table["person"], table["aspect"], strict=True)) == {
        ("anna", "dorsal_l"),
        ("ben", ""),
    }
    assert set(read_photographs(photographs / "anna")["person"]) == {""}
    (photographs / "deep" / "er" / "and" / "deeper").mkdir(parents=True)
    (photographs / "ben" / "0.png").rename(photographs / "deep/er/and/deeper/0.PNG")
    table = read_photographs(photographs)
    assert table.set_index("image")["person"]["deep/er/and/deeper/0.PNG"] == "deeper"
    assert len(table) == 5
    (photographs / "again").symlink_to(photographs, target_is_directory=True)
    (photographs / ".hidden").mkdir()
    assert len(read_photographs(photographs)) == 5, "a link that leads in circles"
    outside = photographs.parent / "carla"
    (photographs / "ben").rename(outside)
    (photographs / "carla").symlink_to(outside, target_is_directory=True)
    table = read_photographs(photographs)
    assert len(table) == 5 and "carla" in set(table["person"]), "a person's folder is a link"


def test_a_csv_needs_images_only(photographs):
    path = photographs / "mine.csv"
    path.write_text("image;pid;aspect\nanna/0.png;7;palmar right\n../photographs/ben/1.png;;\n")
    table = read_photographs(path)
    assert table.to_numpy().tolist() == [
        ["anna/0.png", "7", "palmar_r"],
        ["ben/1.png", "", ""],
    ]
    path.write_text("image\nanna\\0.png\n")  # as Windows writes it
    assert read_photographs(path).to_numpy().tolist() == [["anna/0.png", "", ""]]
    path.write_text("image,aspect\nanna/0.png,dorsal_x\nanna/0.png,\n,\nanna/9.png,\n")
    with pytest.raises(TableError) as told:
        read_photographs(path)
    for problem in ("unknown aspect 'dorsal_x'; did you", "twice", "empty", "anna/9.png is mi"):
        assert problem in str(told.value)


def test_drawn_hands_bring_their_persons_and_aspects(tmp_path):
    line = f"demo-data --root {tmp_path / 'hands'} --persons 2 --shots 1 1 --workers 1"
    assert cli.main(line.split()) == 0
    table = read_photographs(tmp_path / "hands")
    assert table["person"].nunique() == 2 and table["aspect"].nunique() == 4


def test_a_model_that_mirrors_left_hands_asks_which_these_are(tmp_path, photographs):
    encoder = load_encoder("tiny", mirror_left=True)
    with pytest.raises(TableError, match="of 5 of 5 photographs nothing says which hand"):
        export.export_features(encoder, tmp_path / "out.npz", photographs)
    mirrored = photographs / "ben" / "mirrored.png"
    ImageOps.mirror(Image.open(photographs / "ben" / "0.png")).save(mirrored)
    path = photographs / "mine.csv"
    path.write_text("image,aspect\nben/0.png,dorsal_l\nben/mirrored.png,dorsal_r\n")
    export.export_features(encoder, tmp_path / "out.npz", path)
    z = np.load(tmp_path / "out.npz")["features"]
    assert np.allclose(z[0], z[1], atol=1e-6)
    plain = load_encoder("tiny")
    export.export_features(plain, tmp_path / "plain.npz", path)
    z = np.load(tmp_path / "plain.npz")["features"]
    assert not np.allclose(z[0], z[1], atol=1e-3)


def test_what_cannot_be_written_or_read_says_why(tmp_path, photographs, tiny):
    with pytest.raises(ParamError, match=r"ends in \.csv or \.npz"):
        export.export_features(tiny, tmp_path / "out.parquet", photographs)
    with pytest.raises(FileNotFoundError, match="give a folder or a CSV"):
        export.export_features(tiny, tmp_path / "out.csv", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no photographs"):
        export.export_features(tiny, tmp_path / "out.csv", tmp_path / "empty")
    (photographs / "anna" / "0.png").write_bytes(b"no picture")
    (photographs / "ben" / "1.png").write_bytes(b"")
    with pytest.raises(TableError, match=r"(?s)2 problems.*anna/0\.png.*ben/1\.png is empty"):
        export.export_features(tiny, tmp_path / "out.csv", photographs)
    assert not (tmp_path / "out.csv").exists()


def test_an_older_table_stays_unless_told_otherwise(tmp_path, photographs, tiny):
    out = tmp_path / "new" / "out.CSV"
    export.export_features(tiny, out, photographs)
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        export.export_features(tiny, out, photographs)
    assert out.read_text() == "mine"
    export.export_features(tiny, out, photographs, force=True)
    assert out.read_text().startswith("image,person,aspect,f0,")


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_both(tmp_path, photographs, capsys):
    assert cli.main(["export", "tiny", str(tmp_path / "m")]) == 0
    assert "create_model_and_transforms" in capsys.readouterr().out
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'm'}")
    assert model.visual.image_size
    table = ["--images", str(photographs), "--feature", "proj"]
    assert cli.main(["export", str(tmp_path / "m"), str(tmp_path / "z.npz"), *table]) == 0
    assert "5 photographs of 2 persons; proj, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("tiny out.csv", "out.csv: features of which photographs? --images"),
        ("tiny out.csv --images x --half", "--half is for a model's weights"),
        ("tiny out --feature proj", "say --images, too"),
        ("ViT-B-61 out", "unknown model 'ViT-B-61'; did you mean"),
        ("ViT-B-16 out", "ViT-B-16 needs weights"),
        ("tiny out.txt --images .", "ends in .csv or .npz"),
    ],
)
def test_wrongly_asked_is_one_message(line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *line.split()]) in (1, 2)
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said and not list(tmp_path.iterdir())


def test_save_local_dir_replaces_nothing_before_its_trial(tmp_path, tiny):
    seen = []
    save_local_dir(tiny, tmp_path / "m", trial=lambda new: seen.append(new.name))
    assert seen and seen[0] != "m" and (tmp_path / "m" / CONFIG).is_file()
