"""Decides whether an existing run can be trained for more epochs, also as a job of a sweep (no torch)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_lab.compatibility import SCHEMA_VERSION, with_older_defaults
from resnet_lab.config import changed_keys
from resnet_lab.errors import UserError
from resnet_lab.run_folder import RunFolder, same_root

EPOCHS = "trainer.max_epochs"
UNENDING = ("resnet_lab.optim.constant", "resnet_lab.optim.plateau")  # schedules that do not depend on max_epochs


def refuse_epochs(run: RunFolder, before: dict[str, Any], plain: dict[str, Any]) -> None:
    """Refuse another number of epochs for a run that cannot be resumed with it.

    Args:
        run: the run folder.
        before: its configuration.
        plain: the new configuration.

    Raises:
        UserError: the run is in progress or has no epochs or no last checkpoint, the new number is smaller, or the
            schedule depends on it.
    """
    old, new = (config["trainer"]["max_epochs"] for config in (before, plain))
    schedule = plain["schedule"]["_target_"]
    if run.is_locked():
        reason = "another process is running this job; wait for it"
    elif new < old:
        reason = f"trainer.max_epochs is {old} there, {new} here; restore it, or choose another sweep_dir"
    elif old == 0:
        reason = "this run has no training (trainer.max_epochs=0); train in another sweep_dir"
    elif schedule not in UNENDING:
        name = schedule.rpartition(".")[2]
        reason = (
            f"the schedule {name} over {new} epochs has other learning rates than over {old}; train "
            f"from scratch in another sweep_dir, or start from the weights of this run with model.pretrained={run.path}"
        )
    elif "derived_from" in run.read_status():
        reason = "it has the predictions of another job of its sweep; repeat the command in another sweep_dir"
    elif not run.last_checkpoint.is_file():
        reason = f"last.ckpt is missing (keep_last=false); start from the weights with model.pretrained={run.path}"
    else:
        return
    raise UserError(f"{run.path}: {reason}")


def epochs_by_job(sweep_dir: Path) -> dict[str, int]:
    """Return folder name → `trainer.max_epochs` of each undamaged job of a sweep."""
    found = {}
    for file in sorted(sweep_dir.glob("*/config.yaml")):
        with suppress(UserError, KeyError, TypeError):
            found[file.parent.name] = int(RunFolder(file.parent).read_config()["trainer"]["max_epochs"])
    return found


def goes_on_to(run: RunFolder, plain: dict[str, Any]) -> bool:
    """Return whether a run can be resumed with a configuration that differs only in more epochs.

    Raises:
        UserError: only the number of epochs differs, but the run cannot be resumed with it.
    """
    before, wanted = run.read_config(), _as_in(run, plain)
    if changed_keys(before, wanted) != {EPOCHS}:
        return False
    refuse_epochs(run, before, wanted)
    return True


def has_settings(run: RunFolder, plain: dict[str, Any]) -> bool:
    """Return whether a run has the settings of a configuration and the same data, apart from bookkeeping."""
    before, wanted = run.read_config(), _as_in(run, plain)
    return same_root(before, wanted) and not changed_keys(before, wanted)


def _as_in(run: RunFolder, plain: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults of the version that created a run."""
    version = run.read_status().get("schema_version", 1)
    return with_older_defaults(plain, run.read_config(), version, set()) if version < SCHEMA_VERSION else plain
