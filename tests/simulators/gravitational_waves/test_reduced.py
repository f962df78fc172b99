"""The reduced likelihood against the exact one."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from simulators.gravitational_waves import network
from simulators.gravitational_waves.event import Event, load_event
from simulators.gravitational_waves.reduced import ReducedLikelihood
from tests.simulators.gravitational_waves.test_event import (
    NEAR,
    around,
    draws,
    real_strains_and_psds,
    synthetic,
)


def gw150914() -> Event:
    return load_event(*real_strains_and_psds())


@pytest.fixture(scope="module", params=[synthetic, gw150914], ids=["synthetic", "GW150914"])
def reduced(request: pytest.FixtureRequest) -> ReducedLikelihood:
    return ReducedLikelihood.build(request.param(), network.prior())


def errors(reduced: ReducedLikelihood, theta: Tensor) -> tuple[Tensor, Tensor]:
    exact = reduced.event.log_likelihood(theta)
    return (reduced(theta) - exact).abs(), exact


def test_where_the_posterior_is(reduced: ReducedLikelihood) -> None:
    error, exact = errors(reduced, torch.cat([NEAR, around(300, width=0.3), around(100)]))
    near = exact > exact[0] - 20
    assert int(near.sum()) > 50
    assert float(error[near].max()) < 1e-3


def test_over_the_prior(reduced: ReducedLikelihood) -> None:
    error, exact = errors(reduced, torch.cat([NEAR, around(200), draws(600)]))
    assert float(error[exact > exact[0] - 100].max()) < 0.01
    # elsewhere signals are up to ten times as loud as the event's, and errors grow with loudness
    assert float(error.max()) < 0.05


def test_in_the_corners_of_masses_spins_and_times(reduced: ReducedLikelihood) -> None:
    prior = network.prior()
    edges = [torch.stack([prior.low[d], prior.high[d]]) for d in (0, 1, 2, 3, 8, 9)]
    corners = torch.cartesian_prod(*edges)
    theta = NEAR.expand(len(corners), -1).clone()
    theta[:, [0, 1, 2, 3, 8, 9]] = corners
    error, _ = errors(reduced, theta)
    assert float(error.max()) < 0.05


def test_rows_do_not_depend_on_each_other(reduced: ReducedLikelihood) -> None:
    theta = draws(7)
    alone = torch.cat([reduced(row[None], None) for row in theta])
    torch.testing.assert_close(reduced(theta), alone, rtol=0, atol=1e-8)
    assert reduced(theta[:0]).shape == (0,)


def test_what_the_basis_does_not_cover_is_refused(reduced: ReducedLikelihood) -> None:
    for column, value, name in ((0, 24.9, "chirp_mass"), (3, 0.995, "chi_2"), (8, 0.0301, "t_H1")):
        outside = NEAR.clone()
        outside[:, column] = value
        with pytest.raises(ValueError, match=f"{name}: expected values in"):
            reduced(outside)
    with pytest.raises(ValueError, match="mass_ratio: expected values in"):
        reduced(torch.where(torch.arange(11) == 1, torch.nan, NEAR))
    with pytest.raises(ValueError, match="theta: expected shape"):
        reduced(NEAR[:, :8])


def test_it_is_faster(reduced: ReducedLikelihood) -> None:
    theta = draws(500)
    begun = time.process_time()
    reduced.event.log_likelihood(theta)
    exact = time.process_time() - begun
    begun = time.process_time()
    reduced(theta)
    assert time.process_time() - begun < exact / 5  # 20 on a quiet machine


def test_a_basis_larger_than_its_waveforms_is_refused() -> None:
    with pytest.raises(ValueError, match="draws: expected a whole number >= 40, got 30"):
        ReducedLikelihood.build(synthetic(), network.prior(), components=40, draws=30)
