"""Prepared sets: photographs read once by a recipe and stored as JPEGs or as pixels, with an index of their sources."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
from array import array
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from resnet_lab.data.check import RULES, Rules, check_files, digest_of, examine
from resnet_lab.data.progress import with_progress
from resnet_lab.data.reader import Recipe, read_image
from resnet_lab.errors import NO_ROOM, UserError, count, size_text
from resnet_lab.files import remove_unfinished, write_atomically
from resnet_lab.processes import cores

log = logging.getLogger(__name__)

VERSION = 2  # raise it when the same recipe gives other pixels
# Full color resolution: a microaneurysm is a few red pixels. At 512 px, quality 90 has an error of 1.0 gray levels and
# 47 KB (95: 0.9 and 72 KB), and decodes in two thirds of the time.
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
AS_THEY_ARE = Rules(strict=False)  # for files that were examined when they were prepared
CHUNK = 8  # photographs per task of a process
FACTS = ("brightness", "dark", "bright", *(f"{kind}_{color}" for kind in ("mean", "square") for color in "rgb"))
COLUMNS = ("image", "bytes", "changed", "digest", "width", "height", "defect", "prepared", *FACTS, "decoded", "rules")
TEXT = dict.fromkeys(("image", "digest", "prepared", "decoded", "rules", "place"), str)  # a hash may look like a number
UNKNOWN = {"decoded": "", "rules": "unknown"}  # columns that sets of older versions lack
PIXELS = "pixels.raw"  # file name
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)  # error codes
NOTHING: np.ndarray = np.empty((0, 0, 3), np.uint8)
Entry = dict[Hashable, Any]  # a row of the index: see `PreparedSet`
Format = Literal["jpeg", "raw"]


class Rows(Mapping[str, Entry]):
    """Rows of an index by name, stored by column: half a kilobyte a row, a fifth of dictionaries."""

    def __init__(self, columns: Sequence[str]) -> None:
        numbers = {**dict.fromkeys(FACTS, "d"), **dict.fromkeys(("bytes", "changed", "width", "height"), "q")}
        self._columns: dict[str, Any] = {name: array(numbers[name]) if name in numbers else [] for name in columns}
        self._places: dict[str, int] = {}

    def add(self, frame: pd.DataFrame) -> None:
        """Add the rows of a table with distinct new names."""
        for name, values in self._columns.items():
            values.extend(frame[name].tolist())
        self._places |= {name: place for place, name in enumerate(frame["image"], len(self))}

    def __setitem__(self, name: str, row: Entry) -> None:
        place = self._places.setdefault(name, len(self))
        for column, values in self._columns.items():
            value = row.get(column, UNKNOWN.get(column, ""))
            if place == len(values):
                values.append(value)
            else:
                values[place] = value

    def __getitem__(self, name: str) -> Entry:
        place = self._places[name]
        return {column: values[place] for column, values in self._columns.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def frame(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rows with these names, in this order; None: all, sorted."""
        places = [self._places[name] for name in (sorted(self) if names is None else names)]
        return pd.DataFrame(
            {
                name: np.array(values)[places] if isinstance(values, array) else [values[place] for place in places]
                for name, values in self._columns.items()
            }
        )


@dataclass(frozen=True)
class PreparedSet:
    """Folder of one recipe and one source.

    It contains `images/`, `index.csv` with one row per photograph, and `journal.jsonl` until the index is complete. The
    format `raw` has one file `pixels.raw` in place of `images/`: the pixels of all photographs, uint8 (H, W, 3) each,
    in the order of preparation. Columns of the index:
    - of the source: `image` (path below the root), `bytes`, `changed` (ns), `digest`, `width` and `height` (pixels),
      `defect` (empty, or why it cannot be read), `decoded` (hash of the pixels; empty in sets of older versions),
      `rules` (what counted as damage; empty: the default; `unknown` in sets of older versions);
    - `prepared`: digest of the JPEG, or of the pixels;
    - `place` (only in the format `raw`): `START:HEIGHTxWIDTH`, the first byte and the shape in `pixels.raw`;
    - `FACTS`: `brightness` (mean gray of the eye, 0 to 255), `dark`, `bright` (shares of the eye below 20 and above
      235), mean and mean square of each channel in [0, 1].

    Args:
        root: folder of the source.
        recipe: recipe for reading the photographs.
        cache_dir: folder of all prepared sets.
        rules: what counts as damage.
        format: `jpeg`, or `raw` (uncompressed, as read from the originals).
    """

    root: Path
    recipe: Recipe
    cache_dir: Path
    rules: Rules = RULES
    format: Format = "jpeg"

    @cached_property
    def folder(self) -> Path:
        """The folder, named by the source and a hash of recipe and source, so that recipes never mix."""
        text = json.dumps({"version": VERSION, **self._encoding, "root": str(self.root), **asdict(self.recipe)})
        return self.cache_dir / "prepared" / f"{self.root.name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def _encoding(self) -> dict[str, Any]:
        return {"jpeg": list(JPEG)} if self.format == "jpeg" else {"raw": "uint8"}

    @property
    def pixels_file(self) -> Path:
        """The pixels of all photographs, in the format `raw`."""
        return self.folder / PIXELS

    @property
    def columns(self) -> list[str]:
        """Columns of the index."""
        return [*COLUMNS, *["place"] * (self.format == "raw")]

    @property
    def index_file(self) -> Path:
        """The index: one row per photograph, sorted by name."""
        return self.folder / "index.csv"

    @property
    def journal_file(self) -> Path:
        """The rows of an incomplete index, in the order of preparation."""
        return self.folder / "journal.jsonl"

    @property
    def near_file(self) -> Path:
        """The pairs of nearly identical photographs that `resnet-lab prepare` found."""
        return self.folder / "near_duplicates.json"

    def name(self, path: str) -> str:
        """Return the name in the index: the path below the root; a photograph elsewhere gets a separate folder."""
        folder, name = os.path.split(path)
        if not folder.startswith("/"):
            folder = os.path.join(os.getcwd(), folder)  # noqa: PTH109, PTH118 - a tenth of the time
        return _place(self.root, folder) + name

    def file(self, path: str) -> Path:
        """Return the JPEG of a source photograph."""
        return Path(self.file_name(path))

    def file_name(self, path: str) -> str:
        """Return the path of the JPEG as text, three times as fast as `file`."""
        name = self.name(path)
        return f"{self._images}/{name}" if name.endswith(".jpeg") else f"{self._images}/{name}.jpeg"

    def stored(self, path: str, place: str = "") -> str:
        """Return what `read_prepared` reads: the JPEG of a source photograph, or its `place` in the file of pixels."""
        return f"{self._pixels}:{place}" if self.format == "raw" else self.file_name(path)

    @cached_property
    def _pixels(self) -> str:
        return str(self.pixels_file)

    @cached_property
    def _images(self) -> str:
        return str(self.folder / "images")

    def entries(self) -> Rows:
        """Return the rows of index and journal by name; none if nothing was prepared."""
        rows = Rows(self.columns)
        if self.index_file.is_file():
            try:
                frame = pd.read_csv(self.index_file, dtype=TEXT, keep_default_na=False)
                old = {name: frame.get(name, UNKNOWN[name]) for name in UNKNOWN}
                frame = frame.assign(**old)[self.columns]
                rows.add(frame)
            except (ValueError, KeyError, TypeError):  # damaged: treated as absent
                rows = Rows(self.columns)
                log.warning("%s is damaged; run resnet-lab prepare to rebuild it", self.index_file)
        if self.journal_file.is_file():
            with self.journal_file.open(encoding="utf-8") as journal:
                for line in journal:
                    with suppress(ValueError):  # a line cut off when the process died
                        row = json.loads(line)
                        rows[row["image"]] = row
        return rows

    def noted(self, pixels: str) -> dict[str, Any]:
        """Return the recipe that a run records; `pixels` is `originals` or `prepared`."""
        return {"version": VERSION, **asdict(self.recipe), **(self._encoding if pixels == "prepared" else {})}

    def lookup(self, rows: pd.DataFrame, needed: bool = False) -> pd.DataFrame | None:
        """Return the rows with the columns of `ImageData.check`, if all of them were prepared.

        Args:
            rows: rows with `path`.
            needed: refuse an incomplete set instead of reading the originals.

        Returns:
            The rows; None if the set is empty or incomplete.

        Raises:
            UserError: a prepared file is missing or was modified, or the set is `needed` and incomplete.
        """
        entries = self.entries()
        if not entries and not needed:
            if Path(self._images).is_dir() or self.pixels_file.is_file():
                log.warning("%s has no index, so the originals are read; rerun resnet-lab prepare", self.folder)
            return None
        names = [self.name(path) for path in rows["path"]]
        pairs = [*zip(names, rows["path"], strict=True)]
        changed = [name for name, path in pairs if name in entries and not _same_source(entries[name], path)]
        judged = [
            name for name in {*names} - {*changed} if name in entries and not _is_judged(entries[name], self.rules)
        ]
        lacking = sum(name not in entries for name in names) + len(changed) + len(judged)
        several = (
            f"{len(changed)} changed after it was made, such as" if len(changed) > 1 else "changed after it was made:"
        )
        why = f" ({several} {changed[0]})" if changed else ""
        if judged:
            why += " (made with another data.strict_jpeg or data.max_pixels)"
        if lacking and needed:
            raise UserError(
                f"the run or its sweep reads from a prepared set, but {self.folder} lacks {lacking} of "
                f"{count(len(rows), 'photograph')}{why}; run resnet-lab prepare with all data keys of this job, "
                f"such as data.image_size={self.recipe.image_size}, or choose another sweep_dir"
            )
        if lacking:
            text = "%s lacks %d of %s%s, so the originals are read; run resnet-lab prepare to complete it"
            log.warning(text, self.folder, lacking, count(len(rows), "photograph"), why)
            return None
        index = entries.frame(names).set_axis(rows.index)
        places = index.get("place", pd.Series("", rows.index))
        index = index[["defect", "digest", "decoded", "prepared"]]
        unknown = rows.loc[(index["decoded"] == "") & (index["defect"] == ""), "path"]
        if len(unknown):  # prepared by an older version
            index.loc[unknown.index, "decoded"] = unknown.map(
                check_files(unknown, self.cache_dir, AS_THEY_ARE)["decoded"]
            )
        files = [
            self.stored(path, place) if good else ""
            for path, place, good in zip(rows["path"], places, index["defect"] == "", strict=True)
        ]
        seen = self._digests([file for file in files if file])
        for file, digest in zip(files, index["prepared"], strict=True):
            if file and seen[file] != digest:
                raise UserError(f"{file} is missing or was modified; rerun resnet-lab prepare with the same keys")
        return rows.join(index.assign(pixels=index["prepared"], prepared=files))

    def _digests(self, files: Sequence[str]) -> Mapping[Hashable, str]:
        """Return the digests of stored photographs; they are cached until a file changes."""
        if self.format == "jpeg":
            return check_files(files, self.cache_dir, AS_THEY_ARE)["digest"].to_dict()
        try:
            stat = self.pixels_file.stat()
        except OSError:
            return dict.fromkeys(files, "")
        version, known = [stat.st_size, stat.st_mtime_ns], dict[Hashable, str]()
        cache_file = self.cache_dir / f"checked_{self.folder.name}.json"
        with suppress(OSError, ValueError, TypeError, KeyError):  # not checked yet, or damaged
            before = json.loads(cache_file.read_text(encoding="utf-8"))
            known = before["digests"] if before["version"] == version else {}
        if new := [file for file in files if file not in known]:
            log.info("checking %s (once)", count(len(new), "prepared photograph"))
            with ThreadPoolExecutor(cores()) as pool:
                known |= dict(zip(new, with_progress(pool.map(_digest, new), len(new), "checked"), strict=True))
            try:
                write_atomically(cache_file, json.dumps({"version": version, "digests": known}, ensure_ascii=False))
            except OSError as error:
                log.warning("cannot cache the check of the images: %s", error)
        return known


@cache
def _place(root: Path, folder: str) -> str:
    """Return the prefix of the names in a folder: its path below the root, or else a hash of its path."""
    place = os.path.relpath(folder, root)
    if Path(place).parts[:1] == (os.pardir,):
        return f"elsewhere_{hashlib.sha256(str(Path(folder)).encode()).hexdigest()[:12]}/"
    return "" if place == os.curdir else f"{place}/"


def _same_source(entry: Entry, path: str) -> bool:
    try:
        stat = os.stat(path)  # noqa: PTH116 - a third of the time of a Path
    except OSError:  # such as a dangling link; matches a row recorded in the same state
        return not entry["changed"] and bool(entry["defect"])
    if entry["defect"] == os.strerror(errno.EACCES) and os.access(path, os.R_OK):
        return False
    return (entry["bytes"], entry["changed"]) == (stat.st_size, stat.st_mtime_ns)


def _is_judged(entry: Entry, rules: Rules) -> bool:
    """Return whether these rules find what a row says: readable by stricter rules, or damaged by laxer ones.

    Rows of older versions, which do not name their rules, are taken as they are.
    """
    if entry["rules"] == UNKNOWN["rules"]:
        return True
    made = _parsed(entry["rules"])
    laxer, stricter = (
        (a.strict <= b.strict and a.max_pixels >= b.max_pixels) for a, b in ((rules, made), (made, rules))
    )
    return stricter if entry["defect"] else laxer


@cache
def _parsed(text: str) -> Rules:
    return Rules(**json.loads(text)) if text else RULES


def prepare(target: PreparedSet, paths: Sequence[str], processes: int) -> pd.DataFrame:
    """Read every photograph that is not prepared yet, and write the index.

    It can be interrupted and restarted at any time, and the output is byte-identical: a JPEG gets its name when it is
    complete, and one that does not match its row is written again. In the format `raw`, pixels are appended in
    the order of `paths`, and those without a row are cut off. An altered photograph is written to its place again.

    Args:
        target: the set.
        paths: source photographs.
        processes: number of processes.

    Returns:
        The index.

    Raises:
        UserError: two photographs would share a file, the folder cannot be written, or a process died.
    """
    names = {path: target.name(path) for path in paths}
    if len({name.removesuffix(".jpeg") for name in names.values()}) < len(names):
        raise UserError(f"{target.root}: two photographs differ only in their suffix; rename one of them")
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        with _turn(target.folder):
            return _prepare_missing(target, names, processes)
    except BrokenProcessPool:
        raise UserError(
            "a process died, most likely out of memory; rerun the same command to continue, with processes=1 if needed"
        ) from None
    except OSError as error:
        remedies = dict.fromkeys(NO_ROOM, "free some space and ")
        remedies |= dict.fromkeys(NOT_WRITABLE, "make it writable, or set data.cache_dir, and ")
        raise UserError(
            f"{error.filename or target.folder}: {error.strerror or error}; {remedies.get(error.errno or 0, '')}rerun "
            "the same command to continue; prepared files are kept"
        ) from error


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Lock the set; wait while another process prepares it."""
    file = folder.parents[1] / f"{folder.name}.lock"  # outside the set's folder, which holds only its own files
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process that prepares this set", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare_missing(target: PreparedSet, names: dict[str, str], processes: int) -> pd.DataFrame:
    """Prepare the missing ones of these photographs (path → name in the index), and write the index."""
    write_atomically(target.folder / "recipe.json", json.dumps({"root": str(target.root), **asdict(target.recipe)}))
    remove_unfinished(target.folder)
    entries = target.entries()
    found = (_is_whole(target, entries.get(name), path) for path, name in names.items())
    whole = list(with_progress(found, len(names), "looked up"))
    missing = [path for path, there in zip(names, whole, strict=True) if not there]
    log.info("%s: %d of %s to prepare", target.folder, len(missing), count(len(names), "photograph"))
    if not missing and target.index_file.is_file() and not target.journal_file.exists():
        return entries.frame()  # equal to the file
    refuse_full(target, sum(not entries.get(names[path], {}).get("place") for path in missing))
    with target.journal_file.open("a", encoding="utf-8") as journal, _pixels(target) as pixels:
        end = _end(entries)
        if pixels:
            pixels.truncate(end)
        for entry, content in with_progress(_prepare_all(target, missing, processes), len(missing), "read"):
            if pixels:
                end = _write_pixels(pixels, content, entry, entries.get(entry["image"], {}), end)
            entries[entry["image"]] = entry
            journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
            journal.flush()
    index = entries.frame()
    encoded = io.BytesIO()  # half of the memory of a text
    index.to_csv(encoded, index=False)
    write_atomically(target.index_file, encoded.getbuffer())
    target.journal_file.unlink()
    return index


def refuse_full(target: PreparedSet, number: int) -> None:
    """Refuse to prepare uncompressed photographs that the disk has no room for.

    Raises:
        UserError: fewer bytes are free than `number` photographs need at least.
    """
    need, free = 3 * target.recipe.image_size**2 * number, shutil.disk_usage(target.folder).free
    if target.format == "raw" and need > free:
        raise UserError(
            f"{target.folder}: data.prepared_format=raw needs {size_text(need)} for {count(number, 'photograph')}, "
            f"and {size_text(free)} are free; free some space, or set data.prepared_format=jpeg or a smaller "
            "data.image_size"
        )


def _pixels(target: PreparedSet) -> AbstractContextManager[BinaryIO | None]:
    """Open the file of pixels; None in the format `jpeg`."""
    if target.format == "jpeg":
        return nullcontext()
    target.pixels_file.touch()
    return target.pixels_file.open("r+b")


def _end(entries: Mapping[str, Entry]) -> int:
    """Return the number of bytes that these rows have in the file of pixels."""
    found = (place_of(f"/{PIXELS}:{entry['place']}") for entry in entries.values() if entry.get("place"))
    return max((start + 3 * height * width for _, start, height, width in found), default=0)


def _write_pixels(pixels: BinaryIO, content: np.ndarray, entry: Entry, before: Entry, end: int) -> int:
    """Write a photograph, (H, W, 3), where it was before if it has the same size, else at the end; return the new end.

    The row gets its `place`.
    """
    entry["place"], shape = "", f"{content.shape[0]}x{content.shape[1]}"
    if not content.size:  # unreadable
        return end
    place = str(before.get("place", ""))
    start = int(place.partition(":")[0]) if place.endswith(f":{shape}") else end
    pixels.seek(start)
    pixels.write(content.data)
    pixels.flush()  # before its row
    entry["place"] = f"{start}:{shape}"
    return max(end, start + content.nbytes)


def _is_whole(target: PreparedSet, entry: Entry | None, path: str) -> bool:
    if entry is None or not _same_source(entry, path) or not _is_judged(entry, target.rules):
        return False
    if entry["defect"] and entry["rules"] == UNKNOWN["rules"]:
        return False
    try:
        if entry["defect"]:
            return True
        if target.format == "raw":
            return bool(_digest(target.stored(path, entry["place"])) == entry["prepared"])
        with open(target.file_name(path), "rb") as file:  # noqa: PTH123
            return bool(digest_of(file.read()) == entry["prepared"])
    except OSError:
        return False


def _prepare_all(target: PreparedSet, paths: Sequence[str], processes: int) -> Iterator[tuple[Entry, np.ndarray]]:
    """Yield rows and pixels in the order of `paths`; few chunks are submitted at a time, so memory use is constant."""
    if processes == 1 or len(paths) <= CHUNK:
        yield from map(partial(prepare_photograph, target), paths)
        return
    size = 1 if target.format == "raw" else CHUNK  # pixels wait in memory
    chunks = (paths[start : start + size] for start in range(0, len(paths), size))
    # spawned, not forked: the caller may have threads of torch
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        tasks = (pool.submit(_prepare_chunk, target, chunk) for chunk in chunks)
        pending = deque(islice(tasks, 3 * processes))
        while pending:
            yield from pending.popleft().result()
            pending.extend(islice(tasks, 1))


def _prepare_chunk(target: PreparedSet, paths: Sequence[str]) -> list[tuple[Entry, np.ndarray]]:
    return [prepare_photograph(target, path) for path in paths]


def prepare_photograph(target: PreparedSet, path: str) -> tuple[Entry, np.ndarray]:
    """Read one photograph and write its JPEG; an unreadable one gets a row, too.

    Returns:
        The row of the index; and the pixels that the caller has to write, uint8 (H, W, 3): none in the format `jpeg`.
    """
    row: Entry = {"image": target.name(path), "bytes": 0, "changed": 0, "digest": "", "width": 0, "height": 0}
    row |= {"defect": "", "prepared": "", **dict.fromkeys(FACTS, 0.0), "decoded": ""}
    row["rules"] = "" if target.rules == RULES else json.dumps(target.rules._asdict())
    try:
        stat = Path(path).stat()
        row |= {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
        defect, row["digest"], row["decoded"] = examine(path, target.rules)
        if defect:
            return row | {"defect": defect}, NOTHING
        image = read_image(path, target.recipe, max_pixels=target.rules.max_pixels)
        with Image.open(path) as file:
            row["width"], row["height"] = file.size
    except (OSError, ValueError) as error:
        return row | {"defect": getattr(error, "strerror", "") or str(error).removeprefix(f"{path}: ")}, NOTHING
    if target.format == "raw":
        image = np.ascontiguousarray(image)
        return row | {"prepared": digest_of(image.data)} | _facts(image), image
    encoded = _encoded(image)
    target.file(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target.file(path), encoded.tobytes())
    return row | {"prepared": digest_of(encoded.data)} | _facts(image), NOTHING


def read_prepared(file: str, gray: bool = False) -> np.ndarray:
    """Read a photograph of a prepared set, uint8 (H, W, 3), RGB; or gray (H, W), in a third of the time.

    Args:
        file: a JPEG, or a place in a file of pixels (see `PreparedSet.stored`), whose pixels are mapped, not copied.
        gray: whether to return gray.

    Raises:
        OSError: the file is missing, or was modified.
    """
    if not file.endswith(".jpeg"):
        pixels = _mapped(file)
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if gray else pixels
    image = _decoded(np.frombuffer(Path(file).read_bytes(), np.uint8), gray)
    if image is None:
        raise OSError(f"{file} was modified while it was in use")
    return image


def as_stored(image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), RGB, as `read_prepared` returns it from a set of JPEGs."""
    stored = _decoded(_encoded(image))
    assert stored is not None
    return stored


def _encoded(image: np.ndarray) -> np.ndarray:
    """Return the bytes of a JPEG, uint8 (N,)."""
    return cv2.imencode(".jpeg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), JPEG)[1]


def _decoded(data: np.ndarray, gray: bool = False) -> np.ndarray | None:
    """Decode the bytes of a JPEG; None if they are none."""
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
    return image if gray or image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def place_of(file: str) -> tuple[str, int, int, int]:
    """Return file, first byte, height and width of a place in a file of pixels."""
    name, start, shape = file.rsplit(":", 2)
    height, width = shape.split("x")
    return name, int(start), int(height), int(width)


def _mapped(file: str) -> np.ndarray:
    """Return the pixels at a place, (H, W, 3), read-only, without a copy."""
    name, start, height, width = place_of(file)
    stat = os.stat(name)  # noqa: PTH116 - a third of the time of a Path
    pixels = _all_pixels(name, stat.st_ino, stat.st_size)[start : start + 3 * height * width]
    if len(pixels) < 3 * height * width:
        raise OSError(f"{name} was modified while it was in use")
    return pixels.reshape(height, width, 3)


@lru_cache(maxsize=8)
def _all_pixels(name: str, _inode: int, size: int) -> np.ndarray:
    """Map a file of pixels, once per version of the file."""
    return np.frombuffer(b"", np.uint8) if not size else np.asarray(np.memmap(name, np.uint8, "r"))


def _digest(file: str) -> str:
    """Return the digest of the pixels at a place; empty if they are missing."""
    try:
        return digest_of(_mapped(file).data)
    except OSError:
        return ""


def _facts(image: np.ndarray) -> dict[str, float]:
    """Return the exposure of the eye (a circle in the center), and mean and mean square of the channels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    middle = np.zeros_like(gray)
    height, width = gray.shape
    cv2.circle(middle, (width // 2, height // 2), round(0.45 * min(height, width)), 1, -1)
    eye = gray[middle > 0]
    mean, std = (values.ravel()[:3] / 255 for values in cv2.meanStdDev(image))
    values = (eye.mean(), (eye < 20).mean(), (eye > 235).mean(), *mean, *(mean**2 + std**2))
    return {name: round(float(value), 6) for name, value in zip(FACTS, values, strict=True)}
