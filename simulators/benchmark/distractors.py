"""What SLCP's distractors come from: a mixture of multivariate t distributions, ours or the published one.

Appendix T.4 of arXiv 2101.04653 and Greenberg et al. (2019), arXiv 1905.07488: 20 components of two degrees of freedom
with equal weights, locations 15 N(0, 1), and lower-triangular scales of 3 N(0, 1) with another 3 exp(N(0, 1)) on the
diagonal, as those of the published mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sbiflow.checks import check_count, check_shape

_COMPONENTS, _FREEDOM = 20, 2.0
_LOCATION, _SPREAD = 15.0, 3.0


@dataclass(frozen=True, eq=False)
class Distractors:
    """A mixture with equal weights of t distributions.

    Attributes:
        loc: locations (k, E), float64.
        scale: lower-triangular scales (k, E, E), float64, with no zero on the diagonal.
        freedom: degrees of freedom.

    Raises:
        ValueError: other shapes, or a scale that is not lower triangular, or singular.
    """

    loc: Tensor
    scale: Tensor
    freedom: float = _FREEDOM

    def __post_init__(self) -> None:
        check_shape(self.loc, "loc", ("k", "E"))
        check_shape(self.scale, "scale", (*self.loc.shape, self.dim))
        if not torch.equal(self.scale, self.scale.tril()) or bool((self._diagonal == 0).any()):
            raise ValueError("scale: expected invertible lower-triangular matrices, got others")

    @property
    def dim(self) -> int:
        """Number of columns, E."""
        return self.loc.shape[1]

    @property
    def _diagonal(self) -> Tensor:
        return self.scale.diagonal(dim1=-2, dim2=-1)

    def sample(self, like: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw for every row of `like`, (n, E), in its dtype and on its device."""
        place: dict = {"generator": generator, "device": like.device}
        n, half = len(like), 0.5 * self.freedom
        picked = torch.randint(len(self.loc), (n,), **place)
        normal = torch.randn((n, self.dim), dtype=like.dtype, **place)
        # chi-squared = 2 Gamma(freedom / 2); an integer shape is a sum of exponentials
        uniform = torch.rand((n, math.ceil(half)), dtype=like.dtype, **place)
        chi2 = -2.0 * torch.log1p(-uniform).sum(-1, keepdim=True)
        loc, scale = self.loc.to(like), self.scale.to(like)
        spread = torch.empty_like(normal)
        for component in picked.unique().tolist():
            rows = picked == component
            spread[rows] = loc[component] + (normal[rows] @ scale[component].T) * torch.sqrt(
                self.freedom / chi2[rows]
            )
        return spread

    def log_prob(self, noise: Tensor) -> Tensor:
        """Normalised log-density, (n, E) -> (n,)."""
        loc, scale = self.loc.to(noise), self.scale.to(noise)
        away = torch.linalg.solve_triangular(scale, (noise - loc[:, None]).mT, upper=False)  # (k, E, n)
        nu, dim = self.freedom, self.dim
        constant = math.lgamma(0.5 * (nu + dim)) - math.lgamma(0.5 * nu) - 0.5 * dim * math.log(nu * math.pi)
        log_scale = self._diagonal.to(noise).abs().log().sum(-1)[:, None]
        parts = constant - log_scale - 0.5 * (nu + dim) * torch.log1p(away.square().sum(1) / nu)
        return torch.logsumexp(parts, 0) - math.log(len(loc))


def seeded_distractors(seed: int, dim: int) -> Distractors:
    """The mixture that a seed fixes."""
    rng = np.random.default_rng(check_count(seed, "seed", 0))
    loc = _LOCATION * rng.standard_normal((_COMPONENTS, dim))
    scale = np.tril(_SPREAD * rng.standard_normal((_COMPONENTS, dim, dim)))
    scale += _SPREAD * np.exp(rng.standard_normal((_COMPONENTS, dim, 1))) * np.eye(dim)
    return Distractors(torch.from_numpy(loc), torch.from_numpy(scale))
