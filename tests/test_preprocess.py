"""From photograph to input: fits, modes, orientation, and the one normalisation."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import handclip_lib  # noqa: F401 (mends torchvision)
from handclip_lib.data.foreground import find_hand, otsu
from handclip_lib.data.preprocess import Preprocess, to_rgb

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def prep(fit: str = "squash", size: tuple[int, int] = (32, 32)) -> Preprocess:
    return Preprocess(size=size, fit=fit, mean=MEAN, std=STD)


def hand_on_plain(
    frame: tuple[int, int] = (320, 240),
    box: tuple[int, int, int, int] = (120, 0, 200, 150),
    background: tuple[int, int, int] = (235, 235, 230),
) -> Image.Image:
    """A skin-coloured block that enters the frame from above, on a noisy, unevenly lit ground."""
    image = Image.new("RGB", frame, background)
    ImageDraw.Draw(image).rectangle(box, fill=(190, 140, 110))
    noise = np.random.default_rng(0).normal(0, 3, (frame[1], frame[0], 3))
    light = np.linspace(-15, 15, frame[0])[None, :, None]
    return Image.fromarray((np.asarray(image) + noise + light).clip(0, 255).astype(np.uint8))


def test_squash_is_pillows_bicubic_without_a_crop():
    image = hand_on_plain()
    pixels, found = prep(size=(24, 48)).fit_image(image)
    assert pixels.shape == (24, 48, 3) and pixels.dtype == np.uint8 and found
    expected = np.asarray(image.resize((48, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels, expected)


def test_squash_shows_all_four_corners():
    image = Image.new("RGB", (400, 300), "black")
    corners = {(0, 0): 255, (300, 0): 200, (0, 200): 150, (300, 200): 100}
    for (x, y), value in corners.items():
        image.paste((value,) * 3, (x, y, x + 100, y + 100))
    pixels, _ = prep().fit_image(image)
    seen = [int(pixels[y, x, 0]) for y, x in ((2, 2), (2, 29), (29, 2), (29, 29))]
    assert np.allclose(seen, [255, 200, 150, 100], atol=3)


def test_pad_keeps_proportions_and_takes_the_borders_median_colour():
    image = Image.new("RGB", (400, 200), (10, 200, 30))
    ImageDraw.Draw(image).rectangle((150, 50, 250, 150), fill=(200, 0, 0))  # a square
    pixels, found = prep("pad", (64, 64)).fit_image(image)
    assert found and tuple(pixels[0, 0]) == (10, 200, 30)
    red = pixels[..., 0] > 100
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert abs(len(rows) - len(columns)) <= 1
    assert abs(rows.mean() - 31.5) < 1


@settings(max_examples=25, deadline=None)
@given(
    left=st.integers(0, 200),
    width=st.integers(60, 110),
    height=st.integers(80, 235),
    dark=st.booleans(),
)
def test_hand_crop_holds_the_whole_hand_with_its_margin(left, width, height, dark):
    box = (left, 0, left + width, height)
    image = hand_on_plain(box=box, background=(20, 25, 30) if dark else (235, 235, 230))
    found = find_hand(image)
    assert found is not None
    assert np.allclose(found.box, (left, 0, left + width + 1, height + 1), atol=5)
    pixels, ok = prep("hand", (100, 100)).fit_image(image)
    assert ok
    skin = np.abs(pixels.astype(int) - (190, 140, 110)).sum(2) < 70
    longest = max(np.flatnonzero(skin.any(k))[[0, -1]] @ (-1, 1) + 1 for k in (0, 1))
    assert 86 <= longest <= 96  # 1 / 1.1 of the crop


def test_hand_crop_outside_the_frame_is_background_not_cut():
    image = hand_on_plain(frame=(200, 300), box=(0, 10, 120, 290))
    pixels, ok = prep("hand", (100, 100)).fit_image(image)
    assert ok
    assert np.abs(pixels[50, 2].astype(int) - (235, 235, 230)).max() < 30  # left of the frame


def test_a_ring_does_not_cost_the_finger():
    image = hand_on_plain(box=(120, 0, 160, 200))
    ImageDraw.Draw(image).rectangle((110, 150, 170, 156), fill=(235, 235, 230))
    found = find_hand(image)
    assert found is not None and found.box[3] > 195


def test_a_dark_sleeve_does_not_outweigh_a_pale_hand():
    image = hand_on_plain(box=(100, 0, 220, 60))
    draw = ImageDraw.Draw(image)
    draw.rectangle((100, 0, 220, 80), fill=(90, 10, 20))
    draw.rectangle((115, 80, 205, 220), fill=(250, 215, 195))
    found = find_hand(image)
    assert found is not None and found.box[3] > 215


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (320, 240), (128, 120, 110)),
        Image.fromarray(np.random.default_rng(0).integers(120, 136, (240, 320, 3), np.uint8)),
        hand_on_plain(box=(100, 100, 106, 106)),  # a speck
        Image.new("RGB", (5, 5), "white"),
    ],
    ids=["uniform", "noise", "speck", "five pixels"],
)
def test_hand_falls_back_to_the_whole_picture_and_says_so(picture):
    pixels, found = prep("hand").fit_image(picture)
    assert not found
    assert np.array_equal(pixels, prep("pad").fit_image(picture)[0])


def test_window_follows_a_non_square_size():
    pixels, ok = prep("hand", (128, 64)).fit_image(hand_on_plain(box=(100, 0, 220, 120)))
    assert ok and pixels.shape == (128, 64, 3)
    skin = np.abs(pixels.astype(int) - (190, 140, 110)).sum(2) < 70
    rows, columns = skin.any(1).sum(), skin.any(0).sum()
    assert abs(rows - columns) <= 3  # a square stays a square


def test_otsu_separates_two_levels():
    values = np.r_[np.full(700, 10.0), np.full(300, 90.0)]
    threshold, contrast = otsu(values)
    assert 10 <= threshold < 90
    assert contrast == pytest.approx(80, abs=1)


def test_modes_become_rgb():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_rgb(rgba).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("L", (4, 4), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(Image.new("LA", (4, 4), (77, 255))).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("CMYK", (4, 4), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    palette = Image.new("RGB", (4, 4), (0, 0, 255)).convert("P")
    assert to_rgb(palette).getpixel((0, 0)) == (0, 0, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path):
    values = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "deep.png")
    got = np.asarray(to_rgb(Image.open(tmp_path / "deep.png")))
    assert np.array_equal(got[..., 0], values // 257) and got.shape == (4, 4, 3)


def test_transparent_palette_lies_on_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="range"):
        to_rgb(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_exif_orientation_is_respected():
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 10, 20))  # red on the left
    tagged = Image.Exif()
    tagged[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    file = io.BytesIO()
    image.save(file, "PNG", exif=tagged)
    upright = to_rgb(Image.open(file))
    assert upright.size == (20, 40) and upright.getpixel((10, 2)) == (255, 0, 0)


def test_normalise_equals_torchvisions():
    from torchvision.transforms import v2

    pixels = torch.randint(0, 256, (3, 8, 6, 3), dtype=torch.uint8)
    got = prep().normalise(pixels)
    assert got.shape == (3, 3, 8, 6) and got.dtype == torch.float32 and got.is_contiguous()
    theirs = v2.Normalize(MEAN, STD)(pixels.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(got, theirs)


@pytest.mark.parametrize("bad", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8).byte()])
def test_normalise_refuses_what_is_not_pixels(bad):
    with pytest.raises(ValueError, match="uint8"):
        prep().normalise(bad)


def test_round_trip_through_json():
    told = json.loads(json.dumps(prep("hand", (64, 48)).as_dict()))
    assert Preprocess.from_dict(told) == prep("hand", (64, 48))
    with pytest.raises(ValueError, match="keys"):
        Preprocess.from_dict(told | {"crop": 1})
    mirrored = dataclasses.replace(prep(), mirror_left=True)
    assert Preprocess.from_dict(mirrored.as_dict()) == mirrored != prep()
    assert mirrored.pixel_spec() != prep().pixel_spec()


def test_what_was_kept_before_left_hands_could_be_mirrored_mirrors_none():
    told = prep().as_dict()
    del told["mirror_left"]
    assert Preprocess.from_dict(told) == prep() and not prep().mirror_left


@pytest.mark.parametrize(
    "change",
    [{"fit": "crop"}, {"size": (0, 4)}, {"std": (1.0, 0.0, 1.0)}, {"interpolation": "cubic"}],
)
def test_impossible_values_are_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(prep(), **change)


def test_hands_are_found_in_real_photographs(test_data: Path):
    files = sorted((test_data / "11k_sample" / "Hands").glob("*.jpg"))[::8]
    assert files
    found = [prep("hand").fit_image(Image.open(file))[1] for file in files]
    assert np.mean(found) > 0.95
