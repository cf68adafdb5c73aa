"""The surroundings of a verb: terminals without UTF-8, users without a home folder, and Ctrl-C."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

import resnet_lab.train as train
from resnet_lab.command_line import begin, run_command
from resnet_lab.run_folder import RunFolder


def test_characters_that_a_terminal_lacks_are_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    begin()
    print("“é” ✓", flush=True)
    assert written.getvalue() == "?é? ?\n".encode("latin-1")


def test_without_a_home_folder_caches_go_to_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # no passwd entry
    monkeypatch.delenv("HOME")
    begin()
    home = tmp_path / f"resnet_lab_{os.getuid()}"
    assert home.stat().st_mode & 0o777 == 0o700
    assert Path("~/x").expanduser() == home / "x"
    assert str(home) in capsys.readouterr().err


def test_an_existing_home_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    begin()
    assert os.environ["HOME"] == str(tmp_path)


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["verb"])

    def stopped(_: list[str]) -> None:
        raise KeyboardInterrupt

    assert run_command(stopped) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_that_exits_stops_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `resnet-lab train -m … | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        run = RunFolder(tmp_path / "seed=1")
        train.print_label(run, {})
        train.print_label(run, {})
        assert os.fstat(writer).st_rdev == Path(os.devnull).stat().st_rdev
