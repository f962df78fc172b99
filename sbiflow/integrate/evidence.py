"""The evidence of a posterior, Z = ∫ p(x|θ) p(θ) dθ, by the integrator that starts from draws of the posterior.

In the prior's unit cube, u_i = F_i(θ_i) with the distribution function F_i of each parameter, the prior's density
drops out and its edges are the faces:

    Z = ∫ over [0, 1]^D of p(x|θ(u)) du

A periodic parameter is a periodic axis. The draws train the proposal and do not enter the estimate, so their density
is not needed, a Markov chain will do, and draws that are wrong cost accuracy, which the verdict tells, or are warned of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
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

_EDGE = 2.0**-54  # of the open interval (0, 1) in which the prior's quantiles are defined
_FACE = 1e-13  # doubles below 1 leave a posterior so close to a face of the cube no room
_MOST_DRAWS = 50_000  # more would only take longer to learn
_RESAMPLE_KEY = 0x4556


@dataclass(frozen=True, eq=False)
class CubeLikelihood:
    """log p(x|θ(u)) of points u in the prior's unit cube; picklable if `log_likelihood` is."""

    log_likelihood: LogLikelihood
    prior: Prior
    x: Tensor

    def __call__(self, u: Tensor) -> Tensor:
        """u (n, D) in [0, 1] -> (n,) [nats], on the CPU."""
        return evaluate_log_likelihood(self.log_likelihood, self.theta(u), self.x, progress=False)

    def theta(self, u: Tensor) -> Tensor:
        """Parameters (n, D) of u, inside the support also on the faces."""
        return self.prior.from_uniform(u.cpu().clamp(_EDGE, 1 - 2.0**-53))


def to_cube(prior: Prior, theta: Tensor) -> Tensor:
    """The inverse of `prior.from_uniform`: theta (m, D) inside the support -> u (m, D) in [0, 1]."""
    z = prior.unconstrain(theta)[0]
    return torch.where(prior.periodic, z / (2 * torch.pi) + 0.5, normal_tails(z)[0])


def evidence(
    start: Draws | Tensor | np.ndarray | None,
    log_likelihood: LogLikelihood,
    budget: float = 100_000,
    *,
    seed: int,
    prior: Prior | None = None,
    x: Any = None,
    config: IntegratorConfig | None = None,
    device: str | torch.device = "auto",
    **options: Any,
) -> IntegralResult:
    """log p(x) as `log_mean` ± `log_sdev` [nats], with the verdict of the integrator.

    Args:
        start: draws of the posterior for one observation: those of a flow, reweighted ones, a Markov chain, or an
            array (m, D) in physical units. Those outside `prior` are left out. None: no warm start.
        log_likelihood: theta (n, D), x (*x_shape) -> (n,) [nats], normalised over x; called with float64 on the CPU.
        budget: likelihoods at the most, those of training included; the start costs none.
        seed: the same seed, the same answer.
        prior, x: of the evidence; by default those of the draws.
        config, device: as for `Integrator`.
        options: as for the call of an `Integrator`: rtol, executor, nonfinite, progress.

    Returns:
        The integral over the unit cube: `sample` and `unweight` give u, and `prior.from_uniform(u)` parameters.

    Raises:
        ValueError: draws for several observations, fewer than 10 D within the prior, or farther out in its tails
            than 7 standard deviations; no prior or no x; arguments that `Integrator` refuses.
    """
    if isinstance(start, Draws):
        prior, x = prior or start.prior, start.x if x is None else x
    if prior is None or x is None:
        missing = "prior" if prior is None else "x"
        raise ValueError(f"{missing}: expected one with a start of type {type(start).__name__}, got none")
    x = as_tensor(x, "x", torch.float64)
    check_finite(x, "x")
    points = None if start is None else _start_points(start, prior, seed)
    periodic = prior.periodic.nonzero()[:, 0].tolist()
    integrator = Integrator([(0.0, 1.0)] * prior.dim, periodic=periodic, config=config, device=device)
    likelihood = CubeLikelihood(log_likelihood, prior, x)
    return integrator(likelihood, budget, seed=seed, log=True, calls="torch", start=points, **options)


def _start_points(start: Draws | Tensor | np.ndarray, prior: Prior, seed: int) -> Tensor:
    """Equally weighted draws in the cube, (m, D)."""
    if isinstance(start, WeightedSamples) and start.diagnostics.reliable:
        start = start.resample(len(start), seed)
    theta = as_tensor(start.theta if isinstance(start, Draws) else start, "start", torch.float64)
    check_shape(theta, "start", ("m", prior.dim))
    check_finite(theta, "start")
    theta = theta.cpu()[prior.inside(theta.cpu())]
    u = to_cube(prior, theta[:: -(-len(theta) // _MOST_DRAWS) or 1])
    lost = (torch.minimum(u, 1 - u) < _FACE) & ~prior.periodic
    if len(u) and float(lost.any(1).double().mean()) > 0.01:
        name = prior.names[int(lost.sum(0).argmax())]
        raise ValueError(
            f"start: expected draws within 7 sd of the prior of {name}, got {int(lost.any(1).sum())} beyond"
        )
    return u
