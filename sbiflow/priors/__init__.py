"""Named priors with units, and their exact bijection to an unconstrained space."""

from sbiflow.priors.distributions import (
    Cosine,
    LogNormal,
    LogUniform,
    Normal,
    PeriodicUniform,
    PowerLaw,
    Sine,
    TruncatedNormal,
    Uniform,
    isotropic_direction,
)
from sbiflow.priors.joint import Prior
from sbiflow.priors.marginal import Marginal

__all__ = [
    "Cosine",
    "LogNormal",
    "LogUniform",
    "Marginal",
    "Normal",
    "PeriodicUniform",
    "PowerLaw",
    "Prior",
    "Sine",
    "TruncatedNormal",
    "Uniform",
    "isotropic_direction",
]
