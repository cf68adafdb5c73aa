"""The family of residual networks: one class made of parts, and the builder that selects them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resnet_lab.errors import UserError
from resnet_lab.models.pretrained import load_pretrained
from resnet_lab.values import Text, Widths, Within

Choice = TypeVar("Choice")
Activation = Callable[[], nn.Module]
Shortcut = Callable[[int, int, int], nn.Module]


def conv(inplanes: int, planes: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Build a convolution with padding, so that only stride changes the size: (B, I, H, W) to (B, P, H/s, W/s)."""
    return nn.Conv2d(inplanes, planes, kernel, stride, padding=kernel // 2, bias=bias)


def projection(inplanes: int, planes: int, stride: int, bias: bool) -> nn.Module:
    """Build the learned shortcut: a 1×1 convolution and batch norm (He et al. 2016, option B)."""
    return nn.Sequential(conv(inplanes, planes, 1, stride, bias), nn.BatchNorm2d(planes))


class ZeroPad(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel, new channels zero (He et al. 2016, option A).

    Half of the new channels precede the old ones and half follow, as in the published CIFAR weights.
    """

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = (planes - inplanes) // 2
        self.back = planes - inplanes - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, P, ceil(H/stride), ceil(W/stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


@dataclass(frozen=True)
class BlockParts:
    """Parts shared by all blocks of one network; `shortcut` None makes a plain network."""

    shortcut: Shortcut | None
    activation: Activation
    last_activation: bool
    stride_on_first: bool
    bias: bool

    def make_shortcut(self, inplanes: int, planes: int, stride: int) -> nn.Module | None:
        """Build the shortcut of one block: the identity if the shape does not change."""
        if self.shortcut is None:
            return None
        if stride == 1 and inplanes == planes:
            return nn.Identity()
        return self.shortcut(inplanes, planes, stride)

    def make_last_activation(self) -> nn.Module:
        """Build the activation after the addition."""
        return self.activation() if self.last_activation else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the shortcut around them."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, parts: BlockParts) -> None:
        super().__init__()
        self.conv1 = conv(inplanes, planes, 3, stride, parts.bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.activation = parts.activation()
        self.conv2 = conv(planes, planes, 3, 1, parts.bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = parts.make_shortcut(inplanes, planes, stride)
        self.last_activation = parts.make_last_activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, P, H/stride, W/stride)."""
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out += self.downsample(x)
        outputs: Tensor = self.last_activation(out)
        return outputs


class Bottleneck(nn.Module):
    """1×1 reduce, 3×3, 1×1 expand by 4, and the shortcut around them."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, parts: BlockParts) -> None:
        super().__init__()
        first, second = (stride, 1) if parts.stride_on_first else (1, stride)
        self.conv1 = conv(inplanes, planes, 1, first, parts.bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.activation1 = parts.activation()
        self.conv2 = conv(planes, planes, 3, second, parts.bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.activation2 = parts.activation()
        self.conv3 = conv(planes, planes * self.expansion, 1, 1, parts.bias)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = parts.make_shortcut(inplanes, planes * self.expansion, stride)
        self.last_activation = parts.make_last_activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, 4 P, H/stride, W/stride)."""
        out = self.activation1(self.bn1(self.conv1(x)))
        out = self.activation2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out += self.downsample(x)
        outputs: Tensor = self.last_activation(out)
        return outputs


@dataclass(frozen=True)
class Stem:
    """First convolution, and whether a 3×3/2 max pool follows."""

    kernel: int
    stride: int
    pool: bool


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Residual (or plain) network made of parts, with the parameter names of torchvision's ResNet.

    Convolutions are initialized from the normal distribution of He et al. (2015; fan out, ReLU's gain for any
    activation), batch norms with weight 1 and bias 0; linear layers and convolution biases keep torch's
    defaults. A seed gives the same values as in torchvision.

    `layers` is the number of blocks in each stage, `widths` the base filters of each stage; the stem has the first.
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        widths: Sequence[int],
        stem: Stem,
        parts: BlockParts,
        num_classes: int,
        hidden_head: bool = False,
    ) -> None:
        super().__init__()
        self.stages = len(layers)
        self.conv1 = conv(3, widths[0], stem.kernel, stem.stride)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.activation = parts.activation()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem.pool else nn.Identity()
        inplanes = widths[0]
        for stage, (count, planes) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = nn.Sequential()
            for index in range(count):
                blocks.append(block(inplanes, planes, 2 if stage > 1 and index == 0 else 1, parts))
                inplanes = planes * block.expansion
            self.add_module(f"layer{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = make_head(inplanes, num_classes, parts.activation if hidden_head else None)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K)."""
        x = self.maxpool(self.activation(self.bn1(self.conv1(images))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        outputs: Tensor = self.fc(self.avgpool(x).flatten(1))
        return outputs


def make_head(features: int, num_classes: int, activation: Activation | None) -> nn.Module:
    """Build the linear output layer; with `activation`, it follows ImageNet's 1000-way layer (study C)."""
    if activation is None:
        return nn.Linear(features, num_classes)
    return nn.Sequential(nn.Linear(features, 1000), activation(), nn.Linear(1000, num_classes))


@dataclass(frozen=True)
class Form:
    """Defaults of a named form; `depths` None means the 6n+2 layers of the paper's CIFAR form."""

    depths: dict[int, tuple[Block, Sequence[int]]] | None
    widths: Sequence[int]
    stem: str
    shortcut: str
    bias: bool


IMAGENET: dict[int, tuple[Block, Sequence[int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
WIDE: dict[int, tuple[Block, Sequence[int]]] = {
    18: IMAGENET[18],
    20: (BasicBlock, (2, 2, 3, 2)),
    34: IMAGENET[34],
    50: IMAGENET[50],
    56: (BasicBlock, (6, 6, 9, 6)),
    101: IMAGENET[101],
    110: (BasicBlock, (9, 16, 20, 9)),
}
FORMS = {
    "imagenet": Form(IMAGENET, (64, 128, 256, 512), "7x7", "projection", bias=False),
    "cifar": Form(None, (16, 32, 64), "3x3", "zero_pad", bias=False),
    "wide": Form(WIDE, (64, 128, 256, 512), "3x3", "projection", bias=True),
}
STEMS = {"7x7": Stem(kernel=7, stride=2, pool=True), "3x3": Stem(kernel=3, stride=1, pool=False)}
NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}


def resnet(
    depth: Annotated[int, Within(1, 10_000)] = 50,
    num_classes: int = 5,
    form: Literal["imagenet", "cifar", "wide"] = "imagenet",
    shortcut: Literal["projection", "zero_pad", "none"] | None = None,
    stem: Literal["7x7", "3x3"] | None = None,
    widths: Widths | None = None,
    activation: Text = "ReLU",
    last_activation: bool = True,
    stride_on: Literal["3x3", "1x1"] = "3x3",
    bias: bool | None = None,
    hidden_head: bool = False,
    pretrained: Text = "none",
) -> ResNet:
    """Build a network of the family; `shortcut`, `stem`, `widths` and `bias` default to the form's own if None.

    conf/model/_resnet.yaml documents the arguments.

    Args:
        num_classes: length K of the logits.

    Raises:
        UserError: a choice does not exist or contradicts another; weights are missing or do not fit.
    """
    family = pick("form", form, FORMS)
    block, layers = find_layers(form, depth)
    filters = check_widths(family.widths if widths is None else widths, form, len(layers))
    bias = family.bias if bias is None else bias
    for name, flag in {"last_activation": last_activation, "bias": bias, "hidden_head": hidden_head}.items():
        pick(name, flag, {True: True, False: False})
    if not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes={num_classes}; a network needs at least one class")
    shortcuts: dict[str, Shortcut | None] = {
        "projection": partial(projection, bias=bias),
        "zero_pad": ZeroPad,
        "none": None,
    }
    parts = BlockParts(
        shortcut=pick("shortcut", family.shortcut if shortcut is None else shortcut, shortcuts),
        activation=find_activation(activation),
        last_activation=last_activation,
        stride_on_first=pick("stride_on", stride_on, {"3x3": False, "1x1": True}),
        bias=bias,
    )
    stem_part = pick("stem", family.stem if stem is None else stem, STEMS)
    model = ResNet(block, layers, filters, stem_part, parts, num_classes, hidden_head)
    if pretrained != "none":
        load_pretrained(model, str(pretrained))
    return model


def pick(argument: str, value: object, choices: Mapping[Any, Choice]) -> Choice:
    """Return the choice that `value` names; refuse an unknown value and list the choices."""
    for known, choice in choices.items():
        if value == known:
            return choice
    raise UserError(f"model.{argument}={value} is unknown; choose one of {', '.join(map(str, choices))}")


def find_layers(form: str, depth: int) -> tuple[Block, Sequence[int]]:
    """Return the block and the number of blocks in each stage (He et al. 2016, table 1 and section 4.2; study D)."""
    depths = FORMS[form].depths
    if depths is not None:
        return pick(f"form={form} model.depth", depth, depths)
    if not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
        raise UserError(f"model.form={form} model.depth={depth} is unknown; choose 6n+2: 20, 32, 44, 56, …")
    return BasicBlock, [depth // 6] * 3


def check_widths(widths: Sequence[int], form: str, stages: int) -> Sequence[int]:
    """Return `widths` if they are one positive whole number per stage; else refuse them."""
    whole = isinstance(widths, Sequence) and all(isinstance(width, int) and width > 0 for width in widths)
    if not whole or len(widths) != stages:
        own = list(FORMS[form].widths)
        raise UserError(
            f"model.widths={widths}: model.form={form} needs {stages} positive whole numbers, such as {own}"
        )
    return widths


def find_activation(name: str) -> Activation:
    """Return torch's activation of that name; in place if the gradient needs only the result."""
    known = {kind.lower(): kind for kind in nn.modules.activation.__all__ if kind not in NOT_ELEMENTWISE}
    if name not in known.values():
        close = difflib.get_close_matches(str(name).lower(), known) or ("relu", "leakyrelu", "silu", "gelu")
        names = ", ".join(known[match] for match in close)
        raise UserError(f"model.activation={name} is not a suitable activation of torch.nn; try {names}")
    kind = getattr(nn, name)
    return partial(kind, inplace=True) if name in ("ReLU", "LeakyReLU") else kind


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image of `image_size` pixels a side.

    It runs a copy on tensors without storage: nothing is computed, and the model's weights and statistics do not
    change. A network that reads the values of its tensors computes one batch.
    """
    tensors = {id(each): each.detach().to("meta") for each in chain(model.parameters(), model.buffers())}
    try:
        return _counted(copy.deepcopy(model, tensors), image_size, "meta")
    except Exception:  # networks from outside raise many types
        return _counted(copy.deepcopy(model), image_size, "cpu")


def _counted(model: nn.Module, image_size: int, device: str) -> int:
    # two images: batch norm in training refuses one value per channel; two operations per multiply-add
    images = torch.zeros(2, 3, image_size, image_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops() // 4)
