"""The verbs of `resnet-lab`, each declared once: `VERBS[name]().read(words)` (imports nothing heavy)."""

from __future__ import annotations

import re
import textwrap
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from resnet_lab.command_line import Show, Verb
from resnet_lab.keys import WIDTH, all_keys, as_text, choices_of, matching
from resnet_lab.schema import CHOSEN, FIGURES, Rule

USUAL = (  # keys that most commands set
    *("data.root", "data.image_size", "data.batch_size", "model.depth", "model.pretrained", "optim.lr"),
    *("trainer.max_epochs", "seed", "sweep_dir"),
)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what Hydra's --info shows
MODEL = "run folder (its best checkpoint) or checkpoint file (.ckpt)"
STATES = {  # of a job, in the order in which `status` counts them
    "done": "finished and tested",
    "running": "a process works on it",
    "interrupted": "its process ended without an error message; the same command resumes it",
    "failed": "it ended with an error; the same command starts it again",
    "created": "its folder exists, and it has not started",
    "planned": "it belongs to the sweep, and has no folder yet",
    "unreadable": "its config.yaml or status.json is damaged",
}
LAUNCHER = "joblib, slurm: run several jobs of a sweep in parallel"
TRUST = "your own code that may be called: mylab, or one name: model:mylab.Net"


def train() -> Verb:
    """Declare `train`."""
    verb = Verb(
        "resnet-lab train",
        "Train one network, or with -m the networks of a sweep. Each job has its own process and run folder. "
        "The same command with the same sweep_dir resumes unfinished jobs.",
        [
            "  runs/NAME/DATE_TIME/         the run folder; a sweep has one per job",
            "    config.yaml, status.json   all keys with their values; state and results",
            "    metrics.csv, train.log     one row per epoch; the log",
            "    checkpoints/               best.ckpt and last.ckpt",
            "    predictions_test.csv, confusion_matrix_test.*, class_report_test.csv",
            "    tensorboard/               for resnet-lab tensorboard runs",
        ],
        [
            "  resnet-lab train data=retinopathy data.root=eyepacs model.pretrained=imagenet",
            "  resnet-lab train -m model.depth=18,50 seed=0,1,2 sweep_dir=runs/depth",
            "  resnet-lab train experiment=demo model.pretrained=none scale=smoke",
            "  resnet-lab train --config-dir my_conf experiment=mine",
            "  resnet-lab train --keys data.batch_size",
        ],
        _groups_and_keys,
    )
    verb.flag(
        "-m", "--multirun", action="store_true", help="a sweep: KEY=A,B is one job per value, in all combinations"
    )
    verb.flag(
        "--keys",
        action=Show,
        nargs="*",
        metavar="PATTERN",
        text=lambda patterns: as_text(matching(patterns)),
        help="show keys with meaning, values and default; PATTERN is a key, a group, a part of a name or data.*",
    )
    _add_config_dir(verb)
    shows = "show the composed configuration (job, hydra or all) and exit"
    verb.flag("-c", "--cfg", metavar="job", choices=("job", "hydra", "all"), help=shows)
    verb.option("trust", "PACKAGE", TRUST, [], action="append")
    # other options of Hydra, not in the help
    for names in (("--resolve",), ("--hydra-help",), ("-r", "--run"), ("-sc", "--shell-completion")):
        verb.flag(*names, action="store_true")
    for names in (("-p", "--package"), ("--experimental-rerun",)):
        verb.flag(*names)
    for names in (("-cp", "--config-path"), ("-cn", "--config-name")):
        verb.flag(*names, type=_no_config)
    verb.flag("-i", "--info", nargs="?", const="all", choices=INFO)
    verb.takes_keys("any key of the configuration, or a group: model=resnet_cifar")
    return verb


def _add_config_dir(verb: Verb) -> None:
    text = "folder of your own YAML files: DIR/experiment/mine.yaml"
    verb.flag("-cd", "--config-dir", metavar="DIR", type=_folder, help=text)


def _folder(value: str) -> str:
    if not Path(value).is_dir():
        raise ArgumentTypeError(f"--config-dir {value}: {'not a' if Path(value).exists() else 'no such'} folder")
    return value


def _no_config(value: str) -> str:
    raise ArgumentTypeError(
        f"{value} cannot be read; --config-dir DIR experiment=NAME reads your own DIR/experiment/NAME.yaml"
    )


def _out(value: str) -> str:
    path = Path(value)
    if path.is_file() or (path.suffix in (".html", ".csv", ".md") and not path.is_dir()):
        raise ArgumentTypeError(f"out={value}: name a folder, not a file; the files in it have fixed names")
    return value


def _groups_and_keys() -> str:
    lines = ["groups (GROUP=CHOICE):"]
    for group in CHOSEN:
        lines += _row(group, ", ".join(choices_of(group)), 14)
    lines += [*_row("hydra/launcher", LAUNCHER, 18), "", "often set:"]
    chosen = {key.name: key.default for key in all_keys() if key.name in CHOSEN}
    for name in USUAL:
        same = [key for key in all_keys() if key.name == name]
        first = next((key for key in same if chosen.get(key.group) in key.choices), same[0])
        lines += _row(name, f"{first.meaning} (default: {first.default})", 22)
    return "\n".join([*lines, "", ""])


def _row(name: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name} ".ljust(width), subsequent_indent=" " * width)


def evaluate() -> Verb:
    """Declare `evaluate`."""
    verb = Verb(
        "resnet-lab evaluate",
        "Score a trained model on a split of its data set, or on another data set with the same classes.",
        [
            "  evaluation_CHECKPOINT_SPLIT/ in the run folder, or the folder out=:",
            "    predictions_SPLIT.csv, confusion_matrix_SPLIT.*, class_report_SPLIT.csv",
            "    scores_SPLIT.csv: each score with its 95 % interval and the baseline",
        ],
        [
            "  resnet-lab evaluate runs/depth/depth-18_seed-0 split=val",
            "  resnet-lab evaluate best.ckpt data=retinopathy data.root=aptos \\",
            "      data.all_images=test",
        ],
    )
    verb.argument("RUN_OR_CKPT", MODEL)
    verb.option("split", "NAME", "train, val or test", "test", type=_split)
    verb.option("out", "DIR", "folder for the results, which must not be a run folder", type=_out)
    _add_overwrite(verb, "replace the predictions in out=")
    verb.option("trust", "PACKAGE", TRUST, [], action="append")
    verb.takes_keys("keys of data and trainer, or another data set: data=class_folders")
    return verb


def _split(value: str) -> str:
    if value not in ("train", "val", "test"):
        meant = f"did you mean split={value[:3]}?" if value[:3] == "val" else "choose train, val or test"
        raise ArgumentTypeError(f"split={value}: {meant}")
    return value


def predict() -> Verb:
    """Declare `predict`."""
    verb = Verb(
        "resnet-lab predict",
        "Predict the classes of photographs without labels, with a trained model.",
        ["  the CSV out=: image,patient,class,prediction,p_0,p_1,… (one row per image)"],
        [
            "  resnet-lab predict runs/depth/depth-18_seed-0 photographs/",
            "  resnet-lab predict best.ckpt eye.jpg out=eye.csv overwrite=true",
        ],
    )
    verb.argument("RUN_OR_CKPT", MODEL)
    verb.argument("IMAGE_OR_FOLDER", "one image, or a folder with images, also in its subfolders")
    verb.option("out", "FILE", "CSV of the predictions", "predictions.csv")
    _add_overwrite(verb, "replace the file out=")
    verb.option("trust", "PACKAGE", TRUST, [], action="append")
    verb.takes_keys("keys of data for reading images, and of trainer: data.num_workers=4")
    return verb


def _add_overwrite(verb: Verb, text: str) -> None:
    verb.option("overwrite", "true", text, False, type=_switch)


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ArgumentTypeError(f"overwrite={value}: choose true or false")
    return value == "true"


def prepare() -> Verb:
    """Declare `prepare`."""
    verb = Verb(
        "resnet-lab prepare",
        "Decode, crop and resize the photographs of a data set once, and report on the data. "
        "A training with the same keys of data uses the prepared set automatically.",
        [
            "  ~/.cache/resnet_lab/prepared/   the prepared set (data.cache_dir)",
            "  data_report.html and its CSVs   in the folder out=",
        ],
        [
            "  resnet-lab prepare data=retinopathy data.root=eyepacs data.image_size=512",
            "  resnet-lab prepare data=class_folders data.root=photos out=data_report",
        ],
    )
    verb.option("out", "DIR", "folder of the report (default: report/ in the prepared set)", type=_out)
    verb.option("processes", "N", "number of processes (default: one per core)", type=_processes)
    _add_config_dir(verb)
    verb.takes_keys("keys of resnet-lab train; only those of data are used")
    return verb


def _processes(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ArgumentTypeError(f"processes={value}: must be a whole number from 1")
    return int(value)


def status() -> Verb:
    """Declare `status`."""
    verb = Verb(
        "resnet-lab status",
        "Show the state of the jobs of sweeps and runs: done, running, interrupted, failed, created or planned.",
        ["  nothing"],
        ["  resnet-lab status runs/depth", "  resnet-lab status runs"],
        _states,
    )
    verb.argument("DIR", "folder of a run or sweep, or a folder above it", several=True)
    return verb


def _states() -> str:
    return "\n".join(["states:", *(line for state, text in STATES.items() for line in _row(state, text, 15)), "", ""])


def tensorboard() -> Verb:
    """Declare `tensorboard`."""
    verb = Verb(
        "resnet-lab tensorboard",
        "Watch trainings in the browser: TensorBoard with the short names of status and report. "
        "(tensorboard --logdir DIR shows the same runs, named by their folders.)",
        ["  nothing"],
        ["  resnet-lab tensorboard runs/depth", "  resnet-lab tensorboard runs port=6007"],
    )
    verb.argument("DIR", "folder of a run or sweep, or a folder above it", several=True)
    verb.option("port", "N", "port of the page", 6006, type=_port)
    verb.option("host", "NAME", "address of the page; 0.0.0.0 serves it to other machines, too", "localhost")
    return verb


def _port(value: str) -> int:
    if not value.isdecimal() or not int(value) < 65536:
        raise ArgumentTypeError(f"port={value}: must be a whole number below 65536; 0: any free port")
    return int(value)


def report() -> Verb:
    """Declare `report`."""
    verb = Verb(
        "resnet-lab report",
        "Compare the runs in one or more folders: tables with intervals, effects of settings, figures.",
        [
            "  report.html, summary.md, summary.csv and report_figures/ in the folder out=",
            "  (with --check: nothing)",
        ],
        [
            "  resnet-lab report runs/depth",
            "  resnet-lab report runs/depth runs/width metric=balanced_accuracy out=both",
            "  resnet-lab report runs/depth --check",
        ],
    )
    verb.argument("DIR", "folder of a run or sweep, or a folder above it", several=True)
    verb.option("metric", "NAME", "score that ranks the groups (default: qwk for grades, else accuracy)")
    verb.option("out", "DIR", "folder of the report (default: the first DIR)", type=_out)
    names = f"figures to draw (default: the key figures of the runs): {', '.join(FIGURES)}"
    verb.option("figures", "NAME,…", names)
    verb.option("groups", "LABEL,…", "groups to show in figures besides the best, by words of their labels")
    text = "recompute the stored metrics from the predictions, and exit with code 1 if one differs"
    verb.flag("--check", action="store_true", help=text)
    return verb


def combine() -> Verb:
    """Declare `combine`."""
    verb = Verb(
        "resnet-lab combine",
        "Make new runs from the predictions of several runs: the mean over seeds or networks, the pooled folds of a "
        "cross-validation, or another decision rule. Nothing is trained.",
        [
            "  one run folder per combination in out=, with config.yaml, status.json,",
            "  predictions_*.csv, confusion_matrix_*.* and class_report_*.csv",
        ],
        [
            "  resnet-lab combine runs/depth out=runs/depth_means",
            "  resnet-lab combine runs/cv over=data.fold out=runs/cv_pooled",
            "  resnet-lab combine runs/depth over=none decision=expected out=runs/expected",
            "  resnet-lab combine runs/depth eyes=worst,logistic out=runs/eyes",
        ],
    )
    verb.argument("DIR", "folder of a run or sweep, or a folder above it", several=True)
    verb.option("out", "DIR", "folder of the new runs", type=_out)
    keys = "keys in which the runs to combine differ: seed, data.fold, model.depth, …; all; none (with decision=)"
    verb.option("over", "KEY,…", f"{keys} (default: seed)")
    methods = "worst, mean (of a patient's two eyes), logistic, boosting (each eye, with the other as input)"
    verb.option("eyes", "METHOD,…", f"grade both eyes of a patient together: {methods}")
    verb.option("decision", "RULE", f"rule of the predictions: {', '.join(get_args(Rule))} (default: that of the runs)")
    return verb


def job() -> Verb:
    """Declare `python -m resnet_lab.job`."""
    verb = Verb(
        "python -m resnet_lab.job",
        "Start the job of a run folder, resume it, or report that it is done.",
        ["  the files of the run folder (see resnet-lab train --help)"],
        [
            "  python -m resnet_lab.job runs/depth/depth-18_seed-0",
            "  torchrun --nproc-per-node 2 -m resnet_lab.job runs/depth/depth-18_seed-0",
        ],
    )
    verb.argument("RUN_DIR", "run folder, created by resnet-lab train (or by train start=false)")
    verb.option("trust", "PACKAGE", TRUST, [], action="append")
    verb.arguments.add_argument("version", nargs="?", type=_version, help=SUPPRESS)  # from resnet-lab train
    return verb


def _version(value: str) -> str:
    if not re.fullmatch(r"\d+(-\w*)?", value):
        raise ArgumentTypeError(f"{value}: give only one RUN_DIR")
    return value


VERBS: dict[str, Callable[[], Verb]] = {
    each.__name__: each for each in (prepare, train, status, tensorboard, report, combine, evaluate, predict)
}
TASKS = {
    "data": ("prepare",),
    "train and compare": ("train", "status", "tensorboard", "report", "combine"),
    "use a model": ("evaluate", "predict"),
}
