"""Create the run folder of a composed configuration and start its job (imports no torch)."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resnet_lab.command_line import show
from resnet_lab.compatibility import SCHEMA_VERSION, with_older_defaults
from resnet_lab.config import changed_keys, check, config_hash, differences, without_unknown
from resnet_lab.continuation import EPOCHS, refuse_epochs
from resnet_lab.errors import UserError, printable, short
from resnet_lab.hydra_errors import one_line
from resnet_lab.processes import BUSY, DATA_SHOWN, SIGNALS, describe_death
from resnet_lab.run_folder import PATIENCE, REMEDY, Busy, RunFolder, find_runs, flat, jobs_file, real_path, version_of
from resnet_lab.status import state_of
from resnet_lab.supervisor import forks, run_module
from resnet_lab.terminal import clear
from resnet_lab.trust import OPTION

SHOWN: set[str] = set()  # data settings of the jobs of this command that are done


class JobFailed(UserError):
    """A job failed; it has already printed its error."""


def run_in(
    run: RunFolder,
    config: DictConfig,
    overrides: Sequence[str],
    trusted: Sequence[str],
    sweep: bool = False,
    local: bool = False,
    config_dir: str = "",
) -> None:
    """Create a run folder unless it exists, and run its job unless it is done.

    Args:
        run: run folder.
        config: composed configuration.
        overrides: overrides of the command line.
        trusted: trusted names and packages (see `resnet_lab.trust`).
        sweep: whether the job is part of a sweep.
        local: whether the command runs its jobs on this machine; they are forked then (see `resnet_lab.supervisor`).
        config_dir: folder that `--config-dir` named.

    Raises:
        Busy: another process uses the folder.
        UserError: the configuration is wrong, the folder contains a different one, or the job failed.
    """
    check(config)
    refuse_mixture(run, sweep)
    create_run(run, config, overrides, config_dir)
    if config.start and _may_start(run, config.on_failed, sweep):
        stored = run.read_config()
        with described_once(stored["data"]) if sweep and local else nullcontext():
            start(run, trusted, local and forks(stored["trainer"]))
    elif not config.start and run.read_status()["state"] == "created":
        by_hand = _by_hand(short(run.path), trusted)
        show(f"{short(run.path)} is created but not started (start=false); start it with {by_hand}")


def refuse_mixture(run: RunFolder, sweep: bool) -> None:
    """Refuse a folder that would be both a run and a sweep: their runs would be counted together.

    Raises:
        UserError: the folder is already the other kind.
    """
    if sweep and RunFolder(run.path.parent).config_file.is_file():
        raise UserError(f"{run.path.parent} contains a single run; choose another sweep_dir")
    if not sweep and jobs_file(run.path).is_file():
        raise UserError(f"{short(run.path)} contains a sweep; choose another sweep_dir for a single run")
    if not sweep and not run.config_file.is_file() and (other := next(run.path.glob("*/status.json"), None)):
        remedy = f"give the command its own folder, such as sweep_dir={short(run.path / 'NAME')}"
        raise UserError(f"{short(run.path)} contains other runs, such as {other.parent.name}; {remedy}")


@contextmanager
def described_once(settings: dict[str, Any]) -> Iterator[None]:
    """Tell the job that starts inside whether an earlier job of this command has printed the lines on the same data."""
    data = repr(settings)  # keys may be numbers and texts, which json cannot sort
    os.environ[DATA_SHOWN] = "1" if data in SHOWN else ""
    yield
    SHOWN.add(data)  # not after an error: this job may have failed before it printed them


def create_run(run: RunFolder, config: DictConfig, overrides: Sequence[str] = (), config_dir: str = "") -> None:
    """Write the resolved configuration and the first status, unless the folder already has this configuration.

    Args:
        run: run folder.
        config: composed and checked configuration.
        overrides: overrides of the command line.
        config_dir: folder that `--config-dir` named.

    Raises:
        UserError: the folder contains a different configuration, or cannot be written.
        Busy: another process uses the folder.
    """
    _refuse_undecodable(run.path)
    plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    older = _older(run)
    version = older.read_status().get("schema_version", 1) if older else SCHEMA_VERSION
    if older:
        plain = with_older_defaults(plain, older.read_config(), version, _keys_of(overrides))
    changes: dict[str, Any] = {}
    if run.config_file.is_file():
        changes = _accepted(run, plain)
        if not changes and (run.read_status()["state"] == "done" or run.is_locked()):
            _relabel(run, plain["labels"])
            return
    elif (noted := run.read_status().get("config_hash")) and noted != config_hash(plain):
        raise UserError(f"{short(run.path)} lost its config.yaml, which differed from this configuration; {REMEDY}")
    first = {"schema_version": version, "state": "created", "error": None}
    first |= {"seed": plain["seed"], "config_hash": config_hash(plain)}
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock(PATIENCE):  # rewritten, as paths and bookkeeping keys may have changed
            run.write_config(plain)
            changes = changes if run.status_file.is_file() else first
            if config_dir:
                changes |= {"config_dir": config_dir}
            run.update_status(**changes, overrides=list(overrides))
    except OSError as error:
        raise UserError(one_line(error)) from error


def _refuse_undecodable(path: Path) -> None:
    """Refuse a folder whose path cannot be written to a log or a table.

    Raises:
        UserError: the path is not UTF-8.
    """
    shown = str(path.absolute())
    try:
        shown.encode()
    except UnicodeEncodeError:
        named = shown.encode(errors="backslashreplace").decode()
        raise UserError(f"{named}: the path is not UTF-8; choose another sweep_dir or working folder") from None


def _keys_of(overrides: Sequence[str]) -> set[str]:
    return {item.partition("=")[0].lstrip("+~") for item in overrides}


def refuse_mixed_sweep(run: RunFolder, plain: dict[str, Any], overrides: Sequence[str]) -> bool:
    """Return whether a trained job of a sweep is resumed with more epochs; refuse any other difference.

    Refuse a sweep whose configuration has changed since a job was trained: its other jobs would get the new one.

    Args:
        run: a job of the sweep with a finished epoch.
        plain: the configuration that this command gives to the job.
        overrides: overrides of the job.

    Raises:
        UserError: the job was trained with a different configuration, and cannot be resumed with this one.
    """
    before, status = run.read_config(), run.read_status()
    version = status.get("schema_version", 1)
    _refuse_other_root(run, before, plain)
    if version < SCHEMA_VERSION:
        before = without_unknown(before)[0]
        plain = with_older_defaults(plain, run.read_config(), version, _keys_of(overrides))
    changed = changed_keys(before, plain)
    if changed == {EPOCHS}:
        refuse_epochs(run, before, plain)
        return True
    if changed:
        raise _trained_with_other(run, before, plain)
    return False


def refuse_edited(run: RunFolder, now: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a job that gets a value which an edit has changed since another job of its sweep was trained.

    Args:
        run: that other job, created by this version.
        now: the configuration that its overrides give today.
        own: the configuration of the job that is to start.

    Raises:
        UserError: it gets such a value.
    """
    before, now_by_key, own_by_key = run.read_config(), flat(now), flat(own)
    if own["data"].get("root") == now["data"].get("root"):
        _refuse_other_root(run, before, now)
    changed = changed_keys(before, now)
    if any(own_by_key.get(key) == now_by_key.get(key) for key in changed):
        also = "name all jobs in one command, which resumes the trained ones, " if changed == {EPOCHS} else ""
        raise _trained_with_other(run, before, now, also)


def _trained_with_other(run: RunFolder, before: dict[str, Any], now: dict[str, Any], also: str = "") -> UserError:
    return UserError(
        f"{short(run.path)} was trained with a different configuration: {'; '.join(differences(before, now))}; "
        f"no job is started: {also}restore these values, or choose another sweep_dir"
    )


def is_trained(run: RunFolder) -> bool:
    """Return whether a run has a finished epoch; False if its files are damaged."""
    with suppress(UserError, OSError):
        kept = run.last_checkpoint.is_file() or run.best_checkpoint.is_file()
        return (run.read_status()["state"] == "done" or kept) and bool(run.read_config())
    return False


def _relabel(run: RunFolder, labels: dict[str, Any]) -> None:
    """Write the labels of this command into the configuration of a run; they affect only what reports show."""
    if run.read_config()["labels"] != labels and not run.is_locked():
        with run.lock(PATIENCE):
            run.write_config(run.read_config() | {"labels": labels})


def _older(run: RunFolder) -> RunFolder | None:
    """Return the run folder of an older version whose defaults a job uses: its own, or one of the same sweep."""
    if run.config_file.is_file():
        return run
    if not jobs_file(run.path.parent).is_file():
        return None
    for job in (RunFolder(file.parent) for file in sorted(run.path.parent.glob("*/config.yaml"))):
        with suppress(UserError):  # a damaged job must not stop the others
            if job.read_status().get("schema_version", 1) < SCHEMA_VERSION and job.read_config():
                return job
    return None


def _accepted(run: RunFolder, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the changes of status.json that a changed configuration needs; empty if the configuration is the same.

    A run without a finished epoch accepts any configuration. A run with epochs accepts only a larger
    `trainer.max_epochs`, if its schedule is the same up to there.

    Raises:
        UserError: the run does not accept the configuration.
    """
    before, status = run.read_config(), run.read_status()
    if status.get("schema_version", 1) < SCHEMA_VERSION:
        before = without_unknown(before)[0]
    different = "; ".join(differences(before, plain))
    _refuse_other_root(run, before, plain)
    if not different:
        return {}
    changes = {"state": "created", "error": None, "config_hash": config_hash(plain), "seed": plain["seed"]}
    if not is_trained(run) and not run.is_locked():
        show(f"{short(run.path)} has no finished epoch; the new configuration is used ({different})")
        return changes
    if changed_keys(before, plain) == {EPOCHS}:
        refuse_epochs(run, before, plain)
        old, new = (config["trainer"]["max_epochs"] for config in (before, plain))
        if status["state"] == "done" and status["epoch"] + 1 < old:
            stopped = f"{short(run.path)} stopped early, after {status['epoch'] + 1} epochs"
            show(f"{stopped}; trainer.max_epochs={new} changes nothing")
            return changes | {"state": "done"}
        older = sorted(folder.name for folder in run.path.glob("evaluation_*"))
        stale = f"; then evaluate again: {', '.join(older)} will be outdated" if older else ""
        show(f"{short(run.path)}: trainer.max_epochs was {old}, is now {new}: training resumes{stale}")
        return changes | {"state": "interrupted"}
    raise UserError(
        f"{short(run.path)} contains a run with a different configuration: {different}; choose another sweep_dir"
    )


def _refuse_other_root(run: RunFolder, before: dict[str, Any], plain: dict[str, Any]) -> None:
    """Refuse another folder of the data for a job that is done: its stored predictions belong to the first one."""
    roots = [(config.get("data") or {}).get("root") for config in (before, plain)]
    if run.read_status()["state"] == "done" and len({real_path(root) for root in roots}) > 1:
        raise UserError(
            f"{short(run.path)} is done with data.root={roots[0]}; restore this value (a symbolic link there to a "
            "moved folder is enough), or choose another sweep_dir"
        )


def _may_start(run: RunFolder, on_failed: str, sweep: bool) -> bool:
    """Return whether the job is not done and `on_failed` allows it to start; print the reason if not.

    Raises:
        UserError: on_failed=stop, and a job of the sweep has failed.
    """
    status = run.read_status()
    if status["state"] == "done" and not run.has_lost_files(status):
        again = "" if sweep else "; name another sweep_dir to train again"
        show(f"{short(run.path)} is done already{again}")
        return False
    if on_failed == "stop":
        for other in find_runs([run.path.parent]) if sweep else [run]:
            if state_of(other).state == "failed":
                failed = "an earlier attempt" if other.path == run.path else other.path.name
                raise UserError(f"not started because {failed} failed; fix the cause, then rerun with on_failed=retry")
    if on_failed == "skip" and status["state"] == "failed":
        error = printable(str(status["error"]))
        show(f"{run.path.name}: skipped because it failed before (on_failed=skip): {error}")
        return False
    return True


def start(run: RunFolder, trusted: Sequence[str] = (), fork: bool = False) -> None:
    """Run the job in a separate process: its memory is freed at the end, and its crash does not end this process.

    Args:
        run: run folder.
        trusted: trusted names and packages (see `resnet_lab.trust`).
        fork: whether to fork the process, which saves the time of the imports; otherwise it is a new one.

    Raises:
        JobFailed: the job failed and printed its error.
        Busy: another process is running the job.
        UserError: the job exited without an error message, or was stopped.
    """
    version = _version_of_idle(run)
    by_hand = _by_hand(str(run.path), trusted)
    words = [f"{OPTION}{word}" for word in trusted]
    code = run_module("resnet_lab.job", [str(run.path), version, *words], fork)
    if not code and run.read_status()["state"] != "interrupted":
        return
    clear()
    if code == BUSY:
        raise Busy(f"{run.path}: another process is running this job")
    if code > 128 or -code in SIGNALS:
        raise UserError(f"stopped by a signal; resume with {by_hand}")
    with run.lock(PATIENCE):  # refused if another process runs the job and the dead one only waited for the lock
        status = run.read_status()
        if status["state"] == "failed":
            raise JobFailed(status["error"])
        death = describe_death(code) if code else "exited with code 0 before it was done"  # sys.exit in code of users
        run.update_status(state="failed", error=death)
    raise UserError(f"{death}; resume with {by_hand}")


def _by_hand(path: str, trusted: Sequence[str]) -> str:
    """Return the command that starts the job of a run folder."""
    return shlex.join(["python", "-m", "resnet_lab.job", path, *(f"{OPTION}{word}" for word in trusted)])


def _version_of_idle(run: RunFolder) -> str:
    """Return the `version_of` a job that no other process runs.

    Raises:
        Busy: another process runs the job, or ended it during the check.
    """
    before, locked, after = run.read_status(), run.is_locked(), run.read_status()
    changed = any(before.get(key) != after.get(key) for key in ("state", "starts"))
    if changed or (locked and after["state"] == "running"):
        raise Busy(f"{run.path}: another process is running this job")
    return version_of(after)
