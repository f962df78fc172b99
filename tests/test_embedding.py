"""Embeddings: the standardiser, the projection and the shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sbiflow.embedding import KINDS, Embedding, EmbeddingConfig, Standardize


def draw(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_standardiser_gives_zero_mean_and_unit_variance() -> None:
    x = 3e-4 * draw(500, 2, 7) + torch.linspace(-1, 1, 7)
    standardize = Standardize((2, 7))
    standardize.fit(x)
    z = standardize(x).double()
    assert z.mean(0).abs().max() < 1e-3 and (z.std(0, unbiased=False) - 1).abs().max() < 1e-3


def test_standardiser_is_fitted_in_float64() -> None:
    """A spread of 1e-3 on an offset of 1000: float32 accumulation gets the spread wrong by tens of per cent."""
    x = (1000 + 1e-2 * draw(100_000, 1).double()).float()
    standardize = Standardize((1,))
    standardize.fit(x)
    exact = x.numpy().astype(np.float64)
    assert float(standardize.mean) == pytest.approx(float(exact.mean()), rel=1e-7)
    assert float(standardize.scale) == pytest.approx(float(exact.std()), rel=1e-6)
    assert standardize.mean.dtype == standardize.scale.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 0.1, -7e8, 3e-20])
def test_constant_features_become_zero(value: float) -> None:
    x = draw(300, 3)
    x[:, 1] = value
    standardize = Standardize((3,))
    standardize.fit(x)
    z = standardize(x)
    assert torch.equal(z[:, 1], torch.zeros(300)) and float(standardize.scale[1]) == 1
    assert torch.isfinite(z).all() and (z[:, [0, 2]].std(0) - 1).abs().max() < 1e-2


def test_a_small_feature_is_not_a_constant_one() -> None:
    x = 1e-12 * draw(300, 1)
    standardize = Standardize((1,))
    standardize.fit(x)
    assert float(standardize(x).std()) == pytest.approx(1, abs=1e-2)


def low_rank(n: int, size: int, rank: int) -> tuple[Tensor, Tensor]:
    """Noise-free signals of the given rank, with falling singular values, and noisy x."""
    scales = torch.logspace(0, -1, rank)
    signal = (draw(n, rank) * scales) @ draw(rank, size, seed=5)
    return signal, signal + 0.05 * draw(n, size, seed=6)


def test_projection_starts_as_the_principal_components_of_the_signals() -> None:
    """Against the eigenvectors of the covariance by numpy, up to sign; scaled to unit variance of noisy x."""
    signal, x = low_rank(400, 12, 4)
    embedding = Embedding(EmbeddingConfig("mlp", svd_components=3), (12,))
    embedding.fit(x, signal)
    assert embedding.project is not None
    clean = embedding.standardize(signal).detach().double().numpy()
    values, vectors = np.linalg.eigh(np.cov(clean.T))
    expected = vectors[:, np.argsort(values)[::-1][:3]].T
    weight = embedding.project.weight.detach().double().numpy()
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((unit * expected).sum(1)), 1, atol=1e-6)
    projected = embedding.project(embedding.standardize(x))
    torch.testing.assert_close(projected.std(0), torch.ones(3), rtol=1e-3, atol=1e-3)
    assert projected.mean(0).abs().max() < 1e-3


def test_projection_of_fewer_directions_than_asked_for() -> None:
    """Constant features and a rank below the number of components leave directions that carry nothing."""
    signal, _ = low_rank(50, 6, 2)
    signal[:, 4] = 3.0
    embedding = Embedding(EmbeddingConfig("mlp", svd_components=6), (6,))
    embedding.fit(signal, signal)
    assert embedding.project is not None
    assert embedding.project.weight.abs().max() < 100
    off = signal.clone()
    off[:, 4] += 0.1  # a feature that was constant in training may move a little in an observation
    assert torch.isfinite(embedding(signal)).all()
    assert (embedding.project(embedding.standardize(off)).abs() < 100).all()


def test_projection_with_fewer_signals_than_components() -> None:
    signal = draw(4, 10)
    embedding = Embedding(EmbeddingConfig("mlp", svd_components=8), (10,))
    embedding.fit(signal, signal)
    assert torch.isfinite(embedding(signal)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x_shape", [(), (1,), (9,), (2, 9), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("components", [0, 3])
def test_shapes(kind: str, x_shape: tuple[int, ...], components: int) -> None:
    """Any leading shape, also none and an empty one; the context's size is `features`."""
    config = EmbeddingConfig(kind, features=5, hidden=8, blocks=2, svd_components=components)
    if kind == "cnn" and (components or len(x_shape) not in (1, 2)):
        with pytest.raises(ValueError, match="cnn embedding"):
            Embedding(config, x_shape)
        return
    embedding = Embedding(config, x_shape)
    x = draw(6, *x_shape)
    embedding.fit(x, x)
    size = math.prod(x_shape)
    assert embedding.features == (5 if kind != "none" else min(components, size) or size)
    flat = embedding(x)
    assert flat.shape == (6, embedding.features)
    torch.testing.assert_close(embedding(x.view(2, 3, *x_shape)), flat.view(2, 3, -1))
    torch.testing.assert_close(embedding(x[0]), flat[0])
    assert embedding(x[:0]).shape == (0, embedding.features)
    assert embedding(x.view(2, 3, *x_shape)[:0]).shape == (0, 3, embedding.features)


@pytest.mark.parametrize("kind", KINDS)
def test_context_depends_on_every_feature(kind: str) -> None:
    embedding = Embedding(EmbeddingConfig(kind, features=5, hidden=16, blocks=2), (2, 9))
    x = draw(1, 2, 9).requires_grad_()
    (grad,) = torch.autograd.grad(embedding(x).square().sum(), x)
    assert (grad != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str) -> None:
    """The standardiser and the projection travel with the weights."""
    config = EmbeddingConfig(kind, features=5, hidden=8, blocks=1, svd_components=0 if kind == "cnn" else 3)
    one, other = Embedding(config, (9,)), Embedding(config, (9,))
    x = 5 + 3 * draw(30, 9)
    one.fit(x, x)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "transformer"}, "expected one of residual, mlp, cnn, none, got 'transformer'"),
        ({"features": 0}, "positive sizes"),
        ({"hidden": 0}, "positive sizes"),
        ({"blocks": -1}, "positive sizes"),
        ({"svd_components": -1}, "positive sizes"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EmbeddingConfig(**changes)
