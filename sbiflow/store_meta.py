"""Where the rows of a store come from, and what makes them another simulation's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_PROVENANCE = ("sbiflow_version", "git_revision", "created")  # recorded, but no ground to refuse a store


@dataclass(frozen=True)
class StoreMeta:
    """Where the rows of a store come from; every field is an attribute of the HDF5 file."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    prior_spec: list[dict[str, Any]]
    simulator: str
    version: str
    source_hash: str
    seed: int
    block: int
    sbiflow_version: str = ""
    git_revision: str = ""
    created: str = ""

    def differences(self, found: StoreMeta) -> list[str]:
        """A sentence for every field of `found` that makes its rows another simulation's."""
        mine, theirs = self._compared(), found._compared()
        keys = dict.fromkeys([*mine, *theirs])
        return [
            f"{key}: expected {mine.get(key)}, got {theirs.get(key)}"
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]

    def _compared(self) -> dict[str, Any]:
        values = asdict(self)
        spec = json.loads(json.dumps(values.pop("prior_spec")))
        prior = {
            f"prior[{i}]": {k: v for k, v in entry.items() if k != "label"} for i, entry in enumerate(spec)
        }
        return {**{key: value for key, value in values.items() if key not in _PROVENANCE}, **prior}

    def attributes(self) -> dict[str, Any]:
        """As HDF5 attributes: numbers and text, lists as JSON."""
        values = asdict(self)
        lists = {key: json.dumps(values[key], sort_keys=True) for key in ("names", "units", "prior_spec")}
        return {**values, **lists, "seed": str(self.seed)}  # a seed may be longer than 64 bits

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> StoreMeta:
        """The inverse of `attributes`."""
        values = {field.name: attributes[field.name] for field in fields(cls)}
        values |= {key: int(values[key]) for key in ("seed", "block")}
        values |= {key: json.loads(values[key]) for key in ("names", "units", "prior_spec")}
        return cls(**{**values, "names": tuple(values["names"]), "units": tuple(values["units"])})
