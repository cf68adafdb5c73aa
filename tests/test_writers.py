"""All code that writes files uses `write_atomically`, or is in the list here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "resnet_lab"
WRITERS = (
    *("write_text", "write_bytes", "savefig", "imwrite", "savez", "savez_compressed", "savetxt", "tofile", "touch"),
    *(
        "mkstemp",
        "NamedTemporaryFile",
        "FileHandler",
        "TensorBoardLogger",
        "Board",
        "CSVLogger",
        "SummaryWriter",
        "save_file",
    ),
    *("copyfile", "copy2", "copytree", "move", "symlink_to", "hardlink_to", "urlretrieve", "save", "dump"),
    *("download_url_to_file", "extractall", "open_memmap", "memmap"),
)
FRAMES = ("to_csv", "to_json", "to_html", "to_parquet", "to_pickle", "to_excel")  # these return text without a path
APPENDED = {
    "build.py set_up_logging FileHandler": "train.log alone grows by lines",
    "loggers.py tensorboard Board": "TensorBoard's events, which its writer appends",
    "loggers.py log_to_all save": "loggers flush what they append",
    "loggers.py RowLogger.log_metrics open": "rows of csv/metrics.csv: a cut one is dropped and logged again",
    "data/prepared.py _prepare_missing open": "the journal: a line for each photograph, and a cut line is done again",
    "data/prepared.py _pixels open": "the pixels of photographs: those without a row in the journal are cut off",
    "data/prepared.py _pixels touch": "likewise",
    "run_folder.py list_jobs open": "jobs.txt: names of jobs, read and changed under a lock on the file itself",
    "run_folder.py list_jobs touch": "likewise",
}
HELD = {  # these are not written to
    "gpus.py place_on_gpu open": "a lock",
    "run_folder.py RunFolder.lock open": "a lock",
    "run_folder.py RunFolder.turn open": "a lock",
    "data/prepared.py _turn open": "a lock",
    "data/prepared.py _all_pixels memmap": "mapped to read",
    "terminal.py Progress._owns open": "the terminal, for its lock",
}
BESIDE = {
    "files.py write_atomically write_bytes": "this is it",
    "files.py write_atomically open": "likewise",
    "checkpoints.py _objects_in save": "into the open file of write_atomically, or to memory",
    "data/synthetic.py write_synthetic write_text": "below a folder that is renamed when it is complete",
    "data/synthetic.py _write_tables write_text": "likewise",
    "data/synthetic.py _write_photograph write_bytes": "likewise",
}
NOT_TO_DISK = {
    "outputs.py write_split savefig": "to memory",
    "data/prepared.py _prepare_missing to_csv": "likewise",
    "rendering.py png savefig": "likewise",
    "command_line.py stop_printing open": "/dev/null",
    "tensorboard.py link symlink_to": "to a temporary folder",
}


def writers(source: str) -> Iterator[str]:
    """Return the dotted names of functions that open a file for writing, each with the function that it calls."""

    def visit(node: ast.AST, place: tuple[str, ...]) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = (*place, node.name)
        if isinstance(node, ast.Call) and writes(node):
            yield f"{'.'.join(place)} {ast.unparse(node.func).rpartition('.')[2]}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    return visit(ast.parse(source), ())


def writes(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name in FRAMES:
        return bool(call.args) or any(key.arg in ("path_or_buf", "path", "buf") for key in call.keywords)
    if name not in ("open", "fdopen"):
        return name in WRITERS
    if owner == "Image":
        return False
    modes = [key.value for key in call.keywords if key.arg in ("mode", "flags")]
    modes += call.args[1:2] if owner in ("", "os", "io", "codecs", "gzip", "zipfile") else call.args[:1]
    mode = ast.unparse(modes[0]) if modes else "'r'"
    return mode not in ("'r'", "'rb'", "'rt'", "os.O_RDONLY")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(p, 'w')", True), ("open(p, mode='ab')", True), ("p.open('x')", True), ("p.open('r+')", True),
        ("open(p, mode)", True), ("os.open(p, os.O_WRONLY)", True), ("gzip.open(p, 'wt')", True),
        ("os.fdopen(n, 'w')", True), ("frame.to_csv(p)", True), ("frame.to_csv(path_or_buf=p)", True),
        ("p.write_text('')", True), ("torch.save(a, p)", True), ("np.savez(p, a)", True), ("json.dump(a, f)", True),
        ("image.save(p)", True), ("shutil.copyfile(a, b)", True),
        ("open(p)", False), ("p.open('rb')", False), ("p.open(encoding='utf-8')", False), ("Image.open(p)", False),
        ("frame.to_csv(index=False)", False), ("json.dumps(a)", False), ("os.open(p, os.O_RDONLY)", False),
        ("write_atomically(p, '')", False),
    ],
)  # fmt: skip
def test_calls_that_write_are_recognized(source: str, found: bool) -> None:
    places = list(writers(f"class A:\n    def b(self):\n        {source}"))
    assert [place.partition(" ")[0] for place in places] == ["A.b"] * found


def test_every_writer_writes_beside_and_renames_or_is_listed_with_its_reason() -> None:
    found = {
        f"{file.relative_to(PACKAGE)} {place}" for file in PACKAGE.rglob("*.py") for place in writers(file.read_text())
    }
    assert found == APPENDED.keys() | HELD.keys() | BESIDE.keys() | NOT_TO_DISK.keys()
