"""`resnet-lab train [-m] key=value …`: compose the configuration, lay the run folder, start its job (no torch here)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config import check, conf_dir, config_hash, register
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder

register()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> float | None:
    """One job: returns the best value of the monitored metric to Hydra's sweepers.

    Raises:
        UserError: the configuration is wrong, the folder belongs to another one, or the job failed.
    """
    run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    try:
        check(config)
        lay(run, config)
        start(run)
    except UserError as error:
        # Hydra would show the first failed job only, and at the end of the sweep
        if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
            print(f"error: {run.path.name}: {error}", file=sys.stderr, flush=True)
        raise
    return run.read_status().get("best_value")


def lay(run: RunFolder, config: DictConfig) -> None:
    """Write the resolved configuration and the first status, unless the folder holds this very configuration."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if run.config_file.is_file():
        if config_hash(run.read_config()) != config_hash(plain):
            raise UserError(f"{run.path} holds a run of another configuration; choose another sweep_dir")
        return
    run.config_file.write_text(text, encoding="utf-8")
    run.update_status(state="created", error=None, seed=plain["seed"], config_hash=config_hash(plain))


def start(run: RunFolder) -> None:
    """Run the job in a process of its own, so that its memory and its crashes stay its own."""
    code = subprocess.run([sys.executable, "-m", "resnet_lab.job", str(run.path)], check=False).returncode
    if code:
        status = run.read_status()
        died = f"the job died with exit code {code}; start it again with python -m resnet_lab.job {run.path}"
        raise UserError(status["error"] if status["state"] == "failed" else died)


def one_line(error: Exception) -> str:
    """The message of a Hydra, OmegaConf or operating-system error without its line breaks."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))


def main() -> int:
    """Run, and turn what a user got wrong into one line.

    Hydra would print several lines for some errors and a traceback for others; with HYDRA_FULL_ERROR it hands them
    over instead.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        train()
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
