"""Towers: one forward, exact features; and every trap of loading, resizing and exporting one."""

import json
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import nn

from handclip_lib import params
from handclip_lib.models import files, resize, towers, weights
from handclip_lib.models.clip import Encoder, load_encoder, load_towers
from handclip_lib.models.files import save_local_dir
from handclip_lib.schema import Params

TEXT = {"width": 64, "heads": 4, "layers": 2, "context_length": 77, "vocab_size": 49408}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 16, "layers": 3}
CONFIGS = {
    "test-vit": {"vision_cfg": VIT},
    "test-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "test-vit-wide": {"vision_cfg": VIT | {"image_size": [32, 128]}},
    "test-vit-avg": {"vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True}},
    "test-vit-pooler": {
        "vision_cfg": VIT
        | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    },
    "test-vit-one": {"vision_cfg": VIT | {"layers": 1}},
    "test-rn": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    },
    "test-timm": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160},
        "custom_text": True,
    },
    "test-timm-map": {
        "vision_cfg": {
            "timm_model_name": "test_resnet",
            "timm_pool": "avg",
            "timm_proj": "none",
            "image_size": 160,
        },
        "custom_text": True,
    },
}
TOWERS = [n for n in CONFIGS if n != "test-vit-quickgelu"]


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, told in CONFIGS.items():
        config = {"embed_dim": 32, "text_cfg": TEXT} | told
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def random_encoder(name: str = "test-vit", size: tuple[int, int] | None = None) -> Encoder:
    torch.manual_seed(0)
    return load_encoder(name, "random", size)


def images_for(encoder: Encoder, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *encoder.preprocess.size, generator=generator)


@torch.inference_mode()
def proj_of(encoder: Encoder) -> torch.Tensor:
    return encoder.features(images_for(encoder)).proj


# --- features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOWERS)
def test_proj_is_the_towers_own_output_bit_for_bit(name):
    encoder = random_encoder(name)
    x = images_for(encoder)
    with torch.inference_mode():
        got, own = encoder.features(x), encoder.visual(x)
    assert torch.equal(got.proj, own[0] if isinstance(own, tuple) else own)
    assert got.tokens.shape[:2] == (3, got.grid[0] * got.grid[1])
    assert encoder.dims == {k: getattr(got, k).shape[1] for k in ("penult", "pool", "proj")}
    assert not encoder.training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims", "grid"),
    [
        ("ViT-B-16-quickgelu", {"penult": 768, "pool": 768, "proj": 512}, (14, 14)),
        ("RN50-quickgelu", {"penult": 1024, "pool": 2048, "proj": 1024}, (7, 7)),
    ],
)
def test_real_towers(name, dims, grid):
    encoder = random_encoder(name)
    assert encoder.dims == dims and encoder.quick_gelu
    x = images_for(encoder, 2)
    with torch.inference_mode():
        got, own = encoder.features(x), encoder.visual(x)
    assert torch.equal(got.proj, own) and got.grid == grid


def test_vit_features_are_what_methods_define():
    encoder = random_encoder()
    visual, seen = encoder.visual, []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for block in visual.transformer.resblocks
    ]
    with torch.inference_mode():
        got = encoder.features(images_for(encoder))
        for hook in hooks:
            hook.remove()
        assert len(seen) == 3  # each block once: one forward
        assert torch.equal(got.penult, seen[1][:, 0])
        assert torch.equal(got.pool, visual.ln_post(seen[2])[:, 0])
        assert torch.equal(got.tokens, visual.ln_post(seen[2])[:, 1:])
        assert torch.equal(got.proj, got.pool @ visual.proj)


def test_resnet_features_are_means_of_its_last_two_stages():
    encoder = random_encoder("test-rn", (64, 128))
    seen = []
    for stage in (encoder.visual.layer3, encoder.visual.layer4):
        stage.register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    with torch.inference_mode():
        got = encoder.features(images_for(encoder))
    assert len(seen) == 2 and got.grid == (2, 4)
    assert torch.equal(got.penult, seen[0].mean((2, 3)))
    assert torch.equal(got.pool, seen[1].mean((2, 3)))
    assert torch.equal(got.tokens[:, 5], seen[1][:, :, 1, 1])  # row by row


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(["test-vit", "test-rn", "test-timm"]),
    batch=st.integers(1, 5),
    place=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_features_do_not_depend_on_batch_mates(name, batch, place, seed):
    encoder = random_encoder(name)
    x = images_for(encoder, batch)
    x[place % batch] = images_for(encoder, 1)[0]
    others = 5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    mixed = others.clone()
    mixed[place % batch] = x[place % batch]
    with torch.inference_mode():
        alone = encoder.features(x[place % batch][None])
        among = encoder.features(mixed)
    for key in ("penult", "pool", "proj", "tokens"):
        a, b = getattr(alone, key)[0], getattr(among, key)[place % batch]
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4), key


def test_gradients_reach_the_image_tower():
    encoder = random_encoder()
    encoder.features(images_for(encoder)).penult.square().sum().backward()
    assert encoder.visual.conv1.weight.grad.abs().sum() > 0


def test_another_size_is_refused_with_the_right_one():
    encoder = random_encoder()
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\)"):
        encoder.features(torch.zeros(1, 3, 64, 32))
    with pytest.raises(TypeError, match="Linear"):
        towers.features(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))


# --- text, scale, hash --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test-vit", "test-timm"])
def test_texts_are_encoded_raw_and_each_for_itself(name):
    encoder = random_encoder(name)
    texts = ["a photo of a dorsal right hand", "palm"]
    with torch.inference_mode():
        both = encoder.encode_text(texts)
        tokens = open_clip.get_tokenizer(name)(texts)
        assert torch.equal(both, encoder.model.encode_text(tokens, normalize=False))
        assert torch.allclose(encoder.encode_text(texts[1:])[0], both[1], atol=1e-5)
    assert both.shape == (2, 32)
    assert not torch.allclose(both.norm(dim=1), torch.ones(2), atol=1e-3)
    assert not torch.allclose(both[0], both[1])


def test_logit_scale_is_the_factor_itself():
    assert random_encoder().logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_hash_is_of_the_weights_as_they_are():
    one, two = random_encoder(), random_encoder()
    assert one.weights_sha256 == two.weights_sha256
    before = one.weights_sha256
    optimizer = torch.optim.SGD(one.visual.parameters(), lr=0.1)
    one.features(images_for(one)).proj.square().sum().backward()
    optimizer.step()
    assert one.weights_sha256 != before
    one.load_state_dict(two.state_dict())
    assert one.weights_sha256 == before
    assert random_encoder("test-rn").weights_sha256 != before


# --- QuickGELU and preprocessing ----------------------------------------------------------------


def test_openai_weights_get_the_quickgelu_architecture(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(
        weights, "_tag_file", lambda name, tag, cfg: asked.setdefault(name, Path("weights.pt"))
    )
    for name in ("ViT-B/16", "ViT-B-16", "ViT-B-16-quickgelu", "vitb16"):
        source = weights.find_source(name, "openai")
        assert source.build == "ViT-B-16-quickgelu" and source.model_cfg["quick_gelu"]
    assert list(asked) == ["ViT-B-16-quickgelu"]
    assert "QuickGELU" in capsys.readouterr().out
    assert weights.find_source("rn50", None).build == "RN50-quickgelu"


def test_a_tag_trained_otherwise_is_refused_under_a_quickgelu_name():
    with pytest.raises(weights.WeightsError, match="name the model ViT-B-16$"):
        load_encoder("ViT-B-16-quickgelu", "laion2b_s34b_b88k")


def test_random_quickgelu_towers_have_it():
    encoder = random_encoder("test-vit-quickgelu")
    assert encoder.quick_gelu and not random_encoder().quick_gelu
    assert any(isinstance(m, QuickGELU) for m in encoder.visual.modules())
    assert not any(isinstance(m, nn.GELU) for m in encoder.modules())
    assert open_clip.get_model_config("RN50-quickgelu")["quick_gelu"]


def test_a_file_of_the_other_activation_is_refused(tmp_path):
    encoder = random_encoder("test-vit-quickgelu")
    told = {"quick_gelu": True, "state_dict": encoder.model.state_dict()}
    torch.save(told, tmp_path / "tuned.pt")
    with pytest.raises(weights.WeightsError, match="with QuickGELU"):
        load_encoder("test-vit", str(tmp_path / "tuned.pt"))
    again = load_encoder("test-vit-quickgelu", str(tmp_path / "tuned.pt"))
    assert torch.equal(proj_of(again), proj_of(encoder))


def test_preprocessing_never_crops_and_takes_the_weights_mean_and_std():
    cfg = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    assert cfg["resize_mode"] == "shortest"  # open_clip's default would crop
    encoder = random_encoder()
    assert encoder.preprocess.fit == "squash" and encoder.preprocess.mean == cfg["mean"]
    siglip = weights.find_source("ViT-B-16-SigLIP", "random")
    assert siglip.preprocess["mean"] == (0.5, 0.5, 0.5)


def test_a_file_does_not_get_a_guess_of_its_mean_and_std(tmp_path):
    path = tmp_path / "tuned.pt"
    path.touch()
    with pytest.raises(weights.WeightsError, match=r"differ .*ViT-L-14\.TAG\.pt .*dfn2b.*folder"):
        load_encoder("ViT-L-14", str(path))
    assert weights.find_source("ViT-L-14", "random").preprocess == {}
    assert weights.find_source("ViT-B-16", str(path)).preprocess["mean"]


# --- names, tags, files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "pretrained", "error", "says"),
    [
        ("ViT-B-16", "", weights.WeightsError, "openai, .*'random'"),
        ("ViT-B-16", "opnai", weights.WeightsError, "openai, "),
        ("ViT-B-161", "openai", weights.WeightsError, "did you mean 'ViT-B-16'"),
        ("RN50", "nowhere/x.pt", FileNotFoundError, "nowhere/x.pt"),
        ("./nowhere", None, FileNotFoundError, "nowhere"),
        ("local-dir:/nowhere", None, FileNotFoundError, "nowhere"),
    ],
)
def test_what_cannot_be_loaded_says_why(model, pretrained, error, says):
    with pytest.raises(error, match=says):
        load_encoder(model, pretrained)


def test_a_bare_name_gets_random_weights_and_says_so():
    with pytest.warns(UserWarning, match="test-vit gets random weights"):
        load_encoder("test-vit")


def test_tiny_without_its_weights_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_TINY_ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="make tiny"):
        load_encoder("tiny")


def test_no_network_fails_at_once_and_says_where_a_file_goes(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HANDCLIP_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        weights._hub_file("org/not-there", ("w.safetensors",), "the weights", "put it there")
    assert "org/not-there/resolve/main/w.safetensors" in str(caught.value)
    assert "put it there" in str(caught.value)

    def missing(repo, names, what, hint):
        raise ConnectionError(hint)

    monkeypatch.setattr(weights, "_hub_file", missing)
    place = tmp_path / "weights" / "RN50-quickgelu.openai.safetensors"
    with pytest.raises(ConnectionError, match=str(place)):
        load_encoder("RN50-quickgelu", "openai")
    place.parent.mkdir()
    place.touch()
    assert weights.find_source("RN50", "openai").weights == place


def test_a_hub_model_in_the_cache_is_a_folder(monkeypatch, tmp_path):
    save_local_dir(random_encoder(), tmp_path / "snapshot")
    monkeypatch.setattr(
        weights, "_hub_file", lambda repo, names, what, hint: tmp_path / "snapshot" / names[0]
    )
    encoder = load_encoder("hf-hub:org/hands")
    assert torch.equal(proj_of(encoder), proj_of(random_encoder()))
    assert encoder.name == "hf-hub:org/hands"


def archive_of(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript archive with these tensors, in half precision, as OpenAI published its own."""
    root = nn.Module()
    for name, value in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    for name in ("input_resolution", "context_length", "vocab_size"):
        root.register_buffer(name, torch.tensor(64))
    return torch.jit.script(root)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_openais_own_torchscript_files_load(tmp_path):
    encoder = random_encoder("test-vit-quickgelu")
    state = {k: v.half().float() for k, v in encoder.model.state_dict().items()}
    encoder.model.load_state_dict(state)
    archive_of(state).save(str(tmp_path / "ViT.pt"))
    loaded = load_encoder("test-vit-quickgelu", str(tmp_path / "ViT.pt"))
    assert loaded.visual.proj.dtype == torch.float32
    assert torch.equal(proj_of(loaded), proj_of(encoder))
    with pytest.raises(weights.WeightsError, match="with QuickGELU"):
        load_encoder("test-vit", str(tmp_path / "ViT.pt"))


def test_a_file_of_another_architecture_is_refused(tmp_path):
    torch.save(random_encoder("test-rn").model.state_dict(), tmp_path / "rn.pt")
    with pytest.raises(weights.WeightsError, match=r"rn\.pt"):
        load_encoder("test-vit", str(tmp_path / "rn.pt"))
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(weights.WeightsError, match=r"bad\.pt is no weights file"):
        load_encoder("test-vit", str(tmp_path / "bad.pt"))


def test_a_file_with_an_unknown_grid_is_refused(tmp_path):
    wide = random_encoder(size=(32, 96))
    torch.save(wide.model.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(weights.WeightsError, match="13 positions.*not recorded"):
        load_encoder("test-vit", str(tmp_path / "wide.pt"))


# --- image sizes --------------------------------------------------------------------------------


def slope(table: torch.Tensor, grid: tuple[int, int]) -> tuple[float, float]:
    """How much a table's first channel rises along rows and along columns."""
    cells = table.detach()[1:, 0].reshape(grid)
    return float((cells[-1] - cells[0]).mean()), float((cells[:, -1] - cells[:, 0]).mean())


def test_vit_table_keeps_its_orientation_through_save_load_and_resize(tmp_path):
    encoder = random_encoder(size=(64, 128))  # grid 4 x 8
    with torch.no_grad():
        ramp = torch.arange(4.0).repeat_interleave(8)  # rises from row to row, not along one
        encoder.visual.positional_embedding[1:, 0] = ramp
    save_local_dir(encoder, tmp_path / "m")
    for size, grid in (((64, 128), (4, 8)), ((128, 64), (8, 4)), ((96, 96), (6, 6))):
        again = load_encoder(str(tmp_path / "m"), image_size=size)
        assert tuple(again.visual.grid_size) == grid and again.preprocess.size == size
        down, across = slope(again.visual.positional_embedding, grid)
        assert down > 2 and abs(across) < 1e-3
        with torch.inference_mode():
            assert again.features(images_for(again)).grid == grid


def test_resnet_table_is_resampled_in_two_dimensions():
    encoder = random_encoder("test-rn")
    pool, side = encoder.visual.attnpool, encoder.preprocess.size[0] // 32
    with torch.no_grad():
        pool.positional_embedding[0] = 7
        pool.positional_embedding[1:] = torch.arange(side).repeat(side)[:, None]  # along a row
    resize.set_image_size(encoder.visual, (256, 128))
    assert (pool.positional_embedding[0] == 7).all()
    down, across = slope(pool.positional_embedding, (8, 4))
    assert abs(down) < 1e-4 and across > 0.5
    encoder = random_encoder("test-rn", (256, 128))
    assert encoder.visual.attnpool.positional_embedding.shape[0] == 1 + 8 * 4
    assert proj_of(encoder).isfinite().all()


def test_own_size_changes_nothing_and_odd_sizes_are_refused():
    assert torch.equal(proj_of(random_encoder(size=(64, 64))), proj_of(random_encoder()))
    for name in ("test-vit", "test-rn"):
        with pytest.raises(ValueError, match="multiple"):
            random_encoder(name, (72, 64))


def test_timm_towers_take_another_size():
    encoder = random_encoder("test-timm", (96, 128))
    with torch.inference_mode():
        assert encoder.features(images_for(encoder)).grid == (6, 8)


# --- export -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test-vit", None),
        ("test-vit-quickgelu", (32, 96)),
        ("test-rn", (128, 128)),
        ("test-timm", None),
    ],
)
def test_export_gives_open_clip_the_same_features_and_transforms(tmp_path, name, size):
    encoder = random_encoder(name, size)
    folder = save_local_dir(encoder, tmp_path / "exported")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    pixels = torch.from_numpy(encoder.preprocess.fit_image(picture)[0])[None]
    x = encoder.preprocess.normalise(pixels)
    assert torch.equal(x[0], transform(picture))
    with torch.inference_mode():
        assert torch.equal(theirs.eval().visual(x), encoder.features(x).proj)
    again = load_encoder(str(folder))
    assert again.quick_gelu == encoder.quick_gelu and again.preprocess == encoder.preprocess
    assert again.weights_sha256 == encoder.weights_sha256


def test_export_in_half_precision_is_half_as_large(tmp_path):
    encoder = random_encoder()
    sizes = [
        (save_local_dir(encoder, tmp_path / str(dtype), dtype) / weights.WEIGHTS).stat().st_size
        for dtype in (torch.float32, torch.float16)
    ]
    assert sizes[1] < 0.51 * sizes[0]
    again = load_encoder(str(tmp_path / str(torch.float16)))
    assert again.visual.conv1.weight.dtype == torch.float32
    assert torch.allclose(proj_of(again), proj_of(encoder), atol=0.02)


def test_export_records_the_fit_and_warns_on_another(tmp_path):
    encoder = load_encoder("test-vit", "random", fit="hand")
    folder = save_local_dir(encoder, tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_encoder(str(folder)).preprocess.fit == "hand"
        load_encoder(str(folder), fit="hand")
    with pytest.warns(UserWarning, match="trained with fit 'hand'"):
        assert load_encoder(str(folder), fit="squash").preprocess.fit == "squash"


def test_export_records_whether_left_hands_were_mirrored(tmp_path):
    encoder = load_encoder("test-vit", "random", mirror_left=True)
    assert encoder.preprocess.mirror_left and not random_encoder().preprocess.mirror_left
    folder = save_local_dir(encoder, tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_encoder(str(folder)).preprocess.mirror_left
        load_encoder(str(folder), mirror_left=True)
    with pytest.warns(UserWarning, match="trained with mirror_left 'True'"):
        assert not load_encoder(str(folder), mirror_left=False).preprocess.mirror_left


def test_a_studys_towers_see_images_as_it_says():
    told = {"name": "test-vit", "pretrained": "random", "image_size": [32, 64]}
    beside = told | {"name": "test-rn", "image_size": 64, "mirror_left": True, "fit": "pad"}
    p = Params.model_validate({"model": told, "baseline": {"beside": beside}})
    one, two = (tower.preprocess for tower in load_towers(p).values())
    assert (one.size, one.fit, one.mirror_left) == ((32, 64), "squash", False)
    assert (two.size, two.fit, two.mirror_left) == ((64, 64), "pad", True)


def test_export_replaces_a_model_and_nothing_else(tmp_path, monkeypatch):
    one, two = random_encoder(), random_encoder("test-rn")
    folder = save_local_dir(one, tmp_path / "m")
    save_local_dir(two, folder)
    assert load_encoder(str(folder)).weights_sha256 == two.weights_sha256
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="mine"):
        save_local_dir(one, tmp_path / "mine")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m", "mine"]
    with pytest.raises(ValueError, match="square"):
        save_local_dir(random_encoder("test-rn", (64, 128)), tmp_path / "rn")


def test_an_export_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    one, two = random_encoder(), random_encoder("test-rn")
    folder = save_local_dir(one, tmp_path / "m")
    real = files.os.replace

    def failing(source, target):
        if target == folder and "old" not in Path(source).name:
            raise OSError("disk on fire")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(OSError, match="on fire"):
        save_local_dir(two, folder)
    assert [f.name for f in tmp_path.iterdir()] == ["m"]
    assert load_encoder(str(folder)).weights_sha256 == one.weights_sha256


def test_a_folder_is_loaded_by_path_and_brings_its_own_weights(tmp_path):
    folder = save_local_dir(random_encoder(), tmp_path / "m")
    fresh = load_encoder(f"local-dir:{folder}", "random")
    assert fresh.weights_sha256 != load_encoder(str(folder)).weights_sha256
    with pytest.raises(weights.WeightsError, match="own weights"):
        load_encoder(str(folder), "openai")
    (folder / weights.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="holds none of"):
        load_encoder(str(folder))
    (folder / weights.CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="not a model folder"):
        load_encoder(str(folder))


def test_relative_paths_are_relative_to_the_project_root(tmp_path, monkeypatch):
    save_local_dir(random_encoder(), tmp_path / "models" / "mine")
    monkeypatch.setattr(params, "ROOT", tmp_path)
    assert load_encoder("models/mine").name == "mine"
