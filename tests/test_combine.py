"""Combined runs: means over seeds and networks, pooled folds, and what cannot be combined."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fake_data import refusal
from fake_runs import change_status, edit_predictions, write_run

from resnet_lab import compare, load, trained
from resnet_lab.combine import combine, combine_eyes, command
from resnet_lab.errors import UserError, refuse
from resnet_lab.evaluate import evaluate_split, override
from resnet_lab.inputs import sources_of
from resnet_lab.objectives import cross_entropy
from resnet_lab.outputs import as_stored
from resnet_lab.report.combined import combined_rows, fold_rows
from resnet_lab.report.effects import effects_of
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import tables_of
from resnet_lab.report.recipe import recipe_of
from resnet_lab.report.runs import read_run, read_runs
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder, list_jobs
from resnet_lab.statistics import quadratic_weighted_kappa
from resnet_lab.training import guarded

pytestmark = pytest.mark.usefixtures("empty_pictures")

MakeRun = Callable[..., RunFolder]


def frame_of(run: RunFolder | Path, split: str = "test") -> pd.DataFrame:
    folder = run.path if isinstance(run, RunFolder) else run
    return pd.read_csv(folder / f"predictions_{split}.csv", dtype={"image": str}).sort_values("image")


def shares_of(run: RunFolder | Path) -> np.ndarray:
    return frame_of(run).filter(like="p_").to_numpy()


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Return a folder with two depths and three seeds, scored on the same images in different orders."""
    for depth in (18, 50):
        for seed in (0, 1, 2):
            folder = write_run(tmp_path / "runs" / f"depth-{depth}_seed-{seed}", depth=depth, seed=seed, skill=1.5)
            edit_predictions(folder, lambda frame, seed=seed: frame.sample(frac=1, random_state=seed))
    return tmp_path / "runs"


@pytest.mark.slow
def test_a_member_that_changed_is_found(seeds: Path, tmp_path: Path) -> None:
    made = combine([str(seeds)], tmp_path / "means", ["seed"])
    combine([str(seeds)], tmp_path / "decided", ["none"], "expected")
    combine([str(tmp_path / "means")], tmp_path / "all", ["model.depth"])
    member = seeds / "depth-18_seed-1"
    before = member / "predictions_test.csv"
    (member / "predictions_test.csv.gz").write_bytes(gzip.compress(before.read_bytes()))  # as in a published run
    before.unlink()
    runs = read_runs([str(tmp_path)])
    assert not [run for run in runs if run.is_outdated]
    shutil.rmtree(member)
    write_run(member, depth=18, seed=1, skill=1.7)  # trained again
    runs = read_runs([str(tmp_path)])
    old = {run.folder.path.name for run in runs if run.is_outdated}
    assert old == {"depth-18_over-seed", "depth-18_seed-1", "over-model.depth"}  # the last one is a mean of means
    (finding,) = [found for found in findings_of(runs, tables_of(runs)) if found.kind == "outdated"]
    assert finding.is_fault
    assert len(finding.names) == 3
    assert any("changed since" in line for line in differences_of([read_run(made[0])]))
    assert differences_of([read_run(made[1])]) == []
    shutil.rmtree(seeds)  # copied elsewhere without its members
    assert not [run for run in read_runs([str(tmp_path)]) if run.is_outdated]


def test_values_of_members_are_written_as_users_type_them(tmp_path: Path) -> None:
    for name, config in (("a", {"model.freeze": None, "data.eye_crop": True}), ("b", {"model.freeze": "conv1"})):
        write_run(tmp_path / "runs" / name, config={"data.eye_crop": False} | config)
    config = combine([str(tmp_path / "runs")], tmp_path / "mean", ["all"])[0].read_config()
    assert (config["model"]["freeze"], config["data"]["eye_crop"]) == ("none,conv1", "true,false")


def test_the_mean_over_seeds(seeds: Path, tmp_path: Path) -> None:
    made = combine([str(seeds)], tmp_path / "means", ["seed"])
    assert [run.path.name for run in made] == ["depth-18_over-seed", "depth-50_over-seed"]
    for run, depth in zip(made, (18, 50), strict=True):
        members = [seeds / f"depth-{depth}_seed-{seed}" for seed in (0, 1, 2)]
        mean = np.mean([shares_of(member) for member in members], axis=0)
        assert shares_of(run) == pytest.approx(mean, abs=1e-7)
        found = frame_of(run)
        assert found["prediction"].tolist() == mean.argmax(axis=1).tolist()
        config = run.read_config()["combine"]
        assert config["mean_over"] == "seed"
        assert {(run.path / source).resolve() for source in config["sources"]} == {*members}
        kappa = quadratic_weighted_kappa(found["target"].to_numpy(), found["prediction"].to_numpy())
        assert run.read_status()["metrics"]["test/qwk"] == pytest.approx(kappa)
        assert run.read_status()["seconds"] == 3 * 300 + 3  # all members are needed
    assert differences_of([read_run(run) for run in made]) == []


def test_scores_and_decisions_are_those_of_the_stored_probabilities(tmp_path: Path) -> None:
    tenths = np.array([[0.4, 0.3, 0.1, 0.1, 0.1], [0.3, 0.4, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.1, 0.1]])

    def rounded(frame: pd.DataFrame, seed: int) -> pd.DataFrame:  # means have many ties, up to rounding errors
        shares = np.random.default_rng(seed).permuted(tenths[np.arange(400) % 3], axis=1)
        frame[[f"p_{k}" for k in range(5)]] = shares
        return frame.assign(prediction=shares.argmax(axis=1))

    for seed in (0, 1, 2):
        folder = write_run(tmp_path / "runs" / str(seed), seed=seed)
        edit_predictions(folder, lambda frame, seed=seed: rounded(frame, seed))
    for rule in ("argmax", "expected"):
        run = combine([str(tmp_path / "runs")], tmp_path / rule, ["seed"], rule)[0]
        assert differences_of([read_run(run)]) == []
    assert as_stored(np.array([[0.1 + 0.2, 1 / 3]])).tolist() == [[0.3, 0.33333333]]


def test_the_report_compares_a_mean_with_its_members(seeds: Path, tmp_path: Path) -> None:
    combine([str(seeds)], tmp_path / "means", ["seed"])
    combine([str(seeds)], tmp_path / "all", ["all"], "expected")
    table = tables_of(read_runs([str(seeds), str(tmp_path / "means"), str(tmp_path / "all")]))[0]
    rows = {row.label: row for row in combined_rows(table)}
    assert len(rows) == 3
    values = {group.label: group.mean_and_std("qwk")[0] for group in table.groups}
    of_18 = next(row for label, row in rows.items() if "depth=18 " in label)
    member = next(label for label in values if "depth=18" in label and "over" not in label)
    assert of_18.members == member
    assert of_18.of_members == f"{values[member]:.3f}"
    difference = values[of_18.label] - values[member]
    assert of_18.difference.startswith(f"{difference:+.3f}".replace("-", "−"))
    assert "[" in of_18.difference
    every = next(row for label, row in rows.items() if "over=all" in label)
    assert every.members.count(";") == 1


def test_members_without_permission_do_not_stop_a_report(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine([str(seeds)], tmp_path / "means", ["seed"])
    (tmp_path / "means").rename(tmp_path / "own")
    stored = RunFolder.stored_predictions

    def closed(self: RunFolder, split: str) -> Path:
        if seeds in self.path.parents:
            raise PermissionError(13, "Permission denied", str(self.path))
        return stored(self, split)

    monkeypatch.setattr(RunFolder, "stored_predictions", closed)
    runs = read_runs([str(tmp_path / "own")])
    assert not any(run.is_outdated for run in runs)


def test_a_mean_is_compared_with_its_own_members_alone(seeds: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    runs = [run for run in read_runs([str(seeds)]) if run.config["model.depth"] == 18]
    shutil.move(runs[2].folder.path, later)
    combine([str(seeds)], tmp_path / "means", ["seed"])
    shutil.move(later, runs[2].folder.path)
    found = read_runs([str(seeds), str(tmp_path / "means")])
    table = tables_of(found)[0]
    (row,) = (row for row in combined_rows(table) if "depth=18 " in row.label)
    own = np.mean([run.scores["qwk"] for run in runs[:2]])
    assert row.of_members == f"{own:.3f}" != f"{np.mean([run.scores['qwk'] for run in runs]):.3f}"
    assert row.members.endswith(" (2 of 3 runs)")
    difference = next(run for run in found if run.members and run.config["model.depth"] == 18).scores["qwk"] - own
    assert row.difference.startswith(f"{difference:+.3f}".replace("-", "−"))
    (text,) = (each.text for each in findings_of(found, [table]) if each.kind == "incomplete mean")
    assert text.startswith(row.label + " is made from 2 of the 3 runs of ")


def test_means_of_runs_that_are_compared_change_no_effect_of_these_runs(seeds: Path, tmp_path: Path) -> None:
    combine([str(seeds)], tmp_path / "means", ["seed"])
    both, trained, means = (
        tables_of(read_runs([str(folder) for folder in folders]))[0]
        for folders in ([seeds, tmp_path / "means"], [seeds], [tmp_path / "means"])
    )
    depths = [next(each for each in effects_of(table) if each.axis == "model.depth") for table in (both, trained)]
    assert depths[0].settings == pytest.approx(depths[1].settings)
    assert len(depths[0].settings) == 1
    assert [each.axis for each in effects_of(both)] == ["model.depth", "combine.mean_over"]
    assert [each.axis for each in effects_of(means)] == ["model.depth"]


def test_without_the_members_there_is_nothing_to_compare(seeds: Path, tmp_path: Path) -> None:
    combine([str(seeds)], tmp_path / "means", ["seed"])
    runs = read_runs([str(tmp_path / "means")])
    assert combined_rows(tables_of(runs)[0]) == []
    assert "missing members" not in {each.kind for each in findings_of(runs, tables_of(runs))}
    seeds.rename(tmp_path / "elsewhere")
    texts = [each.text for each in findings_of(runs, tables_of(runs)) if each.kind == "missing members"]
    assert len(texts) == 2
    assert texts[0].endswith(": 3 of its 3 members cannot be found and compared")


def test_again_into_the_folder_of_the_members(seeds: Path) -> None:
    first = combine([str(seeds)], seeds, ["all"])
    again = combine([str(seeds)], seeds, ["all"])  # the result is not one of its own members
    assert [run.path for run in first] == [run.path for run in again]
    assert len(again[0].read_config()["combine"]["sources"]) == 6


def test_nothing_of_an_earlier_result_is_left(seeds: Path, tmp_path: Path) -> None:
    run = combine([str(seeds)], tmp_path / "out", ["all"])[0]
    frame_of(run).to_csv(run.predictions_file("val"), index=False)
    run.update_status(folds={"0": 400}, metrics={"val/qwk": 1.0})
    again = combine([str(seeds)], tmp_path / "out", ["all"])[0]
    assert not again.predictions_file("val").exists()
    assert "folds" not in again.read_status()
    with pytest.raises(UserError, match="would replace its own member"):
        combine([str(tmp_path / "out")], tmp_path / "out", ["none"], "expected")
    assert sources_of(again) == [*sorted(path for path in seeds.iterdir())]


def test_another_rule_of_finished_runs(seeds: Path, tmp_path: Path) -> None:
    made = combine([str(seeds / "depth-18_seed-0")], tmp_path / "expected", ["none"], "expected")
    run = made[0]
    assert run.read_config()["loss"]["decision"] == run.read_status()["decision"] == "expected"
    assert shares_of(run) == pytest.approx(shares_of(seeds / "depth-18_seed-0"), abs=1e-7)
    assert differences_of([read_run(run)]) == []


def test_runs_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    for sweep, depth in (("a", 18), ("b", 50)):
        write_run(tmp_path / sweep / "seed-0", depth=depth)
    made = combine([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", ["none"], "expected")
    assert [run.path.relative_to(tmp_path / "out").as_posix() for run in made] == ["a/seed-0", "b/seed-0"]
    assert [run.read_config()["model"]["depth"] for run in made] == [18, 50]


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Return three folds with two seeds; the folds have 130, 130 and 140 images of 65, 65 and 70 patients."""
    for seed in (0, 1):
        for fold, (first, last) in enumerate([(0, 130), (130, 260), (260, 400)]):
            config = {"data.folds": 3, "data.fold": fold, "data.split_seed": 0}
            folder = write_run(tmp_path / "cv" / f"fold-{fold}_seed-{seed}", seed=seed, skill=1.5, config=config)
            edit_predictions(folder, lambda frame, first=first, last=last: frame.iloc[first:last])
    return tmp_path / "cv"


def test_folds_are_pooled_into_one_table(folds: Path, tmp_path: Path) -> None:
    made = combine([str(folds)], tmp_path / "pooled", ["data.fold"])
    assert len(made) == 2
    parts = [frame_of(folds / f"fold-{fold}_seed-1") for fold in range(3)]
    every = pd.concat(parts)
    found = frame_of(next(run for run in made if run.read_config()["seed"] == 1))
    assert found["image"].tolist() == every["image"].tolist()
    assert found["prediction"].tolist() == every["prediction"].tolist()
    assert found["patient"].nunique() == 200
    table = tables_of(read_runs([str(tmp_path / "pooled")]))[0]
    assert [group.label for group in table.groups] == ["depth=18 pretrained=none"]
    assert table.title.startswith("retinopathy, all 3 folds, test split: 400 images")
    assert len(table.patient) == 400
    assert int(table.patient.max()) + 1 == 200  # the intervals are over patients
    row = fold_rows(table)[0]
    by_fold = [
        np.mean(
            [
                quadratic_weighted_kappa(part["target"].to_numpy(), part["prediction"].to_numpy())
                for part in (frame_of(folds / f"fold-{fold}_seed-{seed}") for seed in (0, 1))
            ]
        )
        for fold in range(3)
    ]
    assert row.folds == [f"{value:.3f}" for value in by_fold]
    assert row.mean == f"{np.mean(by_fold):.3f} ± {np.std(by_fold, ddof=1):.3f}"
    assert differences_of([read_run(run) for run in made]) == []


def test_pooled_folds_are_reported_without_their_members(
    folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    command([folds.name, "out=pooled", "over=data.fold"])
    assert caplog.messages[-1] == "report on all folds:  resnet-lab report pooled"
    command(["pooled", "out=means"])
    assert caplog.messages[-1] == "compare them with their members:  resnet-lab report pooled means out=means"


def test_pooled_folds_keep_the_notes_on_the_images(folds: Path, tmp_path: Path) -> None:
    change_status(folds / "fold-1_seed-0", skipped_images=2, leaks=4)
    change_status(folds / "fold-2_seed-0", skipped_images=3)
    runs = [read_run(run) for run in combine([str(folds)], tmp_path / "pooled", ["seed", "data.fold"])]
    tables = tables_of(runs)
    found = {finding.kind: finding.text for finding in findings_of(runs, tables)}
    assert found["skipped images"] == "3 images could not be read (1 of 1 run)"
    assert found["leaking"].startswith("4 images of train or val share a patient or an identical image")
    assert "conflicting labels" not in found
    data = next(fact for fact in recipe_of(runs, tables) if fact.title == "data")
    assert "400 test images of 3 folds, 5 classes" in str(data)


def test_seeds_are_averaged_within_a_fold(folds: Path, tmp_path: Path) -> None:
    run = combine([str(folds)], tmp_path / "pooled", ["seed", "data.fold"])[0]
    mean = np.mean([shares_of(folds / f"fold-2_seed-{seed}") for seed in (0, 1)], axis=0)
    assert shares_of(run)[260:] == pytest.approx(mean, abs=1e-7)
    assert run.read_status()["folds"] == {"0": 130, "1": 130, "2": 140}


def test_the_mean_of_pooled_folds_has_folds(folds: Path, tmp_path: Path) -> None:
    combine([str(folds)], tmp_path / "pooled", ["data.fold"])
    run = combine([str(tmp_path / "pooled")], tmp_path / "mean", ["seed"])[0]
    assert run.read_config()["combine"] | {"sources": []} == {
        "pooled_over": "data.fold",
        "mean_over": "seed",
        "sources": [],
    }
    assert run.read_status()["folds"] == {"0": 130, "1": 130, "2": 140}
    table = tables_of([read_run(run)])[0]
    assert table.title.startswith("retinopathy, all 3 folds, test split")
    other = combine([str(folds)], tmp_path / "other", ["seed", "data.fold"])[0]
    assert fold_rows(table)[0].folds == fold_rows(tables_of([read_run(other)])[0])[0].folds
    assert shares_of(run) == pytest.approx(shares_of(other), abs=1e-7)
    edit_predictions(tmp_path / "pooled" / "seed-1_over-data.fold", lambda frame: frame.iloc[::-1])  # another cut
    assert "folds" not in combine([str(tmp_path / "pooled")], tmp_path / "cuts", ["seed"])[0].read_status()


def test_runs_of_several_folds_with_one_test_set(tmp_path: Path) -> None:
    for fold in range(2):
        write_run(tmp_path / "runs" / str(fold), seed=fold, config={"data.folds": 5, "data.fold": fold})
    runs = read_runs([str(tmp_path / "runs")])
    assert tables_of(runs)[0].title.startswith("retinopathy, folds 0, 1 of 5, test split")
    assert tables_of(runs[:1])[0].title.startswith("retinopathy, fold 0 of 5, test split")


def test_a_missing_fold_is_named(folds: Path, tmp_path: Path) -> None:
    shutil.rmtree(folds / "fold-1_seed-0")
    change_status(folds / "fold-2_seed-0", state="failed", error="out of memory")
    with pytest.raises(UserError, match="fold 1 has 1 run, fold 0 has 2"):
        combine([str(folds)], tmp_path / "pooled", ["data.fold", "seed"])
    shutil.rmtree(folds / "fold-1_seed-1")
    with pytest.raises(UserError, match="no finished run like fold-0_seed-1 has fold 1 of 3"):
        combine([str(folds)], tmp_path / "pooled", ["data.fold"])
    assert not (tmp_path / "pooled").exists()


@pytest.mark.parametrize("column", ["image", "patient"])
def test_folds_with_a_common_image_or_patient_are_refused(folds: Path, tmp_path: Path, column: str) -> None:
    def overlap(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{column: ["000" if column == "image" else "p0", *frame[column][1:]]})

    edit_predictions(folds / "fold-1_seed-0", overlap)
    with pytest.raises(UserError, match=f"{column} .* is in the test images of two folds"):
        combine([str(folds)], tmp_path / "pooled", ["data.fold"])


def test_leaks_and_collapses_of_the_members_are_named(folds: Path, tmp_path: Path) -> None:
    RunFolder(folds / "fold-2_seed-1").update_status(collapsed=True)
    for fold, seed, number in ((0, 0, 3), (0, 1, 5), (1, 0, 2)):
        RunFolder(folds / f"fold-{fold}_seed-{seed}").update_status(seen_by={"loss.teacher": {"test": number}})
    (run,) = combine([str(folds)], tmp_path / "pooled", ["all"])
    assert run.read_status()["seen_by"] == {"loss.teacher": {"test": 7}}
    texts = {finding.kind: finding.text for finding in findings_of([read_run(run)], [])}
    assert texts["leaking"] == "the network of loss.teacher was trained on 7 test images (1 of 1 run)"
    assert texts["collapsed"] == "1 of the 6 members of a combined run nearly always predicts one class (1 of 1 run)"


@pytest.mark.parametrize("key", ["split_seed", "max_images"])
def test_folds_of_different_cuts_are_refused(folds: Path, tmp_path: Path, key: str) -> None:
    file = folds / "fold-1_seed-0" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"][key] = 1
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="different cross-validations"):
        combine([str(folds)], tmp_path / "pooled", ["all"])


def test_a_missing_value_is_none(tmp_path: Path) -> None:
    for seed, config in ((0, {}), (1, {"model.pretrained": "none"}), (2, {"model.width": None})):
        write_run(tmp_path / "runs" / str(seed), seed=seed, config=config)
    assert len(combine([str(tmp_path / "runs")], tmp_path / "means", ["seed"])) == 1


def test_copies_are_named(seeds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(seeds / "depth-18_seed-1", seeds / "copy")
    combine([str(seeds)], tmp_path / "means", ["seed"])
    (line,) = [text for text in caplog.messages if "the same settings and seed" in text]
    assert "copy and " in line
    assert "depth-18_seed-1 have" in line
    assert "the same predictions" not in caplog.text


def test_a_copy_with_another_seed_and_members_of_other_data_are_named(
    seeds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = RunFolder(shutil.copytree(seeds / "depth-18_seed-1", seeds / "copy"))
    copy.write_config(copy.read_config() | {"seed": 9})
    other = json.loads((seeds / "depth-50_seed-2" / "status.json").read_text())["split_fingerprint"]
    change_status(seeds / "depth-50_seed-2", split_fingerprint=other | {"train": "f" * 16})
    combine([str(seeds)], tmp_path / "means", ["seed"])
    (line,) = [text for text in caplog.messages if "the same predictions" in text]
    assert "copy and " in line
    (line,) = [text for text in caplog.messages if "different images or labels in train" in text]
    assert "depth-50_seed-2 had" in line


def test_members_behind_a_link(seeds: Path, tmp_path: Path) -> None:
    place = tmp_path / "a" / "scratch" / "disk"
    place.parent.mkdir(parents=True)
    seeds.rename(place)
    seeds.symlink_to(place)
    made = combine([str(seeds)], seeds / "means", ["seed"])[0]
    expected = [place / f"depth-18_seed-{seed}" for seed in (0, 1, 2)]
    assert sources_of(made) == expected
    assert sources_of(RunFolder(made.path.resolve())) == expected
    assert read_run(made).members == expected


def test_what_cannot_be_combined(seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="these runs have no key lr"):
        combine([str(seeds)], out, ["lr"])
    with pytest.raises(UserError, match=r"these runs have no key model\.dept; did you mean over=model\.depth"):
        combine([str(seeds)], out, ["seed", "model.dept"])
    with pytest.raises(UserError, match="over=seed,all: write all alone"):
        combine([str(seeds)], out, ["seed", "all"])
    with pytest.raises(UserError, match="over=none changes nothing"):
        combine([str(seeds)], out, ["none"])
    with pytest.raises(UserError, match="depth-18_seed-0 is a run that trained"):
        combine([str(seeds / "depth-18_seed-0")], seeds, ["none"], "expected")
    with pytest.raises(UserError, match="needs predictions on validation"):
        combine([str(seeds)], out, ["seed"], "thresholds")
    edit_predictions(seeds / "depth-18_seed-1", lambda frame: frame.iloc[:300])
    with pytest.raises(UserError, match="have different test images"):
        combine([str(seeds)], out, ["seed"])
    write_run(tmp_path / "others" / "a", class_names=["cat", "dog"])
    write_run(tmp_path / "others" / "b", class_names=["dog", "cat"], seed=1)
    with pytest.raises(UserError, match="has the classes cat, dog, b has dog, cat"):
        combine([str(tmp_path / "others")], out, ["seed"])
    shutil.rmtree(tmp_path / "others" / "b")
    with pytest.raises(UserError, match="decision=expected needs grades"):
        combine([str(tmp_path / "others")], out, ["none"], "expected")
    assert not out.exists()


def test_different_rules_need_a_choice(seeds: Path, tmp_path: Path) -> None:
    change_status(seeds / "depth-18_seed-1", decision="expected")
    with pytest.raises(UserError, match="different decision rules"):
        combine([str(seeds)], tmp_path / "out", ["seed"])
    assert len(combine([str(seeds)], tmp_path / "out", ["seed"], "expected")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=o", "decision=best"], "choose argmax, median"),
        ([], "out= is missing"),
        (["out=o", "over=seeds"], "these runs have no key seeds; did you mean over=seed"),
        (["out=o", "over=dept"], "did you mean over=model.depth"),
        (["out=o", "over=optim.lr"], "differ only in it; they differ in seed, model.depth$"),
        (["out=runs/depth-18_seed-0"], "contains a run; name another folder"),
        (["out=sweep"], "out=sweep contains a sweep; name another folder"),
    ],
)
def test_options(seeds: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(seeds.parent)
    list_jobs(Path("sweep"), ["a"])
    with pytest.raises(UserError, match=message):
        command([str(seeds), *words])


def test_the_next_command_is_quoted(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    seeds.rename(tmp_path / "my runs")
    command(["my runs", "out=means", "over=seed,seed"])
    assert "resnet-lab report 'my runs' means" in caplog.text
    assert RunFolder(tmp_path / "means" / "depth-18_over-seed").read_config()["combine"]["mean_over"] == "seed"


def test_an_unfinished_run_is_left_out_by_name(seeds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_status(seeds / "depth-18_seed-1", state="failed", error="out of memory")
    made = combine([str(seeds)], tmp_path / "means", ["seed"])
    assert len(made[0].read_config()["combine"]["sources"]) == 2
    assert "left out: depth-18_seed-1: out of memory" in caplog.text


def test_an_ensemble_is_one_model(make_run: MakeRun, tmp_path: Path) -> None:
    keys = ("trainer.precision=32-true", "trainer.max_epochs=1")
    members = [
        make_run(*keys, f"seed={seed}", f"data.mean={mean}", name=f"seed-{seed}")
        for seed, mean in ((0, "train"), (1, "[0.4,0.5,0.6]"))
    ]
    for run in members:
        assert guarded(run) == 0
    ensemble = combine([str(run.path) for run in members], tmp_path / "means", ["seed", "data.mean"])[0]
    model = load(ensemble.path)
    config = override(model.origin, ["trainer.channels_last=true"])
    _, module, datamodule = evaluate_split(model, config, "test")
    stored = pd.read_csv(ensemble.predictions_file("test"))
    assert datamodule.rows("test")["image"].tolist() == stored["image"].tolist()
    found = module.predictions["test"]
    assert found.probabilities == pytest.approx(stored.filter(like="p_").to_numpy(), abs=1e-5)
    assert found.classes.tolist() == stored["prediction"].tolist()
    images = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    alone = [load(run.path)(images).iloc[:, 1:].to_numpy() for run in members]
    assert model(images).iloc[:, 1:].to_numpy() == pytest.approx(np.mean(alone, axis=0), abs=1e-5)
    with pytest.raises(UserError, match="several networks, each with its own features"):
        model.features(images)


@pytest.mark.slow
def test_networks_of_different_folds_are_not_scored_on_their_own_images(make_run: MakeRun, tmp_path: Path) -> None:
    keys = ("trainer.precision=32-true", "trainer.max_epochs=1", "data.folds=2", "data.splits={train:[train,test]}")
    members = [
        make_run(*keys, f"data.fold={fold}", f"seed={seed}", name=f"fold-{fold}-seed-{seed}")
        for fold in range(2)
        for seed in range(2)
    ]
    for run in members:
        assert guarded(run) == 0
    pooled = combine([str(run.path) for run in members], tmp_path / "pooled", ["data.fold"])
    (mean,) = combine([str(run.path) for run in pooled], tmp_path / "means", ["seed"])
    for run in (pooled[0], mean):
        model = load(run.path)
        message = refusal(evaluate_split, model, override(model.origin, []), "test")
        assert "some of its networks were trained on these images, and others were not" in message
    model = load(members[0].path)
    evaluate_split(model, override(model.origin, []), "test")


@pytest.mark.slow
def test_members_of_different_size_are_no_single_network(make_run: MakeRun, tmp_path: Path) -> None:
    keys = ("trainer.max_epochs=1", "trainer.precision=32-true")
    members = [make_run(*keys, f"data.image_size={size}", name=f"size-{size}") for size in (24, 32)]
    for run in members:
        assert guarded(run) == 0
    ensemble = combine([str(run.path) for run in members], tmp_path / "means", ["data.image_size"])[0]
    with pytest.raises(UserError, match="prepare images differently"):
        load(ensemble.path)


def test_validation_cut_from_the_folds_fits_no_thresholds(tmp_path: Path) -> None:
    for fold, rows in enumerate([range(200), range(200, 400)]):
        config = {"data.folds": 2, "data.fold": fold, "data.split_seed": 0}
        folder = write_run(tmp_path / "cv" / f"fold-{fold}", config=config)
        every = frame_of(folder)
        every.iloc[[(row + 200) % 400 for row in rows[:40]]].to_csv(folder / "predictions_val.csv", index=False)
        edit_predictions(folder, lambda frame, rows=rows: frame.iloc[rows])
        edit_predictions(folder, lambda frame: frame, "val")
    with pytest.raises(UserError, match="validation that are in no fold"):
        combine([str(tmp_path / "cv")], tmp_path / "out", ["data.fold"], "thresholds")
    made = combine([str(tmp_path / "cv")], tmp_path / "out", ["data.fold"], "expected")
    assert len(frame_of(made[0])) == 400
    assert not made[0].predictions_file("val").exists()


def test_thresholds_are_not_fitted_on_the_scored_images(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", split="val")
    with pytest.raises(UserError, match="on validation, the only scored split"):
        combine([str(tmp_path / "runs")], tmp_path / "out", ["none"], "thresholds")


def test_another_rule_of_a_run_that_is_derived_itself(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "a", monitor="val/qwk", derived_from="../trained")
    frame_of(folder).to_csv(folder / "predictions_val.csv", index=False)
    edit_predictions(folder, lambda frame: frame.assign(image="v" + frame["image"]), "val")
    own = frame_of(folder, "val")
    change_status(folder, best_value=quadratic_weighted_kappa(own["target"].to_numpy(), own["prediction"].to_numpy()))
    made = combine([str(folder)], tmp_path / "out", ["none"], "expected")[0]
    assert sources_of(made) == [folder]
    assert made.read_status()["decision_in_training"] == "argmax"
    assert differences_of([read_run(made)]) == []


@pytest.mark.parametrize("absent", [{"class_counts": None}, {"class_counts": {}}, {"class_names": None}])
def test_entries_that_are_missing(seeds: Path, tmp_path: Path, absent: dict) -> None:
    for run in seeds.iterdir():
        change_status(run, **absent)
    assert differences_of([read_run(run) for run in combine([str(seeds)], tmp_path / "out", ["seed"])]) == []


def test_patients_of_any_member_are_kept(seeds: Path, tmp_path: Path) -> None:
    edit_predictions(seeds / "depth-18_seed-0", lambda frame: frame.drop(columns="patient"))
    run = combine([str(seeds)], tmp_path / "out", ["seed"])[0]
    mean = np.mean([shares_of(seeds / f"depth-18_seed-{seed}") for seed in (0, 1, 2)], axis=0)
    assert shares_of(run) == pytest.approx(mean, abs=1e-7)
    assert frame_of(run)["patient"].nunique() == 200


def test_an_image_with_several_rows_has_no_mean(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path / "runs" / str(seed), seed=seed)
        edit_predictions(folder, lambda frame: frame.assign(image=["001", *frame["image"][1:]]))
    with pytest.raises(UserError, match="image 001 has several rows"):
        combine([str(tmp_path / "runs")], tmp_path / "out", ["seed"])


@pytest.mark.slow
def test_a_network_counts_once(seeds: Path, tmp_path: Path) -> None:
    for run in sorted(seeds.iterdir()):
        shutil.copytree(run, seeds / f"{run.name}_expected")
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["loss"]["decision"] = "expected"
        (seeds / f"{run.name}_expected" / "config.yaml").write_text(yaml.safe_dump(config))
        change_status(seeds / f"{run.name}_expected", derived_from=f"../{run.name}")
    assert len(combine([str(seeds)], tmp_path / "none", ["none"], "median")) == 6
    assert len(combine([str(seeds)], tmp_path / "seed", ["seed"], "median")) == 2
    assert len(combine([str(seeds)], tmp_path / "each", ["seed"])) == 4  # no rule is given: those of the members
    assert len(read_run(combine([str(seeds)], tmp_path / "all", ["all"], "median")[0]).members) == 6


def test_members_of_several_losses_have_no_common_loss(tmp_path: Path) -> None:
    for place, (smoothing, weights) in enumerate([(0.0, "none"), (0.1, "balanced")]):
        config = {"loss.label_smoothing": smoothing, "loss.class_weights": weights}
        write_run(tmp_path / "runs" / str(place), config=config)
    for keys in (["loss.label_smoothing", "loss.class_weights"], ["all"]):
        made = combine([str(tmp_path / "runs")], tmp_path / "out", keys)[0]
        assert "test/loss" not in made.read_status()["metrics"]
        assert differences_of([read_run(made)]) == []


@pytest.mark.parametrize("folds", [[130, 270], {"0": "x"}, {"0": -1, "1": 401}, {"0": 400}, "x"])
def test_damaged_folds_hide_no_other_run(seeds: Path, folds: object) -> None:
    change_status(seeds / "depth-18_seed-0", folds=folds)
    assert fold_rows(tables_of(read_runs([str(seeds)]))[0]) == []


def test_damaged_sources_are_named(tmp_path: Path) -> None:
    for sources, message in (
        (5, ""),
        ([7], "is made from 7, which is not the name of a folder"),
        (["gone"], "which does not exist"),
    ):
        folder = write_run(tmp_path / str(sources), config={"combine.sources": sources})
        with pytest.raises(UserError, match=message) if message else nullcontext():
            assert sources_of(RunFolder(folder)) == []


def test_an_unknown_rule_is_named(tmp_path: Path) -> None:
    for decision, message in (("best", "the decision rule 'best' .* is unknown"), ("own", "its own decision rule")):
        write_run(tmp_path / decision / "a", decision=decision)
        with pytest.raises(UserError, match=message):
            combine_eyes([str(tmp_path / decision)], tmp_path / "out", ["worst"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "others", "message"),
    [
        ({"decision": "expected"}, [{}], ""),
        ({"decision": "thresholds", "thresholds": [1.0]}, [{}], "no thresholds between the classes"),
        ({"decision": "best"}, [{}], "the decision rule 'best' of status.json is unknown"),
        ({"decision": "argmax"}, [{}, {"tta": "flips"}], "average different views"),
        ({"decision": "argmax"}, [{}, {"hashes": ""}], ""),
    ],
)
def test_what_a_derived_run_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dict, others: list[dict], message: str
) -> None:
    def member(tta: str = "none", hashes: str = "ab") -> SimpleNamespace:
        objective = cross_entropy(0.0, "none", [1] * 5)
        objective.choose("thresholds", 5)  # the member is a run with fitted thresholds
        data = dict.fromkeys(trained.SEEING, 1)
        origin = {"mean": [0.5] * 3, "std": [0.2] * 3, "config": {"data": data}, "train_images": hashes}
        return SimpleNamespace(
            network=torch.nn.Identity(), objective=objective, tta=tta, class_names=["a"] * 5, origin=origin
        )

    members = iter([member(**other) for other in others])
    monkeypatch.setattr(trained, "load", lambda _: next(members))
    monkeypatch.setattr(trained, "Trained", lambda *parts: parts)
    run = RunFolder(write_run(tmp_path / "derived", **status))
    with pytest.raises(UserError, match=message) if message else nullcontext():
        _, _, objective, origin = trained.load_derived(run, [run.path] * len(others))
        assert (objective.rule, objective.thresholds) == (status["decision"], None)
        assert origin["train_images"] == ("ab" if len(others) == 1 else None)  # hashes of some hide the others


def test_a_network_whose_member_was_trained_again_is_loaded_with_a_warning(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (made,) = combine([str(seeds / f"depth-18_seed-{seed}") for seed in (0, 1)], tmp_path / "means", ["seed"])
    monkeypatch.setattr(trained, "load", lambda folder: refuse([f"{folder} has no checkpoint"]))
    for warned in (False, True):
        assert "has no checkpoint" in refusal(trained.load_derived, made, sources_of(made))
        assert ("made from predictions that have changed since" in caplog.text) == warned
        edit_predictions(seeds / "depth-18_seed-1", lambda frame: frame.iloc[::-1])


def test_members_that_disagree_on_patients_are_combined_with_the_fewest(seeds: Path, tmp_path: Path) -> None:
    folders = [seeds / f"depth-18_seed-{seed}" for seed in (0, 1)]
    edit_predictions(folders[0], lambda frame: frame.assign(patient=frame["image"]))
    (made,) = combine([str(each) for each in folders], tmp_path / "means", ["seed"])
    patients = [frame_of(each)["patient"].nunique() for each in (*folders, made)]
    assert patients[0] > patients[1] == patients[2]


def test_the_interval_of_a_mean_over_seeds_is_the_same_in_every_report(seeds: Path, tmp_path: Path) -> None:
    runs = combine([str(seeds)], tmp_path / "means", ["seed"])
    found = {}
    for name, folders in (("alone", ["means"]), ("beside", ["means", str(seeds)])):
        (table,) = tables_of(read_runs([str(tmp_path / each) for each in folders]))
        places = [place for place, group in enumerate(table.scored_groups) if group.is_mean]
        assert len(places) == len(runs)
        found[name] = [table.estimates["accuracy"].interval(place) for place in places]
        texts = {finding.kind: finding.text for finding in findings_of(table.scored, [table])}
        assert "how much the mean of other seeds would differ is unknown" in texts["one mean only"]
        assert "one seed only" not in texts
    assert np.asarray(found["alone"]) == pytest.approx(np.asarray(found["beside"]))


def test_columns_and_numbers_that_a_spreadsheet_rewrote_are_combined_by_their_names(
    seeds: Path, tmp_path: Path
) -> None:
    (plain,) = combine([str(seeds / f"depth-18_seed-{seed}") for seed in (0, 1)], tmp_path / "plain", ["seed"])
    for seed in (0, 1):
        file = seeds / f"depth-18_seed-{seed}" / "predictions_test.csv"
        frame = pd.read_csv(file, dtype=str).assign(target=lambda frame: frame["target"] + ".0")
        frame[frame.columns[::-1]].to_csv(file, index=False)
    (moved,) = combine([str(seeds / f"depth-18_seed-{seed}") for seed in (0, 1)], tmp_path / "moved", ["seed"])
    np.testing.assert_array_equal(shares_of(moved), shares_of(plain))
    assert read_run(moved).scores == read_run(plain).scores
    assert read_run(moved).predictions.fingerprint == read_run(plain).predictions.fingerprint


def test_folds_are_unknown_once_the_rows_of_a_pooled_run_were_sorted(folds: Path, tmp_path: Path) -> None:
    made, _ = combine([str(folds)], tmp_path / "pooled", ["data.fold"])
    whole = read_run(made)
    assert len(fold_rows(tables_of([whole])[0])) == 1
    file = made.path / "predictions_test.csv"
    pd.read_csv(file, dtype=str).iloc[::-1].to_csv(file, index=False)
    run = read_run(made)
    assert run.scores == whole.scores
    assert fold_rows(tables_of([run])[0]) == []
    assert "folds lost" in {finding.kind for finding in findings_of([run], tables_of([run]))}


def test_an_image_of_pooled_folds_needs_the_networks_of_one_fold(folds: Path, tmp_path: Path) -> None:
    members = read_runs([str(folds)])
    for run in members:
        change_status(run.folder.path, multiply_adds=100, evaluation_passes=8)
    made, _ = combine([str(folds)], tmp_path / "pooled", ["data.fold"])
    assert made.read_status()["multiply_adds"] == 800
    assert read_run(made).multiply_adds == 800
    assert read_run(members[0].folder).multiply_adds == 800  # of eight views


def test_seeds_and_folds_combined_at_once_or_in_two_steps_have_the_same_interval(tmp_path: Path) -> None:
    for fold in (0, 1):
        for seed, skill in ((0, 1.0), (1, 3.0)):
            cut = {"data.folds": 2, "data.fold": fold, "data.split_seed": 0}
            folder = tmp_path / "cv" / f"{fold}_{seed}"
            write_run(folder, seed=seed, skill=skill, images=60, test_set=f"fold{fold}", config=cut)
            edit_predictions(
                folder,
                lambda frame, fold=fold: frame.assign(
                    image=[f"{fold}_{name}" for name in frame["image"]],
                    patient=[f"{fold}_{name}" for name in frame["patient"]],
                ),
            )
    combine([str(tmp_path / "cv")], tmp_path / "by_seed", ["data.fold"])
    combine([str(tmp_path / "cv")], tmp_path / "once", ["data.fold", "seed"])
    combine([str(tmp_path / "cv")], tmp_path / "all", ["all"])
    combine([str(tmp_path / "cv")], tmp_path / "means", ["seed"])
    combine([str(tmp_path / "means")], tmp_path / "twice", ["data.fold"])
    intervals, kinds = [], []
    for name in ("once", "twice", "all"):
        runs = read_runs([str(tmp_path / "by_seed"), str(tmp_path / name)])
        (table,) = tables_of(runs)
        (mean,) = [group for group in table.scored_groups if group.is_mean]
        intervals.append(table.estimates["qwk"].interval(table.groups.index(mean)))
        kinds.append({finding.kind for finding in findings_of(runs, [table])})
    assert [tuple(each) for each in intervals[1:]] == [pytest.approx(tuple(intervals[0]))] * 2
    assert kinds[0] == kinds[1] == kinds[2]


def test_means_of_different_numbers_of_runs_are_a_fault(tmp_path: Path) -> None:
    for depth, count in ((18, 2), (50, 5)):
        for seed in range(count):
            write_run(tmp_path / "runs" / f"{depth}_{seed}", depth=depth, seed=seed, skill=0.7 + depth / 40, images=900)
    combine([str(tmp_path / "runs")], tmp_path / "means", ["seed"])
    runs = read_runs([str(tmp_path / "means")])
    (table,) = tables_of(runs)
    kinds = {each.kind: each.text for each in findings_of(runs, [table])}
    assert kinds["means of different sizes"] == "means of 2 and 5 runs are compared; a mean of more runs is better"
    (effect,) = effects_of(table)
    assert "means of different numbers of runs, which may cause the difference" in str(effect)
    assert "one seed each" not in str(effect)
    with pytest.warns(UserWarning, match="means of different sizes"):
        compare(tmp_path / "means")


def test_compare_warns_of_different_test_sets(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 18, test_set="a" * 16)
    write_run(tmp_path / "b", 50, test_set="b" * 16)
    with pytest.warns(UserWarning, match="different test sets"):
        compare(tmp_path)
