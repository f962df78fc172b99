"""Losses and training of the flows: what they ask for, and that they lower it."""

from __future__ import annotations

import math

import pytest
import torch

from sbiflow.integrate.domain import Domain
from sbiflow.integrate.learn import Learner, falling, likelihood, settling, variance
from sbiflow.integrate.proposal import Proposal
from sbiflow.integrate.replay import Replay, row_weights
from sbiflow.integrate.tempering import ess
from sbiflow.seeding import torch_generator
from tests.integrate.small import config, cube

FLOAT = torch.float64
BANANA = 2 * math.pi * 0.1 * 0.05  # its integral, but for what the cube cuts off (1e-3)


def banana(y: torch.Tensor) -> torch.Tensor:
    """log f in two dimensions."""
    bent = y[:, 1] - 0.3 - 3 * (y[:, 0] - 0.5) ** 2
    return -0.5 * ((y[:, 0] - 0.5) / 0.1) ** 2 - 0.5 * (bent / 0.05) ** 2


def uniform(n: int, dim: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, dim, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


def replay_of(log_f, dim: int = 2, n: int = 20_000) -> Replay:
    """Uniform draws."""
    replay, y = Replay(), uniform(n, dim)
    replay.add(y, log_f(y), torch.zeros(n, dtype=FLOAT))
    return replay


def learner(dim: int = 2, channels=()) -> Learner:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        proposal = Proposal(Domain.from_bounds(cube(dim)), config(), channels)
    return Learner(proposal, config(), torch_generator(1, 2))


def figures(own: Learner, log_f, truth: float) -> tuple[float, float]:
    """KL(p, q) and the relative variance of f/q, from draws of q."""
    y, log_q, _ = own.proposal.draw(uniform(20_000, own.proposal.dim + 1, 7))
    w = (log_f(y) - log_q).exp() / truth
    return float((w * w.clamp(min=1e-300).log()).mean()), float(w.var())


# --- the losses


def test_likelihood_is_the_mean():
    d = torch.tensor([1.0, -3.0, 0.5])
    assert float(likelihood(d)) == pytest.approx(-0.5)


def gradients(loss, d: torch.Tensor) -> torch.Tensor:
    """Per row."""
    d = d.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(d), d)
    return found * len(d)


def test_variance_is_chi_squared_less_kl():
    """In the mean over p, for d = log p/q of two Gaussians: against closed forms."""
    sigma = 1.15  # of q
    x = torch.special.ndtri((torch.arange(200_000, dtype=FLOAT) + 0.5) / 200_000)  # p is the standard normal
    d = 0.5 * (x / sigma) ** 2 + math.log(sigma) - 0.5 * x**2
    chi2 = sigma**2 / math.sqrt(2 * sigma**2 - 1) - 1
    kl = math.log(sigma) + 0.5 / sigma**2 - 0.5
    assert float(d.max()) < 2.0  # below the cap
    assert float(variance(d)) == pytest.approx(chi2 - kl, rel=1e-3)


def test_variance_has_no_gradient_where_the_flow_fits():
    assert float(variance(torch.zeros(5))) == 0.0
    assert gradients(variance, torch.zeros(5)).tolist() == [0.0] * 5


def test_variance_grows_away_from_the_fit():
    d = torch.linspace(-8, 12, 401, dtype=FLOAT)
    values = torch.stack([variance(one[None]) for one in d])
    middle = int((d.abs()).argmin())
    assert bool((values[:middle].diff() < 0).all()) and bool((values[middle:].diff() > 0).all())
    assert bool(
        (values[:middle].flip(0)[:150] < values[middle + 1 :][:150]).all()
    )  # worse where q is too small


def test_variance_is_a_straight_line_far_out_without_a_kink():
    d = torch.linspace(-3, 30, 3001, dtype=FLOAT)
    slope = gradients(variance, d)
    jumps = slope.diff()
    assert bool((jumps >= -1e-12).all()) and float(slope[-1]) == float(slope[-100])  # convex, then straight
    near = (d > -1) & (d < 1.5)
    torch.testing.assert_close(slope[near], d[near].exp() - 1, rtol=1e-9, atol=1e-12)
    assert float(jumps.max()) < 1.2 * float(slope[-1] + 1) * 0.011  # no jump at the cap


def test_schedules():
    assert falling(0.0) == 1.0 and falling(1.0) == 0.0 and falling(0.25) == 0.75
    assert settling(0.0) == 1.0 and settling(1.0) == pytest.approx(0.1)


# --- what is learned from


def test_row_weights():
    """Within a batch f^beta / q; batches by their effective sample sizes; summing to one."""
    replay = replay_of(banana, n=3000)
    y = 0.4 + 0.2 * uniform(500, 2, 3)
    replay.add(y, banana(y), torch.full((500,), -math.log(0.04), dtype=FLOAT))
    for beta in (1.0, 0.3):
        weights = row_weights(replay.batches, beta)
        assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)
        ends = [0, len(replay.batches[0].y), len(weights)]
        sizes = []
        for batch, start, stop in zip(replay.batches, ends[:-1], ends[1:], strict=True):
            want = (beta * batch.log_f - batch.log_q).exp()
            ratio = weights[start:stop] / want
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0.0)
            sizes.append((ess(beta * batch.log_f - batch.log_q), float(weights[start:stop].sum())))
        assert sizes[0][1] / sizes[1][1] == pytest.approx(sizes[0][0] / sizes[1][0], rel=1e-9)


def test_zeros_are_counted_and_not_kept():
    replay = Replay()
    y = uniform(1000, 1)
    log_f = torch.where(y[:, 0] < 0.3, 0.0, -math.inf)
    batch = replay.add(y, log_f, torch.zeros(1000, dtype=FLOAT))
    assert batch.n == 1000 and len(batch.y) == int((y < 0.3).sum())
    assert batch.log_integral == pytest.approx(math.log(len(batch.y) / 1000), abs=1e-12)
    assert batch.share == pytest.approx(len(batch.y) / 1000)
    assert replay.log_integral() == pytest.approx(batch.log_integral, abs=1e-12)


def test_a_batch_of_zeros():
    replay = Replay()
    batch = replay.add(
        uniform(10, 2), torch.full((10,), -math.inf, dtype=FLOAT), torch.zeros(10, dtype=FLOAT)
    )
    assert batch.share == 0.0 and batch.log_integral == -math.inf and not replay.recent()


# --- training


@pytest.mark.parametrize("loss", (likelihood, variance))
def test_training_lowers_divergence_and_variance(loss):
    own, replay = learner(), replay_of(banana)
    own.fit(replay.batches, 1.0, replay.log_integral(), likelihood, 5, settling)  # whitens, and little more
    own.proposal.use_flow(True)
    before = figures(own, banana, BANANA)
    own.fit(replay.batches, 1.0, replay.log_integral(), loss, 60, falling)
    after = figures(own, banana, BANANA)
    assert after[0] < 0.5 * before[0] and after[1] < 0.5 * before[1]
    assert after[0] < 0.15 and own.skipped == 0


def test_the_variance_loss_learns_more_from_the_same_points_than_likelihood():
    """1,500 uniform points, some 45 of them effective: known values determine what a density estimate cannot."""
    found = {}
    for loss in (likelihood, variance):
        own, replay = learner(), replay_of(banana, n=1500)
        own.fit(replay.batches, 1.0, replay.log_integral(), loss, 80, falling)
        own.proposal.use_flow(True)
        found[loss] = figures(own, banana, BANANA)[0]
    assert found[variance] < 0.8 * found[likelihood]


def test_tempered_targets_are_broader():
    wide, narrow = learner(), learner()
    replay = replay_of(banana)
    spreads = []
    for own, beta in ((wide, 0.1), (narrow, 1.0)):
        own.fit(replay.batches, beta, 0.0, likelihood, 30, settling)
        own.proposal.use_flow(True)
        y = own.proposal.draw(uniform(4000, 3, 4))[0]
        spreads.append(float(y[:, 0].quantile(0.84) - y[:, 0].quantile(0.16)))
    assert spreads[1] == pytest.approx(0.2, rel=0.2) and spreads[0] > 1.8 * spreads[1]


def test_training_does_not_depend_on_the_scale_of_f():
    states = []
    for offset in (0.0, -3000.0):
        own, replay = learner(), replay_of(lambda y, offset=offset: banana(y) + offset, n=2000)
        own.fit(replay.batches, 1.0, replay.log_integral(), variance, 5, falling)
        states.append(torch.cat([p.detach().flatten() for p in own.proposal.parameters()]))
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)


def test_the_same_generator_trains_the_same_flow():
    states = []
    for _ in range(2):
        own, replay = learner(), replay_of(banana, n=2000)
        own.fit(replay.batches, 1.0, replay.log_integral(), variance, 5, falling)
        states.append(torch.cat([p.detach().flatten() for p in own.proposal.parameters()]))
    assert torch.equal(*states)


def test_steps_without_a_finite_loss_are_skipped_and_counted():
    own, replay = learner(), replay_of(banana, n=2000)
    own.fit(replay.batches, 1.0, 0.0, likelihood, 1, settling)
    before = [p.detach().clone() for p in own.proposal.parameters()]
    calls = iter(range(100))

    def broken(d: torch.Tensor) -> torch.Tensor:
        return likelihood(d) * (math.nan if next(calls) % 2 else math.inf)

    own.fit(replay.batches, 1.0, 0.0, broken, 6, settling)
    assert own.skipped == 6
    for old, new in zip(before, own.proposal.parameters(), strict=True):
        assert torch.equal(old, new)
    own.fit(replay.batches, 1.0, 0.0, likelihood, 3, settling)  # and training goes on
    assert own.skipped == 6
    assert not all(torch.equal(a, b) for a, b in zip(before, own.proposal.parameters(), strict=True))


def test_one_extreme_row_does_not_break_training():
    """A log-likelihood that fell to -1e30 somewhere."""
    own, replay = learner(), replay_of(banana, n=2000)
    y = uniform(3, 2, 9)
    far = torch.tensor([-1e30, -1e300, -1e5], dtype=FLOAT)
    replay.add(y, far, torch.zeros(3, dtype=FLOAT))
    own.fit(replay.batches, 1.0, replay.log_integral(), variance, 10, falling)
    assert all(bool(torch.isfinite(p).all()) for p in own.proposal.parameters())
