"""A run with epochs goes on to more of them, also as a job of a sweep (no torch here)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_lab.compatibility import SCHEMA_VERSION, with_older_defaults
from resnet_lab.config import changed_keys
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder

EPOCHS = "trainer.max_epochs"
UNENDING = ("resnet_lab.optim.constant", "resnet_lab.optim.plateau")  # schedules that do not depend on max_epochs


def refuse_epochs(run: RunFolder, before: dict[str, Any], plain: dict[str, Any]) -> None:
    """Stop where a run cannot go on to another number of epochs.

    Raises:
        UserError: there are fewer of them, the schedule is another one from the start, or its last checkpoint is gone.
    """
    old, new = (config["trainer"]["max_epochs"] for config in (before, plain))
    schedule = plain["schedule"]["_target_"]
    if run.is_locked():
        reason = "a process is at work in it; wait for it"
    elif new < old:
        reason = f"trainer.max_epochs is {old} there, {new} here; choose another sweep_dir"
    elif old == 0:
        reason = "it holds weights as they were (trainer.max_epochs=0); train in another sweep_dir"
    elif schedule not in UNENDING:
        name = schedule.rpartition(".")[2]
        reason = (
            f"{name} over {new} epochs is another schedule than over {old}, from the first step on; "
            f"train anew in another sweep_dir, or go on from its weights with model.pretrained={run.path}"
        )
    elif not run.last_checkpoint.is_file():
        reason = f"last.ckpt is gone (keep_last=false); go on from its weights with model.pretrained={run.path}"
    else:
        return
    raise UserError(f"{run.path}: {reason}")


def epochs_by_job(sweep_dir: Path) -> dict[str, int]:
    """Folder name → `trainer.max_epochs` of each job of a sweep, damaged ones aside."""
    found = {}
    for file in sorted(sweep_dir.glob("*/config.yaml")):
        with suppress(UserError, KeyError, TypeError):
            found[file.parent.name] = int(RunFolder(file.parent).read_config()["trainer"]["max_epochs"])
    return found


def goes_on_to(run: RunFolder, plain: dict[str, Any]) -> bool:
    """Whether a run differs from a configuration in having fewer epochs alone.

    Raises:
        UserError: it does, and cannot go on to more.
    """
    before, version = run.read_config(), run.read_status().get("schema_version", 1)
    wanted = with_older_defaults(plain, before, version, set()) if version < SCHEMA_VERSION else plain
    if changed_keys(before, wanted) != {EPOCHS}:
        return False
    refuse_epochs(run, before, wanted)
    return True
