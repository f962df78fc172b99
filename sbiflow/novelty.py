"""Does an observation look like what the simulator produces? A test attached to every posterior sample set.

The squared Mahalanobis distance of x from the simulated observations, in the space of their principal components.
Leading components hold what the parameters can do, trailing ones little but noise, so a feature that no parameter
explains stands out there. Its null distribution is not assumed but taken from held-out simulations, so
p = (1 + number at least as far) / (1 + number) is valid for any simulator, down to 1 / (1 + number). The test is
linear and joint: it can miss what bends along with the simulations; the posterior-predictive check sees more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALARM = 1e-3  # p-value below which an observation is called unlike the simulations


class Novelty(nn.Module):
    """Fitted by `fit`; `p_value(x)` then judges observations. All buffers are saved with the model."""

    mean: Tensor
    whiten: Tensor
    null: Tensor

    def __init__(self, size: int, components: int, held_out: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("whiten", torch.zeros(size, components, dtype=torch.float64))
        self.register_buffer("null", torch.zeros(held_out, dtype=torch.float64))

    @classmethod
    def fit(cls, x: Tensor, held_out: Tensor, max_components: int = 256) -> Novelty:
        """From simulated observations x (n, ...) and others (m, ...) for the null distribution."""
        x, held_out = x.flatten(1).double().cpu(), held_out.flatten(1).double().cpu()
        mean = x.mean(0)
        scale = x.std(0)
        scale = torch.where(scale > 1e-6 * mean.abs(), scale, torch.ones_like(scale))
        _, singular, right = torch.linalg.svd((x - mean) / scale, full_matrices=False)
        spread = singular / (len(x) - 1) ** 0.5
        keep = int((spread > 1e-6 * spread[0]).sum().clamp(max=max_components))
        novelty = cls(x.shape[1], keep, len(held_out))
        novelty.mean.copy_(mean)
        novelty.whiten.copy_(right[:keep].T / spread[:keep] / scale[:, None])
        novelty.null.copy_(novelty.distance(held_out).sort().values)
        return novelty

    def distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance, (B, ...) -> (B,), float64."""
        centred = x.flatten(1).double().cpu() - self.mean.cpu()
        return (centred @ self.whiten.cpu()).square().sum(-1)

    def p_value(self, x: Tensor) -> Tensor:
        """Share of simulated observations at least as far out, (B, *x_shape) -> (B,)."""
        null = self.null.cpu()
        farther = len(null) - torch.searchsorted(null, self.distance(x))
        return (1 + farther) / (1 + len(null))
