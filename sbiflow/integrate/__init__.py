"""Integrals by importance sampling with an adaptive grid and a normalizing flow."""

from sbiflow.integrate.chart import Channel
from sbiflow.integrate.config import IntegratorConfig
from sbiflow.integrate.evidence import evidence
from sbiflow.integrate.histogram import with_histogram
from sbiflow.integrate.integrator import Integrator, integrate
from sbiflow.integrate.points import UnweightedPoints, WeightedPoints
from sbiflow.integrate.result import IntegralResult

__all__ = [
    "Channel",
    "IntegralResult",
    "Integrator",
    "IntegratorConfig",
    "UnweightedPoints",
    "WeightedPoints",
    "evidence",
    "integrate",
    "with_histogram",
]
