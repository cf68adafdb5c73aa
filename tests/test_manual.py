"""Every command and example of README and the manual is right, and runs on tiny data.

- A block with a `title` is a file.
- Of a block `bash` the lines of `resnet-lab` and `python -m resnet_lab.job` run, in the order of the page.
- A block `python` is executed.

A comment before a block changes that. `<!-- test: gpu -->` and `<!-- test: cluster -->`: commands are composed only.
`<!-- test: fails -->`: they end with an error. Pages of results are records of their commits, and no part of this.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from fake_data import write_aptos, write_class_folders, write_kaggle, write_photographs
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import resnet_lab
import resnet_lab.train as train
from resnet_lab import supervisor
from resnet_lab.config import check, compose_config
from resnet_lab.errors import UserError
from resnet_lab.keys import all_keys, known_keys
from resnet_lab.report.glossary import TERMS
from resnet_lab.run_folder import RunFolder
from resnet_lab.scores import SCORES
from resnet_lab.supervisor import Supervisor
from resnet_lab.tensorboard import names_of
from resnet_lab.verbs import VERBS, job

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ("reference/keys.md", "reference/verbs.md")
PAGES = {
    "README.md": ROOT / "README.md",
    **{
        name: file
        for file in sorted((ROOT / "docs").rglob("*.md"))
        if (name := str(file.relative_to(ROOT / "docs"))) not in GENERATED and not name.startswith("results/")
    },
}
BLOCK = re.compile(
    r'(?:<!-- test: (?P<marker>.+?) -->\n)?^```(?P<kind>\w*)(?: title="(?P<file>.+?)")?\n(?P<text>.*?)^```$',
    re.S | re.M,
)
COMPOSED_ONLY = ("gpu", "cluster")
IN_THIS_PROCESS = ("train", "status", "report", "combine", "evaluate", "predict")
OF_ALL = (
    "scale=smoke",
    "data.batch_size=2",  # batch norm's running statistics need more than three steps
    "data.num_workers=0",
    "trainer.progress_bar=false",
)
SMALLER = {"scale=reduced": "scale=smoke", "seed=0,1,2": "seed=0,1"}
WITHOUT_NETWORK = {"imagenet": "weights"}  # the test writes a folder with a file per depth
GROUPS = ("data", "model", "loss", "optim", "schedule", "trainer")
OF_EXAMPLES = {"optim.learning_rate", "data.color_jitter"}  # pages name these because they do not exist
OTHERS = (  # lines without a command of this program
    r"make (?P<target>[a-z-]+)",
    r"\. \.venv/bin/activate",
    r"pip install (-e )?'?(\.|resnet-lab)(\[(?P<extras>[a-z,]+)\])?'?",
    r"(torchrun|srun) .*-m resnet_lab\.job \S+.*",
    r"sbatch \S+",
)


@dataclass(frozen=True)
class Block:
    """Fenced block of a page."""

    marker: str
    kind: str
    file: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Return the command lines; continued lines are joined."""
        return self.text.replace("\\\n", " ").splitlines()


@dataclass(frozen=True)
class Command:
    """Command line of this program."""

    environment: dict[str, str]
    verb: str
    words: list[str]

    @property
    def keys(self) -> list[str]:
        """Return its overrides: words other than options of the verb or of Hydra, and paths."""
        options = {option.removeprefix("--") for option in verb_of(self.verb).known}
        return [word for word in self.words if "=" in word and word.partition("=")[0] not in options]


def verb_of(name: str):
    return job() if name == "job" else VERBS[name]()


@cache
def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer(PAGES[page].read_text("utf-8"))
    return [Block(each["marker"] or "", each["kind"], each["file"] or "", each["text"]) for each in found]


def command_of(line: str) -> Command | None:
    words = shlex.split(line)
    environment = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        key, _, environment[key] = words.pop(0).partition("=")
    if words[:1] == ["resnet-lab"]:
        return Command(environment, words[1], words[2:])
    if words[:3] == ["python", "-m", "resnet_lab.job"]:
        return Command(environment, "job", words[3:])
    return None


def commands(page: str) -> list[tuple[Block, Command]]:
    looked_at = [block for block in blocks(page) if block.kind == "bash"]
    return [(block, command) for block in looked_at for line in block.lines if (command := command_of(line))]


def commands_in_text(page: str) -> list[Command]:
    text = BLOCK.sub("", PAGES[page].read_text("utf-8"))
    spans = re.findall(r"`((?:resnet-lab|python -m resnet_lab\.job) [^`]+)`", text)
    return [command for span in spans if (command := command_of(" ".join(span.split())))]


RUNNING = [page for page in PAGES if {"bash", "python"} & {block.kind for block in blocks(page)}]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_rule(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block in blocks(page):
        assert re.fullmatch("|gpu|cluster|fails", block.marker), block
        assert block.kind in ("bash", "python", "yaml", "csv", "text", "bibtex"), block
        assert max(map(len, block.text.splitlines())) <= 80, block
        assert block.kind != "bash" or "#" not in block.text, block  # zsh takes it as an argument
        for line in block.lines if block.kind == "bash" else ():
            other = next(filter(None, (re.fullmatch(pattern, line) for pattern in OTHERS)), None)
            assert command_of(line) or other, line
            if other and "target" in other.groupdict():
                assert other["target"] in targets, line
            if other and "extras" in other.groupdict():
                assert set((other["extras"] or "dev").split(",")) <= set(extras), line
        if block.kind == "python":
            assert block.file or re.search(r"^(import|from) ", block.text, re.MULTILINE), block
        if block.kind == "yaml":
            assert block.file, block


@pytest.mark.parametrize("page", PAGES)
def test_every_key_in_the_text_exists(page: str) -> None:
    text = PAGES[page].read_text("utf-8")
    keys = set(re.findall(rf"[`(]((?:{'|'.join(GROUPS)})\.(?!py`)\w+)[`=]", text))
    assert keys - known_keys() - {f"{group}._target_" for group in GROUPS} == OF_EXAMPLES & keys


def test_the_readme_is_a_front_page() -> None:
    assert len(PAGES["README.md"].read_text("utf-8").splitlines()) <= 150


def test_the_changelog_has_no_link_that_only_the_repository_resolves() -> None:
    assert not re.search(
        r"\]\((?!https?:)", (ROOT / "CHANGELOG.md").read_text("utf-8")
    )  # it is also a page of the manual


def test_every_module_has_a_line_and_no_other() -> None:
    page = PAGES["reference/code.md"].read_text("utf-8")
    package = Path(resnet_lab.__file__).parent
    modules = {file.name for file in package.rglob("*.py") if file.name != "__init__.py"}
    tools = {file.name for folder in ("tests", "benchmarks", "docs/tools") for file in (ROOT / folder).glob("*.py")}
    named = set(re.findall(r"`(?:\w+/)*(\w+\.py)`", page))
    assert modules <= named
    assert named <= modules | tools


def test_the_glossary_has_the_words_and_sentences_of_the_report() -> None:
    page = PAGES["glossary.md"].read_text("utf-8")
    lines = [line.lower() for line in re.findall(r"^\*\*(.+)\*\*$", page, re.MULTILINE)]
    assert [term for term in TERMS if not any(term.lower() in line for line in lines)] == []
    sentences = [*TERMS.values(), *filter(None, (score.meaning for score in SCORES.values()))]
    assert [sentence for sentence in sentences if sentence not in " ".join(page.split())] == []


def test_the_reference_has_every_key_and_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "tools"))
    import reference

    page = "\n\n".join(reference.keys())
    assert set(re.findall(r"^### `(.+)`$", page, re.MULTILINE)) == {key.name for key in all_keys()}
    assert re.search(
        r"^### `data.image_size`\n\n.*pixels.*\n\n- values: .+\n- default:\n    - 224\n", page, re.MULTILINE
    )
    assert "root/&lt;split>" in page
    assert re.findall(r"^## (.+)$", reference.verbs(), re.MULTILINE) == [*VERBS, "python -m resnet_lab.job", "help"]


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_names_a_verb_or_an_option_and_examples_are_blocks(page: str) -> None:
    for command in commands_in_text(page):
        known = f"RUN --help {verb_of(command.verb).format_help()}"
        assert len(command.words) <= 1, command
        assert all(re.search(rf"\b{re.escape(word.partition('=')[0].lstrip('-'))}\b", known) for word in command.words)


@pytest.mark.parametrize("page", PAGES)
def test_every_key_and_option_exists(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conf").mkdir()
    for block, command in commands(page):
        if command.verb == "help":
            assert set(command.words) <= known_keys(), command
        if command.verb == "help" or block.marker == "fails":
            continue
        for word in command.keys:
            key = word.partition("=")[0].lstrip("~")
            assert key.startswith(("+", "hydra")) or key.endswith("._target_") or key in known_keys(), (page, word)
        if "trainer=gpu" in command.words or "trainer=ddp" in command.words:
            assert block.marker in COMPOSED_ONLY, block
        verb_of(command.verb).read([word for word in command.words if word not in ("--help", "--keys")])


def smaller(command: Command) -> list[str]:
    """Return the words of a command, changed to take seconds and to need no network."""
    words = [SMALLER.get(word, word) for word in command.words]
    for name, other in WITHOUT_NETWORK.items():
        words = [re.sub(rf"^(model\.pretrained=.*\b){name}\b", rf"\g<1>{other}", word) for word in words]
    if command.verb not in ("train", "prepare") or {"--cfg", "--keys", "--help"} & {*words}:
        return words
    keys = [each for each in OF_ALL if command.verb == "train" or each.startswith("scale")]
    given = {word.partition("=")[0] for word in words}
    return [*words, *(each for each in keys if each.partition("=")[0] not in given)]


def write_stage(folder: Path) -> None:
    """Write tiny versions of the data sets on the pages."""
    eyes = {f"{n:03d}_{eye}": (n + (eye == "left") * (n % 3 == 0)) % 5 for n in range(60) for eye in ("left", "right")}
    write_photographs(folder / "photographs" / "images", eyes, ".jpg")
    rows = "".join(f"{name}.jpg,{grade},{name[:3]}\n" for name, grade in eyes.items())
    (folder / "photographs" / "labels.csv").write_text(f"file,stage,person\n{rows}")
    write_photographs(folder / "new_photographs", [f"{n}_left" for n in range(200, 206)], ".jpg")
    write_kaggle(folder / "eyepacs")
    write_kaggle(folder / "other_clinic")
    write_aptos(folder / "aptos")
    classes = ("train/ill", "train/well", "test/ill", "test/well")
    write_class_folders(folder / "folders", dict.fromkeys(classes, 8))
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    for depth in (18, 34, 50):
        # without zero_init_residual, some random weights of ResNet-50 explode in evaluation and give a loss of nan
        network = getattr(torchvision.models, f"resnet{depth}")(zero_init_residual=True)
        torch.save(network.state_dict(), folder / "weights" / f"resnet{depth}-fake.pth")


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder `data`, shared by all pages, so that photographs are drawn once."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def forker() -> Iterator[Callable[[], Supervisor]]:
    """Return the supervisor that forks the jobs of all pages, since PyTorch takes seconds to import."""
    start = cache(Supervisor)
    yield start
    if start.cache_info().currsize:
        start().close()


@pytest.fixture
def stage(
    tmp_path: Path,
    drawn: Path,
    forker: Callable[[], Supervisor],
    command_in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Return the working directory of a page's commands, with its own home folder."""
    if sys.platform == "linux":  # jobs are forked there only
        monkeypatch.setattr(supervisor, "begin", forker)
        monkeypatch.setattr(supervisor, "close", lambda: None)
    write_stage(tmp_path)
    (tmp_path / "data").symlink_to(drawn)
    monkeypatch.chdir(tmp_path)
    for key, value in {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING)
def test_the_page_runs(stage: Path, page: str) -> None:
    write_files(page, stage)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.file:
            continue
        if block.kind == "python":
            exec(block.text, names)
        for line in block.lines if block.kind == "bash" else ():
            if command := command_of(line):
                how = composed if block.marker in COMPOSED_ONLY else run_here if page.startswith("howto") else run
                how(command, fails=block.marker == "fails")
    tables = [value for value in names.values() if isinstance(value, pd.DataFrame)]
    assert not any(table.empty for table in tables)
    for status in stage.rglob("status.json"):
        assert RunFolder(status.parent).read_status()["state"] in ("done", "created"), status


def run(command: Command, fails: bool = False) -> None:
    if command.verb == "tensorboard":  # it serves until Ctrl-C; test_tensorboard starts it
        assert names_of([word for word in command.words if "=" not in word])
        return
    module = "resnet_lab.job" if command.verb == "job" else "resnet_lab"
    words = smaller(command) if command.verb == "job" else [command.verb, *smaller(command)]
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ | command.environment, capture_output=True, text=True
    )
    assert (done.returncode > 0) == fails, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert not fails or done.stderr.startswith("error: ")


def run_here(command: Command, fails: bool = False) -> None:
    """Run a command in this process, where PyTorch is imported; reports draw only the pictures that are named.

    `stage` lets one supervisor fork all jobs.
    """
    launcher = any(word.startswith("hydra/launcher=") for word in command.words)
    if command.environment or launcher or command.verb not in IN_THIS_PROCESS:
        run(command, fails)
    elif command.verb == "train":
        GlobalHydra.instance().clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *smaller(command)])
            assert (train.main() > 0) == fails, command
    else:
        name = f"resnet_lab.{command.verb}"
        verb = importlib.import_module(f"{name}.__main__" if command.verb == "report" else name)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) if fails else contextlib.nullcontext():
            patch.setattr("resnet_lab.report.page.OF_SECTIONS", ())
            verb.command(command.words)


def composed(command: Command, fails: bool = False) -> None:
    """Compose each command for other hardware, with the first value of each axis."""
    if command.verb == "job":
        return
    parsed = OverridesParser.create().parse_overrides(command.keys)
    axes = [each for each in parsed if each.is_sweep_override()]
    first = {each.input_line: f"{each.get_key_element()}={next(each.sweep_string_iterator())}" for each in axes}
    check(compose_config([first.get(word, word) for word in command.keys if not word.startswith("hydra")]))
