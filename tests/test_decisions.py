"""Decision rules: which grade the probabilities give, fitted thresholds, and runs that differ in nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Barrier
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from fake_runs import edit_predictions, write_run
from waiting import PATIENCE

from resnet_lab import load, training
from resnet_lab.axes import label_of
from resnet_lab.derived import same_training
from resnet_lab.errors import UserError
from resnet_lab.evaluate import evaluate_split, title_of
from resnet_lab.objectives import cross_entropy
from resnet_lab.report.combined import decision_rows
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.runs import read_run, read_runs
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.schema import Rule
from resnet_lab.statistics import (
    DECISIONS,
    decisions,
    expected_grades,
    fitted_thresholds,
    midpoints,
    quadratic_weighted_kappa,
)
from resnet_lab.training import guarded

MakeRun = Callable[..., RunFolder]

EXACT = ("trainer.precision=32-true", "trainer.max_epochs=1")


def probabilities_of(targets: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(len(targets), num_classes)) * 1.5
    scores[np.arange(len(targets)), targets] += 1.5
    scores[:, 0] += 1
    shares = np.exp(scores)
    return shares / shares.sum(axis=1, keepdims=True)


def test_every_rule_has_an_explanation() -> None:
    assert list(DECISIONS) == list(get_args(Rule))


def test_the_expected_grade_is_rounded_to_the_nearest() -> None:
    probabilities = np.array([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.45, 0.0, 0.55]])
    assert expected_grades(probabilities) == pytest.approx([0.9, 0.3, 1.1])
    assert decisions(probabilities, "argmax").tolist() == [0, 0, 2]
    assert decisions(probabilities, "expected").tolist() == [1, 0, 1]
    assert decisions(probabilities, "median").tolist() == [1, 0, 2]
    assert decisions(probabilities, "thresholds", [0.2, 1.0]).tolist() == [1, 1, 2]
    assert midpoints(3).tolist() == [0.5, 1.5]


def test_rounding_errors_cross_no_limit() -> None:
    shares = np.array([[0.7, 0.1, 0.2, 0.0], [0.1, 0.3, 0.1, 0.5], [0.2, 0.2, 0.1, 0.5]])
    assert decisions(np.array([[0.6, 0.3, 0.1, 0.0]]), "expected").tolist() == [0]  # 0.3 + 2 · 0.1 is 0.5
    assert expected_grades(shares).tolist() == [0.5, 2.0, 1.9]
    errors = np.array([[0.8, 0.1, 0.1 - 1e-14, 0.0], [0.1, 0.1, 0.3 - 1e-14, 0.5], [0.3 - 1e-14, 0.2, 0.1, 0.4]])
    assert decisions(errors, "median").tolist() == [0, 2, 1]


def test_a_limit_belongs_to_the_lower_grade() -> None:
    assert decisions(np.array([[0.5, 0.5]]), "expected").tolist() == [0]


def test_thresholds_have_the_highest_kappa_on_the_grid() -> None:
    targets = np.random.default_rng(3).choice(3, 200, p=[0.6, 0.3, 0.1])
    probabilities = probabilities_of(targets, 3)
    grid, grades = np.arange(1, 200) / 100, expected_grades(probabilities)
    every = [
        quadratic_weighted_kappa(targets, np.searchsorted(limits, grades))
        for limits in product(grid, grid)
        if limits[0] < limits[1]
    ]
    found = fitted_thresholds(probabilities, targets)
    assert quadratic_weighted_kappa(targets, decisions(probabilities, "thresholds", found)) == pytest.approx(max(every))


@pytest.mark.parametrize("num_classes", [2, 3, 5, 8])
def test_thresholds_increase_and_are_at_least_as_good_as_the_midpoints(num_classes: int) -> None:
    targets = np.random.default_rng(num_classes).choice(num_classes, 300)
    probabilities = probabilities_of(targets, num_classes)
    found = fitted_thresholds(probabilities, targets)
    assert len(found) == num_classes - 1
    assert found == sorted(set(found))
    assert fitted_thresholds(probabilities, targets) == found
    fitted, plain = (
        quadratic_weighted_kappa(targets, decisions(probabilities, rule, found)) for rule in ("thresholds", "expected")
    )
    assert fitted >= plain


def test_without_information_thresholds_stay_at_the_midpoints() -> None:
    probabilities = np.full((20, 4), 0.25)
    assert fitted_thresholds(probabilities, np.arange(20) % 4) == [0.5, 1.5, 2.5]
    assert fitted_thresholds(probabilities, np.zeros(20, int)) == [0.5, 1.5, 2.5]  # kappa is undefined


def test_final_classes_follow_the_rule_and_training_the_own_one() -> None:
    objective = cross_entropy(0.0, "none", [1, 1, 1])
    outputs = torch.tensor([[0.4, 0.3, 0.3]]).log()
    assert objective.classes(outputs).tolist() == [0]
    objective.choose("expected", 3)
    assert (objective.rule, objective.classes(outputs).tolist(), objective.decide(outputs).tolist()) == (
        "expected",
        [1],
        [0],
    )
    assert "limits" not in objective.state_dict()
    objective.choose("thresholds", 3)
    objective.fit_thresholds(torch.eye(3).repeat(4, 1) * 3, torch.arange(3).repeat(4))
    assert objective.thresholds == [0.5, 1.5]
    assert objective.state_dict()["limits"].tolist() == [0.5, 1.5]
    objective.choose("expected", 3)  # of a run that is derived from one with thresholds
    assert objective.thresholds is None


@pytest.fixture
def trained(make_run: MakeRun, tmp_path: Path) -> dict[str, RunFolder]:
    """Return a sweep over the rules: the first job trains, the others are derived."""
    runs = {rule: make_run(*EXACT, f"loss.decision={rule}", name=rule) for rule in ("auto", "expected", "thresholds")}
    list_jobs(tmp_path / "runs", list(runs))
    for rule, run in runs.items():
        run.update_status(overrides=[f"loss.decision={rule}"])
        assert guarded(run) == 0
    return runs


@pytest.mark.slow
def test_jobs_that_differ_in_the_rule_share_a_training(trained: dict[str, RunFolder], make_run: MakeRun) -> None:
    assert trained["auto"].best_checkpoint.is_file()
    for rule in ("expected", "thresholds"):
        status = trained[rule].read_status()
        assert (status["state"], status["decision"], status["derived_from"]) == ("done", rule, "../auto")
        assert not trained[rule].checkpoints.exists()
        shown = (trained[rule].path / "train.log").read_text()
        assert f"{status['metrics']['test/qwk']:.4f}" in shown.partition("\ntest (")[2].partition("\n")[0]
        assert shown.index("\nval (") < shown.index("\ntest (")
        alone = make_run(*EXACT, f"loss.decision={rule}", name=f"alone/{rule}")
        assert guarded(alone) == 0
        for split in ("val", "test"):
            assert trained[rule].predictions_file(split).read_bytes() == alone.predictions_file(split).read_bytes()
        assert trained[rule].metrics_file.read_bytes() == alone.metrics_file.read_bytes()
        assert status["metrics"] == pytest.approx(alone.read_status()["metrics"], abs=1e-6)
        assert status.get("thresholds") == alone.read_status().get("thresholds")
        assert alone.read_status()["decision_in_training"] == "argmax"
        assert differences_of([read_run(alone), read_run(trained[rule])]) == []
    assert differences_of([read_run(trained["auto"])]) == []


@pytest.mark.slow
def test_lost_predictions_of_a_derived_job_are_derived_again(trained: dict[str, RunFolder]) -> None:
    run = trained["expected"]
    before = run.predictions_file("test").read_bytes()
    run.predictions_file("test").unlink()
    assert guarded(run) == 0
    assert run.predictions_file("test").read_bytes() == before
    assert run.read_status()["derived_from"] == "../auto"
    log = run.path / "train.log"
    for file in (run.predictions_file("test"), trained["auto"].predictions_file("test")):  # also of the source
        file.unlink()
    log.unlink()
    assert guarded(run) == 0
    assert "is done already" in log.read_text()  # it does not train anew


@pytest.mark.slow
def test_a_derived_run_predicts_with_the_network_of_its_source(trained: dict[str, RunFolder]) -> None:
    for rule, run in trained.items():
        model = load(run.path)
        assert model.objective.rule == {"auto": "argmax"}.get(rule, rule)
        assert model.objective.thresholds == run.read_status().get("thresholds")
        assert title_of(model.file) == label_of(run)
        _, module, _ = evaluate_split(model, model.origin["config"], "test")
        stored = pd.read_csv(run.predictions_file("test"))
        assert module.predictions["test"].classes.tolist() == stored["prediction"].tolist()


@pytest.mark.slow
def test_a_missing_source_is_named(trained: dict[str, RunFolder]) -> None:
    trained["auto"].path.rename(trained["auto"].path.with_name("moved"))
    with pytest.raises(Exception, match=r"is made from .*auto, which does not exist"):
        load(trained["expected"].path)


def test_the_report_finds_no_fault_in_equal_probabilities(trained: dict[str, RunFolder]) -> None:
    runs = read_runs([str(run.path) for run in trained.values()])
    assert "suspiciously identical" not in [finding.kind for finding in findings_of(runs, tables_of(runs))]
    labels = [group.label for group in tables_of(runs)[0].groups]
    assert labels == ["decision=auto", "decision=expected", "decision=thresholds"]


@pytest.mark.slow
def test_the_check_knows_the_thresholds(trained: dict[str, RunFolder]) -> None:
    run = trained["thresholds"]
    run.update_status(thresholds=[0.01, 0.02, 0.03, 0.04])
    assert any("fitted thresholds" in line for line in differences_of([read_run(run)]))
    run.update_status(thresholds=None)
    assert any("no thresholds" in line for line in differences_of([read_run(run)]))


@pytest.mark.parametrize("rule", ["median", "expected", "thresholds"])
def test_a_rule_of_grades_needs_ordered_classes(make_run: MakeRun, rule: str) -> None:
    with pytest.raises(UserError, match=f"loss.decision={rule} needs ordered classes"):
        make_run("data.ordered=false", f"loss.decision={rule}")


def test_thresholds_need_a_validation_split(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build_trainer", lambda *_: pytest.fail("the training started"))
    run = make_run(*EXACT, "data.val_fraction=0", "loss.decision=thresholds")
    assert guarded(run) == 1
    assert "needs a validation split" in run.read_status()["error"]


def test_without_validation_the_expected_grade_needs_no_fit(make_run: MakeRun) -> None:
    run = make_run(*EXACT, "data.val_fraction=0", "loss.decision=expected")
    assert guarded(run) == 0
    stored = pd.read_csv(run.predictions_file("test"))
    grades = expected_grades(stored.filter(like="p_").to_numpy())
    assert stored["prediction"].tolist() == np.searchsorted(midpoints(5), grades).tolist()


def test_the_report_shows_what_other_rules_would_have_given(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    table = tables_of(read_runs([str(tmp_path)]))[0]
    row = decision_rows(table)[0]
    assert (row.chosen, row.cells[-1]) == ("argmax", "–")  # no validation predictions are stored
    values = []
    for run in table.scored:
        labeled = run.predictions.labeled
        values.append(quadratic_weighted_kappa(labeled.targets, decisions(labeled.probabilities, "expected")))
    assert row.cells[list(DECISIONS).index("expected")] == f"{np.mean(values):.3f}"
    edit_predictions(tmp_path / "0", lambda frame: frame)
    status = json.loads((tmp_path / "0" / "status.json").read_text())
    (tmp_path / "0" / "status.json").write_text(json.dumps(status | {"ordered": False}))
    (tmp_path / "1" / "status.json").write_text(json.dumps(status | {"ordered": False}))
    assert decision_rows(tables_of(read_runs([str(tmp_path)]))[0]) == []


def test_jobs_that_start_at_the_same_time_train_once(tmp_path: Path) -> None:
    runs = [RunFolder(write_run(tmp_path / rule, config={"loss.decision": rule})) for rule in ("argmax", "expected")]
    list_jobs(tmp_path, [run.path.name for run in runs])
    for run in runs:
        counts = {"test": run.read_status()["class_counts"]["test"]}
        run.update_status(state="running", overrides=[f"loss.decision={run.path.name}"], class_counts=counts)
    both, trained, sources = Barrier(2), list[RunFolder](), list[RunFolder]()

    def job(run: RunFolder) -> None:
        with run.lock():
            both.wait()
            source = same_training(run, run.read_config())
            sources.append(source) if source else trained.append(run)
            run.update_status(state="done")

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(job, run) for run in runs]:
            each.result(timeout=PATIENCE)
    assert sources == trained
    assert [run.read_status().get("trains") for run in trained] == [True]


def test_a_job_that_ends_while_another_looks_is_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ("argmax", "expected")
    first, second = (RunFolder(write_run(tmp_path / rule, config={"loss.decision": rule})) for rule in rules)
    list_jobs(tmp_path, list(rules))
    second.update_status(overrides=["loss.decision=expected"])
    counts = {"test": first.read_status()["class_counts"]["test"]}
    first.update_status(state="running", trains=True, class_counts=counts)
    status, looks = json.loads(first.status_file.read_text()), iter([True])

    def look(run: RunFolder) -> bool:
        locked = next(looks, False)
        if not locked:  # it ended after the first look
            first.status_file.write_text(json.dumps(status | {"state": "done"}))
        return locked

    monkeypatch.setattr(RunFolder, "is_locked", look)
    assert same_training(second, second.read_config()) == first


def test_a_job_on_other_data_is_no_source(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("eyes", "others", "eyes")]
    runs = []
    for number, (root, rule) in enumerate(zip(roots, ("argmax", "expected", "thresholds"), strict=True)):
        config = {"loss.decision": rule, "data.root": str(root)}
        runs.append(RunFolder(write_run(tmp_path / str(number), config=config)))
        runs[-1].update_status(overrides=[f"loss.decision={rule}"])
    list_jobs(tmp_path, [run.path.name for run in runs])
    runs[0].update_status(class_counts={"test": runs[0].read_status()["class_counts"]["test"]})
    for run in runs[1:]:
        run.update_status(state="running")
    assert [same_training(run, run.read_config()) for run in runs[1:]] == [None, runs[0]]


@pytest.mark.slow
def test_ranks_train_by_themselves(trained: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained["expected"]
    assert same_training(run, run.read_config()) == trained["auto"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert same_training(run, run.read_config()) is None


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.slow
def test_a_source_without_all_predictions_is_none(trained: dict[str, RunFolder], split: str) -> None:
    trained["auto"].predictions_file(split).unlink()  # its own command tests again
    assert same_training(trained["expected"], trained["expected"].read_config()) is None
