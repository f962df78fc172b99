"""sbiflow: simulation-based Bayesian inference with normalizing flows whose every answer carries its own evidence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sbiflow.embedding import EmbeddingConfig
from sbiflow.ensemble import Ensemble
from sbiflow.families import FlowConfig
from sbiflow.integrate import (
    Channel,
    IntegralResult,
    Integrator,
    IntegratorConfig,
    evidence,
    integrate,
    with_histogram,
)
from sbiflow.maps import MapConfig, MapResult
from sbiflow.posterior import Posterior
from sbiflow.priors import (
    Cosine,
    LogNormal,
    LogUniform,
    Normal,
    PeriodicUniform,
    PowerLaw,
    Prior,
    Sine,
    TruncatedNormal,
    Uniform,
    isotropic_direction,
)
from sbiflow.samples import PosteriorSamples, WeightedSamples
from sbiflow.simulate import draw_pairs, simulate, simulator_from_function
from sbiflow.store import Store
from sbiflow.training import (
    Distillation,
    DistillationWarning,
    Member,
    TrainConfig,
    default_members,
    distill,
    is_rank_zero,
    rank_zero_first,
    train,
    train_ensemble,
)

if TYPE_CHECKING:
    from sbiflow.calibration import (  # type: ignore[no-redef]  # c2st and mmd are modules there as well
        CalibrationReport,
        c2st,
        calibrate,
        compare,
        emcee_reference,
        local_c2st,
        marginal_jsd,
        mmd,
        nested_reference,
        predictive_check,
        reference_floor,
    )
    from sbiflow.density import Density, OutlierScores, fit_density, outliers, perturb

__all__ = [
    "CalibrationReport",
    "Channel",
    "Cosine",
    "Density",
    "Distillation",
    "DistillationWarning",
    "EmbeddingConfig",
    "Ensemble",
    "FlowConfig",
    "IntegralResult",
    "Integrator",
    "IntegratorConfig",
    "LogNormal",
    "LogUniform",
    "MapConfig",
    "MapResult",
    "Member",
    "Normal",
    "OutlierScores",
    "PeriodicUniform",
    "Posterior",
    "PosteriorSamples",
    "PowerLaw",
    "Prior",
    "Sine",
    "Store",
    "TrainConfig",
    "TruncatedNormal",
    "Uniform",
    "WeightedSamples",
    "c2st",
    "calibrate",
    "compare",
    "default_members",
    "distill",
    "draw_pairs",
    "emcee_reference",
    "evidence",
    "fit_density",
    "integrate",
    "is_rank_zero",
    "isotropic_direction",
    "local_c2st",
    "marginal_jsd",
    "mmd",
    "nested_reference",
    "outliers",
    "perturb",
    "predictive_check",
    "rank_zero_first",
    "reference_floor",
    "simulate",
    "simulator_from_function",
    "train",
    "train_ensemble",
    "with_histogram",
]

_DENSITY = ("Density", "OutlierScores", "fit_density", "outliers", "perturb")


def __getattr__(name: str) -> Any:
    """What judges posteriors is loaded when it is asked for: emcee and scipy.stats are slow to import."""
    if name in __all__:
        module = "sbiflow.density" if name in _DENSITY else "sbiflow.calibration"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
