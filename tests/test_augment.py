"""Augmentation: each image by itself, in range, never the other hand; mixing only where it may."""

import numpy as np
import pytest
import torch
from torch import Tensor

from handclip_lib.data.augment import Augmenter, mix
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.schema_train import Augment

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PREP = Preprocess((48, 32), "squash", MEAN, STD)
OFF = {"degrees": 0, "translate": 0, "scale": (1, 1), "colour": 0, "erasing": 0}
PARTS: dict[str, dict[str, object]] = {
    "degrees": {"degrees": 15},
    "translate": {"translate": 0.1},
    "scale": {"scale": (0.8, 1.2)},
    "crop": {"crop": 0.3},
    "flip": {"flip": True},
    "colour": {"colour": 0.2},
    "hue": {"hue": 0.1},
    "grey": {"grey": 0.5},
    "blur": {"blur": 0.9},
    "erasing": {"erasing": 1.0},
}


def pictures(count: int = 2, size: tuple[int, int] = PREP.size) -> Tensor:
    """Equal images (count, H, W, 3): a smooth picture without any symmetry."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    channels = [x * 200 + 20, (1 - y) * 150 + 40, 90 + 80 * np.sin(5 * x + 3 * y)]
    one = torch.from_numpy(np.stack(channels, 2).astype(np.uint8))
    return one.expand(count, *one.shape).contiguous()


def bright(images: Tensor) -> Tensor:
    """Normalised images -> 0..1."""
    return images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def augmented(pixels: Tensor, seed: int = 0, **told: object) -> Tensor:
    torch.manual_seed(seed)
    return Augmenter(Augment.model_validate(OFF | told), PREP)(pixels)


def test_with_everything_off_it_is_the_one_normalisation():
    pixels = pictures()
    state = torch.get_rng_state()
    assert torch.equal(augmented(pixels), PREP.normalise(pixels))
    torch.set_rng_state(state)
    with pytest.raises(ValueError, match="uint8"):
        augmented(pixels.float(), **PARTS["degrees"])


def test_parts_that_come_to_nothing_leave_the_picture_as_it_is():
    pixels = pictures()
    for part in ({"scale": (1, 1.0000001)}, {"crop": 1e-9}, {"colour": 1e-9}, {"erasing": 1e-12}):
        assert torch.allclose(augmented(pixels, **part), PREP.normalise(pixels), atol=1e-4), part


@pytest.mark.parametrize("part", PARTS)
def test_equal_images_of_a_batch_come_out_different(part):
    images = augmented(pictures(8), **PARTS[part])
    assert images.shape == (8, 3, 48, 32) and images.dtype == torch.float32
    different = [not torch.equal(images[0], other) for other in images[1:]]
    assert any(different) if part in ("flip", "grey") else all(different)


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_same_images(part):
    pixels = pictures(6)
    one, two, three = (augmented(pixels, seed, **PARTS[part]) for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_values_stay_those_of_a_picture():
    wild = {"degrees": 180, "translate": 0.5, "scale": (0.3, 2), "crop": 0.5, "flip": True}
    images = bright(augmented(pictures(32), colour=0.9, erasing=1.0, **wild))
    assert images.isfinite().all() and images.min() > -1e-6 and images.max() < 1 + 1e-6


def test_the_border_is_repeated_where_nothing_was():
    grey = torch.full((4, 48, 32, 3), 200, dtype=torch.uint8)
    images = augmented(grey, degrees=45, scale=(0.3, 0.5), translate=0.3)
    assert torch.allclose(images, PREP.normalise(grey), atol=1e-4)


def spot(images: Tensor, channel: int) -> Tensor:
    """(B, 2): row and column of what is bright in a channel, as its centre of mass."""
    mass = bright(images)[:, channel]
    mass = mass / mass.sum((1, 2), keepdim=True)
    rows, columns = torch.arange(mass.shape[1]) * 1.0, torch.arange(mass.shape[2]) * 1.0
    return torch.stack([(mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)], 1)


def handed(images: Tensor) -> Tensor:
    """(B,) sign of the turn red -> green -> blue of three spots, one a channel."""
    corners = [spot(images, k) for k in range(3)]
    (ay, ax), (by, bx) = ((corners[k] - corners[0]).unbind(1) for k in (1, 2))
    return torch.sign(ax * by - ay * bx)


def three_spots(count: int) -> Tensor:
    pixels = torch.zeros(count, 48, 32, 3, dtype=torch.uint8)
    for channel, (y, x) in enumerate(((18, 10), (18, 20), (30, 11))):
        pixels[:, y - 2 : y + 3, x - 2 : x + 3, channel] = 255
    return pixels


def test_no_hand_changes_sides_unless_asked():
    pixels = three_spots(200)
    own = handed(PREP.normalise(pixels[:1]))
    moves = {"degrees": 180, "translate": 0.05, "scale": (0.8, 1.1), "crop": 0.1}
    assert (handed(augmented(pixels, **moves)) == own).all()
    turned = handed(augmented(pixels, flip=True, **moves)) != own
    assert 60 < turned.sum() < 140


def test_a_flip_is_the_exact_mirror_image():
    pixels = pictures(16)
    plain = PREP.normalise(pixels)
    for image in augmented(pixels, flip=True):
        assert any(torch.allclose(image, x, atol=1e-4) for x in (plain[0], plain[0].flip(2)))


def test_a_turn_turns_and_keeps_proportions():
    pixels = three_spots(100)
    images = augmented(pixels, degrees=15)
    red, green, blue = (spot(images, k) for k in range(3))
    along, down = green - red, blue - red
    angle = torch.rad2deg(torch.atan2(along[:, 0], along[:, 1]))
    assert angle.abs().max() < 15.5 and angle.min() < -10 and angle.max() > 10
    assert torch.allclose(along.norm(dim=1), torch.tensor(10.0), atol=0.3)
    assert torch.allclose(down.norm(dim=1), torch.tensor(145.0).sqrt(), atol=0.3)


def test_scale_shift_and_crop_stay_in_their_ranges():
    pixels, start = three_spots(100), spot(PREP.normalise(three_spots(1)), 0)
    zoomed = augmented(pixels, scale=(0.8, 1.2))
    wide = (spot(zoomed, 1) - spot(zoomed, 0)).norm(dim=1) / 10
    assert 0.79 < wide.min() < 0.85 and 1.15 < wide.max() < 1.21
    shifted = spot(augmented(pixels, translate=0.1), 0) - start
    assert shifted[:, 0].abs().max() < 4.9 and shifted[:, 1].abs().max() < 3.3
    assert shifted[:, 0].abs().max() > 4 and shifted[:, 1].abs().max() > 2.5
    cut = augmented(pixels, crop=0.2)
    wide = (spot(cut, 1) - spot(cut, 0)).norm(dim=1) / 10
    assert wide.min() > 0.99 and 1.2 < wide.max() < 1.26
    side = (spot(cut, 0) - spot(PREP.normalise(pixels), 0) * wide[:, None])[wide > 1.05]
    at = side / (wide[wide > 1.05, None] - 1) / torch.tensor([47.0, 31.0])
    assert at.std(0).min() > 0.2 and at.min() > -1.1 and at.max() < 0.1  # anywhere inside


def test_colour_follows_brightness_contrast_and_saturation_and_keeps_the_hue():
    pixels = pictures(200) // 2 + 40  # no value is cut off
    images, plain = bright(augmented(pixels, colour=0.2)), pixels[0].permute(2, 0, 1) / 255
    ratio = images.mean((1, 2, 3)) / plain.mean()
    assert 0.78 < ratio.min() < 0.84 and 1.16 < ratio.max() < 1.22

    def hue(x: Tensor) -> Tensor:
        """Angle of a pixel's colour in the plane across grey."""
        r, g, b = x.unbind(-3)
        return torch.atan2(3**0.5 * (g - b), 2 * r - g - b)

    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    chroma = (plain - (plain * grey).sum(0)).norm(dim=0) > 0.05
    turned = (hue(images) - hue(plain)).abs()[:, chroma]
    assert torch.minimum(turned, 2 * np.pi - turned).max() < 1e-3

    def vivid(x: Tensor) -> Tensor:
        return (x - (x * grey).sum(-3, keepdim=True)).pow(2).mean((-3, -2, -1)).sqrt()

    def spread(x: Tensor) -> Tensor:
        return (x * grey).sum(-3).std((-2, -1))

    contrast = spread(images) / spread(plain) / ratio
    saturation = vivid(images) / vivid(plain) / (spread(images) / spread(plain))
    for factor in (contrast, saturation):
        assert 0.75 < factor.min() < 0.86 and 1.14 < factor.max() < 1.25


def test_erasing_fills_one_box_with_noise_in_about_the_asked_share():
    pixels = pictures(200)
    changed = (augmented(pixels, erasing=0.5) - PREP.normalise(pixels)).abs().amax(1) > 1e-3
    hit = changed.flatten(1).any(1)
    assert 70 < hit.sum() < 130
    for mask in changed[hit]:
        rows, columns = (mask.any(k).nonzero() for k in (1, 0))
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9 and 0.01 < box.numel() / mask.numel() < 0.23
    noisy = bright(augmented(pictures(50), erasing=1.0))[changed.new_ones(50)]
    noise = (noisy - pictures(1)[0].permute(2, 0, 1) / 255).abs() > 0.02
    values = noisy[noise]
    assert 0.2 < values.std() < 0.4  # uniform: 0.29


def test_autocast_does_not_coarsen_the_pixels():
    pixels = pictures(4)
    told = PARTS["degrees"] | PARTS["colour"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = augmented(pixels, **told)
    assert torch.equal(images, augmented(pixels, **told))


def test_the_input_is_left_alone():
    pixels = pictures(4)
    before = pixels.clone()
    augmented(pixels, erasing=1.0, **PARTS["degrees"])
    assert torch.equal(pixels, before)


# --- mixing -------------------------------------------------------------------------------------


def flat(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 10, 6), each of its own value all over, and their labels."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 10, 6).clone()
    return images, torch.arange(count)


def mixed(name: str, first: int = 0, seed: int = 0, count: int = 8):
    images, labels = flat(count)
    torch.manual_seed(seed)
    made = mix(images, labels, 9, Augment(mix=1, **{name: 0.8}), first)
    assert made is not None and torch.equal(images, flat(count)[0])
    return images, *made


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("first", [0, 3, 6])
def test_targets_are_what_the_images_hold(name, first):
    for seed in range(10):
        images, got, soft = mixed(name, first, seed=seed)
        assert torch.equal(got[:first], images[:first])
        assert torch.equal(soft[:first], torch.eye(9)[:first])
        held = (soft * torch.arange(9)).sum(1)  # value = Σ share · label
        assert torch.allclose(held, got.mean((1, 2, 3)), atol=1e-5)
        assert torch.allclose(soft.sum(1), torch.ones(8), atol=1e-6) and soft.min() >= 0
        assert (soft[first:, :first] == 0).all()  # clean rows lend nothing
        if name == "cutmix":
            assert set(got.unique().tolist()) <= set(range(8))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_rows_mix_by_themselves_with_another(name):
    shares = torch.cat([mixed(name, seed=seed)[2].diagonal() for seed in range(30)])
    assert shares.std() > 0.2 and (shares < 1).float().mean() > 0.9
    assert 0.4 < shares.mean() < 0.6 or name == "cutmix"  # boxes are cut at the frame
    partners = [set(row.nonzero().flatten().tolist()) for row in mixed("mixup")[2]]
    assert all(len(p) == 2 and k in p for k, p in enumerate(partners))


def test_when_a_batch_is_not_mixed():
    images, labels = flat()
    assert mix(images, labels, 9, Augment(mix=1)) is None
    assert mix(images, labels, 9, Augment(mix=0, mixup=1.0)) is None
    assert mix(images, labels, 9, Augment(mix=1, mixup=1.0), first=7) is None  # nobody to mix with
    torch.manual_seed(0)
    both = [mix(images, labels, 9, Augment(mixup=1.0, cutmix=1.0, mix=0.5)) for _ in range(200)]
    done = [made for made in both if made is not None]
    whole = sum(bool((x == x.round()).all()) for x, _ in done)  # CutMix makes no new values
    assert 70 < len(done) < 130 and 0.3 < whole / len(done) < 0.7


def test_mixing_follows_the_seed():
    one, two, three = (mixed("cutmix", seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_picture_but_for_the_noise():
    pixels = pictures(8)
    told = PARTS["degrees"] | PARTS["colour"] | PARTS["crop"] | PARTS["flip"]
    here, there = augmented(pixels, **told), augmented(pixels.cuda(), **told)
    assert there.device.type == "cuda" and torch.allclose(here, there.cpu(), atol=1e-3)
    assert augmented(pixels.cuda(), erasing=1.0).isfinite().all()
    images, labels = (x.cuda() for x in flat())
    made = mix(images, labels, 9, Augment(mix=1, cutmix=1.0))
    assert made is not None and made[0].device.type == made[1].device.type == "cuda"


def test_the_usual_augmentation_has_known_pixels_and_draws_nothing_for_what_is_off():
    torch.manual_seed(0)
    images = Augmenter(Augment(), PREP)(pictures(4))
    means = [-0.6866, -0.2472, -0.3847, -0.5944, -0.0880, -0.2385]
    assert images.mean((2, 3)).flatten()[:6].tolist() == pytest.approx(means, abs=2e-4)
    assert images[:, 0, 20, 15].tolist() == pytest.approx(
        [-0.7288, -0.6559, -0.4767, -0.4960], abs=2e-4
    )
    assert torch.rand(()).item() == pytest.approx(0.44386777, abs=1e-6), "what is drawn next"


def test_grey_takes_all_colours_and_keeps_the_brightness():
    pixels = pictures(100)
    images, plain = bright(augmented(pixels, grey=0.3)), bright(PREP.normalise(pixels[:1]))[0]
    luma = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    grey = [bool((image.amax(0) - image.amin(0)).max() < 1e-5) for image in images]
    assert 15 < sum(grey) < 45
    for image, is_grey in zip(images, grey, strict=True):
        wanted = (luma * plain).sum(0).expand(3, -1, -1) if is_grey else plain
        assert torch.allclose(image, wanted, atol=1e-5)


def test_hue_turns_colours_and_leaves_grey_and_brightness_as_they_are():
    plain = torch.full((8, 48, 32, 3), 90, dtype=torch.uint8)
    assert torch.allclose(augmented(plain, hue=0.5), PREP.normalise(plain), atol=1e-2)
    pixels = pictures(50) // 4 + 96  # nothing is cut at black or white
    before, after = bright(PREP.normalise(pixels)), bright(augmented(pixels, hue=0.02))
    luma = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    assert torch.allclose((luma * before).sum(1), (luma * after).sum(1), atol=1e-3)
    yiq = torch.tensor([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    angles = []
    for images in (before, after):
        one, two = torch.einsum("kc,bchw->kbhw", yiq, images)
        angles.append(torch.rad2deg(torch.atan2(two, one)))
    turned = ((angles[1] - angles[0] + 180) % 360 - 180).flatten(1).median(dim=1).values
    assert turned.abs().max() < 7.3 and turned.min() < -3 and turned.max() > 3  # 0.02 · 360 degrees


def test_blur_takes_edges_from_some_images_and_keeps_their_means():
    rows = torch.arange(48) // 4 % 2 * 255  # stripes
    pixels = rows.view(1, 48, 1, 1).expand(60, 48, 32, 3).to(torch.uint8).contiguous()
    images, plain = augmented(pixels, blur=0.5), PREP.normalise(pixels[:1])
    edges = (images[:, :, 1:] - images[:, :, :-1]).abs().amax((1, 2, 3))
    sharp = (plain[:, :, 1:] - plain[:, :, :-1]).abs().max()
    changed = [not torch.equal(image, plain[0]) for image in images]
    assert 15 < sum(changed) < 45 and edges.max() <= sharp and edges.min() < 0.97 * sharp
    assert torch.allclose(images.mean((2, 3)), plain.mean((2, 3)).expand(60, 3), atol=2e-2)
