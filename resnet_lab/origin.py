"""Metadata of a checkpoint, with which its weights can be used without the run folder (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from resnet_lab.compatibility import refuse_newer, upgraded
from resnet_lab.config import refuse_foreign_targets, without_unknown
from resnet_lab.data.check import HASH_DIGITS
from resnet_lab.errors import UserError
from resnet_lab.run_folder import refuse_odd
from resnet_lab.values import Count, Items, conform

CHECKPOINT_KEY = "resnet_lab"  # the metadata's key in a checkpoint
# its key for the concatenated hashes of the training images' pixels, with those of its initial weights and its teacher
TRAIN_IMAGES = "train_images"

Channels = Annotated[list[float], Items(3, 3)]
ORIGIN: dict[str, Any] = {  # required keys
    "class_names": Annotated[list[str], Items(1)],
    "ordered": bool,
    "mean": Channels,
    "std": Channels,
    "class_counts": dict[str, Annotated[list[Count], Items(1)]],
}
ORIGIN_OPTIONAL: dict[str, Any] = {  # optional keys, which older versions lack
    "decision": str,
    "split_fingerprint": dict[str, str],
    "pixels": Literal["originals", "prepared"] | None,
    "pixel_digests": dict[str, str] | None,
    "recipe": dict[str, int | bool | str | list[int] | None] | None,
}


def add_train_images(origin: dict[str, Any], source: object) -> None:
    """Add the training images of another network, from whose weights or outputs this one learns.

    Args:
        origin: metadata of a checkpoint to come; it is changed.
        source: metadata of the other network's checkpoint; without hashes (older versions), nothing is added.
    """
    more = source.get(TRAIN_IMAGES) if isinstance(source, dict) else None
    known = "".join(each for each in (origin.get(TRAIN_IMAGES), more) if isinstance(each, str))
    if isinstance(more, str):
        places = range(0, len(known), HASH_DIGITS)
        origin[TRAIN_IMAGES] = "".join(sorted({known[place : place + HASH_DIGITS] for place in places}))


def origin_of(checkpoint: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the checked metadata of a checkpoint: `config`, `class_names`, `mean`, `std`, `class_counts`, …

    Raises:
        UserError: there is none, it is damaged, or it names functions that are neither ours nor trusted.
    """
    if CHECKPOINT_KEY not in checkpoint:
        raise UserError(f"{file} is not a checkpoint of resnet_lab; give a run folder, its best.ckpt or its last.ckpt")
    origin: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    try:  # a checkpoint may be from an untrusted source, and it names functions that we call
        if not isinstance(origin, dict) or not isinstance(origin.get("config"), dict):
            raise UserError(f"{CHECKPOINT_KEY}.config is missing; give an unmodified checkpoint of a job")
        refuse_newer(origin)
        refuse_odd(origin)  # first, because the code below recurses through it
        config = upgraded(origin["config"])
        refuse_foreign_targets(config)
        for key, hint in (ORIGIN | {key: ORIGIN_OPTIONAL[key] for key in {*ORIGIN_OPTIONAL} & {*origin}}).items():
            conform(f"{CHECKPOINT_KEY}.{key}", origin.get(key), hint)
        if "train" not in origin["class_counts"]:
            raise UserError(f"{CHECKPOINT_KEY}.class_counts.train is missing; give an unmodified checkpoint of a job")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return origin | {"config": config if "schema_version" in origin else without_unknown(config)[0]}
