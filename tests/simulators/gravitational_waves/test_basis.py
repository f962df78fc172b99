"""Reduced bases of random low-rank sets: rank, optimality, precision, the two ways to compute them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simulators.gravitational_waves import basis as module
from simulators.gravitational_waves.basis import ReducedBasis


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def low_rank(n: int, f: int, rank: int, seed: int = 0, decay: float = 1.0, space: int = 99) -> Tensor:
    """Waveforms in a space that `space` fixes, with loudness over four decades."""
    directions, _ = torch.linalg.qr(noise(f, rank, seed=space))
    weights = noise(n, rank, seed=seed) * decay ** torch.arange(rank)
    loudness = 10 ** (
        4 * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return loudness * weights @ directions.mT


def orthonormal(basis: ReducedBasis) -> float:
    gram = basis.vectors.mH @ basis.vectors
    return float((gram - torch.eye(basis.size)).abs().max())


@pytest.fixture(params=["exact", "randomised"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "randomised":
        monkeypatch.setattr(module, "_EXACT", 0)
    return request.param


@pytest.mark.parametrize("shape", [(300, 120), (90, 400), (1, 50), (50, 1)])
def test_spans_a_low_rank_set(way: str, shape: tuple[int, int]) -> None:
    rank = min(12, *shape)
    basis = ReducedBasis.fit(
        low_rank(*shape, rank), held_out=low_rank(40, shape[1], rank, seed=1), count=rank
    )
    assert basis.vectors.shape == (shape[1], rank) and basis.vectors.dtype == torch.complex128
    assert orthonormal(basis) < 1e-13
    if shape[0] > rank:
        assert basis.worst_mismatch < 1e-25
        fresh = low_rank(7, shape[1], rank, seed=2)
        error = basis.expand(basis.coefficients(fresh)) - fresh
        assert (error.norm(dim=1) / fresh.norm(dim=1)).max() < 1e-12


def test_loudness_does_not_matter(way: str) -> None:
    """One row is 1e8 times quieter than the others and the only one with its direction."""
    waves = low_rank(200, 80, 5)
    alone = noise(1, 80, seed=5)
    quiet = torch.cat([waves, 1e-8 * alone])
    basis = ReducedBasis.fit(quiet, held_out=alone, count=6)
    assert basis.worst_mismatch < 1e-20
    scaled = ReducedBasis.fit(quiet * torch.linspace(1, 9, 201)[:, None], held_out=alone, count=6)
    assert torch.allclose(scaled.singular_values, basis.singular_values, rtol=1e-12)


def test_singular_values_are_those_of_the_normalised_set(way: str) -> None:
    waves = low_rank(200, 90, 30, decay=0.7)
    basis = ReducedBasis.fit(waves, held_out=waves, count=10)
    want = torch.linalg.svdvals(waves / waves.norm(dim=1, keepdim=True))[:10]
    assert torch.allclose(basis.singular_values, want, rtol=1e-10 if way == "exact" else 1e-6)


def test_randomised_is_as_good_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean mismatch of the set is smallest for the singular vectors; the random ones lose less than 1e-3 of it."""
    waves, held_out = low_rank(2000, 300, 200, decay=0.93), low_rank(500, 300, 200, seed=1, decay=0.93)
    exact = ReducedBasis.fit(waves, held_out=held_out, count=60)
    monkeypatch.setattr(module, "_EXACT", 0)
    random = ReducedBasis.fit(waves, held_out=held_out, count=60, seed=4)
    best = exact.mismatch(waves).mean()
    assert best <= random.mismatch(waves).mean() <= best * 1.001
    assert random.worst_mismatch < 1.05 * exact.worst_mismatch
    again = ReducedBasis.fit(waves, held_out=held_out, count=60, seed=4)
    assert torch.equal(random.vectors, again.vectors)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6, 1e-12, 1e-20])
def test_tolerance_takes_as_few_as_it_can(way: str, tolerance: float) -> None:
    waves, held_out = low_rank(400, 150, 100, decay=0.6), low_rank(100, 150, 100, seed=1, decay=0.6)
    basis = ReducedBasis.fit(waves, held_out=held_out, tolerance=tolerance)
    assert basis.worst_mismatch <= tolerance
    assert basis.mismatch(held_out).max() == pytest.approx(basis.worst_mismatch, rel=1e-6)
    fewer = ReducedBasis(basis.vectors[:, :-1], math.nan, basis.singular_values[:-1])
    assert fewer.mismatch(held_out).max() > tolerance
    assert len(basis.singular_values) == basis.size


def test_mismatch_is_one_minus_the_projection() -> None:
    waves, held_out = low_rank(100, 60, 20), low_rank(30, 60, 20, seed=1)
    basis = ReducedBasis.fit(waves, held_out=held_out, count=8)
    share = basis.coefficients(held_out).abs().square().sum(1) / held_out.abs().square().sum(1)
    assert torch.allclose(basis.mismatch(held_out), 1 - share, atol=1e-14)
    assert basis.worst_mismatch == pytest.approx(float((1 - share).max()), abs=1e-14)


def test_worst_mismatch_grows_with_waves_outside() -> None:
    inside, outside = low_rank(100, 60, 5), noise(1, 60, seed=8)
    basis = ReducedBasis.fit(inside, held_out=torch.cat([inside, outside]), count=5)
    assert 0.5 < basis.worst_mismatch <= 1
    orthogonal = outside - basis.expand(basis.coefficients(outside))
    assert basis.mismatch(orthogonal).item() == pytest.approx(1, abs=1e-14)


def test_leading_dimensions_and_precision() -> None:
    waves = low_rank(100, 60, 5)
    basis = ReducedBasis.fit(waves, held_out=waves, count=5)
    stack = waves.reshape(10, 10, 60)
    assert basis.coefficients(stack).shape == (10, 10, 5)
    assert torch.allclose(basis.expand(basis.coefficients(stack)), stack)
    single = basis.to(dtype=torch.complex64)
    assert single.coefficients(waves.to(torch.complex64)).dtype == torch.complex64
    assert single.worst_mismatch == basis.worst_mismatch
    assert single.mismatch(waves.to(torch.complex64)).max() < 1e-12


def test_errors() -> None:
    waves = low_rank(30, 20, 5)
    fit = ReducedBasis.fit
    with pytest.raises(ValueError, match="expected count or tolerance, got count=None and tolerance=None"):
        fit(waves, held_out=waves)
    with pytest.raises(ValueError, match=r"expected count or tolerance, got count=3 and tolerance=0.1"):
        fit(waves, held_out=waves, count=3, tolerance=0.1)
    with pytest.raises(ValueError, match=r"count: expected at most 20 .*, got 21"):
        fit(waves, held_out=waves, count=21)
    with pytest.raises(ValueError, match="count: expected a whole number >= 1, got 0"):
        fit(waves, held_out=waves, count=0)
    with pytest.raises(ValueError, match=r"held_out: expected shape \(m, 20\), got \(30, 19\)"):
        fit(waves, held_out=waves[:, 1:], count=3)
    with pytest.raises(ValueError, match=r"waveforms: expected complex numbers, got torch.float64"):
        fit(waves.real.clone(), held_out=waves, count=3)
    with pytest.raises(ValueError, match="waveforms: expected waveforms that are not zero, got 2 that are"):
        fit(torch.cat([waves, torch.zeros_like(waves[:2])]), held_out=waves, count=3)
    with pytest.raises(ValueError, match="held_out: expected finite values, got 20 NaN"):
        fit(waves, held_out=torch.cat([waves, torch.full_like(waves[:1], math.nan)]), count=3)
    with pytest.raises(ValueError, match=r"tolerance: expected at least .* \(all vectors\), got 1e-09"):
        fit(waves[:4], held_out=waves, tolerance=1e-9)
