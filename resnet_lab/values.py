"""Convert values of the configuration to their types; refuse wrong ones by key."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from resnet_lab.errors import UserError

WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}


@dataclass(frozen=True)
class Within:
    """Range of numbers that an annotated type allows."""

    least: float = -math.inf
    most: float = math.inf
    without_least: bool = False
    without_most: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether a number is allowed."""
        above = value > self.least if self.without_least else value >= self.least
        return above and (value < self.most if self.without_most else value <= self.most)

    def __str__(self) -> str:
        """Describe the range, following `a number`."""
        least = "" if self.least == -math.inf else f"{'above' if self.without_least else 'from'} {self.least}"
        most = "" if self.most == math.inf else f"{'below' if self.without_most else 'to'} {self.most}"
        return " ".join(filter(None, (least, most)))


@dataclass(frozen=True)
class Items:
    """Lengths of lists and texts that an annotated type allows."""

    least: int = 0  # number of items or characters: any, at least 1, or exactly `most`
    most: float = math.inf
    rising: bool = False  # no item is below the one before

    def __contains__(self, value: list[Any] | str) -> bool:
        """Return whether a list or text is allowed."""
        return self.least <= len(value) <= self.most and not (self.rising and list(value) != sorted(value))

    def __str__(self) -> str:
        """Describe the restriction, following `a list […]`."""
        number = f"of {self.least}" if self.least == self.most else "that is not empty" if self.least else ""
        return ", ".join(filter(None, (number, "the smaller ones first" * self.rising)))


NotNegative = Annotated[float, Within(0)]
Positive = Annotated[float, Within(0, without_least=True)]
Share = Annotated[float, Within(0, 1)]
BelowOne = Annotated[float, Within(0, 1, without_most=True)]
Factor = Annotated[float, Within(0, 1, without_least=True, without_most=True)]
Count = Annotated[int, Within(0)]
FromOne = Annotated[int, Within(1)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
Text = Annotated[str, Items(1)]
Widths = Annotated[list[Annotated[int, Within(1, 65_536)]], Items(1)]


def conform(key: str, value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint`: numbers (`2015`) may become text, whole numbers are valid floats.

    Args:
        key: dotted key, for errors.
        value: value from YAML.
        hint: one of str, bool, int, float, None, a list or dict of them, a union, a number `Within` limits, a list
            or text of `Items`, or a `Literal` of words.

    Raises:
        UserError: the value has another type.
    """
    try:
        return _convert(value, hint)
    except (TypeError, OverflowError):  # OverflowError: a number above every float
        listed = isinstance(value, list) and value and "[" not in words(hint)
        values = ",".join(map(str, value)) if listed else ""
        sweep = f"; a sweep needs -m and values without brackets: -m {key}={values}" if listed else ""
        # the second part of 0,001
        split = isinstance(value, str) and re.fullmatch(r"0\d+", value) and "number" in words(hint)
        point = f"; a decimal number has a point: {key}=0.{value}" if split else ""
        # `evaluate` reads overrides as YAML: {a:0} is a key without a value, and {1:3} a number in base 60
        empty = isinstance(value, dict) and None in value.values() and "mapping" in words(hint)
        blank = f"; a key has no value: write a blank after each colon, '{key}={{a: 0, b: 1}}'" if empty else ""
        raise UserError(f"{key}={_shown(value)}: must be {words(hint)}{sweep}{point}{blank}") from None


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first(value, arguments)
    if origin is Annotated:
        converted = _convert(value, arguments[0])
        if converted not in arguments[1]:
            raise TypeError
        return converted
    if origin is Literal and value in arguments and not isinstance(value, bool):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is list and isinstance(value, list | tuple):
        return [_convert(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_convert(name, arguments[0]): _convert(item, arguments[1]) for name, item in value.items()}
    if hint is str and number:
        return str(value)
    if hint is float and number and math.isfinite(value):
        return value
    if hint in (str, bool, int, NoneType) and isinstance(value, hint) and (hint is not int or number):
        return value
    raise TypeError


def _first(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint)
        except (TypeError, OverflowError):
            continue
    raise TypeError


def _shown(value: object) -> str:
    """Return a value as users type it; a text that reads as a number, a boolean or null has quotes."""
    from resnet_lab.axes import as_typed  # it imports this module

    return f'"{value}"' if isinstance(value, str) and _needs_quotes(value) else as_typed(value)


def _needs_quotes(text: str) -> bool:
    if text.lower() in ("true", "false", "null"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return not re.fullmatch(r"0\d+", text)  # which Hydra reads as text


def words(hint: Any) -> str:
    """Describe a type, following `must be`: `train, val, test or null`."""
    *others, last = _choices(hint)
    return f"{', '.join(others)} or {last}" if others else last


def _choices(hint: Any) -> list[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [choice for argument in arguments for choice in _choices(argument)]
    if hint is bool:
        return ["true", "false"]
    return [str(word) for word in arguments] if origin is Literal else [_kind(hint)]


def _kind(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{words(arguments[0])} {arguments[1]}"
    if origin is list:
        return f"a list [{words(arguments[0])}, …]"
    if origin is dict:
        return f"a mapping {{{words(arguments[0])}: {words(arguments[1])}, …}}"
    return WORDS[hint]
