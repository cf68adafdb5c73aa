"""The recipe at the head of a report: facts about the training, with a mark if they differ between groups."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from resnet_lab.axes import as_typed, planned_in
from resnet_lab.data.augmentation import NEUTRAL as NO_AUGMENTATION
from resnet_lab.data.augmentation import Augmentation
from resnet_lab.errors import UserError, count
from resnet_lab.report.groups import Table
from resnet_lab.report.runs import Run, in_order_of_jobs, listed_jobs
from resnet_lab.run_folder import SOURCES, RunFolder

NAMES = [field.name for field in fields(Augmentation)]
NEUTRAL = {"optim.backbone_lr_factor": 1.0, "loss.decision": "auto"}  # neutral values of other keys
NEUTRAL |= {"loss.class_weights": "none", "loss.label_smoothing": 0.0}
# facts that are `none` in a run without them
OPTIONAL = ("experiment", "sampling", "augmentation", "frozen parts", "test-time augmentation", "combined")
IN_FACTS = ("model.depth", "model.pretrained", "model._target_", "trainer.max_epochs", "trainer.tta")
COVERED = {"sweep", "run", *IN_FACTS} | {  # axes in a fact
    f"data.{key}" for key in ("name", "image_size", "crop", "padding", "batch_size", "sampling", *NAMES)
}
IN_TITLE = 4  # experiments and folders of images in the title at most
MOST = 6  # values of one fact at most


Job = tuple[tuple[str, str], ...]  # key and value of its overrides


class Fact(NamedTuple):
    """One line of the recipe: a title and its values in the runs."""

    title: str
    values: list[str]
    varies: bool = False  # between groups of one table
    code: bool = False  # whether the values are commands

    @property
    def text(self) -> str:
        """The values in one line, at most `MOST` of them."""
        return _few(self.values, "; ")


def recipe_of(runs: Sequence[Run], tables: Sequence[Table]) -> list[Fact]:
    """Return the known facts in the order of a recipe: data, network, optimization, origin, command."""
    facts = list[Fact]()
    axes = dict.fromkeys(axis for table in tables for group in table.groups for axis in group.values)
    in_order = [run for table in tables for group in table.groups for run in group.runs]
    for title, of in FACTS.items():
        texts = {id(run): of(run) for run in (*in_order, *runs)}
        if title in OPTIONAL and any(texts.values()):
            # a published run has no overrides, a damaged one no configuration
            known = [run for run in runs if (run.overrides if title == "experiment" else run.config)]
            texts |= {id(run): texts[id(run)] or "none" for run in known}
        if title == "data":
            texts = _completed(texts)
        more = _seeds_of_members(runs) if title == "seeds" else ()
        if values := list(dict.fromkeys(filter(None, (*texts.values(), *more)))):
            facts.append(Fact(title, merged(values), any(_varies(table, texts) for table in tables)))
    if any(axis.startswith("combine.") for axis in axes):  # which has a fact of its own
        facts = [fact for fact in facts if fact.title != "combined"]
    facts += [
        Fact(axis, list(dict.fromkeys(_of_key(axis)(run) or "none" for run in in_order)), varies=True)
        for axis in axes
        if axis not in COVERED and not axis.startswith(("loss.", "optim.", "schedule."))
    ]
    if commands := commands_of(runs):
        facts.append(Fact("command", commands, code=True))
    return facts


def merged(texts: Sequence[str]) -> list[str]:
    """Merge texts with the same keys: `sgd lr=0.1`, `sgd lr=0.01` → `sgd lr=0.1, 0.01`."""
    rows = [text.split() for text in texts]
    keys = [[word.partition("=")[0] if "=" in word else word for word in row] for row in rows]
    if len(texts) < 2 or "=" not in texts[0] or any(each != keys[0] for each in keys):
        return list(texts)
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    return [" ".join(_few([first, *(word.partition("=")[2] for word in more)], ", ") for first, *more in columns)]


def _few(values: Sequence[str], separator: str) -> str:
    more = len(values) - MOST
    return separator.join(values[:MOST]) + (f" and {more} more" if more > 0 else "")


def _completed(texts: Mapping[int, str]) -> dict[int, str]:
    """Replace the text of a run that stopped early by that of another run that begins with it and continues."""
    every = sorted(set(texts.values()), key=len)
    longest = {text: more for text in every for more in every if f"{more}, ".startswith((f"{text}: ", f"{text}, "))}
    return {run: longest[text] for run, text in texts.items()}


def _varies(table: Table, texts: Mapping[int, str]) -> bool:
    """Return whether groups have different texts; unknown ones, of runs that stopped early, do not count."""
    known = [frozenset(filter(None, (texts.get(id(run)) for run in group.runs))) for group in table.groups]
    return len(set(filter(None, known))) > 1


def _of_key(key: str) -> Callable[[Run], str]:
    return lambda run: "" if run.config.get(key) is None else as_typed(run.config[key])


def _data(run: Run) -> str:
    folds = len(run.status.get("folds") or {})
    splits = (run.split,) if folds else ("train", "val", "test")  # each fold trains on images of its own
    counts = {split: sum(run.class_counts(split)) for split in splits}
    images = ", ".join(f"{number:,} {split}" for split, number in counts.items() if number)
    name = str(run.config.get("data.name", ""))
    folder = folder_of(run)
    name += f" in {folder}" if folder not in ("", name) else ""
    if not images or not run.class_names:
        return name
    pooled = f" of {folds} folds" if folds else ""
    return f"{name}: {images} images{pooled}, {len(run.class_names)} classes" + _patients(run)


def _patients(run: Run) -> str:
    """Return `, test images of 10 patients` for the scored split; empty if each image counts as a patient."""
    if run.predictions is None or run.predictions.split.number_of_patients == len(run.predictions.images):
        return ""
    return f", {run.split} images of {count(run.predictions.split.number_of_patients, 'patient')}"


def folder_of(run: Run) -> str:
    """Return the name of the folder with the images, the last part of `data.root`."""
    return Path(str(run.config.get("data.root") or "")).name


def experiment_of(run: Run) -> str:
    """Return the experiment that the command named; empty if it named none."""
    return next((value for key, value in run.overrides if key == "experiment" and value != "null"), "")


def subject_of(runs: Sequence[Run]) -> str:
    """Return `: mine, photographs`, the experiments and folders of images, for the title; empty if unknown or many."""
    names = [name for of in (experiment_of, folder_of) for name in dict.fromkeys(map(of, runs)) if name]
    return f": {', '.join(names)}" if 0 < len(names) <= IN_TITLE else ""


def _image_size(run: Run) -> str:
    size, crop = run.config.get("data.image_size"), run.config.get("data.crop")
    return "" if size is None else f"{size} px" + (f", cropped to {crop}" if crop else "")


def _network(run: Run) -> str:
    target = str(run.config.get("model._target_", ""))
    depth, form = run.config.get("model.depth"), run.config.get("model.form", "imagenet")
    if target.endswith(".resnet") and depth is not None:
        changed = [
            f"{key}={run.config[f'model.{key}']}" for key in ("shortcut", "stem", "activation") if _odd(run, key)
        ]
        return " ".join([f"ResNet-{depth}", *([f"form={form}"] if form != "imagenet" else []), *changed])
    return _part("model", ("pretrained", "freeze", "unfreeze_at_epoch", "zero_init_head"))(run)


def _initial_weights(run: Run) -> str:
    source = str(run.config.get("model.pretrained"))
    head = ", last layer zero" if run.config.get("model.zero_init_head") else ""
    return ("random" if source in ("none", "None") else source) + head


def _frozen_parts(run: Run) -> str:
    parts, until = run.config.get("model.freeze"), run.config.get("model.unfreeze_at_epoch")
    if not parts:
        return ""
    named = parts if isinstance(parts, str) else ", ".join(map(str, parts))
    return named + (f", for {count(until, 'epoch')}" if until else "")


def _odd(run: Run, key: str) -> bool:
    """Return whether a part of the network differs from the papers."""
    usual = {"shortcut": ("projection", "identity", "padding"), "stem": ("7x7", "3x3"), "activation": ("ReLU", "relu")}
    return run.config.get(f"model.{key}") not in (None, *usual[key])


def _part(group: str, without: Iterable[str] = ()) -> Callable[[Run], str]:
    """Return a group of the configuration as name and keys: `adamw lr=0.001 weight_decay=0.05`."""

    def text(run: Run) -> str:
        target = str(run.config.get(f"{group}._target_", "")).rpartition(".")[2]
        left_out = {f"{group}.{key}" for key in ("_target_", "_partial_", *without)}
        keys = sorted(key for key in run.config if key.startswith(f"{group}.") and key not in left_out)
        shown = [key for key in keys if run.config[key] not in (None, NEUTRAL.get(key))]
        values = [f"{key.removeprefix(f'{group}.')}={as_typed(run.config[key])}" for key in shown]
        return " ".join([target, *values]).strip()

    return text


def _training(run: Run) -> str:
    epochs, batch = run.config.get("trainer.max_epochs"), run.config.get("data.batch_size")
    patience = run.config.get("trainer.early_stopping")
    most = "at most " if patience or _early_end(run) else ""
    length = [f"{most}{count(epochs, 'epoch') if isinstance(epochs, int) else f'{epochs} epochs'}"]
    parts = length * (epochs is not None) + [f"batches of {batch} images"] * (batch is not None)
    return ", ".join(
        [*parts, *[f"early stopping after {count(patience or 0, 'epoch')} without a better one"] * bool(patience)]
    )


def _early_end(run: Run) -> str:
    """Return after how many epochs a finished training stopped before `trainer.max_epochs`; empty if it did not."""
    epochs, last = run.config.get("trainer.max_epochs"), run.status.get("epoch")
    if run.state != "done" or not isinstance(epochs, int) or not isinstance(last, int) or not 0 <= last < epochs - 1:
        return ""
    return f"after {count(last + 1, 'epoch')}"


def _seed(run: Run) -> str:
    """Return the seed; empty for a combined run, which has that of its first member."""
    return "" if run.members else _of_key("seed")(run)


def _seeds_of_members(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the seeds of the members of combined runs, where they can be read."""
    for member in dict.fromkeys(folder for run in runs for folder in run.members):
        with suppress(UserError, OSError):
            yield str(RunFolder(member).read_config().get("seed", ""))


def _combined(run: Run) -> str:
    """Return how a combined run was made: `mean_over=seed of 3 runs`; empty for another run."""
    how = [f"{key.removeprefix('combine.')}={as_typed(run.config[key])}" for key in sorted(run.config) if _is_how(key)]
    return f"{' '.join(how)} of {count(len(run.members), 'run')}".strip() if run.members else ""


def _is_how(key: str) -> bool:
    return key.startswith("combine.") and key != SOURCES


def _augmentation(run: Run) -> str:
    if run.config.get("data.augment_classes") == "none":
        return "none (augment_classes=none)"
    shown = {key: run.config.get(f"data.{key}") for key in (*NAMES, "padding", "crop")}
    return " ".join(f"{key}={value}" for key, value in shown.items() if value not in NO_AUGMENTATION)


def _selection(run: Run) -> str:
    if "monitor" not in run.status:
        return ""
    monitor = run.status["monitor"]
    return f"epoch with the best {monitor}" if monitor else "last epoch"


def _machine(run: Run) -> str:
    found = run.status.get("hardware")
    hardware: dict[str, Any] = found if isinstance(found, dict) else {}
    gpus = hardware.get("gpus") or []
    return ", ".join([*map(str, gpus), str(hardware.get("cpu", "")), f"{hardware.get('cores', '?')} cores"]) * bool(
        hardware
    )


def _versions(run: Run) -> str:
    found = run.status.get("versions")
    versions: dict[str, Any] = found if isinstance(found, dict) else {}
    return ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "lightning") if name in versions)


FACTS: dict[str, Callable[[Run], str]] = {
    "experiment": experiment_of,
    "data": _data,
    "image size": _image_size,
    "sampling": lambda run: (
        "" if run.config.get("data.sampling") in (None, "none") else str(run.config["data.sampling"])
    ),
    "augmentation": _augmentation,
    "network": _network,
    "initial weights": _initial_weights,
    "frozen parts": _frozen_parts,
    "loss": lambda run: _part("loss", () if run.config.get("loss.teacher") else ("temperature", "teacher_weight"))(run),
    "optimizer": _part("optim"),
    "schedule": _part("schedule"),
    "training": _training,
    "stopped early": _early_end,
    "selection": _selection,
    "test-time augmentation": lambda run: (
        "" if run.config.get("trainer.tta") in (None, "none") else str(run.config["trainer.tta"])
    ),
    "seeds": _seed,
    "combined": _combined,
    "precision": lambda run: str(run.status.get("precision") or ""),
    "finished": lambda run: str(run.status.get("finished") or "")[:10],
    "machine": _machine,
    "versions": _versions,
    "resnet_lab commit": lambda run: str(run.status.get("commit") or "")[:7],
}


def commands_of(runs: Sequence[Run]) -> list[str]:
    """Return the commands that trained the runs, from the overrides of the jobs: one for each sweep or single run.

    Values have the order in which the jobs were planned. Single runs that failed at the start come last. Jobs of one
    sweep with other keys or another `--config-dir` are from another command, and so are those that would make it plan
    jobs which do not exist.
    """
    commands = defaultdict[tuple[Path, bool, str, frozenset[str]], dict[Path, Job]](dict)
    for run in sorted(in_order_of_jobs(runs), key=lambda run: run.single and run.failed_at_start):
        config_dir, folder = run.status.get("config_dir") or "", run.folder.path
        place, keys = folder if run.single else folder.parent, frozenset(key for key, _ in run.overrides)
        commands[place, not run.single, str(config_dir), keys][folder] = _job(run.overrides)
    found = list[str]()
    reported = {run.folder.path for run in runs}
    for (place, sweep, config_dir, keys), jobs in commands.items():
        trained, planned = {*jobs.values()}, _planned(place, keys) if sweep else {}
        known = {path: job for path, job in planned.items() if path not in reported} | jobs
        ordered = {path: known[path] for path in (*planned, *jobs) if path in known}
        found += [_command(sweep, config_dir, grid) for grid, its in _grids(ordered.values()) if grid and its & trained]
    return found


def _planned(sweep: Path, keys: frozenset[str]) -> dict[Path, Job]:
    """Return folder → job of the planned jobs of a sweep that override these keys."""
    planned, found = planned_in(sweep), dict[Path, Job]()
    for name in listed_jobs(sweep):  # users remove jobs there
        job = [item.partition("=")[::2] for item in planned.get(name, [])]
        if {key for key, _ in job} == keys:
            found[sweep / name] = _job(job)
    return found


def _job(overrides: Iterable[tuple[str, str]]) -> Job:
    return tuple({key: as_typed(value) for key, value in overrides}.items())  # of a key given twice, the later value


def _grids(jobs: Iterable[Job]) -> Iterator[tuple[dict[str, list[str]], set[Job]]]:
    """Yield grids that together plan exactly these jobs, and the jobs of each: each grid is as large as it can be.

    Args:
        jobs: with the same keys, in the order in which they were planned.
    """
    rest = list(dict.fromkeys(jobs))
    while rest:
        values = defaultdict[str, dict[str, None]](dict)
        most, grid = 0, dict[str, list[str]]()
        for number, job in enumerate(rest, 1):
            for key, value in job:
                values[key][value] = None
            if math.prod(map(len, values.values())) == number:
                most, grid = number, {key: list(each) for key, each in values.items()}
        yield grid, {*rest[:most]}
        rest = rest[most:]


def _command(sweep: bool, config_dir: str, given: Mapping[str, Sequence[str]]) -> str:
    options = [*(["--config-dir", config_dir] if config_dir else []), *["-m"] * sweep]
    return shlex.join(["resnet-lab", "train", *options, *(f"{key}={','.join(each)}" for key, each in given.items())])
