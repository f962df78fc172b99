import math
import re

import numpy as np
import pytest
import torch

from sbiflow.checks import as_tensor, check_count, check_finite, check_positive, check_shape


@pytest.mark.parametrize(
    "value", [[1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], ">i4"), torch.tensor([1, 2])]
)
def test_whole_numbers_become_float64(value):
    tensor = as_tensor(value, "x")
    assert tensor.dtype == torch.float64 and tensor.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floating_numbers_keep_their_type_unless_one_is_asked_for(dtype):
    value = torch.ones(2, dtype=dtype)
    assert as_tensor(value, "x") is value
    assert as_tensor(value, "x", torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, 2.5], ">f8"),  # as FITS has it
        np.array([2.5, 1.5])[::-1],
        np.array([1.5, 0, 2.5])[::2],
        np.broadcast_to(np.array([1.5, 2.5]), (2,)),  # read-only
    ],
)
def test_arrays_that_torch_does_not_take_as_they_are(array):
    tensor = as_tensor(array, "x")
    assert tensor.tolist() == [1.5, 2.5] and tensor.dtype == torch.float64


def test_scalars():
    assert as_tensor(3, "x").shape == () and as_tensor(np.float32(2), "x").dtype == torch.float32


@pytest.mark.parametrize("value", ["text", None, {"a": 1}, [[1.0], [1.0, 2.0]], [object()]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="x: expected numbers, got"):
        as_tensor(value, "x")


@pytest.mark.parametrize(
    "shape, expected, fits",
    [
        ((7, 3), ("n", 3), True),
        ((0, 3), ("n", 3), True),
        ((7, 2), ("n", 3), False),
        ((7,), ("n", 3), False),
        ((7, 3, 1), ("n", 3), False),
        ((), (), True),
        ((1,), (), False),
    ],
)
def test_shapes(shape, expected, fits):
    if fits:
        check_shape(torch.zeros(shape), "theta", expected)
        return
    text = {("n", 3): "(n, 3)", (): "()"}[expected]
    with pytest.raises(ValueError, match=re.escape(f"theta: expected shape {text}, got {shape}")):
        check_shape(torch.zeros(shape), "theta", expected)


def test_a_shape_of_one_dimension_reads_like_python():
    with pytest.raises(ValueError, match=r"x: expected shape \(5,\), got \(4,\)"):
        check_shape(np.zeros(4), "x", (5,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_located(bad):
    value = torch.zeros(3, 4)
    check_finite(value, "x")
    value[1, 2] = value[2, 0] = bad
    with pytest.raises(
        ValueError, match=r"x: expected finite values, got 2 NaN or inf, the first at \(1, 2\)"
    ):
        check_finite(value, "x")


def test_a_scalar_that_is_not_finite():
    with pytest.raises(ValueError, match=r"got 1 NaN or inf, the first at \(\)"):
        check_finite(torch.tensor(math.nan), "x")


@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_positive(value):
    check_positive(1e-300, "noise")
    with pytest.raises(ValueError, match="noise: expected a value > 0, got"):
        check_positive(value, "noise")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None, math.nan])
def test_counts(value):
    assert check_count(np.int32(3), "n") == 3 and type(check_count(np.int32(3), "n")) is int
    assert check_count(0, "n", minimum=0) == 0
    with pytest.raises(ValueError, match="n: expected a whole number >= 1, got"):
        check_count(value, "n")
