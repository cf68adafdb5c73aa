"""Loggers of a training, besides metrics.csv: TensorBoard, and rows of a CSV file."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from resnet_lab.files import write_atomically

AFTER_CURVES = "z_"  # before the names of pictures and final scores, as TensorBoard sorts by name and opens the first


class Board(TensorBoardLogger):
    """TensorBoard's logger, whose first cards are the curves of train and val."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # the epoch is the step already, and learning rates (lr-SGD) would come before the curves
        named = {f"{AFTER_CURVES}{key}" if key.startswith("lr-") else key: value for key, value in metrics.items()}
        super().log_metrics({key: value for key, value in named.items() if key != "epoch"}, step)


def tensorboard(save_dir: str) -> TensorBoardLogger:
    """Return the logger for `tensorboard/` in the run folder `save_dir`; a resumed run appends."""
    return Board(save_dir, name="", version="tensorboard", default_hp_metric=False)


def boards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the loggers of a trainer that show pictures."""
    return [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]


def log_to_all(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Log metrics of the last optimizer step in every logger, before the checkpoint of this step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), trainer.global_step - 1)
        logger.save()


class RowLogger(Logger):
    """Logger that writes rows to `csv/metrics.csv` and hyperparameters to `csv/hparams.yaml`.

    Step and names identify a row. A resumed run logs the rows since its checkpoint again, and they replace the earlier
    ones. (Lightning's CSVLogger removes the earlier rows, or begins another file.)

    Args:
        save_dir: the run folder.
    """

    name = version = "csv"

    def __init__(self, save_dir: str) -> None:
        self.file = Path(save_dir) / "csv" / "metrics.csv"
        self.columns: list[str] = []  # of the file as this process wrote it
        self.hyperparameters: dict[str, Any] = {}
        self.rows: dict[tuple[str, frozenset[str]], dict[str, str]] | None = None

    @property
    def save_dir(self) -> str:
        return str(self.file.parent.parent)

    @property
    def log_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        given = vars(params) if isinstance(params, Namespace) else params
        self.hyperparameters |= {
            str(key): value if isinstance(value, bool | int | float | str | None) else str(value)
            for key, value in given.items()
        }
        self.file.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(self.hyperparameters, sort_keys=False, allow_unicode=True)
        write_atomically(self.file.with_name("hparams.yaml"), text)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self.rows is None:
            self.rows = self._read()
        plain = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row = {"step": str(len(self.rows) if step is None else step), **{name: str(plain[name]) for name in plain}}
        before, self.rows[_key(row)] = self.rows.get(_key(row)), row
        if before is None and {*row} <= {*self.columns}:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(self._lines([row]))
        elif before != row:
            self._write(self.rows)

    def _read(self) -> dict[tuple[str, frozenset[str]], dict[str, str]]:
        """Return the rows of earlier starts, without an incomplete last row."""
        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        rows = [{name: value for name, value in each.items() if name and value} for each in csv.DictReader(lines)]
        return {_key(row): row for row in rows}

    def _write(self, rows: Mapping[Any, Mapping[str, str]]) -> None:
        names = {name for row in rows.values() for name in row} - {"step", "epoch"}
        self.columns = ["step", "epoch", *sorted(names)]
        self.file.parent.mkdir(exist_ok=True)
        write_atomically(self.file, ",".join(self.columns) + "\n" + self._lines(rows.values()))

    def _lines(self, rows: Any) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _key(row: Mapping[str, str]) -> tuple[str, frozenset[str]]:
    return row.get("step", ""), frozenset(row)
