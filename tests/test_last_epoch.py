"""Tables in docs/results that do not follow from predictions."""

import math
from pathlib import Path

import pytest
from fake_runs import write_run

from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import find_runs

TOOLS = Path(__file__).resolve().parent.parent / "docs" / "tools"


def test_last_epochs_are_those_of_the_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import last_epoch

    for seed, accuracies in enumerate(([0.5, 0.75, 0.25], [0.5, 0.5, 0.75])):
        run = write_run(tmp_path / str(seed), seed=seed, core_seconds=100.0)
        rows = [f"{epoch},{accuracy},{1 - accuracy},{0.3 * epoch * seed}" for epoch, accuracy in enumerate(accuracies)]
        (run / "metrics.csv").write_text("\n".join(["epoch,test/accuracy,train/loss,train/accuracy", *rows]) + "\n")
        layers = [f"{epoch},gradient_norm,{name},{n + epoch}" for epoch in (0, 1) for n, name in enumerate("abc", 1)]
        (run / "layers.csv").write_text("\n".join(["epoch,quantity,layer,value", *layers]) + "\n")
    facts = [last_epoch.facts_of(read_run(folder)) for folder in find_runs([tmp_path])]
    assert [fact["test/accuracy"] for fact in facts] == [0.25, 0.75]
    assert [fact["test/accuracy, best epoch - last"] for fact in facts] == [0.5, 0.0]
    assert facts[0]["largest step"] == 0.5
    reached = [fact["train/accuracy of 0.5, first epoch"] for fact in facts]
    assert [fact["test/accuracy of 0.4, first epoch"] for fact in facts] == [0, 0]
    assert [fact["train/accuracy - test/accuracy"] for fact in facts] == pytest.approx([-0.25, 0.6 - 0.75])
    assert (math.isnan(reached[0]), reached[1]) == (True, 2)
    assert facts[0]["gradient of the first layer, epoch 0"] == 1
    assert facts[0]["gradient of the last layer but one, epoch 1"] == 3
    text = last_epoch.tables(str(tmp_path))
    assert "  train/loss                                              0.5000 ± 0.3536" in text
    assert text.endswith("2 runs, 200 core seconds in all")
