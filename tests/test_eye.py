"""The eye's disc: found at any position, and not found in pictures without one."""

import cv2
import numpy as np
import pytest
from conftest import REAL_DATA

from resnet_lab.data.eye import Box, Disc, crop, disc_box, find_disc, subtract_local_mean


def fundus(x, y, radius, width=360, height=300, color=(180, 90, 40), border=3):
    """Return a disc with texture in a border with noise, uint8 (height, width, 3)."""
    random = np.random.default_rng(0)
    image = random.integers(0, 2 * border + 1, (height, width, 3)).astype(np.uint8)
    texture = cv2.resize(random.uniform(0.7, 1.1, (12, 14)).astype(np.float32), (width, height))
    eye = (texture[..., None] * np.array(color)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (round(x), round(y)), round(radius), 1, -1)
    image[mask > 0] = eye[mask > 0]
    return image


def jpeg(image, quality=70):
    return cv2.imdecode(cv2.imencode(".jpeg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    ("x", "y", "radius"),
    [
        (180, 150, 120),  # centered
        (130, 120, 90),  # off center
        (180, 150, 170),  # cut off above and below
        (80, 150, 140),  # cut off on the left
        (180, 230, 140),  # cut off below
        (90, 80, 120),  # cut off above and on the left
    ],
)
@pytest.mark.parametrize("color", [(180, 90, 40), (30, 12, 8)])  # bright, underexposed
def test_the_disc_is_found_to_a_few_pixels(x, y, radius, color):
    found = find_disc(jpeg(fundus(x, y, radius, color=color)))
    assert found is not None
    np.testing.assert_allclose(found, (x + 0.5, y + 0.5, radius + 0.5), atol=2.5)


@pytest.mark.parametrize("share", [0.7, 0.5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_disc_is_found_with_half_the_picture_missing(share, side):
    whole, width = fundus(180, 150, 170), round(share * 360)  # cut off above and below as well
    part = whole[:, :width] if side == "right" else whole[:, 360 - width :]
    x = 180.5 if side == "right" else 180.5 - (360 - width)
    np.testing.assert_allclose(find_disc(jpeg(np.ascontiguousarray(part))), (x, 150.5, 170.5), atol=8)


def test_a_notch_and_writing_in_the_border_do_not_matter():
    image = fundus(180, 150, 120)
    image[140:160, 285:301] = 3  # the notch that some cameras add at the rim
    image[10:30, 5:60] = 250
    np.testing.assert_allclose(find_disc(image), (180.5, 150.5, 120.5), atol=1.5)


def test_a_bright_optic_disc_and_a_dark_half_do_not_matter():
    image = fundus(180, 150, 120)
    cv2.circle(image, (230, 150), 15, (255, 240, 200), -1)
    image[:, :180] //= 3
    np.testing.assert_allclose(find_disc(image), (180.5, 150.5, 120.5), atol=2)


@pytest.mark.parametrize(
    "image",
    [
        fundus(180, 150, 300),  # no border: the disc is larger than the picture
        np.zeros((300, 360, 3), np.uint8),
        np.full((300, 360, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 360, 3), dtype=np.uint8),
        np.pad(np.full((200, 360, 3), 120, np.uint8), ((50, 50), (0, 0), (0, 0))),  # bars, but no disc
        np.full((1, 1, 3), 9, np.uint8),
    ],
)
def test_pictures_without_a_disc_have_none(image):
    assert find_disc(image) is None


@pytest.mark.slow
def test_the_disc_does_not_depend_on_the_size_of_the_picture():
    image = fundus(1500, 1200, 1100, 2880, 2400)
    whole = np.array(find_disc(image))
    for scale in (2, 4, 8):
        small = cv2.resize(image, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(scale * np.array(find_disc(small)), whole, atol=0.003 * 1100)


# the square around it


@pytest.mark.parametrize("step", [1, 2, 8])
def test_box_is_a_square_around_the_disc_in_whole_steps(step):
    disc = Disc(100.3, 80.9, 61.2)
    left, top, side = disc_box(disc, step)
    assert not any(value % step for value in (left, top, side))
    np.testing.assert_allclose((left + side / 2, top + side / 2, side / 2), disc, atol=step)


def test_areas_outside_the_picture_are_black():
    image = fundus(30, 25, 20, 60, 50)
    cut = crop(image, Box(-5, 40, 20))
    assert cut.shape == (20, 20, 3)
    np.testing.assert_array_equal(cut[:10, 5:], image[40:, :15])
    assert cut[10:].max() == cut[:, :5].max() == 0
    np.testing.assert_array_equal(crop(image, Box(3, 4, 30)), image[4:34, 3:33])


# the local mean


def test_local_mean_keeps_small_structures_and_removes_large_ones():
    light = np.linspace(60, 180, 200)[None, :, None].repeat(200, 0).repeat(3, 2)
    image = light.copy()
    image[98:102, 98:102] -= 30
    result = subtract_local_mean(image.round().astype(np.uint8), radius=100)
    assert result.dtype == np.uint8
    middle = result[60:140, 60:140].astype(int)
    assert abs(np.median(middle) - 128) <= 3
    assert np.ptp(np.median(middle, axis=(0, 2))) <= 8  # the light from the left is removed
    assert result[100, 100].max() < 80


def test_local_mean_follows_its_formula_without_black_areas():
    image = np.random.default_rng(0).integers(40, 256, (120, 120, 3), dtype=np.uint8)
    result = subtract_local_mean(image, radius=60)
    formula = cv2.addWeighted(image, 4, cv2.GaussianBlur(image, (0, 0), 2), -4, 128)
    inside = np.hypot(*(np.mgrid[:120, :120] - 59.5)) < 54
    assert np.abs(result.astype(int) - formula)[inside].max() <= 4  # the function rounds the mean
    np.testing.assert_array_equal(result[~inside], 128)


def test_local_mean_has_no_bright_edge_where_the_disc_is_cut_off():
    image = np.zeros((120, 120, 3), np.uint8)
    image[20:100] = 120
    assert np.abs(subtract_local_mean(image, radius=60).astype(int) - 128).max() <= 4


# real photographs


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL_DATA / "idrid_256.tar").is_file(), reason="no real photographs in ../shared/data")
def test_every_photograph_of_idrid_has_its_disc(idrid):
    discs = [find_disc(cv2.imread(str(file))) for file in sorted((idrid / "images").iterdir())]
    assert len(discs) == 516
    x, y, radius = np.array(discs, float).T  # None would be NaN
    # one camera, 385 × 256 pixels: the disc is wider than the picture's height
    np.testing.assert_allclose(x, 192, atol=20)
    np.testing.assert_allclose(y, 128, atol=20)
    np.testing.assert_allclose(radius, 153, atol=12)


def test_a_straight_edge_is_no_disc_and_no_warning():
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, :20] = 255, 90, 40
    assert find_disc(np.ascontiguousarray(image.transpose(1, 0, 2))) is None
