"""What the members of a combined run make together: its predictions, configuration and entries of status.json."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np

from resnet_lab.axes import as_typed
from resnet_lab.derived import OWN, Labeled, mean_of, pooled, stored_splits
from resnet_lab.errors import UserError, count
from resnet_lab.report.runs import Run
from resnet_lab.run_folder import RunFolder, comparable, is_bookkeeping
from resnet_lab.statistics import DECISIONS, OF_GRADES, OWN_RULE

FOLD = "data.fold"
CUT = ("data.folds", "data.split_seed", "data.max_images")  # the same for all folds of a cross-validation
SHARED = ("versions", "commit", "hardware", "monitor", "recipe", "pixels", "pixel_digests", "patients")
NOTES = ("leaks", "skipped_images", "skipped_labels", "label_conflicts")  # on the images; the largest number is kept
SUMMED = ("parameters", "seconds", "core_seconds")  # what the members need in common
ALL, NOTHING = "all", "none"  # values of over=


def varying_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which configurations differ, without bookkeeping."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: {repr(comparable(key, config.get(key))) for config in configs} for key in keys}
    return [key for key in keys if not is_bookkeeping(key) and len(values[key]) > 1]


def combined(members: Sequence[Run], over: Sequence[str]) -> tuple[dict[str, Labeled], dict[str, int]]:
    """Return the combined predictions by split, and the images of each fold if the scored split consists of folds.

    Another split than the scored one is left out if it cannot be combined. So is validation cut from the folds: the
    scored split has its images, and thresholds fitted on their labels would be scored on them.

    Raises:
        UserError: the members have other classes or test sets, or a fold is missing.
    """
    _refuse_other_classes(members)
    stored = [stored_splits(run.folder) for run in members]
    scored, sizes = members[0].split, dict[str, int]()
    found = dict[str, Labeled]()
    for split in sorted({split for each in stored for split in each}):
        if split == scored:
            found[split], sizes = _of_split(members, stored, split, over)
        elif all(split in each for each in stored):
            with suppress(UserError):
                other, pooled_sizes = _of_split(members, stored, split, over)
                if not (sizes and pooled_sizes):
                    found[split] = other
    return found, sizes or _common_folds(members, [each[scored] for each in stored])


def _common_folds(members: Sequence[Run], tables: Sequence[Labeled]) -> dict[str, int]:
    """Return the images of each fold if the members are pooled folds of one cross-validation; empty otherwise."""
    found = []
    for run, table in zip(members, tables, strict=True):
        sizes = run.folds
        if sum(sizes.values()) != len(table.rows):
            return {}
        parts = np.split(table.rows["image"].to_numpy(), np.cumsum([*sizes.values()])[:-1])
        found.append({fold: sorted(part) for fold, part in zip(sizes, parts, strict=True)})
    return {fold: len(part) for fold, part in found[0].items()} if all(each == found[0] for each in found) else {}


def _of_split(
    members: Sequence[Run], stored: Sequence[Mapping[str, Labeled]], split: str, over: Sequence[str]
) -> tuple[Labeled, dict[str, int]]:
    """Return the combined predictions of a split, and the images of each fold if they are pooled.

    The same images are averaged. Images of different folds are pooled, after the mean over the members of each fold.

    Raises:
        UserError: a member has no such predictions or other images, or a fold is missing.
    """
    for run, each in zip(members, stored, strict=True):
        if split not in each:
            raise UserError(f"{run.folder.path} stores no predictions of {split}, but the others do")
    tables = [each[split] for each in stored]
    if len({table.fingerprint for table in tables}) == 1:
        return mean_of(tables), {}
    by_fold: dict[Any, list[Labeled]] = {}
    for run, table in zip(members, tables, strict=True):
        by_fold.setdefault(run.config.get(FOLD) if run.config.get("data.folds") else None, []).append(table)
    alike = all(len({table.fingerprint for table in each}) == 1 for each in by_fold.values())
    if not (alike and (FOLD in over or over[0] == ALL)):
        names = f"{members[0].folder.path.name} and {members[-1].folder.path.name}"
        raise UserError(
            f"{names} have different {split} images or labels: a {split} image of one may be a training image of "
            "another; combine only runs with the same test set, or all folds of data.folds with over=data.fold"
        )
    _refuse_incomplete(members, by_fold)
    by_fold = dict(sorted(by_fold.items()))
    means = [mean_of(each) for each in by_fold.values()]
    _refuse_overlap(means, split)
    return pooled(means), {str(fold): len(each.rows) for fold, each in zip(by_fold, means, strict=True)}


def _refuse_other_classes(members: Sequence[Run]) -> None:
    first = members[0]
    for run in members[1:]:
        if run.class_names != first.class_names:
            raise UserError(
                f"{first.folder.path.name} has the classes {', '.join(first.class_names)}, {run.folder.path.name} has "
                f"{', '.join(run.class_names)}; combine only runs with the same classes"
            )


def _refuse_incomplete(members: Sequence[Run], by_fold: Mapping[Any, Sequence[object]]) -> None:
    """Refuse missing folds, folds of different cross-validations, and folds with different numbers of members."""
    cuts = {tuple(run.config.get(key) for key in CUT) for run in members}
    if len(cuts) > 1:
        texts = " and ".join(sorted(map(str, cuts)))
        raise UserError(f"the folds come from different cross-validations ({', '.join(CUT)}): {texts}")
    folds = int(cuts.pop()[0] or 0)
    if missing := [str(fold) for fold in range(folds) if fold not in by_fold]:
        what = "folds" if len(missing) > 1 else "fold"
        raise UserError(
            f"no finished run like {members[0].folder.path.name} has {what} {', '.join(missing)} of {folds}; train it, "
            "then combine again"
        )
    (few, fewest), (many, most) = (
        (fold, len(by_fold[fold]))
        for fold in (each(by_fold, key=lambda fold: len(by_fold[fold])) for each in (min, max))
    )
    if fewest < most:
        raise UserError(
            f"fold {few} has {count(fewest, 'run')}, fold {many} has {most}; train the missing one, as all folds need "
            "the same number"
        )


def _refuse_overlap(tables: Sequence[Labeled], split: str) -> None:
    """Refuse folds that share an image or a patient: one of the models was trained on it."""
    for name in ("image", "patient"):
        if any(name not in table.rows for table in tables):
            continue
        seen: set[str] = set()
        for table in tables:
            own = {each for each in table.rows[name] if each}
            if shared := sorted(seen & own):
                raise UserError(f"{name} {shared[0]} is in the {split} images of two folds; folds must not overlap")
            seen |= own


def config_of(members: Sequence[Run], over: Sequence[str], pools: bool, out: RunFolder) -> dict[str, Any]:
    """Return the configuration of a derived run: that of the first member, with all values of the combined keys."""
    config = deepcopy(members[0].folder.read_config())
    for key in varying_keys([run.config for run in members]):
        if key != "seed":
            values = [run.config.get(key) for run in members]
            texts = ["none" if value is None else as_typed(value) for value in values]
            set_key(config, key, ",".join(dict.fromkeys(texts)))
    before = config.get("combine")
    how = {key: value for key, value in before.items() if key != "sources"} if isinstance(before, dict) else {}
    if over[0] != NOTHING:
        key = "pooled_over" if pools else "mean_over"
        words = [*over, "seed"] if pools and over[0] == ALL and _join_seeds(members) else over
        how[key] = ",".join([*([str(how[key])] if key in how else []), *words])
    # a link in the path of one of both would lead elsewhere
    sources = [os.path.relpath(run.folder.path.resolve(), out.path.resolve()) for run in members]
    return config | {"combine": how | {"sources": sources}}


def _join_seeds(members: Sequence[Run]) -> bool:
    """Return whether a fold has members with several seeds."""
    seeds: dict[Any, set[str]] = {}
    for run in members:
        seeds.setdefault(run.config.get(FOLD), set()).add(repr(run.config.get("seed")))
    return max(map(len, seeds.values())) > 1


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key of a configuration."""
    *path, name = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    config[name] = value


def facts_of(members: Sequence[Run], decides: bool = False, folds: int = 1) -> dict[str, Any]:
    """Return the entries of status.json that the members share, and the sums of their costs.

    Args:
        members: the combined runs.
        decides: whether only the decision rule of a single member changes, so that its other entries stay valid.
        folds: number of pooled folds; an image is seen by the members of one of them.
    """
    first = members[0].status
    if decides:  # as `best_value`, scored by the rule while the job trained
        before = {"decision_in_training": first.get("decision_in_training") or first.get("decision") or "argmax"}
        return {key: value for key, value in first.items() if key not in OWN} | before
    facts = {key: first.get(key) for key in ("class_names", "ordered", "class_counts")}
    facts |= {
        key: first[key] for key in SHARED if key in first and all(run.status.get(key) == first[key] for run in members)
    }
    trained_on = {run.fingerprint("train") for run in members}
    if len(trained_on) == 1 and (same := trained_on.pop()):
        facts["split_fingerprint"] = {"train": same}
    if seen := seen_by_any(members):
        facts["seen_by"] = seen
    if lost := sum(run.collapsed for run in members):
        facts["collapsed_members"] = lost
    facts |= {key: most for key in NOTES if (most := max(run.status.get(key) or 0 for run in members))}
    for key in SUMMED:
        values = [run.status.get(key) for run in members]
        if all(isinstance(value, int | float) for value in values):
            facts[key] = sum(value for value in values if value is not None)
    if math.isfinite(needed := sum(run.multiply_adds for run in members)):
        facts["multiply_adds"] = round(needed / folds)
    return facts


def seen_by_any(members: Sequence[Run]) -> dict[str, dict[str, int]]:
    """Return `seen_by` of status.json for a combined run: the largest number of its members, summed over folds."""
    most: dict[tuple[str, str], dict[Any, int]] = {}
    for run in members:
        for key, images in (run.status.get("seen_by") or {}).items():
            for split, number in images.items():
                folds = most.setdefault((key, split), {})
                fold = run.config.get(FOLD)
                folds[fold] = max(number, folds.get(fold, 0))
    found: dict[str, dict[str, int]] = {}
    for (key, split), folds in most.items():
        found.setdefault(key, {})[split] = sum(folds.values())
    return found


def rule_of(members: Sequence[Run], decision: str) -> str:
    """Return the decision rule: the given one, or that of all members.

    Raises:
        UserError: the members have different rules, or the rule is unknown, needs the network, or needs grades.
    """
    rules = list(dict.fromkeys(str(run.status.get("decision") or "argmax") for run in members))
    if not decision and len(rules) > 1:
        raise UserError(f"the runs have different decision rules ({', '.join(rules)}); choose one with decision=")
    rule = decision or rules[0]
    if rule == OWN_RULE:
        raise UserError(
            f"{members[0].folder.path}: its loss defines its own decision rule; choose another with decision="
        )
    if rule not in DECISIONS:
        raise UserError(
            f"{members[0].folder.path}: the decision rule {rule!r} of status.json is unknown; choose one with decision="
        )
    if rule in OF_GRADES and not members[0].status.get("ordered"):
        raise UserError(f"decision={rule} needs grades, but the classes of these runs have no order")
    return rule
