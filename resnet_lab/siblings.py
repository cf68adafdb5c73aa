"""The other jobs of a sweep, which decide on the images, labels and weights that a job may use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple

from resnet_lab.data.image_data import LOADING, ImageData
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder, real_path
from resnet_lab.signatures import is_ours

SHARED = {each.name for each in fields(ImageData)}
ORDER = "train_order"  # of status.json
Statuses = dict[str, dict[str, Any]]  # name of a job → its status.json


class Begun(NamedTuple):
    """A job that is running or has finished an epoch."""

    name: str
    status: dict[str, Any]  # its status.json
    read: Callable[[], dict[str, Any]]  # returns its configuration


def begun_jobs(siblings: Iterable[RunFolder]) -> list[Begun]:
    """Return the jobs of a sweep that are running or have finished an epoch.

    A job that was stopped before the end of its first epoch does not count: it may still choose its source itself.
    """
    found = []
    for job in siblings:
        with suppress(UserError):  # damaged; `status` and `report` show it
            status = job.read_status()
            begun = status["state"] in ("running", "done") or job.last_checkpoint.is_file()
            if begun and status.get("pixels"):
                found.append(Begun(job.path.name, status, job.read_config))
    return found


def with_data(begun: Iterable[Begun], data: dict[str, Any]) -> tuple[Statuses, Statuses]:
    """Return name → status of the jobs on the same data set, and of those that have the same splits of it.

    Args:
        begun: result of `begun_jobs`.
        data: configuration group `data` of a job.
    """
    on_same, alike, own = Statuses(), Statuses(), _of_splits(data)
    for job in begun:
        with suppress(UserError):  # damaged, too
            other = _of_splits(job.read()["data"])
            if _decides_pixels(other) == _decides_pixels(own):
                on_same[job.name] = job.status
                if other == own and "derived_from" not in job.status:  # whose predictions may be of fewer images
                    alike[job.name] = job.status
    return on_same, alike


def _of_splits(data: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of data that may change which images and labels a split has, with the real path of `root`.

    A data set that is not resnet_lab's may use any key for that.
    """
    without = LOADING if is_ours(str(data["_target_"])) else {"batch_size", "num_workers", "in_memory", "cache_dir"}
    kept = {key: value for key, value in data.items() if key not in without}
    # one form of keys: numbers become text
    return dict(json.loads(json.dumps(kept | {"root": real_path(data["root"])})))


def _decides_pixels(data: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that decide where images are read; a data set that is not resnet_lab's may use its own keys."""
    ours = is_ours(str(data["_target_"]))
    return {key: data.get(key) for key in ({"_target_", "root"} if ours else {"root", *data.keys() - SHARED})}


def refuse_other_images(before: Statuses, fingerprints: Mapping[str, str], root: str) -> None:
    """Refuse to resume a job, or to start another one of its sweep, with other images than at its start.

    Args:
        before: name → status of the jobs that started before.
        fingerprints: those of the present splits.
        root: folder of the data set.

    Raises:
        UserError: a split has other images or targets.
    """
    for name, status in before.items():
        known = status.get("split_fingerprint") or {}
        for split, then in known.items():
            if (now := fingerprints.get(split)) != then:
                raise UserError(
                    f"{name} started with other images or labels in {split} ({then} then, {now or 'no such split'} in "
                    f"{root} now); restore those, or choose another sweep_dir"
                )


def refuse_other_order(before: Statuses, order: str, root: str) -> None:
    """Refuse to resume a job whose training images were in another order: its batches would be others.

    Args:
        before: name → status of the jobs to resume; older versions did not note the order.
        order: the present one, see `order_of_training`.
        root: folder of the data set.

    Raises:
        UserError: the order has changed.
    """
    for name, status in before.items():
        if status.get(ORDER) not in (None, order):
            raise UserError(
                f"{name} started with the training images in another order ({status[ORDER]} then, {order} in {root} "
                "now); restore the order of the rows, or choose another sweep_dir"
            )


def refuse_other_weights(begun: Iterable[Begun], key: str, config: Mapping[str, Any], digest: str) -> None:
    """Refuse to start a job whose teacher or initial weights were others when another job of its sweep started.

    Args:
        begun: result of `begun_jobs`.
        key: `loss.teacher` or `model.pretrained`.
        config: configuration of the job; the two groups are enough.
        digest: hash of the weights, which jobs store in status.json under the last part of the key; empty: unknown.

    Raises:
        UserError: another job with the same value of the key had other weights.
    """
    group, name = key.split(".")
    sought = [key] if group == "loss" else [key, "model.depth"]  # a folder has weights of several depths
    for job in begun:
        then, other = job.status.get(name), dict[str, Any]()
        if not digest or then in (None, digest):
            continue
        with suppress(UserError):  # damaged, too
            other = job.read()
        if all(_value(other, each) == _value(config, each) for each in sought):
            raise UserError(
                f"{key}={config[group][name]}: {job.name} started with other weights ({then} then, {digest} now); "
                "restore those, or choose another sweep_dir"
            )


def _value(config: Mapping[str, Any], key: str) -> Any:
    group, name = key.split(".")
    return config.get(group, {}).get(name)
