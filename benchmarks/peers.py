"""Measure whole programs in turns: `python benchmarks/peers.py --timm FILE --torchvision FILE [--out FILE.md]`.

FILE is train.py of huggingface/pytorch-image-models, and references/classification/train.py of pytorch/vision with the
modules beside it. A peer without a file is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import page
import pandas as pd

from resnet_lab.data.fundus import EYES, draw_fundus
from resnet_lab.errors import count
from resnet_lab.processes import cores

Command = list[str]  # what follows `python`

UNBROKEN: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
TITLE = "Beside timm and torchvision"
QUESTION = """\
How long does a whole training take, from the start of the command to its end, compared with the training scripts of
timm and torchvision? The last column shows the goal, where a row has one."""
METHOD = """
All programs train ResNet-18 from random weights on the same photographs, on the CPU: {train} for training and {val} for
validation after each epoch, {image} px, batches of {batch}, SGD with momentum. They run in turns on files in the page
cache, each one alone in an empty folder. The order reverses with each turn. A ratio compares programs of the same turn.
"The faster peer" is the faster one of that turn.

- The photographs are drawn. The small files are {small} px. The files of camera size are {camera} px.
- "First run" has an empty cache. It checks the files. For files of camera size it runs `resnet-lab prepare` first, and
  the time of both commands counts.
- "Later run" finds the result of the check and the prepared set in the cache, like any further training on a data set.
- The program rotates, flips and normalizes by the statistics of the training images, which it computes. The peers
  crop, resize and flip.
- The program writes checkpoints, pictures, metrics and TensorBoard files, and tests the best epoch again at the end.
  The peers write their checkpoints.
- The program and timm compute in bf16 with channels last. `--amp` of torchvision's script has an effect on CUDA only,
  so it computes in float32.
- timm's `--torchcompile` is not used: compilation takes longer than it saves in these trainings.
- For each peer and size of files, one epoch is trained with each of {candidates} workers. The fastest number is used.
"""


@dataclass(frozen=True)
class Plan:
    """The amount of work of a measurement.

    Args:
        patients: number of patients with two photographs each, for training and for validation.
        drawn: height of the drawings in pixels; the files of both sizes are scaled from them.
        small: width and height of the small files.
        camera: width and height of the files of camera size.
        image_size: side of the images that the networks get.
        batch: batch size; it divides the training images, since timm drops an incomplete batch.
        epochs: the numbers of epochs that are measured.
        repetitions: n of each row.
        workers: numbers of workers that the peers may have.
    """

    patients: tuple[int, int]
    drawn: int
    small: tuple[int, int]
    camera: tuple[int, int]
    image_size: int
    batch: int
    epochs: tuple[int, ...]
    repetitions: int
    workers: tuple[int, ...]


WORKERS = tuple(sorted({0, 1, cores() // 2, cores(), 2 * cores()}))
FULL = Plan((208, 52), 356, (385, 256), (4288, 2848), 128, 32, epochs=(1, 10), repetitions=3, workers=WORKERS)
QUICK = Plan((5, 5), 64, (96, 64), (384, 256), 32, 5, epochs=(1,), repetitions=1, workers=(0, 1))


def write_photographs(folder: Path, plan: Plan) -> tuple[Path, Path]:
    """Write the same photographs in both sizes, and return their folders: `SPLIT/GRADE/IMAGE.jpeg` and `SPLIT.csv`."""
    targets = {folder / "small": plan.small, folder / "camera": plan.camera}
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for patient in range(sum(plan.patients)):
        split, grade = "train" if patient < plan.patients[0] else "val", patient % 5
        for eye in EYES:
            image = draw_fundus(grade, eye, patient, 0, plan.drawn)[..., ::-1]
            margin = max(0, round(plan.drawn * plan.camera[0] / plan.camera[1] - image.shape[1]) // 2)
            image = cv2.copyMakeBorder(image, 0, 0, margin, margin, cv2.BORDER_CONSTANT)
            name = f"{split}/{grade}/{patient}_{eye}.jpeg"
            rows[split].append((name, grade))
            for target, size in targets.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shrinks = size[1] < plan.drawn
                scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
                cv2.imwrite(str(target / name), scaled, (cv2.IMWRITE_JPEG_QUALITY, 90))
    for target in targets:
        for split, found in rows.items():
            pd.DataFrame(found, columns=["image", "level"]).to_csv(target / f"{split}.csv", index=False)
    return folder / "small", folder / "camera"


def data_keys(plan: Plan, photographs: str, cache: str) -> list[str]:
    """Return the overrides that name the data."""
    keys = ["data=retinopathy", f"data.root={photographs}", "data.train_csv=train.csv", "data.val_csv=val.csv"]
    return [*keys, f"data.image_size={plan.image_size}", "data.eye_crop=false", f"data.cache_dir={cache}"]


def preparing(plan: Plan, photographs: str, cache: str) -> Command:
    """Return the command that prepares the photographs."""
    return ["-m", "resnet_lab", "prepare", *data_keys(plan, photographs, cache)]


def training(plan: Plan, photographs: str, cache: str, epochs: object) -> Command:
    """Return the command of the program."""
    keys = [*data_keys(plan, photographs, cache), f"data.batch_size={plan.batch}", "model=resnet", "model.depth=18"]
    keys += ["optim=sgd", "optim.lr=0.01", "trainer=cpu", "trainer.precision=bf16-mixed"]
    return ["-m", "resnet_lab", "train", *keys, f"trainer.max_epochs={epochs}", "sweep_dir=run"]


def timm(plan: Plan, script: str, photographs: str, epochs: object, workers: object) -> Command:
    """Return the command of timm's script: without color jitter, label smoothing, warm-up or kept checkpoints."""
    options = f"--train-split train --val-split val --num-classes 5 --model resnet18 --batch-size {plan.batch}"
    options += f" --input-size 3 {plan.image_size} {plan.image_size} --crop-pct 1.0 --color-jitter 0 --smoothing 0"
    options += " --train-interpolation bilinear --interpolation bilinear --opt momentum --lr 0.01 --warmup-epochs 0"
    options += " --cooldown-epochs 0 --device cpu --amp --amp-dtype bfloat16 --channels-last --checkpoint-hist 1"
    options += f" --output out --epochs {epochs} --workers {workers}"
    return [script, "--data-dir", photographs, *options.split()]


def torchvision(plan: Plan, script: str, photographs: str, epochs: object, workers: object) -> Command:
    """Return the command of torchvision's script."""
    options = f"--model resnet18 --device cpu --batch-size {plan.batch} --lr 0.01 --train-crop-size {plan.image_size}"
    options += f" --val-resize-size {plan.image_size} --val-crop-size {plan.image_size} --print-freq 50"
    options += f" --output-dir out --epochs {epochs} --workers {workers}"
    return [script, "--data-path", photographs, *options.split()]


PEERS: dict[str, Callable[..., Command]] = {"timm": timm, "torchvision": torchvision}


def seconds(commands: Sequence[Command], folder: Path) -> float:
    """Run the commands one after the other in an empty folder, and return their seconds together."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()  # what others wrote
    begun = time.perf_counter()
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return time.perf_counter() - begun


def measure(
    folder: Path, plan: Plan, scripts: dict[str, Path], run: Callable[[Sequence[Command], Path], float] = seconds
) -> tuple[list[page.Row], dict[str, list[int]]]:
    """Measure all programs.

    Args:
        folder: working folder.
        plan: the amount of work.
        scripts: name of each peer → its script.
        run: function that runs commands in a folder and returns their seconds.

    Returns:
        The rows, and the numbers of workers that each peer had, for small files and those of camera size.
    """
    rows, chosen = [], {name: list[int]() for name in scripts}
    for photographs in write_photographs(folder, plan):
        files, work, kept = str(photographs), folder / "work", str(folder / f"cache_{photographs.name}")
        prepares = photographs.name == "camera"

        def ours(cache: str, epochs: int, first: bool, files: str = files, prepares: bool = prepares) -> list[Command]:
            prepared = [preparing(plan, files, cache)] if first and prepares else []
            return [*prepared, training(plan, files, cache, epochs)]

        run(ours(kept, 1, first=True), work)
        for name, script in scripts.items():
            tried = {n: run([PEERS[name](plan, str(script), files, 1, n)], work) for n in plan.workers}
            chosen[name].append(min(tried, key=tried.__getitem__))
        for epochs in plan.epochs:
            contestants: dict[str, Callable[[], float]] = {
                "the program, first run": partial(run, ours("cache", epochs, first=True), work),
                "the program, later run": partial(run, ours(kept, epochs, first=False), work),
            }
            for name, script in scripts.items():
                command = PEERS[name](plan, str(script), files, epochs, chosen[name][-1])
                contestants[name] = partial(run, [command], work)
            times = page.take_turns(contestants, plan.repetitions, "s", warm_up=False)
            size = "×".join(map(str, plan.camera if prepares else plan.small))
            rows += rows_of(f"{size} px, {count(epochs, 'epoch')}", times, list(scripts), prepares)
    return rows, chosen


def rows_of(prefix: str, times: dict[str, list[float]], peers: Sequence[str], camera: bool) -> list[page.Row]:
    """Return the seconds of each program, and the ratios to the faster peer."""
    rows = [page.Row(f"{prefix}: {name}", "s", values) for name, values in times.items()]
    if not peers:
        return rows
    faster = [min(turn) for turn in zip(*(times[name] for name in peers), strict=True)]
    for name in (name for name in times if name not in peers):
        if camera:
            rows.append(
                page.Row(f"{prefix}: the faster peer / {name}", "ratio", page.ratios(faster, times[name]), "≥ 5")
            )
        else:
            rows.append(
                page.Row(f"{prefix}: {name} / the faster peer", "ratio", page.ratios(times[name], faster), "≤ 1.02")
            )
    return rows


def method(plan: Plan, workers: dict[str, list[int]]) -> str:
    """Return the description of the method, with the commands."""
    train, val = (2 * number for number in plan.patients)
    small, camera = ("×".join(map(str, size)) for size in (plan.small, plan.camera))
    candidates = ", ".join(map(str, plan.workers))
    text = METHOD.format(
        train=train,
        val=val,
        image=plan.image_size,
        batch=plan.batch,
        small=small,
        camera=camera,
        candidates=candidates,
    )
    for name in PEERS:
        if name not in workers:
            text += f"- {name} is left out: this measurement had no `--{name}`.\n"
        else:
            small_files, camera_size = (count(number, "worker") for number in workers[name])
            text += f"- {name} has {small_files} for small files and {camera_size} for camera size.\n"
    commands = [preparing(plan, "PHOTOGRAPHS", "CACHE"), training(plan, "PHOTOGRAPHS", "CACHE", "EPOCHS")]
    commands += [PEERS[name](plan, f"{name}/train.py", "PHOTOGRAPHS", "EPOCHS", "WORKERS") for name in workers]
    shown = "\n\n".join(
        " \\\n    ".join(textwrap.wrap(f"python {shlex.join(each)}", 114, **UNBROKEN)) for each in commands
    )
    return f"{text}\nThe commands:\n\n```text\n{shown}\n```\n"


def main() -> None:
    """Measure all programs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PEERS:
        parser.add_argument(f"--{name}", type=Path, help=f"train.py of {name}; without it, {name} is left out")
    options = page.read_options(parser)
    scripts = {name: path.resolve() for name in PEERS if (path := getattr(options, name)) is not None}
    if missing := [str(path) for path in scripts.values() if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    plan = QUICK if options.quick else FULL
    packages = {name: version(name) for name in scripts if name != "torchvision"}
    packages |= {
        f"{name}'s train.py": hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in scripts.items()
    }
    command = "python benchmarks/peers.py" + "".join(f" --{name} {name}/train.py" for name in scripts)
    with TemporaryDirectory() as folder:
        rows, workers = measure(Path(folder), plan, scripts)
    text = page.page(TITLE, QUESTION, rows, method(plan, workers), options.quick, command, **packages)
    page.publish(text, options.out)


if __name__ == "__main__":
    main()
