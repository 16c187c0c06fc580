"""The loss scale managers and their update cells against MindSpore's, step by step and exactly."""

import pytest

import adamas
import golden


@pytest.mark.parametrize("case", golden.parameters("loss_scale"))
def test_manager_and_cell_agree_with_mindspore(case):
    arrays = case.arrays()
    overflows = arrays["in.overflow"].tolist()
    manager = getattr(adamas, case.config["manager"])(**case.config["args"])
    cell = manager.get_update_cell()  # before the manager moves: it starts from the present scale

    for step, overflow in enumerate(overflows):
        assert manager.update_loss_scale(overflow) is None
        assert manager.get_loss_scale() == arrays["out.manager_scale"][step], f"step {step}"
    assert manager.get_drop_overflow_update() is bool(arrays["out.drop_overflow_update"])

    assert (cell is not None) == bool(arrays.get("out.has_update_cell", True))
    if cell is None:
        return
    scales = [cell(overflow) for overflow in overflows]
    wanted = arrays["out.cell_scale"]  # one value of a fixed scale, else one per step
    assert scales == (wanted.tolist() if wanted.ndim else [wanted.item()] * len(overflows))
    assert cell.get_loss_scale() == scales[-1]


def test_there_are_cases():
    assert golden.cases("loss_scale")
