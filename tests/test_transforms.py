"""Geometry to the pixel, against numpy and torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from fake_data import pixels, refusal, retinopathy
from torchvision.transforms import InterpolationMode

from resnet_lab.data.transforms import denormalise, normalise, transforms

STILL = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "rotation": 0.0}


class Draws:
    """In place of numpy's generator: the draws that a test wants."""

    def __init__(self, angle=0.0, flips=(1.0, 1.0)):
        self.angle, self.flips = angle, flips

    def random(self, size):
        assert size == 2
        return np.array(self.flips)

    def uniform(self, low, high):
        assert low <= self.angle <= high
        return self.angle


def train(size, **keys):
    return transforms(retinopathy(Path("none"), image_size=size, **STILL | keys))[0]


def evaluate(size, **keys):
    return transforms(retinopathy(Path("none"), image_size=size, **keys))[1]


def noise(height, width, low=1):
    return np.random.default_rng(0).integers(low, 256, (height, width, 3), dtype=np.uint8)


def generator(seed=0):
    return np.random.default_rng(seed)


# flips


@pytest.mark.parametrize(
    ("horizontal", "vertical", "expected"),
    [
        (0.0, 0.0, lambda image: image),
        (1.0, 0.0, lambda image: image[:, ::-1]),
        (0.0, 1.0, lambda image: image[::-1]),
        (1.0, 1.0, lambda image: image[::-1, ::-1]),
    ],
)
def test_flips(horizontal, vertical, expected):
    image = noise(9, 9)
    transform = train(9, horizontal_flip=horizontal, vertical_flip=vertical)
    for seed in range(5):
        np.testing.assert_array_equal(transform(image, generator(seed)), expected(image))


def test_flips_come_as_often_as_asked_and_apart():
    image, transform = noise(4, 4), train(4, horizontal_flip=0.25, vertical_flip=0.5)
    forms = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    counts, random = np.zeros(4), generator()
    for _ in range(2000):
        result = transform(image, random)
        counts += [np.array_equal(result, form) for form in forms]
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts / 2000, [0.375, 0.125, 0.375, 0.125], atol=0.04)


# rotation


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("angle", "quarters"), [(90, 1), (-90, -1), (180, 2), (-180, 2)])
def test_quarters_turn_against_the_clock_to_the_pixel(interpolation, size, angle, quarters):
    image = noise(size, size)
    result = train(size, rotation=180.0, interpolation=interpolation)(image, Draws(angle))
    np.testing.assert_array_equal(result, np.rot90(image, quarters))


@pytest.mark.parametrize("flips", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_flips_come_before_the_rotation(flips):
    image = noise(8, 8)
    transform = train(8, rotation=90.0, horizontal_flip=0.5, vertical_flip=0.5)
    flipped = image[:: -1 if flips[1] == 0 else 1, :: -1 if flips[0] == 0 else 1]
    np.testing.assert_array_equal(transform(image, Draws(90, flips)), np.rot90(flipped))


def test_quarter_of_a_wide_image_keeps_its_centre():
    image = noise(8, 14)
    result = train(8, resize="shorter", rotation=90.0)(image, Draws(90))
    np.testing.assert_array_equal(result, np.rot90(image[:, 3:11]))


@pytest.mark.parametrize("angle", [30.0, -17.5])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_other_angles_against_torchvision(angle, interpolation):
    image = pixels("a", 64, 64)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = reference.rotate(tensor, angle, InterpolationMode(interpolation)).permute(1, 2, 0).numpy()
    result = train(64, rotation=30.0, interpolation=interpolation)(image, Draws(angle))
    inside = (result.min(axis=2) > 0) & (expected.min(axis=2) > 0)  # the edge to black is a matter of rounding
    difference = np.abs(result.astype(int) - expected)
    assert inside.mean() > 0.8
    assert difference[inside].max() <= (2 if interpolation == "bilinear" else 12)
    assert (difference[inside] <= 1).mean() > 0.99
    assert result[0, 0].max() == 0  # what turns into view is black


def test_interpolations_differ():
    image = noise(16, 16)
    nearest, bilinear = (
        train(16, rotation=30.0, interpolation=name)(image, Draws(20)) for name in ("nearest", "bilinear")
    )
    assert set(map(tuple, nearest.reshape(-1, 3))) <= {(0, 0, 0), *map(tuple, image.reshape(-1, 3))}
    assert not np.array_equal(nearest, bilinear)
    assert bilinear.std() < nearest.std()


def test_angles_fill_their_range(monkeypatch):
    angles = []
    monkeypatch.setattr(
        "resnet_lab.data.transforms._affine", lambda shape, angle, *_: angles.append(angle) or np.eye(2, 3)
    )
    transform, random = train(4, rotation=30.0), generator()
    for _ in range(1000):
        transform(noise(4, 4), random)
    assert len(angles) == 1000
    np.testing.assert_allclose(np.quantile(angles, [0, 0.25, 0.5, 0.75, 1]), [-30, -15, 0, 15, 30], atol=2.5)


# crops


def test_random_crop_of_the_padded_image_reaches_every_place():
    image, transform, random = noise(8, 8), train(8, crop=8, padding=2), generator()
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    seen = {windows[transform(image, random).tobytes()] for _ in range(400)}
    assert seen == {(y, x) for y in range(5) for x in range(5)}


def test_random_crop_without_padding_stays_inside():
    image, transform, random = noise(9, 12), train(12, crop=7, resize="shorter"), generator()
    windows = {image[y : y + 7, x : x + 7].tobytes(): (y, x) for y in range(3) for x in range(6)}
    assert {windows[transform(image, random).tobytes()] for _ in range(400)} == set(windows.values())


def test_crop_goes_with_the_rotation():
    image, random = pixels("a", 40, 40), generator()
    transform = train(40, crop=24, rotation=10.0)
    results = [transform(image, random) for _ in range(20)]
    assert {result.shape for result in results} == {(24, 24, 3)}
    assert len({result.tobytes() for result in results}) == 20


def test_without_crop_training_sees_the_centre():
    image = noise(8, 13)
    np.testing.assert_array_equal(train(8, padding=2)(image, generator()), image[:, 2:10])


@pytest.mark.parametrize(
    ("shape", "crop", "rows", "columns"),
    [
        ((10, 10), 6, slice(2, 8), slice(2, 8)),
        ((10, 16), None, slice(0, 10), slice(3, 13)),
        ((17, 10), None, slice(3, 13), slice(0, 10)),
        ((10, 10), None, slice(None), slice(None)),
    ],
)
def test_evaluation_takes_the_centre(shape, crop, rows, columns):
    image = noise(*shape)
    transform = evaluate(10, crop=crop, padding=2, rotation=30.0, horizontal_flip=1.0, vertical_flip=1.0)
    for seed in range(3):
        np.testing.assert_array_equal(transform(image, generator(seed)), image[rows, columns])


def test_evaluation_draws_nothing():
    random = generator()
    evaluate(10)(noise(10, 10), random)
    assert random.random() == generator().random()


# normalisation


def test_normalise_against_torchvision():
    images = torch.from_numpy(np.stack([noise(6, 5, low=0), noise(6, 5)]))
    mean, std = torch.tensor([0.3749, 0.2601, 0.1856]), torch.tensor([0.2526, 0.1780, 0.1291])
    result = normalise(images, mean, std)
    expected = reference.normalize(images.permute(0, 3, 1, 2) / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(denormalise(result, mean, std), images)


def test_denormalise_keeps_to_uint8():
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 9.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    shown = denormalise(images, torch.zeros(3), torch.ones(3))
    assert shown.dtype == np.uint8
    assert shown[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


# errors


def test_unknown_choices():
    assert refusal(lambda: train(8, interpolation="cubic")) == "data.interpolation=cubic: choose bilinear or nearest"
    assert refusal(lambda: train(8, resize="longer")) == "data.resize=longer: choose square or shorter"
