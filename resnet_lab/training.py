"""Runs one job: training, selection of a checkpoint, test, output files."""

from __future__ import annotations

import logging
import math
import secrets
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from resnet_lab import environment, processes
from resnet_lab.axes import axes_of_run, label_of
from resnet_lab.build import (
    build_module,
    build_profiler,
    build_trainer,
    compile_network,
    rank,
    refuse_no_gpu,
    set_up_logging,
)
from resnet_lab.callbacks import Ending, FiniteLoss, Observer, ResumableEarlyStopping, SamePixels, StepSeed
from resnet_lab.checkpoints import (
    ENDED,
    EpochRows,
    LastCheckpoint,
    RunCheckpoint,
    fits,
    load_plain,
    put_objective,
    refuse_objects,
    resume_point,
)
from resnet_lab.compatibility import SCHEMA_VERSION
from resnet_lab.config import (
    build,
    check,
    config_hash,
    differences,
    refuse_foreign_named,
    refuse_foreign_targets,
    without_unknown,
    words_of_trust,
)
from resnet_lab.continuation import EPOCHS
from resnet_lab.data.arrays import ArrayData
from resnet_lab.data.datamodule import DataModule
from resnet_lab.data.splits import NO_TEST, SPLITS, order_of_training, refuse_one_class
from resnet_lab.derived import derive_decision, same_training
from resnet_lab.distillation import Distillation, refuse_no_logits, refuse_own_folder, teacher_of
from resnet_lab.distillation import idle_keys as idle_keys_of_teacher
from resnet_lab.errors import UserError, short
from resnet_lab.failures import fail, stopped_elsewhere
from resnet_lab.files import refuse_unwritable, remove_unfinished
from resnet_lab.freezing import Freezing, idle_keys
from resnet_lab.idle import idle_overrides
from resnet_lab.inputs import checkpoint_of
from resnet_lab.layers import LayerStatistics
from resnet_lab.loggers import AFTER_CURVES
from resnet_lab.metrics import is_collapsed, monitored
from resnet_lab.models.pretrained import (
    contents,
    depth_of,
    digest_of,
    find_network,
    fitting,
    names_files,
    read,
    refuse_nan_weights,
)
from resnet_lab.models.resnet import multiply_adds, parameter_count
from resnet_lab.module import Classifier
from resnet_lab.origin import CHECKPOINT_KEY, TRAIN_IMAGES, Channels, add_train_images
from resnet_lab.outputs import refuse_undefined, score_table, without_images, write_split
from resnet_lab.parts import refuse_no_data_set, statistics_of, without_weights
from resnet_lab.processes import Stopped
from resnet_lab.run_folder import RunFolder, flat, is_bookkeeping
from resnet_lab.schema import BY_NAME, PROVIDED, Config
from resnet_lab.scores import SCORES
from resnet_lab.siblings import (
    ORDER,
    begun_jobs,
    refuse_other_images,
    refuse_other_order,
    refuse_other_weights,
    with_data,
)
from resnet_lab.signatures import hashes_of_code, is_ours
from resnet_lab.trained import count_training_images, warn_of_training_images
from resnet_lab.trust import OPTION, trust_option
from resnet_lab.tta import VIEWS
from resnet_lab.values import conform

log = logging.getLogger("resnet_lab")
KINDS = {"callbacks": Callback, "logger": Logger}
UNUSABLE: dict[type[Callback], str] = {  # callbacks of Lightning that cannot work here → why, and what to use
    StochasticWeightAveraging: "it averages the weights after the last epoch, when all checkpoints are written; use "
    "callbacks=ema",
    LearningRateFinder: "it cannot set optim.lr here; give optim.lr several values in a sweep",
    BatchSizeFinder: "it cannot set data.batch_size here; set it yourself",
    GradientAccumulationScheduler: "set trainer.accumulate_grad_batches instead",
}


def run_job(run: RunFolder, misfits: frozenset[Path] = frozenset()) -> None:
    """Train, select a checkpoint, test it, and write the files of the run.

    Args:
        run: the run folder.
        misfits: checkpoints in the folder that do not fit the network.

    Raises:
        UserError: the configuration, the data or the weights are wrong.
    """
    config = checked_config(run)
    if not run.last_checkpoint.exists() and (source := same_training(run, config)):
        log.info("%s trained the same network; only the decision rule is applied anew", label_of(source))
        derive_decision(run, config, source, label_of(run))
        status = run.read_status()
        metrics, counts = status["metrics"], status["class_counts"]
        shown = {split: counts[split] for split in ("val", "test") if f"{split}/accuracy" in metrics}
        show_scores(run, metrics, shown, counts["train"], status["class_names"])
        return
    resume_from = resume_point(run, config["on_corrupt"], misfits)
    if resume_from is not None:
        refuse_edited(run, config, resume_from)
    refuse_no_gpu(config["trainer"])  # before the data, whose check may take minutes
    if resume_from is None and is_ours(config["model"]["_target_"]):
        check_network(config["model"])
    seed_everything(config["seed"], verbose=False)
    datamodule = read_data(run, config, resumes=resume_from is not None)
    module = build_module(config, datamodule, pretrained=resume_from is None)
    if resume_from is not None and not fits(resume_from, module):
        run_job(run, misfits | {resume_from})
        return
    if resume_from is None and rank() == 0:
        note_pretraining(run, config["model"], module, datamodule)
    module.distillation = distillation(run, config, module, datamodule, resumes=resume_from is not None)
    freezing = Freezing(module.model, config["model"]["freeze"], config["model"]["unfreeze_at_epoch"])
    module.fit_split = "val" if "val" in datamodule.splits else "train"
    patience, classes = config["trainer"]["early_stopping"], len(datamodule.class_names)
    chosen = (config["monitor"], config["schedule"], patience, classes, datamodule.data.ordered)
    monitor, mode = selection(*chosen, validates="val" in datamodule.splits)
    balances_twice = config["data"]["sampling"] != "none" and config["loss"].get("class_weights", "none") != "none"
    if balances_twice and rank() == 0:
        log.warning("data.sampling and loss.class_weights both balance the classes, so rare classes are weighted twice")
    own_callbacks = own_parts(config, "callbacks")
    refuse_unknown_monitors(own_callbacks, classes, datamodule.data.ordered, validates="val" in datamodule.splits)
    refuse_objects(own_callbacks.values())
    loggers = [*own_parts(config, "logger", save_dir=str(run.path), id=run.read_status().get("id")).values()]
    for folder in [each.log_dir for each in loggers if each.log_dir] if rank() == 0 else []:
        refuse_unwritable(Path(folder), "make it writable, then rerun the same command")
    rows, observer = EpochRows(), Observer(datamodule.class_names)
    needs_two = monitor is not None and (score := SCORES.get(monitor.partition("/")[2])) and score.two_classes
    undefined = bool(needs_two) and sum(count > 0 for count in datamodule.class_counts["val"]) < 2
    if undefined and rank() == 0:
        log.warning("%s is undefined with a single class in validation: the last epoch is kept; see monitor=", monitor)
    best = RunCheckpoint(run, rows, "best", monitor, mode, undefined) if monitor else None
    last = LastCheckpoint(run, rows, best, config["trainer"]["checkpoint_minutes"])
    callbacks = [
        Ending(run),
        StepSeed(config["seed"]),
        SamePixels(),
        FiniteLoss(),
        rows,
        observer,
        freezing,
        *own_callbacks.values(),
        *([LayerStatistics(run)] if config["follow_layers"] else []),
        *([LearningRateMonitor("epoch")] if loggers else []),
        *early_stopping(config, monitor, mode),
        *filter(None, [best]),
        last,
    ]
    profiler = build_profiler(config["trainer"]["profiler"], run)
    settings = config["trainer"] if resume_from is None else as_begun(config["trainer"], run.read_status())
    trainer = build_trainer(settings, module, loggers, callbacks, profiler)
    datamodule.batch_size_per_rank(trainer.world_size)  # raises before anything runs
    datamodule.refuse_lone_images(trainer.world_size)
    synchronizable(config["trainer"], trainer)
    describe(run, trainer, datamodule, module, monitor)
    idle = [*idle_keys(config, freezing), *idle_keys_of_teacher(config["loss"])]
    idle += idle_overrides(config, run.overrides(), datamodule, module.model)
    for text in idle if rank() == 0 else ():
        log.warning(text)
    compile_network(config["trainer"]["compile"], module, trainer.strategy.root_device)

    log.info("%s in %s", "resuming" if resume_from else "starting", short(run.path))
    trains = config["trainer"]["max_epochs"] > 0
    if trains:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
        last.catch_up(trainer)
        if trainer.should_stop and trainer.is_global_zero:
            run.update_status(**{ENDED: len(rows.rows)})
    else:
        keep_untrained(config, trainer, module, datamodule, resume_from, [*filter(None, [best]), last])
    kept = last.selection()
    if trains and best and kept["best_value"] is None and not undefined:
        log.warning("%s is undefined in every epoch, so the last epoch is kept and tested; see monitor=", monitor)
    chosen = run.path / (kept["best_checkpoint"] or kept["last_checkpoint"])
    if datamodule.test_splits:
        refuse_nan_weights(read(chosen).get("state_dict", {}), str(chosen))
        trainer.test(module, datamodule=datamodule, ckpt_path=chosen, weights_only=True, verbose=False)
        if (module.loss.fitted or module.loss.thresholds) and trainer.is_global_zero:
            put_objective(chosen, module)
    cost = last.cost(trainer)
    if trainer.is_global_zero:
        dropped = {} if best is None or config["keep_last"] else {"last_checkpoint": None}
        finish(run, trainer, module, datamodule, kept | dropped, observer, cost)
        if dropped:  # only now: a job repeated before this point would start from scratch
            run.last_checkpoint.unlink(missing_ok=True)
    trainer.strategy.barrier()


def keep_untrained(
    config: dict[str, Any],
    trainer: Trainer,
    module: Classifier,
    datamodule: DataModule,
    resume_from: Path | None,
    checkpoints: Sequence[RunCheckpoint],
) -> None:
    """Validate the initial weights and write the checkpoints, if `trainer.max_epochs` is 0.

    (Without an epoch, Lightning's fit neither validates nor saves; an epoch at learning rate 0 changes batch norm.)
    """
    log.info("trainer.max_epochs=0: no training; the initial weights are evaluated")
    if str(config["model"].get("pretrained", "none")) == "none":
        log.warning("model.pretrained=none: these weights are random initial values")
    trainer.validate(module, datamodule=datamodule, ckpt_path=resume_from, weights_only=True, verbose=False)
    for checkpoint in checkpoints:
        checkpoint.keep_untrained(trainer)


def as_begun(settings: dict[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the trainer with what `auto` became when the training began, perhaps on other hardware.

    Args:
        settings: group `trainer`.
        status: status.json of the run.
    """
    begun = {key: status.get(key) for key in ("precision", "channels_last") if settings[key] == "auto"}
    if begun.get("precision") == "16-mixed" and not environment.uses_cuda(settings["accelerator"]):
        log.warning("the training began in 16-mixed, which needs a GPU; it continues in another precision")
        return settings
    return settings | {key: value for key, value in begun.items() if value is not None}


def refuse_edited(run: RunFolder, config: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to resume a run whose config.yaml was edited: parts of the edit would have an effect, and others none.

    Raises:
        UserError: the file differs from what a command wrote, and from the configuration in the checkpoint.
    """
    status = run.read_status()
    noted = status.get("config_hash")
    if noted in (None, config_hash(run.read_config())) or status.get("schema_version", 1) < SCHEMA_VERSION:
        return
    before = flat(load_plain(checkpoint, mmap=True)[CHECKPOINT_KEY]["config"])
    # a newer version has more keys, and a training may get another number of epochs
    common = {key: value for key, value in flat(config).items() if key in before and key != EPOCHS}
    if edited := differences({key: before[key] for key in common}, common):
        text = f"{run.config_file} was edited after {checkpoint.name} was written: {'; '.join(edited)}"
        raise UserError(f"{text}; restore the file, or train in another folder")


def checked_config(run: RunFolder) -> dict[str, Any]:
    """Return the checked configuration of a run folder, which may be written by hand.

    Raises:
        UserError: a key does not exist or is missing, or its value is not allowed.
    """
    config = run.read_config()
    try:
        OmegaConf.merge(OmegaConf.structured(Config), config)  # checks the types of keys outside the groups
    except OmegaConfBaseException as error:
        if not isinstance(error, ConfigKeyError):  # unknown keys are named below
            place = ": ".join(filter(None, (str(run.config_file), error.full_key)))
            raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    if run.read_status().get("schema_version", 1) < 2:
        config, unknown = without_unknown(config)
        if unknown:
            log.warning("%s: these keys have no effect: %s", run.config_file, ", ".join(unknown))
    try:
        refuse_foreign_targets(config)
        refuse_foreign_named(config)
        refuse_no_data_set(config["data"])
        check(OmegaConf.create(config), importing=True)
    except UserError as error:
        raise UserError(f"{run.config_file}: {error}") from None
    return config


def check_network(model: dict[str, Any]) -> str:
    """Check that there is such a network with the parts to freeze, and that its initial weights fit.

    Returns:
        A hash of the initial weights; empty if they are random.

    Raises:
        UserError: there is no such network, or as for `Freezing` and `load_pretrained`.
    """
    with torch.device("meta"):  # no values: needs neither time nor memory; any number of classes will do
        network = build("model", without_weights(model), num_classes=2)
    Freezing(network, model.get("freeze"), until=None)
    if str(model.get("pretrained", "none")) == "none":
        return ""
    own = network.state_dict()
    content, source = contents(str(model["pretrained"]), depth_of(own))
    fitting(content, own, source)
    return digest_of(find_network(content, own, source))


def read_data(run: RunFolder, config: dict[str, Any], resumes: bool) -> DataModule:
    """Return the data of a job, with the same source of pixels as at its start, or as in the other jobs of its sweep.

    Jobs of a sweep take turns, so the first job decides for all. The other ranks use the choice of the first rank.

    Raises:
        UserError: the images, or the files with their pixels, are missing or have changed.
    """
    with run.turn() if rank() == 0 else nullcontext():
        own = run.read_status()
        follows = resumes or (rank() > 0 and bool(own.get("pixels")))
        siblings, alike = with_data([] if follows else begun_jobs(run.siblings()), config["data"])
        before = {"the job": own} if follows else siblings
        pixels = next((status.get("pixels") for status in before.values()), None)
        statistics = begun_statistics(run, own) if resumes else None
        datamodule = DataModule.from_config(config, statistics or statistics_of(config), pixels)
        datamodule.read()
        if config["trainer"]["max_epochs"] > 0:
            assert datamodule.table is not None
            refuse_one_class(datamodule.table, datamodule.class_names, config["data"]["root"])
        refuse_other_images(
            alike | ({"the job": own} if resumes else {}), datamodule.fingerprints, datamodule.data.root
        )
        assert datamodule.table is not None
        order = order_of_training(datamodule.table)
        refuse_other_order({"the job": own} if resumes else {}, order, datamodule.data.root)
        for name, status in before.items():
            if different := datamodule.difference(status):
                raise UserError(
                    f"{name} started with other image files ({different}); restore those, or choose another sweep_dir"
                )
        if rank() == 0:
            noted = {**datamodule.noted, "split_fingerprint": datamodule.fingerprints, ORDER: order}
            run.update_status(**noted)
            say_source(datamodule, next(iter(before), ""))
    datamodule.setup()
    return datamodule


def begun_statistics(run: RunFolder, status: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """Return the mean and std that a job began with; None if its status.json lacks them.

    (Older versions computed them from other images, where they did not fit in memory.)

    Raises:
        UserError: they are not three numbers each.
    """
    if "mean" not in status or "std" not in status:
        return None
    try:
        return conform("mean", status["mean"], Channels), conform("std", status["std"], Channels)
    except UserError as error:
        raise UserError(f"{run.status_file}: {error}") from None


def note_seen(run: RunFolder, key: str, images: dict[str, int]) -> None:
    """Note in status.json, as `seen_by`, how many images of each split the network that a key names was trained on."""
    before = run.read_status().get("seen_by") or {}
    seen = {name: found for name, found in before.items() if name != key}
    seen |= {key: images} if any(images.values()) else {}
    if seen != before:
        run.update_status(seen_by=seen)


def note_pretraining(run: RunFolder, model: dict[str, Any], module: Classifier, datamodule: DataModule) -> None:
    """Note in status.json a hash of the weights of `model.pretrained`, and the images that they were trained on.

    Only a checkpoint of resnet_lab has hashes of its training images; for another file, nothing is counted.

    Raises:
        UserError: another job of the sweep started with other weights.
    """
    source = str(model.get("pretrained", "none"))
    if not names_files(source):
        note_seen(run, "model.pretrained", {})
        return
    own = module.model.state_dict()
    if is_ours(str(model["_target_"])):
        content, source = contents(source, depth_of(own))
    else:
        content = read(checkpoint_of(source))
    digest = ""
    with suppress(UserError):  # a network from outside may read files that we cannot
        digest = digest_of(find_network(content, own, source))
    refuse_other_weights(begun_jobs(run.siblings()), "model.pretrained", {"model": model}, digest)
    run.update_status(pretrained=digest)
    note_seen(run, "model.pretrained", _count_pretraining_images(content, source, datamodule))
    add_train_images(module.origin, content.get(CHECKPOINT_KEY))


def _count_pretraining_images(content: dict[str, Any], source: str, datamodule: DataModule) -> dict[str, int]:
    """Count the validation and test images on which weights were trained, and warn."""
    origin = content.get(CHECKPOINT_KEY)
    known = origin.get(TRAIN_IMAGES) if isinstance(origin, dict) else None
    name = f"model.pretrained={source}"
    return {
        split: warn_of_training_images(str(known), name, datamodule.rows(split), f"{split} ")
        for split in (datamodule.test_splits if isinstance(known, str) else ())
    }


def distillation(
    run: RunFolder, config: dict[str, Any], module: Classifier, datamodule: DataModule, resumes: bool
) -> Distillation | None:
    """Return the teacher of a job (`loss.teacher`); None if it has none. status.json gets a hash of its weights.

    Raises:
        UserError: the teacher does not fit (see `teacher_of`), is the run itself, or the job started with another one.
    """
    loss = config["loss"]
    if loss["teacher"] is None:
        return None
    refuse_no_logits(module.loss, loss)
    refuse_own_folder(loss, run.path)
    teacher = teacher_of(loss, config["data"], datamodule.class_names)
    settings = loss["temperature"], loss["teacher_weight"]
    found = Distillation(teacher, datamodule.mean, datamodule.std, *settings)
    before = run.read_status().get("teacher")
    if resumes and before not in (None, found.digest):
        raise UserError(
            f"loss.teacher={loss['teacher']}: the job started with other weights ({before} then, {found.digest} now); "
            "restore those, or choose another sweep_dir"
        )
    if not resumes and rank() == 0:
        refuse_other_weights(begun_jobs(run.siblings()), "loss.teacher", config, found.digest)
    if rank() == 0:
        splits = datamodule.test_splits
        seen = {split: count_training_images(teacher, datamodule.rows(split), f"{split} ") for split in splits}
        note_seen(run, "loss.teacher", seen)
        add_train_images(module.origin, teacher.origin)
        run.update_status(teacher=found.digest)
        log.info("loss.teacher=%s: %s, weights %s", loss["teacher"], teacher.file, found.digest)
    return found


def say_source(datamodule: DataModule, decided_by: str) -> None:
    """Log the source of the pixels, if there are image files; `decided_by` is the job that chose it, or empty."""
    if isinstance(datamodule.data, ArrayData):
        return
    digests = ", ".join(f"{split} {digest}" for split, digest in datamodule.pixel_digests.items())
    source = "the originals" if datamodule.pixels == "originals" else f"the prepared set ({digests})"
    first = decided_by if decided_by == "the job" else "the sweep"
    log.info("images are read from %s%s", source, f", the source that {first} started with" if decided_by else "")


def synchronizable(settings: dict[str, Any], trainer: Trainer) -> None:
    """Refuse synchronized batch norm on the CPU, where torch does not support it.

    Raises:
        UserError: several ranks train on the CPU with `trainer.sync_batchnorm`.
    """
    if settings["sync_batchnorm"] and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UserError(
            f"trainer.sync_batchnorm=true with {trainer.world_size} ranks on the CPU: SyncBatchNorm needs GPUs; "
            "set trainer.sync_batchnorm=false or trainer.accelerator=gpu"
        )


def selection(
    monitor: str, schedule: dict[str, Any], patience: int | None, num_classes: int, ordered: bool, validates: bool
) -> tuple[str | None, str]:
    """Return the metric that selects the best epoch (None without a validation split), and its mode.

    Args:
        monitor: see `monitored`.
        schedule: the group of the configuration.
        patience: `trainer.early_stopping`.
        num_classes: K.
        ordered: whether the classes are grades.
        validates: whether there is a validation split.

    Raises:
        UserError: a metric does not exist; or a schedule or early stopping needs validation, and there is none.
    """
    name, mode = monitored(monitor, num_classes, ordered)
    if schedule.get("monitor") is not None:
        monitored(schedule["monitor"], num_classes, ordered, key="schedule.monitor")
        if not validates:
            raise UserError("schedule=plateau needs a validation split; set data.val_fraction or data.val_csv")
    elif schedule["_target_"].endswith(".ReduceLROnPlateau"):
        raise UserError("schedule.monitor is null: ReduceLROnPlateau needs a metric; set schedule.monitor=val/loss")
    if patience is not None and not validates:
        raise UserError("trainer.early_stopping needs a validation split; set data.val_fraction or data.val_csv")
    return (name if validates else None), mode


def own_parts(config: dict[str, Any], group: str, **arguments: Any) -> dict[str, Any]:
    """Build the callbacks or the loggers of the configuration, by name.

    Args:
        config: configuration of a run.
        group: `callbacks` or `logger`.
        arguments: arguments for each part that accepts them and whose keys do not set them.

    Raises:
        UserError: a part cannot be built, has another type, or would not affect the result; or a checkpoint could not
            tell two callbacks apart.
    """
    kind, found, states = KINDS[group], dict[str, Any](), dict[str, str]()
    for name, node in config[group].items():
        given = {key: value for key, value in arguments.items() if key not in node}
        each = build(group, node, place=f"{group}.{name}", **given)
        if not isinstance(each, kind):
            target, other = node["_target_"], type(each).__name__
            remedy = f"name a {kind.__name__.lower()}"
            raise UserError(f"{group}.{name}._target_ {target} returns a {other}, not a {BY_NAME[group]}; {remedy}")
        if reasons := [reason for unusable, reason in UNUSABLE.items() if isinstance(each, unusable)]:
            raise UserError(f"callbacks.{name}._target_ {node['_target_']}: {reasons[0]}")
        saved = isinstance(each, Callback) and is_overridden("state_dict", each, Callback)
        key = each.state_key if isinstance(each, Callback) and saved else f"{group}.{name}"
        if (twin := states.setdefault(key, name)) != name:
            raise UserError(
                f"{group}.{twin} and {group}.{name} are both {node['_target_']} with the state_key {key!r}, so a "
                "checkpoint cannot distinguish their states; leave one out, or make the state_key depend on the "
                "arguments"
            )
        found[name] = each
    return found


def refuse_unknown_monitors(
    callbacks: Mapping[str, Callback], num_classes: int, ordered: bool, validates: bool = True
) -> None:
    """Refuse callbacks of Lightning that would wait for a metric which no part of the run logs.

    Args:
        callbacks: the callbacks of the configuration, by name.
        num_classes: K.
        ordered: whether the classes are grades.
        validates: whether there is a validation split.

    Raises:
        UserError: there is no such metric. Nothing is refused beside other callbacks, which may log more metrics.
    """
    if all(type(each).__module__.startswith("lightning.") for each in callbacks.values()):
        for name, each in callbacks.items():
            monitor = getattr(each, "monitor", None)
            counted = isinstance(each, ModelCheckpoint) and monitor in ("epoch", "step")  # Lightning has both
            if isinstance(monitor, str) and not monitor.startswith("train/") and not counted:
                monitored(monitor, num_classes, ordered, key=f"callbacks.{name}.monitor", selects=False)
                if not validates and getattr(each, "strict", True):  # without `strict`, EarlyStopping only warns
                    key = f"callbacks.{name}.monitor={monitor}"
                    raise UserError(f"{key} needs a validation split; set data.val_fraction or data.val_csv")


def early_stopping(config: dict[str, Any], monitor: str | None, mode: str) -> list[Callback]:
    """Return the callback, if `trainer.early_stopping` is set."""
    patience = config["trainer"]["early_stopping"]
    if patience is None or monitor is None:
        return []
    return [ResumableEarlyStopping(monitor, patience=patience, mode=mode)]


@rank_zero_only
def describe(run: RunFolder, trainer: Trainer, datamodule: DataModule, module: Classifier, monitor: str | None) -> None:
    """Write facts that are known before training to status.json and the log."""
    parameters = parameter_count(module.model)
    trainable = sum(parameter.numel() for parameter in module.model.parameters() if parameter.requires_grad)
    parts = flat(module.origin["config"])
    facts = {
        "monitor": monitor,
        "precision": trainer.precision,
        "channels_last": module.memory_format == torch.channels_last,
        "mean": datamodule.mean.tolist(),
        "std": datamodule.std.tolist(),
        "num_workers": datamodule.num_workers,
        "in_memory": datamodule.in_memory,
        "class_names": list(datamodule.class_names),
        "ordered": datamodule.data.ordered,
        "decision": module.loss.rule,
        **({"decision_in_training": own} if (own := module.loss.decision) != module.loss.rule else {}),
        "evaluation_passes": VIEWS[module.tta],
        "class_counts": datamodule.class_counts,
        **datamodule.dropped,
        "label_conflicts": datamodule.label_conflicts,
        "patients": datamodule.patients,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "multiply_adds": multiply_adds(module.model, datamodule.data.crop or datamodule.data.image_size),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "own_code": hashes_of_code(str(each) for key, each in parts.items() if key.endswith("._target_")),
        "started_by": processes.started_by,
        "hardware": environment.hardware(),
    }
    run.update_status(**facts)
    log.info(
        "%s: images %s",
        datamodule.data.name,
        "  ".join(f"{split} {datamodule.class_counts[split]}" for split in SPLITS if split in datamodule.class_counts),
    )
    if line := without_images("train", datamodule.class_names, datamodule.class_counts.get("train", ())):
        log.warning("%s", line)
    if "test" not in datamodule.splits:
        log.warning(NO_TEST)
    if words := [word for word in words_of_trust(module.origin["config"]) if word.partition(":")[0] in PROVIDED]:
        log.info("evaluate and predict will need %s%s, as this run uses external code", OPTION, ",".join(words))
    log.info(
        "%s parameters%s, %.3g multiply-adds per image; %s%s; selecting by %s",
        f"{parameters:,}",
        f" ({trainable:,} trained)" if trainable < parameters else "",
        facts["multiply_adds"],
        trainer.precision,
        " channels-last" if facts["channels_last"] else "",
        monitor or "nothing (no validation split): the last epoch is kept",
    )


def finish(
    run: RunFolder,
    trainer: Trainer,
    module: Classifier,
    datamodule: DataModule,
    kept: dict[str, Any],
    observer: Observer,
    cost: dict[str, float],
) -> None:
    """Write the files of every evaluated split, the final values of the loggers, and the final status."""
    for split in datamodule.test_splits:  # before anything is written
        refuse_undefined(datamodule.rows(split), module.predictions[split].probabilities)
    label = label_of(run)
    for split in datamodule.test_splits:
        probabilities, classes = module.predictions[split]
        counts = module.confusion[split].cpu().numpy()
        write_split(run, split, datamodule.rows(split), classes, probabilities, counts, datamodule.class_names, label)
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
    module.refuse_replaced(metrics)
    tested = {name: value for name, value in metrics.items() if name.split("/")[0] in datamodule.test_splits}
    metrics = {name: value for name, value in tested.items() if not math.isnan(value)}  # NaN: recall of an absent class
    judged = "val" if "val" in module.confusion else "test"
    collapsed = judged in module.confusion and is_collapsed(module.confusion[judged])
    log_hyperparameters(trainer, run, metrics)
    run.update_status(
        state="done",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **kept,
        collapsed=collapsed,
        metrics=metrics,
        **({"thresholds": module.loss.thresholds} if module.loss.thresholds else {}),
        **cost,
        num_workers=datamodule.num_workers,  # images that do not fit on a GPU go elsewhere after the start
        in_memory=datamodule.in_memory,
        images_per_second=observer.images_per_second,
        data_wait=observer.data_wait,
        peak_memory_mb=round(environment.peak_memory_mb()),
    )
    images = {split: datamodule.class_counts[split] for split in datamodule.test_splits}
    show_scores(run, metrics, images, datamodule.class_counts["train"], datamodule.class_names)


def show_scores(
    run: RunFolder,
    metrics: dict[str, float],
    counts: Mapping[str, Sequence[int]],
    train_counts: Sequence[int],
    names: Sequence[str],
) -> None:
    """Log the table of scores (see `score_table`) and the folder with the files."""
    log.info(f"done\n{score_table(metrics, counts, train_counts, names)}")
    log.info("files in %s", short(run.path))


def log_hyperparameters(trainer: Trainer, run: RunFolder, metrics: dict[str, float]) -> None:
    """Log hyperparameters and final metrics; TensorBoard's HPARAMS tab stays empty unless one call has both.

    The hyperparameters are the seed, the label and the axes of the sweep. A single run has its overrides instead of
    axes, or all keys if there are none.
    """
    scalars = {key: value for key, value in flat(run.read_config()).items() if isinstance(value, int | float | str)}
    shown = {key: scalars.get(key, value) for key, value in axes_of_run(run).items()} or {
        key: value for key, value in scalars.items() if not (is_bookkeeping(key) or key.endswith("_"))
    }
    final = {f"final/{name}": value for name, value in metrics.items()}
    shown = {"seed": scalars["seed"], "label": label_of(run), **shown}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(shown, {f"{AFTER_CURVES}{name}": value for name, value in final.items()})
        else:
            logger.log_hyperparams(shown)
            logger.log_metrics(final, trainer.global_step)
        logger.finalize("success")


def guarded(run: RunFolder) -> int:
    """Run the job unless it is done, and return its exit code.

    A failure is written to status.json and logged: one line, or a traceback for a defect.
    """
    if rank() == 0:
        set_up_logging(run.log_file)
        remove_unfinished(run.path)
    status = run.read_status()
    if status["state"] == "done":
        if not run.has_lost_files(status):
            log.info("%s is done already", short(run.path))
            return 0
        log.info("metrics.csv or predictions are missing; testing again")
    if rank() == 0:
        # without a checkpoint the job chooses its source of pixels again; other jobs must not follow its former choice
        undecided: dict[str, Any] = {} if run.last_checkpoint.is_file() else {"pixels": None}
        undecided |= {"trains": False} if "trains" in status else {}  # of an earlier start (`same_training`)
        identity = status.get("id") or secrets.token_hex(4)
        starts = status.get("starts", 0) + 1
        started = datetime.fromtimestamp(processes.began, UTC).isoformat(timespec="seconds")
        run.update_status(state="running", error=None, starts=starts, started=started, id=identity, **undecided)
    try:
        run_job(run)
    except Stopped as stopped:
        by_hand = f" by {stopped}; resume with python -m resnet_lab.job {shlex.quote(str(run.path))}{trust_option()}"
        log.info("stopped%s", "" if processes.tied else by_hand)  # the command says why, and how to resume
        raise
    except Exception as error:
        if stopped_elsewhere(run, error):
            command = f"python -m resnet_lab.job {shlex.quote(str(run.path))}{trust_option()}"
            log.info("another rank was stopped; resume with %s", command)
            raise Stopped(signal.SIGTERM) from error
        fail(run, error, rank())
        if rank() == 0 and status["state"] == "done":  # training is complete; only predictions are missing
            run.update_status(state="done")
        return 1
    return 0
