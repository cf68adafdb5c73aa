"""Test and measure on a GPU: `python benchmarks/gpu.py --stage tests|main|rest [--page FILE.md]` (`make gpu`).

Each stage stands alone, and appends what it measures to the file of `--out` at once. `--page` writes the page from all
that this file has. `--device cpu --quick` rehearses a stage on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from page import origin
from speed import configuration, program_status
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_lab import build as build_part
from resnet_lab import environment, prepare
from resnet_lab.build import set_up_logging, use_tf32
from resnet_lab.config import build
from resnet_lab.errors import count
from resnet_lab.optim import use_fused
from resnet_lab.processes import cores

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("tests", "main", "rest")
# a stage begins no further workload after this time; the tests are stopped
SECONDS = {"tests": 200, "main": 240, "rest": 420}
OUTCOMES = ("passed", "failed", "skipped", "error")
CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOT_MEASURED = "not measured"
FAST = ("trainer.precision=bf16-mixed", "trainer.channels_last=true", "trainer.compile=true")
FLOAT32 = ("trainer.precision=32-true", "trainer.channels_last=false", "trainer.compile=false")
PLACES = {"device": "on the device", True: "in memory", False: "streamed"}  # by `in_memory` of status.json
TORCHVISION, TIMM = "bare loop fed by torchvision's pipeline", "bare loop fed by timm's pipeline"

QUESTION = """\
How fast does the program train on a GPU, compared with a bare loop of PyTorch? How long does it wait for images, and
how much memory does it need?"""
NOTHING = """\
**Nothing is measured yet: this program never ran on a GPU.** `make gpu` on a machine with one runs the tests, measures
every row below and writes this page."""
METHOD = """
- Images per second are measured from the end of an epoch's first batch to the end of its last batch. A value is the
  median over the epochs of one training.
- The program is all of `resnet_lab.job`: augmentation, metrics, callbacks, checkpoints and TensorBoard.
- The bare loop runs before it in the same process. It has the same network, optimizer, batch size, precision, memory
  layout and `torch.compile`. Each step takes the same batch of random tensors, which is on the device already.
- "Waiting" is the share of the time in which the GPU (or the loop on a CPU) has ended a batch and waits for the next.
- "On the device", "in memory" and "streamed" say where `data.in_memory` placed the images of the program.
- Peak memory is that of PyTorch's allocator on the GPU (resident memory on the CPU).
- Images are random JPEG files of the size that the network takes. "Streamed" reads the prepared set, with one worker
  per core. Without that word, `data.in_memory=auto` chooses.
- "Float32" is eager and NCHW, and TF32 is off. Everything else is bf16, channels-last and compiled.
- torchvision's and timm's pipelines are their transforms with a `DataLoader`, one worker per core, on the same files.
  torchvision's has the program's augmentation, and timm's has its default one without color.
"""


@dataclass(frozen=True)
class Plan:
    """The amount of work.

    Args:
        size, batch, batches: pixels, images of a batch and batches of an epoch, of the ImageNet form …
        large, large_batch, large_batches: … and of its larger images.
        small_batches: batches of an epoch of the CIFAR form at the larger batch.
        cifar: (depth, batch) of the CIFAR form, in order; the larger batch first.
        epochs: epochs of a training.
        overrides: further overrides of all trainings.
        tests: further arguments of pytest.
    """

    size: int = 224
    batch: int = 256
    batches: int = 40
    large: int = 512
    large_batch: int = 64
    large_batches: int = 40
    small_batches: int = 40
    cifar: tuple[tuple[int, int], ...] = ((20, 1024), (20, 128), (56, 1024), (56, 128), (110, 1024), (110, 128))
    epochs: int = 4
    overrides: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


FULL = Plan()
TINY = ("trainer.compile=false", "trainer.precision=32-true", "data.num_workers=1")
QUICK = Plan(32, 8, 3, 48, 4, 3, 3, ((20, 16), (20, 8)), epochs=1, overrides=TINY, tests=("-k", "memory_formats"))


@dataclass(frozen=True)
class Measured:
    """A training: images per second, share of time spent waiting, peak memory in MB, and the source of the images."""

    speed: float
    wait: float
    memory: float
    images: str = ""


@dataclass(frozen=True)
class Workload:
    """A line of the table.

    Args:
        name: its name.
        goal: goal of program / bare loop; empty: none.
        run: returns the measurements of the program and of the bare loop.
    """

    name: str
    goal: str
    run: Callable[[], tuple[Measured, Measured]]


class Bench:
    """The workloads of each stage on one device.

    Args:
        plan: the amount of work.
        device: `cuda` or `cpu`.
        folder: folder for images and caches.
    """

    def __init__(self, plan: Plan, device: str, folder: Path) -> None:
        self.plan, self.device, self.folder = plan, torch.device(device), folder

    def workloads(self, stage: str) -> list[Workload]:
        """Return the workloads of a stage, in order."""
        plan = self.plan
        size = f"{plan.size} px, batch {plan.batch}"
        own = partial(self._keys, plan.size, plan.batch, plan.batches)
        if stage == "main":
            return [
                self._pair(f"ResNet-{depth}, {size}", partial(own, f"model.depth={depth}", *FAST), "≥ 0.95")
                for depth in (18, 50)
            ]
        if stage != "rest":
            return []
        large = partial(self._keys, plan.large, plan.large_batch, plan.large_batches, "model.depth=50", *FAST)
        streamed = partial(own, "data.in_memory=false", *FAST)
        return [
            self._pair(f"ResNet-50, {plan.large} px, batch {plan.large_batch}", large, "≥ 0.95"),
            self._cifar(*plan.cifar[0]),
            self._pair(f"ResNet-50, {size}: float32", partial(own, "model.depth=50", *FLOAT32)),
            self._pair(f"ResNet-50, {size}: fast", partial(own, "model.depth=50", *FAST)),
            self._pair(f"ResNet-18, {size}: images on the device", partial(own, "data.in_memory=device", *FAST)),
            self._pair(f"ResNet-18, {size}: streamed", partial(self._prepared, streamed)),
            Workload(f"ResNet-18, {size}: {TORCHVISION}", "", partial(self._fed, streamed, self._torchvision)),
            Workload(f"ResNet-18, {size}: {TIMM}", "", partial(self._fed, streamed, self._timm)),
            *(self._cifar(*each) for each in plan.cifar[1:]),
        ]

    def ratios(self) -> list[tuple[str, str, str, str]]:
        """Return name, numerator, denominator and goal of the ratios between workloads."""
        size = f"{self.plan.size} px, batch {self.plan.batch}"
        fifty, eighteen = (f"ResNet-{depth}, {size}" for depth in (50, 18))
        return [
            (f"{fifty}: fast / float32", f"{fifty}: fast", f"{fifty}: float32", "≥ 3"),
            *(
                (f"{eighteen}: streamed / {other}", f"{eighteen}: streamed", f"{eighteen}: {other}", "")
                for other in ("images on the device", TORCHVISION, TIMM)
            ),
        ]

    def _pair(self, name: str, keys: Callable[[], list[str]], goal: str = "") -> Workload:
        def run() -> tuple[Measured, Measured]:
            overrides = keys()
            bare = self.bare(overrides)
            return self.program(overrides), bare

        return Workload(name, goal, run)

    def _cifar(self, depth: int, batch: int) -> Workload:
        larger = max(each for _, each in self.plan.cifar)
        batches = self.plan.small_batches * larger // batch
        paper = ("experiment=cifar_degradation_paper", "follow_layers=false")  # compiled layers cannot be followed
        own = (*paper, f"model.depth={depth}", "optim.lr=0.01", *FAST)
        keys = partial(self._keys, 32, batch, batches, *own)
        return self._pair(f"CIFAR form, ResNet-{depth}, batch {batch}", keys, "≥ 0.90" if batch == larger else "")

    def _keys(self, size: int, batch: int, batches: int, *overrides: str) -> list[str]:
        """Write the photographs of a workload, and return its overrides."""
        root = write_photographs(self.folder / f"images_{size}", size, batch * batches)
        return [
            *(f"data.root={root}", f"data.cache_dir={self.folder / 'cache'}", "data=class_folders"),
            *(f"data.image_size={size}", f"data.batch_size={batch}", "data.val_fraction=0", "data.rotation=15"),
            *(f"data.mean={[*MEAN]}", f"data.std={[*STD]}"),
            *(f"trainer.max_epochs={self.plan.epochs}", "trainer.progress_bar=false"),
            f"trainer.accelerator={'gpu' if self.device.type == 'cuda' else 'cpu'}",
            *overrides,
            *self.plan.overrides,
        ]

    def _prepared(self, keys: Callable[[], list[str]]) -> list[str]:
        overrides = keys()
        prepare.command([each for each in overrides if each.startswith("data")])
        return overrides

    def program(self, overrides: Sequence[str]) -> Measured:
        """Run a job in this process; float32 is not rounded to TF32."""
        self._forget()
        use_tf32(False)
        with mock.patch.object(build_part, "use_tf32"):
            status = program_status(overrides)
        images = f"{PLACES[status['in_memory']]}, {count(status['num_workers'], 'worker')}"
        return Measured(status["images_per_second"], status["data_wait"], self._peak(), images)

    def bare(
        self, overrides: Sequence[str], source: Callable[[int, int], Iterable[tuple[Tensor, Tensor]]] | None = None
    ) -> Measured:
        """Run a plain loop.

        Args:
            overrides: network, optimizer, precision, memory format and `trainer.compile` of the program.
            source: size and batch size → the batches, in place of random tensors that are on the device.
        """
        self._forget()
        config = configuration(overrides)
        settings, size, batch = config["trainer"], config["data"]["image_size"], config["data"]["batch_size"]
        layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        network = build("model", config["model"], num_classes=CLASSES).to(self.device, memory_format=layout)
        optimizer = build("optim", config["optim"])(network.parameters())
        use_fused(optimizer, settings["precision"])
        criterion = torch.nn.CrossEntropyLoss()
        if settings["compile"]:
            network.compile(dynamic=False)
        use_tf32(False)
        torch.backends.cudnn.benchmark = True
        images = torch.randn(batch, 3, size, size, device=self.device).to(memory_format=layout)
        targets = torch.randint(CLASSES, (batch,), device=self.device)
        files = len(list(Path(config["data"]["root"]).rglob("*.jpeg")))
        batches: Iterable[tuple[Tensor, Tensor]] = [(images, targets)] * (files // batch)
        if source is not None:
            batches = source(size, batch)

        def step(images: Tensor, targets: Tensor) -> None:
            images = images.to(self.device, non_blocking=True).contiguous(memory_format=layout)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings["precision"] == "bf16-mixed"):
                loss = criterion(network(images), targets.to(self.device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        speeds, waits = zip(*(self._epoch(step, batches) for _ in range(settings["max_epochs"])), strict=True)
        return Measured(median(speeds), median(waits), self._peak())

    def _epoch(
        self, step: Callable[[Tensor, Tensor], None], batches: Iterable[tuple[Tensor, Tensor]]
    ) -> tuple[float, float]:
        """Return images per second and the share of waiting of one epoch, after its first batch."""
        start, images, waited, before = 0.0, 0, 0.0, 0.0
        marks = []  # of a GPU, by its own clock: when it got a batch, and when it ended it
        for number, (inputs, targets) in enumerate(batches):
            if number:
                waited += time.perf_counter() - before
            marks += self._mark()
            step(inputs, targets)
            marks += self._mark()
            if number == 0:
                self._synchronize()
                start = time.perf_counter()
            else:
                images += len(targets)
            before = time.perf_counter()
        self._synchronize()
        seconds = time.perf_counter() - start
        if marks:
            waited = sum(end.elapsed_time(begin) for end, begin in zip(marks[1::2], marks[2::2], strict=False)) / 1000
        return images / seconds, waited / seconds

    def _mark(self) -> list[torch.cuda.Event]:
        """Return a new mark in the work of the GPU; nothing on the CPU."""
        marks = [torch.cuda.Event(enable_timing=True)] if self.device.type == "cuda" else []
        for mark in marks:
            mark.record()
        return marks

    def _fed(self, keys: Callable[[], list[str]], pipeline: Callable[[Path, int, int], Iterable]):
        """Return the measurements of a bare loop that a pipeline feeds, and of the bare loop."""
        overrides = keys()
        root = Path(configuration(overrides)["data"]["root"]) / "train"
        bare = self.bare(overrides)
        return self.bare(overrides, partial(pipeline, root)), bare

    def _torchvision(self, root: Path, size: int, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        steps = [v2.Resize((size, size)), v2.RandomHorizontalFlip()]
        steps += [v2.RandomRotation(15, v2.InterpolationMode.BILINEAR), v2.ToImage()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return DataLoader(
            ImageFolder(str(root), v2.Compose(steps)),
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=cores(),
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )

    def _timm(self, root: Path, size: int, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
        from timm.data import create_dataset, create_loader

        return create_loader(
            create_dataset("", str(root), split="", is_training=True),
            input_size=(3, size, size),
            batch_size=batch,
            is_training=True,
            color_jitter=0.0,
            mean=MEAN,
            std=STD,
            num_workers=cores(),
            pin_memory=self.device.type == "cuda",
            device=self.device,
            use_prefetcher=self.device.type == "cuda",  # it normalizes on the GPU
        )

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _forget(self) -> None:
        """Free what the training before holds."""
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else environment.peak_memory_mb()


def write_photographs(root: Path, size: int, number: int) -> Path:
    """Write `number` random photographs of `size` pixels in ten class folders, unless they exist; return the root."""
    root = root.with_name(f"{root.name}_{number}")
    if root.is_dir():
        return root
    for kind in range(CLASSES):
        (root / "train" / str(kind)).mkdir(parents=True)

    def write(index: int) -> None:
        coarse = np.random.default_rng(index).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train" / str(index % CLASSES) / f"{index}.jpeg"), cv2.resize(coarse, (size, size)))

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(number)))
    return root


def driver() -> dict[str, str]:
    """Return the versions of the GPU's driver, of CUDA and of cuDNN; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    except OSError:  # not in every container
        found = []
    cudnn = str(torch.backends.cudnn.version())
    return {"driver": (found or ["unknown"])[0], "CUDA": str(torch.version.cuda), "cuDNN": cudnn}


def append(file: Path, **record: object) -> None:
    """Append one measurement to the file, and show it."""
    line = json.dumps(record, ensure_ascii=False)
    with file.open("a", encoding="utf-8") as out:
        out.write(line + "\n")
    print(line, file=sys.stderr, flush=True)


def run_tests(bench: Bench, file: Path, seconds: float) -> bool:
    """Run the tests of the GPU for at most `seconds`, append how many passed, and return whether none failed."""
    several = ["-n", "4", "--dist", "worksteal"] if find_spec("xdist") and not bench.plan.tests else []
    own = os.environ | {"RESNET_LAB_GPU_TESTS": "gpu" if bench.device.type == "cuda" else "cpu"}
    hanging = ["--timeout=100"] if find_spec("pytest_timeout") else []
    command = [sys.executable, "-m", "pytest", "-vv", "-rN", "--durations=15", "-W", "default", "-m", "gpu"]
    command += ["tests/test_gpu.py", *several, *hanging, *bench.plan.tests]
    start, log, took = time.perf_counter(), file.with_suffix(".log"), "seconds"
    with log.open("w", encoding="utf-8") as output:  # it remains if this process is killed
        pytest = subprocess.Popen(command, cwd=ROOT, env=own, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            pytest.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)
            took = "seconds, then stopped"
    text = log.read_text("utf-8")
    print(text, file=sys.stderr)
    append(file, kind="tests", **counts_of(text), **{took: round(time.perf_counter() - start)})
    return pytest.wait() == 0


def counts_of(text: str) -> dict[str, int]:
    """Return how many tests had which outcome, from the lines of `pytest -vv -rN`, which may have been stopped."""
    lines = [line.split() for line in text.splitlines() if ".py::" in line]
    return {key: sum(key.upper() in line for line in lines) for key in OUTCOMES}


def run_workloads(bench: Bench, stage: str, file: Path, seconds: float) -> bool:
    """Measure the workloads of a stage, begin none after `seconds`, and return whether none failed."""
    start, good = time.perf_counter(), True
    for workload in bench.workloads(stage):
        if time.perf_counter() - start > seconds:
            print(f"{workload.name}: {NOT_MEASURED}, {seconds:.0f} s are over", file=sys.stderr)
            continue
        try:
            program, bare = workload.run()
        except ImportError as error:  # timm is an extra
            print(f"{workload.name}: {NOT_MEASURED}, {error}", file=sys.stderr)
        except Exception:
            traceback.print_exc()
            good = False
        else:
            append(file, kind="speed", name=workload.name, program=asdict(program), bare=asdict(bare))
    return good


def read(file: Path) -> tuple[list[str], dict[str, int], dict[str, dict[str, dict[str, Any]]]]:
    """Return the origins, the outcome of the tests and the measurements by name; the last one of a name counts."""
    origins, tests, speeds = [], {}, {}
    for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
        record = json.loads(line)
        kind = record.pop("kind")
        if kind == "origin" and record["text"] not in origins:
            origins.append(record["text"])
        elif kind == "tests":
            tests = record
        elif kind == "speed":
            speeds[record.pop("name")] = record
    return origins, tests, speeds


def lines_of(bench: Bench, file: Path) -> Iterator[str]:
    """Yield the lines of the page: origins, tests, speeds, ratios; what was not reached reads "not measured"."""
    origins, tests, speeds = read(file)
    yield from ("# Speed on a GPU", "", QUESTION, "")
    if not speeds and not tests:
        yield from (NOTHING, "")
    if bench.plan is QUICK:
        yield from ("**A smoke run of tiny networks: these numbers mean nothing.**", "")
    for text in origins:
        yield from (text, "")
    outcome = ", ".join(f"{number} {key}" for key, number in tests.items()) or NOT_MEASURED
    yield from (f"Tests on the GPU (`pytest -m gpu`): {outcome}.", "", "## Program and bare loop", "")
    columns = [
        "",
        "images/s",
        "bare loop, images/s",
        "program / bare loop",
        "goal",
        "waiting (goal ≤ 3 %)",
        "memory, MB",
    ]
    columns.append("bare loop, MB")
    yield f"| {' | '.join(columns)} |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    for workload in (each for stage in STAGES for each in bench.workloads(stage)):
        yield f"| {workload.name} | {cells(speeds.get(workload.name), workload.goal)} |"
    yield from ("", "## Ratios of images per second", "", "| | ratio | goal |", "|---|---:|---:|")
    for name, above, below, goal in bench.ratios():
        both = above in speeds and below in speeds
        ratio = f"{speeds[above]['program']['speed'] / speeds[below]['program']['speed']:.2f}" if both else NOT_MEASURED
        yield f"| {name} | {ratio} | {goal} |"
    places: dict[str, list[str]] = {}
    for name, found in speeds.items():
        places.setdefault(found["program"].get("images", ""), []).append(name)
    for place, names in places.items():
        if place:  # a peer's pipeline has none
            yield from ("", f"Images {place}: {'; '.join(names)}.")


def cells(found: dict[str, dict[str, Any]] | None, goal: str) -> str:
    """Return the cells of a workload after its name."""
    if found is None:
        return " | ".join([NOT_MEASURED, "", "", goal, "", "", ""])
    program, bare = found["program"], found["bare"]
    shown = [f"{program['speed']:.0f}", f"{bare['speed']:.0f}", f"{program['speed'] / bare['speed']:.3f}", goal]
    shown += [f"{100 * program['wait']:.1f} %", f"{program['memory']:.0f}", f"{bare['memory']:.0f}"]
    return " | ".join(shown)


def main() -> int:
    """Run a stage, write the page, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, help="what to run; without it, only the page is written")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="append measurements to this file")
    parser.add_argument("--page", type=Path, help="write the page to this markdown file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, help="begin no further workload, or stop the tests, after this time")
    parser.add_argument("--commit", default="", help="commit of the code, where it is no git checkout")
    parser.add_argument("--quick", action="store_true", help="smoke run with tiny batches and images")
    options = parser.parse_args()
    set_up_logging()
    logging.getLogger("resnet_lab").setLevel(logging.ERROR)
    good = True
    with TemporaryDirectory() as folder:
        bench = Bench(QUICK if options.quick else FULL, options.device, Path(folder))
        if options.stage:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            append(options.out, kind="origin", text=origin("make gpu", options.commit, **driver()))
            seconds = SECONDS[options.stage] if options.seconds is None else options.seconds
            if options.stage == "tests":
                good = run_tests(bench, options.out, seconds)
            else:
                good = run_workloads(bench, options.stage, options.out, seconds)
        if options.page is not None:
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text("\n".join(lines_of(bench, options.out)) + "\n" + METHOD, encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
