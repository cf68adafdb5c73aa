"""The files that hold what a model answered on a split, and the table that shows it beside the majority baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_lab import plots, statistics
from resnet_lab.run_folder import RunFolder

TABLE = ("accuracy", "balanced_accuracy", "qwk", "auroc", "f1_weighted", "f1_macro")


def write_predictions(file: Path, rows: pd.DataFrame, probabilities: np.ndarray) -> None:
    """`image,patient,target,prediction,p_0…p_{K-1}`; `patient` and `target` only where `rows` has them.

    Args:
        file: CSV to write.
        rows: N rows in the order of `probabilities`.
        probabilities: (N, K).
    """
    known = [column for column in ("image", "patient", "target") if column in rows]
    table = rows[known].reset_index(drop=True).assign(prediction=probabilities.argmax(1))
    columns = pd.DataFrame(probabilities, columns=[f"p_{k}" for k in range(probabilities.shape[1])])
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([table, columns], axis=1).to_csv(file, index=False, float_format="%.8g")


def write_split(
    run: RunFolder,
    split: str,
    rows: pd.DataFrame,
    probabilities: np.ndarray,
    counts: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Predictions, confusion matrix (counts and picture) and class report of one split, into `run`.

    Args:
        run: the folder.
        split: name in the files' names.
        rows: N rows of the table, in the order of `probabilities`.
        probabilities: (N, K).
        counts: (K, K), rows true.
        class_names: K names.
    """
    write_predictions(run.predictions_file(split), rows, probabilities)
    names = list(class_names)
    pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=names).to_csv(run.confusion_matrix_file(split))
    class_report(counts, names).to_csv(run.class_report_file(split), index=False)
    figure = plots.confusion_matrix(counts, names, title=f"{run.path.name}: {split}")
    figure.savefig(run.confusion_matrix_file(split, "png"), dpi=120)


def class_report(counts: np.ndarray, class_names: Sequence[str]) -> pd.DataFrame:
    """`class,precision,recall,f1,support` from counts (K, K) with rows true; 0 where a score divides by nothing."""
    hits, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    return pd.DataFrame(
        {
            "class": list(class_names),
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(support + predicted, 1),
            "support": support,
        }
    )


def score_table(metrics: dict[str, float], splits: Sequence[str], counts: dict[str, list[int]]) -> str:
    """Text: each split's scores, and below them what answering the training majority everywhere would score.

    Args:
        metrics: `<split>/<metric>` → score.
        splits: which to show.
        counts: images by class of every split; of `train` it names the majority (else of the split itself).
    """
    names = [name for name in TABLE if any(f"{split}/{name}" in metrics for split in splits)]
    lines = [f"{'':24}" + "".join(f"{name:>19}" for name in names)]
    for split in splits:
        targets = np.repeat(np.arange(len(counts[split])), counts[split])
        majority = int(np.argmax(counts.get("train", counts[split])))
        baseline = statistics.majority_baseline(targets, majority, len(counts[split]))
        lines.append(f"{f'{split} ({len(targets)} images)':24}" + _cells(metrics, split, names))
        lines.append(
            f"{f'  always class {majority}':24}"
            + _cells({f"{split}/{k}": v for k, v in baseline.items()}, split, names)
        )
    return "\n".join(lines)


def _cells(metrics: dict[str, float], split: str, names: Sequence[str]) -> str:
    return "".join(
        f"{round(metrics[key], 4) + 0.0:19.4f}" if (key := f"{split}/{name}") in metrics else f"{'':19}"
        for name in names
    )
