"""`resnet-lab predict RUN_OR_CKPT IMAGE_OR_FOLDER [out=predictions.csv]`: predict photographs without labels."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from resnet_lab.build import build_datamodule, build_trainer, set_up_logging
from resnet_lab.command_line import run_command
from resnet_lab.errors import UserError, count
from resnet_lab.evaluate import SEEING, count_training_images, override
from resnet_lab.files import refuse_unwritable
from resnet_lab.module import Classifier
from resnet_lab.outputs import refuse_undefined, write_predictions
from resnet_lab.run_folder import RunFolder
from resnet_lab.trained import load, photographs
from resnet_lab.trust import trust, warn_of_unused
from resnet_lab.verbs import VERBS

log = logging.getLogger("resnet_lab")

# the keys of data that have an effect on photographs without labels
TAKEN = {*SEEING, "in_memory", "num_workers", "cache_dir", "on_bad_image", "max_pixels", "strict_jpeg", "patient_regex"}


def refuse_inside_run(out: Path) -> None:
    """Refuse an `out` inside a run folder, where only the job writes; its evaluation folders are allowed."""
    for place in (Path(os.path.abspath(out)), out.resolve()):  # noqa: PTH100 - a link in a run counts, too
        for folder in place.parents:
            run = RunFolder(folder)
            sure = folder == place.parent or run.checkpoints.is_dir()  # config.yaml above may be another program's
            inside = run.status_file.exists() or (run.config_file.exists() and sure)
            if inside and not place.relative_to(folder).parts[0].startswith("evaluation_"):
                raise UserError(f"out={out} is in the run folder {folder}, where only its job writes; name another")


def command(arguments: list[str]) -> None:
    """Write `image,patient,prediction,p_0…` for one image, or for every image below a folder."""
    given = VERBS["predict"]().read(arguments)
    trust(given.trust)
    set_up_logging()
    out = Path(given.out).expanduser()
    if out.exists() and not out.is_file():
        raise UserError(f"out={out} is a folder or not a regular file; name a CSV file")
    refuse_inside_run(out)
    if out.exists() and not given.overwrite:
        raise UserError(f"out={out} exists; name another file, or set overwrite=true")
    for item in given.overrides:
        group, _, key = item.partition("=")[0].partition(".")
        if group == "data" and key not in TAKEN:
            raise UserError(f"{item}: it has no effect, as predict reads only IMAGE_OR_FOLDER; leave it out")
    refuse_unwritable(out.parent)
    model = load(given.RUN_OR_CKPT)
    names = model.origin["class_names"]
    config = photographs(override(model.origin, given.overrides), given.IMAGE_OR_FOLDER, names)
    datamodule = build_datamodule(config, (model.origin["mean"], model.origin["std"]))
    rows, module = datamodule.rows("test"), Classifier.of(model)
    count_training_images(model, rows)
    warn_of_unused(given.trust)
    trainer = build_trainer(config["trainer"], module)
    datamodule.batch_size_per_rank(trainer.world_size)  # raises before anything runs
    trainer.predict(module, datamodule=datamodule, return_predictions=False)
    if not trainer.is_global_zero:
        return
    probabilities, classes = module.predictions["predict"]
    refuse_undefined(rows, probabilities, str(model.file))
    write_predictions(out, rows, classes, probabilities, exact=False)
    shares = ", ".join(f"{name}: {int((classes == k).sum())}" for k, name in enumerate(names))
    log.info("%s → %s (%s)", count(len(classes), "image"), out, shares)


if __name__ == "__main__":
    sys.exit(run_command(command))
