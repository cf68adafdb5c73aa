"""Names, configuration, status and lock of a run folder (imports neither torch nor pandas)."""

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

from resnet_lab.compatibility import SCHEMA_VERSION, refuse_newer, upgraded, upgraded_status
from resnet_lab.errors import UserError
from resnet_lab.files import write_atomically

PATIENCE = 10.0  # seconds to wait for another process to leave a run folder
UNTRAINED = -1  # `epoch` in status.json of a run without epochs (trainer.max_epochs=0)
LARGEST = 1 << 24  # maximum size of config.yaml and status.json in bytes
DEEPEST, MOST = 12, 100_000  # maximum depth and number of values of a configuration
REMEDY = "remove its folder and train the run again"
OURS = re.compile(  # files that a job writes
    r"config\.yaml|job\.lock|train\.log|status\.json|(metrics|layers)\.csv|"
    r"(predictions|confusion_matrix|class_report)_\w+\.(csv|png)(\.gz)?"
)
SOURCES = "combine.sources"  # folders of the members of a combined run
# dotted keys that do not change the experiment
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
    """Return whether a dotted key leaves the experiment unchanged."""
    return key in (*BOOKKEEPING, SOURCES) or key.startswith("labels.") or of_logger(key)


def of_logger(key: str) -> bool:
    """Return whether a dotted key belongs to the loggers."""
    return key.lstrip("+~").partition(".")[0] == "logger"


def given_keys(overrides: Iterable[str]) -> dict[str, str]:
    """Return key or group → value (text) of overrides, without bookkeeping keys."""
    given = {key.lstrip("+~"): value for key, _, value in (item.partition("=") for item in overrides)}
    return {key: value for key, value in given.items() if not is_bookkeeping(key)}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one job: configuration, state and results.

    The states are `created`, `running`, `failed`, `done` and `interrupted`. A run is interrupted if status.json has
    `running` but no process holds the lock.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def lock_file(self) -> Path:
        """Empty file, locked while a process runs the job; the system frees the lock when the process ends."""
        return self.path / "job.lock"

    @property
    def status_file(self) -> Path:
        """State and results of the job (JSON)."""
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        """One row per epoch with the metrics of all splits."""
        return self.path / "metrics.csv"

    @property
    def log_file(self) -> Path:
        """The log of the job."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that the validation split selected; it is evaluated on the test split."""
        return self.checkpoints / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which a job resumes."""
        return self.checkpoints / "last.ckpt"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def layers_file(self) -> Path:
        """`epoch,quantity,layer,value`: gradient norm, activation variance, dead units (`follow_layers`)."""
        return self.path / "layers.csv"

    def predictions_file(self, split: str) -> Path:
        """`image,patient,target,prediction,p_0…p_{K-1}`, one row per image of the split."""
        return self.path / f"predictions_{split}.csv"

    def stored_predictions(self, split: str) -> Path:
        """The existing file with the predictions; compressed in a published run."""
        return _stored(self.predictions_file(split))

    def has_lost_files(self, status: Mapping[str, Any]) -> bool:
        """Return whether a finished job lacks metrics.csv or predictions of a split, and can write them again.

        It can with its checkpoint, or with the predictions of the job of its sweep that it has its own from.

        Args:
            status: content of status.json.
        """
        splits = [split for split in ("val", "test") if split in (status.get("class_counts") or {})]
        if derived := status.get("derived_from"):
            source = RunFolder(Path(os.path.normpath(self.path.resolve() / str(derived))))
            there = all(source.stored_predictions(split).is_file() for split in splits)
            return there and not all(self.stored_predictions(split).is_file() for split in splits)
        files = [self.stored_metrics, *map(self.stored_predictions, splits)]
        return self.last_checkpoint.is_file() and not all(file.is_file() for file in files)

    @property
    def stored_metrics(self) -> Path:
        """The existing file with the metrics; compressed in a published run."""
        return _stored(self.metrics_file)

    @property
    def stored_layers(self) -> Path:
        """The existing file with the values of layers; compressed in a published run."""
        return _stored(self.layers_file)

    def confusion_matrix_file(self, split: str, suffix: str = "csv") -> Path:
        """Counts with one row per true class (`csv`), or their picture (`png`)."""
        return self.path / f"confusion_matrix_{split}.{suffix}"

    def class_report_file(self, split: str) -> Path:
        """`class,precision,recall,f1,support`."""
        return self.path / f"class_report_{split}.csv"

    def scores_file(self, split: str) -> Path:
        """`score,value,low,high,baseline`, only of an evaluation."""
        return self.path / f"scores_{split}.csv"

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration as dictionaries and lists, with the current names of keys.

        Raises:
            UserError: the folder contains no configuration, or the file is damaged.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run folder: it contains no {self.config_file.name}")
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
        """Return key or group → value (text) of the command line; empty if no command created the run.

        (Hydra's own file is not used: a refused command overwrites it.)
        """
        return given_keys(self.read_status().get("overrides", []))

    def read_status(self) -> dict[str, Any]:
        """Return the content of status.json; `running` becomes `interrupted` if no process holds the lock."""
        if not self.status_file.is_file():
            return {"schema_version": SCHEMA_VERSION, "state": "created"}
        status = self._stored_status()
        if status.get("state") == "running" and not self.is_locked():
            status = self._stored_status()  # the process may have ended between the two checks
            if status.get("state") == "running":
                status["state"] = "interrupted"
        return status

    def _stored_status(self) -> dict[str, Any]:
        """Return the content of status.json in the present schema."""
        status = _parse(self.status_file, json.loads)
        try:
            refuse_newer(status)
        except UserError as error:
            raise UserError(f"{self.status_file}: {error}") from None
        return upgraded_status(status)

    def update_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json, atomically."""
        status = {"schema_version": SCHEMA_VERSION, **self.read_status(), **changes}
        text = json.dumps(_plain(status), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.status_file, text + "\n", durable=True)

    @contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Hold the lock of the job, so that no other process runs it.

        Args:
            patience: seconds to wait for a process that is about to end, or that only tests the lock.

        Raises:
            Busy: another process holds the lock.
        """
        self.refuse_odd_files()
        deadline = time.monotonic() + patience
        with self.lock_file.open("a") as file:  # NFS locks only writable files
            os.register_at_fork(after_in_child=file.close)  # otherwise a surviving data loader worker keeps the lock
            while not _locks(file, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise Busy(f"{self.path}: another process is running this job; wait for it, or stop it")
                time.sleep(0.1)
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock of the sweep: its jobs make decisions about each other one at a time."""
        if not jobs_file(self.path.parent).is_file():
            yield
            return
        with jobs_file(self.path.parent).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def siblings(self) -> list[RunFolder]:
        """Return the other jobs of the same sweep, sorted by name; empty for a single run."""
        if not jobs_file(self.path.parent).is_file():
            return []
        folders = (file.parent for file in sorted(self.path.parent.glob("*/status.json")))
        return [RunFolder(folder) for folder in folders if folder.name != self.path.name]

    def refuse_odd_files(self) -> None:
        """Refuse what a job cannot overwrite: a link, or a folder and file with swapped names.

        (The folders `checkpoints` and `tensorboard` may be links, to a scratch disk.)

        Raises:
            UserError: the folder contains such a file.
        """
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if OURS.fullmatch(file.name) and file.is_symlink():
                raise UserError(
                    f"{file} is a link to {file.readlink()}; a job does not write to links: remove it, or copy the file"
                )
            if OURS.fullmatch(file.name) and not file.is_file():
                raise UserError(f"{file} is a folder or special file, but a job writes a file there; move it away")
        for folder in (self.checkpoints, self.tensorboard):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                raise UserError(f"{folder} is not a folder, or cannot be written; make it writable, or move it away")

    def is_locked(self) -> bool:
        """Return whether a process runs the job."""
        if not self.lock_file.is_file():
            return False
        with self.lock_file.open() as file:
            return not _locks(file, fcntl.LOCK_SH)


def _safe_load(text: str) -> Any:
    """Read YAML of plain values; with libyaml, if PyYAML has it, ten times as fast."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _parse(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return the keys in a file, or refuse it by name."""
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} has more than {LARGEST >> 20} MB, so resnet_lab did not write it; {REMEDY}")
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({str(error).partition(chr(10))[0]}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} contains {type(content).__name__}, not keys; {REMEDY}")
    return content


def refuse_odd(values: Mapping[str, Any]) -> None:
    """Refuse what resnet_lab never writes: deep nesting, millions of values (by YAML aliases), and unresolved `${…}`.

    Raises:
        UserError: the values contain one of these.
    """
    seen, rest = 0, [("", values, 0)]
    while rest:
        place, value, depth = rest.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise UserError(f"{place[:80].strip('.')}: nested too deeply, or too many values; {REMEDY}")
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{place.strip('.')}: it contains ${{…}}, which is not resolved; write the value itself")
        if isinstance(value, Mapping):
            rest += [(f"{place}.{key}", each, depth + 1) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            rest += [(place, each, depth + 1) for each in value]


def _plain(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stored(file: Path) -> Path:
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.is_file() and not file.is_file() else file


class Busy(UserError):
    """Another process uses the run folder."""


def _locks(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def version_of(status: Mapping[str, Any]) -> str:
    """Return a text that changes when a command starts the job of a run or gives it another configuration."""
    return f"{status.get('starts', 0)}-{status.get('config_hash', '')}"


def jobs_file(sweep_dir: Path) -> Path:
    """File with the names of all jobs of a sweep, one per line."""
    return sweep_dir / "jobs.txt"


def planned_file(sweep_dir: Path) -> Path:
    """File with the overrides of all jobs of a sweep (JSON: name → overrides)."""
    return sweep_dir / "jobs.json"


def hashes_file(sweep_dir: Path) -> Path:
    """File with hashes of the configurations of the jobs of a sweep (JSON: name → hash)."""
    return sweep_dir / "jobs_hashes.json"


def list_jobs(sweep_dir: Path, names: Iterable[str] | None = None, gone: Collection[str] = ()) -> list[str]:
    """Return the names of a sweep's jobs in the order of the commands.

    Args:
        sweep_dir: folder of the sweep.
        names: names to add to the list first.
        gone: names to remove from the list first.
    """
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
            file.truncate()  # after writing: even a full disk has room for the old content
        file.writelines(f"{name}\n" for name in new)
    return kept + new


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key → value of a nested configuration."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def real_path(root: object) -> str | None:
    """Return the real path of a folder, so that two spellings compare equal; None for None."""
    return None if root is None else os.path.realpath(Path(str(root)).expanduser())


def same_root(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two configurations read the same folder of data; `data.root` is bookkeeping, as data may move."""
    one, two = (real_path((each.get("data") or {}).get("root")) for each in (config, other))
    return one == two


def comparable(key: str, value: Any) -> Any:
    """Return one form of a value of a configuration: 1.0 is 1, except where a whole number counts batches."""
    if isinstance(value, list):
        return [comparable(key, each) for each in value]
    whole = isinstance(value, float) and value.is_integer() and not key.startswith("trainer.limit_")
    return int(value) if whole else value


def _is_run(config_file: Path) -> bool:
    """Return whether a config.yaml belongs to a run: Hydra's own copies and a project's conf/ have no status.json."""
    return config_file.parent.name != ".hydra" and config_file.with_name("status.json").is_file()


def closed_folders(folders: Iterable[str]) -> list[str]:
    """Return the folders at or below `folders` without read permission, whose runs cannot be found."""
    closed: list[str] = []
    for folder in folders:
        for _, inner, _ in _walked(folder, closed):
            inner[:] = [name for name in inner if name not in ("checkpoints", "tensorboard")]
    return [folder for folder in dict.fromkeys(closed) if Path(folder).exists()]


def _walked(root: str | Path, closed: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what `os.walk` does, also behind symbolic links, but each folder once; add those that are not readable."""
    seen = set[tuple[int, int]]()
    for folder, inner, files in os.walk(
        root, onerror=lambda error: closed.append(str(error.filename)), followlinks=True
    ):
        inner[:] = [name for name in inner if not _leads_up(Path(folder, name), root)]
        stat = Path(folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            inner.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        yield folder, inner, files


def _leads_up(folder: Path, root: str | Path) -> bool:
    """Return whether a folder is a link to `root` or to a folder that contains it."""
    return folder.is_symlink() and Path(root).resolve().is_relative_to(folder.resolve())


def find_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """Return all run folders at or below `folders`, each once, sorted by path.

    Raises:
        UserError: a folder does not exist, or there is no run.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give run folders or the folder of a sweep")
    found = {
        Path(folder).resolve()
        for root in roots
        for folder, _, files in _walked(root, [])
        if "config.yaml" in files and _is_run(Path(folder, "config.yaml"))
    }
    if not found:
        raise UserError(f"no run (config.yaml) in {', '.join(map(str, roots))}; train one with `resnet-lab train`")
    return [RunFolder(folder) for folder in sorted(found)]
