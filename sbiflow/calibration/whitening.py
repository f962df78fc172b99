"""Draws of a proposal in units of its own spread at each x: u = L^-1 (z - mean).

z are the prior's base coordinates; mean and covariance L L^T are those of further draws of the proposal at the same
x, so that what is being judged has no part in its own scale. An error of a tenth of a posterior sd looks the same
for a narrow posterior and a wide one.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_shape
from sbiflow.contracts import Proposal
from sbiflow.priors import Prior

_WHITENING_DRAWS = 100
_CHUNK = 500  # observations at a time


def _draw(proposal: Proposal, x: Tensor, n: int, generator: Generator) -> Tensor:
    """Draws in base coordinates, (n, B, D)."""
    theta, _ = proposal.sample_and_log_prob(x, n, generator)
    check_shape(theta, "the proposal's draws", (n, len(x), proposal.prior.dim))
    outside = int((~proposal.prior.inside(theta)).sum())
    if outside:
        raise ValueError(f"proposal: expected draws inside the prior's support, got {outside} outside")
    return proposal.prior.unconstrain(theta)[0]


def whitening(z: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Mean (B, D) and Cholesky factor (B, D, D) of draws z (n, B, D); circular means of phases."""
    phase = torch.atan2(z.sin().mean(0), z.cos().mean(0))
    mean = torch.where(prior.periodic, phase, z.mean(0))
    centred = _centred(z, mean, prior)
    covariance = torch.einsum("nbi,nbj->bij", centred, centred) / len(z)
    floor = 1e-10 * covariance.diagonal(dim1=-2, dim2=-1) + 1e-30  # draws that are all equal
    return mean, torch.linalg.cholesky(covariance + torch.diag_embed(floor))


def _centred(z: Tensor, mean: Tensor, prior: Prior) -> Tensor:
    """z - mean, phases within half a turn."""
    difference = z - mean
    turned = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    return torch.where(prior.periodic, turned, difference)


def whiten(z: Tensor, mean: Tensor, factor: Tensor, prior: Prior) -> Tensor:
    """L^-1 (z - mean): z (..., B, D) -> (..., B, D)."""
    centred = _centred(z, mean, prior).unsqueeze(-1)
    return torch.linalg.solve_triangular(factor, centred, upper=False).squeeze(-1)


def whitened_pairs(
    proposal: Proposal, theta: Tensor, x: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """u of the true parameters and of one draw for each x, both (n, D)."""
    prior, truth, drawn = proposal.prior, [], []
    for some_theta, some_x in zip(theta.split(_CHUNK), x.split(_CHUNK), strict=True):
        z = _draw(proposal, some_x, 1 + _WHITENING_DRAWS, generator)
        mean, factor = whitening(z[1:], prior)
        drawn.append(whiten(z[0], mean, factor, prior))
        truth.append(whiten(prior.unconstrain(some_theta)[0], mean, factor, prior))
    return torch.cat(truth), torch.cat(drawn)


def whitened_at(proposal: Proposal, x: Tensor, n: int, generator: Generator) -> Tensor:
    """u of n draws at one observation (1, *x_shape), whitened like the pairs: (n, D)."""
    z = _draw(proposal, x, n + _WHITENING_DRAWS, generator)
    mean, factor = whitening(z[:_WHITENING_DRAWS], proposal.prior)
    return whiten(z[_WHITENING_DRAWS:], mean, factor, proposal.prior)[:, 0]
