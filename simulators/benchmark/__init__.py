"""The ten tasks of the benchmark of simulation-based inference (Lueckmann et al. 2021, arXiv 2101.04653).

>>> task("two_moons").prior.names
('theta_1', 'theta_2')
"""

from __future__ import annotations

from collections.abc import Callable

from simulators.benchmark.frozen import Frozen, frozen
from simulators.benchmark.gaussian import GaussianLinear, GaussianLinearUniform, GaussianMixture
from simulators.benchmark.glm import BernoulliGLM, BernoulliGLMRaw
from simulators.benchmark.lotka_volterra import LotkaVolterra
from simulators.benchmark.sir import SIR
from simulators.benchmark.slcp import SLCP, SLCPDistractors
from simulators.benchmark.task import Task
from simulators.benchmark.two_moons import TwoMoons

__all__ = [
    "SIR",
    "SLCP",
    "TASKS",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "Frozen",
    "GaussianLinear",
    "GaussianLinearUniform",
    "GaussianMixture",
    "LotkaVolterra",
    "SLCPDistractors",
    "Task",
    "TwoMoons",
    "frozen",
    "task",
]

_MAKE: dict[str, Callable[[], Task]] = {
    "gaussian_linear": GaussianLinear,
    "gaussian_linear_uniform": GaussianLinearUniform,
    "gaussian_mixture": GaussianMixture,
    "two_moons": TwoMoons,
    "slcp": SLCP,
    "slcp_distractors": SLCPDistractors,
    "bernoulli_glm": BernoulliGLM,
    "bernoulli_glm_raw": BernoulliGLMRaw,
    "sir": SIR,
    "lotka_volterra": LotkaVolterra,
}

TASKS = tuple(_MAKE)
"""The names of all tasks, in the order of the paper's tables."""


def task(name: str) -> Task:
    """A task by its name.

    Raises:
        ValueError: no such task.
    """
    if name not in _MAKE:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return _MAKE[name]()
