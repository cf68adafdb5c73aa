"""Writes the run folders of finished jobs with made-up but plausible numbers, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from resnet_lab.report.runs import read_predictions

GRADES = ["no DR", "mild", "moderate", "severe", "proliferative"]
SHARES = [0.735, 0.07, 0.15, 0.025, 0.02]


def write_run(
    folder: Path,
    depth: int = 18,
    pretrained: str | None = None,
    seed: int = 0,
    skill: float = 2.0,
    class_names: list[str] | None = None,
    images: int = 400,
    epochs: int = 6,
    split: str = "test",
    test_set: str = "a" * 16,
    config: dict | None = None,
    **status: object,
) -> Path:
    """Write a finished run with predictions of one split.

    Args:
        folder: the run folder.
        depth: `model.depth`.
        pretrained: `model.pretrained`.
        seed: `seed`, which also determines the made-up numbers.
        skill: tendency of probabilities toward the truth; 0 always predicts the majority class.
        class_names: class names; None: the retinopathy grades.
        images: rows of the predictions file.
        epochs: rows of metrics.csv.
        split: the split with predictions.
        test_set: any text; determines the images' classes, and so the split's fingerprint.
        config: further dotted configuration keys.
        status: additional or changed keys of status.json.
    """
    folder.mkdir(parents=True)
    names = class_names or GRADES
    shares = np.array(SHARES if len(names) == 5 else np.full(len(names), 1 / len(names)))
    # the same images in all runs that share a test set
    targets = np.random.default_rng(list(test_set.encode())).choice(len(names), images, p=shares)
    write_config(folder, depth, pretrained, seed, config or {})
    predictions = folder / f"predictions_{split}.csv"
    write_predictions(predictions, targets, shares, skill, depth + seed + 1000 * (pretrained is not None))
    fingerprint = {split: read_predictions(predictions).fingerprint, "train": "b" * 16}
    write_status(folder, names, shares, seed, fingerprint, epochs, status)
    if "class_counts" not in status:
        change_status(folder, class_counts=counts_with(folder, split, targets))
    write_metrics(folder / "metrics.csv", epochs, skill, depth + seed)
    return folder


def counts_with(folder: Path, split: str, targets: np.ndarray) -> dict:
    status = json.loads((folder / "status.json").read_text())
    counts = np.bincount(targets, minlength=len(status["class_names"])).tolist()
    return status["class_counts"] | {split: counts}


def change_status(folder: Path, **changes: object) -> None:
    file = folder / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_predictions(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], split: str = "test") -> None:
    """Rewrite the predictions of a run, as if it had always used these images."""
    file = folder / f"predictions_{split}.csv"
    changed = change(pd.read_csv(file, dtype={"image": str}))
    changed.to_csv(file, index=False)
    noted = json.loads((folder / "status.json").read_text())["split_fingerprint"]
    counts = counts_with(folder, split, changed["target"].to_numpy())
    change_status(folder, split_fingerprint=noted | {split: read_predictions(file).fingerprint}, class_counts=counts)


def write_config(folder: Path, depth: int, pretrained: str | None, seed: int, extra: dict) -> None:
    config: dict = {
        "name": "fake",
        "seed": seed,
        "monitor": "val/qwk",
        "model": {"_target_": "resnet_lab.models.resnet.resnet", "depth": depth, "pretrained": pretrained},
        "data": {"name": "retinopathy", "root": "/somewhere", "image_size": 512, "on_leak": "ignore"},
        "loss": {"_target_": "resnet_lab.objectives.cross_entropy"},
        "optim": {"_target_": "resnet_lab.optim.sgd", "lr": 0.001},
        "trainer": {"max_epochs": 6},
    }
    for key, value in extra.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_status(folder, names, shares, seed, fingerprint, epochs, extra) -> None:
    counts = {
        split: [round(n * share) for share in shares] for split, n in (("train", 4000), ("val", 500), ("test", 400))
    }
    status = {
        "schema_version": 2,
        "state": "done",
        "error": None,
        "class_names": names,
        "class_counts": counts,
        "ordered": len(names) == 5,
        "split_fingerprint": fingerprint,
        "collapsed": False,
        "leaks": 0,
        "skipped_images": 0,
        "seed": seed,
        "epoch": epochs - 1,
        "parameters": 11_179_077,
        "multiply_adds": 592_185_856,
        "seconds": 300.0 + seed,
        "images_per_second": 50.0,
        "peak_memory_mb": 1500,
    }
    (folder / "status.json").write_text(json.dumps(status | extra))


def write_predictions(file: Path, targets: np.ndarray, shares: np.ndarray, skill: float, seed: int) -> None:
    generator = np.random.default_rng([seed, int(100 * skill)])
    scores = np.log(shares) + (skill > 0) * generator.normal(0, 1, (len(targets), len(shares)))
    scores += skill * np.eye(len(shares))[targets]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    columns = {
        "image": [f"{n:03d}" for n in range(len(targets))],
        "patient": [f"p{n // 2}" for n in range(len(targets))],
    }
    columns |= {"target": targets, "prediction": probabilities.argmax(axis=1)}
    columns |= {f"p_{k}": probabilities[:, k] for k in range(len(shares))}
    pd.DataFrame(columns).to_csv(file, index=False)


def write_metrics(file: Path, epochs: int, skill: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gain = (skill > 0) * 0.1 * (1 - np.exp(-np.arange(epochs) / 2))
    columns: dict = {"epoch": np.arange(epochs), "lr": 0.001}
    for split, extra in (("train", 1.5), ("val", 1.0)):
        columns[f"{split}/loss"] = 0.8 - gain
        columns[f"{split}/accuracy"] = 0.735 + extra * gain + generator.normal(0, 0.004, epochs)
    pd.DataFrame(columns).to_csv(file, index=False)


def write_sweep(root: Path, seeds: tuple[int, ...] = (0, 1, 2), skill: float = 2.0) -> Path:
    """Write the studies' grid: depth 18 and 50, with and without pretraining (without it, runs collapse)."""
    for depth in (18, 50):
        for pretrained in (None, "IMAGENET1K_V1"):
            for seed in seeds:
                job = root / f"depth-{depth},pretrained-{pretrained},seed-{seed}"
                collapsed = pretrained is None and depth == 18
                write_run(job, depth, pretrained, seed, skill=0.0 if collapsed else skill, collapsed=collapsed)
    return root
