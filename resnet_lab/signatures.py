"""Arguments of a `_target_`: our own functions are parsed, others are imported."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from resnet_lab import values
from resnet_lab.errors import UserError, reason_of
from resnet_lab.trust import refuse_reexported

REQUIRED = inspect.Parameter.empty
EXTRAS = {  # `_target_` of an optional dependency → our extra that installs it
    "timm.create_model": "timm",
    "lightning.pytorch.loggers.WandbLogger": "wandb",
    "lightning.pytorch.loggers.MLFlowLogger": "mlflow",
}


class Arguments(NamedTuple):
    """Arguments of a function or class."""

    defaults: dict[str, Any]  # name → default, or REQUIRED, in order
    others: bool  # whether it accepts other keywords (`**kwargs`)

    @property
    def required(self) -> set[str]:
        """The names without a default."""
        return {name for name, default in self.defaults.items() if default is REQUIRED}


def is_ours(target: str) -> bool:
    """Return whether a dotted name belongs to this package."""
    return target.startswith("resnet_lab.")


def hashes_of_code(targets: Iterable[str]) -> dict[str, str]:
    """Return the hash of the file of each part that is neither resnet_lab's nor an installed package's.

    Args:
        targets: dotted names of parts that are imported.
    """
    found = {}
    for target in sorted(target for target in targets if not is_ours(target)):
        file = getattr(sys.modules.get(target.rpartition(".")[0]), "__file__", None)
        if file and not {"site-packages", "dist-packages"} & {*Path(file).parts} and Path(file).is_file():
            found[target] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return found


def installation(target: str) -> str:
    """Return how to install the package that a `_target_` needs."""
    return f"pip install 'resnet-lab[{EXTRAS[target]}]'" if target in EXTRAS else "install it"


def imported(group: str, target: str) -> Any:
    """Return the function or class that a `_target_` names.

    Raises:
        UserError: it does not exist, its module raises an error, it cannot be called, or trust does not cover it.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise UserError(f"{group}._target_ {target}: name it with its module, such as {target}.Net")
    try:
        content = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = error.name or module
        if not f"{module}.".startswith(f"{lacking}."):
            remedy = installation(target)
            raise UserError(f"{group}._target_ {target}: {module} needs the module {lacking}; {remedy}") from error
        remedy = f"{installation(target)}, or start the command in the folder that contains it"
        raise UserError(f"{group}._target_ {target}: there is no module {lacking}; {remedy}") from None
    except (Exception, SystemExit) as error:
        reason = reason_of(error)
        raise UserError(f"{group}._target_ {target}: importing {module} fails ({reason}); fix the module") from error
    found = getattr(content, name, None)
    if found is None:
        close = difflib.get_close_matches(name, [each for each in vars(content) if not each.startswith("_")], n=1)
        meant = f"; did you mean {module}.{close[0]}?" if close else ""
        raise UserError(f"{group}._target_ {target}: {module} has no {name}{meant}")
    if not callable(found):
        raise UserError(f"{group}._target_ {target} is a {type(found).__name__}; name a function or class")
    refuse_reexported(group, target, found)
    return found


def arguments_of(group: str, target: str) -> Arguments:
    """Return the arguments of a `_target_`, without `self`.

    Raises:
        UserError: see `imported`.
    """
    try:
        parameters = inspect.signature(imported(group, target)).parameters
    except (ValueError, TypeError):  # C functions without a signature
        return Arguments({}, others=True)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    defaults = {name: each.default for name, each in parameters.items() if each.kind not in several}
    return Arguments(defaults, any(each.kind is several[1] for each in parameters.values()))


@cache
def signature(target: str) -> tuple[set[str], set[str]]:
    """Return the required and the optional arguments of our own function or dataclass, parsed from its source.

    Parsing saves the time and memory of importing torch in the process that only launches jobs.

    Args:
        target: dotted name, as in `_target_`.

    Raises:
        UserError: there is no such module or name.
    """
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not module:
        raise UserError(f"_target_ {target}: there is no module {module or target}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"_target_ {target}: {module} is not a Python source file; its arguments cannot be read")
    tree = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class_arguments(node, module, tree)
    raise UserError(f"_target_ {target}: {module} defines no {name}")


@cache
def _parsed(module: str) -> ast.Module:
    """Return the syntax tree of one of our modules."""
    origin = str(getattr(importlib.util.find_spec(module), "origin", ""))
    return ast.parse(Path(origin).read_text(encoding="utf-8"))


def ordinal_losses() -> set[str]:
    """Return the dotted names of our losses of grades, parsed from `objectives`, whose import would need torch."""
    module = "resnet_lab.objectives"
    lines = (node for node in _parsed(module).body if isinstance(node, ast.Assign))
    value = next(node.value for node in lines if ast.unparse(node.targets[0]) == "ORDINAL")
    return {f"{module}.{name}" for name in ast.literal_eval(value)}


@cache
def hints_of(target: str) -> dict[str, Any]:
    """Return the annotated types of the arguments of our own function or dataclass, if `values` supports them.

    Args:
        target: dotted name, as in `_target_`; empty for a name outside this package.
    """
    if not target.startswith("resnet_lab."):
        return {}
    module, _, name = target.rpartition(".")
    tree = _parsed(module)
    known = {each.__name__: each for each in (str, int, float, bool, list, dict)} | vars(values)
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _hints({each.arg: each.annotation for each in (*node.args.args, *node.args.kwonlyargs)}, known)
        if isinstance(node, ast.ClassDef) and node.name == name:
            if (constructor := _constructor(node)) is not None:
                return _hints({each.arg: each.annotation for each in constructor.args.args}, known)
            for base in _bases(node, module, tree):
                found |= hints_of(base)
            own = (each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name))
            return found | _hints({ast.unparse(each.target): each.annotation for each in own}, known)
        if isinstance(node, ast.Assign):  # a type that the module defines
            known |= {ast.unparse(node.targets[0]): hint for hint in _hints({"": node.value}, known).values()}
    return found


def keys_in(module: str, *names: str) -> tuple[str, ...]:
    """Return the keys of dictionaries that one of our modules defines, parsed from its source.

    Args:
        module: dotted name of the module.
        names: names of the dictionaries.
    """
    found = dict[str, list[str]]()
    for node in _parsed(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    return tuple(key for name in names for key in found[name])


def defaults_in(module: str, name: str) -> dict[str, Any]:
    """Return the fields with a default of a dataclass that one of our modules defines, parsed from its source."""
    for node in _parsed(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = (each for each in node.body if isinstance(each, ast.AnnAssign) and each.value is not None)
            return {ast.unparse(each.target): ast.literal_eval(each.value) for each in fields if each.value}
    return {}


def _hints(annotations: Mapping[str, ast.expr | None], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations that consist of known types."""
    found = {}
    for argument, annotation in annotations.items():
        names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)} if annotation else {""}
        if annotation is not None and names <= {*known} - {"Any"}:
            found[argument] = eval(ast.unparse(annotation), dict(known))
    return found


def _arguments(arguments: ast.arguments) -> tuple[set[str], set[str]]:
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    with_default = set(positional[len(positional) - len(arguments.defaults) :])
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        positional.append(argument.arg)
        with_default |= {argument.arg} if default is not None else set()
    return set(positional) - with_default - {"self"}, with_default


def _bases(node: ast.ClassDef, module: str, tree: ast.Module) -> list[str]:
    """Return the dotted names of the classes that a class of this module derives from."""
    imported = {
        alias.asname or alias.name: f"{statement.module}.{alias.name}"
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    names = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != "ABC"]
    return [imported.get(name, f"{module}.{name}") for name in names]


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = (each for each in node.body if isinstance(each, ast.FunctionDef))
    return next((each for each in functions if each.name == "__init__"), None)


def _class_arguments(node: ast.ClassDef, module: str, tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the arguments of `__init__`, or the fields of a dataclass and its bases."""
    if (constructor := _constructor(node)) is not None:
        return _arguments(constructor.args)
    required: set[str] = set()
    optional: set[str] = set()
    for base in _bases(node, module, tree):
        more = signature(base)
        required, optional = required | more[0], optional | more[1]
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            (required if statement.value is None else optional).add(statement.target.id)
    return required - optional, optional
