"""From files to normalized batches: identical for any number of workers and ranks, in memory or not."""

import contextlib
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_data import (
    TEST,
    TRAIN,
    class_folders,
    photographs,
    refusal,
    retinopathy,
    settings,
    write_class_folders,
    write_studies,
)
from PIL import Image

from resnet_lab.data import datamodule as module
from resnet_lab.data.datamodule import DataModule, ImageDataset
from resnet_lab.data.reader import Recipe, read_image
from resnet_lab.data.retinopathy import Retinopathy
from resnet_lab.environment import ranks_here

AUGMENTED = {"rotation": 30.0, "horizontal_flip": 0.5, "vertical_flip": 0.5, "crop": 10, "padding": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "data")


@pytest.fixture
def build(root):
    def make(seed=0, follow_test=False, statistics=None, ranks=None, **keys):
        datamodule = DataModule(retinopathy(root, **{"batch_size": 8} | keys), seed, follow_test, statistics)
        if ranks is not None:
            datamodule.trainer = trainer_of(*ranks)
        datamodule.setup()
        return datamodule

    return make


def trainer_of(rank, world_size, epoch=0, batches=0):
    """Return a trainer that resumes in the middle of an epoch."""
    epochs = SimpleNamespace(current=SimpleNamespace(ready=epoch + (batches > 0), processed=epoch))
    inside = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batches or 4)))
    fit_loop = SimpleNamespace(epoch_progress=epochs, epoch_loop=inside)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=fit_loop, strategy=strategy)


@pytest.mark.parametrize(
    ("limit", "batches"), [(1.0, 4), (3, 3), (100, 4), (1, 1), (0.5, 2), (0.25, 1), (0.24, None), (1e-9, None)]
)
def test_the_trainer_limits_the_batches_of_an_epoch(build, limit, batches):
    datamodule = build(batch_size=8)
    loader = datamodule.train_dataloader()
    datamodule.trainer = SimpleNamespace(limit_train_batches=limit, limit_val_batches=limit)
    assert len(loader) == 4
    if batches is None:
        message = refusal(datamodule._limited, "limit_val_batches", loader)
        assert message.startswith(f"trainer.limit_val_batches={limit}: this share of 4 batches")
    else:
        assert datamodule._limited("limit_train_batches", loader) == batches


def epoch(datamodule, number):
    """Return indices (N,), targets (N,) and pixels (N, S, S, 3) of one epoch of training, in order."""
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(number)
    return [torch.cat([batch[key] for batch in loader]).numpy() for key in ("index", "target", "image")]


def delivered(datamodule, loaders):
    """Return indices (N,) and normalized pixels (N, 3, S, S), as the network gets them."""
    batches = [datamodule.on_after_batch_transfer(batch, 0) for loader in loaders for batch in loader]
    return [torch.cat([batch[key] for batch in batches]).numpy() for key in ("index", "image")]


def images_of(root, names):
    recipe = Recipe(12, "square", eye_crop=False, local_mean=False)
    return np.stack([read_image(str(root / "images" / f"{name}.jpeg"), recipe) for name in names])


# splits


def test_setup_provides_splits_classes_and_counts(build):
    datamodule = build()
    assert datamodule.splits == ["train", "val", "test"]
    assert (datamodule.val_splits, datamodule.test_splits) == (["val"], ["val", "test"])
    assert datamodule.class_counts == {"train": [6] * 5, "val": [2] * 5, "test": [2] * 5}
    assert set(datamodule.fingerprints) == {"train", "val", "test"}
    assert datamodule.dropped == {"skipped_images": 0, "skipped_labels": 0, "leaks": 0}
    assert datamodule.class_names == ["no DR", "mild", "moderate", "severe", "proliferative"]
    assert dict(datamodule.rows("test")[["image", "target"]].to_numpy()) == TEST


def test_a_followed_test_split_is_validated(build):
    datamodule = build(follow_test=True)
    assert datamodule.val_splits == ["val", "test"]
    assert [len(loader.dataset) for loader in datamodule.val_dataloader()] == [10, 10]
    unselected = build(follow_test=True, val_fraction=0)
    assert (unselected.splits, unselected.val_splits) == (["train", "test"], ["test"])
    assert dict(unselected.rows("train")[["image", "target"]].to_numpy()) == TRAIN


def test_the_seed_does_not_change_the_splits(build):
    prints = [build(**seeds).fingerprints for seeds in ({"seed": 0}, {"seed": 1}, {"split_seed": 1})]
    assert prints[0] == prints[1]
    assert prints[0]["train"] != prints[2]["train"]


def test_setup_reads_once(build, monkeypatch):
    datamodule = build()
    monkeypatch.setattr(datamodule.data, "table", None)  # a second reading would fail
    datamodule.setup("fit")
    datamodule.setup("test")


def test_a_missing_split_is_refused(build):
    datamodule = build(val_fraction=0)
    assert refusal(datamodule.rows, "val") == "retinopathy has no split val; choose among train, test"


def test_class_names_are_found(tmp_path):
    root = write_class_folders(tmp_path / "data", {"b": 4, "a": 4})
    datamodule = DataModule(class_folders(root, val_fraction=0.5), seed=0)
    datamodule.setup()
    assert datamodule.class_names == ["a", "b"]
    assert datamodule.class_counts == {"train": [2, 2], "val": [2, 2]}


# batches


def test_training_batches(build):
    datamodule = build()
    loader = datamodule.train_dataloader()
    batches = list(loader)
    assert [len(batch["target"]) for batch in batches] == [8, 8, 8, 6]
    assert len(loader) == 4
    assert (batches[0]["image"].shape, batches[0]["image"].dtype) == ((8, 12, 12, 3), torch.uint8)
    assert batches[0]["target"].dtype == batches[0]["index"].dtype == torch.int64
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    assert sorted(indices) == list(range(30))
    targets = torch.cat([batch["target"] for batch in batches]).tolist()
    assert targets == datamodule.rows("train")["target"][indices].tolist()


def test_batch_on_the_device_is_normalized_and_channels_last(build):
    datamodule = build()
    batch = next(iter(datamodule.val_dataloader()[0]))
    moved = datamodule.on_after_batch_transfer(batch, 0)
    images = moved["image"]
    assert (images.shape, images.dtype) == ((8, 3, 12, 12), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (batch["image"].permute(0, 3, 1, 2) / 255 - datamodule.mean[:, None, None]) / datamodule.std[
        :, None, None
    ]
    torch.testing.assert_close(images, expected)
    assert moved["target"] is batch["target"]
    assert batch["image"].dtype == torch.uint8  # the loader's batch is unchanged


@pytest.mark.parametrize("in_memory", [True, False])
def test_evaluation_reads_every_image_in_order_without_augmentation(build, root, in_memory):
    datamodule = build(in_memory=in_memory, horizontal_flip=1.0, vertical_flip=1.0, rotation=30.0)
    for _ in range(2):
        _, loader = datamodule.test_dataloader()
        batches = list(loader)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
        assert torch.cat([batch["target"] for batch in batches]).tolist() == list(TEST.values())
        np.testing.assert_array_equal(torch.cat([batch["image"] for batch in batches]), images_of(root, TEST))


def test_evaluating_train_does_not_augment(build, root):
    datamodule = build(val_fraction=0, **AUGMENTED | {"crop": None})
    batches = list(datamodule.evaluation_dataloader("train"))
    np.testing.assert_array_equal(torch.cat([batch["image"] for batch in batches]), images_of(root, TRAIN))


def test_crop_is_the_size_of_the_batch(build, root):
    datamodule = build(crop=8)
    assert next(iter(datamodule.train_dataloader()))["image"].shape == (8, 8, 8, 3)
    images = next(iter(datamodule.test_dataloader()[1]))["image"]
    np.testing.assert_array_equal(images, images_of(root, list(TEST)[:8])[:, 2:10, 2:10])


# reproducibility


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*max number of worker.*:UserWarning")
def test_pixels_do_not_depend_on_workers_or_memory(build):
    keys = AUGMENTED | {"mean": None, "std": None}
    expected = epoch(build(in_memory=True, **keys), 1)
    for other in ({"in_memory": False}, {"in_memory": True, "num_workers": 2}, {"in_memory": False, "num_workers": 2}):
        for one, two in zip(expected, epoch(build(**keys | other), 1), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "keys", [{}, {"crop": None, "rotation": 0.0, "padding": 0, "brightness": 0.3}, {"resize": "shorter"}]
)
def test_images_on_the_device_are_those_of_the_cpu(build, keys, monkeypatch):
    gray = {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    decoded, read = [], ImageDataset.read
    monkeypatch.setattr(ImageDataset, "read", lambda self, row: decoded.append(self.images is None) or read(self, row))
    here, there = (build(in_memory=place, **AUGMENTED | gray | keys) for place in (True, "device"))
    for _ in range(2):
        for loaders in ("train_dataloader", "val_dataloader", "test_dataloader"):
            found = []
            for datamodule in (here, there):
                made = getattr(datamodule, loaders)()
                found.append(delivered(datamodule, made if isinstance(made, list) else [made]))
            (one, expected), (two, pixels) = found
            np.testing.assert_array_equal(one, two)
            np.testing.assert_allclose(pixels, expected, atol=1.001)
    assert sum(decoded) == 2 * 50  # each of the two decodes each image once
    assert there.images == {}
    assert next(iter(there.test_dataloader()[0])).keys() >= {"index", "target", "split"}
    assert "image" not in next(iter(there.train_dataloader()))


def test_images_of_several_shapes_on_the_device_are_those_of_the_cpu(tmp_path):
    root = tmp_path / "photographs"
    numbers = np.random.default_rng(0)
    for split, name, (width, height) in product(("train", "val", "test"), "ab", ((20, 20), (20, 32), (29, 20))):
        file = root / split / name / f"{width}x{height}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), np.uint8)).save(file)
    # a batch of one shape is smaller than the largest image of its split
    keys = {"resize": "shorter", "image_size": 20, "batch_size": 1, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    found = []
    for place in (True, "device"):
        datamodule = DataModule(class_folders(root, in_memory=place, **keys), seed=0)
        datamodule.setup()
        found += [delivered(datamodule, [datamodule.train_dataloader(), *datamodule.test_dataloader()])]
    (one, expected), (two, pixels) = found
    np.testing.assert_array_equal(one, two)
    assert expected.shape[1:] == (3, 20, 20)
    np.testing.assert_allclose(pixels, expected, atol=1.001)


def test_the_device_transforms_images_that_are_streamed(build, monkeypatch):
    keys = AUGMENTED | {"mean": [0.0] * 3, "std": [1 / 255] * 3, "resize": "shorter", "in_memory": False}
    here, there = build(**keys), build(num_workers=2, **keys)
    monkeypatch.setattr(there, "_transforms_on_device", lambda: True)
    one, two = (delivered(datamodule, [datamodule.train_dataloader()]) for datamodule in (here, there))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_allclose(one[1], two[1], atol=1.001)


def test_a_worker_says_nothing_if_its_rank_stops_while_it_takes_a_batch(monkeypatch):
    shown = []
    monkeypatch.setattr("sys.excepthook", lambda kind, error, trace: shown.append(kind))
    module.stop_in_silence(0)
    for error in (ConnectionResetError(), EOFError(), ValueError()):
        sys.excepthook(type(error), error, None)
    assert shown == [ValueError]


def test_pixels_depend_on_seed_and_epoch_not_on_earlier_draws(build):
    datamodule = build(**AUGMENTED)
    passes = [epoch(datamodule, number) for number in (0, 1, 1)]
    by_image = [images[np.argsort(indices)] for indices, _, images in passes]
    np.testing.assert_array_equal(passes[1][0], passes[2][0])
    np.testing.assert_array_equal(by_image[1], by_image[2])
    other_seed = epoch(build(seed=1, **AUGMENTED), 1)
    assert passes[0][0].tolist() != passes[1][0].tolist() != other_seed[0].tolist()
    for other in (by_image[0], other_seed[2][np.argsort(other_seed[0])]):
        assert (other != by_image[1]).any(axis=(1, 2, 3)).mean() > 0.9
    resumed = epoch(build(**AUGMENTED), 1)  # a new process that starts at epoch 1
    np.testing.assert_array_equal(resumed[2], passes[1][2])


def test_augmenting_does_not_change_the_images_in_memory(build):
    datamodule = build(in_memory=True, **AUGMENTED)
    before = [image.copy() for image in datamodule.images["train"]]
    epoch(datamodule, 0)
    np.testing.assert_array_equal(datamodule.images["train"], before)


def test_images_in_memory_are_decoded_once(build, monkeypatch):
    calls, read_all = [], ImageDataset.read_all
    monkeypatch.setattr(ImageDataset, "read_all", lambda dataset: calls.append(len(dataset)) or read_all(dataset))
    datamodule = build(in_memory=True)
    for number in range(2):
        epoch(datamodule, number)
        list(datamodule.val_dataloader()[0])
    assert calls == [30, 10]  # test is not read


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*max number of worker.*:UserWarning")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_loader_starts_at_its_epoch_before_set_epoch(build, workers):
    keys = AUGMENTED | {"num_workers": workers, "mean": None, "std": None}
    datamodule = build(**keys)
    datamodule.trainer = trainer_of(0, 1, epoch=3)
    batches = iter(datamodule.train_dataloader())  # workers start to read here
    expected = epoch(build(**AUGMENTED, mean=None, std=None), 3)
    batches = list(batches)
    for key, value in zip(("index", "target", "image"), expected, strict=True):
        np.testing.assert_array_equal(torch.cat([batch[key] for batch in batches]), value)


def test_a_resumed_loader_skips_earlier_batches_in_that_epoch_only(build):
    datamodule = build(**AUGMENTED, batch_size=8, mean=None, std=None)
    datamodule.trainer = trainer_of(1, 2, epoch=3, batches=2)
    loader, whole = datamodule.train_dataloader(), build(**AUGMENTED, batch_size=8, mean=None, std=None)
    whole.trainer = trainer_of(1, 2, epoch=3)
    for number, left in ((3, 2), (4, 0)):
        loader.sampler.set_epoch(number)
        full = whole.train_dataloader()
        full.sampler.set_epoch(number)
        batches, expected = list(loader), list(full)[left:]
        assert len(batches) == len(expected) > 0
        for one, other in zip(batches, expected, strict=True):
            assert one["index"].tolist() == other["index"].tolist()
            np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.parametrize("kind", ["none", "balanced", "undersample", "progressive"])
@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 8), (2, 8), (1, 29), (2, 14)])  # 30 images: some leave one over
def test_steps_are_the_batches_of_every_epoch(build, kind, ranks, batch_size):
    datamodule = build(sampling=kind, batch_size=batch_size, mean=None, std=None)
    for rank, start in product(range(ranks), (0, 7)):
        datamodule.trainer = trainer_of(rank, ranks, start)
        assert datamodule.batches_per_epoch() == len(list(datamodule.train_dataloader()))


def test_loaders_do_not_use_the_global_generator(build):
    datamodule, before = build(), torch.get_rng_state()
    for loader in (datamodule.train_dataloader(), *datamodule.val_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# classes


def test_only_some_classes_are_augmented(build, root):
    datamodule = build(
        val_fraction=0, augment_classes=[1, 2, 3, 4], horizontal_flip=1.0, vertical_flip=0.0, rotation=0.0
    )
    indices, targets, images = epoch(datamodule, 0)
    still = images_of(root, datamodule.rows("train")["image"])[indices]
    np.testing.assert_array_equal(images[targets == 0], still[targets == 0])
    np.testing.assert_array_equal(images[targets > 0], still[targets > 0][:, :, ::-1])


@pytest.mark.parametrize("chosen", ["all", "none", []])
def test_all_classes_or_none_are_augmented(build, root, chosen):
    datamodule = build(val_fraction=0, augment_classes=chosen, horizontal_flip=1.0, vertical_flip=0.0, rotation=0.0)
    indices, _, images = epoch(datamodule, 0)
    still = images_of(root, datamodule.rows("train")["image"])[indices]
    np.testing.assert_array_equal(images, still[:, :, ::-1] if chosen == "all" else still)


def test_an_unknown_class_to_augment_is_refused(build):
    assert refusal(lambda: build(augment_classes="mild")) == (
        "data.augment_classes=mild: must be all, none or a list [a whole number from 0, …]"
    )
    assert refusal(lambda: build(augment_classes=[0, 5])) == (
        "data.augment_classes: there is no class 5; choose among 0 to 4"
    )


def test_images_drawn_twice_in_an_epoch_are_augmented_differently(tmp_path):
    root = write_studies(tmp_path / "data", {"1_left": 0, "2_left": 1, "3_left": 1, "4_left": 1}, {"5_left": 0})
    data = retinopathy(root, sampling="balanced", val_fraction=0, **AUGMENTED)
    datamodule = DataModule(data, seed=0)
    datamodule.setup()
    indices, targets, images = epoch(datamodule, 0)
    assert np.bincount(targets).tolist() == [2, 2]
    first, second = images[indices == 0]
    assert (first != second).any()


def test_only_training_batches_have_color_factors(build):
    datamodule = build(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, random_grayscale=0.5)
    batch = next(iter(datamodule.train_dataloader()))
    assert (batch["color"].shape, batch["color"].dtype) == ((8, 5), torch.float32)
    assert "color" not in next(iter(datamodule.test_dataloader()[0]))
    still = datamodule.on_after_batch_transfer({key: value for key, value in batch.items() if key != "color"}, 0)
    moved = datamodule.on_after_batch_transfer(batch, 0)
    assert (moved["image"] != still["image"]).any(dim=(1, 2, 3)).all()


# ranks


def test_two_ranks_train_on_the_batches_of_one(build):
    whole = list(build(val_fraction=0, **AUGMENTED).train_dataloader())
    parts = [list(build(val_fraction=0, ranks=(rank, 2), **AUGMENTED).train_dataloader()) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first["index"]) == len(second["index"]) == 4
        indices = torch.cat([first["index"], second["index"]])
        assert sorted(indices.tolist()) == sorted(batch["index"].tolist())
        images = torch.cat([first["image"], second["image"]])
        torch.testing.assert_close(images[indices.argsort()], batch["image"][batch["index"].argsort()])


def test_ranks_that_do_not_divide_evaluate_each_image_once(build):
    loaders = [build(batch_size=9, ranks=(rank, 3)).evaluation_dataloader("test") for rank in range(3)]
    batches = [batch for loader in loaders for batch in loader]
    indices = torch.cat([batch["index"] for batch in batches])
    assert sorted(indices.tolist()) == [-1, -1, *range(10)]
    targets = torch.cat([batch["target"] for batch in batches])[indices >= 0]
    assert targets.tolist() == [list(TEST.values())[index] for index in indices[indices >= 0].tolist()]
    assert len({len(loader) for loader in loaders}) == 1


@pytest.mark.parametrize(
    ("version", "ranks", "method"), [((3, 11), 2, "forkserver"), ((3, 11), 1, None), ((3, 12), 2, None)]
)
def test_before_python_3_12_several_ranks_fork_no_workers(build, monkeypatch, version, ranks, method):
    datamodule = build(ranks=(0, ranks), num_workers=1, in_memory=False)
    monkeypatch.setattr(sys, "version_info", version)
    context = datamodule.train_dataloader().multiprocessing_context
    assert (context and context.get_start_method()) == method


def test_a_batch_that_ranks_cannot_share_is_refused(build):
    message = refusal(build(ranks=(0, 3)).train_dataloader)
    assert message == "data.batch_size=8 cannot be divided evenly among 3 ranks; set a multiple of 3"
    assert build(ranks=(0, 4)).batch_size_per_rank(4) == 2


# mean and std


@pytest.mark.parametrize("in_memory", [True, False])
def test_statistics_are_those_of_all_training_pixels(build, root, in_memory):
    datamodule = build(in_memory=in_memory)
    pixels = images_of(root, datamodule.rows("train")["image"]).reshape(-1, 3) / 255
    np.testing.assert_allclose(datamodule.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(datamodule.std, pixels.std(axis=0), rtol=1e-6)
    assert datamodule.mean.dtype == torch.float32


def test_normalized_training_images_have_mean_0_and_std_1(build):
    datamodule = build(batch_size=64)
    batch = next(iter(datamodule.evaluation_dataloader("train")))
    images = datamodule.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_constant_channel_is_centered_and_not_scaled(build, root, monkeypatch, caplog):
    caplog.set_level("WARNING", module.log.name)
    read = ImageDataset.read

    def without_blue(dataset, index):
        image = read(dataset, index).copy()
        image[..., 2] = 7
        return image

    monkeypatch.setattr(ImageDataset, "read", without_blue)
    datamodule = build(in_memory=False)
    assert datamodule.std[2] == 1
    assert 0.05 < datamodule.std[:2].min() < 0.5
    assert caplog.messages == ["the color channel blue has one value in all training images; its values are not scaled"]
    caplog.clear()
    assert build(in_memory=False, std=[0.1, 0.2, 0.3]).std.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not caplog.messages
    batch = next(iter(datamodule.evaluation_dataloader("train")))
    images = datamodule.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(images[:, 2], torch.zeros_like(images[:, 2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("accelerator", "pins"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_for_a_gpu_that_trains(build, monkeypatch, accelerator, pins):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    datamodule = build(num_workers=0, in_memory=False)
    strategy = SimpleNamespace(root_device=torch.device(accelerator))
    datamodule.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1, current_epoch=0)
    loader = datamodule.evaluation_dataloader("test")
    assert (loader.pin_memory, loader.collate_fn) == (pins, module.packed if pins else module.whole)


def test_statistics_of_wide_images_include_pixels_outside_the_crop(build):
    wide = build(resize="shorter")
    pixels = np.concatenate([image.reshape(-1, 3) for image in wide.images["train"]]) / 255
    assert len(pixels) == 30 * 12 * 18
    np.testing.assert_allclose(wide.mean, pixels.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("place", [False, True, "device"])
def test_statistics_of_many_images_come_from_evenly_spaced_ones(build, root, monkeypatch, place):
    monkeypatch.setattr(module, "STATISTICS_IMAGES", 10)
    datamodule = build(in_memory=place)
    pixels = images_of(root, datamodule.rows("train")["image"][::3]).reshape(-1, 3) / 255
    np.testing.assert_allclose(datamodule.mean, pixels.mean(axis=0), rtol=1e-6)


def test_no_normalization_gives_0_to_1(build):
    datamodule = build(mean=None, std=[0.2, 0.2, 0.2])  # std has no effect without mean, so mean can be an axis
    batch = next(iter(datamodule.train_dataloader()))
    images = datamodule.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(images, batch["image"].permute(0, 3, 1, 2) / 255)
    assert 0 <= images.min() < images.max() <= 1


def test_given_statistics_are_used(build):
    datamodule = build(mean=[0.3749, 0.2601, 0.1856], std="train")
    torch.testing.assert_close(datamodule.mean, torch.tensor([0.3749, 0.2601, 0.1856]))
    torch.testing.assert_close(datamodule.std, build().std)
    elsewhere = build(statistics=([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]))
    assert (elsewhere.mean.tolist(), elsewhere.std.tolist()) == (pytest.approx([0.1, 0.2, 0.3]), [1.0, 2.0, 3.0])


@pytest.mark.parametrize(("key", "value"), [("mean", [0.5]), ("std", [0.5, 0.5])])
def test_invalid_statistics_are_refused(build, key, value):
    assert refusal(lambda: build(**{key: value})) == f"data.{key}={value}: give three numbers, train or null"


# memory and workers


def test_automatic_memory_and_workers(build, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    small = build(num_workers="auto")
    assert (small.in_memory, small.num_workers) == (True, 0)
    # less than all images at 1.5 times their area
    monkeypatch.setattr("resnet_lab.environment.free_memory", lambda: 50 * 12 * 12 * 3 / module.HOST_SHARE)
    large = build(num_workers="auto")
    assert (large.in_memory, large.num_workers) == (False, 5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    assert build(num_workers="auto").num_workers == 64
    assert (build(in_memory=True).in_memory, build(num_workers=1).num_workers) == (True, 1)


@pytest.mark.parametrize(
    ("devices", "local", "place", "workers"),
    [(1, None, True, 0), (2, None, False, 4), ([0, 3], None, False, 4), ("auto", None, True, 0), (1, "4", False, 2)],
)
def test_ranks_share_cores_and_memory(root, monkeypatch, devices, local, place, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    # for one rank it is enough
    monkeypatch.setattr("resnet_lab.environment.free_memory", lambda: 1.1 * 50 * 1.5 * 12 * 12 * 3 / module.HOST_SHARE)
    data = settings("retinopathy", root, {"num_workers": "auto"})
    data |= {"_target_": "resnet_lab.data.retinopathy.Retinopathy"}
    trainer = {"accelerator": "cpu", "devices": devices}
    datamodule = DataModule.from_config({"data": data, "seed": 0, "follow_test": False, "trainer": trainer})
    datamodule.setup()
    assert (datamodule.in_memory, datamodule.num_workers) == (place, workers)


def test_all_gpus_are_ranks(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [ranks_here(accelerator, "auto") for accelerator in ("gpu", "auto", "cpu")] == [4, 4, 1]


@pytest.mark.parametrize("place", [True, False, "device"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda image: image.astype(np.float32), "float32 (12, 12, 3)"),
        (lambda image: image[..., 0], "uint8 (12, 12)"),
        (lambda image: np.dstack([image, image[..., :1]]), "uint8 (12, 12, 4)"),
        (Image.fromarray, "Image"),
    ],
)
def test_an_own_read_that_returns_no_image_is_named(root, monkeypatch, place, change, found):
    read = Retinopathy.read
    monkeypatch.setattr(Retinopathy, "read", lambda self, path: change(read(self, path)))
    datamodule = DataModule(retinopathy(root, in_memory=place, mean=None, std=None), seed=0)

    def first():
        datamodule.setup()
        return next(iter(datamodule.train_dataloader()))

    assert refusal(first).endswith(f".jpeg: Retinopathy.read returns {found}; it must return uint8 (H, W, 3)")


def test_workers_prefetch_no_more_than_shared_memory_holds(build, monkeypatch, caplog):
    batch = 8 * 3 * 12 * 12  # bytes; each worker prefetches 2, and 2 are in use
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: 9 * batch)
    keys = {"in_memory": False}
    assert build(num_workers=3, **keys).num_workers == 3
    assert "set data.num_workers=3, or start" in refusal(lambda: build(num_workers=4, **keys))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    assert build(num_workers="auto", **keys).num_workers == 3
    assert "5 workers need 0 MB of shared memory" in caplog.text
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: 1)
    assert build(num_workers="auto", **keys).num_workers == 0
    assert build(num_workers=0, **keys).num_workers == 0
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: None)  # as on macOS
    assert build(num_workers=64, **keys).num_workers == 64


def test_more_workers_than_cores_are_named_once_in_our_words(build, monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)))
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: None)
    caplog.set_level("INFO")
    for workers in (0, 2, "auto"):
        build(num_workers=workers, in_memory=False)
    assert "num_workers" not in caplog.text
    build(num_workers=50).setup()
    text = "data.num_workers=50, but this process can use 2 cores; more are seldom faster: set data.num_workers=2"
    assert [line for line in caplog.messages if "num_workers" in line] == [text]


@pytest.mark.parametrize(("device", "batches"), [("cpu", 2), ("cuda", 1)])
def test_evaluation_batches_on_cuda_are_twice_as_large(build, monkeypatch, device, batches):
    datamodule = build()
    monkeypatch.setattr(datamodule, "_device", lambda: torch.device(device))
    assert len(datamodule.test_dataloader()[0]) == batches  # 10 images, data.batch_size=8
    assert [len(loader) for loader in (datamodule.train_dataloader(), build().train_dataloader())] == [4, 4]


@pytest.mark.parametrize(("free", "place"), [(1e9, "device"), (1e4, True)])
def test_images_are_placed_on_the_gpu_of_the_coming_training(root, monkeypatch, free, place):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    data = settings("retinopathy", root, {}) | {"_target_": "resnet_lab.data.retinopathy.Retinopathy"}
    config = {"data": data, "seed": 0, "follow_test": False}
    for accelerator, expected in (("auto", place), ("cpu", True)):
        datamodule = DataModule.from_config(config | {"trainer": {"accelerator": accelerator}})
        datamodule.setup()
        assert datamodule.in_memory == expected
    plain = DataModule.from_config(config)
    plain.setup()
    assert plain.in_memory is True


def test_memory_of_images_that_moved_to_the_device_is_returned(build, monkeypatch):
    returned = []
    datamodule = build(in_memory="device", num_workers=0)
    monkeypatch.setattr("resnet_lab.environment.return_freed_memory", lambda: returned.append(dict(datamodule.images)))
    datamodule.train_dataloader()
    (kept,) = returned
    assert "train" not in kept


def on_cuda(datamodule, monkeypatch, free):
    """Let a data module place images as on a GPU with so many free bytes; tensors stay on the CPU."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **keys: zeros(*shape, **keys | {"device": "cpu"}))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(datamodule, "_device", lambda: torch.device("cuda"))


@pytest.mark.parametrize("chosen", ["auto", "device"])
def test_images_that_do_not_fit_on_the_gpu_stay_in_memory_with_auto(build, monkeypatch, caplog, chosen):
    """Padded to the widest and the highest image they need more than `auto` expects."""
    caplog.set_level("INFO", module.log.name)
    datamodule = build(in_memory=chosen, num_workers=0)
    datamodule.in_memory, datamodule.num_workers = "device", 1
    on_cuda(datamodule, monkeypatch, free=2 * 10 * 12 * 12 * 3)
    assert datamodule.evaluation_dataloader("test").dataset.images is None
    assert datamodule.resident["test"].pixels.shape == (10, 12, 12, 3)
    fault = "the images of train need 13.0 kB, and the GPU has 8.6 kB free"
    if chosen == "device":
        assert refusal(datamodule.train_dataloader) == f"data.in_memory=device: {fault}; set data.in_memory=auto"
        return
    assert len(datamodule.train_dataloader().dataset.images) == 30
    assert (datamodule.in_memory, datamodule.num_workers) == (True, 0)
    assert f"{fault}, half of which they may use; images stay in the memory of the machine" in caplog.messages
    again = datamodule.evaluation_dataloader("test").dataset
    assert (again.images, len(again.sizes)) == (None, 10)


def test_images_of_several_sizes_move_to_the_device_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOVED", 7)
    data = retinopathy(write_studies(tmp_path / "data"), in_memory="device", num_workers=0, resize="shorter")
    datamodule = DataModule(data, 0)
    datamodule.setup()
    images = list(datamodule.dataset("train", augment=False).images)
    images[3], images[29] = images[3][:5], images[29].transpose(1, 0, 2)
    datamodule.images["train"] = images
    datamodule.train_dataloader()
    np.testing.assert_array_equal(datamodule.resident["train"].pixels.numpy(), module.padded(images).numpy())


def test_small_tensors_of_a_batch_travel_as_one(build, monkeypatch):
    datamodule = build(brightness=0.2, mixup=0.4, rotation=9, batch_size=7)
    monkeypatch.setattr(datamodule, "_transforms_on_device", lambda: True)
    batch = next(iter(datamodule.train_dataloader()))
    together = module.packed(batch)
    assert {name for name, each in together.items() if torch.is_tensor(each)} == {"image", module.PACKED}
    apart = module.unpacked(together)
    assert set(apart) == set(batch) == {"image", "index", "target", "color", "partner", "share", "map"}
    for name, each in batch.items():
        assert apart[name].dtype == each.dtype
        torch.testing.assert_close(apart[name], each, atol=0, rtol=0)
    expected = datamodule.on_after_batch_transfer(dict(batch), 0)["image"]
    torch.testing.assert_close(datamodule.on_after_batch_transfer(together, 0)["image"], expected, atol=0, rtol=0)


def test_batches_are_copied_beside_the_work_of_the_gpu(build, monkeypatch):
    """The copy has a stream of its own; the work waits for it, and keeps its memory."""
    datamodule, calls = build(num_workers=0), []
    stream = contextlib.contextmanager(lambda used: iter([calls.append(f"begin {used}")]))
    computing = SimpleNamespace(wait_stream=lambda other: calls.append(f"wait for {other}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "copies")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **keys: calls.append(f"copy {keys}") or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, used: calls.append(used))
    batch = {
        "image": torch.zeros(2),
        "split": "train",
        "packed": torch.ones(3),
        "layout": [("index", torch.int64, [3])],
    }
    moved = datamodule.transfer_batch_to_device(batch, torch.device("cuda"), 0)
    copied = "copy {'non_blocking': True}"
    assert calls == ["begin copies", copied, copied, "wait for copies", computing, computing]
    assert moved == batch
    assert datamodule.transfer_batch_to_device(batch, torch.device("cpu"), 0)["image"] is batch["image"]


@pytest.mark.parametrize(("crop", "resize", "fitting"), [(None, "square", 2), (6, "square", 2), (None, "shorter", 0)])
def test_whole_padded_images_on_their_way_to_a_gpu_count_in_shared_memory(root, monkeypatch, crop, resize, fitting):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: 7 * 2 * 8 * 3 * 12 * 12)
    data = retinopathy(root, batch_size=8, in_memory=False, num_workers=9, crop=crop, resize=resize)
    message = refusal(DataModule(data, 0, accelerator="gpu").setup)
    assert f"set data.num_workers={fitting}, or start" in message


@pytest.mark.parametrize(
    ("cores", "accelerator", "workers"), [(8, "gpu", 4), (3, "gpu", 2), (1, "gpu", 0), (8, "cpu", 0)]
)
def test_a_few_workers_feed_a_gpu_with_its_own_images(root, monkeypatch, cores, accelerator, workers):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: 20000)  # three batches of images, 12 of numbers
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    data = retinopathy(root, batch_size=8, in_memory="device", num_workers="auto")
    datamodule = DataModule(data, 0, accelerator=accelerator)
    datamodule.setup()
    assert datamodule.num_workers == workers


@pytest.mark.parametrize(
    ("devices", "variables", "gpu"),
    [
        (1, {}, 0),
        ([2], {}, 2),
        (2, {"LOCAL_RANK": "1"}, 1),
        ([3, 1], {"SLURM_LOCALID": "1"}, 1),
        (1, {"SLURM_LOCALID": "5"}, 1),
    ],
)
def test_the_free_memory_is_that_of_the_gpu_of_the_rank(root, monkeypatch, devices, variables, gpu):
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: asked.append(device) or (1e9, 1e9))
    for key in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    data = settings("retinopathy", root, {}) | {"_target_": "resnet_lab.data.retinopathy.Retinopathy"}
    trainer = {"accelerator": "gpu", "devices": devices}
    DataModule.from_config({"data": data, "seed": 0, "follow_test": False, "trainer": trainer}).setup()
    assert set(asked) == {gpu}


def test_evaluation_batches_on_cuda_count_in_shared_memory(root, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("resnet_lab.environment.shared_memory", lambda: 9 * 8 * 3 * 12 * 12)
    for accelerator, fitting in (("cpu", 3), ("auto", 1)):
        data = retinopathy(root, batch_size=8, in_memory=False, num_workers=4)
        datamodule = DataModule(data, 0, accelerator=accelerator)
        assert f"set data.num_workers={fitting}, or start" in refusal(datamodule.setup)


def test_photographs_need_the_statistics_of_a_training(root):
    data = photographs(root / "images", val_fraction=0, class_names=["a", "b"])
    assert refusal(DataModule(data, 0).setup) == "photographs has no split train; choose among test"
    datamodule = DataModule(data, 0, statistics=([0.5] * 3, [0.25] * 3))
    datamodule.setup()
    assert datamodule.test_splits == ["test"]
    assert next(iter(datamodule.test_dataloader()[0]))["image"].shape == (50, 12, 12, 3)


@pytest.mark.parametrize(("batch_size", "batches"), [(13, 3), (12, 4), (20, 2)])
def test_a_last_training_batch_of_one_image_is_left_out(tmp_path: Path, batch_size: int, batches: int) -> None:
    # 40 training images: batches of 13 leave one, 12 leave four, 20 leave none
    data = retinopathy(write_studies(tmp_path / "data"), batch_size=batch_size, val_fraction=0.0, mean=None, std=None)
    datamodule = DataModule(data, seed=0)
    datamodule.setup()
    assert len(datamodule.train_dataloader()) == batches
    assert len(datamodule.evaluation_dataloader("train")) == -(-40 // batch_size)


@pytest.mark.parametrize(
    ("batch_size", "ranks", "limit", "end"),
    [  # 40 training images
        (
            13,
            1,
            1.0,
            "has one image, which batch norm cannot use; each epoch leaves out 1 image; data.batch_size=14 uses",
        ),
        (13, 1, 4, "each epoch leaves out 1 image; data.batch_size=14 uses all images"),
        (
            38,
            2,
            1.0,
            "has one image on each of 2 ranks, which batch norm cannot use; each epoch leaves out 2 images; data.",
        ),
        (13, 1, 3, ""),
        (13, 1, 0.9, ""),
        (12, 1, 1.0, ""),
        (1, 1, 1.0, ""),
        (64, 1, 1.0, ""),
    ],
)
def test_an_image_that_is_left_out_is_named_at_the_start(tmp_path, caplog, batch_size, ranks, limit, end):
    data = retinopathy(write_studies(tmp_path / "data"), batch_size=batch_size, val_fraction=0.0, mean=None, std=None)
    datamodule = DataModule(data, seed=0)
    datamodule.setup()
    datamodule.trainer = SimpleNamespace(**vars(trainer_of(0, ranks)), limit_train_batches=limit)
    caplog.set_level("INFO")
    caplog.clear()
    for stage in ("validate", "test", "fit"):
        datamodule.setup(stage)
    assert len(caplog.messages) == bool(end)
    assert end in caplog.text
    assert all(
        line.startswith(f"data.batch_size={batch_size}: the last batch of an epoch of 40 images ")
        for line in caplog.messages
    )
