"""Posteriors of a field of view: `Posterior.map` makes them, `MapResult` reads them."""

from sbiflow.maps.block import Mixture
from sbiflow.maps.cube import Cube, open_cube
from sbiflow.maps.file import PixelStatus
from sbiflow.maps.result import MapCounts, MapResult, ParameterMap
from sbiflow.maps.run import MapConfig, make_map

__all__ = [
    "Cube",
    "MapConfig",
    "MapCounts",
    "MapResult",
    "Mixture",
    "ParameterMap",
    "PixelStatus",
    "make_map",
    "open_cube",
]
