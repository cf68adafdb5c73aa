"""The other jobs of a sweep: which of them use the same images."""

from __future__ import annotations

from fake_data import refusal

from resnet_lab import siblings


def test_a_split_that_is_gone_is_refused() -> None:
    before = {"first": {"split_fingerprint": {"train": "a", "test": "b"}}}
    siblings.same_images(before, {"train": "a", "val": "c", "test": "b"}, "photos")
    message = refusal(siblings.same_images, before, {"train": "a"}, "photos")
    assert "images or labels in test (b then, no such split in photos now)" in message


def test_keys_that_a_data_set_may_use_for_its_images() -> None:
    data = {"_target_": "resnet_lab.data.retinopathy.Retinopathy", "root": "x", "labels": {"0": 1}, "image_size": 24}
    assert siblings._of_splits(data) == siblings._of_splits(data | {"labels": {0: 1}, "image_size": 32})
    assert siblings._of_splits(data) != siblings._of_splits(data | {"max_images": 5})
    own = data | {"_target_": "mylab.Tiles"}
    assert siblings._of_splits(own) != siblings._of_splits(own | {"image_size": 32})
    assert siblings._of_splits(own) == siblings._of_splits(own | {"num_workers": 3})
