"""Train on a store, with one process or with all that torchrun has started: what train.sbatch runs.

    python analyses/cluster/train.py sims.h5 --out model
    torchrun --nproc-per-node 4 analyses/cluster/train.py sims.h5 --out model --lanes 8

The same command goes on from OUT/checkpoint.safetensors, with any number of processes that divides the lanes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sbiflow as sf
from sbiflow.cli.lookup import recorded_simulator

INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of model and checkpoint, seen by all nodes"
    )
    parser.add_argument("--simulator", help="package.module:attribute, if it is not built in")
    parser.add_argument(
        "--lanes", type=int, help="parts of a batch; fix it where the number of nodes may change"
    )
    parser.add_argument("--batch", type=int, help="rows per step, of all processes together")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    store = sf.Store.open(options.store)
    simulator = recorded_simulator(options.simulator, store.meta.simulator, options.store)
    config = sf.TrainConfig(
        steps=options.steps, batch=options.batch, lanes=options.lanes, seed=options.seed, patience=None
    )
    file = options.out / "checkpoint.safetensors"
    try:
        posterior = sf.train(store, simulator, config, checkpoint=file, checkpoint_every=options.every)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # SIGTERM or Ctrl-C; the checkpoint is written, and process 0 has said so
    if sf.is_rank_zero():
        posterior.save(options.out)
        print(f"{posterior.info.steps:,} steps in {posterior.info.training_seconds:.0f} s: {options.out}")


if __name__ == "__main__":
    main()
