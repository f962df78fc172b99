"""Does an observation look like what the simulator produces? A test attached to every posterior sample set.

The squared Mahalanobis distance of x from the simulated observations, in the space of their principal components,
plus what lies outside those components: a feature that never varies has none, so a deviation there counts as far.
Leading components hold what the parameters can do, trailing ones little but noise, so a feature that no parameter
explains stands out there. Its null distribution is not assumed but taken from held-out simulations, so
p = (1 + number at least as far) / (1 + number) is valid for any simulator, down to 1 / (1 + number). The test is
linear and joint: it can miss what bends along with the simulations; the posterior-predictive check sees more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALARM = 1e-3  # p-value below which an observation is called unlike the simulations
_RELATIVE_ZERO = 1e-6  # float32 rounding: smaller spreads are none


class Novelty(nn.Module):
    """Fitted by `fit`; `p_value(x)` then judges observations. All buffers are saved with the model."""

    mean: Tensor
    scale: Tensor
    basis: Tensor
    spread: Tensor
    rest: Tensor
    null: Tensor

    def __init__(self, size: int, components: int, held_out: int) -> None:
        super().__init__()
        shapes = {"mean": (size,), "scale": (size,), "basis": (size, components), "spread": (components,),
                  "rest": (), "null": (held_out,)}  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The arguments of the constructor."""
        return (*self.basis.shape, len(self.null))

    @classmethod
    def fit(cls, x: Tensor, held_out: Tensor, max_components: int = 256) -> Novelty:
        """From simulated observations x (n, *x_shape) and others (m, *x_shape) for the null distribution."""
        x = _flat(x)
        mean, scale = x.mean(0), x.std(0)
        constant = scale <= _RELATIVE_ZERO * mean.abs()
        unit = torch.where(mean == 0, torch.ones_like(mean), mean.abs())
        scale = torch.where(constant, unit, scale)
        _, singular, right = torch.linalg.svd((x - mean) / scale, full_matrices=False)
        spread = singular / (len(x) - 1) ** 0.5
        smallest = _RELATIVE_ZERO * spread[0].clamp(min=1.0)
        keep = int((spread > smallest).sum().clamp(max=max_components))
        novelty = cls(x.shape[1], keep, len(held_out))
        # spread per direction outside the components kept: their own mean, or rounding where there is none
        rest = (spread[keep:].square().sum() / max(x.shape[1] - keep, 1)).sqrt().clamp(min=smallest)
        fitted = {
            "mean": mean,
            "scale": scale,
            "basis": right[:keep].T,
            "spread": spread[:keep],
            "rest": rest,
        }
        for name, value in fitted.items():
            getattr(novelty, name).copy_(value)
        novelty.null.copy_(novelty.distance(held_out).sort().values)
        return novelty

    def distance(self, x: Tensor) -> Tensor:
        """Squared distance, (B, *x_shape) -> (B,), float64."""
        scaled = (_flat(x) - self.mean.cpu()) / self.scale.cpu()
        basis = self.basis.cpu()
        scores = scaled @ basis
        outside = scaled - scores @ basis.T
        squares = (scores / self.spread.cpu()).square().sum(-1) + (outside / self.rest.cpu()).square().sum(-1)
        return squares.nan_to_num(nan=torch.inf, posinf=torch.inf)  # inf - inf: as far as can be

    def p_value(self, x: Tensor) -> Tensor:
        """Share of simulated observations at least as far out, (B, *x_shape) -> (B,)."""
        null = self.null.cpu()
        farther = len(null) - torch.searchsorted(null, self.distance(x))
        return (1 + farther).double() / (1 + len(null))

    @property
    def alarm(self) -> float:
        """Largest p-value that is an alarm: `ALARM`, or farther out than all of fewer held-out simulations."""
        return max(ALARM, 1.001 / (1 + len(self.null)))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double().cpu()
