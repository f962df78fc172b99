"""Histograms of an integral: every bin is an integral of its own, done with the same points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_shape


@dataclass(frozen=True)
class HistogramIntegrand:
    """x (n, D) -> (n, 1 + B): f, and f in each bin of a variable; see `with_histogram`."""

    f: Callable[[Any], Any]
    variable: Callable[[Any], Any]
    edges: tuple[float, ...]

    def __call__(self, x: Any) -> Any:
        """NumPy in, NumPy out; torch in, torch out."""
        if x.ndim != 2:
            raise ValueError(f"with_histogram: expected points of shape (n, D), got {tuple(x.shape)}")
        return self._torch(x) if isinstance(x, Tensor) else self._numpy(x)

    def _numpy(self, x: np.ndarray) -> np.ndarray:
        values = np.asarray(self.f(x.copy()))
        variable = np.asarray(self.variable(x), dtype=np.float64)
        check_shape(values, "f", (len(x),))
        check_shape(variable, "variable", (len(x),))
        inside = np.flatnonzero((variable >= self.edges[0]) & (variable <= self.edges[-1]))
        column = np.searchsorted(self.edges[1:-1], variable[inside], side="right")
        filled = np.zeros((len(x), len(self.edges)), dtype=values.dtype)
        filled[:, 0] = values
        filled[inside, 1 + column] = values[inside]
        return filled

    def _torch(self, x: Tensor) -> Tensor:
        values = self.f(x.clone())
        variable = self.variable(x).to(torch.float64)
        check_shape(values, "f", (len(x),))
        check_shape(variable, "variable", (len(x),))
        inside = ((variable >= self.edges[0]) & (variable <= self.edges[-1])).nonzero()[:, 0]
        inner = torch.tensor(self.edges[1:-1], dtype=torch.float64, device=variable.device)
        column = torch.searchsorted(inner, variable[inside], right=True)
        filled = values.new_zeros((len(x), len(self.edges)))
        filled[:, 0] = values
        filled[inside, 1 + column] = values[inside]
        return filled


def with_histogram(
    f: Callable[[Any], Any], variable: Callable[[Any], Any], edges: Sequence[float]
) -> HistogramIntegrand:
    """The vector-valued integrand (f, f in bin 0, ..., f in bin B-1), so that the bins' errors and their
    correlations come with the result. Divide by the widths of the bins for a differential cross-section.

    Args:
        f: (n, D) -> (n,), batched NumPy or torch, in linear (not log) values.
        variable: (n, D) -> (n,) of the same kind, in the units of `edges`.
        edges: B + 1 increasing numbers, the outer two may be infinite. Bins are half-open, the last one closed,
            as in `numpy.histogram`; what lies outside or is NaN is in component 0 only.

    Returns:
        An integrand with K = B + 1 components, picklable if f and variable are.

    Raises:
        ValueError: the edges do not increase; in the call, f or variable is not of shape (n,).

    >>> g = with_histogram(lambda x: x[:, 0], lambda x: x[:, 1], [0.0, 0.5, 1.0])
    >>> g(np.array([[3.0, 0.2], [4.0, 0.5], [5.0, 2.0]])).tolist()
    [[3.0, 3.0, 0.0], [4.0, 0.0, 4.0], [5.0, 0.0, 0.0]]
    """
    values = np.asarray(edges, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not bool(np.all(values[1:] > values[:-1])):
        raise ValueError(f"edges: expected two or more increasing numbers, got {edges!r}")
    return HistogramIntegrand(f, variable, tuple(values.tolist()))
