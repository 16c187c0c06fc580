"""State dictionaries and checkpoint files: what is in them, what is refused, what survives.

That a resumed run has the same bits is `test_resume.py`'s; files of processes that are killed are
`test_kill.py`'s.
"""

import contextlib
import copy
import errno
import hashlib
import json
import os
import pickle
import resource

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adamas
from adamas import _core
from helpers import bits, check_refused, everything, run_python, run_threads
from rules import STATE_DTYPES

OPTIONS = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}


def make(dtype=np.float32, *, names=("weight", "bias"), seed=0, steps=0, **options):
    """Return an optimizer over a table and a vector, after some steps."""
    rng = np.random.default_rng(seed)
    shapes = {"weight": (3, 16), "bias": (5,)}
    params = [
        adamas.Parameter(rng.standard_normal(shapes[name]).astype(dtype), name=name)
        for name in names
    ]
    made = adamas.Adam(params, **{**OPTIONS, **options})
    for _ in range(steps):
        take_step(made, rng)
    return made


def take_step(optimizer, rng):
    optimizer([rng.standard_normal(p.shape).astype(p.dtype) for p in optimizer.parameters])


def state_bits(state):
    return pickle.dumps(state)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


# What is in a state


def test_the_state_of_each_kind_of_optimizer():
    state = make(steps=2, use_amsgrad=True, loss_scale=4.0).state_dict()
    assert list(state["parameters"]) == ["weight", "bias"]
    entry = state["parameters"]["weight"]
    assert set(entry) == {"dtype", "grad_centralization", "step", "moment1", "moment2", "vhat"}
    assert (entry["dtype"], entry["grad_centralization"], entry["step"]) == ("float32", False, 2)
    assert entry["vhat"].shape == (3, 16)
    assert {key: state[key] for key in ("version", "global_step", "skipped_steps")} == {
        "version": 2,
        "global_step": 2,
        "skipped_steps": 0,
    }
    assert state["loss_scale"] == 4.0
    assert np.isnan(state["last_grad_norm"])
    (group,) = state["groups"]
    assert group["parameters"] == ["weight", "bias"]
    assert (group["beta1"], group["use_amsgrad"], group["max_grad_norm"]) == (0.8, True, None)
    assert not state["options"].keys() & {"beta1", "use_amsgrad"}


@pytest.mark.parametrize(
    ("dtype", "options", "types"),
    [
        (np.float64, {}, {"moment1": "f8", "moment2": "f8", "param": "f8"}),
        (np.float16, {"master_weights": True}, {"moment1": "f4", "master": "f4", "param": "f2"}),
        (np.float32, {"state_dtype": "bfloat16"}, {"moment1": "u2", "moment2": "u2"}),
        (np.float32, {"state_dtype": "int8"}, {"moment1": "u1", "moment2": "u1", "scale1": "u1"}),
        (np.float32, {"row_policy": "catch_up"}, {"moment1": "f4", "row_step": "i8"}),
    ],
)
def test_arrays_are_as_they_are_stored(dtype, options, types):
    made = make(dtype, steps=1, **options)
    entry = made.state_dict(parameters=True)["parameters"]["weight"]
    for kind, wanted in types.items():
        assert entry[kind].dtype == np.dtype(wanted), kind
    assert entry["moment1"].shape == entry["param"].shape == (3, 16)
    if "row_step" in types:
        assert entry["row_step"].shape == (3,)
    if "scale1" in types:
        assert entry["scale1"].shape == entry["scale2"].shape == (3,)


@pytest.mark.parametrize("state_dtype", [None, *STATE_DTYPES])
def test_scales_are_shown_in_their_own_shape(state_dtype):
    native = make(state_dtype=state_dtype)._native
    scales = native.state(_core.StateKind.scale1, 1)
    if state_dtype != "int8":
        assert scales is None
    else:  # 5 elements share one
        assert (scales.shape, scales.dtype) == ((1,), np.uint8)


def test_options_are_those_that_mindspore_computes_with():
    weights = [np.ones(shape, np.float32) for shape in ((4, 16), (4, 3, 5))]
    params = [adamas.Parameter(w, f"weight{i}") for i, w in enumerate(weights)]
    groups = [{"params": params, "grad_centralization": True}]
    flags = {"numerics": "mindspore", "use_amsgrad": True, "use_nesterov": True}
    state = adamas.Adam(groups, **flags).state_dict()
    for name, value in {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}.items():
        assert state["groups"][0][name] == float(np.float32(value)) != value
    assert state["groups"][0]["use_nesterov"] is False
    centralized = [entry["grad_centralization"] for entry in state["parameters"].values()]
    assert centralized == [True, False]


def test_a_state_is_a_copy():
    made = make(steps=1)
    state = made.state_dict(parameters=True)
    before = everything(made)
    saved = state_bits(state)
    for entry in state["parameters"].values():
        for value in entry.values():
            if isinstance(value, np.ndarray):
                value += 1
    assert everything(made) == before
    state = made.state_dict(parameters=True)
    take_step(made, np.random.default_rng(5))
    assert state_bits(state) == saved


def test_a_loaded_state_is_a_copy():
    made, state = make(), make(steps=1).state_dict(parameters=True)
    made.load_state_dict(state)
    before = everything(made)
    state["parameters"]["weight"]["moment1"][...] = 7
    assert everything(made) == before


def test_parameters_are_left_alone_if_they_are_not_in_the_state():
    made, other = make(seed=1), make(steps=3)
    before = np.asarray(made.parameters[0]).copy()
    made.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(np.asarray(made.parameters[0]), before)
    assert made.global_step == 3
    np.testing.assert_array_equal(made.moment1[0], other.moment1[0])


def test_what_may_differ():
    """Rates, threads, locking, the order of the parameters; strided arrays are fine too."""
    source = make(steps=2, loss_scale=8.0)
    state = source.state_dict(parameters=True)
    entry = state["parameters"]["weight"]
    entry["moment1"] = np.asfortranarray(entry["moment1"])
    made = make(
        names=("bias", "weight"),
        seed=3,
        learning_rate=[0.5] * 9,
        weight_decay=0.0,
        num_threads=2,
        use_locking=True,
    )
    made.load_state_dict(state)
    assert made.loss_scale == 8.0
    for i, param in enumerate(source.parameters):
        for kind in ("moment1", "moment2", "parameters"):
            mine, wanted = getattr(made, kind)[1 - i], getattr(source, kind)[i]
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(wanted), err_msg=param.name)


def test_another_option_can_be_asked_for():
    state = make(steps=1).state_dict()
    made = make(beta2=0.5)
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "beta2", "0.5", "0.95")
    state["groups"][0]["beta2"] = 0.5
    made.load_state_dict(state)
    assert made.global_step == 1


def test_an_iterator_goes_on_at_the_right_place():
    pulled = []

    def rates():
        for i in range(100):
            pulled.append(i)
            yield 0.1 / (1 + i)

    state = make(steps=3).state_dict()
    made = make(learning_rate=rates())
    made.load_state_dict(state)
    assert made.get_lr() == 0.1 / 4
    assert pulled == [0, 1, 2, 3]


# What is refused


def changed(state, *keys, to=None):
    """Return a copy of the state with one entry changed, or removed."""
    state = copy.deepcopy(state)
    place = state
    for key in keys[:-1]:
        place = place[key]
    if to is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    return state


WEIGHT = ("parameters", "weight")
GROUP = ("groups", 0)

REFUSED = [
    (("version",), None, ValueError, ["version", "None"]),
    (("version",), 3, ValueError, ["version", "3"]),
    (("version",), 1, ValueError, ["groups"]),
    (("global_step",), None, ValueError, ["global_step"]),
    (("global_step",), -1, ValueError, ["global_step", "-1"]),
    (("global_step",), 1.0, TypeError, ["global_step", "1.0"]),
    (("skipped_steps",), -1, ValueError, ["skipped_steps"]),
    (("last_step_skipped",), 0, TypeError, ["last_step_skipped"]),
    (("last_grad_norm",), -1.0, ValueError, ["last_grad_norm"]),
    (("last_grad_norm",), -np.inf, ValueError, ["last_grad_norm"]),
    (("loss_scale",), 0.0, ValueError, ["loss_scale"]),
    (("loss_scale",), "1", TypeError, ["loss_scale"]),
    (("more",), 1, ValueError, ["more"]),
    (("options",), 1, TypeError, ["options"]),
    ((*GROUP, "beta1"), 0.5, ValueError, ["beta1", "0.8", "0.5"]),
    ((*GROUP, "eps"), 0.5, ValueError, ["eps"]),
    (("options", "numerics"), "mindspore", ValueError, ["numerics", "mindspore"]),
    ((*GROUP, "use_nesterov"), True, ValueError, ["use_nesterov"]),
    ((*GROUP, "use_amsgrad"), True, ValueError, ["use_amsgrad"]),
    ((*GROUP, "decoupled_weight_decay"), True, ValueError, ["decoupled_weight_decay"]),
    ((*GROUP, "maximize"), True, ValueError, ["maximize"]),
    ((*GROUP, "max_grad_norm"), 1.0, ValueError, ["groups", "max_grad_norm", "1.0"]),
    ((*GROUP, "clip_per_array"), None, ValueError, ["clip_per_array"]),
    ((*GROUP, "more"), 1, ValueError, ["groups", "more"]),
    ((*GROUP, "parameters"), ["weight"], ValueError, ["groups", "bias"]),
    ((*GROUP, "parameters"), "weight", TypeError, ["groups", "list"]),
    (GROUP, 1, TypeError, ["groups", "mapping"]),
    (("groups",), {}, TypeError, ["groups", "list"]),
    (("groups",), [], ValueError, ["groups", "weight"]),
    (("options", "epsilon_placement"), "inside", ValueError, ["epsilon_placement"]),
    (("options", "ema_decay"), 0.9, ValueError, ["ema_decay"]),
    (("options", "bias_correction"), False, ValueError, ["bias_correction"]),
    (("options", "row_policy"), "lazy", ValueError, ["row_policy", "catch_up", "lazy"]),
    (("options", "max_grad_norm"), 1.0, ValueError, ["max_grad_norm"]),
    (("options", "skip_nonfinite"), True, ValueError, ["skip_nonfinite"]),
    (("options", "state_dtype"), "int8", ValueError, ["state_dtype"]),
    (("options", "seed"), 1, ValueError, ["seed"]),
    (("options", "master_weights"), True, ValueError, ["master_weights"]),
    (("options", "seed"), None, ValueError, ["seed"]),
    (("options", "more"), 1, ValueError, ["more"]),
    (("parameters",), [1], TypeError, ["parameters"]),
    (("parameters", "bias"), None, ValueError, ["bias", "missing"]),
    (("parameters", "more"), {}, ValueError, ["more"]),
    (WEIGHT, 1, TypeError, ["weight"]),
    ((*WEIGHT, "dtype"), "float64", ValueError, ["weight", "dtype", "float32", "float64"]),
    ((*WEIGHT, "grad_centralization"), True, ValueError, ["grad_centralization"]),
    ((*WEIGHT, "step"), None, ValueError, ["weight", "step"]),
    ((*WEIGHT, "step"), -1, ValueError, ["weight", "step", "-1"]),
    ((*WEIGHT, "step"), 2**62 + 1, ValueError, ["weight", "step"]),
    ((*WEIGHT, "step"), 1.0, TypeError, ["weight", "step", "1.0"]),
    ((*WEIGHT, "key"), 1, ValueError, ["weight", "key"]),
    ((*WEIGHT, "vhat"), np.zeros((3, 16), np.float32), ValueError, ["weight", "vhat"]),
    ((*WEIGHT, "moment1"), None, ValueError, ["weight", "moment1"]),
    ((*WEIGHT, "moment1"), [1.0], TypeError, ["moment1", "list"]),
    ((*WEIGHT, "moment1"), np.zeros((3, 16)), ValueError, ["moment1", "float32", "float64"]),
    ((*WEIGHT, "moment2"), np.zeros((16, 3), np.float32), ValueError, ["(3, 16)", "(16, 3)"]),
    ((*WEIGHT, "moment2"), np.zeros(48, np.float32), ValueError, ["(3, 16)", "(48,)"]),
    ((*WEIGHT, "moment2"), np.zeros((3, 16), ">f4"), ValueError, ["moment2", ">f4"]),
    ((*WEIGHT, "row_step"), np.array([0, 2, 0]), ValueError, ["row_step", "weight"]),
    ((*WEIGHT, "row_step"), np.array([0, -(2**63), 0]), ValueError, ["row_step"]),
    ((*WEIGHT, "param"), None, ValueError, ["weight", "param"]),
    ((*WEIGHT, "param"), np.zeros((3, 15), np.float32), ValueError, ["param", "(3, 15)"]),
]


@pytest.mark.parametrize(("keys", "to", "error", "fragments"), REFUSED, ids=str)
def test_a_state_of_another_optimizer_is_refused(keys, to, error, fragments):
    state = changed(make(steps=1, row_policy="catch_up").state_dict(parameters=True), *keys, to=to)
    made = make(steps=3, seed=1, row_policy="catch_up")
    check_refused(made, lambda: made.load_state_dict(state), error, *fragments)


def test_the_order_matters_where_bits_depend_on_it():
    options = {"max_grad_norm": 1.0}
    state = make(steps=1, **options).state_dict()
    made = make(names=("bias", "weight"), **options)
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "order", "weight", "bias")


def test_a_parameter_in_two_groups_of_a_state_is_refused():
    made = make(steps=1)
    state = make(steps=2).state_dict()
    state["groups"].append({**state["groups"][0], "parameters": ["bias"]})
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "groups", "'bias'", "once")


@pytest.mark.parametrize("options", [{"state_dtype": "int8"}, {"state_dtype": "bfloat16"},
                                     {"max_grad_norm": 0.1, "clip_per_array": True}])  # fmt: skip
def test_the_order_does_not_matter_elsewhere(options):
    """Random bits are chosen by a key that a parameter keeps wherever it stands."""
    first = make(steps=2, **options)
    second = make(names=("bias", "weight"), **options)
    second.load_state_dict(first.state_dict(parameters=True))
    rng = np.random.default_rng(5)
    grads = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 16), (5,))]
    for _ in range(2):
        first(grads)
        second(grads[::-1])
    ours, theirs = (one.state_dict(parameters=True)["parameters"] for one in (first, second))
    for name, entry in ours.items():
        for kind, value in entry.items():
            assert np.array_equal(value, theirs[name][kind]), (name, kind)


@pytest.mark.parametrize("key", [-1, 2**63, 1.0, None])
def test_a_bad_key_is_refused(key):
    state = make(steps=1, state_dtype="int8").state_dict()
    state = changed(state, *WEIGHT, "key", to=key)
    made = make(steps=3, seed=1, state_dtype="int8")
    error = TypeError if key == 1.0 else ValueError
    check_refused(made, lambda: made.load_state_dict(state), error, "weight", "key")


def test_keys_of_a_state_are_kept():
    """A state says which random bits come next, whatever the optimizer that loads it had."""
    options = {"state_dtype": "int8", "master_weights": True}
    first = make(np.float16, steps=2, **options)
    state = first.state_dict(parameters=True)
    for i, entry in enumerate(state["parameters"].values()):
        entry["key"] = i
    made = [make(np.float16, seed=seed, steps=seed, **options) for seed in (0, 1)]
    for one in (*made, first):
        one.load_state_dict(state)
        take_step(one, np.random.default_rng(3))
    assert everything(made[0]) == everything(made[1]) == everything(first)
    assert [e["key"] for e in made[0].state_dict()["parameters"].values()] == [0, 1]
    with_own_keys = make(np.float16, **options)
    for i, entry in enumerate(state["parameters"].values()):
        entry["key"] = 77 + i
    with_own_keys.load_state_dict(state)
    take_step(with_own_keys, np.random.default_rng(3))
    assert everything(with_own_keys) != everything(first)


def test_state_of_the_callers_stays_with_other_keys():
    moment1 = np.zeros(48, np.uint16)
    param = adamas.Parameter(np.ones(48, np.float32), "weight", moment1=moment1)
    made = adamas.Adam([param], state_dtype="bfloat16")
    state = made.state_dict(parameters=True)
    state["parameters"]["weight"]["key"] = 5
    made.load_state_dict(state)
    made([np.ones(48, np.float32)])
    assert moment1.any()
    assert made.state_dict()["parameters"]["weight"]["moment1"].tobytes() == moment1.tobytes()


def test_a_state_with_other_keys_that_is_refused():
    made = make(np.float16, steps=1, state_dtype="int8", master_weights=True)
    state = make(np.float16, steps=3, state_dtype="int8", master_weights=True).state_dict()
    state["parameters"]["weight"]["key"] = 5
    state["parameters"]["weight"]["master"] = made.master_weights[1]
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "master")
    made.begin_step()
    state = make(np.float16, steps=3, state_dtype="int8", master_weights=True).state_dict()
    state["parameters"]["weight"]["key"] = 5
    check_refused(made, lambda: made.load_state_dict(state), RuntimeError, "step")
    made.cancel_step()
    take_step(made, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [None, 1, [("version", 1)], "state"])
def test_a_state_is_a_mapping(bad):
    made = make(steps=1)
    check_refused(made, lambda: made.load_state_dict(bad), TypeError, "state", "mapping")


def test_memory_of_the_optimizer_is_refused():
    made = make(steps=1)
    state = made.state_dict()
    state["parameters"]["weight"]["moment1"] = made.moment2[0]
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "memory", "weight")


def test_read_only_parameters_are_refused():
    made = make(steps=1)
    state = make(steps=2).state_dict(parameters=True)
    np.asarray(made.parameters[1]).flags.writeable = False
    check_refused(made, lambda: made.load_state_dict(state), ValueError, "bias", "read-only")


def test_an_open_step_is_refused(path):
    made = make(steps=1)
    state = made.state_dict()
    adamas.save_checkpoint(path, made)
    file = path.read_bytes()
    made.begin_step()
    for call in (
        made.state_dict,
        lambda: made.load_state_dict(state),
        lambda: adamas.save_checkpoint(path, made),
        lambda: adamas.load_checkpoint(path, made),
    ):
        check_refused(made, call, RuntimeError, "step is open")
    assert path.read_bytes() == file
    made.cancel_step()
    made.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "fragment"),
    [
        (("optimizer",), {}, TypeError, "optimizer"),
        ((None,), {}, TypeError, "optimizer"),
        ((), {"parameters": 1}, TypeError, "parameters"),
        ((), {"loss_scale_manager": 1}, TypeError, "loss_scale_manager"),
    ],
)
def test_wrong_arguments(path, arguments, keywords, error, fragment):
    made = make()
    adamas.save_checkpoint(path, made)
    file = path.read_bytes()
    for function in (adamas.save_checkpoint, adamas.load_checkpoint):
        with pytest.raises(error, match=fragment):
            function(path, *(arguments or (made,)), **keywords)
    assert path.read_bytes() == file


# Files


def test_a_file_is_a_safetensors_file(path):
    made = make(ml_dtypes.bfloat16, steps=1, state_dtype="int8", master_weights=True)
    adamas.save_checkpoint(path, made)
    state = made.state_dict(parameters=True)
    arrays = load_file(path)
    assert set(arrays) == {
        f"{name}.{kind}"
        for name in ("weight", "bias")
        for kind in ("param", "master", "moment1", "moment2", "scale1", "scale2")
    }
    for key, array in arrays.items():
        name, kind = key.rsplit(".")
        wanted = state["parameters"][name][kind]
        assert array.dtype == wanted.dtype
        assert array.tobytes() == wanted.tobytes()


def test_equal_states_give_equal_files(path, tmp_path):
    """Also in another process, and after loading."""
    program = """
import sys, numpy as np, adamas
params = [adamas.Parameter(np.full(n + 3, 0.5, np.float32), f"weight{n}") for n in range(50)]
opt = adamas.Adam(params, use_amsgrad=True, max_grad_norm=1.0)
opt([np.ones(n + 3, np.float32) for n in range(50)])
adamas.save_checkpoint(sys.argv[1], opt, loss_scale_manager=adamas.DynamicLossScaleManager())
"""
    for seed in ("1", "2"):
        done = run_python("-c", program, str(tmp_path / seed), PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    source, made = make(steps=2), make(seed=1)
    adamas.save_checkpoint(path, source)
    adamas.load_checkpoint(path, made)
    adamas.save_checkpoint(tmp_path / "again", made)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["", ".", "a.moment1", "__metadata__", "ä ÿ/\n\"'", "sha256:" * 9])
def test_any_name(path, name):
    def one(value):
        return adamas.Adam([adamas.Parameter(np.full(3, value, np.float32), name=name)])

    source, made = one(1.0), one(2.0)
    source((np.ones(3, np.float32),))
    adamas.save_checkpoint(path, source)
    adamas.load_checkpoint(path, made)
    assert everything(made) == everything(source)


def test_special_values_keep_their_bits(path):
    patterns = np.arange(2**16, dtype=np.uint32) * np.uint32(65521)
    made = adamas.Adam([adamas.Parameter(patterns.view(np.float32).copy())])
    made.moment1[0].view(np.uint32)[:] = patterns[::-1]
    adamas.save_checkpoint(path, made)
    other = adamas.Adam([adamas.Parameter(np.zeros(2**16, np.float32))])
    adamas.load_checkpoint(path, other)
    assert everything(made) == everything(other)


def test_parameters_can_be_left_out(path):
    source, made = make(steps=2), make(seed=1)
    before = bits(np.asarray(made.parameters[0]))
    adamas.save_checkpoint(path, source)
    adamas.load_checkpoint(path, made, parameters=False)
    np.testing.assert_array_equal(bits(np.asarray(made.parameters[0])), before)
    assert made.global_step == 2
    adamas.save_checkpoint(path, source, parameters=False)
    assert not any(key.endswith(".param") for key in load_file(path))
    fresh = make(seed=1)
    check_refused(
        fresh, lambda: adamas.load_checkpoint(path, fresh), ValueError, str(path), "parameters"
    )
    adamas.load_checkpoint(path, fresh, parameters=False)
    assert fresh.global_step == 2


def small_file(path):
    source = adamas.Adam([adamas.Parameter(np.ones(2, np.float32), "w")], max_grad_norm=1.0)
    source((np.ones(2, np.float32),))
    adamas.save_checkpoint(path, source)
    made = adamas.Adam([adamas.Parameter(np.zeros(2, np.float32), "w")], max_grad_norm=1.0)
    return path.read_bytes(), made


def check_file_refused(path, made, content, *fragments):
    path.write_bytes(content)
    check_refused(
        made, lambda: adamas.load_checkpoint(path, made), ValueError, str(path), *fragments
    )


def test_any_flipped_bit_is_found(folder):
    path = folder / "file"
    content, made = small_file(path)
    for place in range(len(content)):
        for bit in (0, 2, 5, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            check_file_refused(path, made, damaged)


def test_any_truncation_is_found(folder):
    path = folder / "file"
    content, made = small_file(path)
    for length in range(len(content)):
        check_file_refused(path, made, content[:length])
    check_file_refused(path, made, content + b"\0", "damaged")


def test_foreign_files_are_refused(path):
    _, made = small_file(path)
    for content in (b"", b"\x80\x04pickle", bytes(100), b"PK\x03\x04" * 50, b"[" * 10**6):
        check_file_refused(path, made, content, "no checkpoint of adamas")
    deep = b"[" * 10**5
    check_file_refused(path, made, len(deep).to_bytes(8, "little") + deep, "no checkpoint")
    save_file({"w.param": np.ones(2, np.float32)}, path)
    check_file_refused(path, made, path.read_bytes(), "no checkpoint of adamas")
    save_file({"w": np.ones(2, np.float32)}, path, {"adamas": '{"format":"x","version":1}'})
    check_file_refused(path, made, path.read_bytes(), "format", "'x'")


def resealed(content, change):
    """Return the file with other metadata and a checksum that fits."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["adamas"])
    change(description)
    description["checksum"] = "sha256:" + "0" * 64
    header["__metadata__"]["adamas"] = json.dumps(description, sort_keys=True)
    text = json.dumps(header, separators=(",", ":")).encode()
    forged = len(text).to_bytes(8, "little") + text + content[8 + length :]
    digits = hashlib.sha256(forged).hexdigest().encode()
    return forged.replace(b"sha256:" + b"0" * 64, b"sha256:" + digits, 1)


@pytest.mark.parametrize(
    ("keys", "to", "fragment"),
    [
        (("version",), 2, "version"),
        (("format",), "other", "format"),
        (("state",), [], ""),
        (("state", "version"), 7, "version"),
        (("state", "global_step"), "many", "global_step"),
        (("state", "global_step"), -1, "global_step"),
        (("state", "parameters"), [], ""),
        (("state", "parameters"), [1], ""),
        (("state", "parameters"), [{"name": "other"}], ""),
        (("state", "options", "beta1"), 0.5, "beta1"),
        (("state", "options"), None, "options"),
        (("loss_scale_manager",), {"loss_scale": 1.0}, "loss-scale manager"),
    ],
)
def test_forged_files_are_refused(path, keys, to, fragment):
    content, made = small_file(path)

    def change(description):
        for key in keys[:-1]:
            description = description[key]
        if to is None:
            del description[keys[-1]]
        else:
            description[keys[-1]] = to

    check_file_refused(path, made, resealed(content, change), fragment)
    path.write_bytes(resealed(content, lambda _: None))
    adamas.load_checkpoint(path, made)  # what is resealed without a change is read


def test_the_checksum_can_be_computed_by_others(path):
    content, _ = small_file(path)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    stored = json.loads(metadata["adamas"])["checksum"].removeprefix("sha256:")
    with_zeros = content.replace(stored.encode(), b"0" * 64, 1)
    assert hashlib.sha256(with_zeros).hexdigest() == stored


# The way to the disk


def temporaries(folder):
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".adamas-")]


@contextlib.contextmanager
def file_size_limit(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def big():
    return adamas.Adam([adamas.Parameter(np.ones(10**6, np.float32), "w")])


def test_a_full_disk_leaves_the_old_file(path):
    made = big()
    adamas.save_checkpoint(path, made)
    before, states = path.read_bytes(), everything(made)
    made.global_step = 5
    with file_size_limit(2**20), pytest.raises(OSError) as caught:
        adamas.save_checkpoint(path, made)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert temporaries(path.parent) == []
    assert (everything(made)[0], made.global_step) == (states[0], 5)
    adamas.save_checkpoint(path, made)
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", ["fsync", "fchmod", "fdopen"])
def test_a_failing_call_leaves_the_old_file(path, monkeypatch, name):
    made = make(steps=1)
    adamas.save_checkpoint(path, made)
    before = path.read_bytes()
    take_step(made, np.random.default_rng(1))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):  # noqa: PT012
        patch.setattr(os, name, fail)
        adamas.save_checkpoint(path, made)
    assert path.read_bytes() == before
    assert temporaries(path.parent) == []


def test_missing_and_impossible_places(path, tmp_path):
    made = make()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        adamas.save_checkpoint(tmp_path / "nowhere" / "file", made)
    with pytest.raises(FileNotFoundError):
        adamas.load_checkpoint(path, made)
    with pytest.raises(IsADirectoryError):
        adamas.load_checkpoint(tmp_path, made)
    for place in (tmp_path, "/dev/full"):
        with pytest.raises(FileExistsError, match="must be a file"):
            adamas.save_checkpoint(place, made)
    for bad in (None, 3, b""):
        with pytest.raises((TypeError, FileNotFoundError)):
            adamas.save_checkpoint(bad, made)


def test_permissions_are_those_of_the_old_file_or_the_umask(path):
    made = make()
    previous = os.umask(0o027)
    try:
        adamas.save_checkpoint(path, made)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        adamas.save_checkpoint(path, made)
        assert path.stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(previous)


def test_a_read_only_file_is_not_replaced(path, monkeypatch):
    made = make()
    adamas.save_checkpoint(path, made)
    before = path.read_bytes()
    made.global_step = 9
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(PermissionError):
        adamas.save_checkpoint(path, made)
    assert path.read_bytes() == before


def test_symbolic_links_are_followed(path, tmp_path):
    made = make()
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    path.symlink_to(target)
    for _ in range(2):  # dangling, then existing
        made.global_step += 1
        adamas.save_checkpoint(path, made)
        assert path.is_symlink()
        assert not target.is_symlink()
        other = make()
        adamas.load_checkpoint(path, other)
        assert other.global_step == made.global_step
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError) as caught:
        adamas.save_checkpoint(path, made)
    assert caught.value.errno == errno.ELOOP


def test_leftover_temporaries_do_not_matter(path):
    leftover = path.with_name(".adamas-0123456789abcdef.tmp")
    leftover.write_bytes(b"half a check")
    made = make(steps=1)
    adamas.save_checkpoint(path, made)
    adamas.load_checkpoint(path, made)
    assert leftover.read_bytes() == b"half a check"


def test_nothing_is_imported_before_it_is_needed():
    program = "import sys, adamas; print('safetensors' in sys.modules, 'ml_dtypes' in sys.modules)"
    assert run_python("-c", program).stdout.split() == ["False", "False"]


# Loss-scale managers


def test_a_manager_goes_on(path):
    source, manager = make(steps=1), adamas.DynamicLossScaleManager(1024.0, scale_window=3)
    for overflow in (True, False, False):
        manager.update_loss_scale(overflow)
    adamas.save_checkpoint(path, source, loss_scale_manager=manager)
    made, other = make(), adamas.DynamicLossScaleManager(scale_window=3)
    adamas.load_checkpoint(path, made, loss_scale_manager=other)
    assert other.state_dict() == manager.state_dict()
    check_refused(
        made, lambda: adamas.load_checkpoint(path, made), ValueError, "loss_scale_manager=None"
    )
    adamas.save_checkpoint(path, source)
    check_refused(
        made,
        lambda: adamas.load_checkpoint(path, made, loss_scale_manager=other),
        ValueError,
        "must hold a loss-scale manager",
    )


def test_manager_and_optimizer_are_loaded_together_or_not_at_all(path):
    manager = adamas.DynamicLossScaleManager(1024.0)
    adamas.save_checkpoint(path, make(steps=1), loss_scale_manager=manager)
    other = adamas.DynamicLossScaleManager(2.0)
    before = other.state_dict()
    made = make(beta1=0.5)
    check_refused(
        made,
        lambda: adamas.load_checkpoint(path, made, loss_scale_manager=other),
        ValueError,
        "beta1",
    )
    assert other.state_dict() == before
    made, fixed = make(), adamas.FixedLossScaleManager(8.0)
    check_refused(
        made,
        lambda: adamas.load_checkpoint(path, made, loss_scale_manager=fixed),
        ValueError,
        "loss_scale must be 8.0",
        "1024.0",
    )


def test_a_manager_of_another_kind(path):
    class Own:
        def __init__(self, state):
            self.state = state

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    made, own = make(), Own(None)
    state = {"scale": 0.1, "history": [1, 2.5, "x", True]}
    adamas.save_checkpoint(path, made, loss_scale_manager=Own(state))
    adamas.load_checkpoint(path, made, loss_scale_manager=own)
    assert own.state == state
    before = path.read_bytes()
    with pytest.raises(TypeError, match="plain"):
        adamas.save_checkpoint(path, made, loss_scale_manager=Own({"scale": np.ones(2)}))
    assert path.read_bytes() == before


def test_a_fixed_manager_has_its_scale():
    manager = adamas.FixedLossScaleManager(16.0)
    assert manager.state_dict() == {"loss_scale": 16.0}
    manager.load_state_dict({"loss_scale": 16})
    for state, error in (({}, KeyError), ({"loss_scale": "a"}, TypeError)):
        with pytest.raises(error):
            manager.load_state_dict(state)


# Threads


def wide(value=1.0, **options):
    param = adamas.Parameter(np.full(100_003, value, np.float32), "w")
    return adamas.Adam([param], learning_rate=0.01, num_threads=2, **options)


@pytest.mark.parametrize("use_locking", [False, True])
def test_a_state_is_that_between_two_steps(use_locking):
    grad = np.ones(100_003, np.float32)
    reference = wide()
    wanted = {}
    for step in range(41):
        wanted[step] = state_bits(reference.state_dict(parameters=True))
        reference((grad,))
    made = wide(use_locking=use_locking)
    start = made.state_dict(parameters=True)

    def steps():
        for _ in range(40):
            made((grad,))

    def looks():
        for _ in range(30):
            state = made.state_dict(parameters=True)
            assert state_bits(state) == wanted[state["global_step"]]

    run_threads(steps, looks)

    def loads():
        for _ in range(10):
            made.load_state_dict(start)

    made.load_state_dict(start)
    run_threads(steps, looks, loads)


def test_loading_excludes_optimizers_that_share_memory():
    """All elements are equal before and after each call, so they are at each moment between."""
    array = np.full(100_003, 1.0, np.float32)
    first, second, third = (
        adamas.Adam([adamas.Parameter(array, "w")], use_locking=True, num_threads=2)
        for _ in range(3)
    )
    start = first.state_dict(parameters=True)
    grad = np.ones(100_003, np.float32)

    def steps():
        for _ in range(60):
            first((grad,))

    def loads():
        for _ in range(60):
            second.load_state_dict(start)

    def looks():
        for _ in range(60):
            seen = third.state_dict(parameters=True)["parameters"]["w"]["param"]
            assert seen.min() == seen.max()

    run_threads(steps, loads, looks)


def test_many_may_save_and_load_one_file(path):
    makers = [make(steps=steps) for steps in range(3)]
    wanted = {made.global_step: everything(made) for made in makers}
    adamas.save_checkpoint(path, makers[0])

    def saves(made):
        for _ in range(15):
            adamas.save_checkpoint(path, made)

    def loads():
        other = make(seed=9)
        for _ in range(40):
            adamas.load_checkpoint(path, other)
            assert everything(other) == wanted[other.global_step]

    run_threads(*[lambda made=made: saves(made) for made in makers], loads)
    assert temporaries(path.parent) == []
