"""The schedule classes against tables recorded from MindSpore, which computes in float32."""

import numpy as np
import pytest

import adamas
import golden


@pytest.mark.parametrize("case", golden.parameters("schedule"))
def test_schedule_agrees_with_mindspore(case):
    description = case.config["schedule"]
    schedule = getattr(adamas, description["type"])(**description["args"])
    arrays = case.arrays()
    values = [schedule(step) for step in arrays["in.global_step"].tolist()]
    assert all(type(value) is float for value in values)
    with np.errstate(over="ignore"):
        rates = np.array(values).astype(np.float32)
    np.testing.assert_allclose(
        rates, arrays["out.lr"], rtol=case.rtol, atol=case.atol["lr"], equal_nan=False
    )


def test_there_are_cases():
    assert golden.cases("schedule")
