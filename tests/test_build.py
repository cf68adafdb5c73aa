"""What Lightning says about itself stays out of the log, unless it matters."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from resnet_lab.build import set_up_logging


@pytest.mark.parametrize(("job", "hints"), [(None, 0), ("17", 1)])
def test_srun_is_hinted_at_in_slurm_jobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job, hints) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up_logging()
        logging.captureWarnings(False)
        SLURMEnvironment._validate_srun_used()
    assert sum("`srun` command is available" in str(warning.message) for warning in caught) == hints
