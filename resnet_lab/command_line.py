"""Command lines: parsing, help, log format, and what every command does first and last."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NoReturn

from resnet_lab.errors import UserError, on_one_line, one_line_of, printable
from resnet_lab.keys import WIDTH, known_keys, suggestion


def stop_printing() -> None:
    """Discard further output, as its reader has exited (`| head`); Python would otherwise print an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(text: str) -> None:
    """Print a text; stop without an error if its reader has exited."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        stop_printing()


def version() -> str:
    """Return `resnet-lab 0.1.0`."""
    from importlib import metadata  # takes 20 ms

    return f"resnet-lab {metadata.version('resnet-lab')}"


class Show(argparse.Action):
    """Option that prints a text and exits.

    Args:
        text: function that returns the text for the values of the option.
        keywords: arguments of `argparse.Action`.
    """

    def __init__(self, text: Callable[[list[str]], str], **keywords: Any) -> None:
        super().__init__(**keywords)
        self.text = text

    def __call__(self, parser: argparse.ArgumentParser, _: object, values: Any, option: str | None = None) -> None:
        show(self.text(values))
        parser.exit()


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help of 80 columns; an option whose metavar begins with `=` is shown as `key=VALUE`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=22, width=WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shape = str(action.metavar)
        return f"{action.dest}{shape}" if shape.startswith("=") else super()._format_action_invocation(action)


class Verb(argparse.ArgumentParser):
    """Parser of a verb (`train`, `report`, …) and its help.

    Args:
        prog: command that users type.
        about: description.
        writes: lines that describe the files it writes.
        examples: command lines.
        more: function that returns further sections of the help.
    """

    def __init__(
        self, prog: str, about: str, writes: Sequence[str], examples: Sequence[str], more: Callable[[], str] = str
    ) -> None:
        described = textwrap.fill(about, WIDTH)
        super().__init__(prog, prog, described, formatter_class=_Format, add_help=False, allow_abbrev=False)
        self.about, self.writes, self.examples, self.more = about, writes, examples, more
        self.shape = list[str]()  # words of the usage line
        self.known = dict[str, str]()  # option with dashes → as users type it
        self.arguments, self.options = self.add_argument_group("arguments"), self.add_argument_group("options")
        self.flag("-h", "--help", action=Show, nargs=0, text=lambda _: self.format_help(), help="show this help")
        self.flag("--version", action=Show, nargs=0, text=lambda _: version(), help="show the version")
        self.shape.clear()

    def argument(self, name: str, text: str, several: bool = False) -> None:
        """Add a positional argument."""
        self.shape.append(f"{name} …" if several else name)
        self.arguments.add_argument(name, nargs="+" if several else None, help=text)

    def takes_keys(self, text: str) -> None:
        """Collect every other `KEY=VALUE` in `overrides` of the configuration."""
        self.shape.append("[KEY=VALUE …]")
        self.arguments.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=text)

    def option(self, key: str, shape: str, text: str, default: Any = None, **keywords: Any) -> None:
        """Add an option that users type as `key=SHAPE` (or `--key SHAPE`)."""
        shown = f" (default: {'false' if default is False else default})" if default not in (None, []) else ""
        self.options.add_argument(f"--{key}", metavar=f"={shape}", help=f"{text}{shown}", default=default, **keywords)
        self.known[f"--{key}"] = f"{key}={shape}"
        self.shape.append(f"[{key}={shape}]")

    def about_option(self, key: str) -> dict[str, str]:
        """Return `key=SHAPE` → help text of an option; empty if there is none of this name."""
        shape = self.known.get(f"--{key}", "")
        texts = [str(each.help) for each in self._actions if f"--{key}" in each.option_strings and "=" in shape]
        return dict.fromkeys(texts and [shape], "".join(texts))

    def flag(self, *names: str, **keywords: Any) -> None:
        """Add an option with dashes; without the keyword `help` it is not in the help."""
        shape = [keywords["metavar"]] if "metavar" in keywords else []
        self.options.add_argument(*names, **{"help": argparse.SUPPRESS} | keywords)
        self.known |= {name: name for name in names}
        self.shape += [f"[{' '.join((names[0], *shape))}]"] if "help" in keywords else []

    def format_help(self) -> str:
        """Return usage, arguments, options, files written, and examples."""
        words = " ".join(word.replace(" ", "\xa0") for word in self.shape)  # no line break within a word
        indent = " " * len(f"usage: {self.prog} ")
        lines = textwrap.wrap(words, WIDTH - len(indent), break_on_hyphens=False)
        self.usage = f"{self.prog} {f'{chr(10)}{indent}'.join(lines)}".replace("\xa0", " ")
        sections = [self.more(), "files written:", *self.writes, "", "examples:", *self.examples]
        self.epilog = "\n".join(sections)
        return super().format_help().rstrip()

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line.

        Raises:
            UserError: an argument is unknown, given twice, empty or missing.
            SystemExit: with code 0, after an option such as `--help`.
        """
        typed = [f"--{word}" if "=" in word and f"--{word.partition('=')[0]}" in self.known else word for word in words]
        for word in typed:
            self._refuse_slips(word)
        keys = [word.partition("=")[0] for word in typed if word.startswith("--") and "=" in word]
        if twice := [key for key in keys if keys.count(key) > 1 and key != "--trust"]:
            self.error(f"{twice[0][2:]}= is given twice")
        if empty := [word[:-1] for word in typed if word.startswith("--") and word.endswith("=")]:
            self.error(f"{empty[0][2:]}= has no value; write {self.known.get(empty[0], 'one')}, or leave it out")
        given = self.parse_intermixed_args(typed)
        for word in given.overrides if "overrides" in given else ():
            if "=" not in word and not word.startswith("~"):
                self.error(f"{word}: must be KEY=VALUE{self._written(word, typed)}")
        return given

    def _written(self, word: str, typed: Sequence[str]) -> str:
        """Return `; write …` for a word without `=`: spaces in `KEY=VALUE`, a folder, or a split."""
        place = typed.index(word)
        before, after = typed[place - 1 : place], typed[place + 1 : place + 3]
        typed_so_far = next((each for each in reversed(typed[:place]) if "=" in each), "")
        if typed_so_far.count("{") > typed_so_far.count("}"):
            inside = typed[typed.index(typed_so_far) :]
            last = next((number for number, each in enumerate(inside) if each.endswith("}")), 0)
            return f"; write {shlex.quote(' '.join(inside[: last + 1]))}" if last else "; close the brace, and quote it"
        if before and before[0].endswith((",", "=")):
            return f"; write {before[0]}{word} without a space"
        if before and word[0].isdigit() and before[0].partition("=")[2][:1].isdigit():
            return f"; write {before[0]},{word}"
        if word in known_keys() and after and "=" not in after[0]:
            return f"; write {word}={after[0]}"
        if after and after[0].startswith("="):
            return f"; write {''.join([word, *after][: 3 if after[0] == '=' else 2])} without spaces"
        images = self.prog.endswith("predict") and all("=" not in each for each in typed[: place + 1])
        # of a name too long for the system, only os.path says that it does not exist
        if images and (os.path.exists(word) or all(Path(each).suffix for each in typed[place - 1 : place + 1])):  # noqa: PTH110
            return ", and one image or folder is read: put the images into one folder"
        if "--split" in self.known and word in ("train", "val", "test"):
            return f"; write split={word}"
        if any((Path(word) / name).exists() for name in ("config.yaml", "jobs.txt")):  # a run or a sweep
            return f"; write sweep_dir={word}"
        return f"; write data.root={word}" if Path(word).is_dir() else ""

    def _refuse_slips(self, word: str) -> None:
        """Refuse an unknown option, and `KEY=VALUE` if KEY resembles an option and is no key."""
        key, equals, _ = word.partition("=")
        if key in self.known:
            return
        meant = self._meant(word)
        nearly = equals and meant and key.isidentifier() and key not in known_keys() and not Path(word).exists()
        if word.startswith("-") or nearly:
            self.error(f"{word}: there is no such option{meant}")

    def _meant(self, word: str) -> str:
        """Return `; did you mean …?` if an option has a similar name."""
        names = {option.lstrip("-"): shown for option, shown in self.known.items() if option.startswith("--")}
        typed, _, value = word.lstrip("-").partition("=")
        close = difflib.get_close_matches(typed, names, n=1, cutoff=0.7)
        takes_keys = any(action.dest == "overrides" for action in self._actions)
        if takes_keys and word.startswith("-") and typed in known_keys():
            return f"; keys have no dashes: {typed}={value or '…'}"
        if close:
            return f"; did you mean {names[close[0]]}?"
        return f"; {hint}" if takes_keys and (hint := suggestion(typed, known_keys())) else ""

    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse as `UserError`."""
        text = message.replace("the following arguments are required:", "missing")
        if text == "missing DIR" and Path("runs").is_dir():
            text += f"; write {self.prog} runs"
        text = re.sub(r"^argument \S+ (?=\S*[=:]|--)", "", text)
        raise UserError(f"{text} (see {self.prog} --help)")


class PrintableFormatter(logging.Formatter):
    """Format log lines with the time; control characters and line breaks in names from files are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; only a message without arguments (a table, a traceback) keeps its line breaks."""
        shown = copy(record)
        if isinstance(record.args, tuple):
            texts = (on_one_line(str(each)) if isinstance(each, str | Path) else each for each in record.args)
            shown.args = tuple(texts)
        return printable(super().format(shown))


def log_to(handlers: Sequence[logging.Handler], level: int = logging.INFO, alone: bool = False) -> None:
    """Send the log to these handlers; `alone` removes earlier ones."""
    for handler in handlers:
        handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=level, handlers=handlers, force=alone)


def begin() -> None:
    """Print characters that the terminal cannot encode as `?`, and create a home folder if the user has none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path raises an error
        home = os.path.join(tempfile.gettempdir(), f"resnet_lab_{os.getuid()}")  # noqa: PTH118
        os.makedirs(home, mode=0o700, exist_ok=True)  # noqa: PTH103
        os.environ["HOME"] = home
        print(f"this user has no home folder (HOME is not set); caches are written to {home}", file=sys.stderr)


def run_command(command: Callable[[list[str]], None]) -> int:
    """Run a verb and return the exit code; an error of the user is one line and code 2, Ctrl-C one line and 130."""
    begin()
    try:
        command(sys.argv[1:])
    except BrokenPipeError:
        stop_printing()
        return 0
    except (UserError, OSError) as error:
        print(f"error: {one_line_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # after ^C
        print(f"{start}stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
