"""Weights files: what is kept comes back bit for bit; what does not belong is refused by name."""

import json
import os
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from handclip_lib.models import checkpoint
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.weights import WeightsError
from handclip_lib.train.resume import write_state

TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
RN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}
CONFIGS = {
    "check-vit": {"vision_cfg": VIT},
    "check-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "check-vit-deep": {"vision_cfg": VIT | {"layers": 3}},
    "check-rn": {"vision_cfg": RN},
    "check-timm": {"vision_cfg": TIMM, "custom_text": True},
}


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, told in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "text_cfg": TEXT} | told))
    open_clip.add_model_config(folder)


def make(name: str = "check-vit", size: tuple[int, int] | None = None, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return load_encoder(name, "random", size)


def saved(encoder: Encoder, folder: Path, **extra) -> Path:
    told = {"lr": 1e-5, "losses": ["cross_entropy"], "select": None}
    return save_checkpoint(folder / "ours.pth", encoder, told, "parent", "key", extra)


@torch.inference_mode()
def proj_of(encoder: Encoder) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return encoder.features(torch.randn(2, 3, *encoder.preprocess.size, generator=generator)).proj


# --- save and load ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("check-vit", None),
        ("check-vit", (128, 64)),
        ("check-vit-quickgelu", None),
        ("check-rn", (256, 128)),
        ("check-timm", (192, 160)),
    ],
)
def test_comes_back_bit_for_bit_by_file_alone_and_by_name(name, size, tmp_path):
    encoder = make(name, size)
    path = saved(encoder, tmp_path)
    for again in (load_encoder(str(path)), load_encoder(name, str(path))):
        assert again.weights_sha256 == encoder.weights_sha256
        assert again.preprocess == encoder.preprocess and again.name == name
        assert again.quick_gelu == encoder.quick_gelu and again.model_cfg == encoder.model_cfg
        assert torch.equal(proj_of(again), proj_of(encoder))
        assert not again.training
    other = make(name, size, seed=1)
    assert other.weights_sha256 != encoder.weights_sha256
    load_weights(other, path)
    assert torch.equal(proj_of(other), proj_of(encoder))


def test_file_holds_tensors_and_plain_values_that_say_what_it_is(tmp_path):
    encoder = make("check-vit-quickgelu", (128, 64))
    path = saved(encoder, tmp_path, facts={"images": 3})
    held = torch.load(path, weights_only=True)
    assert held["model"] == "check-vit-quickgelu" and held["quick_gelu"] is True
    assert held["grid"] == (8, 4) and held["preprocess"] == encoder.preprocess.as_dict()
    assert held["params"] == {"lr": 1e-5, "losses": ["cross_entropy"], "select": None}
    assert (held["parent"], held["key"]) == ("parent", "key")
    assert held["sha256"] == encoder.weights_sha256 and held["facts"] == {"images": 3}
    assert held["model_cfg"]["vision_cfg"]["image_size"] == [128, 64]
    assert read_checkpoint(path)["key"] == "key"
    assert os.listdir(tmp_path) == ["ours.pth"]
    with pytest.raises(ValueError, match="sha256"):
        saved(encoder, tmp_path, sha256="mine")
    with pytest.raises(TypeError):
        save_checkpoint(path, encoder, {"where": Path("x")}, "", "")


def test_open_clip_itself_takes_the_file(tmp_path):
    encoder = make()
    plain = open_clip.create_model("check-vit", str(saved(encoder, tmp_path))).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(plain.encode_image(images), encoder.features(images).proj)


def test_shipped_tower_and_its_trained_child(tmp_path):
    encoder = load_encoder("tiny")
    with torch.no_grad():
        encoder.visual.proj.mul_(1.5)
    path = saved(encoder, tmp_path)
    by_name, by_file = load_encoder("tiny", str(path)), load_encoder(str(path))
    assert by_name.weights_sha256 == by_file.weights_sha256 == encoder.weights_sha256
    assert by_file.preprocess == encoder.preprocess and by_file.preprocess.fit == "hand"
    with torch.inference_mode():
        assert torch.equal(by_file.encode_text(["a hand"]), encoder.encode_text(["a hand"]))
    assert load_encoder("tiny").weights_sha256 != encoder.weights_sha256


def test_a_file_that_moves_needs_no_folder_that_it_came_from(tmp_path, monkeypatch):
    path = saved(make(), tmp_path).rename(tmp_path / "elsewhere.pth")
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path / "another"))
    assert load_encoder(str(path)).name == "check-vit"


# --- other sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stride"), [("check-vit", 16), ("check-rn", 32)])
@pytest.mark.parametrize("way", ["load_encoder", "load_weights"])
def test_a_table_of_another_size_keeps_its_orientation(name, stride, way, tmp_path):
    """Stored at 256×128: a table that rises down the picture still does so at 128×256 and 64²."""
    encoder = make(name, (256, 128))
    table = _table(encoder)
    rows, columns = 256 // stride, 128 // stride
    with torch.no_grad():
        grid = torch.linspace(-1, 1, rows)[:, None, None].expand(rows, columns, table.shape[1])
        table[1:] = grid.reshape(rows * columns, -1)
    path = saved(encoder, tmp_path)
    for size in ((128, 256), (256, 256), (128, 128)):
        if way == "load_encoder":
            other = load_encoder(name, str(path), size)
        else:
            other = make(name, size)
            load_weights(other, path)
        assert other.preprocess.size == size
        height, width = size[0] // stride, size[1] // stride
        there = _table(other)[1:].detach().reshape(height, width, -1)[..., 0]
        assert (there.diff(dim=0) > 0).all(), "the picture was turned"
        assert there.diff(dim=1).abs().max() < 1e-5
        wanted = interpolate(
            grid[..., 0][None, None], (height, width), mode="bicubic", antialias=True
        )[0, 0]
        assert torch.allclose(there, wanted, atol=1e-5)


def _table(encoder: Encoder) -> torch.nn.Parameter:
    visual = encoder.visual
    return getattr(visual, "attnpool", visual).positional_embedding


def test_a_stored_grid_that_is_not_the_tables_is_refused(tmp_path):
    path = saved(make("check-vit", (128, 64)), tmp_path)
    held = torch.load(path, weights_only=True)
    torch.save(held | {"grid": (4, 8)}, path)
    with pytest.raises(WeightsError, match=r"grid \(4, 8\)"):
        load_encoder(str(path))


# --- what does not belong ---------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["check-vit", "check-vit-quickgelu"])
def test_another_activation_is_refused_both_ways(trained, tmp_path):
    path = saved(make(trained), tmp_path)
    other = ({"check-vit", "check-vit-quickgelu"} - {trained}).pop()
    with pytest.raises(WeightsError, match=f"QuickGELU.*load it as {trained}$"):
        load_encoder(other, str(path))
    with pytest.raises(WeightsError, match=f"QuickGELU.*load it as {trained}$"):
        load_weights(make(other), path)


def test_another_architecture_is_refused_with_the_difference(tmp_path):
    path = saved(make("check-vit"), tmp_path)
    for name, word in (("check-vit-deep", "layers"), ("check-rn", "patch_size")):
        with pytest.raises(WeightsError, match=rf"not a {name}.*vision_cfg\.{word}"):
            load_weights(make(name), path)
        with pytest.raises(WeightsError, match=rf"not a {name}.*vision_cfg\.{word}"):
            load_encoder(name, str(path))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_another_normalisation_is_refused_and_the_encoder_left_alone(name, tmp_path):
    encoder = make()
    told = encoder.preprocess.as_dict() | {name: [0.5, 0.5, 0.5]}
    encoder.preprocess = type(encoder.preprocess).from_dict(told)
    path = saved(encoder, tmp_path)
    assert getattr(load_encoder("check-vit", str(path)).preprocess, name) == (0.5, 0.5, 0.5)
    other = make(seed=1)
    before = other.weights_sha256
    with pytest.raises(WeightsError, match=rf"trained with {name} \(0\.5, 0\.5, 0\.5\)"):
        load_weights(other, path)
    assert other.weights_sha256 == before


def test_another_fit_is_said(tmp_path):
    path = saved(load_encoder("check-vit", "random", fit="pad"), tmp_path)
    with pytest.warns(UserWarning, match="fit 'pad'"):
        load_weights(make(), path)
    assert load_encoder(str(path)).preprocess.fit == "pad"
    with pytest.warns(UserWarning, match="fit 'pad'"):
        load_encoder(str(path), fit="squash")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named(share, tmp_path):
    path = saved(make(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    for attempt in (
        lambda: read_checkpoint(path),
        lambda: load_encoder(str(path)),
        lambda: load_encoder("check-vit", str(path)),
        lambda: load_weights(make(), path),
    ):
        with pytest.raises(WeightsError, match=r"ours\.pth"):
            attempt()


def test_a_file_that_changed_inside_is_no_longer_taken_for_what_it_says(tmp_path):
    path = saved(make(), tmp_path)
    data = bytearray(path.read_bytes())
    whole = read_checkpoint(path)["sha256"]
    at = data.find(next(iter(make().model.state_dict().values())).numpy().tobytes()[:16])
    for i in range(at, at + 8):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"ours\.pth is damaged"):
        read_checkpoint(path)
    assert whole


def test_what_is_not_ours_is_called_what_it_is(tmp_path):
    state = tmp_path / "run.resume.pt"
    write_state(state, "key", {"learner": {}})
    with pytest.raises(WeightsError, match="killed training goes on from"):
        read_checkpoint(state)
    plain = tmp_path / "plain.pth"
    torch.save(make().model.state_dict(), plain)
    with pytest.raises(WeightsError, match="give the architecture's name as the model"):
        load_encoder(str(plain))
    torch.save([1, 2], plain)
    with pytest.raises(WeightsError, match="is a list"):
        load_weights(make(), plain)
    with pytest.raises(WeightsError, match="is a list"):
        read_checkpoint(plain)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_checkpoint(tmp_path / "none.pth")
    ours = saved(make(), tmp_path)
    with pytest.raises(WeightsError, match="brings its own weights"):
        load_encoder(str(ours), "openai")
    torch.save(torch.load(ours, weights_only=True) | {"version": 99}, ours)
    with pytest.raises(WeightsError, match="version 99"):
        read_checkpoint(ours)


def test_a_file_that_runs_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    path = tmp_path / "bomb.pth"
    torch.save({"format": "handclip", "state_dict": Bomb()}, path)
    with pytest.raises(WeightsError, match="bomb"):
        load_encoder(str(path))
    assert not (tmp_path / "boom").exists()


# --- foreign files ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "module", "state_dict", "visual", "old", "safetensors"])
def test_foreign_state_dicts(wrap, tmp_path):
    encoder, other, path = make(), make(seed=1), tmp_path / "theirs.pth"
    state = encoder.model.state_dict()
    if wrap == "module":
        state = {f"module.{name}": value for name, value in state.items()}
    if wrap == "visual":
        state = {name: value for name, value in state.items() if name.startswith("visual.")}
    if wrap == "safetensors":
        save_file(state, path := path.with_suffix(".safetensors"))
    elif wrap == "old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, "state_dict": state} if wrap == "state_dict" else state, path)
    load_weights(other, path)
    assert torch.equal(proj_of(other), proj_of(encoder))
    texts_too = torch.equal(
        other.model.token_embedding.weight, encoder.model.token_embedding.weight
    )
    assert texts_too == (wrap != "visual")


def test_foreign_resnets_without_batch_counts_are_whole(tmp_path):
    encoder, other = make("check-rn"), make("check-rn", seed=1)
    state = {k: v for k, v in encoder.model.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    load_weights(other, tmp_path / "old.pth")
    assert torch.equal(proj_of(other), proj_of(encoder))


def test_foreign_files_that_do_not_fit_say_what_is_wrong_and_change_nothing(tmp_path):
    encoder, path = make(), tmp_path / "theirs.pth"
    before, state = encoder.weights_sha256, encoder.model.state_dict()
    wrong = {
        "missing: visual.proj$": {k: v for k, v in state.items() if k != "visual.proj"},
        "unexpected: neck.weight$": state | {"neck.weight": torch.zeros(3)},
        "missing: .*; unexpected: backbone": {f"backbone.{k}": v for k, v in state.items()},
        r"visual.proj is \(32, 8\).*\(32, 16\)": state | {"visual.proj": torch.zeros(32, 8)},
        "no state_dict: epoch": {"epoch": 3, "weights": state},
        "records another activation": {"state_dict": state, "quick_gelu": True},
    }
    for match, held in wrong.items():
        torch.save(held, path)
        with pytest.raises(WeightsError, match=match):
            load_weights(encoder, path)
        assert encoder.weights_sha256 == before
    bigger = make("check-vit", (128, 64))
    torch.save(bigger.model.state_dict(), path)
    with pytest.raises(WeightsError, match=r"positional_embedding is \(33, 32\)"):
        load_weights(encoder, path)


# --- writing ----------------------------------------------------------------------------------


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(make(), tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        saved(make(seed=1), tmp_path)
    assert path.read_bytes() == before


def test_loading_ours_says_nothing_of_random_weights(tmp_path, caplog):
    path = saved(make(), tmp_path)
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder(str(path))
    assert not [r for r in caplog.records if "andom" in r.message]
    assert checkpoint.find_checkpoint("check-vit", "random") is None
