"""From a stored signal to an observation: signal --project(theta)--> noise-free observation --observe--> x.

A simulator without `project` has its noise-free observation in the store, and the first step is the identity. With
it, some parameters may be extrinsic: the expensive `signal` does not depend on them, `project` applies them (an
amplitude, a phase, a direction in the sky), so that one stored signal serves any number of their draws. In the base
space z the prior of a column is a standard normal or a uniform phase, whatever the parameter; there they are redrawn.

Whoever makes x of a signal does it through this module. The contract is in contracts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from sbiflow.checks import check_shape
from sbiflow.contracts import AnySimulator, RowSimulator

_ROWS = 4096  # projected at once: a projection may need many times the memory of the signal
_RTOL = 1e-4  # of the largest value of a signal: float32, and other rounding in a batch of another size


def signal_shape(simulator: AnySimulator) -> tuple[int, ...]:
    """Shape of one row of what `signal` returns and the store holds: the simulator's own, or x_shape."""
    own = None if _by_rows(simulator) else getattr(simulator, "signal_shape", None)
    return tuple(simulator.x_shape if own is None else own)


def shape_difference(stored: tuple[int, ...], simulator: AnySimulator) -> list[str]:
    """[] if a store of such signals fits the simulator; otherwise a sentence."""
    expected = signal_shape(simulator)
    name = "x_shape" if expected == tuple(simulator.x_shape) else "signal_shape"
    return [] if stored == expected else [f"{name}: expected {expected}, got {stored}"]


def extrinsic_columns(simulator: AnySimulator) -> tuple[int, ...]:
    """Columns of theta, ascending, that `signal` does not depend on; () if there are none.

    Raises:
        ValueError: `extrinsic` is no sequence of names of the prior, or there is no `project` to apply them.
    """
    chosen = getattr(simulator, "extrinsic", ())
    if isinstance(chosen, str) or not isinstance(chosen, Sequence):
        raise ValueError(f"extrinsic: expected a tuple of names, got {chosen!r}")
    if not chosen:
        return ()
    names = simulator.prior.names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        listed = ", ".join(map(str, unknown))
        raise ValueError(f"extrinsic: expected names among {', '.join(names)}, got {listed}")
    if _by_rows(simulator):
        raise ValueError("extrinsic: expected a simulator with signal and project, got one with simulate_row")
    if not projects(simulator):
        raise ValueError(
            f"extrinsic: expected a method project(theta, signal) to apply {', '.join(chosen)}, got none"
        )
    return tuple(i for i, name in enumerate(names) if name in chosen)


def projects(simulator: AnySimulator) -> bool:
    """Whether x depends on theta other than through the stored signal."""
    return not _by_rows(simulator) and callable(getattr(simulator, "project", None))


def observe(
    simulator: AnySimulator, theta: Tensor | None, signal: Tensor, generator: Generator | None
) -> Tensor:
    """Noisy observations of signals (n, *signal_shape) at theta (n, D), (n, *x_shape).

    `theta` is float64 on the device of `signal`; None will do for a simulator that does not project.
    """
    return _from_projected(simulator, theta, signal, lambda rows: simulator.observe(rows, generator))


def noiseless(simulator: AnySimulator, theta: Tensor | None, signal: Tensor) -> Tensor:
    """What `observe` would give without noise, (n, *x_shape)."""
    own = None if _by_rows(simulator) else getattr(simulator, "noiseless", None)
    return _from_projected(simulator, theta, signal, own if callable(own) else lambda rows: rows)


def theta_for(simulator: AnySimulator, z: Tensor) -> Tensor | None:
    """theta (n, D), float64, of base-space z (n, D) on its device, if the simulator projects; else None.

    That of `prior.constrain`, without its Jacobian, which would double the time.
    """
    if not projects(simulator):
        return None
    pairs = zip(simulator.prior.marginals, z.double().unbind(-1), strict=True)
    return torch.stack([marginal.from_base(column) for marginal, column in pairs], -1)


def redraw_base(
    z: Tensor, columns: Sequence[int], periodic: Sequence[bool] | Tensor, generator: Generator | None
) -> Tensor:
    """z (n, D) with those columns drawn anew from the prior; z itself if there are none.

    Args:
        columns: which to redraw.
        periodic: (D,) whether a column is a phase, uniform in [-pi, pi), or a standard normal.
        generator: on the device of z.
    """
    if not columns:
        return z
    parts = list(z.unbind(-1))  # no index tensor, which a GPU would have to wait for
    for i in columns:
        draw = _phases if bool(periodic[i]) else torch.randn
        parts[i] = draw(len(z), generator=generator, dtype=z.dtype, device=z.device)
    return torch.stack(parts, -1)


def check_extrinsic(simulator: AnySimulator, theta: Tensor, signal: Tensor) -> None:
    """Simulate rows again with other extrinsic parameters and compare.

    Otherwise a parameter that does act on the signal, in the simulator or in the one that filled the store, would be
    redrawn against its own signal: the posterior would be the prior there and nothing would say so.

    Args:
        theta, signal: a few stored rows (n, D) and (n, *signal_shape), on the CPU.

    Raises:
        ValueError: the signals do not come out as they were.
    """
    columns, prior = list(extrinsic_columns(simulator)), simulator.prior
    if not columns or isinstance(simulator, RowSimulator):
        return
    z = redraw_base(torch.zeros_like(theta), columns, prior.periodic, torch.Generator().manual_seed(0))
    other = theta.clone()
    other[:, columns] = prior.constrain(z)[0][:, columns]
    with torch.no_grad():
        again = torch.as_tensor(simulator.signal(other)).detach().cpu().double()
    check_shape(again, "signal", tuple(signal.shape))
    change, scale = float((again - signal).abs().max()), float(signal.abs().max())
    if not change <= _RTOL * scale:
        raise ValueError(
            f"extrinsic: expected signals that do not depend on {', '.join(prior.names[i] for i in columns)}, and as "
            f"they are in the store, up to {scale:.3g}; got a change by {change:.3g}"
        )


def _by_rows(simulator: Any) -> bool:
    return callable(getattr(simulator, "simulate_row", None))


def _phases(n: int, **options: Any) -> Tensor:
    return torch.rand(n, **options) * (2 * math.pi) - math.pi


def _from_projected(
    simulator: Any, theta: Tensor | None, signal: Tensor, finish: Callable[[Tensor], Tensor]
) -> Tensor:
    if not projects(simulator):
        return finish(signal)
    if theta is None:
        raise ValueError("theta: expected values for a simulator that projects, got None")
    blocks = zip(theta.split(_ROWS), signal.split(_ROWS), strict=True)
    return torch.cat([finish(simulator.project(t, rows)) for t, rows in blocks])


__all__ = [
    "check_extrinsic",
    "extrinsic_columns",
    "noiseless",
    "observe",
    "projects",
    "redraw_base",
    "shape_difference",
    "signal_shape",
    "theta_for",
]
