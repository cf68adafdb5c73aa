"""The one place that knows the names of the files in a run folder (imports neither torch nor pandas)."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from resnet_lab.compatibility import SCHEMA_VERSION, upgraded, upgraded_status
from resnet_lab.errors import UserError
from resnet_lab.files import write_atomically

PATIENCE = 10.0  # seconds to wait for a process in a run folder that is about to end
UNTRAINED = -1  # the `epoch` of a run without any (trainer.max_epochs=0)
LARGEST = 1 << 24  # bytes of a config.yaml or status.json
DEEPEST, MOST = 12, 100_000  # levels and values of a configuration
REMEDY = "remove its folder and train the run again"
OURS = re.compile(  # the files that a job writes
    r"config\.yaml|job\.lock|train\.log|status\.json|(metrics|layers)\.csv|"
    r"(predictions|confusion_matrix|class_report)_\w+\.(csv|png)(\.gz)?"
)
# configuration keys, dotted, that runs may differ in and still be the same experiment
BOOKKEEPING = (
    "name",
    "figures",
    "labels",
    "sweep_dir",
    "on_failed",
    "on_corrupt",
    "keep_last",
    "start",
    "logger",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "trainer.progress_bar",
    "trainer.checkpoint_minutes",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def is_bookkeeping(key: str) -> bool:
    """Whether runs may differ in a dotted key, as on a command line, and still be the same experiment."""
    return key in BOOKKEEPING or key.startswith("labels.") or of_logger(key)


def of_logger(key: str) -> bool:
    """Whether a dotted key belongs to the loggers, whose names are free."""
    return key.lstrip("+~").partition(".")[0] == "logger"


def given_keys(overrides: Iterable[str]) -> dict[str, str]:
    """The keys and groups that overrides set, as text, bookkeeping aside."""
    given = {key.lstrip("+~"): value for key, _, value in (item.partition("=") for item in overrides)}
    return {key: value for key, value in given.items() if not is_bookkeeping(key)}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one job: its configuration, state and results.

    The states of a run are `created`, `running`, `failed`, `done`, and `interrupted`: its status says
    running, but no process holds its lock.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def lock_file(self) -> Path:
        """An empty file, locked while a process is at work here; the system frees the lock however we die."""
        return self.path / "job.lock"

    @property
    def status_file(self) -> Path:
        """What became of the job (JSON)."""
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        """One row per epoch, train and validation side by side."""
        return self.path / "metrics.csv"

    @property
    def log_file(self) -> Path:
        """What the terminal showed."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """What the validation split selected, and what is tested."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """What a resumed job goes on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @property
    def layers_file(self) -> Path:
        """`epoch,quantity,layer,value`: gradient norm, activation variance, dead units (`follow_layers`)."""
        return self.path / "layers.csv"

    def predictions_file(self, split: str) -> Path:
        """`image,patient,target,prediction,p_0…p_{K-1}`, one row per image of the split."""
        return self.path / f"predictions_{split}.csv"

    def stored_predictions(self, split: str) -> Path:
        """The file to read them from: of a published run it is compressed."""
        return _stored(self.predictions_file(split))

    @property
    def stored_metrics(self) -> Path:
        """The file to read them from: of a published run it is compressed."""
        return _stored(self.metrics_file)

    @property
    def stored_layers(self) -> Path:
        """The file to read them from: of a published run it is compressed."""
        return _stored(self.layers_file)

    def confusion_matrix_file(self, split: str, suffix: str = "csv") -> Path:
        """Counts with rows true (`csv`), or the picture of them (`png`)."""
        return self.path / f"confusion_matrix_{split}.{suffix}"

    def class_report_file(self, split: str) -> Path:
        """`class,precision,recall,f1,support`."""
        return self.path / f"class_report_{split}.csv"

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration as plain dictionaries and lists; one of an older version with today's keys."""
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run folder: it holds no {self.config_file.name}")
        config = _parse(self.config_file, _safe_load)
        try:
            refuse_odd(config)
        except UserError as error:
            raise UserError(f"{self.config_file}: {error}") from None
        return upgraded(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration."""
        write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def overrides(self) -> dict[str, str]:
        """The keys and groups that the command line gave, as text; empty where no command created the run.

        (Not from Hydra's own file, which a command that is refused overwrites.)
        """
        return given_keys(self.read_status().get("overrides", []))

    def read_status(self) -> dict[str, Any]:
        """The content of status.json with `state` corrected to `interrupted` where the job was killed."""
        if not self.status_file.is_file():
            return {"schema_version": SCHEMA_VERSION, "state": "created"}
        status = upgraded_status(_parse(self.status_file, json.loads))
        if status.get("state") == "running" and not self.is_locked():
            status["state"] = "interrupted"
        return status

    def update_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json; a reader sees the old file or the new one, never half of it."""
        status = {"schema_version": SCHEMA_VERSION, **self.read_status(), **changes}
        text = json.dumps(_plain(status), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.status_file, text + "\n", durable=True)

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Hold the job, so that no other process takes it.

        Args:
            patience: seconds to wait for a process that is about to end, or that only looks whether one is at work.

        Raises:
            Busy: another process is at work in this folder.
        """
        self.refuse_odd_files()
        deadline = time.monotonic() + patience
        with self.lock_file.open("a") as file:  # NFS locks only what may be written
            os.register_at_fork(after_in_child=file.close)  # a loader's worker that outlives us holds no lock
            while not _locks(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise Busy(f"{self.path}: another process is running this job; wait or stop it")
                time.sleep(0.1)
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other job of the same sweep decides something; then it is this one's turn."""
        if not jobs_file(self.path.parent).is_file():
            yield
            return
        with jobs_file(self.path.parent).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def siblings(self) -> list[RunFolder]:
        """The other jobs of the same sweep, by name; none where the run is no job of a sweep."""
        if not jobs_file(self.path.parent).is_file():
            return []
        folders = (file.parent for file in sorted(self.path.parent.glob("*/status.json")))
        return [RunFolder(folder) for folder in folders if folder.name != self.path.name]

    def refuse_odd_files(self) -> None:
        """Stop where a job could not write: a link to a file somewhere else, a folder or file in the other's place.

        (A linked `checkpoints` or `tensorboard`, on a scratch disk, is a folder.)

        Raises:
            UserError: there is such a thing.
        """
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if OURS.fullmatch(file.name) and file.is_symlink():
                raise UserError(
                    f"{file} is a link to {file.readlink()}; a job writes no link: remove it, or copy the file"
                )
            if OURS.fullmatch(file.name) and not file.is_file():
                raise UserError(f"{file} is a folder or no regular file, and a job writes a file there; move it away")
        for folder in (self.checkpoints, self.tensorboard):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                raise UserError(f"{folder} is not a folder, or cannot be written; make it writable, or move it away")

    def is_locked(self) -> bool:
        """Whether a process is at work in this folder."""
        if not self.lock_file.is_file():
            return False
        with self.lock_file.open() as file:
            return not _locks(file, fcntl.LOCK_SH)


def _safe_load(text: str) -> Any:
    """YAML of plain values, by libyaml where PyYAML has it, which is ten times as fast."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _parse(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The keys in a file, or what is wrong with it, by name."""
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} has more than {LARGEST >> 20} MB, and is none of resnet_lab's; {REMEDY}")
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({str(error).partition(chr(10))[0]}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds {type(content).__name__}, not keys; {REMEDY}")
    return content


def refuse_odd(values: Mapping[str, Any]) -> None:
    """Stop at what no file of ours holds: deep nesting, millions of values by aliases, and `${…}`, which is resolved.

    Raises:
        UserError: there is such a thing.
    """
    seen, rest = 0, [("", values, 0)]
    while rest:
        place, value, depth = rest.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise UserError(f"{place[:80].strip('.')}: nested too deeply, or too many values; {REMEDY}")
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{place.strip('.')}: it holds ${{…}}, which nothing resolves here; write the value itself")
        if isinstance(value, Mapping):
            rest += [(f"{place}.{key}", each, depth + 1) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            rest += [(place, each, depth + 1) for each in value]


def _plain(value: Any) -> Any:
    """A value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stored(file: Path) -> Path:
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.is_file() and not file.is_file() else file


class Busy(UserError):
    """Another process is at work in the folder."""


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def jobs_file(sweep_dir: Path) -> Path:
    """The names of all jobs that a sweep was ever asked for, one a line."""
    return sweep_dir / "jobs.txt"


def planned_file(sweep_dir: Path) -> Path:
    """Job → its overrides, of all jobs that a sweep was ever asked for (JSON)."""
    return sweep_dir / "jobs.json"


def list_jobs(sweep_dir: Path, names: Iterable[str] | None = None, gone: Collection[str] = ()) -> list[str]:
    """The names of a sweep's jobs in the order asked for, after adding `names` to them and removing those in `gone`."""
    if names is None and not jobs_file(sweep_dir).is_file():
        return []
    sweep_dir.mkdir(parents=True, exist_ok=True)
    if names is not None:
        jobs_file(sweep_dir).touch()
    with jobs_file(sweep_dir).open("r" if names is None else "r+", encoding="utf-8", errors="replace") as file:
        if names is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        known = file.read().splitlines()
        kept = [name for name in known if name not in gone]
        new = [name for name in dict.fromkeys(names or ()) if name not in kept]
        if len(kept) < len(known):
            file.seek(0)
            file.writelines(f"{name}\n" for name in kept)
            file.truncate()  # afterwards, as a full disk has room for what stood here
        file.writelines(f"{name}\n" for name in new)
    return kept + new


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def _is_run(config_file: Path) -> bool:
    """A job has a status from the start; Hydra's own copies and a project's conf/ have none."""
    return config_file.parent.name != ".hydra" and config_file.with_name("status.json").is_file()


def closed_folders(folders: Iterable[str]) -> list[str]:
    """The folders at or below `folders` that we may not read, whose runs are therefore missing."""
    closed: list[str] = []
    for folder in folders:
        for _, inner, _ in os.walk(folder, onerror=lambda error: closed.append(str(error.filename))):
            inner[:] = [name for name in inner if name not in ("checkpoints", "tensorboard")]
    return [folder for folder in dict.fromkeys(closed) if Path(folder).exists()]


def find_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """All run folders at or below `folders`, each once, in the order of their paths.

    Raises:
        UserError: a folder does not exist, or none of them holds a run.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give run folders or the folder of a sweep")
    # .hydra/ holds a config.yaml of Hydra's own
    configs = {file.resolve() for root in roots for file in root.rglob("config.yaml") if _is_run(file)}
    if not configs:
        raise UserError(f"no run (config.yaml) in {', '.join(map(str, roots))}; train one with `resnet-lab train`")
    return [RunFolder(file.parent) for file in sorted(configs)]
