"""`resnet-lab predict RUN_OR_CKPT IMAGE_OR_FOLDER [out=predictions.csv]`: predict photographs without labels."""

from __future__ import annotations

import logging
from pathlib import Path

from resnet_lab.build import build_trainer, rank, set_up_logging
from resnet_lab.command_line import run_command
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.photographs import Photographs
from resnet_lab.environment import keep_freed_memory
from resnet_lab.errors import count
from resnet_lab.evaluate import override
from resnet_lab.inputs import check_predict
from resnet_lab.module import Classifier
from resnet_lab.outputs import refuse_undefined, write_predictions
from resnet_lab.processes import end
from resnet_lab.trained import (
    count_training_images,
    load,
    own_reader,
    photographs,
    place_of,
    saw_jpegs,
    say_compression,
)
from resnet_lab.trust import trust, warn_of_unused
from resnet_lab.verbs import VERBS

log = logging.getLogger("resnet_lab")


def command(arguments: list[str]) -> None:
    """Write `image,patient,class,prediction,p_0…` for one image, or for every image below a folder."""
    given = VERBS["predict"]().read(arguments)
    trust(given.trust)
    keep_freed_memory()
    set_up_logging()
    check_predict(given)
    out = Path(given.out).expanduser()
    model = load(given.RUN_OR_CKPT)
    names = model.origin["class_names"]
    chosen = override(model.origin, given.overrides)
    config = photographs(chosen, given.IMAGE_OR_FOLDER, names)
    statistics = model.origin["mean"], model.origin["std"]
    datamodule = DataModule.from_config(config, statistics, "originals", saw_jpegs(model.origin))
    assert isinstance(datamodule.data, Photographs)
    datamodule.data.like = own_reader(chosen)
    datamodule.setup()
    rows, module = datamodule.rows("test"), Classifier.of(model)
    if rank() == 0:
        count_training_images(model, rows)
        say_compression(model.origin, "predict")
    warn_of_unused(given.trust)
    trainer = build_trainer(config["trainer"], module)
    datamodule.batch_size_per_rank(trainer.world_size)  # raises before anything runs
    trainer.predict(module, datamodule=datamodule, return_predictions=False)
    if not trainer.is_global_zero:
        return
    probabilities, classes = module.predictions["predict"]
    refuse_undefined(rows, probabilities, str(place_of(model.file)))
    write_predictions(out, rows, classes, probabilities, exact=False, class_names=names)
    shares = ", ".join(f"{name}: {int((classes == k).sum())}" for k, name in enumerate(names))
    missing = datamodule.dropped["skipped_images"]  # with on_bad_image=drop; each of them is named above
    lacks = f"; without {count(missing, 'image')} that cannot be read" if missing else ""
    log.info("%s → %s (%s)%s", count(len(classes), "image"), out, shares, lacks)


if __name__ == "__main__":
    end(run_command(command))
