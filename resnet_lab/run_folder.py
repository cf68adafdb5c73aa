"""The one place that knows the names of the files in a run folder (imports neither torch nor pandas)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.errors import UserError

SCHEMA_VERSION = 1
# configuration keys, dotted, that runs may differ in and still be the same experiment
BOOKKEEPING = (
    "name",
    "figures",
    "sweep_dir",
    "data.root",
    "data.cache_dir",
    "data.num_workers",
    "trainer.progress_bar",
)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one job: its configuration, state and results.

    The states of a run are `created`, `running`, `failed`, `done`, and `interrupted`: its status says
    running, but no process holds its lock.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration; also the file that the job locks."""
        return self.path / "config.yaml"

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

    def kept_predictions(self, split: str) -> Path:
        """The file to read them from: of a published run it is compressed."""
        file = self.predictions_file(split)
        packed = file.with_name(f"{file.name}.gz")
        return packed if packed.is_file() and not file.is_file() else file

    def confusion_matrix_file(self, split: str, suffix: str = "csv") -> Path:
        """Counts with rows true (`csv`), or the picture of them (`png`)."""
        return self.path / f"confusion_matrix_{split}.{suffix}"

    def class_report_file(self, split: str) -> Path:
        """`class,precision,recall,f1,support`."""
        return self.path / f"class_report_{split}.csv"

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration as plain dictionaries and lists."""
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run folder: it holds no {self.config_file.name}")
        return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))

    def read_status(self) -> dict[str, Any]:
        """The content of status.json with `state` corrected to `interrupted` where the job was killed."""
        if not self.status_file.is_file():
            return {"schema_version": SCHEMA_VERSION, "state": "created"}
        status: dict[str, Any] = json.loads(self.status_file.read_text(encoding="utf-8"))
        if status["state"] == "running" and not self.is_locked():
            status["state"] = "interrupted"
        return status

    def update_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json; a reader sees the old file or the new one, never half of it."""
        status = {"schema_version": SCHEMA_VERSION, **self.read_status(), **changes}
        write_atomically(self.status_file, json.dumps(status, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job, so that no other process takes it; the system frees the lock however we die.

        Raises:
            UserError: another process is at work in this folder.
        """
        with self.config_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is running this job; wait or stop it") from None
            yield

    def is_locked(self) -> bool:
        """Whether a process is at work in this folder."""
        with self.config_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a neighbour of `path` first and rename it, so that no half file ever has its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _is_run(config_file: Path) -> bool:
    """A job has a status from the start; Hydra's own copies and a project's conf/ have none."""
    return config_file.parent.name != ".hydra" and config_file.with_name("status.json").is_file()


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
