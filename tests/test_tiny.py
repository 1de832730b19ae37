"""The shipped tiny CLIPs, and the recipe that makes them."""

import io
import json

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import handclip_lib.data.drawn as drawn
from handclip_lib.aspects import CHAIN
from handclip_lib.models.clip import load_encoder
from handclip_lib.train import captions, tiny, tiny_pool
from handclip_lib.train.drawn_check import all_tested, as_cosines, surroundings
from handclip_lib.train.tiny_eval import accuracy
from handclip_lib.train.tiny_model import (
    NAMES,
    Pretraining,
    as_encoder,
    attribute_loss,
    augment,
    contrastive,
    encode_short,
    fast_fabric,
    model_config,
)

FOLDERS = [tiny.OUT / name for name in NAMES.values()]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_pool(persons: int = 8, seed: int = 0) -> tiny_pool.Pool:
    """Pictures of noise and colour that tell their codes: enough to be learnt."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(persons), 8)
    aspect = np.tile(np.arange(4), persons * 2)
    codes = np.stack([aspect // 2, aspect % 2, *np.zeros((4, len(person))), -2 * (aspect // 2)], 1)
    pixels = rng.integers(0, 80, (len(person), 144, 144, 3), dtype=np.uint8)
    pixels[..., 0] += (100 * (aspect // 2)).astype(np.uint8)[:, None, None]
    pixels[..., 1] += (100 * (aspect % 2)).astype(np.uint8)[:, None, None]
    return tiny_pool.Pool("test", pixels, codes.astype(np.int8), person, aspect)


# ---------------------------------------------------------------- the weights that ship


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_shipped_tower_is_a_plain_open_clip_folder(folder):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(
        ["a dorsal right view of a human hand."]
    )
    size = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]["size"][0]
    with torch.no_grad():
        image = model.eval().encode_image(torch.zeros(1, 3, size, size))
        text = model.encode_text(tokens)
    assert image.shape == text.shape == (1, 128)
    assert torch.isfinite(image).all() and torch.isfinite(text).all()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_shipped_tower_is_small_and_half_precision(folder):
    path = folder / "open_clip_model.safetensors"
    assert path.stat().st_size <= 16_000_000
    with safe_open(path, framework="pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds <= {"F16", "I64"}
    told = json.loads((folder / "open_clip_config.json").read_text())
    tower = next(t for t, name in NAMES.items() if name == folder.name)
    assert told["model_cfg"] == model_config(tower)
    assert told["preprocess_cfg"]["fit"] == "hand"


@pytest.fixture(scope="module")
def strangers():
    """Pictures, codes and persons of ten people whom nothing else knows, one of each aspect."""
    told = []
    for index in range(10):
        person = drawn.make_person(drawn.person_seed("test of the tiny CLIPs", 0, index))
        for aspect in CHAIN:
            picture = Image.fromarray(drawn.draw_hand(person, aspect, 0))
            code = captions.codes(drawn.caption_attributes(person, aspect, False, False))
            told.append((picture, code, index))
    pictures, rows, persons = zip(*told, strict=True)
    return pictures, np.stack(rows), np.array(persons)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_shipped_tower_names_the_aspect_of_unseen_persons(folder, strangers):
    pictures, rows, persons = strangers
    encoder = load_encoder(f"local-dir:{folder}", fit="hand")
    fitted = np.stack([encoder.preprocess.fit_image(picture)[0] for picture in pictures])
    with torch.no_grad():
        z = encoder.features(encoder.preprocess.normalise(torch.from_numpy(fitted))).proj
        found = accuracy(encoder, z.numpy(), rows, persons)
    assert found["aspect"]["accuracy"] >= 0.7
    assert found["surface"]["accuracy"] >= 0.9


# ---------------------------------------------------------------- persons and captions


def test_the_pools_persons_are_in_no_data_set():
    tiny_pool.check_disjoint(1000)


def test_a_shared_person_is_refused(monkeypatch):
    monkeypatch.setattr(tiny_pool, "SET", "drawn")
    with pytest.raises(ValueError, match="also in the drawn data set, seed 0"):
        tiny_pool.check_disjoint(5)


def test_three_persons_in_ten_have_eight_shots_and_all_differ():
    counts = [len(tiny_pool.shots_of(k)) for k in range(1000)]
    assert sum(counts) * 4 == 18_000 and counts.count(8) == 300
    assert any(worn for k in range(10) for _, worn, _ in tiny_pool.shots_of(k)[:3])
    assert all(
        len({shot for shot, *_ in tiny_pool.shots_of(k)}) == len(tiny_pool.shots_of(k))
        for k in (0, 5)
    )


def test_captions_say_only_what_is_true_and_nothing_of_who_it_is():
    rng = np.random.default_rng(0)
    opposite = {
        "surface": {"dorsal": ("palm",), "palmar": ("the back", "back of", "dorsal")},
        "side": {"right": ("left",), "left": ("right",)},
        "gender": {"male": ("woman", "female"), "female": (" man", " male")},
    }
    for index in range(60):
        person = drawn.make_person(drawn.person_seed(tiny_pool.SET, 0, index))
        told = drawn.caption_attributes(person, CHAIN[index % 4], index % 3 == 0, index % 5 == 0)
        row = captions.codes(told)
        for _ in range(10):
            text, said = captions.caption(row, rng)
            assert not any(c.isdigit() for c in text)
            assert "  " not in text and text == text.strip()
            for name, wrong in opposite.items():
                assert not any(word in text for word in wrong[told[name]]), text
            for name, value in zip(captions.CLASSES, said, strict=True):
                assert value in (captions.UNSAID, captions.CLASSES[name].index(told[name]))
            if told["surface"] == "palmar":
                assert "nail" not in text, "nails are not seen from the palm"


def test_three_captions_in_four_name_surface_and_side():
    rng = np.random.default_rng(1)
    row = np.zeros(7, dtype=np.int8)
    said = np.stack([captions.caption(row, rng)[1] for _ in range(1000)])
    both = (said[:, :2] != captions.UNSAID).all(axis=1).mean()
    assert 0.7 < both < 0.8
    assert (said == captions.UNSAID).any(axis=0).all() and (said == 0).any(axis=0).all()


def test_a_caption_is_true_of_every_picture_that_it_fits():
    rows = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0, -2]])
    said = np.array([[0, -1, -1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, 0], [-1] * 7])
    expected = [[True, True, True], [True, False, True], [False, False, True]]
    assert captions.true_of(said, rows).tolist() == expected


def test_every_attribute_can_be_asked_for():
    for attribute in ("aspect", *captions.CLASSES):
        phrases, templates = captions.question(attribute)
        asked = {"aspect": 4, "age_band": 2}.get(attribute)
        assert len(phrases) == (asked or len(captions.CLASSES[attribute]))
        assert all(words for words in phrases.values())
        assert all(template.count("{") == 1 for template in templates)


# ---------------------------------------------------------------- losses and training


def test_contrast_with_several_positives_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, 5, generator=generator) for _ in range(2))
    fits = torch.rand(6, 6, generator=generator) > 0.6
    fits |= torch.eye(6, dtype=torch.bool)
    cosine = [[float(torch.cosine_similarity(a, b, dim=0)) * 7 for b in t] for a in z]
    total = 0.0
    for i in range(6):
        row = [np.exp(cosine[i][k]) for k in range(6)]
        column = [np.exp(cosine[k][i]) for k in range(6)]
        mine = [k for k in range(6) if fits[i, k]]
        its = [k for k in range(6) if fits[k, i]]
        total -= sum(np.log(row[k] / sum(row)) for k in mine) / len(mine)
        total -= sum(np.log(column[k] / sum(column)) for k in its) / len(its)
    found = contrastive(z, t, fits, torch.tensor(7.0))
    assert float(found) == pytest.approx(total / 12, rel=1e-5)


def test_equal_captions_are_no_negatives_of_each_other():
    z = torch.eye(2)[[0, 0]]
    t = torch.eye(2)[[0, 0]]
    both = contrastive(z, t, torch.ones(2, 2, dtype=torch.bool), torch.tensor(50.0))
    assert float(both) == pytest.approx(np.log(2), abs=1e-5)  # nothing left to gain


def test_cutting_the_padding_off_changes_no_text_feature():
    torch.manual_seed(0)
    clip = Pretraining("vit").clip.eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a hand.", "the palm of a right hand."])
    with torch.no_grad():
        assert torch.allclose(encode_short(clip, tokens), clip.encode_text(tokens), atol=1e-6)


def test_the_attribute_loss_ignores_what_is_unseen_and_stays_finite():
    torch.manual_seed(0)
    model = Pretraining("vit")
    palms = torch.tensor([[1, 0, 0, 0, 0, 0, -2], [1, 1, 1, 2, 3, 1, -2]])
    loss = attribute_loss(model, torch.randn(2, 128), palms)
    loss.backward()
    assert torch.isfinite(loss)
    grad = model.heads["nail_polish"].weight.grad
    assert grad is None or torch.isfinite(grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.heads["aspect"].parameters())


def test_augmentation_mirrors_nothing_and_repeats_itself():
    pixels = torch.full((16, 144, 144, 3), 200, dtype=torch.uint8)
    pixels[:, :, :48] = 20  # dark on the left, so it must stay
    first = augment(pixels, 112, torch.Generator().manual_seed(3))
    again = augment(pixels, 112, torch.Generator().manual_seed(3))
    assert torch.equal(first, again) and first.shape == (16, 3, 112, 112)
    assert (first[..., :28].mean((1, 2, 3)) < first[..., -28:].mean((1, 2, 3))).all()


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_a_few_steps_lower_the_loss(tower):
    recipe = tiny.Recipe(tower, minutes=60, batch=16, warmup=0.0, lr=5e-4)
    trainer = tiny.Trainer(recipe, small_pool(), fast_fabric())
    seen = [sum(trainer.step().values()) for _ in range(10)]
    assert np.mean(seen[-3:]) < np.mean(seen[:3])
    assert set(trainer.judge()) == {"aspect", *captions.CLASSES}


def test_a_stopped_run_goes_on_as_if_it_had_not_been(monkeypatch):
    fabric, data = fast_fabric(), small_pool()
    clock = iter(range(1000))
    monkeypatch.setattr(tiny.time, "perf_counter", lambda: float(next(clock)))
    recipe = tiny.Recipe("vit", minutes=1, batch=8)
    whole = tiny.Trainer(recipe, data, fabric)
    for _ in range(2):
        whole.step()
    state = {k: v for k, v in whole.state().items()}
    part = tiny.Trainer(recipe, data, fabric)
    part.resume(torch.load(_saved(state), weights_only=True))
    assert part.step() == pytest.approx(whole.step(), rel=1e-4)
    assert part.count == whole.count == 3


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_an_export_is_what_was_trained(tmp_path):
    trainer = tiny.Trainer(tiny.Recipe("rn", minutes=1), small_pool(), fast_fabric())
    folder = tiny.export(trainer, tmp_path, tmp_path / "history.csv")
    images = torch.randn(
        2, 3, trainer.size, trainer.size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        mine = as_encoder(trainer.model.clip, "rn").features(images).proj
        theirs = load_encoder(str(folder)).features(images).proj
    assert torch.allclose(mine, theirs, atol=2e-2 * float(mine.abs().max()))


# ---------------------------------------------------------------- the check of the drawn hands


def test_euclidean_neighbours_are_the_cosine_neighbours_of_the_lifted_vectors():
    x = np.random.default_rng(0).normal(size=(40, 3)) * [100, 50, 10]
    z = as_cosines(x)
    assert np.allclose(np.linalg.norm(z, axis=1), 1)
    far = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert (np.argsort(far, axis=1)[:, :5] == np.argsort(-(z @ z.T), axis=1)[:, :5]).mean() > 0.99


def test_all_persons_are_tested():
    rows = [
        {"image": f"{pid}_{aspect}_{k}", "pid": pid, "aspect": aspect, "dataset": "drawn"}
        for pid in (3, 7, 9)
        for aspect in CHAIN
        for k in range(3)
    ]
    manifest = all_tested(pd.DataFrame(rows), "palmar_l")
    assert set(manifest["split"]) == {"query", "gallery"}
    one = manifest[manifest["draw"] == 0]
    assert (one["split"] == "gallery").sum() == 3 and (one["split"] == "query").sum() == 6
    assert not one["image"].str.startswith("stand-in").any()


def test_the_surroundings_keep_no_outline_of_the_hand():
    person = drawn.make_person(drawn.person_seed(tiny_pool.SET, 0, 0))
    picture = drawn.draw_hand(person, "palmar_r", 0)
    around = surroundings(Image.fromarray(picture))
    whole = np.asarray(Image.fromarray(picture).resize((20, 15), Image.Resampling.BOX), float)
    assert around.shape == (15, 20, 3)
    assert around.std(axis=(0, 1)).max() < 0.35 * whole.std(axis=(0, 1)).max()
