"""Voigt and Faraday-Voigt functions against scipy.special.wofz."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import wofz

from simulators.voigt import voigt

V = np.concatenate([[0.0], np.linspace(-10, 10, 2001), np.logspace(-12, 3, 200), -np.logspace(-3, 3, 200)])
A = np.concatenate([[0.0], np.logspace(-300, 2, 60), np.logspace(-8, 2, 100), np.linspace(3.5, 5.5, 41)])
GRID_A, GRID_V = np.meshgrid(A, V)
TOLERANCE = {torch.float64: (1e-12, 1e-10, 1e-290), torch.float32: (1e-6, 1e-5, 1e-26)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_wofz(dtype: torch.dtype) -> None:
    a, v = torch.tensor(GRID_A, dtype=dtype), torch.tensor(GRID_V, dtype=dtype)
    expected = wofz(v.double().numpy() + 1j * a.double().numpy())
    absolute, relative, smallest = TOLERANCE[dtype]
    for got, want in zip(voigt(a, v), (expected.real, expected.imag), strict=True):
        error = np.abs(got.double().numpy() - want)
        assert error.max() < absolute
        seen = np.abs(want) > smallest
        assert (error[seen] / np.abs(want[seen])).max() < relative


def test_zero_damping_is_a_gaussian() -> None:
    v = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    h, _ = voigt(torch.zeros(1, dtype=torch.float64), v)
    torch.testing.assert_close(h, torch.exp(-v * v), rtol=1e-11, atol=0)


def test_symmetry_in_v() -> None:
    a, v = torch.rand(500, dtype=torch.float64) * 3, torch.rand(500, dtype=torch.float64) * 20
    (h, l), (h_mirror, l_mirror) = voigt(a, v), voigt(a, -v)
    torch.testing.assert_close(h, h_mirror, rtol=0, atol=0)
    torch.testing.assert_close(l, -l_mirror, rtol=0, atol=0)


def test_gradients_to_second_order() -> None:
    a = torch.tensor([0.0, 1e-6, 0.1, 1.0, 3.9, 4.1, 30.0], dtype=torch.float64)
    v = torch.tensor([0.0, 0.45, -1.3, 5.0, 0.2, -0.1, 7.0], dtype=torch.float64)
    positive = (a[1:] + 0.05).requires_grad_(), v[1:].clone().requires_grad_()
    torch.autograd.gradcheck(voigt, positive)
    torch.autograd.gradgradcheck(voigt, positive)
    torch.autograd.gradcheck(voigt, (positive[0][:, None], positive[1]))  # broadcast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(dtype: torch.dtype) -> None:
    a = torch.tensor(GRID_A, dtype=dtype, requires_grad=True)
    v = torch.tensor(GRID_V, dtype=dtype, requires_grad=True)
    h, l = voigt(a, v)
    (h.sum() + l.sum()).backward()
    assert a.grad is not None and v.grad is not None
    assert a.grad.isfinite().all() and v.grad.isfinite().all()


def test_gradient_in_the_far_wing() -> None:
    """w' = -2zw + 2i/sqrt(pi) cancels there: dL/dv = -1/(sqrt(pi) v^2) to 1e-9 at v = 1000 in float64."""
    v = torch.tensor([1e3], dtype=torch.float64, requires_grad=True)
    voigt(torch.tensor([0.3], dtype=torch.float64), v)[1].sum().backward()
    z = 1e3 + 0.3j
    want = (-1j / np.sqrt(np.pi) * (1 / z**2 + 1.5 / z**4)).imag
    assert v.grad is not None
    assert v.grad.item() == pytest.approx(want, rel=1e-8)


def test_vmap_and_jacobians() -> None:
    a, v = torch.rand(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    rows = torch.func.vmap(lambda x, y: voigt(x, y)[0])(a, v)
    torch.testing.assert_close(rows, voigt(a, v)[0])
    jacobian = torch.func.jacrev(lambda y: voigt(a, y)[0])(v)
    slope = 2 * (a * voigt(a, v)[1] - v * voigt(a, v)[0])
    torch.testing.assert_close(jacobian, torch.diag(slope))
