"""Configurations of older versions: keys that were added, renamed or given another default since they were written.

Every key that is added, renamed or gets another default enters a table here, with the value that reproduces what the
program did before. The tables apply whenever a config.yaml or a checkpoint is read.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

SCHEMA_VERSION = 4  # of a run folder; raise it when a default changes (`CHANGED`)

RETINOPATHY = ("resnet_lab.data.retinopathy.Retinopathy",)
CLASS_FOLDERS = ("resnet_lab.data.class_folders.ClassFolders",)


class Added(NamedTuple):
    """A key that older configurations lack."""

    value: Any  # what reproduces the behavior from before the key existed
    targets: tuple[str, ...] = ()  # only where the group's `_target_` is one of these; empty: everywhere


# dotted key → what a configuration without it did
ADDED: dict[str, Added] = {
    "follow_layers": Added(False),
    "figures": Added(["accuracy", "confusion_matrices"]),
    "labels": Added({}),
    "on_failed": Added("retry"),
    "on_corrupt": Added("best"),
    "keep_last": Added(True),
    "start": Added(True),
    "callbacks": Added({}),
    "logger": Added({"tensorboard": {"_target_": "resnet_lab.loggers.tensorboard"}}),
    "data.splits": Added(None),
    "data.max_per_class": Added(None),
    "trainer.sync_batchnorm": Added(False),
    "trainer.checkpoint_minutes": Added(None),
    "data.all_images": Added(None),
    "data.all_kinds": Added(False, CLASS_FOLDERS),
    "data.find_csvs": Added(False, RETINOPATHY),
    "data.train_images": Added(None, RETINOPATHY),
    "data.val_images": Added(None, RETINOPATHY),
    "data.test_images": Added(None, RETINOPATHY),
    "data.labels": Added(None, RETINOPATHY),
    "data.first_label": Added(0, RETINOPATHY),
    "data.on_bad_label": Added("error", RETINOPATHY),
    "data.natural_order": Added(False, CLASS_FOLDERS),
    "data.max_pixels": Added(178_956_970),  # Pillow's own limit
    "data.strict_jpeg": Added(False),
    "model.freeze": Added(None),
    "model.unfreeze_at_epoch": Added(None),
    "optim.backbone_lr_factor": Added(1.0),
    "trainer.gradient_clip_val": Added(None),
    "trainer.accumulate_grad_batches": Added(1),
    "trainer.limit_train_batches": Added(None),
    "trainer.limit_val_batches": Added(None),
    "trainer.compile": Added(False),
    "trainer.log_every_n_steps": Added(50),
    "trainer.profiler": Added(None),
}

# dotted key → the keys that took its place; each gets its value, unless the configuration has it already
RENAMED: dict[str, tuple[str, ...]] = {
    "data.color_jitter": ("data.brightness", "data.contrast", "data.saturation", "data.hue"),
}

# `_target_` of older versions → its name now
MOVED = {"resnet_lab.optim.cross_entropy": "resnet_lab.objectives.cross_entropy"}

# dotted key → version in which its default changed, the default before, and the default since; a key that was added
# with another value than the one above stands here, too
CHANGED: dict[str, tuple[int, Any, Any]] = {
    "data.patient_regex": (2, "(.+)_(?:left|right)", "auto"),
    "data.all_kinds": (2, False, True),
    "data.find_csvs": (3, False, True),
    "data.natural_order": (3, False, True),
    "data.max_pixels": (3, 178_956_970, 100_000_000),
    "data.strict_jpeg": (4, False, True),
}


def upgraded(older: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of any version with the keys of this one; the argument stays as it is."""
    config = copy.deepcopy(dict(older))
    for old, new in RENAMED.items():
        group, name = _place(config, old)
        if group is None or name not in group:
            continue
        value = group.pop(name)
        for key in new:
            target, name = _place(config, key)
            if target is not None:
                target.setdefault(name, copy.deepcopy(value))
    for group in config.values():
        if isinstance(group, dict) and isinstance(target := group.get("_target_"), str):
            group["_target_"] = MOVED.get(target, target)
    for key, added in ADDED.items():
        group, name = _place(config, key)
        if group is not None and (not added.targets or group.get("_target_") in added.targets):
            group.setdefault(name, copy.deepcopy(added.value))
    return config


def upgraded_status(status: dict[str, Any]) -> dict[str, Any]:
    """A status.json of any version with the keys of this one.

    Older versions noted the path of the prepared set as `prepared`, and null where the originals were read. They noted
    the overrides of the command line as `asked`.
    """
    if "asked" in status:
        status.setdefault("overrides", status.pop("asked"))
    prepared = status.pop("prepared", None)
    if "split_fingerprint" in status:
        status.setdefault("pixels", "prepared" if prepared else "originals")
    return status


def with_older_defaults(
    composed: Mapping[str, Any], before: Mapping[str, Any], version: int, given: Collection[str]
) -> dict[str, Any]:
    """A composed configuration as the same command composed it when a run folder was created.

    Args:
        composed: of the command today.
        before: of the folder.
        version: `schema_version` of the folder.
        given: dotted keys that the command line sets; these stay as they are.
    """
    config = copy.deepcopy(dict(composed))
    for key, (changed_in, old, new) in CHANGED.items():
        group, name = _place(config, key)
        there, _ = _place(before, key)
        if group is None or there is None or version >= changed_in or key in given:
            continue
        if group.get(name) == new and there.get(name) == old:
            group[name] = copy.deepcopy(old)
    return config


def _place(config: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """The mapping that holds a dotted key, or would, and the key's own name; None where there is no such mapping."""
    *path, name = key.split(".")
    group: Any = config
    for part in path:
        group = group.get(part) if isinstance(group, Mapping) else None
    return (group if isinstance(group, dict) else None), name
