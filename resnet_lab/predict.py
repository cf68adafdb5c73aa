"""`resnet-lab predict RUN_OR_CKPT IMAGE_OR_FOLDER [out=predictions.csv]`: grade photographs without labels."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnet_lab.build import set_up_logging
from resnet_lab.command_line import run_command, split_arguments, switched_on
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.photographs import Photographs
from resnet_lab.errors import UserError, count
from resnet_lab.evaluate import SEEING, answer, load, override
from resnet_lab.outputs import write_predictions
from resnet_lab.run_folder import RunFolder, refuse_unwritable
from resnet_lab.trust import trust, without_trust

log = logging.getLogger("resnet_lab")

# the keys of data that mean something for photographs without labels
TAKEN = {*SEEING, "in_memory", "num_workers", "cache_dir", "on_bad_image", "max_pixels", "strict_jpeg", "patient_regex"}


def photographs(config: dict[str, Any], root: str, class_names: list[str]) -> dict[str, Any]:
    """The configuration of a run with the photographs at `root` in place of its data, seen in the same way."""
    shared = {field.name: config["data"][field.name] for field in fields(ImageData)}
    data = shared | {
        "_target_": f"{Photographs.__module__}.{Photographs.__name__}",
        "name": root,
        "root": root,
        "class_names": class_names,
        **dict.fromkeys(("splits", "folds", "all_images", "max_images", "max_per_class")),  # None: nothing is left out
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    return config | {"data": data}


def refuse_inside_run(out: Path) -> None:
    """Stop where `out` lies in a run folder, whose files are its job's; evaluations in it are not."""
    for place in (Path(os.path.abspath(out)), out.resolve()):  # noqa: PTH100 - a link in a run is a file of it, too
        for folder in place.parents:
            run = RunFolder(folder)
            sure = folder == place.parent or run.checkpoints.is_dir()  # another program's config.yaml may lie above
            inside = run.status_file.exists() or (run.config_file.exists() and sure)
            if inside and not place.relative_to(folder).parts[0].startswith("evaluation_"):
                raise UserError(f"out={out} is in the run folder {folder}, and only its job writes there; name another")


def command(arguments: list[str]) -> None:
    """Write `image,patient,prediction,p_0…` for one image, or for every image below a folder."""
    arguments, trusted = without_trust(arguments)
    trust(trusted)
    (source, root), options, overrides = split_arguments(
        arguments,
        ["RUN_OR_CKPT", "IMAGE_OR_FOLDER"],
        {"out": "predictions.csv", "overwrite": "false"},
        "resnet-lab predict",
    )
    set_up_logging()
    out, overwrite = Path(options["out"]).expanduser(), switched_on("overwrite", options["overwrite"])
    if out.exists() and not out.is_file():
        raise UserError(f"out={out} is a folder or no regular file; name a CSV file")
    refuse_inside_run(out)
    if out.exists() and not overwrite:
        raise UserError(f"out={out} exists; name another file, or set overwrite=true")
    for item in overrides:
        group, _, key = item.partition("=")[0].partition(".")
        if group == "data" and key not in TAKEN:
            raise UserError(f"{item}: predict takes RUN_OR_CKPT and IMAGE_OR_FOLDER, and no other data; leave it out")
    refuse_unwritable(out.parent)
    model = load(source)
    names = model.origin["class_names"]
    config = photographs(override(model.origin, overrides), root, names)
    trainer, module, datamodule = answer(model, config, "test")
    if not trainer.is_global_zero:
        return
    probabilities, classes = module.predictions["test"]
    write_predictions(out, datamodule.rows("test").drop(columns="target"), classes, probabilities, exact=False)
    shares = ", ".join(f"{name}: {int((classes == k).sum())}" for k, name in enumerate(names))
    log.info("%s → %s (%s)", count(len(classes), "image"), out, shares)


if __name__ == "__main__":
    sys.exit(run_command(command))
