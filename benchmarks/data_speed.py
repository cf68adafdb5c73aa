"""Measure the data layer in pairs: `python benchmarks/data_speed.py [--quick] [--out FILE.md]` (`make bench`)."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from page import Row, main, ratios, take_turns
from PIL import Image
from torchvision import transforms as v1
from torchvision.io import decode_image
from torchvision.transforms import v2

from resnet_lab.config import build, compose_config
from resnet_lab.data.augmentation import affine_maps, draws, inverted
from resnet_lab.data.check import digest_of
from resnet_lab.data.datamodule import ImageDataset
from resnet_lab.data.fundus import draw_fundus
from resnet_lab.data.prepared import JPEG, Format, PreparedSet, prepare, prepare_photograph
from resnet_lab.data.reader import Recipe, read_image
from resnet_lab.data.synthetic import write_synthetic
from resnet_lab.data.transforms import normalize
from resnet_lab.run_folder import RunFolder
from resnet_lab.training import run_job

CAMERA = Path(__file__).resolve().parents[2] / "shared" / "data" / "idrid_fullsize.tar"  # 25 photographs, 4288 × 2848
MEAN, STD = (0.3749, 0.2601, 0.1856), (0.2526, 0.1780, 0.1291)  # study A
QUESTION = """\
How fast does the data layer prepare and load photographs, compared with Pillow and torchvision? The last column shows
the goal, where a row has one."""
METHOD = """
- Each contestant has one core: torch and cv2 have one thread. The contestants run in turns over the same photographs in
  one process, after one round that is not counted. A ratio compares two rounds of the same turn. Files are in the page
  cache.
- Loading is measured in CPU time, because other programs share the machine; preparing is measured by the clock.
- "Prepare" is `resnet-lab prepare` with `data.eye_crop=true`: decode, find the eye, crop, resize, save, index.
- "Pillow" is `Image.open(…).convert("RGB").resize(…).save(…, quality=95)`.
- Loading includes the augmentation of study A: flips, rotation by ±30°, normalization.
- "The program" reads a batch of its `ImageDataset` (bilinear), then calls `normalize`. The prepared set has the format
  `jpeg`, or `raw` (`data.prepared_format`).
- "Decoding", "warp" and "normalization" are the parts of the program. "Copy" is a copy of the mapped uint8 pixels, and
  "float32" fills the normalized batch with zeros: no loader that normalizes on this core can be faster.
- "One call for all images" replaces the warps of a batch by one `cv2.remap` over all images, with its maps.
- "The studies' loader" runs Pillow, `Resize`, flips, `RandomRotation` (nearest), `ToTensor` and `Normalize` on the
  originals.
- "transforms.v2" is that of torchvision with bilinear rotation, on the prepared files. It takes `decode_image` tensors
  or PIL images.
- "Scaled / full decode" is the mean absolute difference of the prepared pixels, in gray levels, one value per
  photograph.
- "Test QWK" is that of ResNet-18 trained on drawn photographs prepared either way, one value per seed.
- Peak memory is the resident memory of `resnet-lab prepare` and its largest child, on generated photographs.
"""


def recipe(size: int, eye_crop: bool = True) -> Recipe:
    """Return the recipe of `data.image_size=… data.eye_crop=…`."""
    return Recipe(size, "square", eye_crop, local_mean=False)


def photographs(folder: Path, quick: bool) -> list[str]:
    """Return the camera-size photographs, or drawn ones if those are missing."""
    if not quick and CAMERA.is_file():
        with tarfile.open(CAMERA) as archive:
            archive.extractall(folder, filter="data")
        return sorted(map(str, (folder / "idrid_fullsize" / "images").iterdir()))
    folder.mkdir()
    for number in range(5):
        image = draw_fundus(number, "left", number, 0, 200 if quick else 2848)
        cv2.imwrite(str(folder / f"{number}_left.jpeg"), image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 92))
    return sorted(map(str, folder.iterdir()))


def rate(
    work: Callable[[], object], images: int, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Return a function that runs one round of `work` and returns its images per second of a clock."""

    def measure() -> float:
        start = clock()
        work()
        return images / max(clock() - start, 1e-9)

    return measure


def prepare_rows(paths: Sequence[str], folder: Path, size: int, repetitions: int) -> list[Row]:
    """Compare `prepare` with Pillow, and two processes with one."""
    target = PreparedSet(Path(paths[0]).parent, recipe(size), folder)

    def with_pillow() -> None:
        for path in paths:
            Image.open(path).convert("RGB").resize((size, size)).save(folder / "pillow.jpeg", quality=95)

    contestants = {
        "prepare": rate(lambda: [prepare_photograph(target, path) for path in paths], len(paths)),
        "Pillow": rate(with_pillow, len(paths)),
    }
    speeds = take_turns(contestants, repetitions)
    many = list(paths) * (1 if len(paths) < 25 else 40)
    copies = _copies(many, folder / "copies")
    both = take_turns(
        {f"{n} processes": rate(lambda n=n: _prepare_anew(copies, folder, size, n), len(copies)) for n in (1, 2)},
        min(3, repetitions),
    )
    return [
        *(Row(f"{name}, {size} px", "images/s", values) for name, values in speeds.items()),
        Row("prepare / Pillow", "ratio", ratios(speeds["prepare"], speeds["Pillow"]), "≥ 6"),
        Row(
            f"prepare {len(many)} photographs, 2 / 1 processes",
            "ratio",
            ratios(both["2 processes"], both["1 processes"]),
        ),
    ]


def _copies(paths: Sequence[str], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(paths):
        (folder / f"{number}.jpeg").write_bytes(Path(path).read_bytes())
    return sorted(folder.iterdir())


PREPARE = """
import sys
from pathlib import Path
from resnet_lab.data.prepared import PreparedSet, prepare
from resnet_lab.data.reader import Recipe
if __name__ == "__main__":
    root, cache, size, processes = sys.argv[1:]
    target = PreparedSet(Path(root), Recipe(int(size), "square", eye_crop=True, local_mean=False), Path(cache))
    prepare(target, sorted(map(str, Path(root).iterdir())), int(processes))
"""


def _prepare_anew(paths: Sequence[Path], folder: Path, size: int, processes: int) -> None:
    """Prepare the photographs in a new process; its start and that of its workers count."""
    with TemporaryDirectory(dir=folder) as cache:
        script = Path(cache) / "prepare_anew.py"
        script.write_text(PREPARE)
        command = [sys.executable, str(script), str(paths[0].parent), cache, str(size), str(processes)]
        subprocess.run(command, check=True)


def dataset_of(paths: Sequence[str], folder: Path, size: int, stored_as: Format) -> ImageDataset:
    """Prepare the photographs in a format, and return them as training reads them."""
    target = PreparedSet(Path(paths[0]).parent, recipe(size), folder, format=stored_as)
    index = prepare(target, paths, processes=1).set_index("image")
    places = index["place"] if stored_as == "raw" else pd.Series("", index.index)
    stored = [target.stored(path, places[target.name(path)]) for path in paths]
    keys = [f"data.root={target.root}", f"data.image_size={size}", "data.eye_crop=true", f"data.cache_dir={folder}"]
    data = build("data", compose_config(["data=retinopathy", *keys, f"data.prepared_format={stored_as}"]).data)
    rows = pd.DataFrame({"path": paths, "prepared": stored, "target": 0, "split": "train"})
    return ImageDataset(rows, data, True, 0, None)


def one_warp(images: Sequence[np.ndarray], maps: np.ndarray) -> np.ndarray:
    """Warp square images, uint8 (S, S, 3), in one call by maps from target to source, (B, 2, 3): uint8 (B, S, S, 3)."""
    number, size = len(images), len(images[0])
    source = np.zeros((number, size + 1, size, 4), np.uint8)  # a black row behind each image
    for image, place in zip(images, source, strict=True):
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=place[:size])
    row = np.arange(size, dtype=np.float32)
    x, y = (
        m[:, 0, None, None] * row + (m[:, 1, None, None] * row[:, None] + m[:, 2, None, None])
        for m in maps.astype(np.float32).transpose(1, 0, 2)
    )
    first = np.arange(number, dtype=np.float32)[:, None, None] * (size + 1)
    y = np.where((y > -1) & (y < size), y + first, -2)  # not into the neighbors
    flat = (number * (size + 1), size, 4)
    found = cv2.remap(source.reshape(flat), x.reshape(-1, size), y.reshape(-1, size), cv2.INTER_LINEAR)
    return cv2.cvtColor(found, cv2.COLOR_RGBA2RGB).reshape(number, size, size, 3)


def loading_rows(paths: Sequence[str], folder: Path, size: int, repetitions: int) -> list[Row]:
    """Compare the ways to load and augment the images of an epoch, and show what bounds them."""
    compressed, raw = (dataset_of(paths, folder, size, each) for each in ("jpeg", "raw"))
    stored, images = compressed.prepared, [np.array(raw.read(index)) for index in range(len(paths))]
    raw_in_memory = ImageDataset(
        pd.DataFrame({"path": paths, "prepared": "", "target": 0, "split": "train"}), raw.data, True, 0, images
    )
    batch = [(0, index, 0) for index in range(len(paths))]
    mean_, std = torch.tensor(MEAN), torch.tensor(STD)
    pixels = raw.__getitems__(batch)["image"]
    steps = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomRotation(30, v2.InterpolationMode.BILINEAR)]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    tensors, pil = v2.Compose([*steps, *finish]), v2.Compose([*steps, v2.ToImage(), *finish])
    studies = v1.Compose(
        [
            v1.Resize(size),
            v1.RandomHorizontalFlip(),
            v1.RandomVerticalFlip(),
            v1.RandomRotation(30),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )
    written = torch.empty(pixels.shape)
    u = draws(0, np.array(batch))
    sizes, every = np.full((len(paths), 2), size), np.ones(len(paths), bool)

    def one_call() -> np.ndarray:
        return one_warp(images, inverted(affine_maps(raw.data, sizes, u, every)[0]))

    contestants = {
        "the program": lambda: normalize(compressed.__getitems__(batch)["image"], mean_, std),
        "the program, raw": lambda: normalize(raw.__getitems__(batch)["image"], mean_, std),
        "the studies' loader, originals": lambda: [studies(Image.open(path)) for path in paths],
        "transforms.v2, tensors": lambda: torch.stack([tensors(decode_image(file)) for file in stored]),
        "transforms.v2, PIL": lambda: torch.stack([pil(Image.open(file)) for file in stored]),
        "decoding alone": lambda: [compressed.read(index) for index in range(len(paths))],
        "copy alone, raw": lambda: [np.array(raw.read(index)) for index in range(len(paths))],
        "warp alone": lambda: raw_in_memory.__getitems__(batch),
        "warp alone, one call for all images": one_call,
        "normalization alone": lambda: normalize(pixels, mean_, std),
        "float32 alone": lambda: written.fill_(0),
    }
    clock = time.process_time
    speeds = take_turns({name: rate(work, len(paths), clock) for name, work in contestants.items()}, repetitions)
    originals, warp = "the studies' loader, originals", "warp alone"
    compared = [
        ("the program", originals, ""),
        ("the program, raw", originals, "≥ 50"),
        ("the program, raw", "the program", ""),
        ("the program", "transforms.v2, tensors", "≥ 3"),
        ("the program", "transforms.v2, PIL", "≥ 2.5"),
        ("decoding alone", originals, ""),
        (warp, originals, ""),
        ("normalization alone", originals, ""),
        ("float32 alone", originals, ""),
        (f"{warp}, one call for all images", warp, "> 1.05 to be used"),
    ]
    return [Row(f"load and augment, {size} px: {name}", "images/s", values) for name, values in speeds.items()] + [
        Row(f"{one} / {other}", "ratio", ratios(speeds[one], speeds[other]), goal) for one, other, goal in compared
    ]


def difference(path: str, size: int) -> float:
    """Return the mean absolute difference, in gray levels, between scaled and full decode of a photograph."""
    scaled, full = (read_image(path, recipe(size), scaled=choice).astype(int) for choice in (True, False))
    return float(np.abs(scaled - full).mean())


def training_rows(folder: Path, quick: bool, seeds: int) -> list[Row]:
    """Train on drawn photographs prepared through scaled and through full decode, and return the test QWK of both."""
    root, size = folder / "drawn", 32 if quick else 64
    write_synthetic(root, 0, 24 if quick else 300, 8 if quick else 150, 2 * size if quick else 600, "balanced")
    paths = sorted(map(str, (root / "images").iterdir()))
    scores: dict[str, list[float]] = {}
    for name, scaled in (("scaled", True), ("full", False)):
        cache = folder / name
        target = PreparedSet(root.resolve(), recipe(size), cache)
        prepare(target, paths, processes=1)
        if not scaled:
            _overwrite_with_full_decode(target, paths)
        keys = [f"data.root={root}", f"data.image_size={size}", "data.eye_crop=true", f"data.cache_dir={cache}"]
        keys += ["data.batch_size=32", f"trainer.max_epochs={1 if quick else 8}", "trainer=cpu", "optim=adamw"]
        keys += ["data=retinopathy", "optim.lr=0.001", "schedule=cosine"]
        scores[name] = [_test_qwk([*keys, f"seed={seed}"]) for seed in range(seeds)]
    return [Row(f"ResNet-18 trained through {name} decode: test QWK", "QWK", values) for name, values in scores.items()]


def _overwrite_with_full_decode(target: PreparedSet, paths: Sequence[str]) -> None:
    """Replace the pixels of a prepared set and their digests in its index, so that training accepts them."""
    index = pd.read_csv(target.index_file, dtype={"image": str}, keep_default_na=False).set_index("image")
    for path in paths:
        pixels = read_image(path, target.recipe, scaled=False)
        data = cv2.imencode(".jpeg", pixels[..., ::-1], JPEG)[1].tobytes()
        target.file(path).write_bytes(data)
        index.loc[target.name(path), "prepared"] = digest_of(data)
    index.to_csv(target.index_file)


def _test_qwk(overrides: Sequence[str]) -> float:
    config = compose_config(overrides)
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.config_file.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
        run_job(run)
        score: float = run.read_status()["metrics"]["test/qwk"]
    return score


def memory_rows(folder: Path, quick: bool) -> list[Row]:
    """Measure the peak memory of preparing few and many photographs; the two should not differ."""
    rows, numbers = list[Row](), list[int]()
    for number in (10, 40) if quick else (100, 10_000):
        root = folder / f"many_{number}"
        write_synthetic(root, 0, number * 2 // 5, max(3, number // 10), 96, "studies", processes=2)
        (script := folder / "measured.py").write_text(MEASURED)
        command = [sys.executable, str(script), f"data.root={root}", f"data.cache_dir={folder / 'memory'}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(Row(f"prepare {number} photographs: peak memory", "MB", [float(printed.split()[-1])]))
        numbers.append(number)
    more = 1024 * (rows[1].values[0] - rows[0].values[0]) / (numbers[1] - numbers[0])
    return [*rows, Row("prepare: memory of each further photograph", "KB", [more])]


# a process inherits the ru_maxrss of its parent; VmHWM is its own
MEASURED = """
import re, resource, sys
from pathlib import Path
from resnet_lab import prepare
if __name__ == "__main__":
    prepare.command(["data=retinopathy", "data.image_size=64", "data.eye_crop=true", *sys.argv[1:]])
    own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024)
"""


def measure(folder: Path, quick: bool) -> list[Row]:
    """Return all rows of the table; photographs and prepared files are written to `folder`."""
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    size, repetitions = (64, 1) if quick else (512, 7)
    paths = photographs(folder / "camera", quick)
    torch.set_num_threads(1)
    rows = prepare_rows(paths, folder, size, repetitions) + loading_rows(paths, folder, size, repetitions)
    torch.set_num_threads(threads)
    rows.append(
        Row("scaled / full decode: difference", "gray levels", [difference(path, size) for path in paths], "< 0.5")
    )
    return rows + training_rows(folder, quick, seeds=1 if quick else 3) + memory_rows(folder, quick)


if __name__ == "__main__":
    main(__doc__, "Speed of the data layer", QUESTION, METHOD, measure)
