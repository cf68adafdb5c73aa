"""Hardware and software of this machine, and the values of `auto` on it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from resnet_lab import cgroups, processes

OWN_CGROUPS = cgroups.OWN
CGROUPS = (  # versions 2 and 1: controller, folder, files with limit and usage, key of file cache in memory.stat
    ("", Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    ("memory", Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # settings of mallopt, from malloc.h
KEPT = (2**27, 2**25)  # bytes of the largest block that is kept, and of that in glibc before 2.35
PACKAGES = ("resnet_lab", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core")


def uses_cuda(accelerator: str) -> bool:
    """Return whether this accelerator (see conf/trainer) is a CUDA GPU here."""
    return accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def resolve_precision(precision: str, channels_last: Any, accelerator: str) -> tuple[Any, bool]:
    """Replace `auto` by bf16 and channels-last on hardware where they are faster.

    Args:
        precision: `auto` or a precision of Lightning.
        channels_last: `auto`, true or false.
        accelerator: see conf/trainer.

    Returns:
        Lightning's precision, and whether the memory format is channels-last.
    """
    on_gpu = uses_cuda(accelerator)
    if on_gpu:
        fast = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    elif accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        fast = "32-true"
    else:
        fast = (
            "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"
        )
    chosen = fast if precision == "auto" else precision
    return chosen, (on_gpu or "bf16" in chosen) if channels_last == "auto" else bool(channels_last)


def ranks_here(accelerator: str, devices: Any) -> int:
    """Return the number of ranks of a job on this machine, which share its cores and its memory.

    Args:
        accelerator: see conf/trainer.
        devices: `trainer.devices`: a number, a list of GPUs, or `auto`.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if devices == "auto":
        return max(1, torch.cuda.device_count()) if uses_cuda(accelerator) else 1
    return len(devices) if isinstance(devices, list) else int(devices)


def limit_threads() -> None:
    """Let torch compute with no more threads than cores that this process may use, unless the environment says how."""
    if "OMP_NUM_THREADS" not in os.environ and processes.cores() < torch.get_num_threads():
        torch.set_num_threads(processes.cores())  # torch knows the affinity, but not the limits of a container


def shared_memory() -> int | None:
    """Return the free bytes of shared memory, used by workers to pass batches; None if it has no separate limit."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def free_memory() -> float:
    """Return the bytes of memory that this process may still use, by the system and its cgroups (container, job)."""
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    if (info := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    return max(0.0, min([*found, *_free_in_cgroups()]))


def _free_in_cgroups() -> Iterator[float]:
    """Yield the bytes that each memory limit leaves: those of this process's cgroups and of their parents."""
    for controller, root, limit, usage, cache in CGROUPS:
        for folder in cgroups.folders(OWN_CGROUPS, controller, root):
            with suppress(OSError, ValueError):  # absent, or `max`
                free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                stat = folder / "memory.stat"
                lines = stat.read_text().splitlines() if stat.is_file() else []
                # the system frees this cache before it refuses memory
                yield float(free + sum(int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")))


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next batch, and return whether it does.

    By default it returns large blocks to the system, and each page that is used again is cleared first: for each batch
    on the CPU, and for each photograph of camera size. `MALLOC_*` and `GLIBC_TUNABLES` in the environment come first.
    Nothing is kept under a limit of the address space (`ulimit -v`), because kept blocks count there.
    """
    chosen = any(key.startswith(("MALLOC_", "GLIBC_TUNABLES")) for key in os.environ)
    if chosen or sys.platform != "linux" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    library = ctypes.CDLL(None)  # the libraries of this process
    if not hasattr(library, "mallopt"):  # musl
        return False
    keeps = any(library.mallopt(M_MMAP_THRESHOLD, most) for most in KEPT)
    return keeps and bool(library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """Return what `keep_freed_memory` kept to the system, after large data were freed for good."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit of this checkout, with `+` if files are changed; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes.strip() else "")


def hardware() -> dict[str, Any]:
    """Return processor, cores, threads of torch, and GPUs."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
    }


def core_seconds() -> float:
    """Return the CPU time in seconds of this process and its finished children (workers), summed over all cores."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MiB: on the GPU if one is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)
