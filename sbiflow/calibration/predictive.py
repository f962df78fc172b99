"""Does the observation lie within what the simulator produces?

Posterior-predictive p-value of a realised discrepancy (Gelman, Meng & Stern 1996, Statistica Sinica 6, 733):
for posterior draws theta and replicated data x_rep ~ p(x | theta), p = (1 + k) / (1 + n) with k of n data sets that
have D(x_rep, theta) >= D(x, theta). With a likelihood D = -2 log p(x | theta); without one it is the squared distance
from the mean of the replicated data, in their standard deviations, summed over the features.

It is not a frequentist p-value: the parameters are fitted to x and not to x_rep, so that under a true model and
posterior p gathers around 1/2. With a likelihood it falls below alpha for at most 2 alpha of the prior's simulations
(Meng 1994, Annals of Statistics 22, 1142), usually for far fewer: a small p is a stronger signal than its number
says, a large one a weaker. It misses what another parameter can mimic, and a posterior that is wrong for a good model
makes it small as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbiflow.blocks import AnySimulator
from sbiflow.checks import as_tensor, check_count, check_finite, check_shape
from sbiflow.contracts import RowSimulator
from sbiflow.observing import observe
from sbiflow.seeding import check_seed, row_rng, torch_generator

_KEY = 7302
_ROUNDING = (
    1e-6  # of float32: an observation stored in it may be off by as much from a feature that never varies
)


@dataclass(frozen=True)
class PredictiveCheck:
    """Whether an observation is an ordinary product of the simulator at the posterior's parameters.

    Attributes:
        p_value: share of replicated data that lie at least as far off as the observation, (1 + k) / (1 + n).
        excess: (mean D(x) - mean D(x_rep)) in standard deviations of D(x_rep).
        n: replicated data sets.
        alpha: the p-value below which the observation counts as outside.
        discrepancy: what D is.
        worst_feature, worst_z: index of the feature of x furthest from the replicated mean, in its sd.
    """

    p_value: float
    excess: float
    n: int
    alpha: float
    discrepancy: str
    worst_feature: tuple[int, ...]
    worst_z: float

    @property
    def inside(self) -> bool:
        return self.p_value >= self.alpha

    @property
    def verdict(self) -> str:
        share = f"{self.p_value:.3g}"
        if not self.inside:
            return (
                f"The observation lies OUTSIDE what the simulator produces (p {share}): its misfit is "
                f"{self.excess:.3g} sd above that of simulated data with the same parameters, and the worst "
                f"feature {self.worst_feature} is off by {self.worst_z:+.3g} sd. Do not trust the posterior: "
                "the model or its noise level does not describe this observation."
            )
        text = f"The observation lies within what the simulator produces (p {share})."
        if self.p_value > 1 - self.alpha:
            text += " It fits better than simulated data do: the noise level may be too high."
        return text

    def __str__(self) -> str:
        return self.verdict


def replicate(theta: Tensor, simulator: AnySimulator, seed: int) -> Tensor:
    """One data set per row of theta: (n, D) -> (n, *x_shape), float64.

    Raises:
        ValueError: the simulator failed (NaN or inf) for a row.
    """
    if isinstance(simulator, RowSimulator):
        rows = [simulator.simulate_row(t, row_rng(seed, i, _KEY)) for i, t in enumerate(theta.numpy())]
        signal = torch.from_numpy(np.stack(rows)).double()
    else:
        with torch.no_grad():
            parts = [simulator.signal(block) for block in theta.split(1024)]
        signal = torch.cat(parts).detach().cpu().double()
    check_finite(signal, "simulated data at the posterior's parameters")
    return observe(simulator, theta, signal, torch_generator(seed, _KEY, 1))


def predictive_check(
    theta: Tensor,
    weights: Tensor | None,
    simulator: AnySimulator,
    x: Tensor,
    seed: int,
    *,
    n: int = 2000,
    alpha: float = 0.01,
) -> PredictiveCheck:
    """Posterior-predictive check of one observation.

    Args:
        theta: posterior draws (m, D), physical units.
        weights: importance weights (m,), or None if the draws are of equal weight.
        simulator: what made the model; its `log_likelihood`, if it has one, defines the discrepancy.
        x: the observation (*x_shape).
        seed: of the replicated data.
        n: replicated data sets, drawn from `theta` with replacement.
        alpha: p-value below which the observation counts as outside.

    Raises:
        ValueError: wrong shapes, NaN in x, weights that are negative or all zero, a simulator that fails, a
            likelihood that is NaN.
    """
    check_seed(seed)
    check_count(n, "n", 100)
    theta = as_tensor(theta, "theta").detach().double().cpu()
    check_shape(theta, "theta", ("m", simulator.prior.dim))
    x = as_tensor(x, "x").detach().double().cpu()
    check_shape(x, "x", simulator.x_shape)
    check_finite(x, "x")
    w = torch.ones(len(theta)) if weights is None else as_tensor(weights, "weights").detach().double().cpu()
    check_shape(w, "weights", (len(theta),))
    if not bool((w >= 0).all()) or not 0 < float(w.sum()) < float("inf"):
        raise ValueError("weights: expected finite values >= 0, not all zero")
    chosen = theta[torch.multinomial(w, n, replacement=True, generator=torch_generator(seed, _KEY, 2))]
    data = replicate(chosen, simulator, seed)
    mean = data.mean(0)
    sd = torch.maximum(data.std(0), _ROUNDING * mean.abs()).clamp(min=1e-300)
    log_likelihood = getattr(simulator, "log_likelihood", None)
    if log_likelihood is not None:
        with torch.no_grad():
            rep = -2 * torch.cat(
                [log_likelihood(t, d) for t, d in zip(chosen.split(1024), data.split(1024), strict=True)]
            )
            obs = -2 * torch.cat([log_likelihood(t, x) for t in chosen.split(1024)])
        if bool(torch.isnan(rep).any() or torch.isnan(obs).any()):
            raise ValueError("log_likelihood: expected numbers, got NaN at the posterior's parameters")
        name = "-2 log-likelihood"
    else:
        rep = (((data - mean) / sd) ** 2).reshape(n, -1).sum(1)
        obs = (((x - mean) / sd) ** 2).sum().expand(n)
        name = "squared distance from the mean of the replicated data"
    z = torch.where(x == mean, torch.zeros_like(x), (x - mean) / sd)
    worst = np.unravel_index(int(z.abs().argmax()), tuple(z.shape))
    return PredictiveCheck(
        p_value=(1 + int((rep >= obs).sum())) / (1 + n),
        excess=float((obs.mean() - rep.mean()) / rep.std().clamp(min=1e-300)),
        n=n,
        alpha=alpha,
        discrepancy=name,
        worst_feature=tuple(int(i) for i in worst),
        worst_z=float(z.reshape(-1)[int(z.abs().argmax())]),
    )
