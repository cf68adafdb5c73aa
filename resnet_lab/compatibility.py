"""Upgrades configurations of older versions, whose keys were since added, renamed or given another default.

Every such key needs an entry in a table here, with the value that reproduces the former behavior. The tables apply
whenever a config.yaml or a checkpoint is read.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from resnet_lab.errors import UserError
from resnet_lab.signatures import defaults_in

SCHEMA_VERSION = 4  # of a run folder; raise it when a default changes (`CHANGED`)

RETINOPATHY = ("resnet_lab.data.retinopathy.Retinopathy",)
CLASS_FOLDERS = ("resnet_lab.data.class_folders.ClassFolders",)


class Added(NamedTuple):
    """A key that older configurations lack."""

    value: Any  # reproduces the behavior before the key existed
    targets: tuple[str, ...] = ()  # the key exists only for these values of the group's `_target_`; empty: for all


# dotted key → its value for configurations without it
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
    "data.prepared_format": Added("jpeg"),
    "data.mixup": Added(0.0),
    "loss.teacher": Added(None),
    "loss.temperature": Added(2.0),
    "loss.teacher_weight": Added(0.5),
    "loss.class_weights": Added("none", ("resnet_lab.objectives.mse",)),
    "model.freeze": Added(None),
    "model.unfreeze_at_epoch": Added(None),
    "model.zero_init_head": Added(False),
    "optim.backbone_lr_factor": Added(1.0),
    "loss.decision": Added("auto"),
    "trainer.gradient_clip_val": Added(None),
    "trainer.accumulate_grad_batches": Added(1),
    "trainer.limit_train_batches": Added(None),
    "trainer.limit_val_batches": Added(None),
    "trainer.compile": Added(False),
    "trainer.log_every_n_steps": Added(50),
    "trainer.profiler": Added(None),
    "trainer.tta": Added("none"),
}
# an augmentation with a default was added with it
_AUGMENTATION = defaults_in("resnet_lab.data.augmentation", "Augmentation")
ADDED |= {f"data.{name}": Added(value) for name, value in _AUGMENTATION.items()}

# dotted key → the keys that replace it; each gets its value unless the configuration sets it
RENAMED: dict[str, tuple[str, ...]] = {
    "data.color_jitter": ("data.brightness", "data.contrast", "data.saturation", "data.hue"),
}

# `_target_` in older versions → its current name
MOVED = {"resnet_lab.optim.cross_entropy": "resnet_lab.objectives.cross_entropy"}

# dotted key → version in which its default changed, the former default, and the new default; also keys that were added
# with a default other than the value in ADDED
CHANGED: dict[str, tuple[int, Any, Any]] = {
    "data.patient_regex": (2, "(.+)_(?:left|right)", "auto"),
    "data.all_kinds": (2, False, True),
    "data.find_csvs": (3, False, True),
    "data.natural_order": (3, False, True),
    "data.max_pixels": (3, 178_956_970, 100_000_000),
    "data.strict_jpeg": (4, False, True),
}


def upgraded(older: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of any version with the keys of this version; the argument is not changed."""
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
    data = config.get("data")
    if isinstance(data, dict) and data.get("labels") is not None and data.get("first_label"):
        data["first_label"] = 0  # older versions ignored it beside `labels`
    return config


def refuse_newer(values: Mapping[str, Any]) -> None:
    """Refuse what a newer version wrote: its keys may mean something else.

    Args:
        values: a status.json, or the metadata of a checkpoint.

    Raises:
        UserError: its `schema_version` is larger than ours.
    """
    version = values.get("schema_version", 1)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"a newer version of resnet_lab wrote it (schema_version {version}, and this one reads up to "
            f"{SCHEMA_VERSION}); update resnet_lab"
        )


def upgraded_status(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status.json of any version with the keys of this version.

    Older versions stored the path of the prepared set as `prepared` (null for the originals), and the overrides of the
    command line as `asked`.
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
    """Return the configuration that the same command composed when a run folder was created.

    Args:
        composed: configuration that the command composes today.
        before: configuration of the folder.
        version: `schema_version` of the folder.
        given: dotted keys that the command line sets; these are not changed.
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
    """Return the group of a dotted key (None if it does not exist), and the key's name within the group."""
    *path, name = key.split(".")
    group: Any = config
    for part in path:
        group = group.get(part) if isinstance(group, Mapping) else None
    return (group if isinstance(group, dict) else None), name
