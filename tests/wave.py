"""A simulator with extrinsic parameters whose posterior is known in closed form.

Signal (2,): (s, s / 2). Projection, complex (2,): ((s + 3 a / 5) + i (s / 2 - a), e^{i phi}). Observation (4,): their
real and imaginary parts plus noise N(0, noise_sd²). In (s, a) the model is linear and the posterior that of
LinearGaussian. The two numbers left, y, have a mean of constant length: p(y | phi) is proportional to
exp(|y| cos(phi - arg y) / noise_sd²), and phi, uniform before, is von Mises. Both are independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, VonMises

from sbiflow.priors import Normal, PeriodicUniform, Prior
from tests.toys import LinearGaussian

_LENGTH = 1.0
_S = torch.tensor([1.0, 0.5], dtype=torch.float64)
_A = torch.tensor([0.6, -1.0], dtype=torch.float64)


def _numbers(projected: Tensor) -> Tensor:
    return torch.view_as_real(projected).flatten(1)


def wave_prior() -> Prior:
    """An intrinsic strength s, an amplitude a and a phase phi."""
    return Prior(Normal("s", 0.5, 1.0), Normal("a", -1.0, 2.0), PeriodicUniform("phi", unit="rad"))


@dataclass(frozen=True)
class Wave:
    """See the module."""

    noise_sd: float = 0.5
    extrinsic: tuple[str, ...] = ("a", "phi")
    prior: Prior = field(default_factory=wave_prior)
    name: str = "wave"
    version: str = "1"
    x_shape: tuple[int, ...] = (4,)
    signal_shape: tuple[int, ...] = (2,)

    def signal(self, theta: Tensor) -> Tensor:
        """(n, 3) -> (n, 2)."""
        return theta[:, :1] * _S.to(theta)

    def project(self, theta: Tensor, signal: Tensor) -> Tensor:
        """(n, 3), (n, 2) -> (n, 2) complex, in the precision of the signal."""
        linear = signal + theta[:, 1:2] * _A.to(theta)
        first = torch.complex(linear[:, 0], linear[:, 1])
        second = torch.polar(torch.full_like(theta[:, 2], _LENGTH), theta[:, 2])
        return torch.stack([first, second], -1).to(signal.dtype.to_complex())

    def noiseless(self, projected: Tensor) -> Tensor:
        """(n, 2) complex -> (n, 4)."""
        return _numbers(projected)

    def observe(self, projected: Tensor, generator: Generator | None = None) -> Tensor:
        """(n, 2) complex -> (n, 4) with noise."""
        x = _numbers(projected)
        return x + self.noise_sd * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta), theta (n, 3), x (4,) or (n, 4) -> (n,)."""
        mean = self.noiseless(self.project(theta, self.signal(theta)))
        return torch.distributions.Normal(mean, self.noise_sd).log_prob(x).sum(-1)

    @property
    def linear(self) -> LinearGaussian:
        """The half of x that s and a make."""
        return LinearGaussian(torch.stack([_S, _A], -1), self.noise_sd, Prior(*self.prior.marginals[:2]))

    def von_mises(self, x: Tensor) -> VonMises:
        """Posterior of phi, x (..., 4)."""
        x = x.double()
        return VonMises(
            torch.atan2(x[..., 3], x[..., 2]), _LENGTH * x[..., 2:].norm(dim=-1) / self.noise_sd**2
        )


@dataclass(frozen=True)
class WavePosterior:
    """The exact posterior, or, with `shift`, one that is off by so many radians in phi."""

    simulator: Wave
    shift: float = 0.0

    @property
    def prior(self) -> Prior:
        """The simulator's prior."""
        return self.simulator.prior

    def _normal(self, x: Tensor) -> MultivariateNormal:
        return self.simulator.linear.exact_proposal().distribution(x[..., :2])

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, 4) -> theta (n, B, 3), log q (n, B)."""
        linear, _ = self.simulator.linear.exact_proposal().sample_and_log_prob(x[..., :2], n, generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        angle = self.simulator.von_mises(x)
        phi = rng.vonmises(angle.loc.numpy(), angle.concentration.numpy(), (n, len(x)))
        phi = torch.from_numpy(phi + self.shift).remainder(2 * torch.pi)
        theta = torch.cat([linear, phi[..., None]], -1)
        return theta, self.log_prob(theta, x)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (..., n, 3), x (n, 4) -> (..., n)."""
        angle = self.simulator.von_mises(x).log_prob(theta[..., 2] - self.shift)
        return self._normal(x).log_prob(theta[..., :2]) + angle
