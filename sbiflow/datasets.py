"""Real inputs that are not part of the package: where to find them on this machine, how to download them.

`find` looks in $SBIFLOW_DATA, in ../shared/data beside the repository, and in the user's cache; `fetch` puts
a file into that cache, from its origin, checked by SHA-256.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pooch

ENVIRONMENT = "SBIFLOW_DATA"
_BESIDE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"
_STIC = (
    "https://raw.githubusercontent.com/jaimedelacruz/stic/9157e7e48469d8d6ed4bd2d6544c1c9f4b14579b/example"
)
_GWOSC = "https://gwosc.org/s/events/GW150914"
_LFI_GW = (
    "https://raw.githubusercontent.com/stephengreen/lfi-gw/"
    "b5af189b6c5c6bd9d674e89bc6f01b849687e14a/data/events/GW150914"
)
_CATHODE = (
    "https://raw.githubusercontent.com/HEPML-AnomalyDetection/CATHODE/"
    "1d0d7eab3b3107b89f79e7005407d99656a53435/separated_data"
)


@dataclass(frozen=True)
class Dataset:
    """One file: where it comes from, the SHA-256 it must have, and what it is."""

    url: str
    sha256: str
    what: str


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "crisp/feobs.fits": Dataset(
            f"{_STIC}/feobs.fits",
            "11dd3c2d5c1f3675dbfb649e4a1ef403d827ed49501a5e128a58fa3cbb9eeeea",
            "SST/CRISP full Stokes, Fe I 6301.5 + 6302.5 Å (example observation of STiC)",
        ),
        "crisp/ca8obs.fits": Dataset(
            f"{_STIC}/ca8obs.fits",
            "bb2eb36768eaba18de3620e4d98a359d552c6c87e752e225d2344f759d2120c5",
            "SST/CRISP full Stokes, Ca II 8542 Å, the same pixel",
        ),
        "H-H1_LOSC_4_V2-1126259446-32.hdf5": Dataset(
            f"{_GWOSC}/H-H1_LOSC_4_V2-1126259446-32.hdf5",
            "6e6976e932074a3b4e4a398ed02c62e30fcaa2781811762caea04937133583f6",
            "GW150914, LIGO Hanford strain, 32 s at 4096 Hz (GWOSC)",
        ),
        "L-L1_LOSC_4_V2-1126259446-32.hdf5": Dataset(
            f"{_GWOSC}/L-L1_LOSC_4_V2-1126259446-32.hdf5",
            "56706e68c811b15548f1d7ed69d7c48d5fcc62aeb21fbaf131355f3cc5c07189",
            "GW150914, LIGO Livingston strain, 32 s at 4096 Hz (GWOSC)",
        ),
        "GW150914_PSD_H1.txt": Dataset(
            f"{_LFI_GW}/PSD_H1.txt",
            "07d8c6377a07d0935060dcec3a7d9ecdc4880f172ca8de04a83a2a2de47a63d7",
            "power spectral density of Hanford at the event, 1/Hz (lfi-gw)",
        ),
        "GW150914_PSD_L1.txt": Dataset(
            f"{_LFI_GW}/PSD_L1.txt",
            "8bd847e2bf5de433f8bec35f46e8566679ad8aa3a3a8ef62ad762d21c72b5972",
            "power spectral density of Livingston at the event, 1/Hz (lfi-gw)",
        ),
        "lhco/innerdata_train.npy": Dataset(
            f"{_CATHODE}/innerdata_train.npy",
            "8396ee7d5ced347cf533bd382ff4b0e5cdba8a02a5eb7273a96af0b819045bd2",
            "LHC Olympics R&D events in the signal region, training part (CATHODE)",
        ),
        "lhco/innerdata_val.npy": Dataset(
            f"{_CATHODE}/innerdata_val.npy",
            "c5609908798654f1d9d9210f5fbd6aeb3fa1b7110c9e4a277c58c0b4557b089e",
            "LHC Olympics R&D events in the signal region, validation part (CATHODE)",
        ),
        "lhco/innerdata_test.npy": Dataset(
            f"{_CATHODE}/innerdata_test.npy",
            "413159262fd166ced866414cb7b9702152ceda35ae0f08f269182e07389e1755",
            "LHC Olympics R&D events in the signal region, test part (CATHODE)",
        ),
    }
)


def find(name: str) -> Path:
    """Path of a data file on this machine, e.g. `find("crisp/feobs.fits")`.

    Raises:
        FileNotFoundError: it is nowhere; the message is one line with the command that downloads it.
    """
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    if name not in DATASETS:
        raise FileNotFoundError(f"{name}: expected one of {', '.join(DATASETS)}")
    raise FileNotFoundError(f"{name} is not on this machine: run `sbiflow fetch {name}`")


def fetch(name: str) -> Path:
    """Download a data file into the user's cache (unless it is there) and check its SHA-256.

    Raises:
        ValueError: no data set of that name, or the file that came has another SHA-256.
        OSError: its origin cannot be reached.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
    entry = DATASETS[name]
    target = _cache() / name
    try:
        pooch.retrieve(entry.url, f"sha256:{entry.sha256}", fname=target.name, path=target.parent)
    except OSError as error:  # requests' errors are OSErrors
        raise OSError(f"{name}: could not be downloaded from {entry.url} ({error})") from error
    return target


def _folders() -> list[Path]:
    own = os.environ.get(ENVIRONMENT)
    return [*([Path(own)] if own else []), _BESIDE_REPOSITORY, _cache()]


def _cache() -> Path:
    return Path(pooch.os_cache("sbiflow"))
