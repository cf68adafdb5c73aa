"""`resnet-lab evaluate RUN_OR_CKPT [split=test] [key=value …]`: score a trained model on a split or other data."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from lightning import Trainer
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.axes import as_typed, label_of
from resnet_lab.build import build_datamodule, build_trainer, rank, set_up_logging
from resnet_lab.command_line import run_command
from resnet_lab.config import check, compose_config, job_name
from resnet_lab.data.augmentation import Augmentation
from resnet_lab.data.datamodule import DataModule
from resnet_lab.environment import keep_freed_memory
from resnet_lab.errors import UserError, count, short
from resnet_lab.files import refuse_unwritable, write_atomically
from resnet_lab.hydra_errors import one_line
from resnet_lab.inputs import SEEING, check_evaluate, chosen_folder
from resnet_lab.module import Classifier
from resnet_lab.outputs import refuse_undefined, score_table, without_images, write_split
from resnet_lab.processes import end
from resnet_lab.report.intervals import estimate
from resnet_lab.report.leaderboard import CONSTANT, NOTHING, interval_text
from resnet_lab.report.runs import read_predictions
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES, majority_baseline
from resnet_lab.trained import (
    MEMBERS,
    POOLS,
    Trained,
    count_training_images,
    load,
    match_classes,
    place_of,
    saw_jpegs,
    say_compression,
)
from resnet_lab.trust import trust, warn_of_unused
from resnet_lab.verbs import VERBS

log = logging.getLogger("resnet_lab")

LONGEST = 60  # characters in the name of an evaluation's folder
# keys of the trainer that have an effect only in training
OF_TRAINING = (
    *("max_epochs", "early_stopping", "checkpoint_minutes", "sync_batchnorm", "gradient_clip_val", "profiler"),
    *("accumulate_grad_batches", "limit_train_batches", "limit_val_batches", "compile", "log_every_n_steps"),
)
IDLE = {f"trainer.{key}" for key in OF_TRAINING} | {
    f"data.{key}"
    for key in (*(field.name for field in fields(Augmentation)), "sampling", "sampling_decay", "sampling_final")
}


def evaluate_split(model: Trained, config: dict[str, Any], split: str) -> tuple[Trainer, Classifier, DataModule]:
    """Run a model over one split; the results are `module.predictions[split]` and `module.confusion[split]` (K, K).

    Args:
        model: the loaded model.
        config: its configuration, possibly with other data.
        split: `train` (not augmented), `val` or `test`.

    Raises:
        UserError: the data has no such split, or other classes.
    """
    trained_on = model.origin.get("pixels")
    pixels = trained_on if trained_on == "originals" else None  # other data need not have been prepared
    datamodule = build_datamodule(config, (model.origin["mean"], model.origin["std"]), pixels, saw_jpegs(model.origin))
    before = model.origin.get("split_fingerprint", {}).get(split)
    if rank() == 0 and datamodule.pixels == "originals":
        say_compression(model.origin, "evaluate")
    own = before == datamodule.fingerprints.get(split)
    same_keys = config["data"] | {"on_leak": ""} == model.origin["config"]["data"] | {"on_leak": ""}
    if before and same_keys and not own:
        root = config["data"]["root"]
        log.warning("%s has other images or labels than in the run: the data set in %s has changed", split, root)
    if own and (different := datamodule.difference(model.origin)):
        log.warning("the model was trained on other image files: %s", different)
    names = ",".join(model.class_names)
    remedy = f"evaluate on data with the same classes; if only their names are missing, set data.class_names=[{names}]"
    match_classes(model, datamodule.class_names, datamodule.data.name, remedy)
    if rank() == 0 and count_training_images(model, datamodule.rows(split)) and model.origin.get(POOLS):
        raise UserError(
            f"{place_of(model.file)}: some of its networks were trained on these images, and others were not, so the "
            "score would be too high; name other data, or report on the stored predictions: resnet-lab report "
            f"{short(model.file.parent)}"
        )
    datamodule.test_splits = [split]
    module = Classifier.of(model, test_splits=[split])
    trainer = build_trainer(config["trainer"], module)
    datamodule.batch_size_per_rank(trainer.world_size)  # raises before anything runs
    trainer.test(module, datamodule=datamodule, verbose=False)
    refuse_undefined(datamodule.rows(split), module.predictions[split].probabilities, str(place_of(model.file)))
    return trainer, module, datamodule


def override(origin: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the configuration of a run with overrides of data and trainer; model, classes, SEEING and views stay.

    A plus sign (`+data.clinic=3`) adds a key of an external data set.

    Raises:
        UserError: a key does not exist, or belongs to a group other than data and trainer.
    """
    groups = dict(item.split("=", 1) for item in overrides if item.startswith(("data=", "trainer=")))
    keys = [item for item in overrides if item.partition("=")[0] not in groups]
    added = [item.removeprefix("+") for item in keys if item.startswith("+data.")]
    keys = [item for item in keys if not item.startswith("+data.")]
    for item in keys:
        if not item.startswith(("data.", "trainer.")):
            remedy = "; resnet-lab combine RUN over=none decision=RULE applies another rule"
            raise UserError(
                f"{item}: only options (see --help) and keys of data and trainer apply to a trained model"
                f"{remedy if item.startswith('loss.decision=') else ''}"
            )
        if item.partition("=")[0] in IDLE:
            raise UserError(f"{item}: it has no effect on a trained model; leave it out")
        if item.partition("=")[0] in ("data.mean", "data.std"):
            raise UserError(f"{item}: images are normalized as in the training of the network; leave it out")
    config = copy.deepcopy(origin["config"]) | {"labels": {}}  # other data may lack a key that is labeled
    for group, name in groups.items():
        node = OmegaConf.to_container(compose_config([f"{group}={name}"])[group], resolve=False)
        assert isinstance(node, dict)
        if group == "data":
            node |= {key: config["data"][key] for key in SEEING}
            if node["class_names"] is None:  # found by name, in any order
                node |= {key: origin[key] for key in ("class_names", "ordered")}
        else:
            node["tta"] = config["trainer"]["tta"]
        config[group] = node
    merged = OmegaConf.create(config)
    try:
        merged.merge_with_dotlist(added)
        OmegaConf.set_struct(merged, True)
        merged.merge_with_dotlist(keys)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, overrides)) from error
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join([*added, *keys])}: {one_line(error)}") from error
    trust(f"data:{item.partition('=')[2]}" for item in keys if item.startswith("data._target_="))
    check(merged, trains=False)
    container = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(container, dict)
    typed = any(item.startswith("data.on_leak=") for item in keys)
    if container["data"]["on_leak"] == "error" and not typed:  # this data is not used for training
        container["data"]["on_leak"] = "ignore"
    before = origin["config"]["data"]
    for key in SEEING if rank() == 0 else ():
        if key != "batch_size" and container["data"][key] != before[key]:
            text = "data.%s=%s: the network was trained with %s, so its predictions may be worse"
            log.warning(text, key, as_typed(container["data"][key]), as_typed(before[key]))
    return {str(key): value for key, value in container.items()}


def own_folder(file: Path, split: str, overrides: list[str], root: str, pixels: str = "") -> RunFolder:
    """Return the folder of this evaluation, in the checkpoint's run or beside it; its name depends on the inputs.

    Args:
        file: the checkpoint.
        split: split of the data.
        overrides: overrides of the command line.
        root: `data.root`.
        pixels: source of the pixels, if it differs from training.
    """
    file = file.resolve()
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    name = re.sub(r"[^\w.+-]+", "-", f"evaluation_{file.name.removesuffix('.ckpt')}_{split}")
    changes = sorted(overrides) + [f"pixels={pixels}"] * bool(pixels)
    if changes:
        name += f"_{job_name(','.join(changes))}"
    if changes or len(name) > LONGEST:
        inputs = repr((file.name, split, changes, str(Path(root).absolute())))
        digits = hashlib.sha256(inputs.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST - len(digits) - 1]}~{digits}"
    return RunFolder(run / name)


def title_of(file: Path) -> str:
    """Return the label of the run that contains a checkpoint; the file name if no run contains it."""
    if file.name == MEMBERS:
        return label_of(RunFolder(file.resolve().parent))
    run = RunFolder(file.resolve().parent.parent)
    return label_of(run) if file.parent.name == "checkpoints" and run.config_file.is_file() else file.name


def scores_of(file: Path, ordered: bool, majority: int) -> tuple[pd.DataFrame, str]:
    """Return all scores of stored predictions with their 95 % intervals, and one line on the score that ranks.

    Args:
        file: the predictions.
        ordered: whether the classes are grades.
        majority: the largest class of the training images.

    Returns:
        The columns `score,value,low,high,baseline`; without an interval, `low` and `high` are empty.
    """
    stored = read_predictions(file)
    targets, classes = stored.labeled.targets, stored.labeled.probabilities.shape[1]
    patient = np.unique(stored.patients, return_inverse=True)[1]
    names = [name for name, score in SCORES.items() if score.means_something(ordered, classes)]
    found = estimate([[stored.labeled]], patient, draws=0, metrics=names, compared=[])
    baseline = majority_baseline(targets, majority, classes)
    rows = []
    for name in names:
        low_high = found[name].interval(0)
        if interval_text(name, low_high) == CONSTANT:
            low_high = NOTHING
        rows.append((name, found[name].values[0], *low_high, baseline[name]))
    table = pd.DataFrame(rows, columns=["score", "value", "low", "high", "baseline"])
    first, shown = found[names[0]], SCORES[names[0]]
    limits = interval_text(names[0], first.interval(0))
    many = f"{count(len(targets), 'image')} of {count(first.patients, 'patient')}"
    if first.withheld:
        interval = f"no interval: {first.withheld}"
    elif limits == CONSTANT:
        one = "one class predicted for" if len(np.unique(stored.labeled.classes)) == 1 else "one class is the label of"
        interval = f"no interval: {one} all of {many}"
    else:
        interval = f"95 % interval {limits} (this model, {many})"
    value = f"{shown.text(first.values[0])}{' %' * shown.percent}"
    return table, f"{shown.label} {value}, {interval}" if np.isfinite(first.values[0]) else ""


def command(arguments: list[str]) -> None:
    """Evaluate, write the files of the split, and show the scores and the majority baseline."""
    given = VERBS["evaluate"]().read(arguments)
    trust(given.trust)
    keep_freed_memory()
    set_up_logging()
    check_evaluate(given)
    split, out = given.split, given.out
    model = load(given.RUN_OR_CKPT)
    config = override(model.origin, given.overrides)
    inputs = (model.file, split, given.overrides, config["data"]["root"])
    run = chosen_folder(out, split, given.overwrite) if out else own_folder(*inputs)
    if not out and run.path.is_symlink():
        raise UserError(f"{run.path} is a link; remove it, or name a folder with out=")
    refuse_unwritable(run.path)
    trainer, module, datamodule = evaluate_split(model, config, split)
    if not trainer.is_global_zero:
        return
    warn_of_unused(given.trust)
    assert datamodule.pixels is not None
    if not out and datamodule.pixels != model.origin.get("pixels", datamodule.pixels):
        run = own_folder(*inputs, datamodule.pixels)
    probabilities, classes = module.predictions[split]
    matrix = module.confusion[split].cpu().numpy()
    title = " ".join([title_of(model.file), *given.overrides])
    write_split(run, split, datamodule.rows(split), classes, probabilities, matrix, datamodule.class_names, title)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    counts = {split: datamodule.class_counts[split]}
    table = score_table(metrics, counts, model.origin["class_counts"]["train"], model.origin["class_names"])
    numbers = list(map(int, counts[split]))
    log.info("%s: images %s %s", datamodule.data.name, split, numbers)
    if line := without_images(split, datamodule.class_names, numbers):
        log.warning("%s", line)
    log.info(f"done\n{table}")
    majority = int(np.argmax(model.origin["class_counts"]["train"]))
    scores, line = scores_of(run.predictions_file(split), model.origin["ordered"], majority)
    write_atomically(run.scores_file(split), scores.to_csv(index=False, float_format="%.6g"))
    if line:
        log.info("%s", line)
    log.info("files in %s", short(run.path))


if __name__ == "__main__":
    end(run_command(command))
