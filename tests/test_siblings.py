"""The other jobs of a sweep: which of them use the same images."""

from __future__ import annotations

import pytest
from fake_data import refusal

from resnet_lab import siblings


def test_a_split_that_is_gone_is_refused() -> None:
    before = {"first": {"split_fingerprint": {"train": "a", "test": "b"}}}
    siblings.refuse_other_images(before, {"train": "a", "val": "c", "test": "b"}, "photos")
    message = refusal(siblings.refuse_other_images, before, {"train": "a"}, "photos")
    assert "images or labels in test (b then, no such split in photos now)" in message


def test_keys_that_a_data_set_may_use_for_its_images() -> None:
    data = {"_target_": "resnet_lab.data.retinopathy.Retinopathy", "root": "x", "labels": {"0": 1}, "image_size": 24}
    assert siblings._of_splits(data) == siblings._of_splits(data | {"labels": {0: 1}, "image_size": 32})
    assert siblings._of_splits(data) != siblings._of_splits(data | {"max_images": 5})
    own = data | {"_target_": "mylab.Tiles"}
    assert siblings._of_splits(own) != siblings._of_splits(own | {"image_size": 32})
    assert siblings._of_splits(own) == siblings._of_splits(own | {"num_workers": 3})


@pytest.mark.parametrize("key", ["model.pretrained", "loss.teacher"])
def test_weights_that_changed_since_another_job_began_are_refused(key: str) -> None:
    group, name = key.split(".")
    config = {"model": {"depth": 18, "pretrained": None}, "loss": {"teacher": None}}
    config[group] = config[group] | {name: "runs/a"}
    first = siblings.Begun("first", {name: "1234"}, lambda: config)
    message = refusal(siblings.refuse_other_weights, [first], key, config, "5678")
    assert message.startswith(f"{key}=runs/a: first started with other weights (1234 then, 5678 now)")
    siblings.refuse_other_weights([first], key, config, "1234")
    siblings.refuse_other_weights([first._replace(status={})], key, config, "5678")  # of an older version
    siblings.refuse_other_weights([first], key, {"model": {}, "loss": {}, group: {name: "runs/b", "depth": 18}}, "5678")
    deeper = config | {"model": config["model"] | {"depth": 34}}
    if key == "model.pretrained":  # of a folder with weights of both depths
        siblings.refuse_other_weights([first], key, deeper, "5678")
    else:
        assert "first started with other weights" in refusal(
            siblings.refuse_other_weights, [first], key, deeper, "5678"
        )


def test_only_jobs_that_read_the_same_pixels_decide_on_their_source() -> None:
    ours = {"_target_": "resnet_lab.data.retinopathy.Retinopathy", "root": "x", "val_fraction": 0.1, "separator": ";"}
    own = {"_target_": "digits.Digits", "root": "x", "image_size": 32, "val_fraction": 0.1, "invert": True}
    for data, changes, shares in (
        (ours, {"val_fraction": 0.2, "separator": ","}, True),
        (ours, {"root": "y"}, False),
        (own, {"val_fraction": 0.2, "image_size": 24}, True),
        (own, {"invert": False}, False),
        (own, {"_target_": "digits.Others"}, False),
    ):
        begun = siblings.Begun("first", {"pixels": "originals"}, lambda data=data: {"data": data})
        assert bool(siblings.with_data([begun], data | changes)[0]) == shares, changes
