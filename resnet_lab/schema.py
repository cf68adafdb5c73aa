"""Which keys the configuration has, and what values they take; conf/ says what they mean (imports nothing heavy)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from resnet_lab.values import Count, FromOne, Positive, Seed, Text, Within

MISSING: Any = "???"  # OmegaConf's word for a mandatory value
FIGURES = (  # the pictures of resnet_lab/report/figures.py, which is not imported here
    *("accuracy", "loss", "train_loss", "error", "error_by_depth", "scores", "confusion_matrices", "recall", "gap"),
    *("class_counts", "class_scores", "score_bands", "layers", "roc", "precision_recall", "reliability", "cost"),
)


def _key(hint: Any, allowed: str = "") -> Any:
    """A mandatory key whose values must conform to the hint; `allowed` describes them better than the hint does."""
    return field(default=MISSING, metadata={"hint": hint, "allowed": allowed})


Batches = FromOne | Annotated[float, Within(0, 1, without_least=True)] | None  # a number, a share, or all
Compiled = bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass
class TrainerConfig:
    """The keys of conf/trainer, which says what they mean."""

    accelerator: str = _key(Literal["auto", "cpu", "gpu", "cuda", "mps"])
    devices: Any = _key(Literal["auto"] | Annotated[int, Within(1, 128)] | list[Count])  # noqa: RUF009 - it is field()
    num_nodes: int = _key(FromOne)
    # those that fork or spawn leave their results in the child; FSDP shards what checkpoints need in one piece
    strategy: str = _key(Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"])
    # images become float32 on the device, so weights of another type cannot read them
    precision: str = _key(Literal["auto", "32-true", "32", "16-mixed", "bf16-mixed"])
    channels_last: Any = _key(bool | Literal["auto"])  # noqa: RUF009
    max_epochs: int = _key(Count)
    early_stopping: int | None = _key(FromOne | None)
    gradient_clip_val: float | None = _key(Positive | None)
    accumulate_grad_batches: int = _key(FromOne)
    limit_train_batches: Any = _key(Batches)  # noqa: RUF009
    limit_val_batches: Any = _key(Batches)  # noqa: RUF009
    compile: Any = _key(Compiled)  # noqa: RUF009
    checkpoint_minutes: float | None = _key(Positive | None)
    sync_batchnorm: bool = _key(bool)
    deterministic: bool = _key(bool)
    progress_bar: bool = _key(bool)
    log_every_n_steps: int = _key(FromOne)
    profiler: str | None = _key(Literal["simple", "advanced", "pytorch"] | None)


@dataclass
class Config:
    """The top level of the configuration; what a group holds is checked against its `_target_`."""

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


# arguments that the job adds to those in the configuration, where they are taken
PROVIDED = {
    "data": set(),
    "model": {"num_classes"},
    "loss": {"class_counts", "num_classes", "reduction"},
    "optim": {"params"},
    "schedule": {"optimizer", "steps_per_epoch", "max_epochs", "epochs", "total_steps"},
}
# groups of parts by name → what each of them has to be
BY_NAME = {"callbacks": "lightning.Callback", "logger": "lightning.pytorch.loggers.Logger"}
FOR_LOGGERS = {"save_dir", "id"}  # what the job adds to a logger that takes it, unless the user sets it
# keys that the job reads itself where a part from outside does not take them
FOR_OTHERS = {"model": {"pretrained"}, "schedule": {"interval", "monitor"}}
# keys that the job itself reads in a group, whatever its `_target_` is
OF_JOB: dict[str, dict[str, Any]] = {
    "model": {"freeze": Text | list[Text] | None, "unfreeze_at_epoch": FromOne | None},
    "optim": {"backbone_lr_factor": Positive},
}
CHOSEN = (*PROVIDED, "trainer", *BY_NAME, "experiment", "scale")  # the groups that conf/config.yaml chooses from


def conf_dir() -> Path:
    """The folder of the YAML files: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
