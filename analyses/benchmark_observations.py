"""The observations of the ten tasks: the published ones if their files are at hand, else our own.

The published files are those of sbibm 1.1.0 (MIT licence, not ours to ship):
    python -m pip install --no-deps --target analyses/output/sbibm sbibm==1.1.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.pairs import draw_pairs
from simulators.benchmark import task
from simulators.benchmark.published import published_distractors

COUNT = 10
_OWN_SEED = 20211
_FILES = {
    "slcp_distractors": ("slcp", "observation_distractors.csv"),
    "bernoulli_glm_raw": ("bernoulli_glm", "observation_raw.csv"),
}


def published_folder(output: Path) -> Path | None:
    """`sbibm/tasks` below the output folder, or None if it has not been installed there."""
    folder = output / "sbibm" / "sbibm" / "tasks"
    return folder if folder.is_dir() else None


def observations(name: str, folder: Path | None) -> tuple[Any, list[Tensor]]:
    """The task and its ten observations, each of its x_shape, float64, in raw format.

    Args:
        name: of the task.
        folder: `sbibm/tasks`; None draws ten observations from the prior by a fixed seed.
    """
    if folder is None:
        subject = task(name)
        return subject, list(draw_pairs(subject, COUNT, seed=_OWN_SEED).x)
    where, file = _FILES.get(name, (name, "observation.csv"))
    subject = published_distractors(folder / "slcp" / "files") if name == "slcp_distractors" else task(name)
    paths = [folder / where / "files" / f"num_observation_{i}" / file for i in range(1, COUNT + 1)]
    rows = [np.loadtxt(path, delimiter=",", skiprows=1, ndmin=1) for path in paths]
    return subject, [torch.from_numpy(row).reshape(subject.x_shape) for row in rows]


def published_reference(name: str, index: int, folder: Path) -> Tensor:
    """The published reference draws (10,000, D) of observation `index` (from 0), in the published parameters."""
    where = _FILES.get(name, (name, ""))[0]
    path = folder / where / "files" / f"num_observation_{index + 1}" / "reference_posterior_samples.csv.bz2"
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2))
