"""`python -m resnet_lab.job RUN_DIR`: start or resume the job of a run folder (imports no Hydra)."""

from __future__ import annotations

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from resnet_lab.command_line import begin
from resnet_lab.errors import UserError, count, one_line_of
from resnet_lab.processes import BUSY, GRACE, Stopped, stop_on_signals, stop_with_parent
from resnet_lab.quick_imports import quick_imports
from resnet_lab.ranks import is_alone, repeat_failure, stop_with_ranks
from resnet_lab.run_folder import PATIENCE, Busy, RunFolder, find_runs, version_of
from resnet_lab.trust import trust, warn_of_unused
from resnet_lab.verbs import job


def main() -> int:
    """Lock the run folder, run its job, store the outcome in status.json, and return the exit code."""
    begin()
    try:
        given = job().read(sys.argv[1:])
    except UserError as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return 2
    run = RunFolder(Path(given.RUN_DIR).resolve())
    stop_on_signals()
    try:
        trust(given.trust)
        refuse_several(run)
        config = run.read_config()
        with run.lock(PATIENCE) if is_alone() else nullcontext():  # status shows that the job is starting
            return run_job(run, config, given)
    except Stopped as stopped:
        return stopped.code
    except UserError as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return BUSY if isinstance(error, Busy) else 1
    except OSError as error:  # of the lock, the log or the status; errors of the job itself are in status.json
        print(f"error: {error.filename or run.path}: {error.strerror}; make the run folder writable", file=sys.stderr)
        return 1


def refuse_several(run: RunFolder) -> None:
    """Refuse a folder that is not a run but contains runs, and name one that is not done.

    Raises:
        UserError: it contains runs.
    """
    if run.config_file.is_file():
        return
    try:
        inside = find_runs([run.path])
    except UserError:  # it contains none, which the configuration's error says
        return
    undone = [shlex.quote(str(each.path)) for each in inside if each.read_status()["state"] != "done"]
    contains = f"{run.path} is not a run but contains {count(len(inside), 'run')}"
    if not undone:
        raise UserError(f"{contains}, and all are done")
    more = f" (or another one of the {len(undone)} that are not done)" if len(undone) > 1 else ""
    raise UserError(f"{contains}; start one of them: python -m resnet_lab.job {undone[0]}{more}")


def run_job(run: RunFolder, config: Mapping[str, Any], given: Namespace) -> int:
    """Import PyTorch, run the job, and return the exit code; the only process of a job holds the lock already."""
    alone = is_alone()
    if os.environ.get("LOCAL_RANK", "0") == "0" and "torch" not in sys.modules:
        print(f"{time.strftime('%H:%M:%S')}  loading PyTorch", flush=True)
    try:
        with quick_imports():
            from resnet_lab.build import rank, set_up_logging
            from resnet_lab.config import words_of_trust
            from resnet_lab.environment import keep_freed_memory
            from resnet_lab.training import guarded
    except Exception as error:  # out of memory, or a broken package
        return not_imported(run, error, alone)
    keep_freed_memory()
    stop_with_parent(GRACE if rank() == 0 else GRACE / 6)
    stop_with_ranks(run)
    if rank() > 0:  # the first rank holds the lock
        set_up_logging()
        code = guarded(run)
        if code:
            repeat_failure(run)
        return code
    warn_of_unused(given.trust, words_of_trust(config))
    with nullcontext() if alone else run.lock(PATIENCE):
        now = version_of(run.read_status())
        if given.version not in (None, now, now.partition("-")[0]):  # that which the launcher decided to start
            changed = "another command started this job, or changed its configuration, in the meantime"
            raise Busy(f"{run.path}: {changed}; run this command again")
        return guarded(run)


def not_imported(run: RunFolder, error: Exception, alone: bool) -> int:
    """Report that an import failed, store it in status.json unless another process runs the job, and return 1.

    Args:
        run: run folder.
        error: the error of the import.
        alone: whether this process holds the lock.
    """
    reason = f"{type(error).__name__}: {one_line_of(error)}"
    message = f"cannot import the packages of a job ({reason}); check the memory limit (ulimit -v)"
    if (alone or not run.is_locked()) and run.read_status()["state"] != "done":
        run.update_status(state="failed", error=message)
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
