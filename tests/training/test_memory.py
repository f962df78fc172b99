"""A process's own memory, read from system files that are written here."""

import pytest

from sbiflow.training.memory import available_memory

FREE = 8_000_000  # [kB]


def system(root, meminfo=True, groups="0::/\n", **files):
    """/proc and /sys as Linux has them, under `root`; group files by path with __ for /."""
    (root / "proc/self").mkdir(parents=True)
    if meminfo:
        text = f"MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable: {FREE} kB\n"
        (root / "proc/meminfo").write_text(text)
    (root / "proc/self/cgroup").write_text(groups)
    for name, (limit, used, cache) in files.items():
        old = name.startswith("memory")
        folder = root / "sys/fs/cgroup" / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
        prefix = "total_" if old else ""
        stat = f"anon 5\n{prefix}inactive_file {cache}\n{prefix}active_file 1000\n"
        (folder / "memory.stat").write_text(stat)
    return root


def test_of_a_machine_without_limits(tmp_path):
    assert available_memory(root=system(tmp_path)) == FREE * 1024


@pytest.mark.parametrize(
    "groups, files, expected",
    [
        ("0::/job/step\n", {"job__step": ("max", 1, 0)}, FREE * 1024),
        ("0::/job/step\n", {"job__step": (10**9, 400_000_000, 99_000)}, 600_100_000),
        ("0::/job/step\n", {"job__step": ("max", 1, 0), "job": (5 * 10**8, 10**8, 0)}, 400_001_000),
        ("0::/job/step\n", {"job__step": (100, 5000, 0)}, 0),
        ("0::/job\n", {"other": (1000, 0, 0)}, FREE * 1024),
        ("4:memory:/job\n0::/\n", {"memory__job": (10**9, 4 * 10**8, 10**8)}, 700_001_000),
        ("4:cpu,memory:/\n", {"memory": (2**63 - 4096, 4 * 10**8, 0)}, FREE * 1024),
        ("3:cpuset:/job\n", {"memory__job": (1000, 0, 0)}, FREE * 1024),
    ],
    ids=[
        "no limit",
        "limit",
        "of the job",
        "over",
        "of others",
        "version 1",
        "none in version 1",
        "not memory",
    ],
)
def test_a_control_group_may_have_less_left(tmp_path, groups, files, expected):
    assert available_memory(root=system(tmp_path, groups=groups, **files)) == expected


def test_the_cache_of_files_is_not_counted_as_used(tmp_path):
    full = {"job": (10**9, 10**9, 9 * 10**8)}
    assert available_memory(root=system(tmp_path, groups="0::/job\n", **full)) == 900_001_000


def test_without_linux_it_is_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}[name])
    assert available_memory(root=tmp_path) == 4_096_000


def test_of_this_machine():
    assert 10**7 < available_memory() < 10**14
