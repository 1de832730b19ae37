"""MBA-Net as an encoder of images alone: its features, its files, its training, its classifier."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import toy_hands
from torchvision.models.resnet import Bottleneck, ResNet
from toy_hands import squares

from handclip_lib.data.splits import make_manifest
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric, seed_step
from handclip_lib.evaluate.embed import NAMES, embed
from handclip_lib.evaluate.ways import both_ways
from handclip_lib.export import export_model
from handclip_lib.losses import build_loss, check_lists
from handclip_lib.losses.criterion import tried
from handclip_lib.models import comparator, heads
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder, load_comparator, load_encoder, sha256_of
from handclip_lib.models.files import save_local_dir
from handclip_lib.models.mba import BRANCHES
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ParamError, load, stage2_variants
from handclip_lib.schema import Comparator, Params
from handclip_lib.train import optim, stages
from handclip_lib.train.ladder import ladder_of
from handclip_lib.train.taught import persons_taught

SMALL = {"backbone": "tiny_rn", "pretrained": "", "image_size": 32}
FEW = {"epochs": 2, "batch_size": 12, "save_seconds": 0}
PERSONS, SHOTS = 12, 4


def small(**changes) -> Encoder:
    return load_comparator(Comparator(**SMALL | changes))


def opened(encoder: Encoder) -> Encoder:
    """With attention that does something, so that no two branches are equal."""
    for i, part in enumerate(encoder.visual.attention.values()):
        part.gamma.data.fill_(0.4 + 0.2 * i)
    return encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return opened(small())


@pytest.fixture(scope="module")
def saved(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "mba.pth"
    return save_checkpoint(path, encoder, {}, "", "key", {"taught": {}})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return squares(tmp_path_factory.mktemp("hands"), PERSONS, SHOTS)


@pytest.fixture(scope="module")
def manifest(table: pd.DataFrame) -> pd.DataFrame:
    return make_manifest(table, "dorsal_r", select="persons", draws=1)


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- the encoder --------------------------------------------------------------------------------


@torch.inference_mode()
def test_retrieval_features_are_the_branches_in_their_order(encoder):
    x = images()
    found, told = encoder(x), encoder.visual(x)
    joined = torch.cat([found.pool, found.proj], dim=1)
    assert torch.equal(joined, torch.cat([told[b] for b in ("global", "spatial", "channel")], 1))
    assert not torch.allclose(told["spatial"], told["channel"], atol=1e-2)
    assert torch.equal(found.penult, told["layer3"])
    assert {n: z.shape[1] for n, z in found.parts.items()} == dict.fromkeys(BRANCHES, 512)
    widths = {"penult": 256, "pool": 512, "proj": 1024} | dict.fromkeys(BRANCHES, 512)
    assert encoder.dims == widths == {
        n: z.shape[1] for n, z in (found._asdict() | dict(found.parts)).items() if n in widths
    }  # fmt: skip
    assert torch.allclose(found.tokens.mean(1), found.pool, atol=1e-6)
    assert found.grid == (2, 2) and found.tokens.shape == (2, 4, 512)


@torch.inference_mode()
def test_a_file_brings_back_features_and_hash(encoder, saved):
    x, expected = images(), encoder(images())
    again, other = load_encoder(str(saved)), small()
    assert other.weights_sha256 != encoder.weights_sha256
    load_weights(other, saved)
    for one in (again, other, copy.deepcopy(encoder)):
        assert one.weights_sha256 == encoder.weights_sha256
        assert one.preprocess == encoder.preprocess and one.model_cfg == encoder.model_cfg
        assert all(torch.equal(getattr(one(x), n), getattr(expected, n)) for n in NAMES)


def test_a_copy_has_weights_of_its_own(encoder):
    before, copied = encoder.weights_sha256, copy.deepcopy(encoder)
    next(copied.visual.parameters()).data.add_(1)
    assert encoder.weights_sha256 == before != copied.weights_sha256


@pytest.mark.parametrize("changed", [{"rpe": "axial"}, {"share_layer4": False}], ids=str)
def test_another_architecture_is_refused_by_name(saved, changed):
    other = small(**changed)
    before = other.weights_sha256
    (name,) = changed
    with pytest.raises(WeightsError, match=rf"they differ in mba\.{name}$"):
        load_weights(other, saved)
    assert other.weights_sha256 == before


def test_it_is_not_its_backbone(saved):
    with pytest.raises(WeightsError, match=r"mba\.pth is a mba, not a tiny_rn: .* mba\.rpe"):
        load_weights(load_encoder("tiny_rn"), saved)
    with pytest.raises(WeightsError, match=r"mba\.pth is a mba, not a tiny_rn"):
        load_encoder("tiny_rn", str(saved))


def test_it_knows_no_texts(encoder, saved):
    for one in (encoder, load_encoder(str(saved))):
        with pytest.raises(WeightsError, match="mba knows images alone, and no texts"):
            one.encode_text(["a hand"])


def test_open_clip_cannot_have_it(encoder, tmp_path):
    for write in (save_local_dir, export_model):
        with pytest.raises(ValueError, match="open_clip builds no MBA-Net"):
            write(encoder, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_images_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        encoder(images(size=64))


def test_only_resnets_carry_it(tmp_path):
    with pytest.raises(ParamError, match="comparator.backbone: tiny is no ResNet"):
        load_comparator(Comparator(backbone="tiny", pretrained=""))
    with pytest.raises(FileNotFoundError, match="comparator.pretrained: no weights file"):
        comparator.resnet50(str(tmp_path / "nothing.pth"))


@pytest.fixture
def thin(monkeypatch) -> None:
    """torchvision's ResNet-50 with a layer of each kind, an eighth as wide."""

    def make(weights: object) -> ResNet:
        assert weights is None
        return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8)

    monkeypatch.setattr(torchvision.models, "resnet50", make)


@pytest.mark.usefixtures("thin")
def test_weights_that_are_not_a_resnet50s(tmp_path, monkeypatch):
    path = tmp_path / "other.pth"
    for state in ({"weight": torch.zeros(2)}, [1, 2]):
        torch.save(state, path)
        with pytest.raises(WeightsError, match="is not of torchvision's resnet50"):
            comparator.resnet50(str(path))

    def refused(*_args, **_more):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.raises(ConnectionError, match=r"(?s)\(no route\).*comparator.pretrained"):
        comparator.resnet50("imagenet")


@pytest.mark.usefixtures("thin")
def test_a_file_of_weights_is_what_it_stands_on(tmp_path):
    torch.manual_seed(0)
    net, path = comparator.resnet50("random"), tmp_path / "r50.pth"
    torch.save(net.state_dict(), path)
    told = Comparator(pretrained=str(path), image_size=64, share_layer4=False)
    made = load_comparator(told)
    assert sha256_of(made.visual.layer3) == sha256_of(net.layer3)
    assert made.preprocess.mean == (0.485, 0.456, 0.406) and made.preprocess.size == (64, 64)
    assert made.dims["pool"] + made.dims["proj"] == 6144


# --- embedding ----------------------------------------------------------------------------------


def test_features_of_its_own_tower_lie_elsewhere(table, tmp_path):
    mine = small(fit="hand")
    names = table["image"].tolist()[:3]
    tower = load_encoder("tiny_rn", image_size=32)
    assert tower.preprocess == mine.preprocess
    fabric, store = make_fabric(Params()), open_store(table, mine.preprocess, tmp_path)
    for one in (mine, tower):
        embed(one, store, names, fabric)
    entries = [p for p in (store.cache / "features").iterdir() if p.is_dir()]
    assert len(entries) == 2
    found = embed(mine, store, names, fabric)
    with torch.inference_mode():
        expected = mine(mine.preprocess.normalise(store.pixels(names)))
    for name in NAMES:
        np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("first", [False, True])
def test_mirror_images_have_an_entry_of_their_own(encoder, table, tmp_path, first):
    names = table["image"].tolist()[:4]
    fabric, store = make_fabric(Params()), open_store(table, encoder.preprocess, tmp_path)
    found = {m: embed(encoder, store, names, fabric, 3, mirrored=m) for m in (first, not first)}
    pixels = store.pixels(names)  # (N, H, W, 3)
    turned = torch.stack([torch.fliplr(p) for p in pixels])
    for mirrored, seen in ((False, pixels), (True, turned)):
        with torch.inference_mode():
            expected = encoder(encoder.preprocess.normalise(seen))
        again = embed(encoder, store, names, fabric, mirrored=mirrored)
        for name in NAMES:
            wanted = getattr(expected, name).numpy()
            np.testing.assert_allclose(found[mirrored][name], wanted, rtol=1e-3, atol=1e-3)
            assert (again[name] == found[mirrored][name]).all()
    summed = both_ways(found[False], found[True])
    assert (summed["pool"] == found[False]["pool"] + found[True]["pool"]).all()
    assert set(summed) == set(NAMES) and not (found[False]["pool"] == found[True]["pool"]).all()


# --- its classifier -----------------------------------------------------------------------------


def test_the_block_of_the_paper():
    block = heads.class_block(6, 4)
    assert [type(m).__name__ for m in block] == [
        "Linear", "BatchNorm1d", "LeakyReLU", "Dropout", "Linear"
    ]  # fmt: skip
    assert block[0].weight.shape == (6, 6) and block[4].weight.shape == (4, 6)
    assert block[2].negative_slope == 0.1 and block[3].p == 0.5
    assert block[0].bias is None and not block[4].bias.any() and block[4].weight.std() < 0.01
    assert block(torch.randn(3, 6)).shape == (3, 4)


def test_a_loss_with_the_block_as_its_head():
    sizes, y = {}, torch.tensor([0, 1, 2, 0])
    for head in ("linear", "block"):
        loss = build_loss([{"type": "cross_entropy", "on": ["pool"], "head": head}], 3, 8)
        sizes[head] = sum(p.numel() for p in loss.parameters() if p.requires_grad)
    assert sizes == {"linear": 3 * 8, "block": 8 * 8 + 2 * 8 + 3 * 8 + 3}
    z = torch.randn(4, 8).requires_grad_()
    loss({"penult": z, "pool": z, "proj": z}, y)["cross_entropy"].backward()
    assert z.grad.isfinite().all() and z.grad.any()
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.requires_grad)
    with pytest.raises(ParamError, match=r"losses\.0.*head.*'linear' or 'block'"):
        build_loss([{"type": "cross_entropy", "head": "blok"}], 3, 8)
    with pytest.raises(ParamError, match=r"heed.*did you mean '[^']*head'"):
        build_loss([{"type": "cross_entropy", "heed": "block"}], 3, 8)


def test_branches_are_features_of_the_comparator_alone():
    loss = {"type": "cross_entropy", "on": ["spatial"]}
    of_mba = load(overrides={"stage2.variants": {"one": {"tower": "comparator", "losses": [loss]}}})
    assert tried("here", stage2_variants(of_mba)["one"]).needs == {"cross_entropy": ("spatial",)}
    check_lists(of_mba)
    of_tower = load(overrides={"stage2.variants": {"one": {"losses": [loss]}}})
    with pytest.raises(ParamError, match=r"stage2, variant one: losses\.0.*spatial"):
        check_lists(of_tower)


# --- training -----------------------------------------------------------------------------------


def told(folder: Path, variants: list, **changes) -> Params:
    toy_hands.small_towers(folder)
    study = {
        "data": {"dataset": "own"},
        "split": {"select": "persons", "draws": 1},
        "model": {"name": "toy-vit", "pretrained": "random"},
        "comparator": SMALL,
        "device": {"accelerator": "cpu"},
        "stage2": FEW | {"variants": variants},
    }
    path = folder / "squares.yaml"
    path.write_text(json.dumps(study | changes))
    return load("dorsal_r", str(path))


@pytest.mark.parametrize("name", ["mba", "mba_triplet"])
def test_stage_2_trains_it(name, table, manifest, tmp_path, capsys):
    p = told(tmp_path, [{name: FEW | {"lr": 4e-4, "warmup": 0}}])
    settings, nothing = stage2_variants(p)[name], tmp_path / "nothing.pth"  # it has its own weights
    trained = stages.stage2(p, name, settings, nothing, table, manifest, tmp_path / "run")
    assert trained.history["total"].iloc[-1] < trained.history["total"].iloc[0]
    terms = {"mba": {"cross_entropy"}, "mba_triplet": {"cross_entropy", "triplet"}}[name]
    assert terms <= set(trained.history)
    seed_step(p.seed, 0)
    start = small()
    held = read_checkpoint(trained.checkpoint)
    assert held["parent"] == start.weights_sha256 != held["sha256"]
    taught = manifest.loc[manifest["split"] == "train", "pid"]
    assert persons_taught(held["taught"], table) == set(taught)
    wanted = {
        "images", "shown_again", "persons", "identities", "epochs", "chosen_epoch", "seconds",
        "selected_by", "trained_parameters",
    }  # fmt: skip
    assert set(trained.facts) == wanted and trained.facts["epochs"] == 2
    assert trained.facts["selected_by"] and trained.facts["images"] == len(taught)
    own = sum(v.numel() for v in start.visual.parameters())
    assert trained.facts["trained_parameters"] > own
    loaded = load_encoder(str(trained.checkpoint))
    with torch.inference_mode():
        for found in NAMES:
            a, b = (getattr(e(images()), found) for e in (loaded, trained.encoder))
            assert torch.equal(a, b)
    capsys.readouterr()
    again = stages.stage2(p, name, settings, nothing, table, manifest, tmp_path / "run")
    assert f"{name}: trained before" in capsys.readouterr().out
    assert again.encoder.weights_sha256 == trained.encoder.weights_sha256
    pd.testing.assert_frame_equal(again.history, trained.history)


def test_what_is_new_learns_faster():
    encoder, p = small(), load(overrides={"stage2.variants": ["mba"]})
    settings = stage2_variants(p)["mba"]
    assert (settings.lr, settings.head_lr) == (8e-5, 10)
    head = torch.nn.Linear(4, 2)
    groups = optim.param_groups(encoder, head, settings)
    rates = {id(v): g["lr"] for g in groups for v in g["params"]}
    for name, parameter in encoder.visual.named_parameters():
        new = name.startswith("attention.")
        assert rates[id(parameter)] == pytest.approx(8e-4 if new else 8e-5), name
    assert rates[id(head.weight)] == pytest.approx(8e-4)
    told = ladder_of(encoder.visual)
    assert told.new == ("attention",) and told.steps[told.top] == "attention"
    assert {told.depth[n] for n in told.depth if n.startswith("layer3.")} == {3}
    assert set(told.depth) == {n for n, _ in encoder.visual.named_parameters()}
    decayed = settings.model_copy(update={"layer_decay": 0.5})
    slow = {g["name"]: g["lr"] for g in optim.param_groups(encoder, head, decayed)}
    assert slow["attention"] == pytest.approx(8e-4) and slow["layer4"] == pytest.approx(4e-5)


def test_the_best_of_stage_2_is_a_clip_model(table, manifest, tmp_path, monkeypatch):
    p = told(tmp_path, ["mba"])
    start = tmp_path / "nothing.pth"
    monkeypatch.setattr(stages, "load_comparator", None, raising=False)
    assert stages.best_stage2(p, start, table, manifest, [tmp_path / "03"]) == {}
    assert not (tmp_path / "03").exists()
    p = told(tmp_path, ["mba", {"ce": {"epochs": 1}}], stage1=FEW | {"epochs": 1, "head_epochs": 0})
    start = stages.stage1_weights(p, table, manifest, [tmp_path / "02"])
    best = stages.best_stage2(p, start, table, manifest, [tmp_path / "03"])
    assert list(best) == ["ce"]
    assert [f.name for f in (tmp_path / "03/checkpoints").glob("*.pth")] == ["ce.pth"]


def test_a_chain_cannot_be_taught_by_it(tmp_path):
    chain = {"steps": ["dorsal_r", "dorsal_l"], "recipe": "stage2/mba"}
    with pytest.raises(ParamError, match=r"chain\.recipe: stage2\.variants has no 'mba'|no 'mba'"):
        told(tmp_path, ["ce", "mba"], chain=chain)
