"""Check what the jobs of a sweep need (run by `resnet_lab.sweep`; standard input: a JSON list of needs)."""

from __future__ import annotations

import json
import logging
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from resnet_lab.axes import as_typed
from resnet_lab.checkpoints import refuse_objects
from resnet_lab.command_line import log_to, run_command
from resnet_lab.config import build, check
from resnet_lab.data import progress
from resnet_lab.data.image_data import ImageData
from resnet_lab.data.splits import fingerprints, order_of_training, refuse_one_class
from resnet_lab.distillation import digest_of_teacher, refuse_no_logits, teacher_of
from resnet_lab.errors import UserError
from resnet_lab.freezing import Freezing
from resnet_lab.models.pretrained import names_files
from resnet_lab.optim import naming, optimizer_of, refuse_no_schedule_class
from resnet_lab.parts import (
    build_network,
    build_objective,
    refuse_decision,
    refuse_misfit,
    refuse_no_data_set,
    refuse_unmixable,
    statistics_of,
)
from resnet_lab.run_folder import RunFolder, real_path
from resnet_lab.siblings import (
    Begun,
    begun_jobs,
    refuse_other_images,
    refuse_other_order,
    refuse_other_weights,
    with_data,
)
from resnet_lab.terminal import Lines
from resnet_lab.training import check_network, own_parts, refuse_unknown_monitors, selection
from resnet_lab.trust import trust, without_trust

Sources = dict[
    tuple[str, str | None], dict[str, dict[str, Any]]
]  # class and root → source of pixels → first data with it


def command(arguments: list[str]) -> None:
    """Check all needs: read every data set's table (leaks, bad images), build networks, read weights and teachers."""
    handler = Lines()
    handler.addFilter(logging.Filter(progress.__name__))  # the jobs log everything else
    log_to([handler])
    trust(without_trust(arguments)[1], exists=False)  # the error below names the part whose module is missing
    needs = [json.loads(text) for text in json.load(sys.stdin)]
    sources: Sources = {}
    _begun.cache_clear()
    data_of.cache_clear()  # files may have changed since the last command of this process
    for need in sorted(needs, key=lambda need: "parts" not in need):  # first, as they take no time
        if "parts" in need:
            check_parts(need["parts"])
        elif "loss" in need:
            names = _data_of(need)[0].class_names or []
            refuse_no_logits(build_objective(need["loss"], [1] * len(names)), need["loss"])
            teacher = teacher_of(need["loss"], need["data"], names)
            refuse_other_weights(_begun(need["sweep_dir"]), "loss.teacher", need, digest_of_teacher(teacher))
        elif "data" in need:
            data_set, table = _data_of(need)
            if need["shares_source"]:
                refuse_two_sources(need["data"], table, sources)
            splits = {*table["split"]}
            if need["trains"]:
                refuse_one_class(table, data_set.class_names or (), data_set.root)
            refuse_decision(need["decision"], splits)
            selection(
                **need["selects"],
                num_classes=len(data_set.class_names or ()),
                ordered=data_set.ordered,
                validates="val" in splits,
            )
        else:
            digest = check_network(need["model"])
            if names_files(need["model"]["pretrained"]):
                refuse_other_weights(_begun(need["sweep_dir"]), "model.pretrained", need, digest)


def _data_of(need: dict[str, Any]) -> tuple[ImageData, pd.DataFrame]:
    return data_of(json.dumps(need["data"], sort_keys=True), need["sweep_dir"], need["shares_source"])


@cache
def data_of(data: str, sweep_dir: str | None = None, shares_source: bool = False) -> tuple[ImageData, pd.DataFrame]:
    """Build a data set and read its table; return both.

    Args:
        data: configuration group `data` as JSON.
        sweep_dir: folder of the sweep; None: no such folder.
        shares_source: whether the jobs there that have begun have decided on the source of the images.

    Raises:
        UserError: as for `ImageData.table`, or a job that has begun had other images or labels.
    """
    settings = json.loads(data)
    data_set: ImageData = build("data", settings)
    siblings, alike = with_data([] if sweep_dir is None else _begun(sweep_dir), settings)
    sources = [status["pixels"] for status in siblings.values()] if shares_source else []
    table = data_set.table(next(iter(sources), None))[0]
    refuse_other_images(alike, fingerprints(table, "target"), data_set.root)
    unfinished = {name: status for name, status in alike.items() if status.get("state") != "done"}
    refuse_other_order(unfinished, order_of_training(table), data_set.root)
    return data_set, table


@cache
def _begun(sweep_dir: str) -> list[Begun]:
    return begun_jobs(RunFolder(Path(sweep_dir) / "job").siblings())


def refuse_two_sources(data: dict[str, Any], table: pd.DataFrame, sources: Sources) -> None:
    """Refuse a sweep of which some jobs would find a prepared set and others not: all read from the same source.

    Args:
        data: configuration group `data` of a job.
        table: its table.
        sources: those of the jobs before; this one is added.

    Raises:
        UserError: a job before has the same images from the other source.
    """
    source = "prepared" if (table["prepared"] != "").any() else "originals"
    found = sources.setdefault((data["_target_"], real_path(data["root"])), {})
    found.setdefault(source, data)
    if len(found) > 1:
        prepared, lacking = _differing(found["prepared"], found["originals"])
        raise UserError(
            f"the images are prepared with {prepared}, but not with {lacking}, and all jobs of a sweep read from the "
            f"same source; run resnet-lab prepare with {lacking}, too, or set data.cache_dir to a new folder to read "
            "the originals"
        )


def _differing(data: dict[str, Any], other: dict[str, Any]) -> tuple[str, str]:
    """Return the overrides of each of two data sets in which they differ."""
    keys = [key for key in data if data[key] != other.get(key)]
    one, two = (" ".join(f"data.{key}={as_typed(each.get(key))}" for key in keys) for each in (data, other))
    return one, two


def check_parts(config: dict[str, Any]) -> None:
    """Build the parts of a configuration that are not resnet_lab's, and check that they fit each other.

    Raises:
        UserError: a part cannot be imported or built, takes other arguments, or does not fit.
    """
    refuse_no_data_set(config["data"])
    check(OmegaConf.create(config), importing=True)
    data, model = config["data"], config["model"]
    classes = len(data.get("class_names") or data_of(json.dumps(data, sort_keys=True))[0].class_names or ())
    objective = build_objective(config["loss"], [1] * classes)
    refuse_unmixable(objective, config["loss"], data["mixup"])
    network = build_network(model, objective.num_outputs)
    size = int(data.get("crop") or data["image_size"])
    callbacks = own_parts(config, "callbacks")
    refuse_unknown_monitors(callbacks, classes, ordered=True)  # the job knows whether they are
    refuse_objects(callbacks.values())
    with TemporaryDirectory() as folder:
        own_parts(config, "logger", save_dir=folder, id="preflight")
    Freezing(network, model["freeze"], until=None)
    with naming("optim", config):  # a schedule needs the number of steps, which only the job knows
        optimizer_of(build("optim", config["optim"]), network, network, config["optim"]["backbone_lr_factor"])
    refuse_no_schedule_class(build("schedule", config["schedule"]).func, config["schedule"]["_target_"])
    statistics_of(config)
    refuse_misfit(network, objective.num_outputs, size, str(model["_target_"]))


def main() -> int:
    """Run the check and return the exit code."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
