"""The job scripts of analyses/cluster: their commands parse, and they run where `srun` is a script of this test.

No SLURM here: that `#SBATCH` lines mean what they should is not tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sbiflow.store import Store
from tests.engines import digests

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "analyses" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("simulate_*.sbatch"))
SIMULATOR, N = "gaussian_linear", 40
RECORDER = """#!{python}
import json, os, sys
from pathlib import Path
name = Path(sys.argv[0]).name
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "dask" and sys.argv[1] == "scheduler":
    Path(sys.argv[sys.argv.index("--scheduler-file") + 1]).write_text("tcp://somewhere")
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster_simulate", CLUSTER / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(
    script: Path, folder: Path, commands: Path, out: str, *further: str, n: int = N, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a job script in a folder, with the programs of another folder first on the path."""
    (folder / "analyses").exists() or (folder / "analyses").symlink_to(ROOT / "analyses")
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "1"}
    given = {"SIMULATOR": SIMULATOR, "N": str(n), "OUT": out, "SEED": "5"}
    environment = {**os.environ, "PATH": path, **slurm, **given, **variables}
    command = ["bash", str(script), "--block", "8", *further]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_commands_parse(script: Path, tmp_path: Path) -> None:
    """Every program that the script starts is one that writes down its arguments."""
    for name in ("srun", "python", "dask"):
        program(tmp_path, name, RECORDER.format(python=sys.executable))
    found = job(script, tmp_path, tmp_path, "out", RECORD=str(tmp_path / "record"))
    assert found.returncode == 0, found.stderr
    calls = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    call = next(call for call in calls if "analyses/cluster/simulate.py" in call)
    options = load().parse(call[call.index("analyses/cluster/simulate.py") + 1 :])
    assert (options.simulator, options.n, options.out, options.seed) == (SIMULATOR, N, Path("out"), 5)
    assert options.block == 8  # what follows the name of the script
    assert options.engine == {"array": "processes"}.get(script.stem.split("_")[1], script.stem.split("_")[1])
    assert options.shard == (3 if script.stem.endswith("array") else None)
    assert (call[0] == "srun") == (options.engine != "dask")
    if options.engine == "dask":
        workers = next(call for call in calls if call[:3] == ["srun", "dask", "worker"])
        assert workers[workers.index("--scheduler-file") + 1] == str(options.scheduler_file)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_nothing_is_run_without_its_settings(script: Path, tmp_path: Path) -> None:
    found = subprocess.run(["bash", str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert found.returncode != 0
    assert "SIMULATOR" in found.stderr
    assert list(tmp_path.iterdir()) == []


def real(folder: Path, launch: str) -> Path:
    """A folder with an `srun` that starts its command with `launch`."""
    commands = folder / "bin"
    commands.mkdir()
    program(commands, "srun", f'#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec {launch} "$@"\n')
    return commands


def serial(folder: Path, n: int, seed: int) -> Path:
    """The same rows, made here."""
    module = load()
    options = module.parse([SIMULATOR, "--n", str(n), "--out", str(folder / "serial.h5")])
    simulator = module.simulator_by_name(options.simulator)
    return module.sf.simulate(simulator, n, options.out, seed=seed, block=8, progress=False).path


def test_an_array_task_fills_its_shard_and_goes_on(tmp_path: Path) -> None:
    commands = real(tmp_path, "")
    for n in (N // 2, N):
        script = CLUSTER / "simulate_array.sbatch"
        found = job(script, tmp_path, commands, "shards", "--engine", "serial", n=n)
        assert found.returncode == 0, found.stderr
        assert found.stdout == f"{n} of {n} rows valid: shards/shard-00003.h5\n"
    assert Store.open(tmp_path / "shards/shard-00003.h5").meta.seed == 5 + 3
    assert digests(tmp_path / "shards/shard-00003.h5") == digests(serial(tmp_path, N, seed=8))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "launch"), [("mpi", "mpiexec -n 3"), ("dask", "")])
def test_the_other_jobs_run(name: str, launch: str, tmp_path: Path) -> None:
    pytest.importorskip({"mpi": "mpi4py", "dask": "distributed"}[name])
    commands = real(tmp_path, launch)
    found = job(CLUSTER / f"simulate_{name}.sbatch", tmp_path, commands, "s.h5")
    assert found.returncode == 0, found.stderr
    assert digests(tmp_path / "s.h5") == digests(serial(tmp_path, N, seed=5))
    assert not list(tmp_path.glob("dask-*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes", "loky", "dask"])
def test_engines_of_the_script(engine: str, tmp_path: Path) -> None:
    pytest.importorskip({"loky": "loky", "dask": "distributed"}.get(engine, "json"))
    text = f"{SIMULATOR} --n {N} --out {tmp_path}/s.h5 --seed 5 --block 8 --engine {engine} --workers 2"
    command = [sys.executable, str(CLUSTER / "simulate.py"), *shlex.split(text)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert digests(tmp_path / "s.h5") == digests(serial(tmp_path, N, seed=5))
