"""What tests iterate over (rules.py) is complete: there is no option that none of them sets."""

from enum import Enum

import numpy as np
import pytest

import adamas
import c_api
from adamas import _core
from emulation import FakeArray
from rules import (
    DTYPES,
    MEASURES,
    MINDSPORE_RULES,
    NUMBERS,
    POLICIES,
    RULES,
    SCALED,
    TYPES,
    VARIATIONS,
    WAYS,
)

MEMBERS = [name for name, kind in vars(_core.AdamConfig).items() if isinstance(kind, property)]
MEMBERS.remove("writes_delta")  # which is no option of an optimizer


@pytest.fixture(scope="module")
def configs(emulated_device):
    """Return what the lists make of an optimizer's options, with their defaults."""
    listed = [{}, NUMBERS, SCALED, *({"row_policy": policy} for policy in POLICIES)]
    for options in (RULES, MINDSPORE_RULES, MEASURES, VARIATIONS, WAYS):
        listed += options.values()

    def config(make, options, dtype=np.float32):
        array = np.ones(3, dtype)
        param = adamas.Parameter(FakeArray(array) if "capturable" in options else array)
        return make([param], **options)._config

    made = [config(adamas.Adam, options) for options in listed]
    made += [config(adamas.Adam, options, dtype) for dtype, options in TYPES.values()]
    return [*made, config(adamas.AdamWeightDecay, {})]


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_of_the_options_is_in_a_list(member, configs):
    usual = getattr(_core.AdamConfig(), member)
    found = {getattr(config, member) for config in configs}
    if isinstance(usual, (bool, Enum)):
        assert found == ({True, False} if isinstance(usual, bool) else set(type(usual)))
    assert found - {usual}


def test_every_element_type_is_in_a_list():
    names = {np.dtype(dtype).name for dtype in DTYPES}
    assert names == set(_core.DTYPES) == set(c_api.DTYPES)
    assert {dtype for dtype, _ in TYPES.values()} == set(DTYPES)


def test_there_are_members():
    assert {"beta1", "use_amsgrad", "state_format", "row_policy"} <= set(MEMBERS)
