"""`resnet-lab train [-m] key=value …`: compose a configuration and start its job (imports no torch)."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab import supervisor
from resnet_lab.axes import folder_of, labels_in, texts_of
from resnet_lab.command_line import begin, show
from resnet_lab.config import check_overrides, register, searchpath_of, words_of_trust
from resnet_lab.errors import UserError, one_line_of, printable
from resnet_lab.gpus import place_on_gpu
from resnet_lab.hydra_errors import one_line, with_file
from resnet_lab.launch import SHOWN, JobFailed, run_in
from resnet_lab.processes import (
    Stopped,
    end,
    stop_on_signals,
    stop_with_command,
    this_is_the_command,
)
from resnet_lab.run_folder import Busy, RunFolder, list_jobs
from resnet_lab.schema import conf_dir
from resnet_lab.status import state_of, summary
from resnet_lab.sweep import SWEPT, preflight, refuse_edited_meanwhile
from resnet_lab.trust import OPTION, trust, without_trust
from resnet_lab.verbs import VERBS

LAUNCHERS = ("joblib", "submitit")  # an error from these packages means that a worker died
LOCAL_LAUNCHERS = ("basic", "joblib")
FAILED: list[RunFolder] = []  # runs that this command has started, and that failed
SKIPPED: list[RunFolder] = []  # jobs that another command was running

register()


class Callable(ModuleType):
    """Make this module callable: once imported, it hides the package's function of the same name."""

    def __call__(self, *overrides: str, config_dir: str | Path = "") -> Any:
        """`resnet_lab.train`."""
        from resnet_lab import api  # imports pandas

        return api.train(*overrides, config_dir=config_dir)


sys.modules[__name__].__class__ = Callable


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> float | None:
    """Run one job; return the best value of the monitored metric to Hydra's sweepers, or NaN if there is none.

    Raises:
        UserError: a job failed in a process of a launcher; Hydra runs the others and exits with code 1.
    """
    stop_with_command()
    hydra_config = HydraConfig.get()
    run, sweep = RunFolder(Path(hydra_config.runtime.output_dir)), hydra_config.mode == RunMode.MULTIRUN
    if sweep:
        run = folder_of(run, hydra_config.overrides.task)
    launcher, sweeper = (hydra_config.runtime.choices[f"hydra/{each}"] for each in ("launcher", "sweeper"))
    one_by_one = sweep and launcher == sweeper == "basic"  # Hydra would not start the jobs after one that raises
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        if sweep:
            print_label(run, plain["labels"])
            refuse_edited_meanwhile(run, config)
        local = not sweep or launcher in LOCAL_LAUNCHERS
        if launcher == "joblib" and (line := place_on_gpu(plain["trainer"])):
            show(line)
        config_dir = config_dir_of(hydra_config)
        run_in(run, config, list(hydra_config.overrides.task), words_of_trust(plain), sweep, local, config_dir)
    except Busy as busy:
        (SKIPPED if sweep else FAILED).append(run)
        print(f"{'' if sweep else 'error: '}{busy}", file=sys.stderr, flush=True)
        return math.nan
    except UserError as error:
        # printed now, as Hydra shows only the first failed job, at the end
        if not isinstance(error, JobFailed):
            text = with_file(one_line_of(error), hydra_config.overrides.task, config_dir_of(hydra_config))
            job = f"{run.path.name}: " if sweep and run.path.name not in text else ""
            print(f"error: {job}{text}", file=sys.stderr, flush=True)
        if sweep and not one_by_one:
            raise
        FAILED.append(run)
        return math.nan
    except Exception:
        if not one_by_one:
            raise
        traceback.print_exc()
        FAILED.append(run)
        return math.nan
    best = run.read_status().get("best_value")
    return math.nan if best is None else best


def config_dir_of(hydra_config: Any) -> str:
    """Return the folder of `--config-dir`, relative to the working folder if it is below; empty without the option."""
    named = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    if not named:
        return ""
    path, here = Path(named[0]), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_label(run: RunFolder, labels: dict[str, Any]) -> None:
    """Print number and label of the job that starts."""
    names = list_jobs(run.path.parent)
    place = f"job {names.index(run.path.name) + 1} of {len(names)}" if run.path.name in names else "job"
    shown = labels_in(run.path.parent, texts_of(labels)).get(run.path.name, run.path.name)
    show(printable(f"{place}: {shown}"))


def checked(given: Namespace, forks: bool) -> bool:
    """Return whether the command may start; print the error if not. `forks`: whether its jobs may be forked."""
    try:
        sys.argv[1:], trusted = without_trust(sys.argv[1:])
        trust(trusted)
        check_overrides(sys.argv[1:])
        paths = [word for word in given.overrides if word.lstrip("+").startswith("hydra.searchpath=")]
        if given.config_dir and paths:
            raise UserError(f"{paths[0]}: --config-dir names a folder, too; put all your YAML files into one of them")
        if forks:
            supervisor.begin()  # it imports while the jobs are composed
        return preflight(sys.argv[1:], trusted, forks)
    except UserError as error:
        print(f"error: {with_file(one_line_of(error), given.overrides, given.config_dir or '')}", file=sys.stderr)
        return False


def arguments_of_hydra(given: Namespace) -> list[str]:
    """Return a parsed command line with the overrides first and the flags last; Hydra refuses any other order."""
    trusted = [f"{OPTION}{word}" for word in given.trust]
    flags = {f"--{name.replace('_', '-')}": value for name, value in vars(given).items() if value}
    typed = [flag if value is True else f"{flag}={value}" for flag, value in flags.items()]
    return [*given.overrides, *trusted, *(flag for flag in typed if not flag.startswith(("--overrides=", "--trust=")))]


def main() -> int:
    """Run the command; print a summary at the end of a sweep."""
    began, words = time.monotonic(), sys.argv[1:]
    SWEPT.clear()
    FAILED.clear()
    SKIPPED.clear()
    SHOWN.clear()
    try:
        code = run_command()
    finally:
        supervisor.close()
    for sweep_dir, names in SWEPT.items():
        with suppress(UserError, OSError):  # the folder is empty or unreadable; an error has been printed
            show(printable(summary(sweep_dir, words, time.monotonic() - began, names)))
    return code or int(any(state_of(run).state == "interrupted" for run in SKIPPED))  # the other command has ended


def run_command() -> int:
    """Compose the configuration, run its jobs, and print one line for a user's error.

    The exit code is 2 if the command is refused before a job starts, and 1 if a job failed or was not started. Hydra
    prints several lines for some errors and a traceback for others; with HYDRA_FULL_ERROR it raises them.
    """
    begin()
    try:
        given = VERBS["train"]().read(sys.argv[1:])
        sys.argv[1:] = arguments_of_hydra(given)
    except UserError as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return 2
    os.environ["HYDRA_FULL_ERROR"] = "1"
    stop_on_signals()
    this_is_the_command()
    try:
        if not checked(given, forks=supervisor.serves(given)):
            return 2
        train()
    except UserError:  # already printed
        return 1
    except Stopped as stopped:
        handed = "; jobs on the cluster keep running: cancel them with scancel" if _hands_over(sys.argv) else ""
        start = "\n" if sys.stderr.isatty() else ""  # after ^C
        print(f"{start}stopped; resume with the same command and the same sweep_dir{handed}", file=sys.stderr)
        if not handed:
            wait_for_workers()
        return stopped.code
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        overrides = [*given.overrides, *searchpath_of(given.config_dir or "")]
        text = with_file(one_line(error, overrides), given.overrides, given.config_dir or "")
        print(f"error: {text}", file=sys.stderr)
        of_disk = isinstance(error, OSError) and not isinstance(error, HydraException)
        return 1 if of_disk else 2  # a disk may fail after jobs have started
    except Exception as error:
        if _raised_in(error) in ("hydra", "omegaconf"):  # an override that they cannot parse
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        if type(error).__module__.partition(".")[0] not in LAUNCHERS:
            raise
        first = str(error).strip().partition("\n")[0]
        print(f"error: a process of the launcher died ({first}); resume with the same command", file=sys.stderr)
        return 1
    return 1 if FAILED else 0


def wait_for_workers(seconds: float = 3.0) -> None:
    """Wait until no job of this sweep runs, as workers of joblib end after the command's signal; at most `seconds`."""
    jobs = [RunFolder(sweep_dir / name) for sweep_dir, names in SWEPT.items() for name in names]
    until = time.monotonic() + seconds
    with suppress(OSError):
        while any(job.is_locked() for job in jobs) and time.monotonic() < until:
            time.sleep(0.05)


def _raised_in(error: BaseException) -> str:
    """Return the top-level package whose code raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _hands_over(arguments: Sequence[str]) -> bool:
    """Return whether the launcher submits the jobs to a cluster."""
    launchers = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra/launcher=")]
    return bool(launchers) and launchers[-1] not in ("basic", "joblib")


if __name__ == "__main__":
    end(main())
