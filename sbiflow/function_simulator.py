"""A simulator made of one plain function, for code that exists already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Generator, Tensor

from sbiflow.provenance import definition
from sbiflow.seeding import row_rng, uniform_rows

if TYPE_CHECKING:
    from sbiflow.contracts import LogDensity
    from sbiflow.priors import Prior

RowFunction = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_PROBE_KEY = 0x70726F62  # "prob": no stored row is simulated with the probe's random numbers


@dataclass(frozen=True)
class FunctionSimulator:
    """A RowSimulator around `fn(theta (D,), rng) -> x (*x_shape)`; noise is its own. Picklable if fn is."""

    fn: RowFunction
    prior: Prior
    x_shape: tuple[int, ...]
    name: str
    version: str = ""
    log_likelihood: LogDensity | None = None

    @property
    def __wrapped__(self) -> RowFunction:
        """The function: what is recorded as source and git revision is its own."""
        return self.fn

    def simulate_row(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One draw of x."""
        return np.asarray(self.fn(theta, rng), dtype=np.float64)

    def observe(self, signal: Tensor, generator: Generator | None = None) -> Tensor:
        """The identity: the noise is already in the row."""
        return signal


def simulator_from_function(
    fn: RowFunction,
    prior: Prior,
    *,
    x_shape: tuple[int, ...] | None = None,
    name: str | None = None,
    version: str = "",
    log_likelihood: LogDensity | None = None,
) -> FunctionSimulator:
    """Wrap a NumPy function as a simulator.

    Args:
        fn: theta (D,) in physical units and a random generator -> x. All its randomness must come from the
            generator, or rows cannot be reproduced. A row that raises or is NaN is recorded as failed.
        prior: of theta.
        x_shape: shape of x; found out by one call at a draw of the prior if not given.
        name: written to the store; the function's own name if not given.
        version: written to the store; a store of another version is refused.
        log_likelihood: log p(x | theta) for importance weights, theta (n, D), x (*x_shape) -> (n,).

    Raises:
        ValueError: x_shape was not given and the call failed.

    >>> from sbiflow.priors import Normal, Prior
    >>> fn = lambda theta, rng: theta[0] + rng.normal(size=3)
    >>> simulator_from_function(fn, Prior(Normal("mu", 0.0, 1.0)), name="mean of three").x_shape
    (3,)
    """
    shape = _probe(fn, prior) if x_shape is None else tuple(int(size) for size in x_shape)
    return FunctionSimulator(fn, prior, shape, name or definition(fn).__qualname__, version, log_likelihood)


def _probe(fn: RowFunction, prior: Prior) -> tuple[int, ...]:
    theta = prior.from_uniform(uniform_rows(0, 0, 1, prior.dim, _PROBE_KEY))[0].numpy()
    try:
        return np.asarray(fn(theta, row_rng(0, 0, _PROBE_KEY)), dtype=np.float64).shape
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"x_shape: expected fn to run at theta = {theta}, got {text}; or give x_shape"
        ) from error
