"""Which environment starts the ranks, and what Lightning says about itself stays out of the log unless it matters."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import pytest
from fake_data import refusal
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from resnet_lab.build import plugins, set_up_logging


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


@pytest.mark.parametrize(
    ("values", "environment"),
    [
        ({}, None),  # Lightning chooses
        ({"SLURM_NTASKS": "1"}, LightningEnvironment),
        ({"SLURM_NTASKS": "4"}, LightningEnvironment),  # a process of a batch script, which is alone
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"}, SLURMEnvironment),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, LightningEnvironment),
    ],
)
def test_ranks_are_slurm_s_where_srun_started_them(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], environment: type | None
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = [each for each in plugins() if isinstance(each, ClusterEnvironment)]
    assert [type(each) for each in found] == ([environment] if environment else [])


def test_tasks_that_lightning_cannot_place_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    assert "--ntasks-per-node=4" in refusal(plugins)
