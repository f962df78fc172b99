"""Elementwise map by the distribution function of a mixture of logistics: Flow++ (Ho et al. 2019, arXiv 1902.00275).

With F(x) = sum_k pi_k sigmoid((x - mu_k) / s_k), their eqs. 9-12 read

    y = exp(a) logit F(x) + b,    log dy/dx = a + log(f / F + f / S),    S = 1 - F,  f = dF/dx.

Numerics. log F and log S are each a logsumexp of logs of sigmoids, so that neither tail is a difference from one; and

    f / F = sum_k r_k sigmoid(-z_k) / s_k,    f / S = sum_k t_k sigmoid(z_k) / s_k,    z_k = (x - mu_k) / s_k,

where r_k, t_k are the components' shares in F and in S: positive terms, of which nothing cancels.

Two departures from the paper. A share `MIN_SHARE` of the mixture is a logistic about zero, as wide as the means are
spread, up to exp(limit), and the standard one where they are zero: between narrow components F would else be flat to
far below the last digit, and x lost. And means and log-scales are raw parameters times a gain that differs from
component to component: with all raw parameters zero the map is exactly the identity, where all components are alike,
and without gains their gradients would be and remain alike, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from sbiflow.transforms.roots import increasing_root
from sbiflow.transforms.splines import soft_clamp

MIN_SHARE = 1e-3
_GAINS = (0.5, 1.5)  # of the first and the last component
_STEPS = 30  # of the inverse: see tests/transforms/test_mixture_cdf.py


class Mixture(NamedTuple):
    """Logistic distributions: log-weights, means and scales, (..., K) each."""

    log_weight: Tensor
    mean: Tensor
    scale: Tensor

    def log_tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log F(x) and log(1 - F(x)), (...): the smaller one of F and 1 - F to relative accuracy."""
        lower, upper, _ = self._terms(x)
        return torch.logsumexp(lower, -1), torch.logsumexp(upper, -1)

    def logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """logit F(x) and its derivative, (...)."""
        lower, upper, z = self._terms(x)
        value = torch.logsumexp(lower, -1) - torch.logsumexp(upper, -1)
        share = torch.softmax(lower, -1) * torch.sigmoid(-z) + torch.softmax(upper, -1) * torch.sigmoid(z)
        return value, (share / self.scale).sum(-1)

    def from_logit(self, target: Tensor) -> Tensor:
        """x with logit F(x) = target, (...)."""
        # F lies between its components, so its quantile between theirs
        own = self.mean + self.scale * target[..., None]
        return increasing_root(self.logit, target, own.amin(-1), own.amax(-1), _STEPS)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each component's part in log F and log S, and (x - mean) / scale."""
        z = (x[..., None] - self.mean) / self.scale
        return self.log_weight + logsigmoid(z), self.log_weight + logsigmoid(-z), z


@dataclass(frozen=True)
class MixtureCDF:
    """y = exp(a) logit F(x) + b, for F of so many logistics and |a|, |log s_k| < limit; the identity at zero.

    Parameters in order: b, raw a, K logits of weights, K raw means, K raw log-scales.
    """

    components: int = 8
    limit: float = 3.0

    @property
    def size(self) -> int:
        return 3 * self.components + 2

    def __call__(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shift, log_scale = params[..., 0], soft_clamp(params[..., 1], self.limit)
        own = self.mixture(params[..., 2:])
        if inverse:
            outputs = own.from_logit((inputs - shift) * torch.exp(-log_scale))
            return outputs, -log_scale - torch.log(own.logit(outputs)[1])
        value, slope = own.logit(inputs)
        return value * torch.exp(log_scale) + shift, log_scale + torch.log(slope)

    def mixture(self, raw: Tensor) -> Mixture:
        """From K logits of weights, K raw means and K raw log-scales (..., 3 K); the wide one is the last."""
        logits, means, scales = raw.split(self.components, -1)
        gain = torch.linspace(*_GAINS, self.components, dtype=raw.dtype, device=raw.device)
        log_weight = torch.log_softmax(logits, -1) + math.log1p(-MIN_SHARE)
        mean, scale = gain * means, torch.exp(soft_clamp(gain * scales, self.limit))
        # the farthest mean is within sqrt(K) times it; the tails are as wide as it is, which has to have a limit
        wide = torch.sqrt(1 + mean.square().mean(-1, keepdim=True)).clamp(max=math.exp(self.limit))
        return Mixture(
            pad(log_weight, (0, 1), value=math.log(MIN_SHARE)),
            pad(mean, (0, 1)),
            torch.cat([scale, wide], -1),
        )
