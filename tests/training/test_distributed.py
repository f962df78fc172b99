"""Data-parallel training under a real torchrun, two processes on the CPU, against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbiflow import EmbeddingConfig, FlowConfig, Posterior, Store, TrainConfig, is_rank_zero, rank_zero_first
from sbiflow.training.checkpoint import load_tensors
from sbiflow.training.data import load_training_data
from sbiflow.training.distributed import Team
from sbiflow.training.group import join
from sbiflow.training.interrupt import deferred_interrupt
from sbiflow.training.loop import random_stream
from sbiflow.training.optimiser import Muon
from tests.quick import FLOW, quick_store, quick_train, same_weights
from tests.training import together
from tests.training.together import CONFIG, DROPOUT, EARLY, TOY, WAVE, in_float64

ROOT = Path(__file__).parents[2]
TOGETHER = [
    "two_lanes", "four_lanes", "early", "gradient", "nan", "drift", "stopped", "refused", "simulated", "command",
    "hung", "left", "killed",
]  # fmt: skip


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(*arguments, **environment):
    """Two processes on this machine, to their end; none is left behind."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command, environment = [*TORCHRUN, *map(str, arguments)], ENVIRONMENT | environment
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as job:
        try:
            out, errors = job.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            job.terminate()  # which torchrun passes on
            raise
    return subprocess.CompletedProcess(command, job.returncode, out, errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    quick_store(folder / "s.h5", TOY)
    quick_store(folder / "few.h5", TOY, 60)
    quick_store(folder / "wave.h5", WAVE)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """Of every case what the two processes found."""
    run = torchrun("--max-restarts", 1, "-m", "tests.training.together", folder, *TOGETHER, VICTIM="1")
    assert run.returncode == 0, run.stderr[-5000:]
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        for name in TOGETHER
    }


@pytest.fixture(scope="module")
def alone(folder):
    """TOY, two lanes, one process, not interrupted."""
    return quick_train(Store.open(folder / "s.h5"), TOY, replace(CONFIG, lanes=2))


def both(results, name, key):
    """What both processes say, which is the same."""
    first, second = (found[key] for found in results[name])
    assert first == second
    return first


# --- the same result as one process


def test_two_lanes_on_two_processes_or_one_are_the_same_to_the_bit(results, folder):
    posterior = quick_train(Store.open(folder / "wave.h5"), WAVE, replace(CONFIG, lanes=2), flow=DROPOUT)
    assert both(results, "two_lanes", "weights") == together.weights(posterior)
    assert both(results, "two_lanes", "validation") == posterior.log.validation_loss
    assert not same_weights(
        posterior, quick_train(Store.open(folder / "wave.h5"), WAVE, CONFIG, flow=DROPOUT)
    )


def test_all_processes_return_and_save_one_posterior(results, folder):
    for key in ("info", "created", "steps"):
        both(results, "two_lanes", key)
    saved = Posterior.load(folder / "two_lanes")
    assert together.weights(saved) == results["two_lanes"][0]["weights"]
    assert saved.info.training["lanes"] == 2 and saved.info.steps == 40
    assert not list(folder.glob("*.partial*"))


def test_four_lanes_on_two_processes_or_one_differ_by_rounding(results, folder):
    posterior = quick_train(Store.open(folder / "wave.h5"), WAVE, replace(CONFIG, lanes=4), flow=DROPOUT)
    both(results, "four_lanes", "weights")
    other = Posterior.load(folder / "four_lanes").flow.state_dict()
    for name, value in posterior.flow.state_dict().items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


def test_the_gradient_is_that_of_the_whole_batch(results, folder):
    """float64: against autograd over the four lanes' rows in one piece."""
    run = in_float64(Store.open(folder / "wave.h5"), 4)
    z, x = (torch.cat(parts) for parts in zip(*(run._batch(3, lane) for lane in range(4)), strict=True))
    loss = -run.model.log_prob(z, x).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])
    found = torch.tensor(both(results, "gradient", "gradient"), dtype=torch.float64)
    assert float(found.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert both(results, "gradient", "loss") == pytest.approx(loss.item(), abs=1e-12)


def test_lanes_share_the_rows_out(folder):
    store = Store.open(folder / "wave.h5")
    whole, run = in_float64(store, 1), in_float64(store, 4)
    rows = torch.cat([run.data.batch(3, 64, run._rows(lane))[1] for lane in range(4)])
    assert rows.equal(whole.data.batch(3, 64)[1])


@pytest.mark.parametrize("name, simulator, column", [("s", TOY, 1), ("wave", WAVE, 0)])
def test_lanes_have_noise_and_extrinsic_parameters_of_their_own(folder, name, simulator, column):
    """All rows alike, so that lanes differ by their streams only: in x, and with extrinsic parameters in z."""
    run = in_float64(Store.open(folder / f"{name}.h5"), 4, simulator)
    run.data = replace(run.data, z=run.data.z[:1].repeat(600, 1), signal=run.data.signal[:1].repeat(600, 1))
    batches = [run._batch(3, lane)[column] for lane in range(4)]
    for i, batch in enumerate(batches):
        assert not any(batch.equal(other) for other in batches[:i])
    assert batches[0].equal(run._batch(3)[column])


def test_lanes_have_dropout_of_their_own(folder, monkeypatch):
    seeds = []

    def recorded(model, seed, *key, training=True):
        with random_stream(model, seed, *key, training=training):
            if training:
                seeds.append(torch.initial_seed())
            yield

    monkeypatch.setattr("sbiflow.training.loop.random_stream", contextmanager(recorded))
    store = Store.open(folder / "wave.h5")
    for lanes in (1, 2, 4):
        quick_train(store, WAVE, replace(CONFIG, steps=2, lanes=lanes), flow=DROPOUT)
    one, two, four = seeds[:2], seeds[2:6], seeds[6:]
    assert len(set(four)) == 8 and two == [four[0], four[1], four[4], four[5]] and one == two[::2]


def test_early_stopping_is_decided_as_one_process_does(results, folder):
    still = replace(TOY, noise_sd=1e-3)
    config = replace(EARLY, lanes=2)
    posterior = quick_train(Store.open(folder / "few.h5"), still, config, flow=replace(FLOW, start="prior"))
    assert both(results, "early", "steps") == posterior.info.steps < 400
    assert both(results, "early", "weights") == together.weights(posterior)


# --- all stop together


def test_a_nan_in_one_process_stops_all_and_names_the_row(results, folder):
    text = both(results, "nan", "error")
    store = Store.open(folder / "s.h5")
    share = CONFIG.resolved(store.n_ok).validation
    data = load_training_data(store, TOY.prior, share, CONFIG.seed, torch.device("cpu"))
    row = int(data.batch_rows(22, 64)[32 + 5])  # the sixth of the second lane
    assert text.startswith(
        "FloatingPointError: training: the loss or its gradient is not finite at step 23 of 40;"
    )
    assert f"1 rows are to blame (of the store: [{row}]); the last good state is in" in text
    assert both(results, "nan", "step") == 20


def test_weights_that_drift_apart_are_noticed_at_the_next_validation(results):
    text = both(results, "drift", "error")
    assert text.startswith(
        "RuntimeError: training: expected the same weights on all 2 processes at step 20, got"
    )
    assert "those of process 0 on [1]" in text


def test_a_signal_to_one_process_stops_all_after_a_step_with_one_checkpoint(results, alone):
    text = both(results, "stopped", "error")
    assert text.startswith("KeyboardInterrupt: stopped at step 18 of 40: run the same again to go on from")
    assert both(results, "stopped", "step") == 18
    assert both(results, "stopped", "weights") == together.weights(alone)  # resumed by two


def test_a_run_of_two_processes_goes_on_in_one(results, folder, alone, tmp_path):
    assert results["stopped"]
    file = tmp_path / "c"
    file.write_bytes((folder / "for-one-process").read_bytes())
    one = quick_train(Store.open(folder / "s.h5"), TOY, replace(CONFIG, lanes=2), checkpoint=file)
    assert same_weights(one, alone)
    with pytest.raises(
        ValueError, match=r"another run; use another file\. config\.lanes: expected None, got 2"
    ):
        quick_train(Store.open(folder / "s.h5"), TOY, CONFIG, checkpoint=file)


def test_what_is_not_the_same_for_all_is_refused_by_all(results):
    found, again = results["refused"]
    assert {name: found[name] for name in found if name != "file"} == (
        {name: again[name] for name in again if name != "file"}  # of which the path differs
    )
    same = "expected the same on all 2 processes, got"
    assert f"train: {same} config.seed: [0, 1]" in found["seed"]
    assert f"train: {same} rows: [510, 51]" in found["data"]
    for one in (found, again):
        assert (
            f"checkpoint (on a file system that all share): {same} step: [40, 'no such file']" in one["file"]
        )
    assert found["lanes"] == (
        "ValueError: lanes: expected a multiple of the 2 processes, got 3; start as many processes as "
        "divide it, or set lanes=4"
    )
    expected = "ValueError: batch: expected a multiple of its 2 lanes, got 65; set batch=64 or 66"
    assert found["batch"] == expected


def test_process_0_simulates_and_the_others_open_the_store(results):
    first, second = results["simulated"]
    assert first["done"] == second["done"] == 500
    assert first["rows"] == 500 and second["rows"] == 1  # the one row that is simulated again as a check
    assert first["error"] == "ArithmeticError: of process 0"
    assert (
        second["error"]
        == "RuntimeError: rank_zero_first: process 0 has failed in the block that it was to run first"
    )


def test_a_process_that_hangs_is_given_up_after_the_timeout(results):
    first = results["hung"][0]
    assert first["error"].startswith(
        "RuntimeError: process 0 of 2 has lost the others: one has stopped, or not answered"
    )
    assert 1.5 < first["seconds"] < 4
    assert first["kept"]  # a group of the program's own is not closed


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's threads in /proc")
def test_a_group_of_ours_ends_with_its_threads(results):
    """One of gloo's that frees a tensor while the interpreter shuts down would abort the process."""
    for before, after in results["left"]:
        assert before > after == 0


def test_the_command_line_trains_together_and_process_0_saves(results, folder):
    first, second = results["command"]
    assert first["error"] == "SystemExit: 0" and " steps in " in first["said"]
    assert second == {"error": "SystemExit: 0", "said": ""}
    assert Posterior.load(folder / "command").info.training["lanes"] == 4


# --- a process is killed


def check_killed(folder, alone):
    found = [json.loads((folder / f"killed-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["first"] for one in found] == [False, False]
    assert [one["before"] for one in found] == [15, 15]
    assert [one["weights"] for one in found] == [together.weights(alone)] * 2


def test_killed_and_restarted_by_torchrun_the_result_is_the_same(results, folder, alone):
    assert results
    check_killed(folder, alone)


@pytest.mark.slow
def test_process_0_killed_and_the_same_command_run_again(folder, alone, tmp_path):
    (tmp_path / "s.h5").write_bytes((folder / "s.h5").read_bytes())
    started = time.monotonic()
    run = torchrun("-m", "tests.training.together", tmp_path, "killed", VICTIM="0")
    assert run.returncode and not list(tmp_path.glob("*.json"))
    assert time.monotonic() - started < 120
    run = torchrun("-m", "tests.training.together", tmp_path, "killed", VICTIM="0", LIFE="2")
    assert run.returncode == 0, run.stderr[-5000:]
    check_killed(tmp_path, alone)


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_checkpoint_that_the_same_command_goes_on_from(folder, tmp_path):
    """What a batch system does at the end of a job's time."""
    (tmp_path / "s.h5").write_bytes((folder / "s.h5").read_bytes())
    train = [
        "-m", "sbiflow", "train", tmp_path / "s.h5", "--out", tmp_path / "m", "--simulator",
        "tests.training.together:TOY", "--lanes", 2, "--patience", 0, "--steps", 1100,
        "--layers", 2, "--hidden", 16, "--features", 8, "--embedding-hidden", 16,
    ]  # fmt: skip
    command = [*TORCHRUN, *map(str, train)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as job:
        file = tmp_path / "m" / "checkpoint.safetensors"
        while not file.exists() and job.poll() is None:
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        errors = job.communicate(timeout=60)[1]
    assert errors.count("run the same again to go on from") == 1
    at = load_tensors(file)[1]["state"]["step"]
    assert 500 <= at < 1100 and at % 500
    run = torchrun(*train)
    assert run.returncode == 0, run.stderr[-5000:]
    one = quick_train(
        Store.open(tmp_path / "s.h5"), TOY, TrainConfig(steps=1100, patience=None, lanes=2),
        flow=FlowConfig(layers=2, hidden=16), embedding=EmbeddingConfig(features=8, hidden=16),
    )  # fmt: skip
    assert same_weights(Posterior.load(tmp_path / "m"), one)


# --- the job script


JOB = ROOT / "analyses" / "cluster" / "train.sbatch"


def test_the_job_script_is_bash():
    assert subprocess.run(["bash", "-n", str(JOB)]).returncode == 0


@pytest.mark.slow
def test_a_job_out_of_time_is_requeued_and_goes_on(folder, tmp_path):
    """The script as it is, with stand-ins for srun and scontrol and this machine as its only node."""
    (tmp_path / "s.h5").write_bytes((folder / "s.h5").read_bytes())
    stand_ins = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "scontrol": f'if [ $1 = show ]; then echo localhost; else echo "$@" >> {tmp_path}/requeued; fi',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = ENVIRONMENT | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
        "STORE": str(tmp_path / "s.h5"), "OUT": str(tmp_path / "m"), "PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    options = [
        "--simulator",
        "tests.training.together:TOY",
        "--lanes",
        "2",
        "--steps",
        "300",
        "--every",
        "50",
    ]
    file = tmp_path / "m" / "checkpoint.safetensors"
    with subprocess.Popen(["bash", str(JOB), *options], cwd=ROOT, env=environment) as job:
        while not file.exists() and job.poll() is None:
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=120)
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert load_tensors(file)[1]["state"]["step"] % 50
    again = subprocess.run(["bash", str(JOB), *options], cwd=ROOT, env=environment, timeout=300)
    assert again.returncode == 0 and (tmp_path / "requeued").read_text().count("\n") == 1
    assert Posterior.load(tmp_path / "m").info.steps == 300


# --- one process


def test_without_torchrun_a_process_is_a_team_of_one(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # of something else
    team = join()
    assert (team.rank, team.size, list(team.own(3)), is_rank_zero()) == (0, 1, [0, 1, 2], True)
    with rank_zero_first():
        pass
    value = torch.ones(2)
    assert team.add(value) is value and team.gather("a") == ["a"] and team.first("a") == "a"
    assert team.stops(True, listen=False) and not team.stops(False, listen=True)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "size, rank, expected", [(2, 0, [0, 1]), (2, 1, [2, 3]), (4, 3, [3]), (1, 0, [0, 1, 2, 3])]
)
def test_lanes_of_a_process(size, rank, expected):
    assert list(Team(rank, size).own(4)) == expected


def test_more_lanes_than_rows_are_refused(folder):
    store = Store.open(folder / "few.h5")
    with pytest.raises(ValueError, match="lanes: expected at most the 51 rows to train on, got 52"):
        quick_train(store, TOY, replace(CONFIG, lanes=52, batch=52))


def test_a_gpu_for_every_process_of_a_machine(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert Team(7, 8).device(cuda) == torch.device("cuda:3") and chosen == [3]
    assert Team(7, 8).device(cpu) == cpu and Team().device(cuda) == cuda
    with pytest.raises(ValueError, match='expected "auto", "cuda" or "cpu" for 8 processes, got cuda:1'):
        Team(7, 8).device(torch.device("cuda:1"))
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="got 4 for at least 5: start fewer with --nproc-per-node"):
        Team(4, 8).device(cuda)


# --- SIGTERM, for one process too


def test_sigterm_finishes_the_step_and_saves(folder, tmp_path, monkeypatch):
    real, count = Muon.step, iter(range(1, 10**9))

    def step(self, closure=None):
        real(self)
        if next(count) == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Muon, "step", step)
    store, before = Store.open(folder / "s.h5"), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 17 of 40"):
        quick_train(store, TOY, checkpoint=tmp_path / "c")
    assert signal.getsignal(signal.SIGTERM) is before is signal.SIG_DFL
    assert load_tensors(tmp_path / "c")[1]["state"]["step"] == 17


def test_a_handler_of_the_programs_own_for_sigterm_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with deferred_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM] and not interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)
