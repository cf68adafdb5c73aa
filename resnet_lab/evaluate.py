"""`resnet-lab evaluate RUN_OR_CKPT [split=test] [key=value …]`: score a trained model on a split or other data."""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.build import build_datamodule, build_module, build_trainer, origin_of, set_up_logging
from resnet_lab.command_line import run_command, split_arguments
from resnet_lab.config import check, compose_config, job_name
from resnet_lab.data.datamodule import DataModule
from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import find_file, read
from resnet_lab.module import Classifier
from resnet_lab.outputs import score_table, write_split
from resnet_lab.run_folder import RunFolder

log = logging.getLogger("resnet_lab")

# how the model was taught to see; another data set brings its files, not these
SEEING = ("image_size", "resize", "eye_crop", "local_mean", "crop", "padding", "mean", "std", "batch_size")


@dataclass
class Model:
    """A trained model, before it is built: the weights, and what its checkpoint carries along."""

    file: Path
    state_dict: dict[str, Any]
    origin: dict[str, Any]


def load(source: str) -> Model:
    """Read a run folder's best checkpoint, or the checkpoint that is named.

    Raises:
        UserError: there is none, it holds more than plain values, or it is none of this project's.
    """
    file = find_file(source)
    checkpoint = read(file)
    return Model(file, checkpoint.get("state_dict", {}), origin_of(checkpoint, file))


def answer(model: Model, config: dict[str, Any], split: str) -> tuple[Trainer, Classifier, DataModule]:
    """Run a model over one split; `module.predictions[split]` (N, K) and `module.confusion[split]` (K, K) hold it.

    Args:
        model: as loaded.
        config: its configuration, with whichever data.
        split: `train` (not augmented), `val` or `test`.

    Raises:
        UserError: the data has no such split, or other classes.
    """
    names = model.origin["class_names"]
    trained_on = model.origin.get("pixels")
    pixels = trained_on if trained_on == "originals" else None  # other data need not have been prepared
    datamodule = build_datamodule(config, (model.origin["mean"], model.origin["std"]), pixels)
    own = model.origin.get("split_fingerprint", {}).get(split) == datamodule.fingerprints.get(split)
    if own and (different := datamodule.difference(model.origin)):
        log.warning("the model was trained on other image files: %s", different)
    if len(datamodule.class_names) != len(names):
        raise UserError(
            f"{datamodule.data.name} has {len(datamodule.class_names)} classes but {model.file} was trained for "
            f"{len(names)} ({', '.join(names)}); evaluate on data of the same classes"
        )
    if list(datamodule.class_names) != list(names):
        log.warning("classes are taken by their order: %s for %s", ", ".join(datamodule.class_names), ", ".join(names))
    datamodule.rows(split)
    datamodule.test_splits = [split]
    module = build_module(config, datamodule, pretrained=False, class_counts=model.origin["class_counts"]["train"])
    try:
        module.load_state_dict(model.state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{model.file}: its weights are not of the network that it names; {reason}") from error
    trainer = build_trainer(config["trainer"], module)
    datamodule.batch_size_per_rank(trainer.world_size)  # refused now, before anything runs
    trainer.test(module, datamodule=datamodule, verbose=False)
    return trainer, module, datamodule


def override(origin: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of a run with another data set or other keys; the model, its classes and how it sees stay.

    Raises:
        UserError: a key that does not exist, or one of a group other than data and trainer.
    """
    groups = dict(item.split("=", 1) for item in overrides if item.startswith(("data=", "trainer=")))
    keys = [item for item in overrides if item.partition("=")[0] not in groups]
    for item in keys:
        if not item.startswith(("data.", "trainer.")):
            raise UserError(f"{item}: evaluate takes split, out, and the keys of data and trainer")
    config = copy.deepcopy(origin["config"])
    for group, name in groups.items():
        node = OmegaConf.to_container(compose_config([f"{group}={name}"])[group], resolve=False)
        assert isinstance(node, dict)
        if group == "data":
            node |= {key: config["data"][key] for key in SEEING}
            if node["class_names"] is None:  # found by their names, whatever their order here
                node |= {key: origin[key] for key in ("class_names", "ordered")}
        config[group] = node
    merged = OmegaConf.create(config)
    OmegaConf.set_struct(merged, True)
    try:
        merged.merge_with_dotlist(keys)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}; see conf/ for the keys") from error
    check(merged)
    container = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def output_folder(source: str, model: Model, split: str, overrides: list[str]) -> RunFolder:
    """The run itself where its best checkpoint answers on its own data, else a folder inside it."""
    if Path(source).is_dir() and not any(item.startswith("data") for item in overrides):
        return RunFolder(Path(source).resolve())
    file = model.file.resolve()
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    changes = ",".join(sorted(item for item in overrides if item.startswith("data")))
    return RunFolder(
        run / f"evaluation_{file.stem}_{split}{'_' if changes else ''}{job_name(changes) if changes else ''}"
    )


def command(arguments: list[str]) -> None:
    """Evaluate, write the files of the split, and show the scores beside the majority baseline."""
    (source,), options, overrides = split_arguments(
        arguments, ["RUN_OR_CKPT"], {"split": "test", "out": ""}, "resnet-lab evaluate"
    )
    set_up_logging()
    split, model = options["split"], load(source)
    run = RunFolder(Path(options["out"])) if options["out"] else output_folder(source, model, split, overrides)
    run.path.mkdir(parents=True, exist_ok=True)
    trainer, module, datamodule = answer(model, override(model.origin, overrides), split)
    if not trainer.is_global_zero:
        return
    probabilities, counts = module.predictions[split].numpy(), module.confusion[split].cpu().numpy()
    write_split(run, split, datamodule.rows(split), probabilities, counts, datamodule.class_names)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    class_counts = {**model.origin["class_counts"], split: datamodule.class_counts[split]}
    log.info("%s\nfiles in %s", score_table(metrics, [split], class_counts), run.path)


if __name__ == "__main__":
    sys.exit(run_command(command))
