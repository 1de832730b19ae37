"""What happens to photographs: nothing at level 0, more at each level, and at the right end."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handclip_lib.aspects import CHAIN
from handclip_lib.data.drawn.draw import draw_hand, draw_mask
from handclip_lib.data.drawn.person import make_person, person_seed
from handclip_lib.data.spoil import KINDS, SIDE, common, spoil, wrist_edge

MEASURED = ("blur", "noise", "jpeg", "low_resolution", "darker", "lighter")
SHAPED = ("rotation", "fingers_cut", "wrist_cut", "mirrored")
ENDS = ("bottom", "left", "top", "right")
LENGTH, HEIGHT = 300, 384  # of the marked hand, and of its picture


@pytest.fixture(scope="module")
def hand() -> Image.Image:
    return common(
        Image.fromarray(draw_hand(make_person(person_seed("spoil", 0, 0)), "dorsal_r", 0))
    )


def marked(turns: int = 0) -> Image.Image:
    """An arm from the bottom, 300 of 384 pixels long, the last 30 red, the first 30 blue."""
    pixels = np.full((HEIGHT, SIDE, 3), 245, np.uint8)
    pixels[HEIGHT - LENGTH :, 180:330] = (150, 100, 80)
    pixels[HEIGHT - LENGTH : HEIGHT - LENGTH + 30, 180:330] = (200, 0, 0)
    pixels[-30:, 180:330] = (0, 0, 200)
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -turns)))


def has(picture: Image.Image, channel: int) -> bool:
    pixels = np.asarray(picture).astype(int)
    return bool((pixels[..., channel] - np.delete(pixels, channel, axis=2).max(axis=2) > 100).any())


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_level_0_is_the_photograph_and_another_level_is_not(hand, kind):
    assert np.array_equal(spoil(hand, kind, 0, "a"), hand)
    for level in range(1, len(KINDS[kind].levels) + 1):
        made = spoil(hand, kind, level, "a")
        assert made is not None and made.mode == "RGB"
        assert not np.array_equal(np.asarray(made), np.asarray(hand))
    for level in (-1, len(KINDS[kind].levels) + 1):
        with pytest.raises(ValueError, match=f"{kind}: level {level}; there are 0 to"):
            spoil(hand, kind, level, "a")


def test_every_kind_is_tested_here():
    assert set(KINDS) == {*MEASURED, *SHAPED}


@pytest.mark.parametrize("kind", MEASURED)
def test_each_level_is_farther_from_the_original(hand, kind):
    known = np.asarray(hand, dtype=float)
    levels = range(len(KINDS[kind].levels) + 1)
    apart = [
        np.abs(np.asarray(spoil(hand, kind, k, "a"), dtype=float) - known).mean() for k in levels
    ]
    assert apart[0] == 0 and (np.diff(apart) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_decides_what_is_random_and_nothing_else(hand, kind):
    once, again = (np.asarray(spoil(hand, kind, 1, "a")) for _ in range(2))
    assert np.array_equal(once, again)
    others = [np.asarray(spoil(hand, kind, 1, name)) for name in "bcdefgh"]
    random = any(o.shape != once.shape or not np.array_equal(o, once) for o in others)
    assert random == (kind in ("noise", "rotation"))


def test_the_grain_of_the_noise_stays_while_it_grows():
    grey = Image.new("RGB", (SIDE, 384), (128, 128, 128))
    first, second = (np.asarray(spoil(grey, "noise", k, "a"), dtype=float) - 128 for k in (1, 2))
    assert first.std() == pytest.approx(10, rel=0.02) and second.std() == pytest.approx(
        20, rel=0.02
    )
    assert np.abs(second - 2 * first).max() <= 1.5  # rounding


def test_a_stop_is_half_the_light():
    grey = Image.new("RGB", (32, 32), (255, 188, 10))
    told = {
        stops: np.asarray(spoil(grey, "darker", k + 1, "a"))[0, 0].tolist()
        for k, stops in enumerate(KINDS["darker"].levels)
    }
    # sRGB's curve by hand: half of the light of 255 is 187.5 of 255, a quarter 136.9
    assert told[-1][:2] == [188, 137] and told[-2][0] == 137 and told[-1][2] == 5
    assert np.asarray(spoil(grey, "lighter", 2, "a"))[0, 0].tolist() == [255, 255, 18]


def test_low_resolution_and_blur_keep_the_size_and_the_mean(hand):
    for kind in ("blur", "low_resolution"):
        made = spoil(hand, kind, 2, "a")
        assert made.size == hand.size
        assert np.asarray(made).mean() == pytest.approx(np.asarray(hand).mean(), abs=1)


def test_a_quarter_turn_loses_nothing(hand):
    pixels = np.asarray(hand)
    quarter, half = (np.asarray(spoil(hand, "rotation", k, "a")) for k in (3, 4))
    assert any(np.array_equal(quarter, np.rot90(pixels, side)) for side in (1, -1))
    assert np.array_equal(half, np.rot90(pixels, 2))
    tilted = spoil(hand, "rotation", 2, "a")
    assert tilted.width > hand.width and tilted.height > hand.height
    sides = {np.asarray(spoil(hand, "rotation", 1, name))[60, :].tobytes() for name in "abcdefgh"}
    assert len(sides) == 2  # to either side, by the name


def test_mirroring_swaps_left_and_right(hand):
    assert np.array_equal(spoil(hand, "mirrored", 1, "a"), np.asarray(hand)[:, ::-1])


# --- one size for all cameras -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1600, 1200), (640, 480), (90, 200)])
def test_every_photograph_has_one_size_first(size):
    picture = common(Image.new("RGB", size, "white"))
    assert max(picture.size) == SIDE
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.01)


def test_photographs_are_made_upright_and_rgb_first():
    image = Image.new("L", (40, 20))
    image.getexif()[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture = common(image)
    assert picture.mode == "RGB" and picture.height == SIDE


# --- a part of the hand -------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4), ids=ENDS)
def test_the_right_end_is_cut_off(turns):
    picture = marked(turns)
    edge, length = wrist_edge(picture)
    assert edge == turns and length == pytest.approx(LENGTH / HEIGHT, abs=0.02)
    fingers, wrist = (spoil(picture, kind, 2, "a") for kind in ("fingers_cut", "wrist_cut"))
    assert has(picture, 0) and has(picture, 2)
    assert not has(fingers, 0) and has(fingers, 2)
    assert has(wrist, 0) and not has(wrist, 2)
    across = turns % 2
    for made, lost in ((fingers, HEIGHT - LENGTH + 0.2 * LENGTH), (wrist, 0.2 * LENGTH)):
        assert made.size[1 - across] == pytest.approx(HEIGHT - lost, abs=6)
        assert made.size[across] == SIDE  # nothing is squeezed


@pytest.mark.parametrize("kind", ["fingers_cut", "wrist_cut"])
def test_each_level_cuts_off_more(hand, kind):
    areas = [np.prod(spoil(hand, kind, k, "a").size) for k in range(len(KINDS[kind].levels) + 1)]
    assert (np.diff(areas) < 0).all()


@pytest.mark.parametrize("is_up", [False, True], ids=["fingers down", "fingers up"])
def test_drawn_hands_lose_the_end_that_is_named(is_up):
    """By what the generator knows: the hand's mask ends at the wrist, far from the fingertips."""
    person = make_person(person_seed("spoil", 0, 1))
    for aspect in CHAIN:
        for shot, worn in ((0, False), (1, True)):
            told = {"accessories": worn}
            pixels = draw_hand(person, aspect, shot, **told)
            mask = draw_mask(person, aspect, shot, **told)
            pixels, mask = (a[::-1] if is_up else a for a in (pixels, mask))
            picture = common(Image.fromarray(np.ascontiguousarray(pixels)))
            # the arm enters at the top, where the fingers point down
            edge, _ = wrist_edge(picture)
            assert edge == (0 if is_up else 2)
            rows = np.flatnonzero(mask.max(axis=1) > 0.5) * picture.height / mask.shape[0]
            for kind in ("fingers_cut", "wrist_cut"):
                made = np.asarray(spoil(picture, kind, 3, "a"))
                keeps_bottom = (kind == "fingers_cut") == is_up
                whole = np.asarray(picture)
                kept = whole[-len(made) :] if keeps_bottom else whole[: len(made)]
                assert np.array_equal(made, kept)
                first = len(whole) - len(made) if keeps_bottom else 0
                inside = ((rows >= first) & (rows < first + len(made))).mean()
                lost = 1 - inside
                # 35 % of what is seen is hand at the fingers, and in part arm at the wrist
                assert (0.3 < lost < 0.6) if kind == "fingers_cut" else (0.0 < lost < 0.4)


def test_nothing_is_cut_where_nobody_can_tell_the_ends(hand):
    empty = Image.new("RGB", (SIDE, 384), (240, 240, 240))
    inside = np.full((384, SIDE, 3), 245, np.uint8)
    inside[80:300, 180:330] = (150, 100, 80)
    corner = np.full((384, SIDE, 3), 245, np.uint8)
    corner[:200, :200] = (150, 100, 80)
    tips = inside.copy()
    tips[300:, 200:235] = (150, 100, 80)  # a finger touches the edge, the arm does not
    for pixels in (np.asarray(empty), inside, corner, tips):
        picture = Image.fromarray(pixels)
        assert wrist_edge(picture) is None
        assert spoil(picture, "fingers_cut", 1, "a") is None
        assert spoil(picture, "wrist_cut", 1, "a") is None
        assert spoil(picture, "blur", 1, "a") is not None


def test_real_photographs_are_cut_at_the_right_end(test_data: Path):
    """11k Hands was taken from the side of the arm: it enters at the top, fingers point down."""
    files = sorted((test_data / "11k_sample" / "Hands").glob("*.jpg"))[::8]
    places = [wrist_edge(common(Image.open(file))) for file in files]
    told = [place for place in places if place is not None]
    assert len(told) > 0.9 * len(files) > 20
    assert all(edge == 2 for edge, _ in told)
    picture = common(Image.open(files[0]))
    fingers, wrist = (np.asarray(spoil(picture, k, 3, "a")) for k in ("fingers_cut", "wrist_cut"))
    assert np.array_equal(fingers, np.asarray(picture)[: len(fingers)])
    assert np.array_equal(wrist, np.asarray(picture)[-len(wrist) :])
    turned = picture.rotate(180)
    cut = np.asarray(spoil(turned, "fingers_cut", 3, "a"))
    assert np.array_equal(cut, np.asarray(turned)[-len(cut) :])
