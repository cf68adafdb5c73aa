"""Errors of Hydra and OmegaConf as one line with a remedy (imports nothing heavy)."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.errors import NO_ROOM, short
from resnet_lab.keys import choices_of, known_keys, no_such_key, suggestion
from resnet_lab.schema import BY_NAME, CHOSEN, PROVIDED, conf_dir
from resnet_lab.signatures import is_ours
from resnet_lab.trust import WELL_KNOWN

NOISE = ("full_key:", "object_type=", "reference_type=", "To append")  # beginnings of lines without information
LABEL_FILES = (".csv", ".tsv")
RESNET = re.compile(r"(wide_?)?resnet_?(\d+)")
FEW_CHOICES = 8  # more are not listed beside a suggestion
IMAGENET_DEPTHS = (18, 34, 50, 101, 152)
EVERY = "**/*"
WRONG_TYPES = {  # words of OmegaConf → the rule
    "could not be converted to Integer": "must be a whole number",
    "could not be converted to Float": "must be a number",
    "is not a valid bool": "must be true or false",
    "is not Optional": "must not be null",
    "is not a ListConfig": "must be a list, in brackets",
}
A_SPACE = "with a space after each colon"
ALIKE = "indent the keys of one group by the same number of spaces"
YAML_FAULTS = {  # words of PyYAML → what is wrong, and the remedy
    r"mapping values are not allowed": (
        "a colon in the wrong place; put a space after the colon of each key (see the line above, too), quote a text "
        f"that contains a colon, and {ALIKE}"
    ),
    r"character '\\t'": "a tab; indent with spaces",
    r"could not find expected ':'": "a key without a colon; write `key: value`",
    r"expected <block end>|expected '<document start>'": f"the indentation differs from the lines above; {ALIKE}",
    r"unexpected end of stream": "a quote is not closed; add the second one",
    r"expected ',' or '(.)'": r"a bracket is not closed; add `\1`, and a comma between values",
    r"duplicate key (.+)": r"the key \1 occurs twice; keep one",
    r"undefined alias|character '(.)' that cannot start|constructor for the tag|scanning an anchor|escape": (
        "a special character at the start of a value, or a backslash; write the text in 'single quotes'"
    ),
    r"but found another document": "a line `---` begins a second document; remove it",
    r"special characters are not allowed": "a control character; remove it",
}


def one_line(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Return the message of an error of Hydra, OmegaConf or the operating system, with its cause, on one line.

    Args:
        error: the error.
        overrides: overrides of the command, for the remedy.
    """
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        remedy = "free some space" if error.errno in NO_ROOM else "choose a sweep_dir that can be written"
        folder = next((each.partition("=")[2] for each in reversed(overrides) if each.startswith("sweep_dir=")), "disk")
        return f"{error.filename or folder}: {error.strerror}; {remedy}"
    if isinstance(error, yaml.YAMLError):
        return _fault_of_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return _wrong_encoding(overrides) or f"a YAML file is not UTF-8 text ({error.reason}); save it as UTF-8"
    if isinstance(error, OverrideParseException):
        return _fault_of_override(error.override)
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, MissingConfigException):
        return _no_such_choice(error)
    if mistake := _mistake_in_file(text, overrides):
        return mistake
    if several := re.search(r"Ambiguous value for argument '(.+)'|Sweep parameters '(.+)' requires", text):
        typed = next(filter(None, several.groups()))
        listed = f"a list is {typed.replace('=', '=[', 1)}]" if "=" in typed else "a list has brackets"
        if decimal := re.fullmatch(r"(.+=0),(\d+)", typed):
            listed += f", and a decimal number has a point, {decimal[1]}.{decimal[2]}"
        return f"{typed}: several values are a sweep, which needs -m: resnet-lab train -m …; {listed}"
    if group := re.search(r"Could not override '(\w+)'\.?\s*No match in the defaults list", text):
        typed = next((each for each in overrides if each.partition("=")[0] == group[1]), f"{group[1]}=NAME")
        if "=" in typed:
            return f"{typed}: there is no such key; for a group of your own YAML files, write +{typed}"
    if (merged := re.search(r"Error merging override (.+)", text)) and (rule := _rule(text)):
        return f"{merged[1]}: {rule}"
    unknown = re.search(r"Key '.*' (?:not in '|is not in struct)", text)
    key = re.search(r"Could not override '(.+)'|full_key: (.+)", text)
    if there := re.search(r"An item is already at '(.+?)'", text):
        return f"{there[1]}: the key exists; write it without the plus sign"
    if unknown and key and key[1] in known_keys() and f"full_key: {key[1]}." in text:
        return f"{key[1]} is a mapping; add to it with +{key[1]}={{…}}"
    if unknown and key:
        name = key[1] or key[2]
        return _for_part_from_outside(name, overrides) or f"{_file_in(text)}{no_such_key(name)}"
    if pointer := re.search(r"Interpolation key '(.+)' not found\s+full_key: (\S+)", text):
        return f"{pointer[2]}: ${{{pointer[1]}}}: {no_such_key(pointer[1])}"
    if broken := re.search(r"at input '(\$\{.*)'\s+full_key: (\S+)", text):
        return f"{broken[2]}: {broken[1]}: write ${{KEY}} with a closing brace"
    if "Incompatible key type 'NoneType'" in text:
        return "a key of a mapping is null, as in labels: {model.pretrained: {null: scratch}}; write none"
    text = str(error).partition("Config search path")[0]
    lines = [line.strip(" .\t") for line in f"{text}\n{error.__cause__ or ''}".splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    return "; ".join([*kept, "resnet-lab train --keys lists all keys"])


def _fault_of_yaml(error: yaml.YAMLError) -> str:
    """Return file, line and remedy of a YAML file or value that cannot be parsed."""
    words = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '') or error}"
    found = ((re.search(pattern, words), text) for pattern, text in YAML_FAULTS.items())
    fault = next((match.expand(text) for match, text in found if match), " ".join(words.split()))
    mark = getattr(error, "problem_mark", None)
    if re.search("not closed", fault):  # the mark is where the file goes on
        mark = getattr(error, "context_mark", None) or mark
    file = short(str(getattr(mark, "name", None) or getattr(error, "name", "")))
    if not Path(file).is_file():  # a value of the command line
        return fault
    return f"{file}: line {mark.line + 1}: {fault}" if mark else f"{file}: {fault}"


def _fault_of_override(typed: str) -> str:
    """Return the remedy for an override that Hydra's grammar cannot read."""
    key, equals, value = typed.partition("=")
    if not equals:
        return f"{typed}: must be KEY=VALUE"
    if key != key.strip():
        return f"{typed}: write {key.strip()}={value.strip()} without spaces"
    if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
        return f"{typed}: a bracket is not closed"
    if value.endswith(","):
        return f"{typed}: the comma at the end has no value after it"
    if inner := re.fullmatch(r"(shuffle|sort|choice|range)\(([\w./]+)=(.+)\)", typed):
        return f"{typed}: write {inner[2]}={inner[1]}({inner[3]})"
    container = value[:1] in ("[", "{")
    if container:  # only the words inside may be quoted, and no key of braces
        value = re.sub(r"(?<=[\[,:{])(\s*)([^\s\[\]{},:\"'][^\[\]{},:\"']*)(?=\s*[\],}])", _word, value)
    quoted = f"{key}={value}" if container else '{}="{}"'.format(key, value.replace('"', ""))
    with suppress(HydraException):
        if not container or isinstance(OverridesParser.create().parse_override(quoted).value(), list | dict):
            return f"{typed}: the value has special characters and needs its own quotes: {shlex.quote(quoted)}"
    given, name = typed.partition("=")[2], key.lstrip("+~")
    if given[0] == "{" and (not given.isascii() or '"' in given or "'" in given) and ":" in given:
        nested = ": {".join(name.split(".")) + f": {given}" + "}" * name.count(".")
        remedy = f"write it in an experiment file: {nested}"
        return f"{typed}: Hydra cannot read this key in braces on the command line; {remedy}"
    return f"{typed}: the brackets cannot be read; write a list as [a,b], and a mapping as {{a: 0, b: 1}}"


def _word(match: re.Match[str]) -> str:
    """Return a word inside brackets, in quotes if it needs them."""
    plain = re.fullmatch(r"[\w./+ -]+", match[2], re.ASCII)
    return match[1] + (match[2] if plain else f'"{match[2]}"')


def _file_in(text: str) -> str:
    """Return `experiment/mine.yaml: ` if an error of Hydra names an experiment file, else nothing."""
    named = re.search(r"In '(experiment/.+?)'", text)
    return f"{named[1]}.yaml: " if named else ""


def _wrong_encoding(overrides: Sequence[str], name: str = EVERY) -> str:
    """Return the message for a file in the user's folders that is not UTF-8 or begins with a byte order mark (BOM).

    Args:
        overrides: overrides of the command; they name the folders.
        name: of the file, without suffix; otherwise the first one that cannot be decoded.
    """
    for folder in re.findall(r"file://((?:\\'|[^'])+)", " ".join(overrides)):
        for file in sorted(Path(folder.replace("\\'", "'")).glob(f"{name}.yaml")):
            with suppress(UnicodeDecodeError):
                if not file.read_text("utf-8").startswith("\ufeff") or name == EVERY:
                    continue
            return f"{short(str(file))}: the file is not UTF-8 without BOM; save it so in your editor"
    return ""


def _mistake_in_file(text: str, overrides: Sequence[str]) -> str:
    """Return the message for a common mistake in an experiment file; empty if the mistake is unknown."""
    named = re.search(r"In '(experiment/.+?)'", text)
    file = f"{named[1]}.yaml" if named else "the experiment file"
    if named and re.search(r"Could not override '[\w/]+@experiment\b|Key '(experiment|_\w+)' not in 'Config'", text):
        return _wrong_encoding(overrides, named[1]) or f"{file}: its first line must be `# @package _global_`"
    if named and "Cannot merge DictConfig with ListConfig" in text:
        return f"{file}: it contains a list; write `key: value` lines, without a dash in front"
    if group := re.search(r"(\w+) is not a subclass of (\w+)Config\. value: (.+)", text):
        remedy = f"write `key: value` lines below it, {A_SPACE}"
        return f"{file}: {group[2].lower()}: {group[3]}: must be a group of keys; {remedy}"
    if listed := re.search(r"Invalid defaults list in '(.+?)'", text):
        return f"{listed[1]}.yaml: defaults must be a list; write `- override /optim: adamw`, with a dash in front"
    if twice := re.search(r"Multiple values for (\w+)\. .*'override \w+: (.+)'", text):
        return f"{file} chooses {twice[1]} without override; write `override /{twice[1]}: {twice[2]}` in its defaults"
    if slash := re.search(r"Could not override 'experiment/(\w+)@", text):
        return f"{file}: a group needs a slash; write `override /{slash[1]}: …` in its defaults"
    wrong = re.search(r"ValidationError raised while composing config:\n(.+)\n\s*full_key: (\S+)", text)
    return f"{file}: {wrong[2]}: {_rule(wrong[1]) or wrong[1]}" if wrong else ""


def _rule(text: str) -> str:
    """Return the rule that a value of a wrong type breaks; empty if the text of OmegaConf names no known one."""
    rule = next((rule for words, rule in WRONG_TYPES.items() if words in text), "")
    value = re.search(r"Value '(.*)' of type|Value '(.*)' is not a valid", text)
    swept = "; write the values of a sweep in hydra.sweeper.params, such as seed: 0,1" if "'ListConfig'" in text else ""
    if value and re.fullmatch(r"\d+(\.\.|:|-)\d+", str(value[1])):
        swept = "; the values 0, 1, 2 of a sweep are range(0,3), with -m"
    return rule + (f", not {value[1] or value[2]}{swept}" if rule and value else "")


def with_file(message: str, overrides: Sequence[str], config_dir: str | Path) -> str:
    """Put the user's YAML file in front of an error that begins with a key which only this file sets.

    A file with a wrong structure gets its own message, as the error is only a consequence.

    Args:
        message: `data.imagesize: …` or `data.image_size=big: …`.
        overrides: overrides of the command.
        config_dir: folder of the user's YAML files; empty: there is none.
    """
    key = re.match(r"[\w./]+", message)
    typed = [each.partition("=")[::2] for each in overrides]
    if not config_dir:
        return message
    for group, name in typed:
        file = Path(config_dir) / group / f"{name}.yaml"
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
            content = yaml.safe_load(file.read_text("utf-8"))
            if group == "experiment" and (fault := _fault_of_structure(content)):
                return f"{group}/{name}.yaml: {fault}"
            if not key or key[0] in [name.lstrip("+~") for name, _ in typed]:
                continue
            own = key[0] if group == "experiment" else key[0].removeprefix(f"{group}.")
            if _sets(content, own.split(".")) or _sets(content, ["hydra", "sweeper", "params", own]):
                return f"{group}/{name}.yaml: {message}"
    return message


def _fault_of_structure(content: object) -> str:
    """Return what is wrong with the keys of an experiment file, and the remedy; empty if they are well placed."""
    for key, value in content.items() if isinstance(content, dict) else ():
        group, _, own = str(key).partition(".")
        if own and group in CHOSEN:
            return f"{key}: write `{group}:`, and below it, indented, `{own}: {value}`"
        if value is None and key in (*PROVIDED, "trainer", *BY_NAME):
            return f"{key}: nothing stands below it; remove the line, or write `key: value` lines below it, indented"
        if key in CHOSEN and isinstance(value, str):
            if value in choices_of(key):
                return f"{key}: {value}: a choice belongs in `defaults`; write `- override /{key}: {value}` there"
            if meant := difflib.get_close_matches(value, choices_of(key), n=1):
                remedy = f"did you mean `- override /{key}: {meant[0]}` in `defaults`?"
                return f"{key}: {value}: there is no such choice; {remedy}"
            return f"{key}: {value}: must be a group of keys; write `key: value` lines below it, {A_SPACE}"
        if key in CHOSEN and (place := _split_by_comma(value)):
            return f"{key}.{place}: a comma separates keys here; a decimal number has a point, and a list brackets"
    return ""


def _split_by_comma(content: object) -> str:
    """Return the key before a number that YAML has taken for a key, as in `{lr: 0,1}`; empty if there is none."""
    before = ""
    for key, value in content.items() if isinstance(content, dict) else ():
        if value is None and before and re.fullmatch(r"[\d.]+(e[+-]?\d+)?", str(key)):
            return before
        if key == "labels":  # its keys may be numbers
            continue
        if inner := _split_by_comma(value):
            return f"{key}.{inner}"
        before = str(key)
    return ""


def _sets(content: object, parts: Sequence[str]) -> bool:
    """Return whether nested mappings have a key, given as its parts."""
    for part in parts:
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _no_such_choice(error: MissingConfigException) -> str:
    """Return the message for a choice of a group that does not exist, with the choices and a hint."""
    place = str(error.missing_cfg_file)
    group, _, name = place.partition("/") if place.partition("/")[0] in CHOSEN else place.rpartition("/")
    file = str(error).partition("In '")[2].partition("'")[0]
    inner, _, choice = name.partition("/")
    if group == "experiment" and inner in CHOSEN and not error.options:
        return f"{file}.yaml: a group needs override and a slash; write `override /{inner}: {choice}` in its defaults"
    typed = f"{'' if file in ('config', 'hydra/config') else f'{file}.yaml: '}{group}={name}"
    choices = [each for each in error.options or choices_of(group) if not each.startswith("_")]
    close = difflib.get_close_matches(name, choices, n=1)
    meant = _meant(group, name) or (f"{group}={close[0]}" if close else "")
    hints = [f"did you mean {meant}?"] if meant else []
    if not meant or len(choices) <= FEW_CHOICES:
        hints.append(f"choose {', '.join(choices)}")
    if group == "experiment":
        hints.append(f"--config-dir DIR reads your own DIR/experiment/{Path(name).name.removesuffix('.yaml')}.yaml")
    return f"{typed}: there is no such choice; {'; '.join(hints)}"


def _meant(group: str, name: str) -> str:
    """Return the words to type for what is no choice of a group but has another form; empty if nothing is known."""
    if group == "experiment":
        stem = Path(name).name.removesuffix(".yaml")  # users type the file
        found = [*Path.cwd().glob(f"*/experiment/{stem}.yaml"), *Path.cwd().glob(f"*/experiment/{stem}.yml")]
        if found and found[0].suffix == ".yml":
            return f"{short(str(found[0]))}, which needs the suffix .yaml"
        return f"--config-dir {shlex.quote(found[0].parents[1].name)} experiment={stem}" if found else ""
    if group == "data" and (folder := Path(name).expanduser()).is_dir():
        tables = (file for depth in ("*", "*/*") for file in folder.glob(depth) if file.suffix in LABEL_FILES)
        form = "retinopathy" if next(tables, None) else "class_folders"
        return f"data={form} data.root={shlex.quote(name)}"
    if group == "model" and (resnet := RESNET.match(name)):
        depth = int(resnet[2])
        form = "resnet_wide" if resnet[1] else "resnet" if depth in IMAGENET_DEPTHS else "resnet_cifar"
        return f"model={form} model.depth={depth}"
    if group in BY_NAME and "." in name.strip("."):
        return f"+{group}.mine._target_={name}"
    known = {each.rpartition(".")[2].lower(): each for each in sorted(WELL_KNOWN.get(group, ()))}
    target = known.get(name.lower(), name if "." in name.strip(".") and group in PROVIDED else None)
    return f"{group}=own {group}._target_={target}" if target else ""


def _for_part_from_outside(key: str, overrides: Sequence[str]) -> str:
    """Return the message for an unknown key of a part that is not resnet_lab's; empty if it is not of such a part."""
    group, name = f"{key}..".split(".")[:2]
    typed = next((each for each in overrides if each.partition("=")[0] == key), "")
    if not typed or group not in (*PROVIDED, *BY_NAME):
        return ""
    chosen = [each for each in overrides if each != typed and _chooses(each.lstrip("+").partition("=")[0])]
    with suppress(HydraException, OmegaConfBaseException), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(chosen)
        config = compose(
            "config", [text for text, each in zip(chosen, parsed, strict=True) if not each.is_sweep_override()]
        )
        part = config[group].get(name) if group in BY_NAME else config[group]
        if part is None and not suggestion(key, known_keys()):
            return f"{key}: there is no such key; write +{typed} to add it"
        if isinstance(part, DictConfig) and (target := _foreign(part)):
            close = difflib.get_close_matches(key.rpartition(".")[2], [*map(str, part)], n=1, cutoff=0.8)
            if close:
                return f"{key}: there is no such key; did you mean {key.rpartition('.')[0]}.{close[0]}?"
            return f"{key}: conf/{group} has no such key; write +{typed} to pass it to {target}"
    return ""


def _chooses(key: str) -> bool:
    """Return whether an override of this key chooses a part."""
    return key in (*CHOSEN, "hydra.searchpath") or key.endswith("._target_")


def _foreign(part: DictConfig) -> str:
    """Return the `_target_` of a part that is not resnet_lab's; empty if it is."""
    if OmegaConf.is_missing(part, "_target_"):
        return "the part"
    target = str(part.get("_target_"))
    return "" if is_ours(target) else target
