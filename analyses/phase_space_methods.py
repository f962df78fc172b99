"""One cross-section by sbiflow, vegas and madnis: the estimate at a budget of calls, and weighted events beyond it.

The budget includes what a method trains on. The events are further draws from the trained proposal: they serve the
unweighting efficiencies and the spectra, and are the same number for every method.

- vegas (Lepage, arXiv 2009.05112): five iterations that adapt the map and the stratification on a third of the budget, ten
  that do not on the rest; batch integrand, all else as it comes.
- madnis (arXiv 2212.06172, 2311.01548): its grid of vegas on 7 % of the budget, then its flow with the variance as loss
  (which unweights better here than KL, in both coordinate systems), batches of 1,024, four steps on stored points for
  each on new ones, the rate falling as a cosine from 1e-3, up to 60 % of the budget in all; points outside the cuts
  are dropped in training.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from analyses.four_gluons import GluonScattering
from analyses.phase_space import Chain, PoleMass, UniformRapidity
from sbiflow.integrate import Channel, Integrator, IntegratorConfig
from sbiflow.integrate.unweighting import OVERWEIGHT_SHARE, maximum_weight
from sbiflow.optional import require

_CHANNELS = ({"angle": UniformRapidity(1.5)}, {"mass": PoleMass(6e4), "angle": UniformRapidity(2.0)})
_VEGAS_ADAPTS, _VEGAS_MEASURES = 5, 10  # iterations of the same size
_MADNIS_TRAINS, _MADNIS_GRID = 0.6, 0.07  # of the budget
_MADNIS_BATCH, _MADNIS_STORED, _MADNIS_RATE = 1024, 4, 1e-3
_MADNIS_LEAST = 0.1  # share of a batch inside the cuts, below which it draws another, and another
_MADNIS_LOSS = "stratified_variance"


@dataclass(frozen=True)
class Run:
    """What a method found.

    Attributes:
        method: its name.
        mean, sdev: the cross-section and its reported error [pb].
        calls, training: points at which the integrand was evaluated, and those of them that were for training only.
        seconds, integrand: CPU time for the estimate, and the part of it inside the integrand.
        u: further events in the cube, (m, D).
        weights: dσ/du over their density [pb], (m,): the mean is the cross-section.
        remark: what the method says of its own answer.
    """

    method: str
    mean: float
    sdev: float
    calls: int
    training: int
    seconds: float
    integrand: float
    u: Tensor
    weights: Tensor
    remark: str = ""

    @property
    def spread(self) -> float:
        """Relative error times the square root of the calls, training included."""
        return self.sdev / abs(self.mean) * math.sqrt(self.calls)

    def pull(self, mean: float, sdev: float) -> float:
        """Distance from a reference in errors of both."""
        return (self.mean - mean) / math.hypot(self.sdev, sdev)


def unweighting_efficiency(weights: Tensor, overweight_share: float = OVERWEIGHT_SHARE) -> float:
    """Mean of min(w / w_max, 1): the share of events that acceptance and rejection keeps, those outside the cuts counted.

    w_max is such that heavier events carry `overweight_share` of the cross-section (0.1 %); 0 takes the largest weight of
    the sample, to which the median over bootstrap replicas of Gao et al. (arXiv 2001.10028) comes as well.
    """
    return float((weights / maximum_weight(weights, overweight_share)).clamp(max=1.0).mean())


class Counted:
    """The integrand with its calls and CPU seconds."""

    def __init__(self, f: GluonScattering) -> None:
        self.f, self.calls, self.seconds = f, 0, 0.0

    def __call__(self, u: Tensor | np.ndarray) -> Tensor | np.ndarray:
        started = time.process_time()
        value = self.f(u)
        self.calls += len(u)
        self.seconds += time.process_time() - started
        return value


def with_sbiflow(
    f: GluonScattering, budget: int, events: int, seed: int, config: IntegratorConfig | None = None
) -> Run:
    """Ours; the azimuths are periodic."""
    return _ours("sbiflow", (), f, budget, events, seed, config)


def with_channels(
    f: GluonScattering, budget: int, events: int, seed: int, config: IntegratorConfig | None = None
) -> Run:
    """Ours with three channels: the coordinates of f, which are a chain's, and two more chains.

    Raises:
        ValueError: the coordinates are not a chain's: other maps have no inverse.
    """
    home = f.phase_space
    if not isinstance(home, Chain):
        raise ValueError(f"channels: expected a Chain, got {type(home).__name__}")
    chains = (home, *(replace(home, **laws) for laws in _CHANNELS))
    channels = [Channel(partial(chain.cube_of, home), partial(home.cube_of, chain)) for chain in chains]
    return _ours("sbiflow-channels", channels, f, budget, events, seed, config)


def _ours(
    name: str,
    channels: Sequence[Channel],
    f: GluonScattering,
    budget: int,
    events: int,
    seed: int,
    config: IntegratorConfig | None,
) -> Run:
    counted, started = Counted(f), time.process_time()
    integrator = Integrator(
        [(0.0, 1.0)] * f.dim, periodic=f.phase_space.azimuths, channels=channels, config=config
    )
    result = integrator(counted, budget, seed=seed, progress=False)
    seconds, calls, integrand = time.process_time() - started, counted.calls, counted.seconds
    points = integrator.sample(events, seed + 1)
    weights = points.weights * math.exp(points.log_scale)
    remark = f"{result.method}: {'reliable' if result.reliable else 'unreliable'}, k-hat {result.diagnostics.khat:.2f}"
    return Run(
        name, float(result.mean), float(result.sdev), calls, result.n_train, seconds, integrand,
        points.x.cpu(), weights.cpu(), remark,
    )  # fmt: skip


def with_vegas(f: GluonScattering, budget: int, events: int, seed: int) -> Run:
    """vegas+, with its adaptive stratification."""
    vegas = require("vegas", extra="bench")
    counted, started, rng = Counted(f), time.process_time(), np.random.default_rng(seed)
    batch = vegas.lbatchintegrand(counted)
    integrator = vegas.Integrator([[0, 1]] * f.dim, ran_array_generator=rng.random)
    neval = budget // (_VEGAS_ADAPTS + _VEGAS_MEASURES)
    integrator(batch, nitn=_VEGAS_ADAPTS, neval=neval)
    training = counted.calls
    result = integrator(batch, nitn=_VEGAS_MEASURES, neval=neval, adapt=False)
    seconds, calls, integrand = time.process_time() - started, counted.calls, counted.seconds
    volumes, u = integrator.sample(nbatch=events, mode="lbatch")
    weights = torch.from_numpy(f(u) * volumes * len(volumes))
    remark = f"chi2/dof = {result.chi2 / result.dof:.2f}"
    return Run(
        "vegas", float(result.mean), float(result.sdev), calls, training, seconds, integrand,
        torch.from_numpy(u), weights, remark,
    )  # fmt: skip


def with_madnis(f: GluonScattering, budget: int, events: int, seed: int) -> Run:
    """madnis' flow on its grid of vegas."""
    madnis = require("madnis.integrator", extra="bench")
    counted, started = Counted(f), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        integrator = _trained_madnis(madnis, counted, budget, seed)
        training = counted.calls
        mean, sdev = integrator.integrate(budget - training)
        seconds, calls, integrand = time.process_time() - started, counted.calls, counted.seconds
        sample = integrator.sample(events)
    return Run(
        "madnis", mean, sdev, calls, training, seconds, integrand, sample.x.double(), sample.weights.double()
    )


def _trained_madnis(madnis: object, f: Counted, budget: int, seed: int) -> object:
    share = _MADNIS_TRAINS - _MADNIS_GRID
    steps = max(1, int(share * budget / _MADNIS_BATCH)) * (1 + _MADNIS_STORED)
    integrator = madnis.Integrator(
        f,
        dims=f.f.dim,
        batch_size=_MADNIS_BATCH,
        learning_rate=_MADNIS_RATE,
        scheduler=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
        loss=getattr(madnis, _MADNIS_LOSS),
        drop_zero_integrands=True,
        batch_size_threshold=_MADNIS_LEAST,
        buffer_capacity=budget,
        minimum_buffer_size=_MADNIS_BATCH,
        buffered_steps=_MADNIS_STORED,
    )
    grid = madnis.VegasPreTraining(integrator)
    grid.rng = np.random.default_rng(seed)
    grid.train([int(_MADNIS_GRID * budget / 7)] * 7)
    grid.initialize_integrator()
    limit = (
        int(_MADNIS_TRAINS * budget) - 2 * _MADNIS_BATCH
    )  # a step draws again where the cuts leave too few points
    while integrator.step < steps and f.calls < limit:
        integrator.train_step()
    return integrator


def methods(
    config: IntegratorConfig | None = None,
) -> dict[str, Callable[[GluonScattering, int, int, int], Run]]:
    """Ours, with its settings, and the peers that are installed."""
    peers = {"vegas": with_vegas, "madnis": with_madnis}
    ours = {"sbiflow": with_sbiflow, "sbiflow-channels": with_channels}
    return {name: partial(run, config=config) for name, run in ours.items()} | {
        name: run for name, run in peers.items() if importlib.util.find_spec(name)
    }
