"""The terminal during a command: the progress line, and log lines above it."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from resnet_lab import terminal
from resnet_lab.callbacks import ProgressLine
from resnet_lab.data import progress
from resnet_lab.data.progress import with_progress
from resnet_lab.terminal import CLEAR, Lines, Progress, duration, folded, left, line_of, wrapped

PARTS = ["epoch 12/40", "12 min left", "loss 0.512", "qwk 0.612, best 0.634", "312 images/s"]


class Screen(io.StringIO):
    """Terminal that stores its output."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    ends = pty.openpty()
    shown = Screen(ends[1])
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=shown))
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    yield shown
    for end in ends:
        os.close(end)


def test_long_lines_of_a_report_are_broken_at_spaces() -> None:
    text = f"few images: {'five words of a finding ' * 6}\n{'/a/path' * 20}\n  9   0.1   0.2"
    first, *others = wrapped(text, 80).splitlines()
    assert len(first) <= 80
    assert others[0].startswith("  ")
    assert others[-2:] == ["/a/path" * 20, "  9   0.1   0.2"]


def test_a_long_log_line_is_folded_between_its_parts() -> None:
    parts = [f"train/score_{number} 0.1234" for number in range(5)]
    text = folded("12:00:00  " + "  ".join(parts), 60)
    assert text.splitlines() == [
        f"12:00:00  {parts[0]}  {parts[1]}",
        f"          {parts[2]}  {parts[3]}",
        f"          {parts[4]}",
    ]
    assert folded("12:00:00  short  line", 60) == "12:00:00  short  line"
    assert folded(f"12:00:00  {'a sentence ' * 9}", 60) == f"12:00:00  {'a sentence ' * 9}"


def test_a_line_has_as_many_parts_as_fit_in_order() -> None:
    assert line_of(0.45, PARTS, 80) == (
        "epoch 12/40   45%  12 min left  loss 0.512  qwk 0.612, best 0.634  312 images/s"
    )
    shown = "epoch 12/40  [####.....]   45%  12 min left  loss 0.512  qwk 0.612, best 0.634"
    assert line_of(0.45, PARTS, 79) == shown
    assert "[##########..............]" in line_of(0.45, PARTS, 200)
    assert line_of(0.45, PARTS, 6) == "epoch"


def test_no_line_breaks() -> None:
    for columns in range(2, 130):
        for share in (0, 0.333, 1, 1.2):
            assert len(line_of(share, PARTS, columns)) < columns


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.04, "5.04 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7500, "2 h 05 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_that_is_left_is_never_negative_and_has_no_fraction() -> None:
    assert [left(seconds) for seconds in (-3, 4.4, 7500)] == ["0 s left", "4 s left", "2 h 05 min left"]


def test_a_log_line_replaces_the_progress_line_only_in_a_terminal(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = logging.LogRecord("", logging.INFO, "", 0, "epoch 1", (), None)
    assert Lines().format(record) == f"{CLEAR}epoch 1"
    monkeypatch.setenv("TERM", "dumb")
    assert Lines().format(record) == "epoch 1"
    assert not Progress().is_due()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(screen, "isatty", lambda: False)
    assert Lines().format(record) == "epoch 1"
    assert not Progress().is_due()


def test_one_of_several_processes_draws(screen: Screen) -> None:
    first, second = Progress(), Progress()
    assert first.is_due()
    assert not second.is_due()
    first.draw(0.5, ["half"])
    first.close()
    assert screen.getvalue().startswith("\rhalf")
    assert screen.getvalue().endswith(CLEAR)
    assert second.is_due()
    other = "import sys; from resnet_lab.terminal import Progress; sys.exit(Progress().is_due())"
    command = [sys.executable, "-c", other]
    assert subprocess.run(command, stdout=screen.descriptor, check=False).returncode == 0
    second.close()
    assert subprocess.run(command, stdout=screen.descriptor, check=False).returncode == 1


def test_a_phase_is_drawn_in_a_terminal_and_its_line_is_removed(
    screen: Screen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST", "LOG_EVERY"):  # nevertheless, the log has only the last line
        monkeypatch.setattr(progress, name, 0.0)
    monkeypatch.setattr(progress, "SPEED_AFTER", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(with_progress("abc", 250, "read", 100, unit="files")) == ["a", "b", "c"]
    assert "read 100 of 250" in screen.getvalue()
    assert "files/s" in screen.getvalue()
    assert screen.getvalue().endswith(CLEAR)
    assert [line.partition(",")[0] for line in caplog.messages] == ["read 250 of 250"]
    phase = with_progress("abc", 3, "read")
    next(phase)
    phase.close()
    assert Progress().is_due()


def test_training_shows_epoch_time_loss_metric_and_speed(screen: Screen) -> None:
    best = SimpleNamespace(monitor="val/qwk", best_model_score=torch.tensor(0.634))
    line, trainer = (
        ProgressLine(best),
        SimpleNamespace(  # type: ignore[arg-type]
            current_epoch=2, max_epochs=40, world_size=1, callback_metrics={"val/qwk": torch.tensor(0.612)}
        ),
    )
    trainer.num_training_batches, trainer.state = 4, SimpleNamespace(fn="fit")
    trainer.num_val_batches, trainer.is_global_zero = [2], True
    line.setup(trainer, None, "fit")  # type: ignore[arg-type]
    batch = {"image": torch.zeros(8, 1)}
    line.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert "epoch 3/40" in screen.getvalue()
    for number in range(2):
        line.on_train_batch_end(trainer, None, {"loss": torch.tensor(0.5)}, batch, number)  # type: ignore[arg-type]
    last = screen.getvalue().rpartition("\r")[2]
    assert all(each in last for each in ("epoch 3/40", " 50%", "left", "loss 0.5", "qwk 0.612, best 0.634", "images/s"))
    line.on_validation_batch_end(trainer, None, None, batch, 0, 0)  # type: ignore[arg-type]
    assert "epoch 3/40, validating" in screen.getvalue().rpartition("\r")[2]
    line.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    assert screen.getvalue().endswith(CLEAR)


def test_a_test_shows_the_time_that_is_left(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("resnet_lab.callbacks.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "is_due", lambda _: True)
    line, trainer = ProgressLine(), SimpleNamespace(state=SimpleNamespace(fn="test"), num_test_batches=[4, 5])
    trainer.world_size, trainer.is_global_zero = 1, True
    line.setup(trainer, None, "test")  # type: ignore[arg-type]
    batch = {"image": torch.zeros(8, 1)}
    for number in range(3):
        line.on_test_batch_end(trainer, None, None, batch, number, 0)  # type: ignore[arg-type]
        now[0] += 6
    last = screen.getvalue().rpartition("\r")[2]
    assert all(each in last for each in ("testing", " 75%", "4 s left", " 1 images/s"))  # 16 images in 12 s
    line.on_test_batch_end(trainer, None, None, batch, 0, 1)  # type: ignore[arg-type]
    assert " 20%" in screen.getvalue().rpartition("\r")[2]  # of the other split


def test_a_closed_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert not terminal.is_terminal()
    terminal.clear()
