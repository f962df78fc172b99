"""Every analysis runs from end to end in its --fast version and writes what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ANALYSES = Path(__file__).parents[1] / "analyses"
SCRIPTS = sorted(ANALYSES.glob("[0-9][0-9]_*.py"))
PEERS = {  # a library that the benchmark needs; the other files of the folder are parts of these
    "waveforms": "lal", "integrators": "vegas", "speed": "zuko", "streaming": None,
    "executors": None, "distributed": None,
}  # fmt: skip
BENCHMARKS = [ANALYSES / "benchmarks" / f"{name}.py" for name in PEERS]


def numbers_of(script: Path, fast: bool) -> dict[str, Any]:
    command = [sys.executable, str(script), *(["--fast"] if fast else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment)
    if done.returncode and "run `sbiflow fetch" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])  # real data that is nowhere on this machine
    assert done.returncode == 0, f"{done.stderr[:3000]}\n...\n{done.stderr[-3000:]}"
    folder = ANALYSES / "output" / (script.stem + ("-fast" if fast else ""))
    return json.loads((folder / "numbers.json").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_fast_version(script: Path) -> None:
    record = numbers_of(script, fast=True)
    assert "proves nothing" in record["title"]
    assert all(number["measured"] for number in record["numbers"])


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_fast_benchmark(script: Path) -> None:
    if peer := PEERS.get(script.stem):
        pytest.importorskip(peer, reason="the peer is not installed")
    assert "proves nothing" in numbers_of(script, fast=True)["title"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_full_version_meets_its_floors(script: Path) -> None:
    record = numbers_of(script, fast=False)
    missed = [
        number for number in record["numbers"] if number["met"] is False and "minutes" not in number["what"]
    ]
    assert not missed  # times are left out: they say as much of the machine


def test_there_are_analyses() -> None:
    assert SCRIPTS
