"""The closed forms that other tests lean on, against brute-force quadrature."""

from __future__ import annotations

import torch

from tests.toys import LinearGaussian

TOY = LinearGaussian()
X = torch.tensor([[0.3, -1.0, 0.9], [1.5, 0.2, 2.0]], dtype=torch.float64)


def grid() -> tuple[torch.Tensor, float]:
    """Points over +-7 sd of the prior, (m, 2), and the area of a cell."""
    mean, covariance = TOY.prior_moments()
    step = torch.linspace(-7.0, 7.0, 701, dtype=torch.float64)
    points = mean + torch.cartesian_prod(step, step) * covariance.diagonal().sqrt()
    return points, float((step[1] - step[0]) ** 2 * covariance.diagonal().sqrt().prod())


def test_evidence_and_posterior_moments():
    points, area = grid()
    mean, covariance = TOY.posterior(X)
    for x, expected, log_evidence in zip(X, mean, TOY.log_evidence(X), strict=True):
        log_joint = TOY.log_likelihood(points, x) + TOY.prior.log_prob(points)
        torch.testing.assert_close(log_joint.logsumexp(0) + torch.tensor(area).log(), log_evidence)
        weights = log_joint.softmax(0)
        found = weights @ points
        torch.testing.assert_close(found, expected)
        centred = points - found
        torch.testing.assert_close(centred.T @ (weights[:, None] * centred), covariance)


def test_the_exact_proposal_is_likelihood_times_prior_over_evidence():
    generator = torch.Generator().manual_seed(1)
    theta, log_q = TOY.exact_proposal().sample_and_log_prob(X, 5, generator)
    assert theta.shape == (5, 2, 2)
    for b, x in enumerate(X):
        exact = TOY.log_likelihood(theta[:, b], x) + TOY.prior.log_prob(theta[:, b]) - TOY.log_evidence(x)
        torch.testing.assert_close(log_q[:, b], exact)
    pairs = TOY.exact_proposal().log_prob(theta[0], X)
    torch.testing.assert_close(pairs, log_q[0])


def test_a_distorted_proposal_is_wider_and_shifted():
    generator = torch.Generator().manual_seed(2)
    mean, covariance = TOY.posterior(X)
    n = 40_000
    theta, _ = TOY.exact_proposal(scale=2.0, shift=1.5).sample_and_log_prob(X, n, generator)
    sd = covariance.diagonal().sqrt()
    pull = (theta.mean(0) - mean - 1.5 * sd) / (2.0 * sd / n**0.5)
    assert float(pull.abs().max()) < 5.3  # 4 normal pulls: false alarm below 1e-6
    # the relative error of a standard deviation is 1 / sqrt(2 n) = 0.0035
    torch.testing.assert_close(theta.std(0), (2.0 * sd).expand(2, 2), rtol=0.02, atol=0.0)
