"""Simulators whose posterior and evidence are known in closed form: x = A theta + noise, all Gaussian.

With prior theta ~ N(m, P) and noise N(0, s² I):  x ~ N(A m, A P Aᵀ + s² I), and theta | x ~ N(mean, C) with
C = (P⁻¹ + Aᵀ A / s²)⁻¹ and mean = C (P⁻¹ m + Aᵀ x / s²)  (e.g. Bishop, PRML, eq. 2.113-2.117).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from sbiflow.priors import Normal, Prior

DEFAULT_MATRIX = ((1.0, 0.5), (0.0, 1.0), (0.7, -0.3))


def normal_prior(mean: tuple[float, ...] = (0.5, -1.0), sd: tuple[float, ...] = (1.0, 2.0)) -> Prior:
    """Independent normals named t0, t1, … with unit "m"."""
    return Prior(*(Normal(f"t{i}", m, s, unit="m") for i, (m, s) in enumerate(zip(mean, sd, strict=True))))


@dataclass(frozen=True)
class LinearGaussian:
    """x = A theta + noise_sd * standard normal, with a prior of `Normal` marginals; picklable.

    Args:
        matrix: A, (K, D) as nested tuples or a tensor.
        noise_sd: standard deviation of the noise in every feature.
        prior: a Prior of Normal marginals; standard-ish normals of dimension D by default.
    """

    matrix: Tensor | tuple[tuple[float, ...], ...] = DEFAULT_MATRIX
    noise_sd: float = 0.5
    prior: Prior = field(default_factory=normal_prior)
    name: str = "linear-gaussian"
    version: str = "1"

    @property
    def a(self) -> Tensor:
        """A, (K, D), float64."""
        return torch.as_tensor(self.matrix, dtype=torch.float64)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.a.shape[0],)

    def signal(self, theta: Tensor) -> Tensor:
        """(n, D) -> (n, K)."""
        return theta @ self.a.to(theta).T

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Adds the noise, (n, K) -> (n, K)."""
        noise = torch.randn(signal.shape, generator=generator, dtype=signal.dtype, device=signal.device)
        return signal + self.noise_sd * noise

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta) [nats], theta (n, D), x (K,) or (n, K) -> (n,)."""
        mean = theta.double() @ self.a.T
        return torch.distributions.Normal(mean, self.noise_sd).log_prob(x.double()).sum(-1)

    def prior_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of the prior."""
        mean = torch.tensor([m.mean for m in self.prior.marginals], dtype=torch.float64)
        sd = torch.tensor([m.sd for m in self.prior.marginals], dtype=torch.float64)
        return mean, torch.diag(sd**2)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean (B, D) ((D,) for a single x) and covariance (D, D), x (B, K) or (K,)."""
        mean, covariance = self.prior_moments()
        precision = torch.linalg.inv(covariance)
        posterior_covariance = torch.linalg.inv(precision + self.a.T @ self.a / self.noise_sd**2)
        information = precision @ mean + x.double() @ self.a / self.noise_sd**2
        return information @ posterior_covariance, posterior_covariance

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), x (B, K) or (K,) -> (B,) or ()."""
        mean, covariance = self.prior_moments()
        noise = self.noise_sd**2 * torch.eye(self.a.shape[0], dtype=torch.float64)
        return MultivariateNormal(self.a @ mean, self.a @ covariance @ self.a.T + noise).log_prob(x.double())

    def exact_proposal(self, scale: float = 1.0, shift: float = 0.0) -> GaussianProposal:
        """The exact posterior as a Proposal; `scale` widens it, `shift` moves it by that many of its sd."""
        return GaussianProposal(self, scale, shift)

    def prior_proposal(self) -> PriorProposal:
        """The prior as a Proposal: what a flow that learned nothing returns."""
        return PriorProposal(self.prior)


@dataclass(frozen=True)
class GaussianProposal:
    """The exact posterior of a LinearGaussian, `scale` times as wide and `shift` of its sd away."""

    simulator: LinearGaussian
    scale: float = 1.0
    shift: float = 0.0

    @property
    def prior(self) -> Prior:
        """The simulator's prior."""
        return self.simulator.prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The simulator's x_shape."""
        return self.simulator.x_shape

    def distribution(self, x: Tensor) -> MultivariateNormal:
        """x (B, K) -> B normals in D dimensions."""
        mean, covariance = self.simulator.posterior(x)
        mean = mean + self.shift * covariance.diagonal().sqrt()
        return MultivariateNormal(mean, scale_tril=self.scale * torch.linalg.cholesky(covariance))

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, K) -> theta (n, B, D), log q (n, B)."""
        normal = self.distribution(x)
        standard = torch.randn((n, *normal.mean.shape), generator=generator, dtype=torch.float64)
        theta = normal.mean + (normal.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)
        return theta, normal.log_prob(theta)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (n, D), x (n, K) -> (n,)."""
        return self.distribution(x).log_prob(theta.double())


@dataclass(frozen=True)
class PriorProposal:
    """Draws from the prior, whatever x is."""

    prior: Prior

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, K) -> theta (n, B, D), log q (n, B)."""
        theta = self.prior.sample(n * x.shape[0], generator).reshape(n, x.shape[0], -1)
        return theta, self.prior.log_prob(theta)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (n, D) -> (n,)."""
        return self.prior.log_prob(theta)


@dataclass(frozen=True)
class TwoModes:
    """x = +A theta + noise or -A theta + noise, the sign hidden and either with probability 1/2.

    With a prior of mean 0 the posterior is 1/2 N(mean(x), C) + 1/2 N(-mean(x), C), mean and C being those of the
    LinearGaussian: which mode holds the truth is a coin that x says nothing of.
    """

    linear: LinearGaussian = field(default_factory=lambda: LinearGaussian(prior=normal_prior((0.0, 0.0))))
    name: str = "two-modes"
    version: str = "1"

    @property
    def prior(self) -> Prior:
        """Of mean 0."""
        return self.linear.prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        """(K,)."""
        return self.linear.x_shape

    def signal(self, theta: Tensor) -> Tensor:
        """(n, D) -> (n, K)."""
        return self.linear.signal(theta)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """Turns the sign of every row at random and adds the noise, (n, K) -> (n, K)."""
        coin = torch.rand(len(signal), generator=generator, dtype=signal.dtype, device=signal.device)
        return self.linear.observe(torch.where(coin < 0.5, 1.0, -1.0)[:, None] * signal, generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta) [nats], theta (n, D), x (K,) or (n, K) -> (n,)."""
        both = [self.linear.log_likelihood(sign * theta, x) for sign in (1.0, -1.0)]
        return torch.logaddexp(*both) - math.log(2.0)

    def exact_proposal(self, weight: float = 0.5) -> TwoModesProposal:
        """The exact posterior as a Proposal; the mode at mean(x) gets `weight`, exactly 0.5."""
        return TwoModesProposal(self, weight)

    def prior_proposal(self) -> PriorProposal:
        """The prior as a Proposal."""
        return PriorProposal(self.prior)


@dataclass(frozen=True)
class TwoModesProposal:
    """The posterior of TwoModes with any weight of the mode at mean(x)."""

    simulator: TwoModes
    weight: float = 0.5

    @property
    def prior(self) -> Prior:
        """The simulator's prior."""
        return self.simulator.prior

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, K) -> theta (n, B, D), log q (n, B)."""
        theta, _ = self.simulator.linear.exact_proposal().sample_and_log_prob(x, n, generator)
        coin = torch.rand((n, len(x), 1), generator=generator, dtype=torch.float64)
        theta = torch.where(coin < self.weight, theta, self._mirror(theta, x))
        return theta, self.log_prob(theta, x)

    def _mirror(self, theta: Tensor, x: Tensor) -> Tensor:
        return theta - 2 * self.simulator.linear.posterior(x)[0]

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (..., n, D), x (n, K) -> (..., n)."""
        normal = self.simulator.linear.exact_proposal().distribution(x)
        return torch.logaddexp(
            math.log(self.weight) + normal.log_prob(theta.double()),
            math.log1p(-self.weight) + normal.log_prob(-theta.double()),
        )
