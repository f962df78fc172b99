"""IMRPhenomD: the (2, 2) mode of two black holes with aligned spins, in the frequency domain, batched.

Husa et al. (arXiv 1508.07250), Khan et al. (arXiv 1508.07253); the coefficients are in phenomd.py, the pieces in
phenomd_phase.py and phenomd_amplitude.py. Conventions are those of LAL (SimInspiralChooseFDWaveform):

- h(f) = integral h(t) e^{-2 pi i f t} dt; the merger is near t = 0, at LAL's time; h22(f_ref) is real and positive.
- phi_ref, the orbital phase at f_ref: h22 -> h22 e^{2 i phi_ref}. Distance: h22 / d[Mpc].
- h_plus = (1 + cos^2 iota) / 2 h22, h_cross = -i cos iota h22.
- zero from M f = 0.2 on. (LAL's uniform grid also drops its last bin below that frequency; this does not.)

Every piece is a sum of powers of f (series.py), so most of the work is a matrix product with a table that all
binaries share. On the CPU rows are sorted by mass and taken in blocks that fit the cache; a block computes each
piece only on the bins where one of its rows needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_positive, check_shape
from simulators.gravitational_waves.phenomd import Binary, Fits, Remnant
from simulators.gravitational_waves.phenomd_amplitude import Amplitude
from simulators.gravitational_waves.phenomd_phase import Phase
from simulators.gravitational_waves.series import Series, Tabulated, tabulate

SUN_SECONDS = 4.925490947641267e-6  # G M_sun / c^3, LAL's
SUN_METRES = 1476.6250380501247
MEGAPARSEC_METRES = 3.0856775814913674e22
CUT = 0.2  # M f
_BLOCK = 1 << 16  # elements: a block and its temporaries stay in the cache of a core
_DEVICE_BLOCK = 1 << 22
_NEWTON = -7 / 6
_NAMES = ("mass_1", "mass_2", "chi_1", "chi_2")


def imrphenomd(
    mass_1: Tensor,
    mass_2: Tensor,
    chi_1: Tensor,
    chi_2: Tensor,
    frequencies: Tensor,
    f_ref: float = 20.0,
    *,
    validate: bool = True,
) -> Tensor:
    """h22 (n, F) at 1 Mpc with phi_ref = 0, complex128 [1/Hz]; differentiable in masses and spins.

    Args:
        mass_1, mass_2: (n,) in solar masses, in the detector's frame, in either order.
        chi_1, chi_2: (n,), dimensionless spins along the orbital angular momentum, of body 1 and body 2.
        frequencies: (F,) in Hz, positive and increasing; shared by all rows.
        f_ref: where the phase is zero, in Hz.
        validate: check the values; on a GPU that waits for the device once.

    Raises:
        ValueError: shapes, masses <= 0, |spins| > 1, frequencies not positive or not increasing, f_ref <= 0.
    """
    given = zip(_NAMES, (mass_1, mass_2, chi_1, chi_2), strict=True)
    columns = [as_tensor(value, name, torch.float64) for name, value in given]
    frequencies = as_tensor(frequencies, "frequencies", torch.float64).to(columns[0].device).contiguous()
    _check_shapes(columns, frequencies, f_ref)
    if validate:
        _check_values(columns, frequencies)
    order = torch.argsort(columns[0] + columns[1])  # a block of similar masses has similar bounds
    model = _Model.of(Binary.sorted(*(column[order] for column in columns)), frequencies, f_ref)
    return _evaluate(model, order)


def _check_shapes(columns: list[Tensor], frequencies: Tensor, f_ref: float) -> None:
    check_shape(columns[0], _NAMES[0], ("n",))
    for value, name in zip(columns[1:], _NAMES[1:], strict=True):
        check_shape(value, name, columns[0].shape)
    check_shape(frequencies, "frequencies", ("F",))
    if not len(frequencies):
        raise ValueError("frequencies: expected at least one, got none")
    check_positive(f_ref, "f_ref")


def _check_values(columns: list[Tensor], frequencies: Tensor) -> None:
    """One wait for the device when all is well; what is wrong is looked for only if something is."""
    masses, spins = torch.stack(columns[:2]), torch.stack(columns[2:])
    possible = (masses.isfinite() & (masses > 0)).all() & (spins.abs() <= 1).all()
    rising = (frequencies.diff() > 0).all() & (frequencies > 0).all() & frequencies.isfinite().all()
    if bool(possible & rising):
        return
    for name, value in zip(_NAMES, columns, strict=True):
        mass = name.startswith("mass")
        bad = ~(value.isfinite() & (value > 0)) if mass else ~(value.abs() <= 1)
        if bool(bad.any()):
            expected = "finite masses > 0" if mass else "spins in [-1, 1]"
            raise ValueError(f"{name}: expected {expected}, got {float(value[bad][0])}")
    raise ValueError(f"frequencies: expected positive, increasing values, got {_start(frequencies)}")


def _start(values: Tensor) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4].tolist())
    return f"[{shown}{', ...' if len(values) > 4 else ''}]"


@dataclass(frozen=True, eq=False)
class _Model:
    """h = amplitude e^{i phase} of n binaries on F bins: per-row coefficients, per-bin functions, bounds in Hz."""

    frequencies: Tensor
    bounds: Tensor  # (5, n): ends of the inspiral and of the intermediate phase, the same of the amplitude, the cut
    phases: tuple[Tabulated, Tabulated, Tabulated]
    arc: Tabulated  # the ringdown's phase has a further swing atan(arc)
    swing: Tensor  # (n, 1)
    amplitudes: tuple[Tabulated, Tabulated]
    log_top: Tabulated  # the ringdown's amplitude is exp(log_top) / bottom
    bottom: Tabulated

    @classmethod
    def of(cls, binary: Binary, frequencies: Tensor, f_ref: float) -> _Model:
        fits, remnant = Fits.of(binary), Remnant.of(binary)
        phase, amplitude = Phase.of(binary, fits, remnant), Amplitude.of(binary, fits, remnant)
        seconds = binary.total_mass * SUN_SECONDS
        time, y_ref = phase.time_of(amplitude.second), f_ref * seconds
        phase = phase.plus(time * y_ref - phase.value(y_ref), -time)
        arc = Series.of((0, -phase.centre / phase.width), (1, 1.0 / phase.width))
        early = [s.times(_newtonian(binary), _NEWTON) for s in (amplitude.inspiral, amplitude.intermediate)]
        pieces = [phase.inspiral, phase.intermediate, phase.ringdown, arc, *early]
        tables = tabulate([*pieces, *_lorentzian(amplitude, binary)], seconds, frequencies)
        first, second, third, arcs, inspiral, intermediate, top, bottom = tables
        ends = phase.first, phase.second, amplitude.first, amplitude.second, torch.full_like(time, CUT)
        phases, amplitudes = (-first, -second, -third), (inspiral, intermediate)  # e^{-i phase}
        bounds = torch.stack(ends) / seconds
        return cls(frequencies, bounds, phases, arcs, -phase.swing[:, None], amplitudes, top, bottom)

    def rows(self, rows: slice, spans: list[tuple[int, int]]) -> Tensor:
        """h (rows, end), where end is the last place of a row's cut among the bins.

        The ringdown is written first, the earlier pieces over it. For every mass ratio above 1/1000 the bounds are
        in order: 0.018 < f_RD / 2 and 0.014 < f_peak < 0.2.

        Args:
            rows: consecutive ones.
            spans: of each bound, the first and the last place among the bins that a row has it at.
        """
        (_, inspiral), (ring, middle), (_, early), (peak, late), (cut, end) = spans
        phase = self.phases[2](rows, 0, end)
        phase[:, ring:].addcmul_(self.swing[rows], self.arc(rows, ring, end).atan_())
        self._put(phase, self.phases[1](rows, 0, middle), 1, rows)
        self._put(phase, self.phases[0](rows, 0, inspiral), 0, rows)
        amplitude = torch.empty_like(phase)
        amplitude[:, peak:] = self.log_top(rows, peak, end).exp_() / self.bottom(rows, peak, end)
        self._put(amplitude, self.amplitudes[1](rows, 0, late), 3, rows)
        self._put(amplitude, self.amplitudes[0](rows, 0, early), 2, rows)
        above = self.frequencies[cut:end] >= self.bounds[4, rows, None]
        amplitude[:, cut:].masked_fill_(above, 0.0)
        return torch.complex(phase.cos().mul_(amplitude), phase.sin().mul_(amplitude))

    def _put(self, target: Tensor, piece: Tensor, bound: int, rows: slice) -> None:
        """Write the piece, on the first bins, into the target below the bound."""
        stop = piece.shape[1]
        below = self.frequencies[:stop] < self.bounds[bound, rows, None]
        target[:, :stop] = torch.where(below, piece, target[:, :stop])


def _lorentzian(amplitude: Amplitude, binary: Binary) -> tuple[Series, Series]:
    """A_0 y^-7/6 height exp(-decay u) / (u^2 + width^2), u = y - centre, as exp(first) / second."""
    c, k, top = amplitude.centre, amplitude.decay, _newtonian(binary) * amplitude.height
    power = torch.full_like(k, _NEWTON)
    first = Series.of((0, k * c), (1, -k), logs=[(0, power)])
    return first, Series.of((0, (c**2 + amplitude.width**2) / top), (1, -2.0 * c / top), (2, 1.0 / top))


def _newtonian(binary: Binary) -> Tensor:
    """A_0 (n,) of A_0 y^-7/6 at 1 Mpc: Khan et al. Eq. 17 times the (2, 2) mode's 2 sqrt(5 / 64 pi) M^2 / d."""
    unit = 2 * math.sqrt(5 / (64 * math.pi)) * SUN_METRES * SUN_SECONDS / MEGAPARSEC_METRES
    return unit * math.pi ** (-1 / 6) * binary.total_mass**2 * (2 / 3 * binary.eta).sqrt()


def _evaluate(model: _Model, order: Tensor) -> Tensor:
    """All rows by blocks, back in the order they were given in."""
    bins, device = len(model.frequencies), order.device
    out = torch.empty((len(order), bins), dtype=torch.complex128, device=device)
    size = max(1, _block_size(device) // bins)
    for start, spans in zip(range(0, len(order), size), _spans(model, size), strict=True):
        rows = slice(start, start + size)
        end = spans[-1][1]
        out[order[rows], :end] = model.rows(rows, spans)
        if end < bins:
            out[order[rows], end:] = 0
    return out


def _block_size(device: torch.device) -> int:
    return _BLOCK * torch.get_num_threads() if device.type == "cpu" else _DEVICE_BLOCK


def _spans(model: _Model, size: int) -> list[list[tuple[int, int]]]:
    """Of each block of rows and each bound, the first and the last place among the bins; on a GPU, all bins."""
    n, bins = len(model.swing), len(model.frequencies)
    if model.swing.device.type != "cpu":
        return [[(0, bins)] * 5] * math.ceil(n / size)
    places = torch.searchsorted(model.frequencies, model.bounds.detach())
    blocks = [places[:, start : start + size] for start in range(0, n, size)]
    return [list(zip(b.amin(1).tolist(), b.amax(1).tolist(), strict=True)) for b in blocks]
