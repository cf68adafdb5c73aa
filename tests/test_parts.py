"""User code by its dotted name: network, loss, optimizer, schedule, data set and callback."""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import with_values
from fake_data import refusal
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import OmegaConf
from safetensors.torch import save_file

from resnet_lab import evaluate, predict, preflight, prepare, trust
from resnet_lab.checkpoints import is_whole, load_plain, refuse_objects, save
from resnet_lab.config import check, compose_config, known_names, named_in_conf
from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import load_fitting
from resnet_lab.parts import build_network, build_objective, statistics_of, without_weights
from resnet_lab.report.runs import read_run
from resnet_lab.report.verify import differences_of
from resnet_lab.run_folder import RunFolder
from resnet_lab.signatures import hashes_of_code
from resnet_lab.trained import load
from resnet_lab.training import as_begun, guarded, own_parts, refuse_unknown_monitors

MYLAB = """
import dataclasses, pathlib
import numpy as np
import torch
from lightning import Callback
from torch import nn
from resnet_lab.data.arrays import ArrayData
from resnet_lab.data.retinopathy import Retinopathy
from resnet_lab.objectives import Objective

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(width, num_classes)
    def forward(self, images):
        return self.head(self.dropout(self.body(images).mean((2, 3))))

class Viewing(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 5), nn.Linear(4 * 20 * 20, num_classes)
    def forward(self, images):
        return self.fc(self.conv(images).view(len(images), -1))

class Open(Net):
    def __init__(self, **keys):
        super().__init__(**keys)

class Weighted(Net):
    def __init__(self, num_classes, pretrained=None):
        super().__init__(num_classes)
        if pretrained:
            self.load_state_dict(torch.load(pretrained))

class Eager(Weighted):
    def __init__(self, num_classes, pretrained=True):
        super().__init__(num_classes, "a file" if pretrained else None)

class Fixed(Net):
    def __init__(self):
        super().__init__(5)

class Seven(Net):
    def __init__(self):
        super().__init__(7)

class Tuple(Net):
    def forward(self, images):
        return super().forward(images), None

class Breaks(nn.Module):
    def __init__(self, num_classes):
        raise ValueError("two channels only")

def named(params):
    return params

def number(num_classes):
    return num_classes

def focal(gamma=2.0):
    def losses(logits, targets):
        own = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - own.exp()) ** gamma) * own
    return losses

def scalar():
    return lambda logits, targets: nn.functional.cross_entropy(logits, targets)

class Plain(nn.Module):
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets, reduction="none")

def function(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction="none")

class Running(nn.Module):
    def __init__(self, lazy=False):
        super().__init__()
        if not lazy:
            self.register_buffer("mean", torch.tensor(0.0))
    def forward(self, logits, targets):
        loss = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.register_buffer("mean", loss.detach().mean())
        return loss

class Replacing(Callback):
    def on_train_epoch_end(self, trainer, module):
        module.log("val/qwk", 2.0)

class Repeating(torch.optim.SGD):
    def __init__(self, params, lr, repeats):
        super().__init__(params, 0.0)
        self.repeats, self.by = repeats, lr
    def step(self, closure):
        weight = self.param_groups[0]["params"][-1]
        for number in range(self.repeats):
            loss = closure()
            weight.data += self.by
        weight.data -= self.by * self.repeats
        return loss

class Three(Net):
    def __init__(self):
        super().__init__(3)

class Counted(nn.Module):
    def __init__(self, class_counts, num_classes):
        super().__init__()
        self.register_buffer("counts", torch.tensor(class_counts) + 0.0 * num_classes)
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets, reduction="none") / self.counts[targets].clamp(min=1)

class Steps(Callback):
    def __init__(self, stop):
        self.count, self.stop = 0, pathlib.Path(stop)
    def on_train_batch_end(self, trainer, *args):
        self.count += 1
        if self.stop.exists() and trainer.current_epoch == 1:
            raise RuntimeError("stopped by a test")
    def state_dict(self):
        return {"count": self.count}
    def load_state_dict(self, state):
        self.count = state["count"]
    def on_fit_end(self, *args):
        self.stop.with_name("count").write_text(str(self.count))

class Ordinal(Objective):
    def __init__(self, num_classes):
        super().__init__()
        self.num_outputs = num_classes - 1
    def losses(self, outputs, targets):
        higher = (targets[:, None] > torch.arange(self.num_outputs)).float()
        return nn.functional.binary_cross_entropy_with_logits(outputs, higher, reduction="none").sum(1)
    def probabilities(self, outputs):
        above = nn.functional.pad(outputs.float().sigmoid().cummin(1).values, (1, 0), value=1.0)
        return above - nn.functional.pad(above[:, 1:], (0, 1))

class Cut(Ordinal):
    decision = "own"
    def decide(self, outputs):
        return (outputs.sigmoid() > 0.1).sum(1)

class Strange(Ordinal):
    decision = "cuts"

class Averaged(Ordinal):
    def losses(self, outputs, targets):
        return super().losses(outputs, targets).mean()

class Wide(Ordinal):
    def probabilities(self, outputs):
        return outputs.sigmoid()

class Lazy(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))

class Noting(Callback):
    def __init__(self, odd=False):
        self.seen, self.odd = np.zeros(2), odd
    def on_train_batch_end(self, *args):
        self.seen = self.seen + 1
    def state_dict(self):
        return {"seen": self.seen, "odd": slice(3) if self.odd else None}
    def load_state_dict(self, state):
        self.seen = state["seen"]

class Negative(Retinopathy):
    def read(self, path):
        return 255 - super().read(path)

@dataclasses.dataclass(kw_only=True)
class Spots(ArrayData):
    bright: int
    def read_arrays(self):
        numbers = np.arange(60) % 3
        images = np.random.default_rng(0).integers(0, 50, (60, 12, 12)).astype(np.uint8)
        images[numbers == 1, :6] = images[numbers == 2, 6:] = self.bright
        return {"train": (images, numbers)}
"""


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write and trust a user's package."""
    (tmp_path / "mylab.py").write_text(MYLAB)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no license')")
    (tmp_path / "leaving.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "lacking.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    trust.trust(["mylab", "broken", "lacking"])
    yield
    for name in ("mylab", "broken", "lacking"):
        sys.modules.pop(name, None)


Make = Callable[..., RunFolder]
NET = ("model=own", "model._target_=mylab.Net")
EVERYTHING = (
    *NET,
    "+model.width=6",
    "loss=own",
    "loss._target_=mylab.focal",
    "optim=own",
    "optim._target_=torch.optim.Adam",
    "+optim.lr=0.01",
    "schedule=own",
    "schedule._target_=torch.optim.lr_scheduler.OneCycleLR",
    "+schedule.max_lr=0.02",
    "+callbacks.steps._target_=mylab.Steps",
    "+callbacks.steps.stop=stop",
)


@pytest.mark.slow
def test_external_parts_resume_and_are_evaluated(
    make_run: Make, mylab: None, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, broken = (make_run(*EVERYTHING, name=name) for name in ("whole", "broken"))
    assert guarded(whole) == 0
    assert Path("count").read_text() == "6"
    Path("stop").touch()
    assert guarded(broken) == 1
    assert "stopped by a test" in broken.read_status()["error"]
    Path("stop").unlink()
    Path("count").unlink()
    assert guarded(broken) == 0
    assert Path("count").read_text() == "6"  # three epochs of two batches
    assert broken.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert "resuming in" in broken.log_file.read_text()
    assert "evaluate and predict will need trust=model:mylab.Net,loss:mylab.focal" in whole.log_file.read_text()
    rates = pd.read_csv(whole.metrics_file)["lr"]
    assert rates.iloc[-1] < rates.iloc[0] < 0.02  # OneCycleLR got the number of steps
    assert differences_of([read_run(whole)]) == []

    before = whole.read_status()["metrics"]["test/accuracy"]
    evaluate.command([str(whole.path), "split=test", "out=evaluated"])
    assert pd.read_csv("evaluated/predictions_test.csv").eval("target == prediction").mean() == pytest.approx(before)
    predict.command([str(whole.path), str(photographs / "images"), "out=p.csv"])
    assert len(pd.read_csv("p.csv")) == 64
    trust._trusted.clear()
    message = refusal(evaluate.command, [str(whole.path)])
    assert message.endswith("add trust=model:mylab.Net to the command")


@pytest.mark.slow
def test_a_state_holds_arrays_and_no_objects(make_run: Make, mylab: None) -> None:
    noting = (*NET, "+callbacks.n._target_=mylab.Noting", "trainer.max_epochs=1")
    run, odd = make_run(*noting), make_run(*noting, "+callbacks.n.odd=true", name="odd")
    assert guarded(run) == 0
    assert is_whole(run.last_checkpoint)  # a start would resume from it
    assert load_plain(run.last_checkpoint)["callbacks"]["Noting"]["seen"].tolist() == [2.0, 2.0]  # batches
    assert guarded(odd) == 1
    words = "the callback Noting stores an object of builtins.slice in the checkpoint, from which no run could resume"
    assert odd.read_status()["error"].startswith(words)
    assert not odd.best_checkpoint.exists()


def test_a_callback_that_stores_an_object_from_its_start_is_refused_before_training() -> None:
    class Fine(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": torch.zeros(2)}

    class Later(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"loops": self.of_training}

    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"window": slice(2)}

    refuse_objects([Fine(), Later()])
    assert "Odd stores an object of builtins.slice" in refusal(refuse_objects, [Fine(), Later(), Odd()])


def test_an_object_that_cannot_be_pickled_is_named() -> None:
    states = [{"state": {0: {"weights": lambda: None}}}]
    checkpoint = {"callbacks": {"EpochRows": {"rows": []}}, "optimizer_states": states, "lr_schedulers": []}
    assert refusal(save, checkpoint, io.BytesIO()).startswith("the optimizer stores an object of another kind (")


def test_callbacks_do_not_replace_metrics_of_the_run(make_run: Make, mylab: None) -> None:
    run = make_run(*NET, "+callbacks.n._target_=mylab.Replacing", "trainer.max_epochs=1")
    assert guarded(run) == 1
    error = run.read_status()["error"]
    assert error.startswith("val/qwk is logged as 2 by a callback, but the run itself computed ")
    assert not run.best_checkpoint.exists()


@pytest.mark.slow
def test_an_optimizer_that_repeats_its_step_counts_each_image_once(make_run: Make, mylab: None) -> None:
    own = ("optim=own", "optim._target_=mylab.Repeating", "+optim.lr=1.0", "schedule=constant", "trainer.max_epochs=1")
    losses = []
    for repeats in (1, 3):
        run = make_run(*NET, *own, f"+optim.repeats={repeats}", name=f"repeats{repeats}")
        assert guarded(run) == 0
        losses.append(pd.read_csv(run.metrics_file)["train/loss"][0])
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.slow
def test_a_network_with_view_gets_contiguous_images(make_run: Make, mylab: None) -> None:
    viewing = ("model=own", "model._target_=mylab.Viewing", "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
    run, layout = make_run(*viewing), "trainer.channels_last=true"
    assert guarded(run) == 0
    assert run.read_status()["channels_last"] is False
    fails = make_run(*viewing, layout, name="fails")
    assert guarded(fails) == 1
    assert "set trainer.channels_last=false, or use reshape in place of view" in fails.read_status()["error"]
    usual = make_run(*NET, *viewing[2:], name="usual")
    assert guarded(usual) == 0
    assert usual.read_status()["channels_last"] is True


@pytest.mark.slow
def test_the_reader_of_an_external_data_set_is_used_everywhere(
    make_run: Make, mylab: None, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained = "trainer.max_epochs=0"
    usual, own = make_run(untrained), make_run(untrained, "data._target_=mylab.Negative", name="own")
    assert [guarded(run) for run in (usual, own)] == [0, 0]
    means = [sum(run.read_status()["mean"]) for run in (usual, own)]
    assert sum(means) == pytest.approx(3, abs=1e-3)  # training reads the negatives
    file = str(next((photographs / "images").iterdir()))
    assert (load(own.path)._read(file) == 255 - load(usual.path)._read(file)).all()
    predict.command([str(own.path), file, "out=p.csv"])
    given = pd.read_csv("p.csv").filter(like="p_").to_numpy()
    assert given == pytest.approx(load(own.path)(file).iloc[:, 1:].to_numpy(), abs=1e-6)
    message = refusal(prepare.command, ["data=retinopathy", f"data.root={photographs}", "data._target_=mylab.Negative"])
    assert message == "data=retinopathy: Negative defines its own read(), so its images are not prepared"


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        pytest.param(("model=own", "model._target_=torchvision.models.resnet18"), "resnet18", marks=pytest.mark.slow),
        pytest.param(
            ("model=own", "model._target_=torchvision.models.efficientnet_b0", "data.image_size=32"),
            "efficientnet_b0",
            marks=pytest.mark.slow,
        ),
        (("model=own", "model._target_=mylab.Fixed"), "mylab.Fixed"),
        pytest.param(
            ("loss=own", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.weight=[1,2,3,4,5]"),
            "CrossEntropyLoss",
            marks=pytest.mark.slow,
        ),
        (("loss=own", "loss._target_=mylab.Counted"), "mylab.Counted"),
        (("optim=own", "optim._target_=torch.optim.SGD", "+optim.lr=0.05", "+optim.momentum=0.9"), "torch.optim.SGD"),
        pytest.param(
            ("schedule=own", "schedule._target_=torch.optim.lr_scheduler.StepLR", "+schedule.step_size=4"),
            "StepLR",
            marks=pytest.mark.slow,
        ),
        (
            (
                "schedule=own",
                "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
                "schedule.monitor=val/loss",
            ),
            "ReduceLROnPlateau",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_each_part_alone_trains(make_run: Make, mylab: None, parts: tuple[str, ...], word: str) -> None:
    run = make_run(*parts, "trainer.max_epochs=1")
    assert guarded(run) == 0, run.log_file.read_text()
    assert load(run.path).class_names == ["no DR", "mild", "moderate", "severe", "proliferative"]
    assert differences_of([read_run(run)]) == []


def test_a_schedule_may_step_by_epoch(make_run: Make) -> None:
    schedule = ("schedule=own", "schedule._target_=torch.optim.lr_scheduler.ExponentialLR", "+schedule.gamma=0.5")
    run = make_run(*schedule, "schedule.interval=epoch")
    assert guarded(run) == 0
    assert pd.read_csv(run.metrics_file)["lr"].tolist() == pytest.approx([0.025, 0.0125, 0.00625])  # epoch ends


@pytest.mark.slow
def test_an_external_data_set_is_read(make_run: Make, mylab: None) -> None:
    keys = ("data=own", "data._target_=mylab.Spots", "data.root=.", "+data.bright=200", "data.test_fraction=0.2")
    run = make_run(*keys, "data.class_names=null", "trainer.max_epochs=1")
    assert guarded(run) == 0
    assert run.read_status()["class_names"] == ["0", "1", "2"]
    origin, other = load(run.path).origin, ["data=own", "data._target_=mylab.Spots", "data.root=."]
    assert evaluate.override(origin, [*other, "+data.bright=100"])["data"]["bright"] == 100
    message = refusal(evaluate.override, origin, [*other, "data.bright=100"])
    assert message == "data.bright: conf/data has no such key; write +data.bright=100 to pass it to mylab.Spots"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("model=own",), "model._target_ is not set"),
        (("model=own", "model._target_=leaving.Net"), "importing leaving fails (SystemExit: 3)"),
        (("model=own", "model._target_=mylab"), "name it with its module, such as mylab.Net"),
        (("loss=own", "loss._target_=mylab.function"), "name a function or class that returns the loss function"),
        (("model=own", "model._target_=mylab.Nett"), "mylab.Nett: mylab has no Nett; did you mean mylab.Net?"),
        (("model=own", "model._target_=mylabb.Net"), "there is no module mylabb"),
        (("model=own", "model._target_=broken.Net"), "importing broken fails (RuntimeError: no license)"),
        (("model=own", "model._target_=lacking.Net"), "lacking needs the module a_module_that_is_not_there"),
        (("model=own", "model._target_=mylab.MYLAB"), "mylab has no MYLAB"),
        (("model=own", "model._target_=mylab.np"), "is a module; name a function or class"),
        (("model=own", "model._target_=mylab.number"), "mylab.number returns a int"),
        (("model=own", "model._target_=mylab.Breaks"), "cannot be built from its keys: ValueError: two channels only"),
        (
            ("model=own", "model._target_=mylab.Seven"),
            "mylab.Seven returns (2, 7) for two images in training, not (2, 5)",
        ),
        (("model=own", "model._target_=mylab.Tuple"), "mylab.Tuple returns tuple for two images"),
        ((*NET, "+model.widht=3"), "model.widht: mylab.Net takes no such argument; did you mean model.width?"),
        (
            ("loss=own", "loss._target_=mylab.focal", "+loss.num_classes=3"),
            "loss.num_classes: mylab.focal takes no such argument; it takes ",  # not data.augment_classes
        ),
        (
            ("loss=own", "loss._target_=mylab.focal", "+loss.batch_size=3"),
            "loss.batch_size: mylab.focal takes no such argument; did you mean data.batch_size?",
        ),
        ((*NET, "+model.num_classes=3"), "model.num_classes: the job sets it; leave it out"),
        (("model=own", "model._target_=mylab.Open", "+model.num_classes=3"), "model.num_classes: the job sets it"),
        ((*NET, "model.pretrained=nothing.pth"), "model.pretrained=nothing.pth: no such file"),
        (("loss=own", "loss._target_=mylab.scalar"), "mylab.scalar returns () for two images"),
        (("loss=own", "loss._target_=torch.nn.MSELoss"), "torch.nn.MSELoss fails on logits (2, 5)"),
        (("loss=own", "loss._target_=mylab.number"), "returns a int; name one that returns a loss"),
        (("loss=own", "loss._target_=mylab.Averaged"), "mylab.Averaged: losses returns () for two images; return (2,)"),
        (
            ("loss=own", "loss._target_=mylab.Wide"),
            "mylab.Wide: probabilities returns (2, 4) for two images; return (2, 5)",
        ),
        (("loss=own", "loss._target_=mylab.Strange"), "decision=cuts is none of argmax, median, expected, own"),
        (("model=own", "model._target_=mylab.Lazy"), "mylab.Lazy: the shape of 1.weight is unknown before the first"),
        (("optim=own", "optim._target_=torch.optim.SGD", "+optim.rate=1"), "optim.rate: torch.optim.SGD takes no"),
        (
            ("optim=own", "optim._target_=torch.optim.Adam", "+optim.lr=-1"),
            "optim._target_ torch.optim.Adam cannot be built from its keys: ValueError: Invalid learning rate: -1",
        ),
        (("optim=own", "optim._target_=mylab.named"), "optim._target_ returns a generator; name an optimizer"),
        (("schedule=own", "schedule._target_=torch.optim.lr_scheduler.StepLR"), "schedule.step_size is missing"),
        (
            (
                "schedule=own",
                "schedule._target_=torch.optim.lr_scheduler.StepLR",
                "+schedule.step_size=1",
                "schedule.interval=epochs",
            ),
            "schedule.interval=epochs: must be step or epoch",
        ),
        (("+callbacks.mine._target_=mylab.Net", "+callbacks.mine.num_classes=2"), "a Net, not a lightning.Callback"),
        (("+callbacks.mine._target_=mylab.Steps",), "callbacks.mine.stop is missing; mylab.Steps needs it"),
        (("+callbacks.mine.stop=1",), "callbacks.mine has no _target_"),
        (
            ("+callbacks.a._target_=mylab.Noting", "+callbacks.b._target_=mylab.Noting"),
            "callbacks.a and callbacks.b are both mylab.Noting with the state_key 'Noting'",
        ),
        (
            (
                "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging",
                "+callbacks.swa.swa_lrs=0.1",
            ),
            "when all checkpoints are written; use callbacks=ema",
        ),
        (
            ("+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=val/acc"),
            "callbacks.stop.monitor=val/acc: no such metric; did you mean val/accuracy?",
        ),
        (
            ("+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=auto"),
            "callbacks.stop.monitor=auto: no such metric; choose val/loss, val/qwk",
        ),
        pytest.param(
            ("schedule=own", "schedule._target_=timm.scheduler.CosineLRScheduler", "+schedule.t_initial=2"),
            "schedule._target_ timm.scheduler.CosineLRScheduler is not a torch.optim.lr_scheduler.LRScheduler",
            marks=pytest.mark.slow,  # imports timm
        ),
        (("callbacks=5",), "callbacks"),
        (("data=own", "data._target_=mylab.Net", "data.root=."), "mylab.Net is not a data set: derive it from"),
        (("data.mean=model",), "data.mean=model: resnet_lab.models.resnet.resnet defines no mean"),
        (("data.std=model",), "data.std=model: set data.mean=model"),
    ],
)
def test_bad_parts_are_named_before_anything_is_trained(mylab: None, overrides: tuple[str, ...], line: str) -> None:
    def look() -> None:
        config = with_values(["data=synthetic", "model=resnet_cifar", "data.image_size=32", *overrides])
        check(config)
        plain = OmegaConf.to_container(config, resolve=True)
        trust.trust(["torch.nn", "lightning", "timm.scheduler"])
        preflight.check_parts(plain)
        statistics_of(plain)

    assert line in refusal(look)


def test_well_known_constructors_are_defined_where_their_names_say() -> None:
    for group in ("model", "loss", "optim", "schedule", "logger"):
        for target in known_names(group) - named_in_conf(group) - {"timm.create_model"}:
            module, _, name = target.rpartition(".")
            found = getattr(importlib.import_module(module), name)
            assert found.__module__.startswith(f"{module}.") or found.__module__ == module, target
            assert found.__name__ == name
    own = {f"torchvision.models.{name}" for name in torchvision.models.list_models(module=torchvision.models)}
    aside = {"torchvision.models.googlenet", "torchvision.models.inception_v3"}  # several outputs in training
    assert own - aside == {name for name in known_names("model") if name.startswith("torchvision")}


def test_weights_that_fit_are_loaded_and_the_others_are_named(
    tmp_path: Path, mylab: None, caplog: pytest.LogCaptureFixture
) -> None:
    mylab_module = importlib.import_module("mylab")
    source = mylab_module.Net(1000)
    save_file(source.state_dict() | {"extra": torch.zeros(3)}, tmp_path / "weights.safetensors")
    model = {"_target_": "mylab.Net", "width": 4, "pretrained": str(tmp_path / "weights.safetensors")}
    with caplog.at_level("INFO"):
        network = build_network(model, 5)
    assert torch.equal(network.body[0].weight, source.body[0].weight)
    assert network.head.out_features == 5
    assert "left as initialized: head.weight, head.bias; in the weights but not used: " in caplog.text
    assert "extra [3]" in caplog.text
    other = mylab_module.Net(1000, width=9)
    message = refusal(load_fitting, other, str(tmp_path / "weights.safetensors"))
    assert "1 of 8 tensors of the network match" in message


def test_a_shared_tensor_is_loaded_by_any_of_its_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1), torch.nn.Linear(3, 2))
    network[1].weight = network[0].weight
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items() if name != "1.weight"}
    torch.save(state, tmp_path / "weights.pt")
    with caplog.at_level("INFO"):
        load_fitting(network, str(tmp_path / "weights.pt"))
    assert "loaded 6 of 6 tensors; left as initialized: none" in caplog.text
    assert network[1].weight.eq(1).all()


@pytest.mark.parametrize(
    ("target", "head"), [("mylab.Net", "head"), ("resnet_lab.models.example_cnn.example_cnn", "-1")]
)
def test_the_last_layer_starts_at_zero(mylab: None, target: str, head: str) -> None:
    shape = {"widths": [4, 8], "hidden": 6, "dropout": 0.0, "activation": "ReLU"} if head == "-1" else {}
    model = {"_target_": target, "pretrained": "none", **shape}
    network = build_network(model | {"zero_init_head": True}, 5)
    images = torch.randn(2, 3, 16, 16)
    assert network.eval()(images).tolist() == [[0.0] * 5] * 2
    others = [value for name, value in network.state_dict().items() if name.endswith("weight")]
    assert [bool(value.any()) for value in others].count(False) == 1
    assert build_network(model, 5).eval()(images).abs().min() > 0


def test_a_last_layer_before_an_activation_does_not_start_at_zero() -> None:
    model = {"_target_": "torchvision.models.squeezenet1_1", "pretrained": "none", "zero_init_head": True}
    assert "the last layer of torchvision.models.squeezenet1_1 is not linear" in refusal(build_network, model, 5)


@pytest.mark.parametrize("target", ["mylab.Ordinal", "mylab.Cut"])
@pytest.mark.slow
def test_an_external_objective_has_its_own_outputs_and_decisions(make_run: Make, mylab: None, target: str) -> None:
    run = make_run(*NET, "loss=own", f"loss._target_={target}", "trainer.max_epochs=1")
    assert guarded(run) == 0
    assert load(run.path).network.head.out_features == 4
    assert run.read_status()["decision"] == ("own" if target == "mylab.Cut" else "argmax")
    assert differences_of([read_run(run)]) == []


@pytest.mark.parametrize("target", ["mylab.Weighted", "mylab.Eager"])
def test_no_weights_is_said_in_the_words_of_the_network(mylab: None, target: str) -> None:
    network = build_network({"_target_": target, "pretrained": "none"}, 5)
    assert network.head.out_features == 5
    with pytest.raises(UserError, match="No such file"):
        build_network({"_target_": target, "pretrained": "nothing.pt" if target == "mylab.Weighted" else True}, 5)


def test_an_error_of_a_schedule_is_one_line(make_run: Make) -> None:
    one_cycle = "schedule._target_=torch.optim.lr_scheduler.OneCycleLR"
    run = make_run("schedule=own", one_cycle, "+schedule.max_lr=0.1", "+schedule.pct_start=3")
    assert guarded(run) == 1
    line = f"{one_cycle.replace('=', ' ')} cannot be built from its keys: ValueError: Expected float between 0 and 1"
    assert run.read_status()["error"].startswith(line)


def test_a_checkpoint_fetches_no_weights() -> None:
    assert without_weights({"_target_": "torchvision.models.resnet18", "weights": "IMAGENET1K_V1"})["weights"] is None
    timm = {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True, "checkpoint_path": "x"}
    assert without_weights(timm) == {**timm, "pretrained": False, "checkpoint_path": None}
    ours = {"_target_": "resnet_lab.models.resnet.resnet", "depth": 18, "pretrained": "imagenet"}
    assert without_weights(ours) == ours | {"pretrained": "none"}


def test_statistics_of_torchvisions_weights() -> None:
    data = {"mean": "model", "std": "train"}
    ours = {"_target_": "resnet_lab.models.resnet.resnet", "depth": 18, "pretrained": "imagenet"}
    theirs = {"_target_": "torchvision.models.resnet18", "weights": "IMAGENET1K_V1"}
    for model in (ours, theirs):
        mean, std = statistics_of({"data": data, "model": model})
        assert mean == pytest.approx([0.485, 0.456, 0.406])
        assert std == pytest.approx([0.229, 0.224, 0.225])
    own = {"mean": "model", "std": [1.0, 1.0, 1.0]}
    assert statistics_of({"data": own, "model": ours})[1] == [1.0, 1.0, 1.0]


def test_reduction_is_set_by_the_job(mylab: None) -> None:
    objective = build_objective({"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1}, [3, 4])
    losses = objective.losses(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), label_smoothing=0.1, reduction="none"
    )
    torch.testing.assert_close(losses, expected)
    assert objective.num_outputs == 2


@pytest.mark.slow
def test_a_network_of_timm_is_pretrained_and_trained(make_run: Make, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("resnet10t", num_classes=7)
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    model = ("model=own", "model._target_=timm.create_model", "+model.model_name=resnet10t", "data.mean=model")
    run = make_run(*model, f"model.pretrained={tmp_path / 'timm.safetensors'}", "trainer.max_epochs=1")
    assert guarded(run) == 0, run.log_file.read_text()
    assert "left as initialized: fc.weight, fc.bias" in run.log_file.read_text()
    assert run.read_status()["mean"] == pytest.approx(source.pretrained_cfg["mean"])
    (tmp_path / "timm.safetensors").unlink()
    assert load(run.best_checkpoint).network.num_classes == 5


def test_a_loss_without_its_own_arguments_gets_none(mylab: None) -> None:
    assert build_objective({"_target_": "mylab.Plain"}, [3, 2, 1]).num_outputs == 3


def test_arrays_of_another_form_are_named(mylab: None) -> None:
    mylab_module = importlib.import_module("mylab")
    config = compose_config(["data=own", "data._target_=mylab.Spots", "data.root=.", "+data.bright=200"])
    plain = OmegaConf.to_container(config["data"], resolve=True)
    assert isinstance(plain, dict)
    data = {key: value for key, value in plain.items() if key != "_target_"}
    for found in (None, (np.zeros((3, 8, 8), np.uint8), np.zeros(3, int)), {"train": ([], [])}):
        spots = mylab_module.Spots(**data)
        spots.read_arrays = lambda found=found: found
        assert "Spots.read_arrays must return a dictionary with a pair of numpy arrays" in refusal(spots.read_table)


def test_all_images_take_the_place_of_any_splits(mylab: None) -> None:
    keys = ("data=own", "data._target_=mylab.Spots", "data.root=.", "+data.bright=200", "data.all_images=test")
    plain = OmegaConf.to_container(compose_config(keys)["data"], resolve=True)
    assert isinstance(plain, dict)
    spots = importlib.import_module("mylab").Spots(**{key: value for key, value in plain.items() if key != "_target_"})
    arrays = spots.read_arrays()["train"]
    spots.read_arrays = lambda: {"first": arrays, "second": arrays}
    assert spots.listed()["split"].tolist() == ["test"] * 120
    spots.all_images = None
    assert refusal(spots.listed).startswith("the data has a split first")


def test_a_callback_that_monitors_validation_needs_it() -> None:
    stop = {"stop": EarlyStopping("val/loss")}
    refuse_unknown_monitors(stop, 3, ordered=False, validates=True)
    message = refusal(refuse_unknown_monitors, stop, 3, False, False)
    assert message.startswith("callbacks.stop.monitor=val/loss needs a validation split")
    refuse_unknown_monitors({"stop": EarlyStopping("val/loss", strict=False)}, 3, ordered=False, validates=False)
    for name in ("epoch", "step"):
        refuse_unknown_monitors({"keep": ModelCheckpoint(monitor=name)}, 3, ordered=False, validates=False)
        assert "no such metric" in refusal(refuse_unknown_monitors, {"stop": EarlyStopping(name)}, 3, False)
    own = type("Own", (Callback,), {"__module__": "mylab"})()  # may log val/loss
    refuse_unknown_monitors({**stop, "own": own}, 3, ordered=False, validates=False)


def test_a_loss_is_tried_without_changing_its_state(mylab: None) -> None:
    assert build_objective({"_target_": "mylab.Running"}, [3, 2, 1]).state_dict()["criterion.mean"] == 0
    error = refusal(build_objective, {"_target_": "mylab.Running", "lazy": True}, [3, 2, 1])
    assert "mylab.Running creates mean in its first call" in error


def test_parts_are_checked_with_the_classes_of_their_data(mylab: None) -> None:
    data = ("data=own", "data._target_=mylab.Spots", "data.root=.", "+data.bright=200", "data.test_fraction=0.2")
    weights = ("loss=own", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.weight=[1,2,3]")
    network = ("model=own", "model._target_=mylab.Three")
    config = compose_config([*data, *weights, *network, "data.image_size=12"])
    preflight.check_parts(OmegaConf.to_container(config, resolve=True))
    wrong = compose_config([*data, "model=own", "model._target_=mylab.Seven", "data.image_size=12"])
    line = refusal(preflight.check_parts, OmegaConf.to_container(wrong, resolve=True))
    assert "(2, 7) for two images in training, not (2, 3)" in line


def test_a_missing_module_is_named_by_the_part_that_needs_it() -> None:
    trust.trust(["loss:nixmod.Nix"], exists=False)  # as in the checks before the first job
    assert refusal(build_objective, {"_target_": "nixmod.Nix"}, [1, 1]).startswith("loss._target_ nixmod.Nix: there is")


def test_parts_of_ones_own_are_noted_with_the_hash_of_their_file(make_run: Make, mylab: None) -> None:
    run = make_run(*NET, "trainer.max_epochs=1")
    assert guarded(run) == 0
    code = run.read_status()["own_code"]
    assert code == {
        "mylab.Net": hashlib.sha256(Path(sys.modules["mylab"].__file__ or "").read_bytes()).hexdigest()[:16]
    }
    assert hashes_of_code({"optim": {"_target_": "torch.optim.Adagrad"}, "loss": {"_target_": "absent.loss"}}) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LearningRateFinder", "give optim.lr several values"),
        ("BatchSizeFinder", "set it yourself"),
        ("GradientAccumulationScheduler", "set trainer.accumulate_grad_batches"),
    ],
)
def test_callbacks_of_lightning_that_cannot_work_here_are_refused(name: str, words: str) -> None:
    node = {"_target_": f"lightning.pytorch.callbacks.{name}"}
    node |= {"scheduling": {0: 3}} if name.startswith("Gradient") else {}
    trust.trust([f"callbacks:{node['_target_']}"])
    assert words in refusal(own_parts, {"callbacks": {"own": node}}, "callbacks")


def test_a_resumed_training_keeps_what_auto_became() -> None:
    settings = {"precision": "auto", "channels_last": "auto", "accelerator": "cpu"}
    begun = {"precision": "bf16-mixed", "channels_last": True}
    assert as_begun(settings, begun) == settings | begun
    assert as_begun(settings | {"precision": "32-true"}, begun)["precision"] == "32-true"
    assert as_begun(settings, {}) == settings
    assert as_begun(settings, {"precision": "16-mixed", "channels_last": True}) == settings
