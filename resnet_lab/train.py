"""`resnet-lab train [-m] key=value …`: compose the configuration, lay the run folder, start its job (no torch here)."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.command_line import begin
from resnet_lab.compatibility import SCHEMA_VERSION, with_older_defaults
from resnet_lab.config import (
    changed_keys,
    check,
    check_overrides,
    conf_dir,
    config_hash,
    differences,
    one_line,
    register,
    without_unknown,
    words_of_trust,
)
from resnet_lab.continuation import EPOCHS, refuse_epochs
from resnet_lab.errors import UserError, one_line_of, printable
from resnet_lab.processes import (
    BUSY,
    SIGNALS,
    Stopped,
    describe_death,
    run_tied,
    stop_on_signals,
    stop_with_command,
    this_is_the_command,
)
from resnet_lab.run_folder import PATIENCE, Busy, RunFolder, find_runs, jobs_file
from resnet_lab.status import state_of
from resnet_lab.sweep import preflight
from resnet_lab.trust import OPTION, trust, without_trust


class JobFailed(UserError):
    """A job that ended with an error which it has shown itself."""


LAUNCHERS = ("joblib", "submitit")  # packages whose errors mean that a worker died
FAILED: list[RunFolder] = []  # the single run of this process, where it failed
TRUSTED: list[str] = []  # words of trust that the command line gave beside what it names itself

register()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> float | None:
    """One job: returns the best value of the monitored metric to Hydra's sweepers, or NaN where there is none.

    Raises:
        UserError: in a sweep, where a job failed; Hydra goes on with the others and ends with exit code 1.
    """
    stop_with_command()
    hydra_config = HydraConfig.get()
    run, sweep = RunFolder(Path(hydra_config.runtime.output_dir)), hydra_config.mode == RunMode.MULTIRUN
    try:
        check(config)
        _refuse_mixture(run, sweep)
        lay(run, config, list(hydra_config.overrides.task))
        if config.start and _may_start(run, config.on_failed.value, sweep):
            plain: Any = OmegaConf.to_container(config, resolve=True)
            start(run, [*words_of_trust(plain), *TRUSTED])
    except Busy as busy:
        if not sweep:
            FAILED.append(run)
        print(f"{'' if sweep else 'error: '}{busy}", file=sys.stderr, flush=True)
        return math.nan
    except UserError as error:
        # at once: Hydra would show the first failed job only, and that at the end
        if not isinstance(error, JobFailed):
            print(f"error: {f'{run.path.name}: ' if sweep else ''}{one_line_of(error)}", file=sys.stderr, flush=True)
        if sweep:
            raise
        FAILED.append(run)
        return math.nan
    best = run.read_status().get("best_value")
    return math.nan if best is None else best


def _refuse_mixture(run: RunFolder, sweep: bool) -> None:
    """A folder is a run or holds the runs of a sweep; both at once would be counted together.

    Raises:
        UserError: it is the other one already.
    """
    if sweep and RunFolder(run.path.parent).config_file.is_file():
        raise UserError(f"{run.path.parent} is a run of its own; choose another sweep_dir")
    if not sweep and jobs_file(run.path).is_file():
        raise UserError(f"{run.path} holds a sweep; choose another sweep_dir for a single run")


def lay(run: RunFolder, config: DictConfig, asked: Sequence[str] = ()) -> None:
    """Write the resolved configuration and the first status, unless the folder holds this very configuration.

    Args:
        run: the folder.
        config: composed and checked.
        asked: the overrides that the command line gave.

    Raises:
        UserError: it holds another one, or cannot be written.
        Busy: another process is laying it.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    older = _older(run)
    version = older.read_status().get("schema_version", 1) if older else SCHEMA_VERSION
    if older:
        given = {item.partition("=")[0].lstrip("+~") for item in asked}
        plain = with_older_defaults(plain, older.read_config(), version, given)
    mended: dict[str, Any] = {}
    if run.config_file.is_file():
        mended = _accepted(run, plain)
        if not mended and (run.read_status()["state"] == "done" or run.is_locked()):  # that stays written
            return
    first = {"schema_version": version, "state": "created", "error": None}
    first |= {"seed": plain["seed"], "config_hash": config_hash(plain)}
    try:
        with run.lock(PATIENCE):  # paths and bookkeeping may have changed
            run.write_config(plain)
            run.update_status(**(mended if run.status_file.is_file() else first), asked=list(asked))
    except OSError as error:
        raise UserError(one_line(error)) from error


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
                raise UserError(f"not started, as {failed} failed; mend it, and go on with on_failed=retry")
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
        UserError: it died without a word, or was stopped.
    """
    starts = run.read_status().get("starts", 0)
    words = [f"{OPTION}{word}" for word in trusted]
    by_hand = " ".join(["python -m resnet_lab.job", str(run.path), *words])
    code = run_tied([sys.executable, "-m", "resnet_lab.job", str(run.path), str(starts), *words])
    if not code:
        return
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


def checked() -> bool:
    """Whether a sweep may start; if not, it says why."""
    try:
        sys.argv[1:], TRUSTED[:] = without_trust(sys.argv[1:])
        trust(TRUSTED)
        check_overrides(sys.argv[1:])
        return preflight(sys.argv[1:])
    except UserError as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return False


def main() -> int:
    """Run, and turn what a user got wrong into one line.

    Hydra would print several lines for some errors and a traceback for others; with HYDRA_FULL_ERROR it hands them
    over instead.
    """
    begin()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    stop_on_signals()
    this_is_the_command()
    try:
        if not checked():
            return 1
        train()
    except UserError:  # shown when it happened
        return 1
    except Stopped as stopped:
        handed = "; jobs that a cluster has go on until it is told (scancel)" if _hands_over(sys.argv) else ""
        print(f"stopped; the same command with the same sweep_dir goes on{handed}", file=sys.stderr)
        return stopped.code
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if _raised_in(error) in ("hydra", "omegaconf"):  # an override that they do not understand
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 1
        if type(error).__module__.partition(".")[0] not in LAUNCHERS:
            raise
        first = str(error).strip().partition("\n")[0]
        print(f"error: a process of the launcher died ({first}); the same command goes on", file=sys.stderr)
        return 1
    return 1 if FAILED else 0


def _raised_in(error: BaseException) -> str:
    """The top-level package whose code raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _hands_over(arguments: Sequence[str]) -> bool:
    """Whether the jobs of this command line are another machine's."""
    launchers = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    return bool(launchers) and launchers[-1] not in ("basic", "joblib")


if __name__ == "__main__":
    sys.exit(main())
