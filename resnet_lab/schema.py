"""Keys of the configuration and their types; conf/ describes their meaning (imports nothing heavy)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from resnet_lab.signatures import keys_in
from resnet_lab.values import Count, FromOne, Positive, Seed, Share, Text, Within

MISSING: Any = "???"  # OmegaConf's marker of a mandatory value
FIGURES = keys_in("resnet_lab.report.figures", "CURVES", "PICTURES")  # parsed, as importing it takes a second


def _key(hint: Any, allowed: str = "") -> Any:
    """Return the field of a mandatory key.

    Args:
        hint: type of its values.
        allowed: description of the values, if that of the hint is not good enough.
    """
    return field(default=MISSING, metadata={"hint": hint, "allowed": allowed})


Batches = FromOne | Annotated[float, Within(0, 1, without_least=True)] | None  # number, fraction or all
Rule = Literal["argmax", "median", "expected", "thresholds"]  # explained by statistics.DECISIONS
Compiled = bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass
class TrainerConfig:
    """The keys of conf/trainer, where their meaning is described."""

    accelerator: str = _key(Literal["auto", "cpu", "gpu", "cuda", "mps"])
    devices: Any = _key(Literal["auto"] | Annotated[int, Within(1, 128)] | list[Count])  # noqa: RUF009 - it is field()
    num_nodes: int = _key(FromOne)
    # not fork or spawn: results stay in the child process; not FSDP: checkpoints need the complete weights
    strategy: str = _key(Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"])
    # float32 weights only, as images become float32 on the device
    precision: str = _key(Literal["auto", "32-true", "32", "16-mixed", "bf16-mixed"])
    channels_last: Any = _key(bool | Literal["auto"])  # noqa: RUF009
    max_epochs: int = _key(Count)
    early_stopping: int | None = _key(FromOne | None)
    gradient_clip_val: float | None = _key(Positive | None)
    accumulate_grad_batches: int = _key(FromOne)
    limit_train_batches: Any = _key(Batches)  # noqa: RUF009
    limit_val_batches: Any = _key(Batches)  # noqa: RUF009
    tta: str = _key(Literal["none", "flips", "dihedral"])
    compile: Any = _key(Compiled)  # noqa: RUF009
    checkpoint_minutes: float | None = _key(Positive | None)
    sync_batchnorm: bool = _key(bool)
    deterministic: bool = _key(bool)
    progress_bar: bool = _key(bool)
    log_every_n_steps: int = _key(FromOne)
    profiler: str | None = _key(Literal["simple", "advanced", "pytorch"] | None)


@dataclass
class Config:
    """The top level of the configuration; the keys of a group are checked against its `_target_`."""

    name: str = _key(Text)
    seed: int = _key(Seed)
    monitor: str = _key(Text)
    follow_test: bool = _key(bool)
    follow_layers: bool = _key(bool)
    figures: list[str] = _key(list[str], f"a list of {', '.join(FIGURES)}")  # noqa: RUF009 - it is field()
    labels: Any = field(default=MISSING, metadata={"allowed": "a mapping {key: {value: text, …}, …}"})
    sweep_dir: str = _key(Text)
    start: bool = _key(bool)
    on_failed: str = _key(Literal["retry", "skip", "stop"])
    on_corrupt: str = _key(Literal["best", "start"])
    keep_last: bool = _key(bool)
    data: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optim: Any = MISSING
    schedule: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: Any = MISSING
    logger: Any = MISSING


# group → arguments that the job adds to those of the configuration, if the part takes them
PROVIDED = {
    "data": set(),
    "model": {"num_classes"},
    "loss": {"class_counts", "num_classes", "reduction"},
    "optim": {"params"},
    "schedule": {"optimizer", "steps_per_epoch", "max_epochs", "epochs", "total_steps"},
}
# groups of named parts → base class of each part
BY_NAME = {"callbacks": "lightning.Callback", "logger": "lightning.pytorch.loggers.Logger"}
FOR_LOGGERS = {"save_dir", "id"}  # arguments that the job adds to a logger that takes them, unless the user sets them
# group → keys that the job reads itself if a part that is not resnet_lab's does not take them
FOR_OTHERS: dict[str, dict[str, Any]] = {
    "model": {"pretrained": Text | bool | None},
    "schedule": {"interval": Literal["step", "epoch"], "monitor": Text | None},
}
# group → keys that the job always reads itself
OF_JOB: dict[str, dict[str, Any]] = {
    "loss": {
        "decision": Literal["auto"] | Rule,
        "teacher": Text | None,
        "temperature": Positive,
        "teacher_weight": Share,
    },
    "model": {"freeze": Text | list[Text] | None, "unfreeze_at_epoch": FromOne | None, "zero_init_head": bool},
    "optim": {"backbone_lr_factor": Positive},
}
CHOSEN = (*PROVIDED, "trainer", *BY_NAME, "experiment", "scale")  # groups with a choice in conf/config.yaml


def conf_dir() -> Path:
    """Return the folder of the YAML files: next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
