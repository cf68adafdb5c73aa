"""The benchmark's table: its formulas, and a smoke run that fills every row."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
        *[
            row
            for network in ("CIFAR ResNet-20", "ResNet-18")
            for row in (
                (f"2 jobs of {network}, forked by the sweep", "s", ""),
                (f"2 jobs of {network}, each a new process", "s", ""),
                (f"forked / new processes, {network}", "ratio", "≤ 0.4"),
            )
        ],
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
                ("48 runs in 16 groups, 500", ("≤ 15", "", "≤ 600")),
            )
            for unit, goal in zip(("CPU s", "s", "MB"), goals, strict=True)
        ],
        *[
            (f"status: {runs} runs", unit, goal)
            for runs, goals in ((48, ("", "", "")), (100, ("≤ 4", "", "")))
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
