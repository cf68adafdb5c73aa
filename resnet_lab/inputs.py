"""The inputs of `evaluate`, `predict` and `load`, checked before PyTorch is imported."""

from __future__ import annotations

import logging
import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from resnet_lab.errors import UserError, count
from resnet_lab.files import refuse_unwritable
from resnet_lab.run_folder import UNTRAINED, RunFolder, find_runs, jobs_file
from resnet_lab.scores import mode_of

log = logging.getLogger("resnet_lab")

OTHERS = (".yaml", ".json", ".csv", ".txt", ".html", ".png", ".jpg", ".jpeg")  # suffixes of no checkpoint
EYES = "eyes"  # key of config.yaml, in the group `combine` of a run that grades both eyes of a patient

# keys that define the model's input; they stay with the model when it is evaluated on other data
SEEING = ("image_size", "resize", "eye_crop", "local_mean", "crop", "padding", "mean", "std", "batch_size")
# the keys of data that have an effect on photographs without labels
TAKEN = {*SEEING, "in_memory", "num_workers", "cache_dir", "on_bad_image", "max_pixels", "strict_jpeg", "patient_regex"}


def checkpoint_of(source: str) -> Path:
    """Return the file itself, or the checkpoint that the job of a run folder tested.

    Raises:
        UserError: there is no such file, the run's checkpoint is missing, or the folder is not of one run.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in OTHERS:
            inside = f"the run folder {path.parent}" if RunFolder(path.parent).config_file.is_file() else "a run folder"
            raise UserError(f"{source} is not a checkpoint; give {inside}, or a file such as best.ckpt")
        return path
    if not path.is_dir():
        raise UserError(f"{source}: no such file; give a run folder or a checkpoint")
    run = RunFolder(path)
    if path.name == run.checkpoints.name and RunFolder(path.parent).config_file.is_file():
        return checkpoint_of(str(path.parent))  # the user named the folder inside a run
    if not run.config_file.is_file() and not run.checkpoints.is_dir():
        _refuse_several(path)
        raise UserError(f"{source} is neither a run folder nor a checkpoint (it has no config.yaml)")
    sources = sources_of(run)
    if len(sources) > 1:
        raise UserError(f"{source} combines {len(sources)} networks; give one of them, such as {sources[0]}")
    return checkpoint_of(str(sources[0])) if sources else tested_checkpoint(run, source)


def sources_of(run: RunFolder) -> list[Path]:
    """Return the folders of the runs whose predictions a derived run contains; empty for a run that trained.

    Raises:
        UserError: one of them does not exist.
    """
    if not run.config_file.is_file():
        return []
    named = [each for each in [run.read_status().get("derived_from")] if each]
    combine = run.read_config().get("combine")
    sources = combine.get("sources") if isinstance(combine, dict) else None
    named += sources if isinstance(sources, list) else []
    if odd := [each for each in named if not isinstance(each, str)]:
        raise UserError(f"{run.path} is made from {odd[0]!r}, which is not the name of a folder; combine again")
    folders = [Path(os.path.normpath(run.path.resolve() / name)) for name in named]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{run.path} is made from {folder}, which does not exist; restore it, or combine again")
    return folders


def refuse_no_model(source: str) -> None:
    """Refuse a source of trained networks whose checkpoints are missing.

    Raises:
        UserError: a checkpoint is missing, also that of a member of a derived run.
    """
    members = sources_of(RunFolder(Path(source).expanduser()))
    for member in members:
        refuse_no_model(str(member))
    if not members:
        checkpoint_of(source)


def _refuse_several(folder: Path) -> None:
    """Refuse a folder that contains runs, and name one of them.

    Raises:
        UserError: it contains runs, or is a sweep without any.
    """
    sweep = jobs_file(folder).is_file()
    try:
        runs = find_runs([folder])
    except UserError:
        if sweep:
            raise UserError(f"{folder} is a sweep without runs; give a run folder or a checkpoint") from None
        return
    kind = "is a sweep" if sweep else "is not a run but contains some"
    mean = "; resnet-lab combine makes one model from several seeds" if len(runs) > 1 else ""
    raise UserError(f"{folder} {kind}; choose one of its runs, such as {_best_of(folder, runs)}{mean}")


def _best_of(folder: Path, runs: Sequence[RunFolder]) -> str:
    """Return the run with the best value of the metric that selected its checkpoint; the first one if there is none."""
    top = folder.resolve()
    named = {
        folder / run.path.relative_to(top) if run.path.is_relative_to(top) else run.path: run.read_status()
        for run in runs  # those behind a link are elsewhere
    }
    values = {path: status["best_value"] for path, status in named.items() if status.get("best_value") is not None}
    monitors = {named[path].get("monitor") for path in values}
    if len(monitors) != 1:
        return str(next(iter(named)))
    monitor = str(monitors.pop())
    extreme, choose = ("lowest", min) if mode_of(monitor) == "min" else ("highest", max)
    best = choose(values, key=lambda path: values[path])
    return f"{best} (the {extreme} {monitor}: {values[best]:.3f})"


def tested_checkpoint(run: RunFolder, source: str) -> Path:
    """Return the checkpoint that the job of a run tested.

    Args:
        run: its folder.
        source: as the user named it.

    Raises:
        UserError: the file is missing.
    """
    file = run.last_checkpoint if selects_nothing(run) else run.best_checkpoint
    if not file.is_file():
        other = f"; to use the last epoch, name {run.last_checkpoint}" if run.last_checkpoint.is_file() else ""
        raise UserError(f"{source}: {file} is missing or not a file; give another run or a checkpoint{other}")
    return file


def selects_nothing(run: RunFolder) -> bool:
    """Return whether a run keeps its last epoch for lack of a validation split; False if its status is unreadable."""
    try:
        return run.read_status().get("best_checkpoint", "") is None
    except UserError:
        return False


def warn_of_unfinished(file: Path) -> None:
    """Warn that the run of a checkpoint is not done, if the checkpoint is in a run folder."""
    run = RunFolder(file.resolve().parent.parent)
    if file.parent.name != run.checkpoints.name or not run.config_file.is_file():
        return
    try:
        status, epochs = run.read_status(), run.read_config()["trainer"]["max_epochs"]
    except (UserError, KeyError):  # the checkpoint contains all that is needed
        return
    if status["state"] != "done":
        finished = status.get("epoch", UNTRAINED) + 1
        text = "%s is not done (%s, %d of %s): its model may still improve"
        log.warning(text, run.path, status["state"], finished, count(epochs, "epoch"))


def check_evaluate(given: Namespace) -> None:
    """Check the arguments of `evaluate` as far as they do not depend on the checkpoint.

    Raises:
        UserError: there is no such checkpoint, or `out` is refused.
    """
    refuse_no_model(given.RUN_OR_CKPT)
    if given.out:
        chosen_folder(given.out, given.split, given.overwrite)
        refuse_unwritable(Path(given.out).expanduser())


def chosen_folder(out: str, split: str, overwrite: bool) -> RunFolder:
    """Return the folder that `out` names.

    Raises:
        UserError: the folder is a run, where only its job writes, or contains predictions and `overwrite` is false.
    """
    run = RunFolder(Path(out).expanduser())
    if run.config_file.exists() or run.status_file.exists() or run.checkpoints.is_dir():
        raise UserError(f"out={out} is a run folder, where only its job writes; name another folder")
    if run.stored_predictions(split).exists() and not overwrite:
        raise UserError(f"{run.stored_predictions(split)} exists; name another folder, or set overwrite=true")
    return run


def check_predict(given: Namespace) -> None:
    """Check the arguments of `predict` as far as they do not depend on the checkpoint.

    Raises:
        UserError: there is no such checkpoint or image, `out` is refused, or a key has no effect.
    """
    out, images = Path(given.out).expanduser(), Path(given.IMAGE_OR_FOLDER).expanduser()
    if RunFolder(images).config_file.is_file() or images.suffix == ".ckpt":
        words = shlex.join(["resnet-lab", "predict", str(images), "IMAGES"])
        raise UserError(f"{images} is a model, not images; write the model first: {words}")
    if out.exists() and not out.is_file():
        raise UserError(f"out={out} is a folder or not a regular file; name a CSV file")
    refuse_inside_run(out)
    if out.suffix.lower() != ".csv":
        raise UserError(f"out={out}: predict writes a CSV file; name it {out.with_suffix('.csv')}")
    if out.exists() and not given.overwrite:
        raise UserError(f"out={out} exists; name another file, or set overwrite=true")
    for item in given.overrides:
        group, _, key = item.partition("=")[0].removeprefix("+").partition(".")
        if group == "data" and key not in TAKEN:
            raise UserError(f"{item}: it has no effect, as predict reads only IMAGE_OR_FOLDER; leave it out")
    refuse_unwritable(out.parent)
    refuse_no_model(given.RUN_OR_CKPT)
    refuse_no_images(images)


def refuse_no_images(root: Path) -> None:
    """Refuse a file or folder of photographs that does not exist."""
    if not root.exists():
        raise UserError(f"{root} does not exist; give an image or a folder of images")


def refuse_inside_run(out: Path) -> None:
    """Refuse an `out` inside a run folder, where only the job writes; its evaluation folders are allowed."""
    for place in (Path(os.path.abspath(out)), out.resolve()):  # noqa: PTH100 - a link in a run counts, too
        for folder in place.parents:
            run = RunFolder(folder)
            sure = folder == place.parent or run.checkpoints.is_dir()  # config.yaml above may be another program's
            inside = run.status_file.exists() or (run.config_file.exists() and sure)
            if inside and not place.relative_to(folder).parts[0].startswith("evaluation_"):
                raise UserError(f"out={out} is in the run folder {folder}, where only its job writes; name another")
