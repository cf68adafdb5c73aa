"""Faults and limits of a comparison of runs, as sentences, the faults first."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations, compress
from pathlib import Path

import numpy as np

from resnet_lab.axes import labels_in, texts_of
from resnet_lab.errors import UserError, count
from resnet_lab.keys import known_keys
from resnet_lab.rendering import FEW_NAMES, Finding
from resnet_lab.report.figures import CURVES, PICTURES
from resnet_lab.report.groups import AREA, Group, Table, places_of
from resnet_lab.report.intervals import CHECKED_IMAGES, CHECKED_PATIENTS, FEW_OF_A_CLASS, FEWEST
from resnet_lab.report.runs import OUTDATED, Run, has_epochs, may_not_be_read, read_metrics
from resnet_lab.report.selection import blind_of
from resnet_lab.report.verify import undecided
from resnet_lab.run_folder import SOURCES, RunFolder, jobs_file, list_jobs
from resnet_lab.scores import ABSENT, SCORES
from resnet_lab.signatures import is_ours
from resnet_lab.statistics import DECISIONS
from resnet_lab.status import state_of

ALIKE = 6  # digits of a probability; two trainings differ within these
MANY = 8  # classes or runs that a finding names; further ones are counted
WORDS = {"train": "training", "val": "validation", "test": "test"}


def findings_of(runs: Sequence[Run], tables: Sequence[Table]) -> list[Finding]:
    """Return the faults of the runs, then the limits of the comparison."""
    found = [*_selection(runs), *_undefined(runs), *_pixels(runs), *_data_notes(runs)]
    several = sum(bool(table.scored) for table in tables) > 1
    about = [f"{table.title}: " if several else "" for table in tables]
    for table, place in zip(tables, about, strict=True):
        found += [finding._replace(text=place + finding.text) for finding in _collapsed(table)]
    found += [*_problems(runs), *_outdated(runs), *_test_sets(tables), *_identical(runs)]
    for table, place in zip(tables, about, strict=True):
        doubts = (*_doubts(table), *_classes(table), *_blind(table), *_partial_means(table))
        found += [finding._replace(text=place + finding.text) for finding in doubts]
    found += [
        *_lost_folds(runs),
        *_validation(runs),
        *_single_seeds(tables),
        *_unknown_figures(runs),
        *_lost_epochs(runs),
    ]
    found += [*_not_begun(runs), *_left_out(runs)]
    return sorted(_folded(found), key=lambda finding: not finding.is_fault)


def _folded(found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; more than `FEW_NAMES` of one kind become one, which lists them."""
    alike = defaultdict[tuple[str, bool], list[Finding]](list)
    for finding in found:
        alike[finding.kind, finding.is_fault].append(finding)
    for (kind, is_fault), same in alike.items():
        if len(same) <= FEW_NAMES:
            yield from same
            continue
        parts = [finding.text.partition(": ") for finding in same]
        if len({rest for *_, rest in parts}) == 1:  # after the label of a group or run
            runs = [f" ({', '.join(finding.names)})" if finding.names else "" for finding in same]
            names = tuple(label + of_label for (label, *_), of_label in zip(parts, runs, strict=True))
            yield Finding(kind, f"{len(same)} times: {parts[0][2]}", is_fault, names)
        else:
            yield Finding(kind, f"{len(same)} findings", is_fault, tuple(map(str, same)))


def _problems(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield runs without a result; runs with the same problem share a line, as do those that failed at the start."""
    names, labels, alike = places_of(runs), _labels(runs), defaultdict(list)
    unstarted = [run for run in runs if run.failed_at_start]
    if unstarted:
        text = (
            f"{count(len(unstarted), 'run')} ended with an error before the end of the first epoch; train again, or "
            f"remove the folder{'s' if len(unstarted) > 1 else ''} (rm -r) to leave out such runs"
        )
        folders = [names[run.folder.path] for run in unstarted]
        known = [labels[run.folder.path] for run in unstarted]
        named = [f"{label} ({place})" if label != place else place for label, place in zip(known, folders, strict=True)]
        listed = tuple(f"{name}: {run.problem}" for name, run in zip(named, unstarted, strict=True))
        yield Finding("failed at the start", text, names=listed)
    for run in runs:
        if run.problem and not run.failed_at_start:
            alike["no result" if run.state == "done" else run.state, run.problem].append(labels[run.folder.path])
    for (kind, problem), places in alike.items():
        if len(places) > 1:
            yield Finding(kind, f"{len(places)} runs: {problem}", names=tuple(places))
        else:
            yield Finding(kind, f"{places[0]}: {problem}")


def _labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Return run folder → label of the job in its sweep; the short paths if two labels are equal."""
    found = places_of(runs)
    for sweep in {run.folder.path.parent for run in runs}:
        with suppress(UserError, OSError):  # damaged, which another finding reports
            if jobs_file(sweep).is_file():
                texts = next(run.folder.read_config()["labels"] for run in runs if run.folder.path.parent == sweep)
                found |= {sweep / name: label for name, label in labels_in(sweep, texts_of(texts)).items()}
    shown = [found[run.folder.path] for run in runs]
    return found if len({*shown}) == len(shown) else places_of(runs)


def _not_begun(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield the jobs of the runs' sweeps without a status.json, and those that lost their config.yaml."""
    for sweep in sorted({run.folder.path.parent for run in runs if not run.single}):
        with suppress(UserError, OSError):  # damaged, which another finding reports
            names = list_jobs(sweep)
            absent = [name for name in names if not RunFolder(sweep / name).status_file.exists()]
            lost = [name for name in names if name not in absent and not RunFolder(sweep / name).config_file.exists()]
            labels = labels_in(sweep, {}) if absent or lost else {}
            for kind, missing in (("not begun", absent), ("config.yaml lost", lost)):
                if missing:
                    text = (
                        f"{len(missing)} of {count(len(names), 'job')} of {sweep.name}; rerun the command that planned "
                        "them, or remove their lines in jobs.txt"
                    )
                    yield Finding(kind, text, False, tuple(labels.get(name, name) for name in missing))


def _left_out(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield the finished jobs of the runs' sweeps that are not in the report."""
    reported = {run.folder.path for run in runs}
    for sweep in sorted({run.folder.path.parent for run in runs if not run.single}):
        with suppress(UserError, OSError):  # damaged, which another finding reports
            others = [RunFolder(sweep / name) for name in list_jobs(sweep) if (sweep / name).resolve() not in reported]
            if absent := [run.path.name for run in others if state_of(run).state == "done"]:
                labels = labels_in(sweep, {})
                text = f"{count(len(absent), 'finished job is', 'finished jobs are')} not in this report ({sweep.name})"
                yield Finding("left out", text, False, tuple(labels.get(name, name) for name in absent))


def _lost_folds(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield the runs of pooled folds whose rows were sorted: their places told the folds."""
    names = places_of(runs)
    if places := tuple(names[run.folder.path] for run in runs if run.status.get("folds") and not run.folds):
        which = "a run of pooled folds has" if len(places) == 1 else f"{len(places)} runs of pooled folds have"
        yield Finding(
            "folds lost", f"{which} predictions in another order, so the folds are unknown; combine again", True, places
        )


def _outdated(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield the runs whose sources were trained or evaluated again."""
    names = places_of(runs)
    if places := tuple(names[run.folder.path] for run in runs if run.is_outdated):
        which = "a run was" if len(places) == 1 else f"{len(places)} runs were"
        yield Finding("outdated", f"{which} {OUTDATED}", names=places)


def _validation(runs: Sequence[Run]) -> Iterator[Finding]:
    names = places_of(runs)
    for run in runs:
        if run.validation_problem:
            text = f"{names[run.folder.path]}: {run.validation_problem}; this run gets no threshold and no temperature"
            yield Finding("validation damaged", text)


def _unknown_figures(runs: Sequence[Run]) -> Iterator[Finding]:
    known = (*CURVES, *PICTURES)
    if unknown := sorted({name for run in runs for name in run.figures if name not in known}):
        asking = [run for run in runs if {*run.figures} & {*unknown}]
        text = f"no figure is named {_listed(unknown)} {_which(asking, runs)}"
        yield Finding("unknown figure", f"{text}; choose among {', '.join(known)}", False)


def _lost_epochs(runs: Sequence[Run]) -> Iterator[Finding]:
    names = places_of(runs)
    for run in runs:
        epoch, file = run.status.get("epoch"), run.folder.stored_metrics
        if run.state != "done" or not isinstance(epoch, int) or not file.is_file():
            continue
        if not has_epochs(file, epoch + 1):
            has = f"has {len(read_metrics(file))} of {count(epoch + 1, 'epoch')}"
            seen = "cannot be read (Permission denied)" if may_not_be_read(file) else has
            text = f"{names[run.folder.path]}: {file.name} {seen}"
            yield Finding("epochs lost", f"{text}; its curves are incomplete, its scores are complete", False)


def _collapsed(table: Table) -> Iterator[Finding]:
    """Yield one finding on all runs that nearly always predict one class."""
    texts = []
    for group in table.ranked:
        if group.collapsed:
            seeds = [str(run.config.get("seed", ABSENT)) for run in group.collapsed if not run.members]
            which = f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})" if seeds else ""
            texts.append(f"{group.label}: {len(group.collapsed)} of {len(group.scored)}{which}")
    if texts:
        runs = sum(len(group.collapsed) for group in table.groups)
        predict = "run nearly always predicts one class" if runs == 1 else "runs nearly always predict one class"
        yield Finding("collapsed", f"{runs} {predict}, on test or on validation", names=tuple(texts))


def _doubts(table: Table) -> Iterator[Finding]:
    places = places_of(table.scored) if table.scored else {}
    for group in table.ranked:
        seeds = Counter(run.config.get("seed") for run in group.scored)
        repeated = [run for run in group.scored if seeds[run.config.get("seed")] > 1]
        roots = sorted({str(run.config.get("data.root")) for run in group.scored})
        pixels = {str(run.status.get("pixel_digests") or run.folder.path) for run in group.scored}
        if len(roots) > 1 and len(pixels) > 1:  # not for copies of a folder
            yield Finding("different images", f"{group.label}: its runs read different folders: {' and '.join(roots)}")
        for kind, what, digests in _digests_of(group):
            counts = Counter(filter(None, digests))
            if len(counts) > 1:
                text = f"{group.label}: its runs had different {what}, so they cannot be averaged"
                unlike = [each not in ("", counts.most_common()[0][0]) for each in digests]
                names = tuple(places[run.folder.path] for run in compress(group.scored, unlike))
                yield Finding(kind, f"{text}; these differ from the most", names=names)
        if repeated:
            which = sorted({run.config.get("seed") for run in repeated}, key=str)
            several = f"seed {which[0]} occurs" if len(which) == 1 else f"seeds {', '.join(map(str, which))} occur"
            text = f"{group.label}: {several} more than once, so n is too large; remove all runs of a seed but one"
            yield Finding("duplicate seed", text, names=tuple(places[run.folder.path] for run in repeated))
    for split, contents in table.differing_data:
        text = f"the groups had different images or labels in {split}, so they cannot be compared"
        yield Finding("different data", text, names=tuple(_listed([each.label for each in same]) for same in contents))
    sizes = {len(run.members) for group in table.scored_groups for run in group.scored if run.joins_seeds}
    if len(sizes) > 1:
        text = f"means of {' and '.join(map(str, sorted(sizes)))} runs are compared; a mean of more runs is better"
        yield Finding("means of different sizes", text)
    if any(not np.array_equal(each, table.patient) for each in table.groupings):
        text = "the runs disagree on which images belong to one patient; the grouping with the fewest patients is used"
        yield Finding("different patients", text)
    if table.scored and table.scored[0].split == "val":
        chose = any(str(run.status.get("monitor")).startswith("val/") for run in table.scored if run.trained)
        text = "all scores are from validation images" + ("; these also selected the checkpoint" if chose else "")
        if any(run.status.get("decision") == "thresholds" for run in table.scored):
            text += "; decision thresholds were also fitted on them, so their scores are too high"
        yield Finding("no test split", text)
    yield from _contradicting(table)
    yield from _alphabetical(table)
    yield from _against_baseline(table)


def _contradicting(table: Table) -> Iterator[Finding]:
    """Yield runs whose predictions do not follow from their probabilities, as after an edit of the file."""
    places, edited = places_of(table.scored) if table.scored else {}, dict[str, int]()
    for run in table.scored:
        rule, limits = run.status.get("decision"), run.status.get("thresholds") or ()
        known = rule in DECISIONS and (rule != "thresholds" or len(limits) == len(run.class_names) - 1)
        if known and run.predictions is not None:
            rows = int(np.sum(undecided(run.predictions.labeled, str(rule), limits)))
            edited |= {places[run.folder.path]: rows} if rows else {}
    if edited:
        where = f"in {count(sum(edited.values()), 'row')} of {count(len(edited), 'run')}"
        text = f"{where}, the prediction does not follow from the probabilities"
        yield Finding("edited predictions", text, names=tuple(edited))


def _alphabetical(table: Table) -> Iterator[Finding]:
    """Yield a finding if grades have the alphabetical order of their names because no key gives their order."""
    names = table.scored[0].class_names if table.scored else ()
    numbered = any(name[:1].isdigit() for name in names)
    folders = [run for run in table.scored if str(run.config.get("data._target_")).endswith(".ClassFolders")]
    found = [run for run in folders if not run.config.get("data.class_names")]
    if table.ordered and found and not numbered and list(names) in (sorted(names), sorted(names, key=str.lower)):
        text = f"the grades are in alphabetical order ({_listed(names)}), as data.class_names is not set"
        yield Finding("alphabetical grades", f"{text}; if their order is another, QWK is wrong", False)


def _digests_of(group: Group) -> Iterator[tuple[str, str, list[str]]]:
    """Yield what the runs of a group must share: the kind of finding, its words, and the hash of each run or empty."""
    for split in ("train", "val"):
        yield "different data", f"images or labels in {split}", [run.fingerprint(split) for run in group.scored]
    targets = {target for run in group.scored for target in run.status.get("own_code") or {}}
    for target in sorted(targets):
        hashes = [str((run.status.get("own_code") or {}).get(target, "")) for run in group.scored]
        yield "different code", f"code of {target}", hashes
    for key in ("model.pretrained", "loss.teacher"):
        hashes = [str(run.status.get(key.partition(".")[2]) or "") for run in group.scored]
        yield "different weights", f"weights of {key}", hashes


def _against_baseline(table: Table) -> Iterator[Finding]:
    """Yield groups that are not better than the majority baseline, and groups that may not be.

    A group of collapsed runs is counted, not named: another finding names it.
    """
    below, measured_below, open_still = list[str](), list[str](), list[str]()
    collapsed = 0
    places = {id(group): place for place, group in enumerate(table.scored_groups)}
    for group in (group for group in table.ranked if group.scored):
        value = group.mean_and_std(table.metric)[0]
        baseline = float(np.mean([run.baseline[table.metric] for run in group.scored]))
        limits = table.estimates[table.metric].interval(places[id(group)])
        if len(group.collapsed) == len(group.scored):
            collapsed += bool(limits.low <= baseline or value <= baseline)
        elif value <= baseline:
            (measured_below if limits.high > baseline else below).append(group.label)
        elif value > baseline >= limits.low:
            open_still.append(group.label)
    besides = f" (besides {count(collapsed, 'collapsed group')})" if collapsed else ""
    for labels, doubt in ((below, ""), (measured_below, "may be ")):
        if labels:
            names = _listed(labels, separator="; ") + besides
            text = f"the measured {table.title_of_metric} is not above the majority baseline: {names}"
            yield Finding(f"{doubt}no better than always predicting one class", text)
    if open_still:
        names = _listed(open_still, separator="; ") + besides
        text = f"the {table.title_of_metric} interval includes the majority baseline: {names}"
        yield Finding("may be no better than always predicting one class", text, False)


def _classes(table: Table) -> Iterator[Finding]:
    if not table.scored:
        return
    names, images = table.scored[0].class_names, table.scored[0].counts.sum(axis=1)
    split = WORDS[table.scored[0].split]
    trained = [run for run in table.scored if not run.collapsed]
    found = np.sum([run.counts.diagonal() for run in trained], axis=0) if trained else images
    never = [name for name, n, hits in zip(names, images, found, strict=True) if n and not hits]
    if never:
        others = " that did not collapse" if len(trained) < len(table.scored) else ""
        runs = (
            f"none of the {len(trained)} runs{others} finds" if len(trained) > 1 else f"the run{others} does not find"
        )
        yield Finding("class never found", f"{runs} a single image of: {_listed(never)}")
    learned = np.sum([run.class_counts("train") or [1] * len(names) for run in table.scored], axis=0)
    if unseen := [name for name, n in zip(names, learned, strict=True) if not n]:
        yield Finding("class not trained", f"no training image of {_listed(unseen)}: no run can learn to find it")
    absent = [name for name, n in zip(names, images, strict=True) if not n]
    if absent:
        whose = "its recall" if len(absent) == 1 else "their recall"
        yield Finding("class not tested", f"no {split} image of {_listed(absent)}: {whose} is unknown", False)
    few = [f"{name} ({n})" for name, n in zip(names, images, strict=True) if 0 < n < FEWEST]
    for reason, metrics in _without_interval(table).items():
        where = f"{_listed(few)} in {split}: " if reason == FEW_OF_A_CLASS else ""
        text = f"{where}{reason}, so these scores have no interval and no tested difference: {'; '.join(metrics)}"
        yield Finding("few images", text, False)
    yield from _few_patients(table, split)


def _few_patients(table: Table, split: str) -> Iterator[Finding]:
    """Yield a finding if the test set is smaller than any on which intervals were checked."""
    predictions = table.scored[0].predictions
    if predictions is None:
        return
    images, patients = len(predictions.labeled.targets), predictions.split.number_of_patients
    if images < CHECKED_IMAGES or patients < CHECKED_PATIENTS:
        size = f"{split} has {count(images, 'image')} of {count(patients, 'patient')}"
        text = f"{size}; intervals were checked with {CHECKED_IMAGES} images of {CHECKED_PATIENTS} patients or more"
        yield Finding("few patients", f"{text}, and may be far too narrow here", False)


def _without_interval(table: Table) -> dict[str, list[str]]:
    """Return reason → titles of the metrics that have no interval for this reason."""
    found = defaultdict(list)
    for metric in dict.fromkeys((*table.metrics, *[AREA] * table.referable)):
        if reason := table.estimates[metric].withheld:
            found[reason].append(SCORES[metric].label)
    return found


def _blind(table: Table) -> Iterator[Finding]:
    """Yield groups whose epoch was selected among many that are as good within the noise of validation."""
    if not (found := blind_of(table)):
        return
    images = sorted({selection.images for each in found for selection in each.selections})
    texts = []
    for each in found:
        epochs = ", ".join(str(selection.epoch) for selection in each.selections)
        of = max(selection.epochs for selection in each.selections)
        numbers = [str(selection.alike) for selection in each.selections]
        alike = ", ".join(numbers if len({*numbers}) > 1 else numbers[:1])
        others = "other epoch is" if alike == "1" else "other epochs are"
        texts.append(f"{each.label}: epoch {epochs} of {of}; {alike} {others} as good")
    text = (
        f"{' to '.join(map(str, images[:1] + images[1:][-1:]))} validation images cannot distinguish the selected "
        "epoch from most others (one standard error)"
    )
    yield Finding("selection within noise", text, False, tuple(texts))


def _listed(names: Sequence[str], most: int = MANY, separator: str = ", ") -> str:
    more = len(names) - most
    return separator.join(names[:most]) + (f"{separator}and {more} more" if more > 0 else "")


def _which(some: Sequence[Run], runs: Sequence[Run]) -> str:
    """Return the number of affected runs and the first of their labels."""
    labels = _labels(runs)
    listed = _listed([labels[run.folder.path] for run in some], FEW_NAMES, "; ")
    which = "" if len(some) == len(runs) else f": {listed}"
    return f"({len(some)} of {count(len(runs), 'run')}{which})"


def _partial_means(table: Table) -> Iterator[Finding]:
    """Yield combined groups that lack runs of the groups of their members (seeds added later), or their members."""
    paths = [(group, {run.folder.path.resolve() for run in group.scored}) for group in table.scored_groups]
    for group in table.scored_groups:
        members = {folder for run in group.scored for folder in run.members}
        texts = [
            f"{len(own & members)} of the {count(len(own), 'run')} of {other.label}"
            for other, own in paths
            if own & members and own - members
        ]
        if texts:
            text = f"{group.label} is made from {' and '.join(texts)}, and not from the others"
            yield Finding("incomplete mean", text, False)
        if lost := sorted(folder.name for folder in members if not os.path.exists(folder)):  # noqa: PTH110 - or closed
            text = f"{group.label}: {len(lost)} of its {count(len(members), 'member')} cannot be found and compared"
            yield Finding("missing members", text, False, names=tuple(lost))


def _data_notes(runs: Sequence[Run]) -> Iterator[Finding]:
    notes: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        leaks, skipped = (run.status.get(key) or 0 for key in ("leaks", "skipped_images"))
        if leaks and run.config.get("data.on_leak") != "drop":
            share = count(leaks, "image of train or val shares", "images of train or val share")
            notes["leaking", f"{share} a patient or an identical image with a later split"].append(run)
        for key, images in (run.status.get("seen_by") or {}).items():
            texts = [f"{number} {split}" for split, number in images.items() if number]
            notes["leaking", f"the network of {key} was trained on {' and '.join(texts)} images"].append(run)
        if lost := run.status.get("collapsed_members") or 0:
            which = f"{lost} of the {count(len(run.members), 'member')} of a combined run"
            notes["collapsed", f"{which} nearly always {'predicts' if lost == 1 else 'predict'} one class"].append(run)
        if skipped:
            notes["skipped images", f"{count(skipped, 'image')} could not be read"].append(run)
        patients = run.status.get("patients")
        if isinstance(patients, dict) and patients.get("doubt"):  # without its names, as reports are sent to others
            text = "images of one patient may count as several patients (train.log names them), so splits may leak"
            notes["patients in doubt", text].append(run)
        if rows := run.status.get("skipped_labels") or 0:
            notes["skipped labels", f"{count(rows, 'row has', 'rows have')} no valid label"].append(run)
        if copies := run.status.get("label_conflicts") or 0:
            text = f"{count(copies, 'image has', 'images have')} an identical copy with a different label"
            notes["conflicting labels", text].append(run)
    for (kind, text), some in notes.items():
        yield Finding(kind, f"{text} {_which(some, runs)}")


def _test_sets(tables: Sequence[Table]) -> Iterator[Finding]:
    scored = [table for table in tables if table.scored]
    if len(scored) > 1:
        text = (
            "the runs were scored on different images or labels; each set has its own table, so do not compare tables"
        )
        if all(len({run.config.get("data.fold") for run in table.scored}) == 1 for table in scored) and all(
            table.scored[0].config.get("data.folds") for table in scored
        ):
            text += "; the tables are folds: resnet-lab combine DIR over=data.fold out=OUT pools them into one"
        yield Finding("different test sets", text)
    same_images = defaultdict(set)
    for table in scored:
        same_images[table.scored[0].test_set[:2]].add(table.scored[0].class_names)
    for names in same_images.values():
        if len(names) > 1:
            lists = " against ".join(_listed(each) for each in sorted(names))
            yield Finding("different class names", f"the same images have different class names: {lists}")


def _identical(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield different runs with the same predictions; only collapsed runs of constant outputs can have that."""
    names, same = places_of(runs), defaultdict(list)
    for run in runs:
        derived = run.status.get("derived_from") or run.config.get(SOURCES)  # the same on purpose
        if not run.predictions or derived:
            continue
        rounded = np.round(run.predictions.labeled.probabilities, ALIKE)
        if not run.collapsed or 2 * len(np.unique(rounded, axis=0)) > len(rounded):
            same[run.test_set, hashlib.sha256(rounded.tobytes()).digest()].append(names[run.folder.path])
    copies = tuple(_listed(places) for places in same.values() if len(places) > 1)
    if copies:
        text = f"runs with the same {ALIKE} digits in every probability (a copied folder, or a key without effect)"
        yield Finding("suspiciously identical", text, names=copies)


def _selection(runs: Sequence[Run]) -> Iterator[Finding]:
    monitors = [(run, str(run.status.get("monitor") or run.config.get("monitor"))) for run in runs]
    chosen = [run for run, monitor in monitors if monitor.startswith("test/") and not run.failed_at_start]
    if chosen:
        yield Finding("selected on test", f"a test metric selected the epoch {_which(chosen, runs)}")
    for one, other in combinations(WORDS, 2):
        same = [run for run in runs if run.fingerprint(one) and run.fingerprint(one) == run.fingerprint(other)]
        if same:
            text = f"{WORDS[one]} and {WORDS[other]} images are the same {_which(same, runs)}"
            yield Finding("selected on test" if (one, other) == ("val", "test") else "leaking", text)


def _undefined(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield runs with a monitored metric that is undefined in every epoch."""
    undefined = defaultdict(list)
    for run in runs:
        value = run.status.get("best_value")
        if (
            run.scores
            and run.trained
            and run.status.get("best_checkpoint")
            and (value is None or not np.isfinite(value))
        ):
            undefined[run.status.get("monitor")].append(run)
    for monitor, some in undefined.items():
        text = f"{monitor} is undefined in every epoch, so it selected no epoch {_which(some, runs)}"
        yield Finding("undefined monitor", f"{text}; choose another monitor or validation split")


def _pixels(runs: Sequence[Run]) -> Iterator[Finding]:
    """Yield runs that read the same images from different files: other kind, recipe version, or content."""
    names, read = places_of(runs), defaultdict[tuple[object, ...], dict[str, list[str]]](lambda: defaultdict(list))
    for run in runs:
        pixels, recipe = run.status.get("pixels"), run.status.get("recipe") or {}
        if not pixels:
            continue
        labels: dict[tuple[object, ...], str] = {}
        own = _own_keys(run)
        for split in run.status.get("split_fingerprint") or {}:
            labels[split, run.fingerprint(split), own] = pixels
            if "version" in recipe:
                labels[split, run.fingerprint(split), own, "version"] = f"version {recipe['version']} of the recipe"
        made_by = json.dumps(recipe, sort_keys=True) if pixels == "prepared" else ""
        for split, digest in (run.status.get("pixel_digests") or {}).items():
            labels[split, run.fingerprint(split), own, pixels, made_by] = f"{pixels} of {split} with digest {digest}"
        for key, label in labels.items():
            read[key][label].append(names[run.folder.path])
    texts: dict[object, str] = {}
    for places in read.values():
        if len(places) > 1:
            sources = "; ".join(f"{label} ({_listed(some)})" for label, some in sorted(places.items()))
            some_runs = frozenset(name for some in places.values() for name in some)
            texts.setdefault(some_runs, f"the runs read the same images from different files: {sources}")
    for text in texts.values():
        yield Finding("different image files", text)


def _own_keys(run: Run) -> tuple[str, ...]:
    """Return the keys and values that only a data set from outside has, as they may change its images."""
    if is_ours(str(run.config.get("data._target_", "resnet_lab."))):
        return ()
    own = {key for key in run.config if key.startswith("data.")} - {*known_keys()}
    return tuple(f"{key}={run.config[key]}" for key in sorted(own))


def _single_seeds(tables: Sequence[Table]) -> Iterator[Finding]:
    scored = [group for table in tables for group in table.ranked if group.scored]
    if means := [group.label for group in scored if group.is_mean]:
        text = f"how much the mean of other seeds would differ is unknown for {_listed(means)}"
        yield Finding("one mean only", text, False)
    unknown, estimated = list[str](), list[str]()
    for table in tables:
        single = [group.label for group in table.ranked if len(group.scored) == 1 and not group.is_mean]
        several = any(len(group.scored) > 1 for group in table.ranked)
        (estimated if several else unknown).extend(single)
    text = "how much results vary between trainings is unknown for"
    if unknown:
        which = "every group" if len(unknown) == len(scored) else _listed(unknown)
        yield Finding("one seed only", f"{text} {which}", False)
    if estimated:
        which = f"{_listed(estimated)}; it is estimated from the other groups, and may be far off"
        yield Finding("one seed only", f"{text} {which}", False)
