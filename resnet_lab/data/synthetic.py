"""Synthetic photographs, written in the studies' layout and read by the same code (no torch)."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator, default_rng

from resnet_lab.data.fundus import DRAWING_VERSION, EYES, draw_fundus
from resnet_lab.data.progress import with_progress
from resnet_lab.data.retinopathy import Retinopathy
from resnet_lab.errors import UserError, count
from resnet_lab.processes import cores
from resnet_lab.values import Count, FromOne, Seed, Within

logger = logging.getLogger(__name__)

Photograph = tuple[Path, int, str, int]  # file, grade, eye, patient

SHARES = {"studies": (20655, 1955, 4210, 698, 581), "balanced": (1, 1, 1, 1, 1)}
UNEQUAL_EYES = 0.3  # patients with different grades of the two eyes, as a share of the rarer of two neighboring grades


@dataclass(kw_only=True)
class Synthetic(Retinopathy):
    """Synthetic photographs, drawn into `root` at first use; afterward a retinopathy data set like any other."""

    draw_seed: Seed
    train_patients: FromOne
    test_patients: Count
    draw_size: Annotated[int, Within(1, 10_000)]
    balance: Literal["studies", "balanced"]

    def read_table(self) -> pd.DataFrame:
        """Draw the photographs unless they exist, and read the table."""
        root = Path(self.root).expanduser()
        write_synthetic(root, self.draw_seed, self.train_patients, self.test_patients, self.draw_size, self.balance)
        return super().read_table()


def write_synthetic(
    root: Path,
    seed: int,
    train_patients: int,
    test_patients: int,
    size: int,
    balance: str,
    processes: int | None = None,
) -> None:
    """Write photographs of both eyes of every patient in the layout of the studies, unless `root` contains them.

    `images/<patient>_<eye>.jpeg`, and `{train,test}_{img,label}.csv` of one column without a header, aligned
    row by row. No patient is in both splits. The folder appears only when complete, and several processes
    may write it at once.

    Args:
        root: the folder of the data set.
        seed: 0 or more; sets of different seeds share no patient.
        train_patients: patients of train, with two photographs each.
        test_patients: patients of test.
        size: height of the photographs in pixels.
        balance: `studies` for the studies' class shares, `balanced` for equal ones.
        processes: number of processes, which does not change the bytes; None: one per core if there are many images.

    Raises:
        UserError: an argument is invalid, or `root` contains something else.
    """
    recipe: dict[str, Any] = {"seed": seed, "train_patients": train_patients, "test_patients": test_patients}
    recipe |= {"size": size, "balance": balance, "drawing_version": DRAWING_VERSION}
    _check(recipe)
    if _holds(root, recipe):
        return
    temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        (temporary / "images").mkdir(parents=True)
        _draw_all(_write_tables(temporary, recipe), recipe, processes)
        (temporary / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        _move(temporary, root, recipe)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(recipe: dict[str, Any]) -> None:
    """Refuse arguments that cannot give a data set."""
    if recipe["balance"] not in SHARES:
        raise UserError(f"balance={recipe['balance']}: choose one of {', '.join(SHARES)}")
    # three patients are six eyes: the fewest with five grades
    for key, least in {"seed": 0, "train_patients": 3, "test_patients": 3, "size": 32}.items():
        if recipe[key] < least:
            raise UserError(f"{key}={recipe[key]}: synthetic photographs need at least {least}")


def _holds(root: Path, recipe: dict[str, Any]) -> bool:
    """Return whether `root` contains the data set of this recipe; refuse any other content."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file = root / "recipe.json"
    if not file.is_file():
        own = "to use your own photographs, add data=retinopathy (a CSV) or data=class_folders"
        raise UserError(f"{root} contains no synthetic photographs (no {file.name}); name another folder; {own}")
    found = json.loads(file.read_text(encoding="utf-8"))
    wrong = [key for key in recipe if found.get(key) != recipe[key]]
    if wrong:
        seen = ", ".join(f"{key}={found.get(key)} instead of {recipe[key]}" for key in wrong)
        raise UserError(f"{root} was drawn with {seen}; delete it, or name another folder")
    return True


def _move(temporary: Path, root: Path, recipe: dict[str, Any]) -> None:
    """Rename the finished folder, unless another process has already written the same set."""
    try:
        temporary.rename(root)
    except OSError:
        if not _holds(root, recipe):
            raise


def _write_tables(folder: Path, recipe: dict[str, Any]) -> list[Photograph]:
    """Write the CSV files of both splits; return file, grade, eye and patient of each photograph."""
    rng = default_rng(recipe["seed"])
    sizes = {split: recipe[f"{split}_patients"] for split in ("train", "test")}
    numbers = 1 + rng.permutation(sum(sizes.values()))
    photographs = []
    for split, patients in zip(sizes, np.split(numbers, [sizes["train"]]), strict=True):
        grades = _assign_grades(rng, sizes[split], SHARES[recipe["balance"]])
        rows = [
            (folder / "images" / f"{patient}_{eye}.jpeg", grade, eye, patient)
            for patient, pair in zip(patients.tolist(), grades.tolist(), strict=True)
            for eye, grade in zip(EYES, pair, strict=True)
        ]
        for kind, cells in (("img", [row[0].stem for row in rows]), ("label", [str(row[1]) for row in rows])):
            (folder / f"{split}_{kind}.csv").write_text("\n".join(cells) + "\n", encoding="utf-8")
        photographs += rows
    return photographs


def _assign_grades(rng: Generator, patients: int, shares: tuple[int, ...]) -> np.ndarray:
    """Draw grades (patients, 2) of both eyes: mostly equal, else neighbors; their counts follow `shares`."""
    pairs = np.repeat(np.arange(len(shares)), _allocate(2 * patients, shares)).reshape(-1, 2)
    for grade in range(len(shares) - 1):
        lower, upper = (np.flatnonzero((pairs == g).all(axis=1)) for g in (grade, grade + 1))
        swapped = round(UNEQUAL_EYES * min(len(lower), len(upper)))
        pairs[lower[:swapped], 1], pairs[upper[:swapped], 1] = grade + 1, grade
    return rng.permutation(rng.permuted(pairs, axis=1))


def _allocate(total: int, shares: tuple[int, ...]) -> np.ndarray:
    """Return counts (K,) by largest remainder, raised to two of each grade if the total allows it."""
    exact = total * np.array(shares) / sum(shares)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    while counts.min() < min(2, total // len(shares)):
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts


def _draw_all(photographs: list[Photograph], recipe: dict[str, Any], processes: int | None) -> None:
    """Draw and write every photograph, in a pool of processes if there are many."""
    logger.info("drawing %s", count(len(photographs), "synthetic photograph"))
    write = partial(_write_photograph, seed=recipe["seed"], size=recipe["size"])
    if processes is None:
        processes = cores() if len(photographs) > 200 else 1
    if processes == 1:
        for photograph in with_progress(photographs, len(photographs), "drawn"):
            write(photograph)
        return
    # spawned, not forked: the caller may have threads of torch
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        list(with_progress(pool.map(write, photographs, chunksize=32), len(photographs), "drawn"))


def _write_photograph(photograph: Photograph, seed: int, size: int) -> None:
    """Draw one photograph into its JPEG file."""
    file, grade, eye, patient = photograph
    image = draw_fundus(grade, eye, patient, seed, size)
    _, encoded = cv2.imencode(".jpeg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 90))
    file.write_bytes(encoded.tobytes())
