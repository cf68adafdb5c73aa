"""`resnet-lab VERB …`: the verbs, each a module of its own; imports nothing heavy."""

from __future__ import annotations

import difflib
import os
import runpy
import shlex
import sys
import textwrap
import time
from argparse import Namespace
from pathlib import Path

from resnet_lab import supervisor
from resnet_lab.command_line import run_command, show, version
from resnet_lab.errors import UserError
from resnet_lab.keys import WIDTH, about, as_text, known_keys, matching, topic_of
from resnet_lab.terminal import is_terminal
from resnet_lab.verbs import LAUNCHER, STATES, TASKS, VERBS

ABOUT = "Train, compare and trust residual networks on retinopathy photographs."
SLOW = ("evaluate", "predict", "prepare", "report", "combine")  # whose imports take seconds
LAUNCHERS = ("hydra/launcher", "launcher", "joblib", "slurm")
OTHERS = {
    "resnet-lab VERB --help": "arguments, options and examples of a verb",
    "resnet-lab help KEY": "explain a key, a score, or a term",
    "resnet-lab --version": "the version",
    "python -m resnet_lab.job RUN_DIR": "start or resume the job of a run folder",
}


def overview() -> str:
    """The verbs, by task."""
    lines = ["usage: resnet-lab VERB …", "", ABOUT]
    for task, names in TASKS.items():
        lines += ["", f"{task}:"]
        for name in names:
            first = VERBS[name]().about.partition(". ")[0].rstrip(".")
            lines += textwrap.wrap(first, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
    return "\n".join([*lines, "", *(f"  {command:<34}{text}" for command, text in OTHERS.items())])


def help_on(words: list[str]) -> str:
    """The help of a verb, or what the words stand for: keys, options, scores or terms of the report."""
    if len(words) == 1 and words[0] in VERBS:
        return VERBS[words[0]]().format_help()
    phrase = " ".join(words)
    if topic := topic_of(phrase):
        return "\n".join(filter(None, (_explained(phrase), as_text(topic).rstrip())))
    if " " in phrase and (text := _explained(phrase) or as_text(about(phrase)).rstrip()):
        return text
    texts, patterns = list[str](), list[str]()
    for word in words:
        text = _explained(word)
        texts += [text] if text else []
        if text and len(word) < 2:  # n: a term, and a part of nearly every key
            continue
        try:
            patterns += [word] if matching([word]) else []
        except UserError as error:
            if not text and about(word):
                texts.append(as_text(about(word)).rstrip())
            elif not text:
                raise UserError(str(error).replace("no such key", "no such key, score or term", 1)) from error
    keys = as_text(matching(patterns)) if patterns else ""
    return "\n".join([*texts, keys]).rstrip() if words else overview()


def _explained(word: str) -> str:
    """Explain an option of a verb, a state, a launcher, a score, or a term; empty if the word is a key or unknown."""
    if word in known_keys():
        return ""
    from resnet_lab.report.glossary import explained  # imports numpy

    found = dict[str, str]()
    for name, verb in VERBS.items():
        found |= {f"{shape} of {name}": text for shape, text in verb().about_option(word).items()}
    lines = list[str]()
    if word in STATES:
        found[f"{word} (state of a job)"] = STATES[word]
    if word in LAUNCHERS:
        found["hydra/launcher"] = LAUNCHER
    for name, text in (found | explained(word)).items():
        lines += [name, *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)


def command(words: list[str]) -> None:
    """Let the module of a verb replace this process, as `python -m` would start it.

    Raises:
        UserError: there is no such verb, or the verb does not understand its words.
    """
    verb, *others = words or ["help"]
    if verb in ("-h", "--help", "help"):
        show(help_on(others))
    elif verb == "--version":
        show(version())
    elif verb in VERBS:
        given = VERBS[verb]().read(others)  # what is wrong here shows before anything heavy is imported
        if verb in ("evaluate", "predict"):
            from resnet_lab import inputs  # imports numpy

            (inputs.check_evaluate if verb == "evaluate" else inputs.check_predict)(given)
        if verb in SLOW and (is_terminal() or sys.stderr.isatty()):  # the result may go to a file or a pipe
            line = f"{time.strftime('%H:%M:%S')}  loading the program"
            print(line, file=sys.stdout if is_terminal() else sys.stderr, flush=True)
        if verb == "train":
            start_training(given, others)
        else:
            os.execv(sys.executable, [sys.executable, "-m", f"resnet_lab.{verb}", *others])
    elif verb == "job":
        raise UserError(f"no verb 'job'; write python -m resnet_lab.job {shlex.join(others) or 'RUN_DIR'}")
    else:
        close = difflib.get_close_matches(verb, [*VERBS, "help", "--help", "--version"], n=1)
        meant = f"did you mean {close[0]}?" if close else f"choose {', '.join(VERBS)}"
        raise UserError(f"no verb {verb!r}; {meant} (see resnet-lab --help)")


def start_training(given: Namespace, words: list[str]) -> None:
    """Run `python -m resnet_lab.train WORDS` in this process, whose supervisor imports PyTorch in the meantime."""
    if supervisor.serves(given):
        supervisor.begin()
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())  # as with `python -m`, and not the folder of the installed command
    sys.argv = [sys.argv[0], *words]
    runpy.run_module("resnet_lab.train", run_name="__main__", alter_sys=True)


def main() -> int:
    """Run the command; its exit code."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
