"""What a fresh process pays: seconds to import a library, peak memory of a training step and of a million draws.

`python analyses/benchmarks/footprint.py step|draw LIBRARY ROWS` is what the processes run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path[:0] = [str(Path(__file__).parents[2])]

from analyses.benchmarks.alternate import Series
from analyses.benchmarks.architecture import Case
from analyses.benchmarks.peers import build

CASE = Case("maf", 5, 50)
IMPORTED = ("torch", "sbiflow", "zuko", "sbi.inference")  # `import sbi` alone loads nothing
IMPORT = (
    "import time; start = time.perf_counter(), time.process_time(); import {module}; "
    "print(time.perf_counter() - start[0], time.process_time() - start[1])"
)


def run(arguments: list[str]) -> str:
    """What a Python process prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def import_seconds(modules: tuple[str, ...], repeats: int) -> dict[str, Series]:
    """Seconds that `import MODULE` takes in a process of its own, by turns; after one import that fills the cache.

    A module that is not installed is left out.
    """
    there = [module for module in modules if importlib.util.find_spec(module)]
    times: dict[str, list[tuple[float, float]]] = {module: [] for module in there}
    for repeat in range(repeats + 1):
        for module in there[:: -1 if repeat % 2 else 1]:
            clock, cpu = map(float, run(["-c", IMPORT.format(module=module)]).split())
            if repeat:
                times[module].append((clock, cpu))
    return {module: Series.of(own, 1) for module, own in times.items()}


def memory(kind: str, name: str, rows: int) -> dict[str, float]:
    """Megabytes at the peak of a process that takes one step, or draws; and those before it."""
    return json.loads(run([__file__, kind, name, str(rows)]).splitlines()[-1])


def peak() -> float:
    """The largest resident set of this program so far [MB]; getrusage's would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    kind, name, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = build(name, CASE)

    def once(n: int) -> None:
        if kind == "step":
            model.trainer(torch.randn(n, CASE.dim), torch.randn(n, CASE.context))()
        else:
            with torch.no_grad():
                model.draw(torch.randn(1, CASE.context), n)

    once(10)
    before = peak()
    once(rows)
    print(json.dumps({"before": before, "peak": peak()}))


if __name__ == "__main__":
    main()
