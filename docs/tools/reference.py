"""`python docs/tools/reference.py`: write docs/reference/keys.md and verbs.md, from conf/ and the help of the verbs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from resnet_lab.keys import all_keys, choices_of, described
from resnet_lab.verbs import VERBS, job

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
KEYS = """# Keys

Every key of the configuration. Set a key as `KEY=VALUE` on the command line, or in an
[experiment file of your own](../tutorials/photographs.md). `resnet-lab help KEY` prints the same text.
"""
VERBS_ABOUT = """# Verbs

The command is `resnet-lab VERB …`. `resnet-lab VERB --help` prints the same text.

| exit code | meaning |
|---:|---|
| 0 | everything is done |
| 1 | `train`: a job failed or was not started; `report --check`: a metric differs; any verb: output was not written |
| 2 | the command line, a configuration or an input is wrong; nothing was started |
| 130, 143 | stopped by Ctrl-C, or by SIGTERM |
"""

HELP = """## help

- `resnet-lab help VERB` prints the same as `resnet-lab VERB --help`.
- `resnet-lab help KEY` prints meaning, values and default of a [key](keys.md). `KEY` is a key, a group, a part of a
  name, or a pattern: `data.batch_size`, `data`, `batch`, `data.*`.
- `resnet-lab help WORD` explains a score or another term of the report, or an option: `qwk`, `referable`, `out`.
  It also explains a state of `status`, and a word from the meaning of keys: `planned`, `learning rate`.
  `help metric` lists all scores.
"""


def keys() -> Iterator[str]:
    """A section for each group, with its choices, and one for each key, so that the search finds it."""
    for group in dict.fromkeys(key.group for key in all_keys()):
        yield f"## {group or 'Top level'}"
        if group:
            yield "\n".join(f"- `{group}={choice}`: {plain(text)}" for choice, text in choices_of(group).items())
        for name, meaning, allowed, defaults in described([key for key in all_keys() if key.group == group]):
            values = [f"- values: {plain(allowed)}"] if allowed else []
            shown = [plain(re.sub("  (.+)", r" (\1)", each)) for each in defaults]
            default = (
                [f"- default: {shown[0]}"] if len(shown) == 1 else ["- default:", *(f"    - {each}" for each in shown)]
            )
            yield "\n".join([f"### `{name}`\n", f"{plain(meaning)}\n", *values, *default])


def plain(text: str) -> str:
    """A text without the meaning that Markdown gives its characters."""
    return re.sub(r"([*_\[\]\\`])", r"\\\1", text).replace("<", "&lt;")


def verbs() -> str:
    """A section with the help of each verb."""
    helps = [each().format_help() for each in (*VERBS.values(), job)]
    names = [*VERBS, "python -m resnet_lab.job"]
    sections = (f"## {name}\n\n```text\n{text}\n```\n" for name, text in zip(names, helps, strict=True))
    return "\n".join([VERBS_ABOUT, *sections, HELP])


def main() -> None:
    """Write both pages."""
    (REFERENCE / "keys.md").write_text("\n\n".join([KEYS, *keys()]) + "\n", encoding="utf-8")
    (REFERENCE / "verbs.md").write_text(verbs(), encoding="utf-8")


if __name__ == "__main__":
    main()
