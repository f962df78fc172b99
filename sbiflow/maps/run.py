"""Posteriors of a whole field of view: streamed from disk, in bounded memory, resumable.

The pixels, counted along x, then y, are divided into blocks of a size that the file records. Every block has random
numbers of its own, from (seed, number of the block), so that its bytes do not depend on which blocks were done before,
in which run or by which thread.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import as_tensor, check_count
from sbiflow.contracts import AnySimulator, RowSimulator, Simulator
from sbiflow.execution import progress_bar
from sbiflow.maps.block import BlockTask, Mixture, default_block
from sbiflow.maps.cube import Cube, open_cube
from sbiflow.maps.file import MapFile, MapMeta, MapWriter, PixelStatus
from sbiflow.maps.result import MapResult
from sbiflow.maps.statistics import Predictive
from sbiflow.priors import Prior
from sbiflow.provenance import package_version
from sbiflow.seeding import check_seed

Block = tuple[int, np.ndarray]


@dataclass(frozen=True)
class MapConfig:
    """How a map is made.

    Attributes:
        axes: "first" if the field of view is (ny, nx, *x_shape), "last" if it is (*x_shape, ny, nx).
        dataset: of an HDF5 file, or extension of a FITS file, where there are several.
        predictive: draws per pixel at which chi2 is taken, each a call of the simulator; used if there is one.
        noise: standard deviation of the Gaussian noise, to broadcast to x_shape; `simulator.noise` if not given.
        block: pixels that share random numbers and are done at once; by default 16,384 draws' worth (GPU: a million).
            Another block, other random numbers.
        threads: blocks worked on at once, each by one core; the result is the same but for rounding.
    """

    axes: str = "first"
    dataset: str | None = None
    predictive: int = 1
    noise: Any = None
    block: int | None = None
    threads: int = 1


def make_map(
    mixture: Mixture,
    x: Any,
    n: int,
    out: str | Path,
    *,
    simulator: AnySimulator | None = None,
    seed: int = 0,
    config: MapConfig | None = None,
    progress: bool = True,
) -> MapResult:
    """`Posterior.map` and `Ensemble.map`, where arguments, result and errors are described."""
    config = config or MapConfig()
    check_count(n, "n")
    check_seed(seed)
    check_count(config.threads, "threads")
    first = mixture.heaviest
    block = default_block(first, n) if config.block is None else check_count(config.block, "block")
    predictive = None if simulator is None else _predictive(simulator, config, first.prior, first.x_shape, n)
    with open_cube(x, first.x_shape, axes=config.axes, dataset=config.dataset) as cube:
        meta = _describe(mixture, cube, n, seed, block, predictive)
        file = MapFile.continue_or_create(out, meta)
        task = BlockTask(mixture, n, seed, predictive, meta.images())
        with _workers(config.threads) as run:
            _fill(file, task, cube, run, progress)
    return MapResult(file)


def _fill(
    file: MapFile, task: BlockTask, cube: Cube, run: Callable[..., Iterator[Any]], progress: bool
) -> None:
    pending, block = set(file.pending().tolist()), file.meta.block
    with progress_bar(progress) as bar:
        job = bar.add_task("mapping", total=len(cube), failed=0)
        bar.update(job, completed=len(cube) - _pixels(pending, block, len(cube)))
        failed = 0
        try:
            with file.writer() as writer:
                for waiting in _blocks(cube, block, pending):
                    for status in _map_blocks(waiting, task, writer, block, run):
                        failed += int((status >= PixelStatus.MASKED).sum())
                        bar.update(job, advance=len(status), failed=failed)
        except KeyboardInterrupt:
            done = int((file.read("status") != PixelStatus.PENDING).sum())
            text = f"stopped: {done} of {len(cube)} pixels are kept in {file.path}; run the same again to continue"
            print(f"\n{text}", file=sys.stderr)
            raise KeyboardInterrupt(text) from None


def _map_blocks(
    waiting: list[Block], task: BlockTask, writer: MapWriter, block: int, run: Callable[..., Iterator[Any]]
) -> Iterator[np.ndarray]:
    numbers = [number for number, _ in waiting]
    results = run(task, numbers, [x for _, x in waiting])
    for number, (images, status) in zip(numbers, results, strict=True):
        writer.write(number * block, images, status)
        yield status


def _blocks(cube: Cube, block: int, pending: set[int]) -> Iterator[list[Block]]:
    """The pending blocks with their observations, as many at a time as are read at once."""
    for start, stop in cube.stripes(block):
        numbers = [i for i in range(start // block, -(-stop // block)) if i in pending]
        if numbers:
            x = cube.read(start, stop)
            places = [number * block - start for number in numbers]
            yield [(number, x[place : place + block]) for number, place in zip(numbers, places, strict=True)]


def _pixels(blocks: set[int], block: int, pixels: int) -> int:
    return sum(min(block, pixels - number * block) for number in blocks)


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` that works in so many threads, one core each."""
    if threads == 1:
        yield map
        return
    pool, before = ThreadPoolExecutor(threads), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _predictive(
    simulator: AnySimulator, config: MapConfig, prior: Prior, x_shape: tuple[int, ...], n: int
) -> Predictive:
    if isinstance(simulator, RowSimulator):
        raise ValueError(
            "simulator: expected one with `signal`, of which chi2 can be taken, got simulate_row"
        )
    if simulator.prior.names != prior.names or tuple(simulator.x_shape) != tuple(x_shape):
        raise ValueError(
            f"simulator: expected the parameters {', '.join(prior.names)} and x_shape {tuple(x_shape)}, got "
            f"{', '.join(simulator.prior.names)} and {tuple(simulator.x_shape)}"
        )
    if check_count(config.predictive, "predictive") > n:
        raise ValueError(f"predictive: expected at most the {n} draws per pixel, got {config.predictive}")
    given = getattr(simulator, "noise", None) if config.noise is None else config.noise
    if given is None:
        raise ValueError("noise: expected standard deviations, for the simulator has no attribute `noise`")
    levels = as_tensor(given, "noise", torch.float64).cpu()
    if not bool((levels.isfinite() & (levels > 0)).all()):
        raise ValueError("noise: expected finite values > 0, got others")
    try:
        noise = levels.broadcast_to(x_shape).clone()
    except RuntimeError:
        raise ValueError(f"noise: expected a shape that fits {x_shape}, got {tuple(levels.shape)}") from None
    return Predictive(simulator, prior, noise, config.predictive)


def _describe(
    mixture: Mixture, cube: Cube, n: int, seed: int, block: int, predictive: Predictive | None
) -> MapMeta:
    first = mixture.heaviest
    prior, novelty = first.prior, first.novelty
    simulator = None if predictive is None else predictive.simulator
    return MapMeta(
        names=tuple(prior.names),
        units=tuple(prior.units),
        periodic=tuple(m.name for m in prior.marginals if m.periodic),
        prior_spec=prior.spec(),
        model=model_sha256(mixture),
        shape=cube.shape,
        x_shape=cube.x_shape,
        x_sha256=cube.sha256(),
        n=n,
        seed=seed,
        block=block,
        device=first.device.type,
        predictive=0 if predictive is None else predictive.draws,
        simulator=_name(simulator),
        noise_sha256="" if predictive is None else _sha256(predictive.noise),
        n_input=len(novelty.input.null),
        n_embedding=len(novelty.embedding.null),
        source=f"{first.flow_config.family} flow trained on {first.info.simulations} simulations",
        wcs=cube.wcs,
        sbiflow_version=package_version(),
    )


def _name(simulator: Simulator | None) -> str:
    if simulator is None:
        return ""
    name = getattr(simulator, "name", None) or type(simulator).__name__
    return f"{name} {getattr(simulator, 'version', '')}".strip()


def model_sha256(mixture: Mixture) -> str:
    """SHA-256 of everything that draws depend on: weights, settings, prior and shares, as hex."""
    parts = []
    for member, weight in zip(mixture.members, mixture.weights, strict=True):
        tensors = member.flow.state_dict() | {
            f"novelty.{k}": v for k, v in member.novelty.state_dict().items()
        }
        settings = [member.prior.spec(), asdict(member.flow_config), asdict(member.embedding_config), weight]
        parts.append([settings, {name: _sha256(value) for name, value in tensors.items()}])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
