"""Published numbers: every row is complete, and its protocol is compared with that of the runs."""

import pytest
import yaml
from fake_runs import write_run

from resnet_lab.report.references import FILE, WORDS, Reference, protocol_of, references_for
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES

ROWS = yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["what"])
def test_every_row_is_complete(row):
    reference = Reference(**row)
    assert set(reference.scores) <= set(SCORES)
    assert all(0 < value < 1 for value in (*reference.scores.values(), *reference.std.values()))
    assert set(reference.protocol) == set(WORDS)
    assert reference.read in ("original", "abstract", "copy")
    assert reference.source


def run_of(folder, **changes):
    return read_run(RunFolder(write_run(folder, **changes)))


def test_the_protocol_is_read_from_the_run(tmp_path):
    counts = {"train": [800, 100, 100, 50, 30], "val": [60, 20, 20, 10, 10]}
    run = run_of(tmp_path / "a", class_counts=counts, monitor="val/auroc", config={"data.image_size": 28})
    assert protocol_of(run) == {"images": 400, "train_images": 1080, "image_size": 28, "selection": "validation"}
    assert protocol_of(run_of(tmp_path / "b", monitor=None))["selection"] == "last"
    assert protocol_of(run_of(tmp_path / "c", monitor="test/loss"))["selection"] == "test"


def test_a_protocol_agrees_differs_or_is_not_stated(tmp_path):
    counts = {"train": [800, 100, 100, 50, 30]}
    config = {"data.image_size": 28, "data.name": "retinamnist"}
    run = run_of(tmp_path / "a", class_counts=counts, monitor="val/auroc", config=config)
    found = {reference.what: reference.verdict([run]) for reference in references_for([run])}
    assert found["ResNet-18 at 28 px (MedMNIST v2)"] == "Same protocol"
    assert found["ResNet-18 at 224 px, 28 px enlarged (MedMNIST v2)"] == "Different protocol: 224 px, here 28"
    assert found["ResNet-18 at true 224 px, 3 seeds (MedMNIST+)"].endswith("(not stated: selection)")
    silent = Reference(["x"], 5, "x", {}, dict.fromkeys(WORDS), "x", "copy")
    assert silent.verdict([run]) == "Protocol not stated"


def test_the_verdict_is_about_the_closest_run(tmp_path):
    counts = {"train": [800, 100, 100, 50, 30], "test": [400, 0, 0, 0, 0]}
    shared = {"class_counts": counts, "monitor": "val/auroc"}
    runs = [
        run_of(tmp_path / str(size), config={"data.image_size": size, "data.name": "retinamnist"}, **shared)
        for size in (28, 224)
    ]
    found = {reference.what: reference.verdict(runs) for reference in references_for(runs)}
    assert found["ResNet-18 at 224 px, 28 px enlarged (MedMNIST v2)"] == "Same protocol, in 1 of 2 runs"
    assert found["Google AutoML (MedMNIST v2)"].startswith("Same protocol as far as stated (not stated: ")


def test_data_sets_of_one_reader_are_recognized_by_their_size(tmp_path):
    def sources(name, **counts):
        run = run_of(tmp_path / name, class_counts={split: [n, 0, 0, 0, 0] for split, n in counts.items()})
        return {reference.source for reference in references_for([run])}

    again = "github.com/Leo-Meg/RETFound_Comparaison_For_Diabetic_Retinopathy_Evaluation (2026)"
    assert sources("idrid", train=412, test=103) == {"RETFound's own comparison", again}
    assert "Huang et al. 2023, Diagnostics 13:1664" in sources("kaggle", train=28100, test=7026)
    assert sources("aptos", train=3000, test=662) == {"RETFound's own comparison"}
    assert sources("other", train=3000, test=500) == set()


def test_rows_are_for_the_same_data_classes_network_and_for_test_images(tmp_path):
    names = [f"class {k}" for k in range(10)]
    form = {"data.name": "cifar10", "model.form": "cifar", "model.shortcut": "zero_pad"}
    run = run_of(tmp_path / "a", depth=20, class_names=names, config=form)
    assert {row.config["model.depth"] for row in references_for([run])} == {20}
    assert {row.config["model.shortcut"] for row in references_for([run])} == {"zero_pad"}
    assert not references_for([run_of(tmp_path / "b", config={"data.name": "cifar10"})])  # five classes
    assert not references_for([run_of(tmp_path / "c", split="val")])
    assert not references_for([])
