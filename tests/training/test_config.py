import math

import numpy as np
import pytest

from sbiflow import TrainConfig
from sbiflow.training.loop import rate


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("optimiser", "sgd", "optimiser: expected one of muon, adam, got 'sgd'"),
        ("schedule", "step", "schedule: expected one of cosine, onecycle, got 'step'"),
        ("steps", 0, "steps: expected a whole number >= 1, got 0"),
        ("batch", 1.5, "batch: expected a whole number >= 1, got 1.5"),
        ("validate_every", -1, "validate_every: expected a whole number >= 1, got -1"),
        ("patience", 0, "patience: expected a whole number >= 1, got 0"),
        ("learning_rate", math.nan, "learning_rate and clip: expected values > 0, got nan"),
        ("clip", -1.0, "learning_rate and clip: expected values > 0"),
        ("validation", 1.0, "validation: expected a share between 0 and 1, got 1.0"),
        ("seed", -1, "seed: expected a whole number >= 0, got -1"),
        ("lanes", 0, "lanes: expected a whole number >= 1, got 0"),
        ("seed", 0.5, "seed: expected a whole number >= 0, got 0.5"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_the_budget_follows_the_number_of_simulations_within_bounds():
    few, some, many = (TrainConfig().resolved(n) for n in (1_000, 10_000, 10**8))
    assert (few.steps, few.batch, few.validation) == (300, 128, 0.15)
    assert (some.steps, some.batch, some.validation) == (40 * 9500 // 256, 256, 0.05)
    assert (many.steps, many.batch, many.validation) == (20_000, 512, 0.05)
    assert TrainConfig().resolved(2_000).validation == pytest.approx(0.1)
    assert few.validate_every == 15


def test_what_was_set_stays_set():
    config = TrainConfig(steps=7, batch=32, validation=0.2, validate_every=3)
    assert config.resolved(10**8) == config


@pytest.mark.parametrize("schedule, peak", [("cosine", 0.03), ("onecycle", 0.3)])
def test_the_rate_rises_to_its_peak_and_falls_to_zero(schedule, peak):
    config = TrainConfig(schedule=schedule, learning_rate=0.5)
    values = [rate(i / 1000, config) for i in range(1000)]
    top = round(1000 * peak)
    assert values[0] == pytest.approx(0.02 * 0.5)
    assert values[top] == pytest.approx(0.5) == max(values)
    assert (np.diff(values[: top + 1]) > 0).all() and (np.diff(values[top:]) < 0).all()
    assert values[-1] < 1e-5
    # half way down the cosine it is half the peak
    assert rate((1 + peak) / 2, config) == pytest.approx(0.25)


def test_a_batch_chosen_automatically_is_made_divisible_and_a_given_one_has_to_be():
    assert TrainConfig().resolved(10**8, processes=3).batch == 513
    assert TrainConfig(lanes=6).resolved(10**8, processes=3).lanes == 6
    assert TrainConfig(lanes=6).resolved(10**8).batch == 516
    assert TrainConfig().resolved(10**8) == TrainConfig(lanes=1).resolved(10**8)
    with pytest.raises(ValueError, match="expected a multiple of its 3 lanes, got 512; set batch=510 or 513"):
        TrainConfig(batch=512).resolved(10**8, processes=3)
    with pytest.raises(ValueError, match="expected a multiple of its 3 lanes, got 2; set batch=3"):
        TrainConfig(batch=2, lanes=3).resolved(10**8)
    with pytest.raises(ValueError, match=r"multiple of the 4 processes, got 6; .* or set lanes=8"):
        TrainConfig(lanes=6).resolved(10**8, processes=4)
