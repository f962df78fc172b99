"""The protocols that the layers speak to each other.

Everything above this file (store, training, importance sampling, calibration) accepts any object with these
attributes; nothing has to inherit from anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # annotations only: this layer imports nothing of sbiflow at run time
    import numpy as np
    from torch import Generator, Tensor

    from sbiflow.priors import Prior


@runtime_checkable
class Simulator(Protocol):
    """A batched forward model, split into its expensive and its cheap part.

    `signal` is deterministic given theta and is stored; `observe` adds the noise and is called anew for every
    training batch, on the training device. Optional attributes: `name` and `version` (strings, written to the
    store), `x_names` (a label per feature) and `log_likelihood(theta, x)` with theta (n, D) and x (*x_shape) or
    (n, *x_shape), returning (n,) in nats, normalised over x.

    Where a part of the parameters acts only after the expensive part, one stored signal serves many of their draws.
    Further optional attributes (observing.py is where they are read):

    `signal_shape: tuple[int, ...]`: shape of one row of `signal` and of the store, real numbers; default x_shape.
    `extrinsic: tuple[str, ...]`: names of the parameters that `signal` does not depend on. Training redraws them from
        the prior for every batch, and once for every other set of simulations.
    `project(theta, signal)`: the noise-free observation of signals (n, *signal_shape) at theta (n, D) float64, both
        on one device, which is that of the result, (n, *projected_shape) of any dtype; what `observe` is then given.
        Rows are independent of each other. Required with `extrinsic`; default the identity.
    `noiseless(projected)`: what `observe` would give without noise, (n, *x_shape) in the dtype of the signal; default
        the identity.

    `structure`: estimates that x carries and symmetries of the posterior (`sbiflow.structure.Structure`),
        which the flow then has built in; default none.

    Then `observe` returns the dtype of the stored signal, whatever that of the projection.
    """

    @property
    def prior(self) -> Prior: ...
    @property
    def x_shape(self) -> tuple[int, ...]: ...

    def signal(self, theta: Tensor) -> Tensor:
        """Noise-free signal, (n, D) -> (n, *signal_shape); rows that fail are NaN."""
        ...

    def observe(self, signal: Tensor, generator: Generator | None) -> Tensor:
        """Signal (projected, if there is `project`) plus noise, (n, …) -> (n, *x_shape), on its device and in the
        dtype of the stored signal."""
        ...


@runtime_checkable
class RowSimulator(Protocol):
    """A forward model that runs one row at a time and draws its own noise (legacy NumPy code).

    Made by `simulator_from_function`; `simulate` seeds every row by itself, so the rows are the same whatever
    the executor.
    """

    @property
    def prior(self) -> Prior: ...
    @property
    def x_shape(self) -> tuple[int, ...]: ...

    def simulate_row(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One draw of x, (D,) -> (*x_shape)."""
        ...

    def observe(self, signal: Tensor, generator: Generator | None) -> Tensor:
        """The identity: the noise is already in the row."""
        ...


AnySimulator = Simulator | RowSimulator


class LogDensity(Protocol):
    """log p(x | theta) or log p(theta | x): theta (n, D), x (*x_shape) -> (n,)."""

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor: ...


class Proposal(Protocol):
    """Anything that draws from a conditional distribution of theta and knows its density.

    A flow, a Markov chain or an exact posterior: calibration and importance sampling take any of them.
    """

    @property
    def prior(self) -> Prior: ...

    def sample_and_log_prob(
        self, x: Tensor, n: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, *x_shape) -> theta (n, B, D) inside the prior's support, log q (n, B), both float64 on the CPU."""
        ...

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Normalised log q(theta | x) in physical units: theta (n, D), x (n, *x_shape) -> (n,), float64."""
        ...
