"""`resnet-lab combine DIR… out=DIR [over=seed] [decision=RULE]`: make runs from the predictions of several runs."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from resnet_lab.axes import as_typed
from resnet_lab.command_line import log_to, run_command
from resnet_lab.config import job_name
from resnet_lab.data.progress import with_progress
from resnet_lab.derived import DECISION, stored_splits, write_derived
from resnet_lab.errors import UserError, count
from resnet_lab.eyes import FITTED, METHODS, Pairs, graded
from resnet_lab.inputs import EYES
from resnet_lab.members import (
    ALL,
    FOLD,
    NOTHING,
    combined,
    config_of,
    facts_of,
    rule_of,
    set_key,
    varying_keys,
)
from resnet_lab.processes import end
from resnet_lab.report.groups import places_of
from resnet_lab.report.runs import Run, digest_of_predictions, order_of, read_runs
from resnet_lab.run_folder import OURS, RunFolder, comparable, is_bookkeeping, jobs_file
from resnet_lab.statistics import DECISIONS
from resnet_lab.terminal import Lines
from resnet_lab.verbs import VERBS

log = logging.getLogger("resnet_lab")


def groups_of(runs: Sequence[Run], over: Sequence[str]) -> list[list[Run]]:
    """Return the runs in groups that differ only in some keys.

    Args:
        runs: runs with a result.
        over: keys; `all`: every key; `none`: each run is a group.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        known = {key: value for key, value in run.config.items() if value not in (None, "none")}  # one value, as absent
        others = {
            key: comparable(key, each) for key, each in known.items() if key not in over and not is_bookkeeping(key)
        }
        key = {ALL: "", NOTHING: str(run.folder.path)}.get(over[0], repr(sorted(others.items(), key=str)))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def names_of(groups: Sequence[Sequence[Run]], over: Sequence[str]) -> list[str]:
    """Return the name of each group's folder, from the keys that differ; `none` keeps the names of the runs."""
    if over[0] == NOTHING:
        return list(places_of(members[0] for members in groups).values())
    firsts = [members[0].config for members in groups]
    axes = [key for key in varying_keys(firsts) if key not in over]
    last = f"over={'+'.join(over)}"
    return [job_name(",".join([*(f"{key}={as_typed(config.get(key))}" for key in axes), last])) for config in firsts]


def combine(folders: Sequence[str], out: Path, over: Sequence[str], decision: str = "") -> list[RunFolder]:
    """Make a derived run of each group of runs, and return their folders.

    Args:
        folders: run folders, or folders that contain run folders.
        out: folder of the derived runs.
        over: keys in which the members of a group differ (see `groups_of`).
        decision: rule of `statistics.DECISIONS`; empty: that of the members.

    Raises:
        UserError: there is nothing to combine, or runs do not fit each other.
    """
    runs = read_runs(folders)
    for run in runs:
        if not run.scores:
            log.warning("left out: %s: %s", run.folder.path.name, run.problem)
    places = {run.folder.path.resolve() for run in runs}
    # an earlier result beside its members does not count
    finished = [run for run in runs if run.scores and not {*run.members} & places]
    if decision:  # a network counts once, whatever number of decision rules was applied to it
        finished = [run for run in finished if not {*run.sources} & places]
    _refuse_keys(finished, over)
    groups = groups_of(finished, over)
    several = [members for members in groups if len(members) > 1 or over[0] == NOTHING]
    if not several:
        axes = varying_keys([run.config for run in finished])
        hint = f"; they differ in {', '.join(axes)}" if axes else ""
        raise UserError(f"over={','.join(over)}: no two finished runs differ only in it{hint}")
    if over[0] == NOTHING and not decision:
        raise UserError("over=none changes nothing; give a decision rule, such as decision=expected")
    for members in groups:
        if members not in several:
            log.warning("left out: %s: no other run differs from it only in %s", members[0].folder.path, ",".join(over))
    for members in several:
        _warn_of_copies(members)
        if [*over] == ["seed"]:
            _warn_of_other_data(members)
    return _written(list(_prepared(several, out, over, decision)))


def _warn_of_copies(members: Sequence[Run]) -> None:
    """Warn about members with the same settings and seed, or the same predictions, such as a copied folder."""
    first: dict[str, Run] = {}
    for run in members:
        settings = {key: comparable(key, value) for key, value in run.config.items() if not is_bookkeeping(key)}
        marks = {"settings and seed": repr(sorted(settings.items(), key=str))}
        marks["predictions"] = digest_of_predictions(run.folder)
        others = {first.setdefault(mark, run).folder.path: what for what, mark in reversed(marks.items())}
        for other, what in others.items():
            if other != run.folder.path:
                text = "%s and %s have the same %s, and both count; leave out one if it is a copy"
                log.warning(text, other, run.folder.path, what)


def _warn_of_other_data(members: Sequence[Run]) -> None:
    """Warn about members that differ only in their seed, but were trained on other images or labels."""
    for run in members[1:]:
        for split in ("train", "val"):
            first, own = (each.fingerprint(split) for each in (members[0], run))
            if first and own and first != own:
                text = "%s and %s had different images or labels in %s, so their mean is of different trainings"
                log.warning(text, members[0].folder.path, run.folder.path, split)


def _refuse_keys(runs: Sequence[Run], over: Sequence[str]) -> None:
    """Refuse unknown keys in `over`, and `all` or `none` beside other keys.

    Raises:
        UserError: the message has the most similar key.
    """
    words = [key for key in over if key in (ALL, NOTHING)]
    if words and len(over) > 1:
        raise UserError(f"over={','.join(over)}: write {words[0]} alone, or leave it out")
    known = {key for run in runs for key in run.config} | {ALL, NOTHING}
    for key in over if runs else ():
        if key not in known:
            axes = varying_keys([run.config for run in runs])
            names = {each.rpartition(".")[2]: each for each in [*sorted(known), *axes]}  # an axis comes last, and wins
            names |= {each: each for each in known}
            close = get_close_matches(key, names, n=1)
            hint = f"; did you mean over={names[close[0]]}?" if close else ""
            if own := [each for each in axes if each.startswith(f"{key}.")]:  # the choice of a group
                hint = f"; did you mean over={','.join(own)}?"
            raise UserError(f"over={','.join(over)}: these runs have no key {key}{hint}")


def _prepared(
    groups: Sequence[Sequence[Run]], out: Path, over: Sequence[str], decision: str
) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Yield the folder of each derived run and what `write_derived` takes; nothing is written yet."""
    for members, name in zip(groups, names_of(groups, over), strict=True):
        run = RunFolder(out / name)
        _refuse_place(run, members, out)
        splits, sizes = combined(members, over)
        rule = rule_of(members, decision)
        pools = bool(sizes) and not all(member.status.get("folds") for member in members)
        config = config_of(members, over, pools, run)
        if rule != members[0].status.get("decision", "argmax"):
            set_key(config, DECISION, rule)
        _refuse_thresholds(rule, splits, name, bool(sizes))
        facts = facts_of(members, over[0] == NOTHING, len(sizes) if pools else 1)
        facts |= {"folds": sizes, "order_of_rows": order_of(splits[members[0].split].rows["image"])} if sizes else {}
        sources = [member.folder for member in members]
        given = {"splits": splits, "config": config, "facts": facts, "rule": rule}
        yield run, given | {"title": name, "sources": sources}


def _refuse_place(run: RunFolder, members: Sequence[Run], out: Path) -> None:
    """Refuse to replace a run that trained, or a member.

    Raises:
        UserError: the folder is one of these.
    """
    if run.config_file.is_file() and "combine" not in run.read_config():
        raise UserError(f"out={out}: {run.path} is a run that trained; choose another folder")
    if run.path.resolve() in {member.folder.path.resolve() for member in members}:
        raise UserError(f"out={out}: {run.path} would replace its own member; choose another folder")


def _refuse_thresholds(rule: str, splits: Mapping[str, object], name: str, pools: bool = False) -> None:
    """Refuse to fit thresholds without validation, on images of the pooled folds, or on the images that are scored.

    Args:
        rule: decision rule.
        splits: predictions by split.
        name: of the run, for the error.
        pools: whether folds are pooled.

    Raises:
        UserError: the rule is `thresholds`, and there are no other images than those to fit it on.
    """
    if rule == "thresholds" and not {"val", "test"} <= {*splits}:
        if "val" in splits:
            why = "is fitted on validation, the only scored split"
        else:
            why = "needs predictions on validation" + (" that are in no fold" if pools else "")
        raise UserError(f"{name}: decision=thresholds {why}; choose decision=expected")


def combine_eyes(folders: Sequence[str], out: Path, methods: Sequence[str], decision: str = "") -> list[RunFolder]:
    """Make derived runs in which the two eyes of a patient are graded together, and return their folders.

    Args:
        folders: run folders, or folders that contain run folders.
        out: folder of the derived runs.
        methods: see `eyes.METHODS`; a fitted one gives two runs, by image and by patient.
        decision: rule of `statistics.DECISIONS`; empty: that of each run.

    Raises:
        UserError: a run has no second eyes, more than two images of a patient, or several classes without an order.
    """
    made: list[tuple[RunFolder, dict[str, Any]]] = []
    runs = [run for run in read_runs(folders) if run.scores and f"combine.{EYES}" not in run.config]
    places, single, alike = places_of(runs) if runs else {}, list[int](), list[tuple[str, str]]()
    for run in runs:
        if not run.status.get("ordered") and len(run.class_names) > 2:
            raise UserError(f"{run.folder.path}: eyes= needs grades, but the classes of this run have no order")
        if not run.status.get("ordered"):
            text = "%s: the classes have no order; a patient with one eye of each counts as %s, not as %s"
            log.warning(text, run.folder.path, run.class_names[-1], run.class_names[0])
        rule = rule_of([run], decision)
        if rule == "thresholds" and {*methods} & {*FITTED}:
            raise UserError("decision=thresholds: the model of both eyes uses all validation images; choose expected")
        splits = stored_splits(run.folder)
        for method in methods:
            try:
                found = graded(splits, method)
            except UserError as error:
                raise UserError(f"{run.folder.path}: {error}") from None
            _refuse_thresholds(rule, splits, str(run.folder.path))
            for unit, tables in found.items():
                place = RunFolder(out / f"{places[run.folder.path]}_eyes-{method}_by-{unit}")
                _refuse_place(place, [run], out)
                config = config_of([run], [NOTHING], pools=False, out=place)
                config["combine"] = config["combine"] | {EYES: method, "by": unit}
                if rule != run.status.get("decision", "argmax"):
                    set_key(config, DECISION, rule)
                given = {"splits": tables, "config": config, "facts": facts_of([run]), "rule": rule}
                made.append((place, given | {"title": place.path.name, "sources": [run.folder]}))
        pairs = Pairs(splits[run.split], run.split)
        single.append(pairs.alone)
        alike = alike or pairs.of_one_eye
    if any(single):
        fewest, most = min(single), max(single)
        many = count(most, "patient") if fewest == most else f"{fewest} to {most} patients"
        log.info("%s with one image, graded alone (%s)", many, count(len(single), "run"))
    if alike:
        names, which = " and ".join(alike[0]), count(len(alike), "patient has", "patients have")
        log.warning("%s two images of one eye (%s), which count as two eyes; leave out one of them", which, names)
    if not made:
        raise UserError(f"{' '.join(folders)}: no finished run that grades each eye by itself")
    return _written(made)


def _written(made: Sequence[tuple[RunFolder, dict[str, Any]]]) -> list[RunFolder]:
    """Write derived runs, and return their folders.

    Raises:
        UserError: two of them have the same folder.
    """
    places = [folder.path for folder, _ in made]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise UserError(
            f"{twice.name}: two groups of runs would have this folder, as their settings are written alike, such as 1 "
            "and '1'; combine them one at a time"
        )
    for folder, arguments in with_progress(made, len(made), "combined", unit="runs", end=False):
        folder.path.mkdir(parents=True, exist_ok=True)
        for file in folder.path.iterdir():  # of an earlier result, which may have another split or other facts
            if OURS.fullmatch(file.name):
                file.unlink(missing_ok=True)  # another process may combine here, too
        folder.write_config(arguments["config"])
        write_derived(folder, **arguments)
    return [folder for folder, _ in made]


def command(arguments: Sequence[str]) -> None:
    """Combine the runs in the folders, and name the folders that were made."""
    given = VERBS["combine"]().read(arguments)
    log_to([Lines()])
    if given.out is None:
        raise UserError("out= is missing; name the folder of the combined runs")
    if given.decision and given.decision not in DECISIONS:
        raise UserError(f"decision={given.decision}: choose {', '.join(DECISIONS)}")
    out, decision = Path(given.out).expanduser(), given.decision or ""
    if jobs_file(out).is_file() or RunFolder(out).config_file.is_file():
        raise UserError(f"out={out} contains a {'sweep' if jobs_file(out).is_file() else 'run'}; name another folder")
    pools = False
    if given.eyes:
        if given.over:
            raise UserError("eyes= combines the images of one run; leave out over=, or combine twice")
        methods = list(dict.fromkeys(given.eyes.split(",")))
        if unknown := [method for method in methods if method not in METHODS]:
            raise UserError(f"eyes={unknown[0]}: choose {', '.join(METHODS)}")
        made = combine_eyes(given.DIR, out, methods, decision)
    else:
        over = list(dict.fromkeys((given.over or "seed").split(",")))
        made = combine(given.DIR, out, over, decision)
        pools = bool({FOLD, ALL} & {*over} and made[0].read_status().get("folds"))
    log.info("%s in %s", count(len(made), "combined run"), out if len(made) > 1 else made[0].path)
    if pools:  # each fold has a test set of its own: beside it, the pooled folds cannot be compared
        log.info("report on all folds:  %s", shlex.join(["resnet-lab", "report", str(out)]))
    else:
        report = ["resnet-lab", "report", *given.DIR, str(out), f"out={out}"]  # keeps the report on the members
        log.info("compare them with their members:  %s", shlex.join(report))


if __name__ == "__main__":
    end(run_command(command))
