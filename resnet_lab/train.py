"""`resnet-lab train [-m] key=value …`: compose the configuration, lay the run folder, start its job (no torch here)."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config import check, conf_dir, config_hash, one_line, register
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder
from resnet_lab.sweep import preflight


class JobFailed(UserError):
    """A job that ended with an error which it has shown itself."""


FAILED: list[RunFolder] = []  # the single run of this process, where it failed

register()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> float | None:
    """One job: returns the best value of the monitored metric to Hydra's sweepers, or NaN for a single run that failed.

    Raises:
        UserError: in a sweep, where a job failed; Hydra goes on with the others and ends with exit code 1.
    """
    hydra_config = HydraConfig.get()
    run = RunFolder(Path(hydra_config.runtime.output_dir))
    try:
        check(config)
        lay(run, config)
        start(run)
    except UserError as error:
        sweep = hydra_config.mode == RunMode.MULTIRUN
        # at once: Hydra would show the first failed job only, and that at the end
        if not isinstance(error, JobFailed):
            print(f"error: {f'{run.path.name}: ' if sweep else ''}{error}", file=sys.stderr, flush=True)
        if sweep:
            raise
        FAILED.append(run)
        return math.nan
    return run.read_status().get("best_value")


def lay(run: RunFolder, config: DictConfig) -> None:
    """Write the resolved configuration and the first status, unless the folder holds this very configuration."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if run.config_file.is_file():
        before = run.read_config()
        if config_hash(before) != config_hash(plain):
            raise UserError(f"{run.path} holds a run of another configuration; choose another sweep_dir")
        if before["data"].get("root") != plain["data"].get("root") and run.read_status()["state"] == "done":
            raise UserError(f"{run.path} is done with data.root={before['data']['root']}; choose another sweep_dir")
        if run.read_status()["state"] == "done":  # what it was done with stays written
            return
        with run.lock():  # paths and bookkeeping may have changed; the file is rewritten in place, as it is the lock
            run.config_file.write_text(text, encoding="utf-8")
        return
    run.config_file.write_text(text, encoding="utf-8")
    run.update_status(state="created", error=None, seed=plain["seed"], config_hash=config_hash(plain))


def start(run: RunFolder) -> None:
    """Run the job in a process of its own, so that its memory and its crashes stay its own.

    Raises:
        JobFailed: it failed, and has shown why.
        UserError: it died without a word.
    """
    code = subprocess.run([sys.executable, "-m", "resnet_lab.job", str(run.path)], check=False).returncode
    if code and run.read_status()["state"] == "failed":
        raise JobFailed(run.read_status()["error"])
    if code:
        raise UserError(f"the job died with exit code {code}; go on with python -m resnet_lab.job {run.path}")


def checked() -> bool:
    """Whether a sweep may start; if not, it says why."""
    try:
        return preflight(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return False


def main() -> int:
    """Run, and turn what a user got wrong into one line.

    Hydra would print several lines for some errors and a traceback for others; with HYDRA_FULL_ERROR it hands them
    over instead.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if not checked():
            return 1
        train()
    except UserError:  # shown when it happened
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with the same sweep_dir goes on", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
