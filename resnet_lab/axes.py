"""Axes of a sweep, and the label of each job (no torch here).

The report finds the axes of its groups in configurations, as it compares runs of several sweeps. A job, `status` and
the terminal find them in overrides: a job that has not begun has no configuration yet. `shown_of` words both.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_lab.errors import UserError
from resnet_lab.files import write_atomically
from resnet_lab.run_folder import RunFolder, given_keys, hashes_file, jobs_file, planned_file

Texts = Mapping[str, str]  # `key=value` → what a label has instead
ESCAPED = re.compile(r"\$\\\{(.*?)\\\}")  # `${seed}` as Hydra stores it in the overrides of a job
OF_PYTHON = re.compile(r"(^|[\[{:,] ?)(True|False|None)(?=$|[\]},])")  # values in a text that Python or Hydra wrote


def plain(value: object) -> str:
    """Return one text for all ways to write a value: `1e-3` and `0.001`, null and none, `[1, 2]` and `[1,2]`."""
    text = "".join(str(value).strip("'\"").split())
    if text.lower() in ("true", "false", "null", "none"):
        return text.lower().replace("null", "none")
    try:
        return repr(float(text))
    except ValueError:
        return text


def as_typed(value: object) -> str:
    """Return a value as users type it, with `true`, `false` and `null` in place of Python's words.

    A text keeps `None`, which users may have typed.
    """
    words = {"True": "true", "False": "false"} | ({} if isinstance(value, str) else {"None": "null"})
    text = ESCAPED.sub(r"${\1}", str(value))
    return OF_PYTHON.sub(lambda found: found[1] + words.get(found[2], found[2]), text)


def texts_of(labels: Mapping[Any, Mapping[Any, str]]) -> Texts:
    """Return `key=value` → label, from the key `labels` of a configuration."""
    return {f"{key}={plain(value)}": text for key, texts in labels.items() for value, text in texts.items()}


def shown_of(settings: Sequence[Mapping[str, Any]], texts: Texts) -> list[dict[str, str]]:
    """Return dotted key → short `key=value`, or the label of the value, for each of the settings (dotted key → value).

    Keys and paths are cut to the shortest form that still differs from the others.
    """
    axes = list(dict.fromkeys(axis for each in settings for axis in each))
    keys = [axis.removesuffix("._target_") for axis in axes]
    shown = [dict[str, str]() for _ in settings]
    for axis, key in zip(axes, keys, strict=True):
        separator = "." if axis.endswith("_target_") else "/"
        values = [_text(each, axis) if axis in each else "" for each in settings]
        others = list(dict.fromkeys(values))
        for each, words, value in zip(settings, shown, values, strict=True):
            if axis in each:
                least = 2 if separator == "/" and value == each[axis] else 1  # best.ckpt alone says little
                words[axis] = texts.get(f"{axis}={plain(each[axis])}") or (
                    f"{shortest_tail(key, keys, '.')}={shortest_tail(value, others, separator, least)}"
                )
    return shown


def _text(values: Mapping[str, Any], axis: str) -> str:
    """Return a value for people; `runs/source/depth-18` in a group of depth 18 becomes `runs/source`."""
    value = values[axis]
    text = "none" if value == "null" else as_typed(value)
    head, _, last = text.rpartition("/")
    repeats = last in {f"{key.split('.')[-1]}-{other}" for key, other in values.items()}
    return head if head and repeats else text


def shortest_tail(text: str, others: Sequence[str], separator: str, least: int = 1) -> str:
    """Return the shortest tail of `text`, of at least `least` parts, that is the tail of none of the `others`."""
    parts = text.split(separator)
    for size in range(least, len(parts)):
        tail = separator.join(parts[-size:])
        if not any(f"{separator}{other}".endswith(separator + tail) for other in others if other != text):
            return tail
    return text


def note_jobs(sweep_dir: Path, jobs: Mapping[str, Iterable[str]], gone: Iterable[str] = ()) -> None:
    """Store the overrides of planned jobs (folder name → overrides), and remove those in `gone`."""
    known = {name: items for name, items in planned_in(sweep_dir).items() if name not in {*gone}}
    text = json.dumps(known | {name: list(items) for name, items in jobs.items()}, indent=1, ensure_ascii=False)
    write_atomically(planned_file(sweep_dir), f"{text}\n")


def note_hashes(sweep_dir: Path, hashes: Mapping[str, str]) -> None:
    """Store the hash of the configuration of each planned job (folder name → hash; empty if unknown)."""
    write_atomically(hashes_file(sweep_dir), f"{json.dumps(hashes_in(sweep_dir) | dict(hashes), indent=1)}\n")


def hashes_in(sweep_dir: Path) -> dict[str, str]:
    """Return what `note_hashes` has stored."""
    with suppress(OSError, ValueError, AttributeError):  # no such file, or damaged
        found = json.loads(hashes_file(sweep_dir).read_text(encoding="utf-8"))
        return {str(name): str(each) for name, each in found.items()}
    return {}


def folder_of(run: RunFolder, overrides: Iterable[str]) -> RunFolder:
    """Return the folder of a sweep's job: that which `note_jobs` has under its overrides, if it is another one.

    Args:
        run: the folder with the name of the job. It is removed if another one is returned and only Hydra wrote into it.
        overrides: those of the job.
    """
    planned, own = planned_in(run.path.parent), {*overrides}
    names = [] if run.path.name in planned else [name for name, items in planned.items() if {*items} == own]
    if not names:
        return run
    with suppress(OSError):
        if [file.name for file in run.path.iterdir()] == [".hydra"]:
            shutil.rmtree(run.path)
    return RunFolder(run.path.parent / names[0])


def planned_in(sweep_dir: Path) -> dict[str, list[str]]:
    """Return folder name → overrides of the planned jobs of a sweep, in the order of its commands."""
    with suppress(OSError, ValueError, AttributeError, TypeError):  # no such file, or damaged
        found = json.loads(planned_file(sweep_dir).read_text(encoding="utf-8"))
        return {str(name): [str(item) for item in items] for name, items in found.items()}
    return {}


def settings_in(sweep_dir: Path) -> dict[str, dict[str, str]]:
    """Return folder name → keys and values of its overrides, for all planned and begun jobs of a sweep."""
    found = {name: given_keys(items) for name, items in planned_in(sweep_dir).items()}
    for file in sorted(sweep_dir.glob("*/status.json")):
        if file.parent.name not in found:  # of an older version, or of another sweeper
            with suppress(UserError, OSError, TypeError, AttributeError):  # damaged, which `status` shows
                found[file.parent.name] = RunFolder(file.parent).overrides()
    return found


def axes_of(jobs: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys in which jobs differ, in the order of the command."""
    jobs = list(jobs)
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({plain(job[key]) if key in job else None for job in jobs}) > 1]


def labels_in(sweep_dir: Path, texts: Texts) -> dict[str, str]:
    """Return folder name → label of the jobs of a sweep; the name itself if nothing varies."""
    jobs = settings_in(sweep_dir)
    axes = axes_of(jobs.values())
    shown = shown_of([{axis: job[axis] for axis in axes if axis in job} for job in jobs.values()], texts)
    return {name: " ".join(words.values()) or name for name, words in zip(jobs, shown, strict=True)}


def label_of(run: RunFolder) -> str:
    """Return the label of a job, such as `depth=18 ImageNet seed=0`; of a single run, the name of its folder."""
    if not jobs_file(run.path.parent).is_file():
        return run.path.name
    return labels_in(run.path.parent, texts_of(run.read_config()["labels"])).get(run.path.name, run.path.name)


def axes_of_run(run: RunFolder) -> dict[str, str]:
    """Return the axes of a job's sweep with its own values; of a single run, all its overrides."""
    own = run.overrides()
    if not jobs_file(run.path.parent).is_file():
        return own
    return {axis: own[axis] for axis in axes_of(settings_in(run.path.parent).values()) if axis in own}
