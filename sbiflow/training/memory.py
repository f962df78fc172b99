"""How much memory a process may still take, on its machine and in its control groups (containers, batch jobs)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOT = Path("/")
# names of limit, usage, and in memory.stat of what is in use but would be given up (cache of files)
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_memory(device: torch.device | None = None, root: Path = _ROOT) -> int:
    """Bytes that this process can still take without anyone being killed or swapped out.

    The least of what the system calls available (/proc/meminfo; elsewhere the installed memory), what the control
    groups of this process have left (a batch job's memory is less than its machine's), and on a GPU what is free there.
    """
    found = [_of_machine(root), *_of_groups(root)]
    if device is not None and device.type == "cuda":
        found.append(torch.cuda.mem_get_info(device)[0])
    return min(found)


def _of_machine(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, names = root / "sys/fs/cgroup" / ("memory" if kinds else ""), _V1 if kinds else _V2
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):  # a limit holds for all groups below
            if folder.is_relative_to(top) and (left := _left(folder, *names)) is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cache: tuple[str, ...]) -> int | None:
    """What a group has left, None without a limit or where a container hides the group's folder."""
    try:
        most = (folder / limit).read_text().strip()
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / usage).read_text()) - sum(int(stat[name]) for name in cache)
    except (OSError, KeyError, ValueError):
        return None
    return None if most == "max" else max(int(most) - used, 0)
