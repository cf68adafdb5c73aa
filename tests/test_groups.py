"""Tables and groups of made-up runs: their definition, names and warnings."""

import gzip
import itertools

import numpy as np
import pytest
from fake_runs import edit_predictions, write_run, write_sweep

from resnet_lab.errors import UserError
from resnet_lab.rendering import Finding
from resnet_lab.report.effects import effects_of
from resnet_lab.report.findings import findings_of
from resnet_lab.report.groups import places_of, sweeps_of, tables_of
from resnet_lab.report.runs import read_run
from resnet_lab.run_folder import BOOKKEEPING, find_runs


def compare(*folders):
    runs = [read_run(folder) for folder in find_runs(folders)]
    tables = tables_of(runs)
    return runs, tables, findings_of(runs, tables)


def kinds(findings) -> list[str]:
    return [finding.kind for finding in findings]


def labels(table) -> list[str]:
    return [group.label for group in table.groups]


def test_seeds_make_a_group_with_mean_and_sample_deviation(tmp_path):
    _, (table,), findings = compare(write_sweep(tmp_path / "sweep"))
    assert labels(table) == [
        "depth=18 pretrained=none",
        "depth=18 pretrained=IMAGENET1K_V1",
        "depth=50 pretrained=none",
        "depth=50 pretrained=IMAGENET1K_V1",
    ]
    group = table.groups[1]
    values = [run.scores["auroc"] for run in group.runs]
    assert group.mean_and_std("auroc") == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert kinds(findings) == ["collapsed", "few images"]
    assert findings[0].text == "3 runs nearly always predict one class, on test or on validation"
    assert findings[0].names == ("depth=18 pretrained=none: 3 of 3 (seeds 0, 1, 2)",)


def test_groups_are_sorted_by_number_not_by_text(tmp_path):
    for lr in (0.1, 0.01, 5, 10):
        write_run(tmp_path / str(lr), config={"optim.lr": lr})
    (table,) = compare(tmp_path)[1]
    assert labels(table) == ["lr=0.01", "lr=0.1", "lr=5", "lr=10"]


def test_axes_leave_out_bookkeeping_and_keep_names_short_but_unique(tmp_path):
    write_run(tmp_path / "a", seed=0, config=dict.fromkeys(BOOKKEEPING, "x") | {"optim.lr": 0.1, "head.lr": 1})
    write_run(tmp_path / "b", seed=1, config=dict.fromkeys(BOOKKEEPING, "y") | {"optim.lr": 0.2, "head.lr": 2})
    _, (table,), _ = compare(tmp_path)
    assert list(table.groups[0].values) == ["optim.lr", "head.lr"]
    assert labels(table) == ["optim.lr=0.1 head.lr=1", "optim.lr=0.2 head.lr=2"]


def test_keys_that_differ_only_between_sweeps_are_one_axis(tmp_path):
    several = {f"optim.{key}": 1 for key in ("lr", "momentum", "weight_decay", "nesterov")}
    for sweep, config in (("old", {}), ("new", several)):
        for depth in (18, 50):
            write_run(tmp_path / sweep / str(depth), depth, config=config)
    _, (table,), _ = compare(tmp_path)
    assert labels(table) == ["sweep=new depth=18", "sweep=new depth=50", "sweep=old depth=18", "sweep=old depth=50"]


def test_single_runs_that_differ_in_many_keys_are_named_by_their_folder(tmp_path):
    several = {f"optim.{key}": 1 for key in ("lr", "momentum", "weight_decay", "nesterov")}
    for name, seed, config in (("first", 0, {}), ("own", 0, several), ("again", 1, several)):
        write_run(tmp_path / name, seed=seed, config=config, overrides=["experiment=mine"])
    assert labels(compare(tmp_path)[1][0]) == ["run=again+own", "run=first"]
    for depth in (18, 50):
        write_run(tmp_path / "grid" / str(depth), depth, config=several | {"optim.lr": 2}, overrides=["seed=0"])
    (tmp_path / "grid" / "jobs.txt").touch()
    _, (table,), _ = compare(tmp_path)
    assert labels(table) == [
        "sweep=again+own depth=18",
        "sweep=first depth=18",
        "sweep=grid depth=18",
        "sweep=grid depth=50",
    ]
    assert [len(group.runs) for group in table.groups] == [2, 1, 1, 1]


def test_a_single_run_that_failed_at_the_start_is_in_no_table(tmp_path):
    typo = {"state": "failed", "error": "no column sage", "epoch": -1, "overrides": ["data.label_column=sage"]}
    write_run(tmp_path / "typo", config={"data.label_column": "sage"}, **typo)
    assert labels(compare(tmp_path)[1][0]) == ["depth=18 pretrained=none"]
    write_run(tmp_path / "fine", overrides=["seed=0"])
    _, (table,), findings = compare(tmp_path)
    assert [len(group.runs) for group in table.groups] == [1]
    assert "failed at the start" in kinds(findings)
    write_run(tmp_path / "planned", config={"optim.lr": 7}, state="created", epoch=-1, overrides=["optim.lr=7"])
    _, (table,), findings = compare(tmp_path)
    assert labels(table) == ["depth=18 pretrained=none"]
    assert "created" in kinds(findings)


def test_jobs_without_a_result_have_their_labels(tmp_path):
    for depth, state in ((18, "done"), (34, "created"), (50, "created")):
        write_run(tmp_path / f"depth-{depth}", depth, state=state, epoch=-1, overrides=[f"model.depth={depth}"])
    (tmp_path / "jobs.txt").write_text("".join(f"depth-{depth}\n" for depth in (18, 34, 50)))
    (finding,) = [each for each in compare(tmp_path)[2] if each.kind == "created"]
    assert (finding.text, finding.names) == ("2 runs: not started", ("depth=34", "depth=50"))


def test_a_grid_of_single_runs_keeps_its_axes(tmp_path):
    keys = [f"optim.{key}" for key in ("lr", "momentum", "weight_decay", "nesterov")]
    for n in range(6):  # more settings than keys
        config = {key: (n >> place) % 2 for place, key in enumerate(keys[:3])} | {keys[3]: n % 2}
        write_run(tmp_path / str(n), config=config, overrides=["experiment=mine"])
    assert labels(compare(tmp_path)[1][0])[0] == "lr=0 momentum=0 weight_decay=0 nesterov=0"


def test_axes_have_the_order_of_the_command(tmp_path):
    for lr, depth, sampling in ((0.1, 18, "none"), (0.2, 34, "balanced"), (0.1, 34, "none")):
        config = {"data.sampling": sampling, "optim.lr": lr, "trainer.max_epochs": depth}
        overrides = ["optim=sgd", f"model.depth={depth}", f"+data.sampling={sampling}"]
        write_run(tmp_path / f"{lr}-{depth}", depth, config=config, overrides=overrides)
    (tmp_path / "jobs.txt").touch()
    assert labels(compare(tmp_path)[1][0])[-1] == "lr=0.2 depth=34 sampling=balanced max_epochs=34"


def test_other_seeds_than_the_run_s_are_axes(tmp_path):
    for split_seed in (0, 1):
        write_run(tmp_path / str(split_seed), config={"data.split_seed": split_seed})
    assert labels(compare(tmp_path)[1][0]) == ["split_seed=0", "split_seed=1"]


def test_targets_are_named_by_their_last_part_and_missing_keys_left_out(tmp_path):
    write_run(tmp_path / "a", config={"optim": {"_target_": "resnet_lab.optim.sgd", "momentum": 0.9}})
    write_run(tmp_path / "b", config={"optim": {"_target_": "resnet_lab.optim.nadam"}})
    assert labels(compare(tmp_path)[1][0]) == ["optim=nadam", "optim=sgd momentum=0.9"]


@pytest.mark.parametrize(
    ("momentum", "given", "label"),
    [
        (0.9, [], "optim=sgd"),
        (0.9, ["optim.momentum=0.9"], "optim=sgd momentum=0.9"),
        (0.8, [], "optim=sgd momentum=0.8"),  # of an experiment file, so optim=sgd does not say it
    ],
)
def test_a_choice_of_the_command_stands_for_its_defaults(tmp_path, momentum, given, label):
    sgd = {"optim": {"_target_": "resnet_lab.optim.sgd", "momentum": momentum}}
    write_run(tmp_path / "a", config=sgd, overrides=["optim=sgd", *given])
    write_run(tmp_path / "b", config={"optim": {"_target_": "resnet_lab.optim.nadam"}}, overrides=["optim=nadam"])
    assert labels(compare(tmp_path)[1][0]) == ["optim=nadam", label]


def test_checkpoint_paths_are_as_short_as_distinguishes_them(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, pretrained=f"/long/path/runs/{name}/checkpoints/best.ckpt")
    write_run(tmp_path / "c", pretrained="/elsewhere/weights/resnet.pt")
    write_run(tmp_path / "d", pretrained="none")
    assert labels(compare(tmp_path)[1][0]) == [
        "pretrained=none",
        "pretrained=weights/resnet.pt",
        "pretrained=a/checkpoints/best.ckpt",
        "pretrained=b/checkpoints/best.ckpt",
    ]


def test_a_path_does_not_repeat_what_the_group_shows(tmp_path):
    for depth in (18, 34):
        write_run(tmp_path / f"own{depth}", depth, pretrained=f"runs/source/depth-{depth}")
    write_run(tmp_path / "other", 34, pretrained="runs/source/depth-18")
    assert labels(compare(tmp_path)[1][0]) == [
        "depth=18 pretrained=source",
        "depth=34 pretrained=source/depth-18",
        "depth=34 pretrained=source",
    ]


def test_shortened_paths_still_distinguish_groups(tmp_path):
    for source in "ab":
        for depth in (18, 34):
            write_run(tmp_path / f"{source}{depth}", depth, pretrained=f"{source}/source/depth-{depth}")
    assert labels(compare(tmp_path)[1][0]) == [
        f"depth={depth} pretrained={source}/source" for depth in (18, 34) for source in "ab"
    ]


def test_different_test_sets_never_share_a_table(tmp_path):
    for seed, test_set in ((0, "a" * 16), (1, "a" * 16), (2, "c" * 16)):
        write_run(tmp_path / str(seed), seed=seed, test_set=test_set)
    _, tables, findings = compare(tmp_path)
    assert [[len(group.scored) for group in table.groups] for table in tables] == [[2], [1]]
    for table in tables:
        assert table.scored[0].fingerprint("test")[:8] in table.title
    assert "different test sets" in kinds(findings)


def test_kappa_is_shown_for_ordered_classes_only(tmp_path):
    write_run(tmp_path / "grades" / "0")
    write_run(tmp_path / "birds" / "0", class_names=["duck", "goose", "swan"])
    shown = [compare(tmp_path / name)[1][0].metrics for name in ("grades", "birds")]
    assert ["qwk" in names for names in shown] == [True, False]


def test_without_a_test_split_validation_is_shown_and_labeled(tmp_path):
    write_run(tmp_path / "run", split="val")
    _, (table,), findings = compare(tmp_path)
    assert table.title.startswith("retinopathy, val split: 400 images")
    assert "no test split" in kinds(findings)


def test_faults_are_reported(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "failed", seed=1, state="failed", error="OutOfMemoryError: 6 GB\nTraceback")
    write_run(tmp_path / "killed", seed=2, state="running", epoch=3)
    write_run(tmp_path / "leaky", seed=3, leaks=5618, skipped_images=2)
    write_run(tmp_path / "dropped", seed=4, leaks=5618, config={"data.on_leak": "drop"})
    write_run(tmp_path / "again", seed=0)
    found = {finding.kind: finding.text for finding in compare(tmp_path)[2]}
    assert found["failed"] == "failed: OutOfMemoryError: 6 GB"
    assert found["interrupted"] == "killed: no result, last epoch: 4"
    assert (
        found["leaking"]
        == "5618 images of train or val share a patient or an identical image with a later split (1 of 6 runs: leaky)"
    )
    assert found["skipped images"] == "2 images could not be read (1 of 6 runs: leaky)"
    assert found["duplicate seed"].startswith("on_leak=ignore: seed 0 occurs more than once, so n is too large; ")
    text = (
        "how much results vary between trainings is unknown for on_leak=drop; it is estimated "
        "from the other groups, and may be far off"
    )
    assert found["one seed only"] == text


def test_images_that_a_source_was_trained_on_are_a_leak(tmp_path):
    write_run(tmp_path / "taught", seen_by={"loss.teacher": {"val": 3, "test": 0}})
    texts = [finding.text for finding in compare(tmp_path)[2] if finding.kind == "leaking"]
    assert texts == ["the network of loss.teacher was trained on 3 val images (1 of 1 run)"]


def test_constant_predictions_are_a_collapse_whatever_the_status(tmp_path):
    write_run(tmp_path / "run", skill=0.0, collapsed=False)
    assert kinds(compare(tmp_path)[2]) == ["collapsed", "few images", "one seed only"]


def test_runs_without_a_result_count_in_their_group_but_not_in_its_mean(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "stale", seed=1, state="failed", error="late", skill=0.0)
    write_run(tmp_path / "bare", seed=2)
    (tmp_path / "bare" / "predictions_test.csv").unlink()
    runs, (table,), findings = compare(tmp_path)
    (group,) = table.groups
    assert (len(group.runs), len(group.scored)) == (3, 1)
    fine = next(run for run in runs if run.folder.path.name == "fine")
    assert group.mean_and_std("accuracy")[0] == fine.scores["accuracy"]
    assert Finding("no result", "bare: no predictions_test.csv; remove its folder and train the run again") in findings


def test_a_damaged_run_is_listed_and_the_others_still_compared(tmp_path):
    write_run(tmp_path / "fine", seed=0)
    write_run(tmp_path / "hurt", seed=1)
    (tmp_path / "hurt" / "config.yaml").write_text("")
    _, (table,), findings = compare(tmp_path)
    assert [run.folder.path.name for run in table.scored] == ["fine"]
    assert findings[0].kind == "unreadable"
    assert findings[0].text.startswith("hurt: config.yaml contains NoneType")


def test_an_evaluation_inside_a_run_is_not_a_run(tmp_path):
    folder = write_run(tmp_path / "run")
    evaluation = folder / "evaluation_best_test_data-synthetic"
    evaluation.mkdir()
    (evaluation / "predictions_test.csv").write_text("image,target,prediction,p_0\n")
    (run,), _, findings = compare(tmp_path)
    assert run.folder.path == folder
    assert "one seed only" in kinds(findings)
    assert "no result" not in kinds(findings)


def test_places_are_short_and_distinguish_runs(tmp_path):
    for place in ("sweep/a", "sweep/b", "more/a"):
        write_run(tmp_path / place)
    assert sorted(places_of(compare(tmp_path)[0]).values()) == ["more/a", "sweep/a", "sweep/b"]
    assert list(places_of(compare(tmp_path / "sweep/a")[0]).values()) == ["a"]


def test_a_group_over_different_folders_of_images_gives_a_warning(tmp_path):
    for seed, root in enumerate(("/data/whole", "/data/cropped")):
        write_run(tmp_path / str(seed), 18, seed=seed, config={"data.root": root})
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    doubts = [finding.text for finding in findings_of(runs, tables_of(runs)) if finding.kind == "different images"]
    assert len(doubts) == 1
    assert "/data/cropped and /data/whole" in doubts[0]


def test_copies_of_a_folder_of_images_are_no_finding(tmp_path):
    for seed, root in enumerate(("/data/whole", "/data/copy")):
        write_run(tmp_path / str(seed), 18, seed=seed, config={"data.root": root}, pixel_digests={"test": "12ab"})
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    assert "different images" not in {finding.kind for finding in findings_of(runs, tables_of(runs))}


def test_groups_are_named_by_words_of_their_labels(tmp_path):
    write_sweep(tmp_path, seeds=(0,))
    runs = [read_run(run) for run in find_runs([tmp_path])]
    (table,) = tables_of(runs, named=["pretrained=none depth=50"])
    assert table.named == ["pretrained=none depth=50"]
    with pytest.raises(UserError, match="groups=depth=5: no group has these words in its label; one label is depth="):
        tables_of(runs, named=["depth=5"])


def test_labeled_values_stand_for_themselves(tmp_path):
    given = {f"labels.model.{key}": text for key, text in (("pretrained.none", "scratch"), ("depth.18", "small"))}
    for depth in (18, 34):
        write_run(tmp_path / f"a{depth}", depth, pretrained="none", config=given)
        write_run(tmp_path / f"b{depth}", depth, pretrained="weights/imagenet.pt")
    _, (table,), _ = compare(tmp_path)
    sources = ("scratch", "pretrained=weights/imagenet.pt")
    assert labels(table) == [f"{depth} {source}" for depth in ("small", "depth=34") for source in sources]
    found = {effect.label for effect in effects_of(table)}
    assert found == {"depth=34 instead of small", "pretrained=weights/imagenet.pt instead of scratch"}


def test_published_sweeps_keep_their_axes(tmp_path):
    for sweep, lr in (("first", 0.1), ("second", 0.2)):
        config = {"optim.lr": lr} | {f"data.key{number}": lr for number in range(12)}
        for depth, seed in itertools.product((18, 34), (0, 1)):
            overrides = [f"model.depth={depth}", f"seed={seed}"]
            run = write_run(tmp_path / sweep / f"{depth}-{seed}", depth, seed=seed, config=config, overrides=overrides)
            metrics = run / "metrics.csv"
            (run / "metrics.csv.gz").write_bytes(gzip.compress(metrics.read_bytes()))
            metrics.unlink()
    _, (table,), _ = compare(tmp_path)
    assert {group.label for group in table.groups} == {
        f"sweep={sweep} depth={depth}" for sweep in ("first", "second") for depth in (18, 34)
    }


def test_sweeps_with_the_same_last_names_stay_apart(tmp_path):
    for number, place in enumerate(["A/exp/sweep", "B/exp/sweep", "C/other"]):
        for seed in (0, 1):
            varied = dict.fromkeys(("optim.lr", "optim.momentum", "data.crop", "data.rotation"), 0.1 * (number + 1))
            write_run(tmp_path / place / f"s{seed}", seed=seed, skill=2 + number, config=varied)
        (tmp_path / place / "jobs.txt").write_text("s0\ns1\n")
    runs, (table,), _ = compare(tmp_path)
    assert {name: len(members) for name, members in sweeps_of(runs).items()} == {
        "A/exp/sweep": 2,
        "B/exp/sweep": 2,
        "other": 2,
    }
    assert labels(table) == ["sweep=A/exp/sweep", "sweep=B/exp/sweep", "sweep=other"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_metric_that_a_group_has_not_ranks_none(tmp_path):
    for seed, skill in ((0, 9.0), (1, 0.5)):  # the first one is right on all images, which are of one grade
        run = write_run(tmp_path / str(seed), 18 + 32 * seed, skill=skill, images=60)
        edit_predictions(run, lambda frame: frame[frame["target"] == 0])
    _, (table,), _ = compare(tmp_path)
    assert table.metric == "accuracy"
    assert [group.shown["model.depth"] for group in table.ranked] == ["depth=18", "depth=50"]
