"""Features: each image through the tower once ever, and never those of other weights or pixels."""

import json
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from handclip_lib.data.store import Store, open_store
from handclip_lib.evaluate.embed import NAMES, embed, retrieval_features
from handclip_lib.models.clip import Encoder, load_encoder

NAMES_IN = [f"{k}.png" for k in range(7)]


@pytest.fixture(scope="module", autouse=True)
def _config(tmp_path_factory: pytest.TempPathFactory) -> None:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder = tmp_path_factory.mktemp("configs")
    (folder / "embed-vit.json").write_text(json.dumps(config))
    (folder / "embed-vit-quickgelu.json").write_text(json.dumps(config | {"quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    for name in NAMES_IN:
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(root / name)
    frame = pd.DataFrame({"image": NAMES_IN})
    frame.attrs = {"root": str(root)}
    return frame


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return load_encoder("embed-vit", "random")


@pytest.fixture
def fabric() -> lf.Fabric:
    return lf.Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def store(table: pd.DataFrame, encoder: Encoder, tmp_path: Path) -> Store:
    return open_store(table, encoder.preprocess, tmp_path / "cache")


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """Sizes of the batches that went through a tower."""
    seen: list[int] = []
    real = Encoder.features

    def counting(self, images, codes=None):
        seen.append(len(images))
        return real(self, images, codes)

    monkeypatch.setattr(Encoder, "features", counting)
    return seen


def test_features_are_the_towers_in_the_order_asked(encoder, store, fabric):
    asked = ["4.png", "1.png", "4.png"]
    got = embed(encoder, store, asked, fabric, batch_size=2)
    x = encoder.preprocess.normalise(store.pixels(asked))
    with torch.inference_mode():
        expected = encoder.features(x)
    for name in NAMES:
        assert got[name].dtype == np.float32 and got[name].shape == (3, encoder.dims[name])
        assert np.allclose(got[name], getattr(expected, name).numpy(), atol=1e-5)
        assert np.array_equal(got[name][0], got[name][2])
    assert embed(encoder, store, [], fabric)["pool"].shape == (0, 32)


def test_each_image_goes_through_the_tower_once_ever(table, encoder, store, fabric, batches):
    embed(encoder, store, NAMES_IN[:4], fabric, batch_size=3)
    assert batches == [3, 1]
    again = open_store(table, encoder.preprocess, store.cache)
    torch.manual_seed(0)
    same = load_encoder("embed-vit", "random")
    embed(same, again, NAMES_IN[2:], fabric)
    embed(same, again, NAMES_IN, fabric)
    assert batches == [3, 1, 3]


def test_other_weights_are_computed_anew(encoder, store, fabric, batches):
    before = embed(encoder, store, NAMES_IN, fabric)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder.features(torch.randn(2, 3, 32, 32)).proj.sum().backward()
    optimizer.step()
    batches.clear()
    after = embed(encoder, store, NAMES_IN, fabric)
    assert batches == [7] and not np.allclose(before["proj"], after["proj"])


def test_other_architecture_pixels_and_precision_are_computed_anew(
    table, encoder, store, fabric, batches
):
    embed(encoder, store, NAMES_IN, fabric)
    quick = load_encoder("embed-vit-quickgelu", "random")
    quick.load_state_dict(encoder.state_dict())
    assert quick.weights_sha256 == encoder.weights_sha256
    embed(quick, store, NAMES_IN, fabric)
    embed(encoder, store, NAMES_IN, lf.Fabric(accelerator="cpu", precision="bf16-mixed"))
    Image.new("RGB", (40, 40), "red").save(Path(table.attrs["root"]) / "0.png")
    embed(encoder, open_store(table, encoder.preprocess, store.cache), NAMES_IN, fabric)
    assert batches == [7, 7, 7, 7]


@pytest.mark.parametrize("module", ["torch", "open_clip", "timm"])
def test_other_versions_compute_anew(encoder, store, fabric, batches, monkeypatch, module):
    embed(encoder, store, NAMES_IN, fabric)
    monkeypatch.setattr(f"{module}.__version__", "99.0")
    embed(encoder, store, NAMES_IN, fabric)
    assert batches == [7, 7]


def test_a_store_for_another_preprocess_is_refused(table, encoder, fabric, tmp_path):
    other = load_encoder("embed-vit", "random", fit="pad").preprocess
    with pytest.raises(ValueError, match="open the store with encoder.preprocess"):
        embed(encoder, open_store(table, other, tmp_path), NAMES_IN, fabric)


def test_features_that_are_not_finite_name_the_images(encoder, store, fabric, monkeypatch):
    real = Encoder.features

    def poisoned(self, images, codes=None):
        told = real(self, images, codes)
        told.pool[2] = torch.nan
        return told

    monkeypatch.setattr(Encoder, "features", poisoned)
    with pytest.raises(ValueError, match=r"1 images are not finite: 2\.png"):
        embed(encoder, store, NAMES_IN[:5], fabric)
    monkeypatch.setattr(Encoder, "features", real)
    assert np.isfinite(embed(encoder, store, NAMES_IN[:5], fabric)["pool"]).all()


def test_every_part_gets_its_mode_back(encoder, store, fabric, monkeypatch):
    encoder.train()
    encoder.visual.ln_post.eval()
    modes = [part.training for part in encoder.modules()]
    seen = []
    real = Encoder.features

    def watched(self, images, codes=None):
        seen.append(self.training)
        return real(self, images, codes)

    monkeypatch.setattr(Encoder, "features", watched)
    embed(encoder, store, NAMES_IN, fabric)
    assert seen == [False] and [part.training for part in encoder.modules()] == modes


@settings(max_examples=30, deadline=None)
@given(
    pool=hnp.arrays(np.float32, (3, 5), elements=st.floats(0.125, 50, width=32)),
    proj=hnp.arrays(np.float32, (3, 2), elements=st.floats(-50, 50, width=32)),
)
def test_retrieval_features_are_one_norm_over_both(pool, proj):
    z = retrieval_features({"pool": pool, "proj": proj, "penult": pool})
    assert z.shape == (3, 7) and z.dtype == np.float32
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    both = np.concatenate([pool, proj], 1)
    assert np.allclose(z * np.linalg.norm(both, axis=1, keepdims=True), both, atol=1e-3)


def test_features_without_direction_are_refused():
    features = {"pool": np.ones((3, 2), np.float32), "proj": np.ones((3, 2), np.float32)}
    features["pool"][1] = features["proj"][1] = 0
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        retrieval_features(features)
    with pytest.raises(ValueError, match="bool"):
        retrieval_features(features, ("bool",))
