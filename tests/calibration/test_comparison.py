"""Two references of one problem: their floor, and what a comparison may claim above it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from sbiflow.calibration import compare, nested_reference, reference_floor
from sbiflow.priors import Prior
from tests.toys import LinearGaussian, normal_prior

TOY = LinearGaussian()
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@dataclass(frozen=True)
class Exact:
    """Independent draws as a reference."""

    theta: Tensor
    prior: Prior = TOY.prior
    converged: bool = True

    @property
    def ess(self) -> np.ndarray:
        return np.full(self.theta.shape[1], float(len(self.theta)))


def draws(n: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return TOY.exact_proposal(scale, shift).sample_and_log_prob(X[None], n, generator)[0][:, 0]


def test_two_good_references_set_the_floor() -> None:
    """200 pairs: 800 figures at 4 standard errors, 5 % false alarms; the floor is the error or above."""
    found = [reference_floor(Exact(draws(2000, i)), Exact(draws(2000, 1000 + i))) for i in range(200)]
    assert sum(bool(each.disagreements) for each in found) <= 1
    assert (
        0.035 < np.median([each.shift for each in found]) < 0.09
    )  # 1.25 sqrt(2 / 2000) = 0.04 for one median
    table = compare(draws(2000, 3), Exact(draws(2000, 4)), other_reference=Exact(draws(2000, 5)))
    assert table.floor is not None
    assert table.converged
    assert "floor (two references): medians 0.0" in str(table)
    assert table.within(0.15, 0.15)
    assert not table.within(0.01, 0.15)  # closer than the floor: not for these references to say
    assert not table.within(0.15, 0.005)


def test_identical_references_still_have_the_floor_of_their_errors() -> None:
    same = Exact(draws(2000, 0))
    assert reference_floor(same, same).shift > 0.03
    assert not compare(same.theta, same, other_reference=same).within(0.01, 0.01)


@pytest.mark.parametrize(("scale", "shift", "word"), [(1.0, 0.3, "median of t0"), (0.8, 0.0, "width of t0")])
def test_a_wrong_reference_is_named(scale: float, shift: float, word: str) -> None:
    """0.3 sd is 6 of the errors, a width of 0.8 is 7."""
    table = compare(
        draws(4000, 1), Exact(draws(4000, 2)), other_reference=Exact(draws(4000, 3, scale, shift))
    )
    assert table.floor is not None
    assert any(word in text for text in table.floor.disagreements)
    assert not table.within(10.0, 10.0)
    assert "The references DISAGREE: this comparison proves nothing: " in str(table)


def test_an_unconverged_second_reference_proves_nothing() -> None:
    other = Exact(draws(500, 2), converged=False)
    table = compare(draws(500, 0), Exact(draws(500, 1)), other_reference=other)
    assert not table.converged
    assert "proves nothing" in str(table)


def test_references_of_different_priors_are_refused() -> None:
    other = Exact(draws(500, 2), prior=normal_prior((0.0, 0.0)))
    with pytest.raises(ValueError, match="references: expected the same prior"):
        reference_floor(Exact(draws(500, 1)), other)


def test_nested_sampling_agrees_with_exact_draws() -> None:
    """4 figures at 4 standard errors: 2.5e-4 false alarms; posterior draws 0.5 sd off are rejected."""
    nested = nested_reference(TOY.log_likelihood, TOY.prior, X, seed=2, nlive=150, progress=False)
    assert reference_floor(nested, Exact(draws(20_000, 1))).disagreements == ()
    assert reference_floor(nested, Exact(draws(20_000, 1, 1.0, 0.5))).disagreements != ()
    table = compare(draws(20_000, 3), nested, other_reference=Exact(draws(20_000, 2)))
    assert table.within(0.3, 0.3)
