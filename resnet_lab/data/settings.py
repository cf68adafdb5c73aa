"""Finds contradictions between settings of a data set (imports nothing heavy: the launching process calls it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnet_lab.errors import UserError


def refuse_contradictions(data: Mapping[str, Any]) -> None:
    """Refuse values that contradict each other; their types are already checked.

    Args:
        data: the keys of `ImageData`, with the types of its fields.

    Raises:
        UserError: the message names the keys and the remedy.
    """
    names, side, padding = data["class_names"], data["crop"] or data["image_size"], data["padding"]
    if names and len(set(names)) < len(names):
        raise UserError(f"data.class_names={names}: class names must not repeat")
    if names and len(names) < 2:
        raise UserError(f"data.class_names={names}: at least two classes are needed")
    if side > data["image_size"]:
        raise UserError(f"data.crop={side}: data.image_size={data['image_size']} is smaller; set a smaller crop")
    if padding >= side:
        raise UserError(f"data.padding={padding}: a crop could miss the image; set it below {side}")
    if len(data["scale"]) != 2 or not 0 < data["scale"][0] <= data["scale"][1]:
        raise UserError(f"data.scale={data['scale']}: give two factors above 0, the smaller first, such as [0.9,1.1]")
    for key in ("mean", "std"):
        if isinstance(data[key], list) and len(data[key]) != 3:
            raise UserError(f"data.{key}={data[key]}: give three numbers, train or null")
    if data["std"] == "model" and data["mean"] != "model":
        raise UserError("data.std=model: set data.mean=model to use both from the network")
    if isinstance(data["std"], list) and min(data["std"]) <= 0:
        raise UserError(f"data.std={data['std']}: give three numbers above 0, train or null")
    if data.get("labels") is not None and data.get("first_label"):
        raise UserError(
            f"data.first_label={data['first_label']} has no effect: data.labels names the class of each label; set "
            "data.first_label=0, or data.labels=null"
        )
    if data["fold"] >= (data["folds"] or 1):
        remedy = f"data.folds={data['folds']} has folds 0 to {data['folds'] - 1}" if data["folds"] else "set data.folds"
        raise UserError(f"data.fold={data['fold']}: {remedy}")
    for key in ("splits", "folds"):
        if data["all_images"] is not None and data[key] is not None:
            raise UserError(
                f"data.all_images={data['all_images']} puts every image into one split and contradicts data.{key}; "
                f"set data.{key}=null"
            )
