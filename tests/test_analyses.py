"""Every analysis runs from end to end in its --fast version and writes what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ANALYSES = Path(__file__).parents[1] / "analyses"
SCRIPTS = sorted(ANALYSES.glob("[0-9][0-9]_*.py"))


def run(script: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "--fast"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | environment)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_fast_version(script: Path) -> None:
    done = run(script, {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads((ANALYSES / "output" / f"{script.stem}-fast" / "numbers.json").read_text())
    assert "proves nothing" in numbers["title"]
    assert all(number["measured"] for number in numbers["numbers"])


def test_there_are_analyses() -> None:
    assert SCRIPTS
