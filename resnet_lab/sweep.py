"""Compose the jobs of a sweep and check what they need, before the first one starts (imports no torch)."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import product, tee
from pathlib import Path
from typing import IO, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.axes import hashes_in, note_hashes, note_jobs, settings_in
from resnet_lab.command_line import show
from resnet_lab.compatibility import SCHEMA_VERSION
from resnet_lab.config import (
    check,
    check_overrides,
    config_hash,
    job_name,
    name_unused_folder,
    searchpath_of,
    words_of_trust,
)
from resnet_lab.continuation import EPOCHS, epochs_by_job, goes_on_to, has_settings
from resnet_lab.errors import UserError, count
from resnet_lab.hydra_errors import one_line
from resnet_lab.keys import choices_of
from resnet_lab.launch import is_trained, refuse_edited, refuse_mixed_sweep, refuse_mixture
from resnet_lab.processes import describe_death
from resnet_lab.run_folder import RunFolder, given_keys, list_jobs, of_logger, real_path
from resnet_lab.schema import BY_NAME, CHOSEN, PROVIDED, conf_dir
from resnet_lab.signatures import is_ours
from resnet_lab.status import state_of
from resnet_lab.supervisor import run_module
from resnet_lab.trust import OPTION, warn_of_unused
from resnet_lab.verbs import VERBS

# Hydra's launchers that log all overrides of each job
OWN_LINES = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher._core")


def preflight(
    arguments: Sequence[str], trusted: Sequence[str] = (), fork: bool = False, errors: IO[str] | None = None
) -> bool:
    """Return whether everything that the jobs of a sweep need is available; print what is missing.

    Args:
        arguments: arguments of `resnet-lab train`. For a single run, only parts that are not resnet_lab's are checked.
        trusted: values of `trust=` on the command line; one that no part needs is named in a line.
        fork: whether to fork the process that checks (see `resnet_lab.supervisor`).
        errors: file to which a process that is not forked prints what is missing; None: standard error.

    Raises:
        UserError: a key is wrong.
    """
    refuse_unknown(arguments)
    given, overrides, _ = _read(arguments)
    name_unused_folder(given.config_dir or "", overrides)
    (jobs, runs), alone, multirun = planned(arguments), _alone(arguments), given.multirun
    trains = any(state_of(run).state != "done" for run in runs)
    # hydra.sweep.dir may name another folder than sweep_dir
    jobs = [job | {"sweep_dir": str(run.path.parent)} for run in runs[:1] for job in jobs] or jobs
    needs = {json.dumps(need) for job in jobs for need in _needs(job, trains)}
    needs |= {json.dumps(need) for job in alone for need in _needs(job) if "parts" in need}
    jobs += alone
    words = {word for job in jobs for word in words_of_trust(job)}
    if any("loss.teacher=" in each for each in arguments) or any(job["loss"]["teacher"] is not None for job in jobs):
        words |= {word for each in trusted for word in each.split(",")}  # the teacher's checkpoint may need any of them
    if jobs or not multirun:  # the jobs of a sweeper other than Hydra's basic one are unknown
        warn_of_unused(trusted, words)
    if not needs:
        return True
    show(f"{time.strftime('%H:%M:%S')}  checking what the jobs need (data, networks, weights, parts)")
    # in a separate process, as this one must not import torch
    options = [f"{OPTION}{word}" for word in sorted(words)]
    code = run_module("resnet_lab.preflight", options, fork=fork, text=json.dumps(sorted(needs)), errors=errors)
    if code < 0:  # it printed no error itself
        print(f"error: the check was {describe_death(code)}", file=errors or sys.stderr)
    return code == 0


def _needs(job: dict[str, Any], shares_source: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what a job needs: parts that are not resnet_lab's, data set, teacher, and the network with its weights.

    Args:
        job: its configuration.
        shares_source: whether its images must come from the source of the other jobs of its sweep, as some will train.
    """
    parts = [*(job[group] for group in PROVIDED), *(part for group in BY_NAME for part in job[group].values())]
    if any(not is_ours(str(part["_target_"])) for part in parts):
        yield {"parts": job | {"seed": 0}}
    selects = {key: job[key] for key in ("monitor", "schedule")} | {"patience": job["trainer"]["early_stopping"]}
    trains = job["trainer"]["max_epochs"] > 0
    data = {"data": job["data"], "sweep_dir": job["sweep_dir"], "shares_source": shares_source}
    yield data | {"decision": job["loss"]["decision"], "selects": selects, "trains": trains}
    if job["loss"]["teacher"] is not None:
        yield data | {"loss": job["loss"]}
    if is_ours(job["model"]["_target_"]):
        yield {"model": job["model"], "sweep_dir": job["sweep_dir"]}


def _alone(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return the configuration of a single run that may use parts that are not resnet_lab's; else an empty list."""
    options, overrides, searchpath = _read(arguments)
    names_parts = searchpath or any("_target_" in override for override in overrides)
    if options.multirun or options.prints or not names_parts:
        return []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return [_composed([*overrides, *searchpath])]


def refuse_unknown(arguments: Sequence[str]) -> None:
    """Check a configuration that the command only prints (`--cfg`, `--info`), which Hydra would accept.

    Raises:
        UserError: a key is unknown, or a value is wrong.
    """
    options, overrides, searchpath = _read(arguments)
    if (options.cfg or options.info) and options.multirun:
        raise UserError("a sweep has one configuration per job; leave out -m and give each key one value to print one")
    if options.cfg or options.info:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            check(compose("config", [*overrides, *searchpath]), unset=True)


def jobs_of(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Return the configurations of a sweep's jobs (see `planned`)."""
    return planned(arguments)[0]


def planned(arguments: Sequence[str]) -> tuple[list[dict[str, Any]], list[RunFolder]]:
    """Return the configurations of a sweep's jobs, one for all seeds of a group, and the folders of all jobs.

    Both are empty for a single run, and for another sweeper than Hydra's basic one.

    Raises:
        UserError: a key is wrong.
    """
    options, overrides, searchpath = _read(arguments)
    if not options.multirun or options.prints:
        return [], []
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        base = compose("config", [*fixed, *searchpath], return_hydra_config=True)
        if base.hydra.runtime.choices["hydra/sweeper"] != "basic":
            return [], []
        _refuse_unlisted(axes := _axes(parsed, base.hydra.sweeper.params or {}))
        _refuse_nameless(parsed, base.hydra)
        if not (name := str(base.hydra.sweep._get_node("subdir")._value())).startswith("${job_name:"):  # from a file
            check_overrides([f"hydra.sweep.subdir={name}"])
        _name_unused_axes(parsed, fixed, searchpath)
        _refuse_without_slurm(base.hydra.runtime.choices["hydra/launcher"])
        refuse_mixture(RunFolder(Path(base.hydra.sweep.dir) / "job"), sweep=True)  # before jobs.txt is written there
        runs, grid = _runs(parsed, base.hydra), _grid(parsed, base.hydra.sweeper.params or {})
        same_groups = all(axis in parsed and not axis.is_sweep_override() for axis in axes if _is_of_groups(axis))
        with open_dict(base):
            del base["hydra"]
        compositions = partial(_varied, base) if same_groups else _compositions
        _refuse_changed(runs, searchpath, compositions, options.config_dir or "")
        jobs = list[dict[str, Any]]()
        for words, config in zip(grid, compositions(grid, searchpath), strict=True):
            COMPOSED[_settings_of(words)] = _hash_without_seed(config)
            jobs.append(_plain(config))
        return jobs, list(runs)


def _compositions(jobs: Iterable[Sequence[str]], searchpath: Sequence[str]) -> Iterator[DictConfig]:
    """Yield the checked configuration of each job of a grid; the next one may change it.

    Hydra composes once for each choice of groups, which takes 0.15 s. The other overrides are set in what it returned,
    as Hydra does, too, after it has merged the groups.
    """
    composed = dict[tuple[str, ...], DictConfig]()
    for job in jobs:
        groups = tuple(text for text in job if _is_of_groups(_parsed(text)))
        if groups not in composed:
            composed[groups] = compose("config", [*groups, *searchpath])
        yield _with_values(composed[groups], job, searchpath)


def _varied(config: DictConfig, jobs: Iterable[Sequence[str]], searchpath: Sequence[str]) -> Iterator[DictConfig]:
    """Yield what `_compositions` does for jobs that choose the same files of the groups as a configuration."""
    own = copy.deepcopy(config)
    for job in jobs:
        yield _with_values(own, job, searchpath)


def _with_values(config: DictConfig, job: Sequence[str], searchpath: Sequence[str]) -> DictConfig:
    """Return the checked configuration of a job; `config` has the files of its groups, and is changed."""
    axes = [_parsed(text) for text in job]
    if all(axis.type == OverrideType.CHANGE and not isinstance(axis.value(), dict) for axis in axes):
        with suppress(OmegaConfBaseException):  # composed below, the error names the key
            for axis in axes:
                if not _is_of_groups(axis):
                    OmegaConf.update(config, axis.key_or_group, axis.value(), merge=True)
            return _checked(config)
    return _checked(compose("config", [*job, *searchpath]))


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _runs(overrides: Sequence[Override], hydra: DictConfig) -> dict[RunFolder, tuple[str, ...]]:
    """Return the folder of each job of a grid → its overrides."""
    excluded = hydra.job.config.override_dirname.exclude_keys
    own = [axis for axis in overrides if not _is_of_hydra(axis)]
    jobs = _grid(own, hydra.sweeper.params or {}, seeds=True)
    return {RunFolder(Path(hydra.sweep.dir) / _folder_name(job, excluded, hydra.sweep.dir)): job for job in jobs}


def _refuse_changed(
    runs: Mapping[RunFolder, tuple[str, ...]],
    searchpath: Sequence[str],
    compositions: Callable[[Iterable[Sequence[str]], Sequence[str]], Iterator[DictConfig]],
    config_dir: str,
) -> None:
    """Refuse a sweep if its first undamaged job was trained with other values, as after an edit of the experiment file.

    If that job only gets more epochs, all trained jobs must be able to go on. If no job is trained, those of earlier
    commands on the same experiment count, one for each set of keys: no job here may get a value that an edit changed.

    Args:
        runs: folder → overrides of the jobs of this command.
        searchpath: override with the folders of the user's configurations; empty: there are none.
        compositions: what composes these jobs (see `_compositions`).
        config_dir: option of the command.

    Raises:
        UserError: it was, or a job cannot go on.
    """
    found = False
    trained, also = tee(run for run in runs if is_trained(run))
    for run, config in zip(trained, compositions((runs[run] for run in also), searchpath), strict=True):
        found = True
        if not refuse_mixed_sweep(run, _plain(config), runs[run]):
            return
    for run, earlier in () if found or not runs else _earlier(runs, config_dir):
        try:
            now = _composed([*earlier, *searchpath])
        except (HydraException, OmegaConfBaseException, UserError):  # a file of that job has lost a key, or is gone
            continue
        same = [len({*own} & {*earlier}) for own in runs.values()]
        nearest = [*runs.values()][same.index(max(same))]
        refuse_edited(run, now, _composed([*nearest, *searchpath]))


def _earlier(runs: Mapping[RunFolder, tuple[str, ...]], config_dir: str) -> Iterator[tuple[RunFolder, list[str]]]:
    """Yield a trained job of the same sweep and experiment for each set of keys, and its overrides.

    Args:
        runs: folder → overrides of the jobs of this command.
        config_dir: its option.
    """
    first = next(iter(runs))
    experiment, seen = given_keys(runs[first]).get("experiment"), set[frozenset[str]]()
    for name, given in settings_in(first.path.parent).items():
        run, keys = RunFolder(first.path.parent / name), frozenset(given)
        if run not in runs and keys not in seen and given.get("experiment") == experiment and is_trained(run):
            status = run.read_status()
            same_folder = real_path(status.get("config_dir") or "") == real_path(config_dir)
            if status.get("overrides") and same_folder and status.get("schema_version") == SCHEMA_VERSION:
                seen.add(keys)
                yield run, [*status["overrides"]]


def _is_of_groups(axis: Override) -> bool:
    """Return whether an override chooses a file of a group, or configures Hydra."""
    return axis.key_or_group in CHOSEN or _is_of_hydra(axis)


def _is_of_hydra(axis: Override) -> bool:
    return axis.key_or_group.partition(".")[0].partition("/")[0] == "hydra"


def _refuse_unlisted(axes: Iterable[Override]) -> None:
    """Refuse an axis that does not list its values.

    Raises:
        UserError: it is an interval, or a glob, which would also choose files that are only defaults of others.
    """
    for axis in axes:
        key = axis.get_key_element()
        if axis.value_type == ValueType.INTERVAL_SWEEP:
            raise UserError(f"{key}: Hydra's basic sweeper needs values, not an interval; write them as in {key}=1,2")
        if axis.value_type == ValueType.GLOB_CHOICE_SWEEP:
            names = ",".join(name for name in choices_of(key) if name != "own") if key in CHOSEN else "A,B"
            raise UserError(f"{key}: glob(…) is not supported; list the values, as in {key}={names}")


def _refuse_nameless(overrides: Sequence[Override], hydra: DictConfig) -> None:
    """Refuse an axis that is not part of a job's name: all its values would share one folder or one label.

    Raises:
        UserError: there is such an axis.
    """
    for axis in overrides:
        key = axis.get_key_element()
        nameless = key in hydra.job.config.override_dirname.exclude_keys or of_logger(key)
        if axis.is_sweep_override() and nameless:
            raise UserError(f"{key} cannot be swept because it does not change the experiment; give it one value")
        if axis.is_sweep_override() and key == "data.root":
            raise UserError("data.root cannot be swept: a sweep has one data set; give each folder its own sweep_dir")


def _name_unused_axes(overrides: Sequence[Override], fixed: Sequence[str], searchpath: Sequence[str]) -> None:
    """Print a line for each experiment of a sweep over experiments whose own axes Hydra does not sweep."""
    typed = {axis.get_key_element() for axis in overrides}
    for axis in (each for each in overrides if each.key_or_group == "experiment" and each.is_sweep_override()):
        for value in _values(axis):
            config = compose("config", [*fixed, value, *searchpath], return_hydra_config=True)
            if unused := [key for key in config.hydra.sweeper.params or {} if key not in typed]:
                print(
                    f"{value}: its own axes ({', '.join(unused)}) are not swept beside other experiments; type them",
                    file=sys.stderr,
                )


def _refuse_without_slurm(launcher: str) -> None:
    """Refuse to submit jobs on a machine that has no SLURM.

    Raises:
        UserError: the launcher needs SLURM's `srun`, which is not there.
    """
    if launcher in ("slurm", "submitit_slurm") and not shutil.which("srun"):
        raise UserError(
            f"hydra/launcher={launcher}: this machine has no srun; start the command on a login node of the cluster, "
            "or leave hydra/launcher out to run the jobs here, one by one"
        )


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the options (`prints`: the command only prints), the overrides, and the override for `--config-dir`."""
    given = VERBS["train"]().read(arguments)
    given.prints = bool(given.cfg or given.info or given.hydra_help)
    return given, given.overrides, searchpath_of(given.config_dir or "")


def _grid(overrides: Sequence[Override], params: Mapping[str, Any], seeds: bool = False) -> list[tuple[str, ...]]:
    """Return the overrides of each job; the command line replaces axes of the experiment.

    Args:
        overrides: parsed overrides of the command line.
        params: axes of the experiment (`hydra.sweeper.params`).
        seeds: whether `seed` is an axis; if not, it is left out.
    """
    axes = _axes(overrides, params)
    return list(product(*(_values(axis) for axis in axes if seeds or axis.get_key_element() != "seed")))


def _axes(overrides: Sequence[Override], params: Mapping[str, Any]) -> list[Override]:
    """Return the axes of the experiment and the overrides, of which the last one of a key wins (see `_grid`)."""
    own = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    # in Hydra's order: at the place of the first
    return list({axis.get_key_element(): axis for axis in [*own, *overrides]}.values())


def _values(axis: Override) -> list[str]:
    key = axis.get_key_element()
    if axis.is_sweep_override():
        return [f"{key}={value}" for value in axis.sweep_string_iterator()]
    return [f"{key}={axis.get_value_element_as_str()}"]


COMPOSED: dict[frozenset[str], str] = {}  # `_settings_of` a job → `_hash_without_seed` of its configuration
SWEPT: dict[Path, list[str]] = {}  # folder of the sweep that this process has started → names of its jobs


class ListJobs(Callback):
    """Writes the list of jobs into the folder of a sweep before it starts.

    `resnet-lab status` uses it to find missing jobs. The list also marks the folder as a sweep. It is empty if another
    sweeper chooses the jobs.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra, jobs, names, renamed = config.hydra, [], list[str](), list[str]()
        choices = hydra.runtime.choices
        if choices["hydra/sweeper"] == choices.get("hydra/launcher") == "basic" and not hydra.sweeper.max_batch_size:
            # otherwise Hydra composes all jobs again, which `jobs_of` has checked, before it starts the first
            with read_write(hydra.sweeper):
                hydra.sweeper.max_batch_size = 1
        if choices["hydra/sweeper"] == "basic":
            typed: Any = OmegaConf.to_container(hydra.overrides.task)  # not resolved: ${seed} is the job's own
            overrides = OverridesParser.create().parse_overrides(typed)
            jobs = _grid(overrides, hydra.sweeper.params or {}, seeds=True)
            excluded = hydra.job.config.override_dirname.exclude_keys
            names = [_folder_name(job, excluded, hydra.sweep.dir) for job in jobs]
            by_name, sweep_dir = dict(zip(names, jobs, strict=True)), Path(hydra.sweep.dir)
            renamed, same = _lengthened(by_name, excluded, sweep_dir), _repeated(by_name, sweep_dir)
            by_name = {same.get(name, name): job for name, job in by_name.items()}
            names, jobs = list(by_name), list(by_name.values())
            if same:
                show(
                    f"{len(same)} of {count(len(names), 'job')} have the settings of earlier ones and use their folders"
                )
            if note := _beside(by_name, sweep_dir, renamed):
                show(note)
        SWEPT[Path(hydra.sweep.dir)] = names
        for launcher in OWN_LINES:  # a job prints its label instead
            logging.getLogger(launcher).setLevel(logging.WARNING)
        try:
            list_jobs(Path(hydra.sweep.dir), names, renamed)
            if names:
                note_jobs(Path(hydra.sweep.dir), dict(zip(names, jobs, strict=True)), renamed)
                note_hashes(
                    Path(hydra.sweep.dir), {name: COMPOSED.get(_settings_of(job), "") for name, job in by_name.items()}
                )
        except OSError as error:  # printed here, as Hydra logs a traceback and continues
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)


def _settings_of(job: Iterable[str]) -> frozenset[str]:
    """Return the overrides of a job without its seed and those of Hydra."""
    return frozenset(word for word in job if not re.match(r"seed=|[+~]*hydra[./]", word))


def _hash_without_seed(config: DictConfig) -> str:
    """Return a hash of a configuration without its seed, and with `${seed}` as it is written."""
    plain: Any = OmegaConf.to_container(config, enum_to_str=True)
    return config_hash({**plain, "seed": 0})


def refuse_edited_meanwhile(run: RunFolder, config: DictConfig) -> None:
    """Refuse a job whose configuration has changed since its command planned it, as after an edit of a YAML file.

    Args:
        run: its folder.
        config: its configuration, which Hydra composes when the job starts.

    Raises:
        UserError: it has changed.
    """
    planned = hashes_in(run.path.parent).get(run.path.name)
    if planned and planned != _hash_without_seed(config):
        raise UserError(
            "not started because its configuration has changed since the command began, as after an edit of a YAML "
            "file; restore the file, then run the same command again"
        )


def _beside(jobs: Mapping[str, Sequence[str]], sweep_dir: Path, renamed: Sequence[str]) -> str:
    """Return a hint if no job resumes an earlier one of the sweep, as the overrides have other keys; empty if not.

    Args:
        jobs: folder name → overrides.
        sweep_dir: folder of the sweep.
        renamed: old names of jobs that these resume.
    """
    earlier = settings_in(sweep_dir)
    if not earlier or renamed or jobs.keys() & earlier.keys():
        return ""
    here = {key for job in jobs.values() for key in given_keys(job)}
    there = {key for keys in earlier.values() for key in keys}
    added, left_out = ", ".join(sorted(here - there)), ", ".join(sorted(there - here))
    if not (added or left_out):  # new values of the same axes
        return ""
    differ = [*([f"overrides {added}"] if added else []), *([f"does not override {left_out}"] if left_out else [])]
    return (
        f"{sweep_dir}: {count(len(jobs), 'new job')} beside {count(len(earlier), 'earlier one')}: this command "
        f"{' and '.join(differ)}; to resume the earlier ones, repeat their command"
    )


def _lengthened(jobs: Mapping[str, Sequence[str]], excluded: Sequence[str], sweep_dir: Path) -> list[str]:
    """Rename jobs with fewer epochs to the names of the new jobs, which then resume them.

    Nothing is renamed if `trainer.max_epochs` has several values: it is an axis of the sweep then.

    Args:
        jobs: folder name → overrides.
        excluded: keys that are not part of a name.
        sweep_dir: folder of the sweep.

    Returns:
        The old names.
    """
    wanted = {item for job in jobs.values() for item in job if item.partition("=")[0] == EPOCHS}
    if len(wanted) != 1 or not (most := wanted.pop().partition("=")[2]).isdecimal():
        return []
    renamed, there = [], epochs_by_job(sweep_dir)
    for name, job in jobs.items():
        others = [item for item in job if item.partition("=")[0] != EPOCHS]
        fewer = [
            other
            for other, epochs in there.items()
            if epochs < int(most) and other == _folder_name([*others, f"{EPOCHS}={epochs}"], excluded, str(sweep_dir))
        ]
        if name in there or len(fewer) != 1:
            continue
        try:
            if not goes_on_to(RunFolder(sweep_dir / fewer[0]), _composed(job)):
                continue
            (sweep_dir / fewer[0]).rename(sweep_dir / name)
        except UserError as error:
            show(f"{name} starts at the first epoch: {error}")
        else:
            renamed += fewer
            show(f"{fewer[0]} is renamed to {name} and resumed")
    return renamed


def _repeated(jobs: Mapping[str, Sequence[str]], sweep_dir: Path) -> dict[str, str]:
    """Return the names of new jobs that would repeat an earlier one → the folder name of the earlier one.

    The names differ if an override repeats a value of the experiment file. `axes.folder_of` then finds the folder.
    Jobs of older versions are not found.

    Args:
        jobs: folder name → overrides.
        sweep_dir: folder of the sweep.
    """
    new = {name: job for name, job in jobs.items() if not (sweep_dir / name).exists()}
    keys = {frozenset(given_keys(job)) for job in new.values()}
    earlier = defaultdict[str, list[RunFolder]](list)  # hash of the settings → jobs
    for name, given in settings_in(sweep_dir).items() if new else ():
        if name not in jobs and frozenset(given) not in keys:
            with suppress(UserError, OSError):  # damaged, which `status` shows
                run = RunFolder(sweep_dir / name)
                if run.read_status().get("schema_version") == SCHEMA_VERSION:
                    earlier[str(run.read_status().get("config_hash"))].append(run)
    found = dict[str, str]()
    if not earlier:
        return found
    for name, config in zip(new, _compositions([*new.values()], ()), strict=True):
        plain = _plain(config)
        same = (run.path.name for run in earlier.get(config_hash(plain), ()) if has_settings(run, plain))
        if folder := next(same, None):
            found[name] = folder
    return found


def _folder_name(job: Sequence[str], excluded: Sequence[str], sweep_dir: str) -> str:
    """Return the folder name of a job, as `hydra.sweep.subdir` has it."""
    return job_name(
        ",".join(sorted(item for item in job if item.partition("=")[0].lstrip("+~") not in excluded)), sweep_dir
    )


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    return _plain(_checked(compose("config", list(overrides))))


def _checked(config: DictConfig) -> DictConfig:
    check(config)
    return config


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return dict(plain)
