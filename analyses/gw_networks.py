"""What the gravitational-wave analyses share: setups, and the network of each, trained or loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import sbiflow as sf
from sbiflow import datasets
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.likelihood import optimal_snr
from simulators.gravitational_waves.network import eleven_parameters
from simulators.gravitational_waves.noise import PSD
from simulators.gravitational_waves.setups import eight_parameters, five_parameters


def gw150914() -> Binary:
    """Setup (c), with the noise of the event."""
    return eleven_parameters(
        [PSD.from_file(datasets.find(f"GW150914_PSD_{name}.txt")) for name in ("H1", "L1")]
    )


@dataclass(frozen=True)
class Setup:
    """A simulator and how its network is trained."""

    simulator: Callable[[], Binary]
    flow: sf.FlowConfig
    embedding: sf.EmbeddingConfig
    train: sf.TrainConfig
    simulations: int = 50_000


SETUPS = {
    "a": Setup(
        five_parameters,
        sf.FlowConfig(layers=6, hidden=64),
        sf.EmbeddingConfig(svd_components=64),
        sf.TrainConfig(steps=5000, batch=1024, patience=None),
    ),
    "b": Setup(
        eight_parameters,
        sf.FlowConfig(layers=8, hidden=96),
        sf.EmbeddingConfig(svd_components=96),
        sf.TrainConfig(steps=5000, batch=1024, patience=None),
    ),
    "c": Setup(
        gw150914,
        sf.FlowConfig("spline_autoregressive", layers=6, hidden=128),
        sf.EmbeddingConfig(svd_components=128),
        sf.TrainConfig(steps=7000, batch=1024, patience=None),
        60_000,
    ),
}
FAST = sf.TrainConfig(steps=80, batch=256, patience=None, validate_every=80)
FAST_SIMULATIONS = 2000


def setup_of(arguments: argparse.Namespace, allowed: str = "abc") -> Setup:
    """The one that --setup names."""
    if arguments.setup not in tuple(allowed):
        raise SystemExit(f"--setup: expected one of {', '.join(allowed)}, got {arguments.setup!r}")
    return SETUPS[arguments.setup]


def network(setup: Setup, simulator: Binary, arguments: argparse.Namespace, folder: Path) -> sf.Posterior:
    """The posterior in --model, or one trained in `folder`, where a run that was stopped goes on.

    Raises:
        SystemExit: the model is of another simulator, or of other noise.
    """
    for i, basis in enumerate(simulator.basis):
        print(
            f"detector {i}: {basis.size} vectors span the waveforms, worst mismatch {basis.worst_mismatch:.1e}"
        )
    if arguments.model:
        found = sf.Posterior.load(arguments.model)
        own = found.info.simulator, found.info.simulator_version
        if own != (simulator.name, simulator.version):
            expected = f"{simulator.name}, version {simulator.version}"
            raise SystemExit(
                f"--model: expected a network of {expected}, got one of {', version '.join(own)}"
            )
        return found
    fast, seed = arguments.fast, arguments.seed
    n, config = (FAST_SIMULATIONS, FAST) if fast else (setup.simulations, setup.train)
    config = replace(config, seed=seed)
    path = folder / f"simulations-{n}-{seed}.h5"
    if fast:
        path.unlink(missing_ok=True)  # that of earlier code would be refused
    store = sf.simulate(simulator, n, path, seed=seed)
    flow = replace(setup.flow, structure=simulator.structure)
    checkpoint = None if fast else folder / f"checkpoint-{n}-{config.steps}-{seed}.safetensors"
    found = sf.train(store, simulator, config, flow=flow, embedding=setup.embedding, checkpoint=checkpoint)
    found.save(folder / "model")
    return found


def loudness(simulator: Binary, theta: Tensor) -> Tensor:
    """Optimal signal-to-noise ratio, all detectors together, (n, D) -> (n,)."""
    return torch.cat([optimal_snr(simulator.model(rows).flatten(1)) for rows in theta.split(256)])
