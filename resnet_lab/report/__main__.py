"""`resnet-lab report DIR… [metric=NAME] [out=DIR] [figures=NAME,…] [groups=WORDS,…] [--check]`: compare runs."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from resnet_lab.command_line import log_to, run_command
from resnet_lab.data import progress
from resnet_lab.errors import UserError, count, printable
from resnet_lab.files import write_atomically
from resnet_lab.outputs import for_spreadsheets
from resnet_lab.processes import end
from resnet_lab.rendering import Finding
from resnet_lab.report.figures import CURVES, PICTURES, check_name
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.page import page, pictures_of
from resnet_lab.report.runs import read_runs
from resnet_lab.report.summaries import markdown, summary, text_table
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import closed_folders
from resnet_lab.terminal import is_terminal, wrapped
from resnet_lab.verbs import VERBS

UNCHECKED = "not checked: settings, patients, scores of training images, lost or unselected epochs, and copied runs"


def report(
    folders: Sequence[str],
    out: Path,
    figures: Sequence[str] = (),
    metric: str = "",
    groups: Sequence[str] = (),
    fork: bool = False,
) -> str:
    """Write the report on all runs at or below `folders` to `out`; return the text for the terminal.

    Args:
        folders: run folders, or folders that contain run folders.
        out: folder of the report, created if missing.
        figures: names of pictures; empty: those in the runs' configurations.
        metric: ranks the groups; empty: QWK for grades, otherwise accuracy.
        groups: words in labels; pictures show these groups besides the best.
        fork: whether another process may share the work (see `processes.in_background`).

    Raises:
        UserError: a folder does not exist or contains no run, no run has the metric, no picture has a name of
            `figures`, or `out` cannot be written.
    """
    for name in figures:
        check_name(name)
    closed = closed_folders(folders)
    runs = read_runs(folders, closed, fork)
    tables = tables_of(runs, metric, groups, fork)
    findings = [Finding("unreadable", f"{folder}: no permission to read it") for folder in closed]
    try:
        pictures = _empty_folder(out)
        for table in tables:
            _ = table.estimates  # before the fork, as both processes need them
        drawn = pictures_of(tables, pictures, figures, fork)
        findings += findings_of(runs, tables)
        write_atomically(out / "report.html", page(runs, tables, findings, drawn))
        write_atomically(out / "summary.csv", for_spreadsheets(summary(tables)).to_csv(index=False))
        write_atomically(out / "summary.md", markdown(tables, findings))
    except OSError as error:
        file = Path(str(error.filename))
        if any(run.folder.path in file.parents for run in runs):
            raise UserError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
        raise UserError(f"out={out} cannot be written ({error.strerror}); choose another folder") from error
    lines = [f"{finding.kind}: {finding}" for finding in findings]
    lines += [f"\n{text_table(table)}" for table in tables]
    files = [out / name for name in ("report.html", "summary.csv", "summary.md")]
    return "\n".join([*lines, "", *map(str, [*files, *sorted((out / "report_figures").glob("*.png"))])])


def _empty_folder(out: Path) -> Path:
    """Return the folder of a report's pictures, without those of an earlier report."""
    folder = out / "report_figures"
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link to another folder; remove the link, or choose another out=")
    folder.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"({'|'.join((*CURVES, *PICTURES))})(_\d{{1,2}})?(_table\d{{1,2}})?\.png")
    for stale in folder.glob("*.png"):
        if ours.fullmatch(stale.name):
            stale.unlink(missing_ok=True)
    return folder


def check(folders: Sequence[str], fork: bool = False) -> None:
    """Print every stored number that does not follow from the predictions; `fork` as in `report`.

    Raises:
        SystemExit: with code 1 if a number differs or cannot be checked.
    """
    closed = closed_folders(folders)
    runs = read_runs(folders, closed, fork)
    lines = [*differences_of(runs), *(f"{folder}: cannot be checked: no permission to read it" for folder in closed)]
    done = count(sum(run.state == "done" for run in runs), "finished run")
    print(printable("\n".join(lines)) or f"all stored metrics of {done} follow from their predictions\n{UNCHECKED}")
    if lines:
        sys.exit(1)


def command(arguments: Sequence[str], fork: bool = False) -> None:
    """Report on the folders; `out` defaults to the first of them, `fork` as in `report`."""
    given = VERBS["report"]().read(arguments)
    lines = logging.StreamHandler(sys.stderr)  # standard output has the result alone
    lines.addFilter(logging.Filter(progress.__name__))
    log_to([lines])
    if given.check:
        if options := [key for key in ("metric", "out", "figures", "groups") if vars(given)[key] is not None]:
            raise UserError(f"--check writes no report, so {options[0]}= has no effect; leave it out")
        check(given.DIR, fork)
        return
    figures, groups = ([name for name in (each or "").split(",") if name] for each in (given.figures, given.groups))
    text = printable(report(given.DIR, Path(given.out or given.DIR[0]), figures, given.metric or "", groups, fork))
    print(wrapped(text, shutil.get_terminal_size().columns) if is_terminal() else text)


if __name__ == "__main__":
    end(run_command(partial(command, fork=True)))
