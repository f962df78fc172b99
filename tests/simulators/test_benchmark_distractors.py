"""The distractors of SLCP: their density, their draws, and the published ones read from a file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from simulators.benchmark import task
from simulators.benchmark.distractors import Distractors
from simulators.benchmark.published import published_distractors
from simulators.benchmark.slcp import SLCPDistractors


def test_distractors_follow_their_density():
    # Kolmogorov-Smirnov of one column against the mixture's distribution function: alarm 1e-3 by the seed
    loc = torch.tensor([[0.0], [8.0]], dtype=torch.float64)
    scale = torch.tensor([[[1.0]], [[-3.0]]], dtype=torch.float64)
    small = Distractors(loc, scale)
    draws = small.sample(torch.zeros(5000, 1, dtype=torch.float64), torch.Generator().manual_seed(2))[
        :, 0
    ].numpy()
    parts = [stats.t(2, at, width) for at, width in ((0, 1), (8, 3))]
    assert stats.kstest(draws, lambda v: 0.5 * sum(p.cdf(v) for p in parts)).pvalue > 1e-3
    assert stats.kstest(draws, parts[1].cdf).pvalue < 1e-3
    expected = np.log(0.5 * sum(p.pdf(draws) for p in parts))
    np.testing.assert_allclose(small.log_prob(torch.from_numpy(draws)[:, None]).numpy(), expected)


def test_distractors_in_three_dimensions():
    scale = torch.tensor([[2.0, 0.0, 0.0], [1.0, -0.5, 0.0], [0.3, 0.2, 1.0]], dtype=torch.float64)
    one = Distractors(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), scale[None])
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = stats.multivariate_t([1, 2, 3], (scale @ scale.T).numpy(), df=2).logpdf(x.numpy())
    np.testing.assert_allclose(one.log_prob(x).numpy(), expected)
    with pytest.raises(ValueError, match="lower-triangular"):
        Distractors(torch.zeros(1, 3), scale.T[None])
    with pytest.raises(ValueError, match="expected dimension 92, got 3"):
        SLCPDistractors(one)
    with pytest.raises(ValueError, match="permutation"):
        SLCPDistractors(permutation=torch.zeros(100, dtype=torch.int64))


def test_distractors_hide_the_observation_of_slcp():
    subject, plain, generator = task("slcp_distractors"), task("slcp"), torch.Generator().manual_seed(1)
    theta = subject.prior.sample(3, generator)
    x = subject.observe(subject.signal(theta), generator)
    torch.testing.assert_close(
        subject.log_likelihood(theta, x), plain.log_likelihood(theta, subject.informative(x))
    )
    other = SLCPDistractors(permutation=torch.arange(100))
    assert other.version != subject.version
    assert torch.equal(other.informative(x), x[:, :8])


def write_published(folder: Path, components: int = 20) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Files in the published format: each array as its length and its values, after a header."""
    rng = np.random.default_rng(1)
    loc = rng.normal(size=(components, 92))
    scale = np.tril(rng.normal(size=(components, 92, 92)))
    arrays = [struct.pack("<q", array.size) + array.tobytes() for array in (loc, scale)]
    (folder / "gmm.torch").write_bytes(b"header" + b"".join(arrays))
    permutation = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    torch.save(permutation, folder / "permutation_idx.torch")
    return loc, scale, permutation


def test_published_distractors_are_read(tmp_path):
    loc, scale, permutation = write_published(tmp_path)
    found = published_distractors(tmp_path)
    np.testing.assert_array_equal(found.distractors.loc.numpy(), loc)
    np.testing.assert_array_equal(found.distractors.scale.numpy(), scale)
    assert torch.equal(found.permutation, permutation)
    assert found.version != SLCPDistractors().version


def test_another_file_is_refused(tmp_path):
    write_published(tmp_path, components=19)
    with pytest.raises(ValueError, match=r"gmm.torch: expected one array of 1840 numbers, got 0"):
        published_distractors(tmp_path)
