"""The first guess by linear regression."""

import numpy as np
import pytest
import torch
from scipy import stats

from sbiflow import EmbeddingConfig, FlowConfig, PeriodicUniform, Prior, Uniform, draw_pairs
from sbiflow.embedding import Embedding
from sbiflow.families import FAMILIES
from sbiflow.flows import ConditionalFlow
from sbiflow.guess import Guess
from tests.families import every_family
from tests.toys import LinearGaussian

EMBEDDING = EmbeddingConfig(features=4, hidden=8, blocks=1)
TOY = LinearGaussian()


def fitted(n=4000, **options):
    """An untrained flow, fitted to n pairs of the toy, and others."""
    theta, x, _ = draw_pairs(TOY, n + 2000, seed=3)
    z = TOY.prior.unconstrain(theta)[0].float()
    flow = ConditionalFlow(FlowConfig(layers=2, hidden=8, **options), EMBEDDING, (False, False), (3,))
    flow.fit(z[:n], x[:n].float(), x[:n].float())
    return flow.eval(), z[n:], x[n:].float(), theta[n:]


@every_family
def test_an_untrained_flow_is_the_exact_posterior_of_a_linear_gaussian_problem(family):
    """Within what 4,000 pairs determine: the Kullback-Leibler divergence is about (parameters fitted) / 2n = 0.0014."""
    if not FAMILIES[family].starts_as_prior:
        return
    flow, z, x, theta = fitted(family=family)
    _, log_jacobian = TOY.prior.unconstrain(theta)
    with torch.no_grad():
        found = flow.log_prob(z, x).double() + log_jacobian
    exact = TOY.exact_proposal().log_prob(theta, x.double())
    assert float((exact - found).mean()) < 0.01
    prior = fitted(family=family, start="prior")[0]
    with torch.no_grad():
        assert float((found - prior.log_prob(z, x).double() - log_jacobian).mean()) > 1.0


def test_draws_agree_with_the_density():
    """Whitened draws of the untrained flow are standard normal (KS, false alarms 1e-4 each)."""
    flow, _, x, _ = fitted()
    z, log_q = flow.sample_and_log_prob(x[:1], 4000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(z, x[:1]), log_q, atol=1e-4, rtol=1e-4)
        u, _ = flow.transform.transforms[0](z[:, 0], flow.embedding(x[:1]).expand(4000, -1))
    for column in u.double().numpy().T:
        assert stats.kstest(column, "norm").pvalue > 1e-4


def test_noise_features_do_not_overfit():
    """300 pairs and 200 features of pure noise: ridge regression keeps the guess near the prior."""
    rng = np.random.default_rng(0)
    x, z = (
        torch.from_numpy(rng.standard_normal((600, 200))).float(),
        torch.from_numpy(rng.standard_normal((600, 1))),
    )
    guess = Guess(Embedding(EMBEDDING, (200,)), 1)
    guess.fit(x[:300], x[:300])
    factor = guess.regress(x[:300], z[:300])
    left = z[300:, 0] - guess(x[300:])[:, -1].detach().double()
    assert float(left.std()) < 1.15 * float(z[300:].std())
    assert float(factor[0, 0]) > 0.8


def test_phases_are_left_alone_and_constant_features_are_survived():
    prior = Prior(PeriodicUniform("phi", 0, 180, "deg"), Uniform("a", 0, 1))
    z = prior.unconstrain(prior.sample(500, torch.Generator().manual_seed(0)))[0].float()
    x = torch.stack([z[:, 1], torch.full((500,), 7.0)], -1)  # the second parameter, and a constant
    flow = ConditionalFlow(FlowConfig(layers=2, hidden=8), EMBEDDING, (True, False), (2,))
    flow.fit(z, x, x)
    with torch.no_grad():
        draws, log_q = flow.eval().sample_and_log_prob(x[:2], 1000, torch.Generator().manual_seed(1))
    assert torch.isfinite(log_q).all()
    assert float(draws[..., 0].abs().max()) <= np.pi
    turns = (draws[:, 0, 0].double().numpy() + np.pi) / (2 * np.pi)
    assert stats.kstest(turns, "uniform").pvalue > 1e-4
    assert float((draws[:, :, 1].mean(0) - z[:2, 1]).abs().max()) < 0.02


def test_more_features_than_it_fits_gives_the_prior():
    guess = Guess(Embedding(EMBEDDING, (2000,)), 1)
    x, z = torch.randn(50, 2000, generator=torch.Generator().manual_seed(0)), torch.randn(50, 1)
    guess.fit(x, x)
    guess.regress(x, z)
    assert not guess.weight.any() and float(guess.bias) == pytest.approx(float(z.mean()), abs=1e-6)


def test_an_unknown_start_is_named():
    with pytest.raises(ValueError, match='flow start: expected "regression" or "prior", got'):
        FlowConfig(start="posterior")
    with pytest.raises(ValueError, match="flow dropout: expected a share"):
        FlowConfig(dropout=1.0)
