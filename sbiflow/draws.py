"""Draws of parameters with their names and units: what plain and weighted samples have in common."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from sbiflow import plots, provenance, samples_file
from sbiflow.checks import as_tensor, check_finite, check_shape
from sbiflow.optional import require
from sbiflow.priors import Prior
from sbiflow.summary import SummaryTable, circular_mean, summarise, unwrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Draws(ABC):
    """Draws of the parameters for one observation, or for B observations at once.

    Attributes:
        theta: (n, D), or (n, B, D) for B observations; physical units, float64, on the CPU.
        log_q: (n,) or (n, B), normalised log-density of the proposal that drew them; NaN where it is not
            known (a Markov chain), and then they cannot be reweighted.
        x: the observation (*x_shape), or observations (B, *x_shape), float64.
        prior: names, units and support of the parameters, and the prior that the draws belong to.
        seed: that reproduces them, if there is one.
        source: what drew them.
        warnings: sentences to be read before the draws are used.
    """

    theta: Tensor
    log_q: Tensor
    x: Tensor
    prior: Prior
    seed: int | None = None
    source: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("theta", "log_q", "x"):
            value = as_tensor(getattr(self, name), name, torch.float64).detach().cpu()
            object.__setattr__(self, name, value)
        object.__setattr__(self, "warnings", tuple(self.warnings))
        many = self.theta.ndim == 3
        check_shape(self.theta, "theta", ("n", "B", self.prior.dim) if many else ("n", self.prior.dim))
        check_shape(self.log_q, "log_q", tuple(self.theta.shape[:-1]))
        if many:
            check_shape(self.x, "x", (self.theta.shape[1], *(str(size) for size in self.x.shape[1:])))
        if not self.theta.numel():
            raise ValueError(f"theta: expected at least one draw, got shape {tuple(self.theta.shape)}")
        check_finite(self.theta, "theta")

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(self.prior.names)

    @property
    def units(self) -> tuple[str, ...]:
        """Their units, "" for none."""
        return tuple(self.prior.units)

    def __len__(self) -> int:
        return len(self.theta)

    def __repr__(self) -> str:
        many = f", observations={self.theta.shape[1]}" if self.theta.ndim == 3 else ""
        return (
            f"{type(self).__name__}(n={len(self)}{many}, parameters={', '.join(self.names)}, {self.source})"
        )

    @abstractmethod
    def _relative_weights(self) -> np.ndarray | None:
        """(n,) weights that sum to one, or None if all are equal."""

    @abstractmethod
    def _ess(self) -> float | None:
        """Effective sample size of weighted draws, None for plain ones."""

    def summary(self) -> SummaryTable:
        """Median, 16/84 %, mean and sd per parameter; circular for periodic ones."""
        theta, weights = self._single(), self._relative_weights()
        rows = (
            summarise(column, m.name, m.unit, m.support if m.periodic else None, weights)
            for column, m in zip(theta.T, self.prior.marginals, strict=True)
        )
        return SummaryTable(tuple(rows), len(self), self._ess())

    def corner(
        self,
        truth: Any = None,
        overlay: Mapping[str, Draws] | None = None,
        label: str = "draws",
        bins: int | None = None,
    ) -> Figure:
        """Corner plot with units; `truth` (D,) is marked (NaN: unknown), `overlay` maps labels to draws.

        A periodic parameter is shown within half a period of its circular mean, so its axis may pass the edge
        of the support.
        """
        centres = self._circular_centres()
        others = [
            (text, _unwrapped(draws._single(), centres, self.prior), draws._relative_weights())
            for text, draws in (overlay or {}).items()
        ]
        marked = None if truth is None else np.asarray(truth, float)
        if marked is not None:
            check_shape(marked, "truth", (self.prior.dim,))
            marked = _unwrapped(marked[None], centres, self.prior)[0]
        return plots.corner_figure(
            _unwrapped(self._single(), centres, self.prior),
            self.prior.labels,
            self.units,
            weights=self._relative_weights(),
            truth=marked,
            overlay=others,
            label=label,
            bins=bins,
        )

    def observation(self, i: int) -> Self:
        """The draws for observation i of a batch."""
        if self.theta.ndim == 2:
            raise ValueError("observation: expected draws for a batch of observations, got draws for one")
        if not 0 <= i < self.theta.shape[1]:
            raise ValueError(f"observation: expected 0 to {self.theta.shape[1] - 1}, got {i}")
        return replace(self, theta=self.theta[:, i], log_q=self.log_q[:, i], x=self.x[i])

    def to_numpy(self) -> np.ndarray:
        """theta as an array, (n, D) or (n, B, D), float64."""
        return self.theta.numpy()

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a column per parameter, log_q, and weight if weighted; units in `.attrs`."""
        pandas = require("pandas", extra="export")
        frame = pandas.DataFrame(self._single(), columns=list(self.names))
        frame["log_q"] = self.log_q.numpy()
        weights = self._relative_weights()
        if weights is not None:
            frame["weight"] = weights
        frame.attrs["units"] = dict(zip(self.names, self.units, strict=True))
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to an HDF5 file, whole or not at all; `load` reads it back."""
        arrays = {name: getattr(self, name).numpy() for name in ("theta", "log_q", "x")}
        attributes = {
            "names": list(self.names),
            "units": list(self.units),
            "prior": json.dumps(self.prior.spec()),
            "seed": json.dumps(self.seed),
            "source": self.source,
            "warnings": json.dumps(self.warnings),
            "sbiflow_version": provenance.package_version(),
            "created": provenance.now(),
        }
        extra_arrays, extra_attributes = self._file_extras()
        return samples_file.write(path, arrays | extra_arrays, attributes | extra_attributes)

    @abstractmethod
    def _file_extras(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and attributes that only this kind of draws has."""

    def _single(self) -> np.ndarray:
        if self.theta.ndim == 3:
            count = self.theta.shape[1]
            raise ValueError(
                f"expected draws for one observation, got {count}: pick one with .observation(i)"
            )
        return self.theta.numpy()

    def _circular_centres(self) -> list[float | None]:
        theta, weights = self._single(), self._relative_weights()
        return [
            circular_mean(column, *m.support, weights) if m.periodic else None
            for column, m in zip(theta.T, self.prior.marginals, strict=True)
        ]


def _unwrapped(theta: np.ndarray, centres: list[float | None], prior: Prior) -> np.ndarray:
    columns = [
        column if centre is None else unwrap(column, *marginal.support, centre)
        for column, centre, marginal in zip(theta.T, centres, prior.marginals, strict=True)
    ]
    return np.stack(columns, -1)
