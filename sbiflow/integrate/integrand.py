"""What stands between the integrator and the user's function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from sbiflow.integrate.budget import Budget, BudgetExceeded
from sbiflow.integrate.calling import MODES, Caller, check_executor, evaluate
from sbiflow.integrate.domain import Domain
from sbiflow.integrate.probing import find_caller, probe_size
from sbiflow.integrate.values import Values, largest_modulus
from sbiflow.seeding import torch_generator

__all__ = ["BudgetExceeded", "Integrand", "Values"]

_PROBE_KEY = 0x70726F69


class Integrand:
    """The user's function on the unit cube, within a budget of evaluations.

    Args:
        f: (n, D) -> (n,) or (n, K), in NumPy or torch, or (D,) -> a number or (K,); integers, bools and any
            precision are taken, complex numbers are not. K > 1: f_0 trains the proposal.
        domain: of x.
        budget: evaluations that may be made in all, those that find out how f is called included.
        log: f returns the log of a non-negative integrand, K = 1; -inf is zero.
        calls: "numpy", "torch" or "scalar" says how f is called; "auto" finds out (see probing.py: 21 evaluations for
            a NumPy f, 7 or 11 points three times, 18 for a scalar one, up to twice as many for a torch one), and
            refuses a stochastic f.
        nonfinite: "zero": NaN and ±inf count as 0 (each component by itself) and are counted; "raise".
        executor: any concurrent.futures.Executor for the batches; not shut down. The probe runs here.

    Attributes:
        n_nan: points with a component NaN (log: NaN).
        n_inf: other points with an infinite component (log: +inf).
        n_zero: other points where f_0 is exactly 0 (log: -inf). The probe's points are in none of the three.
        seconds: spent in f, executor and transport included.

    Raises:
        ValueError: bad arguments; a process pool and an f that cannot be pickled.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        domain: Domain,
        budget: float,
        *,
        log: bool = False,
        calls: str = "auto",
        nonfinite: str = "zero",
        executor: Executor | None = None,
    ) -> None:
        if not callable(f):
            raise ValueError(f"integrand: expected a function, got {type(f).__name__}")
        _check_choice(calls, "calls", ("auto", *MODES))
        _check_choice(nonfinite, "nonfinite", ("zero", "raise"))
        check_executor(f, executor)
        self.f, self.domain, self.log = f, domain, bool(log)
        self.nonfinite, self.executor = nonfinite, executor
        self.n_nan = self.n_inf = self.n_zero = 0
        self.seconds = 0.0
        self._calls, self._budget = calls, Budget(budget)
        self._caller: Caller | None = None
        self._components = 0

    @property
    def n_evals(self) -> int:
        """Evaluations made, the probe's included."""
        return self._budget.used

    @property
    def remaining(self) -> int:
        """Evaluations left; what a batch may have once `prepare` has run."""
        return self._budget.remaining

    @property
    def components(self) -> int:
        """K, the number of components of f; runs `prepare` if that has not happened."""
        self.prepare()
        return self._components

    @property
    def calls(self) -> str:
        """How f is called: one of "numpy", "torch", "scalar"; "auto" before `prepare`."""
        return self._calls if self._caller is None else self._caller.mode

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Evaluate f at a few random points to learn how it is called and K; once only.

        Args:
            device: of the points that f will get.

        Raises:
            ValueError: f works in no way or returns something else than expected.
            BudgetExceeded: the budget does not suffice.
        """
        if self._caller is not None:
            return
        size = (probe_size(self.domain.dim), self.domain.dim)
        u = torch.rand(size, generator=torch_generator(0, _PROBE_KEY), dtype=torch.float64)
        start = time.perf_counter()
        caller, components = find_caller(self.f, self._calls, self.domain.to_x(u.to(device))[0], self._budget)
        self.seconds += time.perf_counter() - start
        if self.log and components != 1:
            raise ValueError(f"integrand: expected one value per point with log=True, got {components}")
        self._caller, self._components = caller, components

    def __call__(self, u: Tensor) -> Values:
        """Evaluate f at `domain.to_x(u)`.

        Args:
            u: (n, D) in [0, 1], float64, on any device.

        Returns:
            The values in the cube, on the device of u.

        Raises:
            BudgetExceeded: n is more than is left (after the probe, if this is the first call); f is not called.
            ValueError: f returned another shape than before, complex values or no numbers; with
                nonfinite="raise", NaN or inf: the message has the first point.
            Exception: whatever f raises, with a note that tells where.
        """
        x, log_jacobian = self.domain.to_x(u)
        self.prepare(x.device)
        values = self._tallied(self._evaluated(x), x)
        if self.log:
            return Values.from_log(values[:, 0], x, log_jacobian)
        return Values.from_linear(values, x, log_jacobian)

    def _evaluated(self, x: Tensor) -> Tensor:
        """f as it comes, (n, K)."""
        self._budget.charge(len(x))
        if self._caller is None or not len(x):
            return x.new_empty((0, self._components))
        start = time.perf_counter()
        values = evaluate(self._caller, x, self.executor)
        if values.is_cuda:
            torch.cuda.synchronize(values.device)  # or the integrand's time would be booked to the flow
        self.seconds += time.perf_counter() - start
        if values.shape[1] != self._components:
            raise ValueError(f"integrand: expected {self._components} components, got {values.shape[1]}")
        return values

    def _tallied(self, values: Tensor, x: Tensor) -> Tensor:
        """Count zeros, NaN and inf, and deal with the latter two as `nonfinite` says."""
        zero = -math.inf if self.log else 0.0
        size = values[:, 0] if self.log else largest_modulus(values)
        is_nan = torch.isnan(size)
        is_inf = size == math.inf
        bad = is_nan | is_inf
        n_bad, n_nan, n_zero = torch.stack([bad, is_nan, ~bad & (values[:, 0] == zero)]).sum(dim=1).tolist()
        self.n_nan += n_nan
        self.n_inf += n_bad - n_nan
        self.n_zero += n_zero
        if not n_bad:
            return values
        if self.nonfinite == "raise":
            row = int(bad.nonzero()[0])
            point = [f"{value:.6g}" for value in x[row].tolist()]
            raise ValueError(
                f"integrand: expected finite values, got {values[row].tolist()[:8]} at x = [{', '.join(point)}]"
            )
        return torch.where(torch.isfinite(values), values, zero)


def _check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
