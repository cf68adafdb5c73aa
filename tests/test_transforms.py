"""Geometry to the pixel, against numpy and torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from fake_data import pixels, retinopathy
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode

from resnet_lab.data.augmentation import GEOMETRY, affine_maps, changes_color, color_factors, draws, inverted, recolor
from resnet_lab.data.fundus import draw_fundus
from resnet_lab.data.transforms import INTERPOLATIONS, Geometry, denormalize, normalize, padded, resample

STILL = {"horizontal_flip": 0.0, "vertical_flip": 0.0, "rotation": 0.0}


class Draws:
    """Replacement for numpy's generator with given draws."""

    def __init__(self, angle=0.0, flips=(1.0, 1.0)):
        self.angle, self.flips = angle, flips

    def numbers(self, data):
        assert -data.rotation <= self.angle <= data.rotation
        return np.array([[*self.flips, (self.angle / data.rotation + 1) / 2, 0.5, 0.5, 0.5, 0.5, 0.5]])


def geometry(size, **keys):
    return Geometry(retinopathy(Path("none"), image_size=size, **keys))


def train(size, **keys):
    batched = geometry(size, **STILL | keys)

    def transform(image, random):
        u = random.numbers(batched.data) if isinstance(random, Draws) else random.random((1, len(GEOMETRY)))
        return batched([image], u, np.array([True]))[0]

    return transform


def evaluate(size, **keys):
    batched = geometry(size, **keys)
    return lambda image, random: batched([image], random.random((1, len(GEOMETRY))), np.array([False]))[0]


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


def test_flips_are_independent_and_as_frequent_as_configured():
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
def test_quarter_turns_are_counterclockwise_to_the_pixel(interpolation, size, angle, quarters):
    image = noise(size, size)
    result = train(size, rotation=180.0, interpolation=interpolation)(image, Draws(angle))
    np.testing.assert_array_equal(result, np.rot90(image, quarters))


@pytest.mark.parametrize("flips", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_flips_come_before_the_rotation(flips):
    image = noise(8, 8)
    transform = train(8, rotation=90.0, horizontal_flip=0.5, vertical_flip=0.5)
    flipped = image[:: -1 if flips[1] == 0 else 1, :: -1 if flips[0] == 0 else 1]
    np.testing.assert_array_equal(transform(image, Draws(90, flips)), np.rot90(flipped))


def test_quarter_of_a_wide_image_keeps_its_center():
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
    inside = (result.min(axis=2) > 0) & (expected.min(axis=2) > 0)  # the edge to black depends on rounding
    difference = np.abs(result.astype(int) - expected)
    assert inside.mean() > 0.8
    assert difference[inside].max() <= (2 if interpolation == "bilinear" else 12)
    assert (difference[inside] <= 1).mean() > 0.99
    assert result[0, 0].max() == 0  # areas outside the image are black


def test_interpolations_differ():
    image = noise(16, 16)
    nearest, bilinear = (
        train(16, rotation=30.0, interpolation=name)(image, Draws(20)) for name in ("nearest", "bilinear")
    )
    assert set(map(tuple, nearest.reshape(-1, 3))) <= {(0, 0, 0), *map(tuple, image.reshape(-1, 3))}
    assert not np.array_equal(nearest, bilinear)
    assert bilinear.std() < nearest.std()


def test_angles_fill_their_range():
    u = generator().random((1000, len(GEOMETRY)))
    matrices, exact = affine_maps(
        geometry(4, **STILL | {"rotation": 30.0}).data, np.full((1000, 2), 4), u, np.ones(1000, bool)
    )
    angles = np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    np.testing.assert_allclose(np.quantile(angles, [0, 0.25, 0.5, 0.75, 1]), [-30, -15, 0, 15, 30], atol=2.5)
    assert not exact.any()


# scale and translation


def test_scale_is_a_factor_about_the_center():
    image = np.zeros((41, 41, 3), np.uint8)
    image[10:31, 10:31] = 200  # 21 pixels about the center
    for scale, side in ((2.0, 41), (0.5, 11)):
        result = train(41, scale=[scale, scale])(image, generator())
        assert abs(int((result[20, :, 0] > 100).sum()) - side) <= 1
        np.testing.assert_array_equal(result > 100, result[::-1, ::-1] > 100)


def test_scale_and_translation_fill_their_ranges():
    u, sizes, augment = generator().random((1000, len(GEOMETRY))), np.full((1000, 2), 100), np.ones(1000, bool)
    matrices, _ = affine_maps(geometry(100, **STILL | {"scale": [0.8, 1.2]}).data, sizes, u, augment)
    np.testing.assert_allclose(np.quantile(matrices[:, 0, 0], [0, 0.5, 1]), [0.8, 1.0, 1.2], atol=0.02)
    matrices, exact = affine_maps(geometry(100, **STILL | {"translate": 0.1}).data, sizes, u, augment)
    assert exact.all()
    assert (matrices[:, :, 2] == np.round(matrices[:, :, 2])).all()  # whole pixels
    np.testing.assert_allclose(
        np.quantile(matrices[:, :, 2], [0, 0.5, 1], axis=0), [[-10] * 2, [0] * 2, [10] * 2], atol=1
    )


def test_translation_moves_whole_pixels_without_resampling():
    image = noise(10, 10)
    draw = np.array([[1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0]])  # as far right and up as possible
    result = geometry(10, **STILL | {"translate": 0.2})([image], draw, np.array([True]))[0]
    expected = np.zeros_like(image)
    expected[:8, 2:] = image[2:, :8]
    np.testing.assert_array_equal(result, expected)


def test_only_the_chosen_are_augmented():
    images, u = [noise(8, 8)] * 2, np.zeros((2, len(GEOMETRY)))
    flipped, same = geometry(8, horizontal_flip=1.0, vertical_flip=0.0, rotation=0.0)(
        images, u, np.array([True, False])
    )
    np.testing.assert_array_equal(flipped, images[0][:, ::-1])
    np.testing.assert_array_equal(same, images[0])


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_draws_are_those_of_numpy(seed: int):
    keys = np.random.default_rng(0).integers(0, (2**31, 2**40, 9), (50, 3))
    streams = (np.random.Philox(key=[seed, epoch], counter=[0, *others, 0]) for epoch, *others in keys)
    np.testing.assert_array_equal(draws(seed, keys), [np.random.Generator(bits).random(13) for bits in streams])
    assert draws(seed, keys[:0]).shape == (0, 13)


def test_draws_depend_on_exactly_four_numbers():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    rows = np.concatenate([draws(seed, np.array([rest])) for seed, *rest in keys])
    assert len(np.unique(rows)) == rows.size
    np.random.seed(3)
    many = draws(0, np.array([(0, index, 0) for index in range(2000)]))
    np.testing.assert_array_equal(many[1], rows[3])
    bits = np.random.Philox(key=[0, 0], counter=[0, 1, 0, 0])  # a generator of its own for each image
    np.testing.assert_array_equal(many[1], np.random.Generator(bits).random(13))
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1], 0, atol=0.03)


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


def test_without_crop_training_sees_the_center():
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
def test_evaluation_takes_the_center(shape, crop, rows, columns):
    image = noise(*shape)
    transform = evaluate(10, crop=crop, padding=2, rotation=30.0, horizontal_flip=1.0, vertical_flip=1.0)
    for seed in range(3):
        np.testing.assert_array_equal(transform(image, generator(seed)), image[rows, columns])


# color


def floats():
    return torch.from_numpy(np.stack([noise(6, 5, low=40), noise(6, 5, low=40) // 2])).float() / 255


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((0.8, 1, 1, 0, 0), lambda images: reference.adjust_brightness(images, 0.8)),
        ((1, 0.7, 1, 0, 0), lambda images: reference.adjust_contrast(images, 0.7)),
        ((1, 1, 0.6, 0, 0), lambda images: reference.adjust_saturation(images, 0.6)),
        ((1, 1, 1, 0, 1), lambda images: reference.rgb_to_grayscale(images, 3)),
        ((0.9, 0.8, 0.7, 0, 0), lambda images: reference.adjust_saturation(
            reference.adjust_contrast(reference.adjust_brightness(images, 0.9), 0.8), 0.7)),
    ],
)  # fmt: skip
def test_color_against_torchvision(factors, expected):
    images = floats()
    result = recolor(images, torch.tensor([factors] * 2, dtype=torch.float32))
    wanted = expected(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(result, wanted, atol=2e-3, rtol=0)


def test_hue_turns_colors_and_leaves_their_gray():
    images = floats() * 0.3 + 0.3
    turned = recolor(images, torch.tensor([[1, 1, 1, 0.25, 0]] * 2))
    gray = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(turned @ gray, images @ gray, atol=1e-3, rtol=0)
    assert (turned - images).abs().max() > 0.05
    torch.testing.assert_close(recolor(images, torch.tensor([[1.0, 1, 1, 1, 0]] * 2)), images, atol=1e-4, rtol=0)


def test_color_factors_fill_their_ranges():
    data = retinopathy(Path("none"), brightness=0.2, contrast=0.1, saturation=0.3, hue=0.05, random_grayscale=0.1)
    u, augment = generator().random((3000, 5)), np.arange(3000) < 2000
    factors = color_factors(data, u, augment)
    np.testing.assert_allclose(factors[:2000].min(0), [0.8, 0.9, 0.7, -0.05, 0], atol=0.01)
    np.testing.assert_allclose(factors[:2000].max(0), [1.2, 1.1, 1.3, 0.05, 1], atol=0.01)
    assert factors[:2000, 4].mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(factors[2000:], [[1, 1, 1, 0, 0]] * 1000)


@pytest.mark.parametrize(("key", "column"), [("brightness", 0), ("contrast", 1), ("saturation", 2), ("hue", 3)])
def test_each_color_key_changes_only_its_own_factor(key: str, column: int):
    data = retinopathy(Path("none"), **{key: 0.2})
    factors = color_factors(data, generator().random((100, 5)), np.full(100, True))
    changed = np.flatnonzero((factors != [1, 1, 1, 0, 0]).any(axis=0))
    assert changed.tolist() == [column]
    assert changes_color(data)
    assert not changes_color(retinopathy(Path("none")))


def test_colors_need_nothing_from_the_cpu_after_the_first_batch():
    """A copy to a GPU, or an inverse that checks for errors, would wait for all work before it."""
    called = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    images, factors = torch.empty(2, 4, 4, 3, device="meta"), torch.empty(2, 5, device="meta")
    recolor(images, factors)
    with Calls():
        assert recolor(images, factors).shape == (2, 4, 4, 3)
    assert "aten.where.self" in called
    assert not [name for name in called if "copy" in name or "lift" in name or "linalg" in name]


def test_color_goes_before_normalization():
    images, factors = torch.from_numpy(noise(6, 5, low=0))[None], torch.tensor([[0.5, 1, 1, 0, 0]])
    mean, std = torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.4])
    result = normalize(images, mean, std, factors)
    torch.testing.assert_close(
        result, reference.normalize(images.permute(0, 3, 1, 2) / 510, [0.3, 0.2, 0.1], [0.2, 0.3, 0.4])
    )


# normalization


def test_normalize_against_torchvision():
    images = torch.from_numpy(np.stack([noise(6, 5, low=0), noise(6, 5)]))
    mean, std = torch.tensor([0.3749, 0.2601, 0.1856]), torch.tensor([0.2526, 0.1780, 0.1291])
    result = normalize(images, mean, std)
    expected = reference.normalize(images.permute(0, 3, 1, 2) / 255, mean.tolist(), std.tolist())
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(denormalize(result, mean, std), images)


def test_normalize_leaves_gray_levels_unchanged():
    images = torch.from_numpy(noise(6, 5)[None]).float()
    before = images.clone()
    result = normalize(images, torch.full((3,), 0.5), torch.full((3,), 0.25))
    torch.testing.assert_close(result, (before.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(images, before)


def test_normalize_uses_memory_again_only_if_no_tensor_refers_to_it():
    mean, std = torch.zeros(3), torch.ones(3)

    def normalized(value, number=2):
        return normalize(torch.full((number, 4, 4, 3), value, dtype=torch.uint8), mean, std)

    first = normalized(51)
    place, part = first.data_ptr(), first[1:, :2].permute(0, 2, 3, 1)
    second = normalized(102)
    del first
    third = normalized(153)
    assert len({place, second.data_ptr(), third.data_ptr()}) == 3
    assert [float(part.max()), float(second.min()), float(third.min())] == pytest.approx([0.2, 0.4, 0.6])
    weights = torch.ones(1, 3, 1, 1, requires_grad=True)
    loss = torch.nn.functional.conv2d(third, weights).sum()
    del third
    fourth = normalized(0)  # autograd still needs the third
    loss.backward()
    assert weights.grad.flatten().tolist() == pytest.approx([0.6 * 32] * 3)
    place = fourth.data_ptr()
    del fourth
    smaller = normalized(204, number=1)
    assert (smaller.data_ptr(), smaller.shape, float(smaller.max())) == (place, (1, 3, 4, 4), pytest.approx(0.8))
    del smaller
    assert normalized(255).data_ptr() == place


def test_denormalize_keeps_to_uint8():
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 9.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    shown = denormalize(images, torch.zeros(3), torch.ones(3))
    assert shown.dtype == np.uint8
    assert shown[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


# errors


# on the device


def both(images, **keys):
    """Transform images with the same random numbers on the CPU and as a device does."""
    transform = geometry(keys.pop("image_size"), **STILL | keys)
    u, augment = np.random.default_rng(1).random((len(images), len(GEOMETRY))), np.ones(len(images), bool)
    sizes = np.array([image.shape[1::-1] for image in images])
    maps = torch.from_numpy(inverted(affine_maps(transform.data, sizes, u, augment)[0]).astype(np.float32))
    one = transform(images, u, augment)
    two = resample(padded(images), maps, transform.size, transform.data.interpolation).numpy()
    return one.astype(int), two.astype(int)


def photographs(sizes):
    drawn = [draw_fundus(number % 5, "left", number, 0, max(size)) for number, size in enumerate(sizes)]
    return [image[: size[0], : size[1]] for image, size in zip(drawn, sizes, strict=True)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_device_moves_photographs_as_the_cpu_does(interpolation):
    images = photographs([(64, 96), (96, 64), (80, 80), (97, 73)] * 3)
    keys = {"rotation": 180.0, "scale": [0.7, 1.4], "translate": 0.1, "horizontal_flip": 0.5, "vertical_flip": 0.5}
    one, two = both(images, image_size=64, interpolation=interpolation, **keys)
    different = np.abs(one - two)
    assert one.std() > 20
    if interpolation == "bilinear":
        assert different.max() <= 1
    else:
        assert (different.max(axis=3) > 0).mean() < 0.001


@pytest.mark.parametrize("keys", [{"horizontal_flip": 0.5, "vertical_flip": 0.5}, {"crop": 8, "padding": 3}, {}])
def test_the_device_moves_whole_pixels_exactly(keys):
    images = [noise(12, 12) + number for number in range(20)]
    one, two = both(images, image_size=12, **keys)
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one.reshape(20, -1), axis=0)) == 20


def test_padding_of_a_batch_is_black_and_does_not_move_its_images():
    images = [noise(3, 5), noise(4, 2)]
    batch = padded(images).numpy()
    assert batch.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(batch[0, :3], images[0])
    assert batch[0, 3:].sum() == batch[1, :, 2:].sum() == 0
