"""`resnet-lab predict RUN_OR_CKPT IMAGE_OR_FOLDER [out=predictions.csv]`: grade photographs without labels."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnet_lab.build import set_up_logging
from resnet_lab.command_line import run_command, split_arguments
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.photographs import Photographs
from resnet_lab.errors import UserError
from resnet_lab.evaluate import answer, load, override
from resnet_lab.outputs import write_predictions

log = logging.getLogger("resnet_lab")


def photographs(config: dict[str, Any], root: str, class_names: list[str]) -> dict[str, Any]:
    """The configuration of a run with the photographs at `root` in place of its data, seen in the same way."""
    shared = {field.name: config["data"][field.name] for field in fields(ImageData)}
    data = shared | {
        "_target_": f"{Photographs.__module__}.{Photographs.__name__}",
        "name": root,
        "root": root,
        "class_names": class_names,
        # None: all images are its test split
        **dict.fromkeys(("splits", "folds", "all_images", "max_images", "max_per_class")),
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    return config | {"data": data}


def command(arguments: list[str]) -> None:
    """Write `image,patient,prediction,p_0…` for one image, or for every image below a folder."""
    (source, root), options, overrides = split_arguments(
        arguments, ["RUN_OR_CKPT", "IMAGE_OR_FOLDER"], {"out": "predictions.csv"}, "resnet-lab predict"
    )
    set_up_logging()
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise UserError(f"out={out} is a folder; name a CSV file")
    model = load(source)
    names = model.origin["class_names"]
    config = photographs(override(model.origin, overrides), root, names)
    trainer, module, datamodule = answer(model, config, "test")
    if not trainer.is_global_zero:
        return
    probabilities = module.predictions["test"].numpy()
    write_predictions(out, datamodule.rows("test").drop(columns="target"), probabilities)
    shares = ", ".join(f"{name}: {int((probabilities.argmax(1) == k).sum())}" for k, name in enumerate(names))
    log.info("%d images → %s (%s)", len(probabilities), out, shares)


if __name__ == "__main__":
    sys.exit(run_command(command))
