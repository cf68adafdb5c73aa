"""The benchmark's table: its formulas, and a smoke run that fills every row."""

import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch
from conftest import with_values

from resnet_lab.config import check

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
LINE = re.compile(r"\| (?P<name>.+) \| (?P<unit>.+) \| (?P<n>\d+) \| (\S+) \| (\S+) – (\S+) \| (?P<goal>.*) \|")


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed

    return speed


def test_line_shows_median_and_range(speed):
    line = str(speed.Row("loop", "images/s", [9.0, 1.0, 2.04], "≥ 3"))
    assert line == "| loop | images/s | 3 | 2.0 | 1.0 – 9.0 | ≥ 3 |"


def test_ratios_are_of_the_same_turn(speed):
    assert speed.ratios([2.0, 9.0], [4.0, 3.0]) == [0.5, 3.0]


def test_turns_warm_up_once_and_reverse(speed, capsys):
    order = []
    contestants = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert speed.take_turns(contestants, 3) == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}
    assert order == list("ababbaab")


def test_bare_loop_counts_what_follows_the_first_batch(speed, monkeypatch):
    """Two epochs with batches of 4, 4 and 2 images; the last 6 images count and take 2 s by this clock."""
    config = {
        "data": {"image_size": 4, "batch_size": 4},
        "trainer": {"precision": "32-true", "channels_last": False, "max_epochs": 2},
        "model": {"_target_": "resnet_lab.models.resnet.resnet"},
        "optim": {},
    }
    seen, ticks = [], iter([0.0, 2.0, 10.0, 12.0])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    network.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    monkeypatch.setattr(speed, "configuration", lambda overrides: config)
    monkeypatch.setattr(
        speed, "build", lambda group, node, **_: network if group == "model" else lambda p: torch.optim.SGD(p, 0.1)
    )
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks))
    before = network[1].weight.clone()
    assert speed.bare_speed([], images=10, num_classes=5) == 3.0
    assert seen == [4, 4, 2] * 2
    assert not torch.equal(network[1].weight, before)


@pytest.fixture
def gpu(speed):
    import gpu

    return gpu


def measured(speed, wait=0.01, memory=900.0):
    return {"speed": speed, "wait": wait, "memory": memory}


def test_what_a_gpu_benchmark_did_not_reach_reads_not_measured(gpu, tmp_path):
    bench, file = gpu.Bench(gpu.FULL, "cpu", tmp_path), tmp_path / "out.jsonl"
    empty = "\n".join(gpu.lines_of(bench, file))
    assert "Nothing is measured yet" in empty
    assert empty.count("| not measured |") == 15 + 4
    fast, float32 = (f"ResNet-50, 224 px, batch 256: {name}" for name in ("fast", "float32"))
    for name, program, bare in ((float32, 5.0, 6.0), (fast, 900.0, 1000.0), (float32, 250.0, 500.0)):
        gpu.append(file, kind="speed", name=name, program=measured(program), bare=measured(bare, memory=800.4))
    gpu.append(file, kind="tests", passed=36, failed=0, skipped=1, error=0, seconds=99)
    lines = list(gpu.lines_of(bench, file))
    assert f"| {fast} | 900 | 1000 | 0.900 |  | 1.0 % | 900 | 800 |" in lines
    assert f"| {float32} | 250 | 500 | 0.500 |  | 1.0 % | 900 | 800 |" in lines  # the last measurement
    assert f"| {fast} / float32 | 3.60 | ≥ 3 |" in lines
    assert "Tests on the GPU (`pytest -m gpu`): 36 passed, 0 failed, 1 skipped, 0 error, 99 seconds." in lines
    assert "Nothing is measured yet" not in "\n".join(lines)
    assert not [line for line in lines if line.startswith("Images ")]
    gpu.append(
        file, kind="speed", name=fast, program=measured(9.0) | {"images": "streamed, 9 workers"}, bare=measured(9.0)
    )
    gpu.append(file, kind="tests", passed=3, failed=0, skipped=0, error=0, **{"seconds, then stopped": 9})
    lines = list(gpu.lines_of(bench, file))
    assert f"Images streamed, 9 workers: {fast}." in lines
    assert lines[4].endswith("3 passed, 0 failed, 0 skipped, 0 error, 9 seconds, then stopped.")


@pytest.mark.slow
def test_a_gpu_benchmark_counts_tests_also_if_they_are_stopped(gpu, tmp_path, monkeypatch):
    text = """[gw0] [ 10%] PASSED tests/test_gpu.py::test_one[32-true]
tests/test_gpu.py::test_two PASSED                     [ 20%]
tests/test_gpu.py::test_three FAILED                   [ 30%]
[gw1] [ 40%] SKIPPED tests/test_gpu.py::test_four
E   assert "PASSED"
1.00s call     tests/test_gpu.py::test_one[32-true]
tests/test_gpu.py::test_five """
    assert gpu.counts_of(text) == {"passed": 2, "failed": 1, "skipped": 1, "error": 0}
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\naddopts = -q\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    bench, file = gpu.Bench(gpu.Plan(tests=("-p", "no:cacheprovider")), "cpu", tmp_path), tmp_path / "out.jsonl"
    source = "import time, pytest\n\n@pytest.mark.gpu\ndef test_it():\n    time.sleep({})\n"
    for seconds, stopped in ((0, False), (600, True)):
        (tmp_path / "tests" / "test_gpu.py").write_text(source.format(seconds))
        assert gpu.run_tests(bench, file, seconds=1 if stopped else 600) is not stopped
        found = gpu.read(file)[1]
        assert found["passed"] == int(not stopped)
        assert ("seconds, then stopped" in found) is stopped


@pytest.mark.slow
def test_a_gpu_benchmark_gives_keys_that_jobs_accept(gpu, tmp_path, monkeypatch):
    seen: list[list[str]] = []
    bench = gpu.Bench(gpu.FULL, "cuda", tmp_path)
    monkeypatch.setattr(gpu, "write_photographs", lambda folder, *_: folder)
    monkeypatch.setattr(gpu.prepare, "command", lambda _: None)
    monkeypatch.setattr(bench, "bare", lambda overrides, *_: seen.append(overrides))
    monkeypatch.setattr(bench, "program", seen.append)
    workloads = [each for stage in ("main", "rest") for each in bench.workloads(stage)]
    for workload in workloads:
        workload.run()
    assert len(seen) == 2 * len(workloads)
    for overrides in {tuple(each) for each in seen}:
        check(with_values(overrides))


def test_a_gpu_benchmark_keeps_what_precedes_a_failure(gpu, tmp_path, monkeypatch, capsys):
    bench, file = gpu.Bench(gpu.FULL, "cpu", tmp_path), tmp_path / "out.jsonl"
    good = gpu.Measured(2.0, 0.5, 3.0), gpu.Measured(4.0, 0.0, 3.0)

    def fails():
        raise RuntimeError("no memory")

    def absent():
        raise ImportError("no timm")

    runs = [lambda: good, fails, absent, lambda: good]
    work = [gpu.Workload(name, "", run) for name, run in zip("abcd", runs, strict=True)]
    monkeypatch.setattr(bench, "workloads", lambda stage: work)
    assert not gpu.run_workloads(bench, "main", file, seconds=60)
    assert list(gpu.read(file)[2]) == ["a", "d"]
    assert "no memory" in capsys.readouterr().err
    assert gpu.run_workloads(bench, "main", tmp_path / "late.jsonl", seconds=-1)
    assert not (tmp_path / "late.jsonl").exists()


def test_an_epoch_of_the_bare_loop_counts_what_follows_its_first_batch(gpu, tmp_path, monkeypatch):
    """Three batches of 4 images; the last 8 images take 2 s, of which the loop waits 0.5 s by this clock."""
    ticks = iter([10.0, 10.0, 10.25, 11.0, 11.25, 12.0, 12.0])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(ticks))
    bench = gpu.Bench(gpu.FULL, "cpu", tmp_path)
    batches = [(torch.zeros(4), torch.zeros(4))] * 3
    assert bench._epoch(lambda images, targets: None, batches) == (4.0, 0.25)


@pytest.mark.slow
def test_a_gpu_benchmark_is_rehearsed_on_the_cpu(tmp_path):
    for stage in ("main", "rest"):
        out, page = tmp_path / "out.jsonl", tmp_path / "page.md"
        command = [sys.executable, str(BENCHMARKS / "gpu.py"), f"--stage={stage}", f"--out={out}", f"--page={page}"]
        done = subprocess.run([*command, "--device=cpu", "--quick"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "these numbers mean nothing" in text
    assert text.count("not measured") - text.count("timm's pipeline | not measured") == 1  # the tests


@pytest.fixture
def peers(speed):
    import peers

    return peers


def timed(commands, folder):
    """Seconds by the command: 3 to prepare, 5 to train, timm 20 (10 with one worker), torchvision 12."""
    words = " ".join(word for command in commands for word in command)
    ours = 3 * ("resnet_lab prepare" in words) + 5 * ("resnet_lab train" in words)
    timm = (10 if words.endswith("--workers 1") else 20) * ("timm.py" in words)
    return float(ours + timm + 12 * ("vision.py" in words))


def test_programs_are_compared_with_the_faster_peer(peers, tmp_path, capsys):
    scripts = {"timm": Path("timm.py"), "torchvision": Path("vision.py")}
    rows, workers = peers.measure(tmp_path, peers.QUICK, scripts, timed)
    assert workers == {"timm": [1, 1], "torchvision": [0, 0]}
    small, camera = "96×64 px, 1 epoch:", "384×256 px, 1 epoch:"
    assert [(row.name, list(row.values), row.goal) for row in rows] == [
        (f"{small} the program, first run", [5.0], ""),
        (f"{small} the program, later run", [5.0], ""),
        (f"{small} timm", [10.0], ""),
        (f"{small} torchvision", [12.0], ""),
        (f"{small} the program, first run / the faster peer", [0.5], "≤ 1.02"),
        (f"{small} the program, later run / the faster peer", [0.5], "≤ 1.02"),
        (f"{camera} the program, first run", [8.0], ""),
        (f"{camera} the program, later run", [5.0], ""),
        (f"{camera} timm", [10.0], ""),
        (f"{camera} torchvision", [12.0], ""),
        (f"{camera} the faster peer / the program, first run", [1.25], "≥ 5"),
        (f"{camera} the faster peer / the program, later run", [2.0], "≥ 5"),
    ]


def test_a_peer_without_a_script_is_left_out(peers, tmp_path, capsys):
    rows, workers = peers.measure(tmp_path, peers.QUICK, {"torchvision": Path("vision.py")}, timed)
    assert not any("timm" in row.name for row in rows)
    text = peers.method(peers.QUICK, workers)
    assert "- timm is left out: this measurement had no `--timm`." in text
    assert "- torchvision has 0 workers for small files and 0 workers for camera size." in text
    assert "python torchvision/train.py --data-path PHOTOGRAPHS" in text
    assert "timm/train.py" not in text
    rows, _ = peers.measure(tmp_path / "alone", peers.QUICK, {}, timed)
    assert [row.unit for row in rows] == ["s"] * 4


def test_peers_and_program_read_the_same_photographs(peers, tmp_path):
    small, camera = peers.write_photographs(tmp_path, peers.QUICK)
    for folder, shape in ((small, (64, 96, 3)), (camera, (256, 384, 3))):
        for split in ("train", "val"):
            table = pd.read_csv(folder / f"{split}.csv")
            files = sorted(str(path.relative_to(folder)) for path in (folder / split).rglob("*.jpeg"))
            assert sorted(table["image"]) == files
            assert len(files) == 10
            assert [Path(name).parts[1] for name in table["image"]] == [str(level) for level in table["level"]]
        assert cv2.imread(str(folder / files[0])).shape == shape


def test_a_program_that_fails_ends_the_measurement(peers, tmp_path):
    (tmp_path / "train.py").write_text("raise ValueError('no such option')")
    with pytest.raises(SystemExit, match=r"train.py --epochs 1 failed:\n(.*\n)*ValueError: no such option"):
        peers.seconds([[str(tmp_path / "train.py"), "--epochs", "1"]], tmp_path / "work")


@pytest.mark.slow
def test_peers_are_measured_with_their_scripts(tmp_path):
    out, scripts = tmp_path / "page.md", {}
    for name, option in (("timm", "--data-dir"), ("torchvision", "--data-path")):
        scripts[name] = tmp_path / name / "train.py"
        scripts[name].parent.mkdir()
        scripts[name].write_text(
            f"import sys; from pathlib import Path; root = Path(sys.argv[sys.argv.index({option!r}) + 1])\n"
            "assert len(list(root.glob('train/*/*.jpeg'))) == len(list(root.glob('val/*/*.jpeg'))) == 10\n"
        )
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--quick", "--out", str(out)]
    command += [f"--{name}={path}" for name, path in scripts.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert "these numbers mean nothing" in text
    assert re.search(r"timm\s[\d.]+,\stimm's\strain.py\s[0-9a-f]{12},", text)
    assert str(tmp_path) not in text
    lines = [LINE.fullmatch(line) for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    assert len(lines) == 12
    assert all(float(line[4]) > 0 for line in lines)


ROWS = {
    "speed": [
        ("ResNet-18, 32 px, batch 8: program", "images/s", ""),
        ("ResNet-18, 32 px, batch 8: bare loop", "images/s", ""),
        ("ResNet-18, 32 px, batch 8: program, float32 NCHW", "images/s", ""),
        ("ResNet-18, 32 px, batch 8: program / bare loop", "ratio", "≥ 0.95"),
        ("ResNet-18, 32 px, batch 8: program / program, float32 NCHW", "ratio", "≥ 1.7"),
        ("CIFAR form, ResNet-20, 32 px, batch 128: program", "images/s", ""),
        ("CIFAR form, ResNet-20, 32 px, batch 128: bare loop", "images/s", ""),
        ("CIFAR form, ResNet-20, 32 px, batch 128: program / bare loop", "ratio", "≥ 0.9"),
        ("`resnet-lab --help`", "CPU s", "< 0.5"),
        ("`resnet-lab report` on ten runs, 50 test images", "CPU s", "< 5"),
        ("ResNet-18, 32 px, batch 8: peak memory", "MB", ""),
        ("ResNet-50, 32 px, batch 8: peak memory", "MB", ""),
    ],
    "job_cost": [
        ("start, to the first step", "s", ""),
        ("of which imports", "s", ""),
        ("a checkpoint of 1 MB", "ms", ""),
        ("metrics.csv of an epoch", "ms", ""),
        ("status.json of an epoch", "ms", ""),
        ("pictures of an epoch", "ms", ""),
        ("end: test, predictions, pictures", "s", ""),
        ("a done job, rerun", "s", ""),
        ("2 jobs of CIFAR ResNet-20, forked by the sweep", "s", ""),
        ("2 jobs of CIFAR ResNet-20, each a new process", "s", ""),
        ("forked / new processes, CIFAR ResNet-20", "ratio", "≤ 0.4"),
    ],
    "data_speed": [
        ("prepare, 64 px", "images/s", ""),
        ("Pillow, 64 px", "images/s", ""),
        ("prepare / Pillow", "ratio", "≥ 6"),
        ("prepare 5 photographs, 2 / 1 processes", "ratio", ""),
        ("load and augment, 64 px: the program", "images/s", ""),
        ("load and augment, 64 px: the program, raw", "images/s", ""),
        ("load and augment, 64 px: the studies' loader, originals", "images/s", ""),
        ("load and augment, 64 px: transforms.v2, tensors", "images/s", ""),
        ("load and augment, 64 px: transforms.v2, PIL", "images/s", ""),
        ("load and augment, 64 px: decoding alone", "images/s", ""),
        ("load and augment, 64 px: copy alone, raw", "images/s", ""),
        ("load and augment, 64 px: warp alone", "images/s", ""),
        ("load and augment, 64 px: warp alone, one call for all images", "images/s", ""),
        ("load and augment, 64 px: normalization alone", "images/s", ""),
        ("load and augment, 64 px: float32 alone", "images/s", ""),
        ("the program / the studies' loader, originals", "ratio", ""),
        ("the program, raw / the studies' loader, originals", "ratio", "≥ 50"),
        ("the program, raw / the program", "ratio", ""),
        ("the program / transforms.v2, tensors", "ratio", "≥ 3"),
        ("the program / transforms.v2, PIL", "ratio", "≥ 2.5"),
        ("decoding alone / the studies' loader, originals", "ratio", ""),
        ("warp alone / the studies' loader, originals", "ratio", ""),
        ("normalization alone / the studies' loader, originals", "ratio", ""),
        ("float32 alone / the studies' loader, originals", "ratio", ""),
        ("warp alone, one call for all images / warp alone", "ratio", "> 1.05 to be used"),
        ("scaled / full decode: difference", "gray levels", "< 0.5"),
        ("ResNet-18 trained through scaled decode: test QWK", "QWK", ""),
        ("ResNet-18 trained through full decode: test QWK", "QWK", ""),
        ("prepare 10 photographs: peak memory", "MB", ""),
        ("prepare 40 photographs: peak memory", "MB", ""),
        ("prepare: memory of each further photograph", "KB", ""),
    ],
    "report_speed": [
        *[
            (f"report: {what} images", unit, goal)
            for what, goals in (
                ("6 runs in 2 groups, 31", ("", "", "")),
                ("12 runs in 4 groups, 31", ("", "", "")),
                ("48 runs in 16 groups, 31", ("", "", "")),
                ("48 runs in 16 groups, 500", ("", "≤ 15", "≤ 600")),
            )
            for unit, goal in zip(("CPU s", "s", "MB"), goals, strict=True)
        ],
        *[
            (f"status: {runs} runs", unit, goal)
            for runs, goals in ((48, ("", "", "")), (100, ("", "≤ 4", "")))
            for unit, goal in zip(("CPU s", "s", "MB"), goals, strict=True)
        ],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_smoke_run_fills_every_row(tmp_path, name):
    page, script = tmp_path / "results" / "page.md", str(BENCHMARKS / f"{name}.py")
    done = subprocess.run([sys.executable, script, "--quick", "--out", str(page)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text in done.stdout
    assert "these numbers mean nothing" in text
    lines = [LINE.fullmatch(line) for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    assert all(lines)
    assert [(line["name"], line["unit"], line["goal"]) for line in lines] == ROWS[name]
    for line in lines:
        middle, low, high = map(float, line.groups()[3:6])
        assert math.isfinite(high)
        assert low <= middle <= high, line["name"]
        assert low > 0 or line["unit"] in ("gray levels", "QWK", "KB")
