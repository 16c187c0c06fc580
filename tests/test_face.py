"""What people see: repr, tables, HTML, lengths."""

import numpy as np
import pytest

import adamas
from helpers import Falling, check_refused, everything


def make_params():
    return [
        adamas.Parameter(np.ones(shape, np.float32), name)
        for name, shape in [("conv.weight", (3, 2)), ("bias", (17,)), ("<scale>", ())]
    ]


def test_the_repr_shows_what_is_not_as_usual():
    optimizer = adamas.Adam(make_params(), beta1=0.8, use_amsgrad=True, max_grad_norm=2.0)
    optimizer([np.ones(p.shape, np.float32) for p in optimizer.parameters])
    assert repr(optimizer) == (
        "Adam(learning_rate=0.001, beta1=0.8, use_amsgrad=True, max_grad_norm=2.0)\n"
        "  3 parameters, 24 elements; step 1; state 288 B on the CPU"
    )


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: adamas.Adam(p), "Adam(learning_rate=0.001)"),
        (lambda p: adamas.Adam(p, numerics="mindspore"), "numerics='mindspore')"),
        (lambda p: adamas.Adam(p, state_dtype="int8"), "state_dtype='int8')"),
        (lambda p: adamas.Adam(p, num_threads=2, loss_scale=8.0), "loss_scale=8.0, num_threads=2)"),
        (lambda p: adamas.AdamWeightDecay(p), "AdamWeightDecay(learning_rate=0.001)"),
        (lambda p: adamas.AdamWeightDecay(p, eps=1e-8), "(learning_rate=0.001, eps=1e-08)"),
        (lambda p: adamas.Adam(p, Falling()), "(learning_rate=Falling())"),
        (lambda p: adamas.Adam(p, [0.1, 0.2]), "(learning_rate=2 values)"),
        (lambda p: adamas.Adam(p, adamas.WarmUpLR(0.1, 5)), "WarmUpLR(learning_rate=0.1, warm"),
        (lambda p: adamas.Adam(p, weight_decay=abs), "weight_decay=<built-in function abs>)"),
        (lambda p: adamas.Adam(p, weight_decay=lambda _: 0.1), "weight_decay=<lambda>()"),
    ],
)
def test_the_first_line_of_the_repr(make, wanted):
    assert wanted in repr(make(make_params())).splitlines()[0]


def test_the_repr_follows_what_is_set():
    optimizer = adamas.Adam(make_params())
    optimizer.learning_rate = 0.5
    optimizer.loss_scale = 4.0
    assert repr(optimizer).startswith("Adam(learning_rate=0.5, loss_scale=4.0)")


def test_the_repr_of_groups():
    weight, bias, scale = make_params()
    groups = [{"params": [weight], "lr": 0.1, "grad_centralization": True},
              {"params": [bias, scale], "weight_decay": 0.01}]  # fmt: skip
    optimizer = adamas.Adam(groups)
    first = "1 parameter, 6 elements; lr=0.1, grad_centralization=True"
    second = "2 parameters, 18 elements; lr=0.001, weight_decay=0.01"
    assert repr(optimizer).splitlines()[2:] == [f"  groups[0]: {first}", f"  groups[1]: {second}"]
    assert repr(optimizer.groups[0]) == f"ParameterGroup({first})"


def test_many_groups_are_not_all_shown():
    groups = [{"params": [np.ones(2, np.float32)]} for _ in range(30)]
    lines = repr(adamas.Adam(groups)).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "  ... 30 groups"


def test_a_summary_has_a_row_for_each_parameter():
    weight, bias, scale = make_params()
    groups = [{"params": [weight], "lr": [0.5]}, {"params": [bias, scale], "weight_decay": 0.01}]
    rows = adamas.Adam(groups).summary().splitlines()
    assert [row.split()[0] for row in rows] == ["name", "conv.weight", "bias", "<scale>", "total"]
    assert rows[1].split()[1:] == ["(3,", "2)", "float32", "6", "0", "0.5", "0", "48", "B"]
    assert rows[2].split()[2:] == ["float32", "17", "1", "0.001", "0.01", "136", "B"]
    assert len({len(row) for row in rows}) == 1


def test_a_summary_shows_that_undecayed_names_are_not():
    params = [adamas.Parameter(np.ones(2, np.float32), name) for name in ("beta", "weight")]
    rows = adamas.Adam(params, weight_decay=0.25).summary().splitlines()
    assert [row.split()[6] for row in rows[1:3]] == ["0", "0.25"]


def test_a_schedule_that_fails_is_named_in_a_summary():
    optimizer = adamas.Adam(make_params(), [0.1])
    optimizer([np.ones(p.shape, np.float32) for p in optimizer.parameters])
    assert "IndexError" in optimizer.summary()


def test_html_is_escaped_and_short():
    html = adamas.Adam(make_params(), weight_decay=lambda _: 0.1)._repr_html_()
    assert "&lt;scale&gt;" in html
    assert "<scale>" not in html
    assert "lambda>" not in html
    many = adamas.Adam([np.ones(2, np.float32) for _ in range(200)])._repr_html_()
    assert "... 140 more" in many
    assert many.count("<tr>") == 1 + 60 + 1 + 1


def test_looking_changes_nothing():
    optimizer = adamas.Adam(make_params(), iter([0.1, 0.2]))
    before = everything(optimizer)
    for look in (repr, len, bool, dir, adamas.Adam.summary, adamas.Adam._repr_html_):
        look(optimizer)
    assert everything(optimizer) == before
    assert optimizer.get_lr() == 0.1


def test_an_optimizer_has_a_length_and_is_true():
    optimizer = adamas.Adam(make_params())
    assert len(optimizer) == 3
    assert bool(optimizer) is True
    check_refused(optimizer, lambda: iter(optimizer), TypeError, "iterable")


@pytest.mark.parametrize("indices", [[2, 0, 2], np.array([2, 0, 2]), (2, 0, 2)])
def test_the_repr_of_rows(indices):
    rows = adamas.RowTensor(indices, np.ones((3, 2), np.float32), (4, 2))
    assert repr(rows) == "RowTensor(3 entries, dense_shape=(4, 2))"


def test_the_repr_of_rows_that_are_none():
    assert repr(adamas.RowTensor(7, None, None)) == "RowTensor(int, dense_shape=None)"


def test_the_repr_of_a_parameter():
    parameter = adamas.Parameter(np.ones((4, 2), np.float16), "weight")
    assert repr(parameter) == "Parameter(name='weight', shape=(4, 2), dtype=float16)"
