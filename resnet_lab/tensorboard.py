"""`resnet-lab tensorboard DIR… [port=6006]`: TensorBoard with the labels of `status` and the report (no torch here).

TensorBoard names a run by the path of its folder. It is shown a temporary folder instead, with a link from each label
to the files of that run. The links follow a sweep while it grows.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from resnet_lab.axes import shortest_tail
from resnet_lab.command_line import run_command
from resnet_lab.errors import UserError, count
from resnet_lab.processes import Stopped, run_tied, stop_on_signals
from resnet_lab.run_folder import find_runs, jobs_file
from resnet_lab.status import labels_of
from resnet_lab.verbs import VERBS

EVERY = 5.0  # seconds between two checks of the run folders


def names_of(folders: Sequence[str]) -> dict[str, Path]:
    """Return name → folder with the event files, for each run that has begun to log.

    The name is the label of the job, or the folder of a single run. Beside other runs, a job has its sweep's folder
    before its label.

    Raises:
        UserError: a folder does not exist, or the folders contain no run.
    """
    runs = [run for run in find_runs(folders) if run.tensorboard.is_dir()]
    sweeps = [run.path.parent if jobs_file(run.path.parent).is_file() else None for run in runs]
    labels = {sweep: labels_of(sweep) for sweep in dict.fromkeys(sweeps) if sweep}
    places = list(dict.fromkeys(str(sweep or run.path) for sweep, run in zip(sweeps, runs, strict=True)))
    found = dict[str, Path]()
    for sweep, run in zip(sweeps, runs, strict=True):
        own = shortest_tail(str(sweep or run.path), places, "/").strip("/")
        before = f"{own}/" if len(places) > 1 else ""
        label = labels[sweep].get(run.path.name, run.path.name).replace("/", "_") if sweep else ""
        name = f"{before}{label}" if sweep else own
        found[name if name not in found else f"{before}{run.path.name}"] = run.tensorboard
    return found


def link(names: dict[str, Path], folder: Path) -> None:
    """Make `folder` contain exactly one link per name; links that are right already stay.

    Args:
        names: see `names_of`.
        folder: folder that TensorBoard reads.
    """
    for each in [each for each in folder.rglob("*") if each.is_symlink()]:
        if names.get(str(each.relative_to(folder))) != each.readlink():
            each.unlink()
    for name, target in names.items():
        place = folder / name
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target, target_is_directory=True)


def watch(folders: Sequence[str], options: Sequence[str]) -> int:
    """Run TensorBoard until it ends or a signal ends this process, and return its exit code.

    Args:
        folders: folders of runs or sweeps.
        options: further options of TensorBoard.
    """
    names, over = names_of(folders), threading.Event()
    with TemporaryDirectory(prefix="tensorboard_") as folder:

        def follow() -> None:
            while not over.wait(EVERY):
                with suppress(UserError, OSError):  # a folder was moved or removed: the last links stay
                    link(names_of(folders), Path(folder))

        link(names, Path(folder))
        print(f"{count(len(names), 'run')} in TensorBoard; Ctrl-C ends it", flush=True)
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            return run_tied([sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", *options])
        except Stopped:
            return 0
        finally:
            over.set()
            follower.join()


def refuse_used_port(host: str, port: int) -> None:
    """Refuse a port on which another program listens; 0 is any free port.

    Raises:
        UserError: the port is in use, must not be used by this user, or there is no such host.
    """
    try:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, socket.SOCK_STREAM) as candidate:
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as TensorBoard does
                candidate.bind(address)
    except socket.gaierror as error:
        raise UserError(f"host={host}: there is no such host") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:  # no IPv6 here, or the address of another machine
            return
        raise UserError(f"port={port} of {host}: {error.strerror}; choose another port, or port=0 for any") from error


def command(arguments: Sequence[str]) -> None:
    """Show the runs in the folders."""
    given = VERBS["tensorboard"]().read(arguments)
    refuse_used_port(given.host, given.port)
    stop_on_signals()
    if code := watch(given.DIR, [f"--port={given.port}", f"--host={given.host}"]):
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(run_command(command))
