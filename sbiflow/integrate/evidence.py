"""The evidence of a posterior, Z = ∫ p(x|θ) p(θ) dθ, by the integrator that starts from draws of the posterior.

In the prior's unit cube, u_i = F_i(θ_i) with the distribution function F_i of each parameter, the prior's density
drops out, its edges are the faces, and Z = ∫ p(x|θ(u)) du. A periodic parameter is a periodic axis. The draws train
the proposal and do not enter the estimate: their density is not needed, so a Markov chain will do, and draws that are
wrong cost accuracy or give a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.draws import Draws
from sbiflow.importance import LogLikelihood, evaluate_log_likelihood
from sbiflow.integrate.config import IntegratorConfig
from sbiflow.integrate.integrator import Integrator
from sbiflow.integrate.result import IntegralResult
from sbiflow.priors import Prior
from sbiflow.samples import WeightedSamples
from sbiflow.transforms.bounded import normal_tails

_LOW, _HIGH = 2.0**-54, 1 - 2.0**-53  # ends of the open interval in which the prior's quantiles are defined
_FACE = 1e-13  # doubles below 1 leave a posterior so close to a face of the cube no room
_MOST_DRAWS = 50_000  # more would only take longer to learn


def evidence(
    draws: Any,
    log_likelihood: LogLikelihood,
    budget: float = 100_000,
    *,
    seed: int,
    prior: Prior | None = None,
    x: Any = None,
    config: IntegratorConfig | None = None,
    **options: Any,
) -> IntegralResult:
    """log p(x) as `log_mean` ± `log_sdev` [nats], with the integrator's verdict.

    Args:
        draws: roughly of the posterior of one observation, in physical units: `PosteriorSamples`, `WeightedSamples`,
            or (m, D) numbers, a Markov chain say. Those outside `prior` are left out.
        log_likelihood: theta (n, D), x (*x_shape) -> (n,) [nats], normalised over x; called with float64 on the CPU.
        budget: likelihoods at the most, training included.
        seed: the same seed, the same answer.
        prior, x: of the evidence; those of the draws, if they have any.
        config: of the integrator.
        options: as for the call of an `Integrator`: rtol, executor, nonfinite, progress.

    Returns:
        An integral over the unit cube: `sample` and `unweight` give u; `prior.from_uniform(u)` is theta.

    Raises:
        ValueError: draws for several observations, fewer than 10 D within the prior, or more than 1 % of them beyond
            7 standard deviations of it; no prior or x; arguments that `Integrator` refuses.
    """
    if isinstance(draws, Draws):
        prior, x = prior or draws.prior, draws.x if x is None else x
    if prior is None or x is None:
        raise ValueError(f"prior, x: expected both with draws of type {type(draws).__name__}, got none")
    x = as_tensor(x, "x", torch.float64)
    check_finite(x, "x")
    start = _points(draws, prior, seed)
    wraps = prior.periodic.nonzero()[:, 0].tolist()
    integrator = Integrator([(0.0, 1.0)] * prior.dim, periodic=wraps, config=config)
    target = CubeLikelihood(log_likelihood, prior, x)
    return integrator(target, budget, seed=seed, log=True, calls="torch", start=start, **options)


@dataclass(frozen=True, eq=False)
class CubeLikelihood:
    """log p(x|θ(u)), u (n, D) in [0, 1] -> (n,) [nats]; picklable if `log_likelihood` is."""

    log_likelihood: LogLikelihood
    prior: Prior
    x: Tensor

    def __call__(self, u: Tensor) -> Tensor:
        theta = self.prior.from_uniform(u.cpu().clamp(_LOW, _HIGH))
        return evaluate_log_likelihood(self.log_likelihood, theta, self.x, progress=False)


def to_cube(prior: Prior, theta: Tensor) -> Tensor:
    """u (m, D) of theta (m, D) inside the support: the inverse of `prior.from_uniform`."""
    z, _ = prior.unconstrain(theta)
    return torch.where(prior.periodic, z / (2 * math.pi) + 0.5, normal_tails(z)[0])


def _points(draws: Any, prior: Prior, seed: int) -> Tensor:
    """Equally weighted draws in the cube, (m, D); weights that are not reliable are not used."""
    if isinstance(draws, WeightedSamples) and draws.diagnostics.reliable:
        draws = draws.resample(len(draws), seed)
    theta = as_tensor(draws.theta if isinstance(draws, Draws) else draws, "draws", torch.float64).cpu()
    check_shape(theta, "draws", ("m", prior.dim))
    check_finite(theta, "draws")
    theta = theta[prior.inside(theta)]
    u = to_cube(prior, theta[:: max(math.ceil(len(theta) / _MOST_DRAWS), 1)])
    lost = (torch.minimum(u, 1 - u) < _FACE) & ~prior.periodic
    if int(lost.any(1).sum()) > 0.01 * len(u):
        name, share = prior.names[int(lost.sum(0).argmax())], float(lost.any(1).double().mean())
        raise ValueError(f"{name}: expected draws within 7 sd of its prior, got {share:.0%} beyond")
    return u
