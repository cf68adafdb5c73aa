"""Differences between the runs of several sweeps."""

from fake_runs import write_run

from resnet_lab.report.groups import sweeps_of
from resnet_lab.report.runs import read_run
from resnet_lab.report.sharing import unshared_of
from resnet_lab.run_folder import find_runs


def sweeps(folder):
    return sweeps_of([read_run(run) for run in find_runs([folder])])


def test_differences_are_listed_per_sweep_except_keys_that_both_vary(tmp_path):
    for sweep, lr, commit in (("old", 0.1, "aaaa"), ("new", 0.01, "bbbb")):
        for depth in (18, 50):
            for seed in (0, 1):
                folder = tmp_path / sweep / f"{depth}-{seed}"
                write_run(folder, depth, seed=seed, config={"optim.lr": lr, "data.root": f"/{sweep}"}, commit=commit)
    found = sweeps(tmp_path)
    assert {name: len(runs) for name, runs in found.items()} == {"new": 4, "old": 4}
    rows = {row.key: row.values_of_sweeps for row in unshared_of(found)}
    assert rows == {"optim.lr": ["0.01", "0.1"], "commit": ["bbbb", "aaaa"]}


def test_versions_are_compared_one_by_one_and_long_lists_are_cut(tmp_path):
    for n in range(6):
        write_run(tmp_path / "many" / str(n), config={"optim.lr": n}, versions={"torch": "2.14", "python": "3.11"})
    write_run(tmp_path / "one" / "0", config={"optim.lr": 0}, versions={"torch": "2.13", "python": "3.11"})
    rows = {row.key: row.values_of_sweeps for row in unshared_of(sweeps(tmp_path))}
    assert rows == {"optim.lr": ["0, 1, 2, 3 and 2 more", "0"], "versions.torch": ["2.14", "2.13"]}


def test_sweeps_of_the_same_name_are_distinguished(tmp_path):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "sweep" / "0")
    assert list(sweeps(tmp_path)) == ["a/sweep", "b/sweep"]
    assert unshared_of(sweeps(tmp_path)) == []
