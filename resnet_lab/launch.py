"""A composed configuration becomes a run folder, whose job is started (no torch here)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resnet_lab.compatibility import SCHEMA_VERSION, with_older_defaults
from resnet_lab.config import changed_keys, check, config_hash, differences, one_line, without_unknown
from resnet_lab.continuation import EPOCHS, refuse_epochs
from resnet_lab.errors import UserError, printable
from resnet_lab.processes import BUSY, SIGNALS, describe_death, run_tied
from resnet_lab.run_folder import PATIENCE, Busy, RunFolder, find_runs, jobs_file
from resnet_lab.status import state_of
from resnet_lab.terminal import clear
from resnet_lab.trust import OPTION


class JobFailed(UserError):
    """A job that ended with an error which it has shown itself."""


def run_in(
    run: RunFolder, config: DictConfig, overrides: Sequence[str], trusted: Sequence[str], sweep: bool = False
) -> None:
    """Create a run folder, or find it, and run its job unless it is done.

    Args:
        run: the folder.
        config: composed.
        overrides: the overrides that the user gave.
        trusted: words of trust (see `resnet_lab.trust`).
        sweep: whether it is a job of a sweep.

    Raises:
        Busy: another process is at work in the folder.
        UserError: the configuration is wrong, the folder holds another one, or the job failed.
    """
    check(config)
    _refuse_mixture(run, sweep)
    create_run(run, config, overrides)
    if config.start and _may_start(run, config.on_failed, sweep):
        start(run, trusted)


def _refuse_mixture(run: RunFolder, sweep: bool) -> None:
    """A folder is a run or holds the runs of a sweep; both at once would be counted together.

    Raises:
        UserError: it is the other one already.
    """
    if sweep and RunFolder(run.path.parent).config_file.is_file():
        raise UserError(f"{run.path.parent} is a run of its own; choose another sweep_dir")
    if not sweep and jobs_file(run.path).is_file():
        raise UserError(f"{run.path} holds a sweep; choose another sweep_dir for a single run")


def create_run(run: RunFolder, config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Write the resolved configuration and the first status, unless the folder holds this very configuration.

    Args:
        run: the folder.
        config: composed and checked.
        overrides: the overrides that the command line gave.

    Raises:
        UserError: it holds another one, or cannot be written.
        Busy: another process is laying it.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    older = _older(run)
    version = older.read_status().get("schema_version", 1) if older else SCHEMA_VERSION
    if older:
        given = {item.partition("=")[0].lstrip("+~") for item in overrides}
        plain = with_older_defaults(plain, older.read_config(), version, given)
    mended: dict[str, Any] = {}
    if run.config_file.is_file():
        mended = _accepted(run, plain)
        if not mended and (run.read_status()["state"] == "done" or run.is_locked()):  # that stays written
            _relabel(run, plain["labels"])
            return
    first = {"schema_version": version, "state": "created", "error": None}
    first |= {"seed": plain["seed"], "config_hash": config_hash(plain)}
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock(PATIENCE):  # paths and bookkeeping may have changed
            run.write_config(plain)
            run.update_status(**(mended if run.status_file.is_file() else first), overrides=list(overrides))
    except OSError as error:
        raise UserError(one_line(error)) from error


def _relabel(run: RunFolder, labels: dict[str, Any]) -> None:
    """Give a run that is done the labels of this command, which people alone read."""
    if run.read_config()["labels"] != labels and not run.is_locked():
        with run.lock(PATIENCE):
            run.write_config(run.read_config() | {"labels": labels})


def _older(run: RunFolder) -> RunFolder | None:
    """The run folder whose defaults a job takes where an older version created it: its own, or one of its sweep."""
    if run.config_file.is_file():
        return run
    if not jobs_file(run.path.parent).is_file():
        return None
    jobs = [RunFolder(file.parent) for file in run.path.parent.glob("*/config.yaml")]
    return next((job for job in jobs if job.read_status().get("schema_version", 1) < SCHEMA_VERSION), None)


def _accepted(run: RunFolder, plain: dict[str, Any]) -> dict[str, Any]:
    """The changes of status.json where a folder takes another configuration; empty where it has this very one.

    A folder without an epoch takes any; one with epochs takes more of them, where its schedule is the same up to there.

    Raises:
        UserError: the configuration is another one.
    """
    before, status = run.read_config(), run.read_status()
    if status.get("schema_version", 1) < SCHEMA_VERSION:
        before = without_unknown(before)[0]
    different = "; ".join(differences(before, plain))
    roots = [config["data"].get("root") for config in (before, plain)]
    trained = run.last_checkpoint.is_file() or run.best_checkpoint.is_file() or status["state"] == "done"
    if status["state"] == "done" and len({_place(root) for root in roots}) > 1:
        raise UserError(f"{run.path} is done with data.root={roots[0]}; choose another sweep_dir")
    if not different:
        return {}
    mended = {"state": "created", "error": None, "config_hash": config_hash(plain), "seed": plain["seed"]}
    if not trained and not run.is_locked():
        print(f"{run.path} holds no epoch yet, and takes the new configuration ({different})", flush=True)
        return mended
    if changed_keys(before, plain) == {EPOCHS}:
        refuse_epochs(run, before, plain)
        old, new = (config["trainer"]["max_epochs"] for config in (before, plain))
        if status["state"] == "done" and status["epoch"] + 1 < old:
            print(f"{run.path} stopped early, after {status['epoch'] + 1} epochs; {new} change nothing", flush=True)
            return mended | {"state": "done"}
        return mended | {"state": "interrupted"}
    raise UserError(f"{run.path} holds a run of another configuration: {different}; choose another sweep_dir")


def _place(root: str | None) -> str | None:
    """A folder, however it is typed."""
    return None if root is None else os.path.realpath(Path(str(root)).expanduser())


def _may_start(run: RunFolder, on_failed: str, sweep: bool) -> bool:
    """Whether the job is still to be done, and `on_failed` lets it start; says why not.

    Raises:
        UserError: on_failed=stop, and a job of the sweep has failed.
    """
    status = run.read_status()
    if status["state"] == "done":
        print(f"{run.path} is done", flush=True)
        return False
    if on_failed == "stop":
        for other in find_runs([run.path.parent]) if sweep else [run]:
            if state_of(other).state == "failed":
                failed = "it" if other.path == run.path else other.path.name
                raise UserError(f"not started, as {failed} failed; fix the cause, then rerun with on_failed=retry")
    if on_failed == "skip" and status["state"] == "failed":
        print(f"{run.path.name}: left as it is (on_failed=skip): {printable(str(status['error']))}", flush=True)
        return False
    return True


def start(run: RunFolder, trusted: Sequence[str] = ()) -> None:
    """Run the job in a process of its own, so that its memory and its crashes stay its own.

    Args:
        run: its folder.
        trusted: words of trust (see `resnet_lab.trust`).

    Raises:
        JobFailed: it failed, and has shown why.
        Busy: another process is running it.
        UserError: it exited without an error message, or was stopped.
    """
    starts = run.read_status().get("starts", 0)
    words = [f"{OPTION}{word}" for word in trusted]
    by_hand = " ".join(["python -m resnet_lab.job", str(run.path), *words])
    code = run_tied([sys.executable, "-m", "resnet_lab.job", str(run.path), str(starts), *words])
    if not code:
        return
    clear()
    if code == BUSY:
        raise Busy(f"{run.path} is run by another process, and left to it")
    if code > 128 or -code in SIGNALS:
        raise UserError(f"stopped by a signal; go on with {by_hand}")
    with run.lock(PATIENCE):  # or it is at work elsewhere, and what died had only waited for it
        status = run.read_status()
        if status["state"] == "failed":
            raise JobFailed(status["error"])
        run.update_status(state="failed", error=describe_death(code))
    raise UserError(f"{describe_death(code)}; go on with {by_hand}")
