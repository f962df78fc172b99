"""What is known of a posterior before any training, and exact: where it lies and which symmetries it has.

Anchors. An observation may hold estimates of some parameters made by a method that the field trusts (a matched
filter's time and phase, a catalogue's redshift). A flow that models the departure from such an estimate, in units of
its expected error, has far less to learn than one that has to find the place first. The estimates enter as columns of
x, so nothing is approximated: for a given x the map is one more invertible layer. Group-equivariant posterior
estimation (GNPE, Dax et al. 2022, arXiv 2111.13139) reaches the same by Gibbs sampling, at the price of its density.

Symmetries. If prior and likelihood do not change when two groups of parameters are swapped, or a phase is turned by
2π / m, neither does the posterior. The flow is then learned on one copy, and draws are spread over all with equal
probability: modes that are equal have equal mass.

Both act in the base space z of the prior: standard normal columns, and phases in [-π, π).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Anchor:
    """An estimate of one parameter that every observation carries. All columns count from zero.

    Attributes:
        parameter: column of theta.
        location: column of the flattened x with the estimate, in base space; for a phase that is turned m times
            (`Structure.turns`) of m times the phase.
        log_scale: column with the logarithm of the expected error in base space; None for an error of 1, and for
            phases.
        slopes: (parameter, column) pairs: the phase moves by x[column] per unit of an anchored real parameter's
            departure in units of its scale.
    """

    parameter: int
    location: int
    log_scale: int | None = None
    slopes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Structure:
    """Anchors and symmetries of a posterior.

    Attributes:
        anchors: estimates that x carries.
        swap: two groups of columns of equal length whose exchange changes neither prior nor likelihood; the first of
            each are the ones compared, so their marginals have to be the same.
        turns: (column, m): a turn of that phase by 2π / m changes nothing.
    """

    anchors: tuple[Anchor, ...] = ()
    swap: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    turns: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        first, second = self.swap
        if len(first) != len(second) or len({*first, *second}) != 2 * len(first):
            raise ValueError(f"swap: expected two groups of distinct columns of one size, got {self.swap}")
        if any(times < 2 for _, times in self.turns):
            raise ValueError(f"turns: expected (column, m) with m >= 2, got {self.turns}")
        anchored = [anchor.parameter for anchor in self.anchors]
        if len(set(anchored)) != len(anchored) or set(anchored) & {*first, *second}:
            raise ValueError(
                f"anchors: expected each parameter once and none that is swapped, got {anchored}"
            )

    @property
    def has_symmetry(self) -> bool:
        """Whether some posterior points have equivalent copies."""
        return bool(self.swap[0] or self.turns)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Structure:
        """From what `dataclasses.asdict` made of one, and JSON of that."""
        anchors = tuple(
            Anchor(a["parameter"], a["location"], a["log_scale"], _pairs(a["slopes"]))
            for a in spec["anchors"]
        )
        first, second = spec["swap"]
        return cls(anchors, (tuple(first), tuple(second)), _pairs(spec["turns"]))

    def check(self, periodic: Sequence[bool], x_size: int) -> None:
        """Raise ValueError where columns do not exist, or a phase is treated as a real number or the reverse."""
        dim = len(periodic)
        parameters = [a.parameter for a in self.anchors] + [column for column, _ in self.turns]
        parameters += [*self.swap[0], *self.swap[1]]
        columns = [a.location for a in self.anchors] + [
            a.log_scale for a in self.anchors if a.log_scale is not None
        ]
        columns += [column for a in self.anchors for _, column in a.slopes]
        if not all(0 <= i < dim for i in parameters) or not all(0 <= i < x_size for i in columns):
            raise ValueError(
                f"structure: expected columns of theta below {dim} and of x below {x_size}, got {self}"
            )
        real = {a.parameter for a in self.anchors if not periodic[a.parameter]}
        wrong = [column for column, _ in self.turns if not periodic[column]]
        wrong += [column for pair in self.swap for column in pair if periodic[column]]
        wrong += [a.parameter for a in self.anchors if periodic[a.parameter] and a.log_scale is not None]
        wrong += [a.parameter for a in self.anchors if a.slopes and not periodic[a.parameter]]
        wrong += [other for a in self.anchors for other, _ in a.slopes if other not in real]
        if wrong:
            raise ValueError(
                "structure: expected turns and slopes of phases, swaps and scales of real parameters, and slopes "
                f"against anchored real ones, got otherwise for the parameters {sorted(set(wrong))}"
            )


def _pairs(value: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(first), int(second)) for first, second in value)
