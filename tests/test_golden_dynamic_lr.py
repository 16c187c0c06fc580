"""The functions that return lists of learning rates against MindSpore's, in float64."""

import numpy as np
import pytest

import adamas
import golden


@pytest.mark.parametrize("case", golden.parameters("dynamic_lr"))
def test_list_agrees_with_mindspore(case):
    lr = getattr(adamas, case.config["function"])(**case.config["args"])
    assert type(lr) is list
    assert all(type(value) is float for value in lr)
    wanted = case.arrays()["out.lr"]
    assert len(lr) == len(wanted)
    np.testing.assert_allclose(lr, wanted, rtol=case.rtol, atol=case.atol["lr"], equal_nan=False)


def test_there_are_cases():
    assert golden.cases("dynamic_lr")
