"""adamas.torch: the state where torch has it, whatever happens to tensors, and what is refused.

What it computes is compared with torch in test_torch_optim.py, and its bits with adamas.functional
here.
"""

import copy
import io
import itertools
import pickle
from collections import defaultdict

import numpy as np
import pytest

import adamas
from adamas import functional

torch = pytest.importorskip("torch", reason="torch is not installed")

from adamas.torch import Adam, AdamW, SparseAdam  # noqa: E402

SHAPES = ((3, 5), (7,), (), (0, 4), (33, 2, 3))
OPTIONS = {"lr": 0.013, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.07}
LOW = (torch.bfloat16, torch.float16)


def tensors(dtype=torch.float32, shapes=SHAPES, seed=0):
    made = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    values = [torch.randn(shape, dtype=wide, generator=made).to(dtype) for shape in shapes]
    return [torch.nn.Parameter(value) for value in values]


def give_gradients(params, seed, scale=1.0):
    grads = tensors(params[0].dtype, [param.shape for param in params], seed)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.detach() * scale


def bits_of(tensor):
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().clone().contiguous().view(-1).view(torch.uint8).tolist()
    return [tensor]


def all_bits(optimizer):
    """Return everything that a step changes."""
    return [
        (bits_of(param), {k: bits_of(v) for k, v in optimizer.state.get(param, {}).items()})
        for group in optimizer.param_groups
        for param in group["params"]
    ]


def check_refused(optimizer, error, match):
    before = all_bits(optimizer)
    with pytest.raises(error, match=match):
        optimizer.step()
    after = all_bits(optimizer)
    assert [param for param, _ in after] == [param for param, _ in before]
    for (_, was), (_, now) in zip(before, after, strict=True):
        assert {key: now[key] for key in was} == was
        # What was not there before has not counted a step.
        assert all(not any(now[key]) for key in now.keys() - was.keys() if key != "ema")


def numpy_of(tensor):
    if tensor.dtype == torch.bfloat16:
        from ml_dtypes import bfloat16

        return tensor.detach().view(torch.int16).numpy().view(bfloat16)
    return tensor.detach().numpy()


# The same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
@pytest.mark.parametrize(
    ("decoupled", "amsgrad", "maximize"), list(itertools.product((False, True), repeat=3))
)
def test_the_bits_are_those_of_functional_adam(dtype, decoupled, amsgrad, maximize):
    params = tensors(dtype)
    flags = {"amsgrad": amsgrad, "maximize": maximize}
    optimizer = Adam(params, **OPTIONS, **flags, decoupled_weight_decay=decoupled)
    arrays = [numpy_of(param).copy() for param in params]
    real = np.float64 if dtype == torch.float64 else np.float32
    states = [[np.zeros(array.shape, real) for array in arrays] for _ in range(3)]
    steps = np.zeros(len(arrays), np.int64)
    for t in range(5):
        give_gradients(params, seed=t)
        params[t % 3].grad = None
        functional.adam(
            arrays,
            [None if p.grad is None else numpy_of(p.grad) for p in params],
            *states[:2],
            states[2] if amsgrad else None,
            steps=steps,
            learning_rate=OPTIONS["lr"],
            beta1=OPTIONS["betas"][0],
            beta2=OPTIONS["betas"][1],
            eps=OPTIONS["eps"],
            weight_decay=OPTIONS["weight_decay"],
            decoupled_weight_decay=decoupled,
            maximize=maximize,
        )
        optimizer.step()
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
    for i, param in enumerate(params):
        assert bits_of(param) == arrays[i].reshape(-1).view(np.uint8).tolist()
        assert int(optimizer.state[param]["step"]) == steps[i]
        for name, arrays_of in zip(names, states, strict=False):
            expected = arrays_of[i].reshape(-1).view(np.uint8).tolist()
            assert bits_of(optimizer.state[param][name]) == expected


def after_some_steps(make, params, steps=4, **options):
    optimizer = make(params, **{**OPTIONS, **options})
    for t in range(steps):
        give_gradients(params, seed=t)
        optimizer.step()
    return optimizer


def test_the_bits_do_not_depend_on_threads():
    results = []
    for threads in (1, 3):
        params = tensors(shapes=((70001,), (13,), (129, 511)))
        results.append(all_bits(after_some_steps(AdamW, params, num_threads=threads)))
    assert results[0] == results[1]


def test_threads_are_those_of_torch():
    before = torch.get_num_threads()
    optimizer = after_some_steps(Adam, tensors())
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            optimizer.step()
            assert optimizer._base.num_threads == threads
    finally:
        torch.set_num_threads(before)


# The state


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW, torch.complex64])
def test_state_is_laid_out_like_that_of_torch(make, dtype):
    params = [*tensors(dtype), torch.nn.Parameter(tensors(dtype, [(2, 3, 5)])[0].detach().mT)]
    theirs = copy.deepcopy(params)
    ours = after_some_steps(make, params, 1, amsgrad=True)
    other = after_some_steps(getattr(torch.optim, make.__name__), theirs, 1, amsgrad=True)
    for mine, their in zip(params, theirs, strict=True):
        state, expected = ours.state[mine], other.state[their]
        assert list(state) == list(expected)
        for key, array in expected.items():
            assert state[key].shape == array.shape
            assert state[key].stride() == array.stride()
            assert not state[key].requires_grad
            narrow = array.dtype in LOW
            assert state[key].dtype == (torch.float32 if narrow else array.dtype)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SparseAdam"])
def test_state_dicts_go_both_ways(name):
    ours, theirs = getattr(adamas.torch, name), getattr(torch.optim, name)
    weights = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
    tables = [torch.nn.Embedding(11, 3, sparse=name == "SparseAdam") for _ in range(4)]
    made = [
        make(table.parameters(), lr=0.1)
        for make, table in zip((ours, theirs, ours, theirs), tables, strict=True)
    ]
    with torch.no_grad():
        for table in tables:
            table.weight.copy_(weights)

    def train(which, steps):
        for t in range(steps):
            rows = torch.tensor([t % 11, 3, (5 * t) % 11])
            for k in which:
                made[k].zero_grad()
                tables[k](rows).square().sum().backward()
                made[k].step()

    train((0, 1), 5)
    made[2].load_state_dict(made[1].state_dict())
    made[3].load_state_dict(copy.deepcopy(made[0].state_dict()))
    with torch.no_grad():
        tables[2].weight.copy_(tables[1].weight)
        tables[3].weight.copy_(tables[0].weight)
    train(range(4), 7)
    for table in tables[1:]:
        assert torch.allclose(table.weight, tables[0].weight, rtol=1e-5, atol=1e-6)
    for optimizer, table in zip(made, tables, strict=True):
        assert int(optimizer.state[table.weight]["step"]) == 12


def test_a_loaded_state_is_a_copy_and_keeps_its_types():
    params = tensors(torch.bfloat16)
    optimizer = after_some_steps(Adam, params)
    other = Adam(tensors(torch.bfloat16), **OPTIONS)
    other.load_state_dict(optimizer.state_dict())
    for param, loaded in zip(params, other.param_groups[0]["params"], strict=True):
        mine, its = optimizer.state[param], other.state[loaded]
        assert its["exp_avg"].dtype == torch.float32
        for key in mine:
            assert bits_of(its[key]) == bits_of(mine[key])
            assert its[key].numel() == 0 or its[key].data_ptr() != mine[key].data_ptr()


def test_a_state_of_other_shapes_is_refused_and_nothing_has_changed():
    params = tensors()
    optimizer = after_some_steps(Adam, params)
    given = copy.deepcopy(optimizer.state_dict())
    given["state"][1]["exp_avg_sq"] = torch.zeros(8)
    before = all_bits(optimizer)
    with pytest.raises(ValueError, match="'exp_avg_sq' must have the shape of its parameter"):
        optimizer.load_state_dict(given)
    assert all_bits(optimizer) == before
    given["state"][1]["exp_avg_sq"] = torch.zeros(7)
    given["state"][0]["step"] = torch.tensor(1.5)
    with pytest.raises(ValueError, match="whole number"):
        optimizer.load_state_dict(given)
    assert all_bits(optimizer) == before


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_alike(how):
    params = tensors(torch.bfloat16)
    extras = {"max_grad_norm": 3.0, "ema_decay": 0.9, "state_dtype": "bfloat16", "seed": 5}
    optimizer = after_some_steps(AdamW, params, master_weights=True, **extras)
    pair = (params, optimizer)
    if how == "deepcopy":
        params2, other = copy.deepcopy(pair)
    elif how == "pickle":
        params2, other = pickle.loads(pickle.dumps(pair))  # noqa: S301
    else:
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        params2, other = torch.load(file, weights_only=False)
    for t in range(3):
        for one, those in ((optimizer, params), (other, params2)):
            give_gradients(those, seed=10 + t)
            one.step()
    assert all_bits(other) == all_bits(optimizer)
    assert other.last_grad_norm == optimizer.last_grad_norm > 3.0


def test_a_state_dict_is_read_with_weights_only():
    optimizer = after_some_steps(Adam, tensors())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = Adam(tensors(), **OPTIONS)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [state for _, state in all_bits(other)] == [state for _, state in all_bits(optimizer)]


def replaced(optimizer):
    optimizer.state[optimizer.param_groups[0]["params"][0]] = {}


def emptied(optimizer):
    optimizer.state.clear()


def another_dict(optimizer):
    optimizer.state = {k: dict(v) for k, v in optimizer.state.items()}


def popped(optimizer):
    optimizer.state.pop(optimizer.param_groups[0]["params"][0])


def zeroed(optimizer):
    for entry in optimizer.state.values():
        entry["exp_avg"] = torch.zeros_like(entry["exp_avg"])


@pytest.mark.parametrize("change", [replaced, emptied, another_dict, popped, zeroed])
def test_what_is_done_to_the_state_is_seen(change):
    params = tensors()
    theirs = copy.deepcopy(params)
    ours = after_some_steps(Adam, params)
    other = after_some_steps(torch.optim.Adam, theirs)
    other.state = defaultdict(dict, other.state)
    for optimizer, those in ((ours, params), (other, theirs)):
        change(optimizer)
        if isinstance(optimizer, torch.optim.Adam) and not isinstance(optimizer, Adam):
            optimizer.state = defaultdict(dict, optimizer.state)
        for t in range(3):
            give_gradients(those, seed=20 + t)
            optimizer.step()
    for mine, their in zip(params, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)
        assert ours.state[mine]["step"] == other.state[their]["step"]


def test_a_dict_for_state_and_gradients_in_another_layout():
    param = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = Adam([param], lr=0.5)
    optimizer.state = {}
    for _ in range(2):
        param.grad = torch.ones(4, 3).mT
        optimizer.step()
    assert torch.allclose(param, torch.zeros(3, 4), atol=1e-6)


# Tensors that move, and lie otherwise


def moved_data(params):
    for param in params:
        param.data = param.data.clone()


def shared(params):
    for param in params:
        param.data.share_memory_()


def resized_storage(params):
    params[0].data.set_(torch.randn(3, 5, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("move", [moved_data, shared, resized_storage])
def test_parameters_may_move(move):
    params = tensors()
    theirs = copy.deepcopy(params)
    ours, other = (
        after_some_steps(make, those)
        for make, those in ((Adam, params), (torch.optim.Adam, theirs))
    )
    for optimizer, those in ((ours, params), (other, theirs)):
        move(those)
        give_gradients(those, seed=9)
        optimizer.step()
    for mine, their in zip(params, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)


def test_state_may_move():
    params = tensors()
    theirs = copy.deepcopy(params)
    for make, those in ((Adam, params), (torch.optim.Adam, theirs)):
        optimizer = after_some_steps(make, those)
        for entry in optimizer.state.values():
            for array in entry.values():
                array.share_memory_()
        give_gradients(those, seed=9)
        optimizer.step()
    for mine, their in zip(params, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)


def test_a_model_may_change_its_layout_and_its_width():
    layers = [torch.nn.Conv2d(3, 4, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for make, layer in ((Adam, layers[0]), (torch.optim.Adam, layers[1])):
        params = list(layer.parameters())
        optimizer = after_some_steps(make, params)
        layer.to(memory_format=torch.channels_last)
        assert params[0].stride() == (27, 1, 9, 3)
        for t in range(3):
            give_gradients(params, seed=20 + t)
            optimizer.step()
    for mine, their in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)
    layers[0].half()
    for param in layers[0].parameters():
        param.grad = torch.ones_like(param)
    ours = Adam(layers[0].parameters())
    ours.step()
    layers[0].double()
    for param in layers[0].parameters():
        param.grad = torch.ones_like(param)
    check_refused(ours, ValueError, r"state\['exp_avg'\] of parameter 0 must be of torch.float64")


def laid_out(name, values):
    if name == "channels_last":
        return values.to(memory_format=torch.channels_last)
    if name == "transposed":
        return values.transpose(0, 2).contiguous().transpose(0, 2)
    wide = torch.zeros(*values.shape[:-1], 2 * values.shape[-1])
    wide[..., ::2] = values
    return wide[..., ::2]


@pytest.mark.parametrize("name", ["channels_last", "transposed", "with gaps"])
@pytest.mark.parametrize("grad_name", ["channels_last", "transposed", "with gaps", "expanded"])
def test_parameters_and_gradients_in_any_layout(name, grad_name):
    values = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(laid_out(name, values.clone())) for _ in range(2))
    made = (Adam([ours], **OPTIONS), torch.optim.Adam([theirs], **OPTIONS))
    for t in range(3):
        grad = torch.randn(values.shape, generator=torch.Generator().manual_seed(t))
        if grad_name == "expanded":
            grad = grad[:1].expand(values.shape)
        for param, optimizer in zip((ours, theirs), made, strict=True):
            param.grad = grad if grad_name == "expanded" else laid_out(grad_name, grad)
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert made[0].state[ours]["exp_avg"].stride() == made[1].state[theirs]["exp_avg"].stride()


def test_negated_and_conjugated_gradients():
    for dtype in (torch.float32, torch.complex64):
        params = tensors(dtype)
        theirs = copy.deepcopy(params)
        made = (Adam(params, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS))
        for param, their in zip(params, theirs, strict=True):
            grad = torch.view_as_complex(torch.randn(*param.shape, 2)).conj()
            param.grad = grad if dtype.is_complex else grad.imag
            assert param.grad.is_conj() if dtype.is_complex else param.grad.is_neg()
            their.grad = param.grad.clone()
        for optimizer in made:
            optimizer.step()
        for param, their in zip(params, theirs, strict=True):
            assert torch.allclose(param, their, rtol=1e-5, atol=1e-6)


def test_negated_parameters():
    ours, theirs = (torch.nn.Parameter(torch._neg_view(torch.full((3,), 5.0))) for _ in range(2))
    assert ours.is_neg()
    made = (Adam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1))
    for t in range(4):
        for param, optimizer in zip((ours, theirs), made, strict=True):
            if t > 1:  # the sign of the same memory turns
                param.data = torch._neg_view(param.data)
            param.grad = torch.ones(3)
            optimizer.step()
        assert torch.allclose(ours, theirs, rtol=1e-6)


def test_versions_advance():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Adam([weight])
    out = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


# What torch does not have


def test_the_norm_over_all_groups_is_clipped():
    params = tensors()
    theirs = copy.deepcopy(params)
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "betas": (0.5, 0.9)}]
    ours = AdamW(groups, max_grad_norm=0.5)
    groups = [{"params": theirs[:2], "lr": 0.1}, {"params": theirs[2:], "betas": (0.5, 0.9)}]
    other = torch.optim.AdamW(groups)
    for t in range(5):
        give_gradients(params, seed=t)
        give_gradients(theirs, seed=t)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        ours.step()
        other.step()
        assert ours.last_grad_norm == pytest.approx(float(norm), rel=1e-6)
    for mine, their in zip(params, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-4, atol=1e-5)


def test_averages_and_master_weights():
    params = tensors(torch.bfloat16)
    wide = [torch.nn.Parameter(param.detach().float()) for param in params]
    averages = [param.detach().clone() for param in wide]
    ours = AdamW(params, **OPTIONS, master_weights=True, ema_decay=0.75)
    other = AdamW(wide, **OPTIONS)
    for t in range(5):
        give_gradients(params, seed=t)
        for param, narrow in zip(wide, params, strict=True):
            param.grad = narrow.grad.float()
        ours.step()
        other.step()
        for average, param in zip(averages, wide, strict=True):
            average.mul_(0.75).add_(param.detach(), alpha=0.25)
    for narrow, param, average in zip(params, wide, averages, strict=True):
        state = ours.state[narrow]
        assert bits_of(state["master"]) == bits_of(param)
        assert bits_of(narrow) == bits_of(param.detach().to(torch.bfloat16))
        assert torch.allclose(state["ema"], average, rtol=1e-5, atol=1e-6)


def test_moments_in_bfloat16():
    params = tensors(shapes=((501,),))
    ours = after_some_steps(Adam, params, state_dtype="bfloat16")
    plain = tensors(shapes=((501,),))
    other = after_some_steps(Adam, plain)
    assert ours.state[params[0]]["exp_avg"].dtype == torch.bfloat16
    for name in ("exp_avg", "exp_avg_sq"):
        narrow, real = ours.state[params[0]][name].float(), other.state[plain[0]][name]
        assert (narrow - real).abs().max() <= 2**-6 * real.abs().max()
        assert not torch.equal(narrow, real)
    assert torch.allclose(params[0], plain[0], rtol=0.01, atol=0.01)


# A GradScaler


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler(fused):
    params = tensors()
    theirs = copy.deepcopy(params)
    made = (AdamW(params, **OPTIONS, fused=fused), torch.optim.AdamW(theirs, **OPTIONS))
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2) for _ in range(2)]
    for t in range(6):
        for those, optimizer, scaler in zip((params, theirs), made, scalers, strict=True):
            give_gradients(those, seed=t, scale=float(scaler.scale(torch.ones(()))))
            if t == 3:
                those[1].grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
    for mine, their in zip(params, theirs, strict=True):
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)
        assert int(made[0].state[mine]["step"]) == 5


# Rows


def sparse(indices, values, shape):
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("maximize", [False, True])
def test_rows_beside_torch(dtype, maximize):
    start = tensors(torch.float64, ((13, 3), (5, 2, 4), (7,)))
    params, theirs = (
        [torch.nn.Parameter(param.detach().to(kind)) for param in start]
        for kind in (dtype, torch.float64)
    )
    options = {"lr": 0.05, "betas": (0.7, 0.9), "eps": 1e-4, "maximize": maximize}
    ours, other = SparseAdam(params, **options), torch.optim.SparseAdam(theirs, **options)
    for t in range(8):
        made = torch.Generator().manual_seed(t)
        for i, (param, their) in enumerate(zip(params, theirs, strict=True)):
            axes = 2 if i == 1 else 1
            indices = torch.stack(
                [torch.randint(param.shape[k], (6,), generator=made) for k in range(axes)]
            )
            values = torch.randn(6, *param.shape[axes:], generator=made).to(dtype)
            param.grad = sparse(indices, values, param.shape)
            their.grad = sparse(indices, values.double(), param.shape)
            if (t + i) % 4 == 1:
                param.grad = their.grad = None
        ours.step()
        other.step()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 0.05}[dtype]
    for param, their in zip(params, theirs, strict=True):
        assert torch.allclose(param.double(), their, rtol=tolerance, atol=tolerance)
        assert ours.state[param]["step"] == other.state[their]["step"] == 6


def test_rows_of_steps_at_different_counts_are_one_step_or_none():
    params = tensors(shapes=((4, 2), (4, 2)))
    optimizer = SparseAdam(params, lr=0.1)

    def listing(row):
        return sparse(torch.tensor([[row]]), torch.ones(1, 2), (4, 2))

    params[0].grad = listing(1)
    optimizer.step()
    params[1].grad = torch.ones(4, 2)
    check_refused(optimizer, RuntimeError, "does not support dense gradients")
    params[1].grad = listing(3)
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [2, 1]


def test_parameters_with_rows_change_their_groups():
    params = tensors(shapes=((4, 2), (4, 2)))
    with torch.no_grad():
        for param in params:
            param.fill_(1.0)
    optimizer = SparseAdam(
        [{"params": [p], "lr": lr} for p, lr in zip(params, (0.5, 0.25), strict=True)]
    )
    for _ in range(2):
        for param in params:
            param.grad = sparse(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
        optimizer.step()
        first, second = optimizer.param_groups
        first["params"], second["params"] = second["params"], first["params"]
    for param in params:
        assert torch.allclose(param[1], torch.tensor(0.25))
    # One that has left and now has a gradient of another kind is no longer looked at.
    first["params"].clear()
    for param in params:
        param.grad = torch.ones(4, 2)
    second["params"][0].grad = sparse(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
    optimizer.step()


def test_rows_that_are_not_there_are_refused():
    params = tensors(shapes=((4, 2),))
    optimizer = SparseAdam(params, lr=0.1)
    for row in (4, -1):
        params[0].grad = torch.sparse_coo_tensor(
            torch.tensor([[row]]), torch.ones(1, 2), (4, 2), check_invariants=False
        )
        check_refused(optimizer, IndexError, "parameter 0")


# Refusals


def set_group(name, value):
    def change(optimizer, params):
        optimizer.param_groups[0][name] = value

    return change


def set_state(name, value):
    def change(optimizer, params):
        optimizer.state[params[1]][name] = value

    return change


def sparse_gradient(optimizer, params):
    params[1].grad = torch.ones(7).to_sparse()


def shared_memory(optimizer, params):
    optimizer.state[params[1]]["exp_avg_sq"] = optimizer.state[params[1]]["exp_avg"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (set_group("lr", float("nan")), ValueError, "learning rate"),
        (set_group("lr", -0.1), ValueError, "learning rate"),
        (set_group("lr", "fast"), TypeError, "lr must be a number"),
        (set_group("lr", torch.ones(2)), ValueError, "Tensor lr must be 1-element"),
        (set_group("weight_decay", -1.0), ValueError, "weight"),
        (set_group("betas", (1.0, 0.9)), ValueError, "Invalid beta parameter at index 0: 1.0"),
        (set_group("betas", (0.5, -0.9)), ValueError, "Invalid beta parameter at index 1: -0.9"),
        (set_group("eps", float("inf")), ValueError, "eps"),
        (set_group("capturable", True), RuntimeError, "capturable=True is not supported"),
        (set_group("differentiable", True), RuntimeError, "differentiable=True is not supported"),
        (set_state("exp_avg", torch.zeros(8)), ValueError, "must have the shape of its parameter"),
        (set_state("exp_avg", torch.zeros(7).half()), ValueError, "must be of torch.float32"),
        (set_state("exp_avg", 0.0), TypeError, "must be a tensor, got float"),
        (set_state("step", -1), ValueError, "whole number"),
        (set_state("step", torch.tensor(0.5)), ValueError, "whole number"),
        (set_state("step", None), TypeError, "the step of parameter 1 must be a number"),
        (shared_memory, ValueError, "shares memory with another or with a parameter: parameter 1"),
        (sparse_gradient, RuntimeError, "consider SparseAdam"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_has_changed(change, error, match):
    params = tensors()
    optimizer = after_some_steps(Adam, params)
    change(optimizer, params)
    check_refused(optimizer, error, match)


@pytest.mark.parametrize("make", [Adam, AdamW])
def test_options_are_checked_when_they_are_given(make):
    for options, error in (
        ({"state_dtype": "int8"}, ValueError),
        ({"master_weights": 1}, TypeError),
        ({"max_grad_norm": -1.0}, ValueError),
        ({"ema_decay": 1.0}, ValueError),
        ({"num_threads": 0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"capturable": True}, RuntimeError),
        ({"differentiable": True}, RuntimeError),
    ):
        with pytest.raises(error, match=next(iter(options))):
            make(tensors(), **options)


def test_parameters_without_memory_are_refused():
    for param in (
        torch.nn.Parameter(torch.empty(3, device="meta")),
        torch.nn.Parameter(torch.ones(3, dtype=torch.float8_e4m3fn)),
    ):
        optimizer = Adam([param])
        param.grad = torch.empty_like(param)
        with pytest.raises((RuntimeError, TypeError), match="parameter"):
            optimizer.step()


def test_a_parameter_that_is_listed_twice_is_refused():
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = Adam([weight, weight])
    weight.grad = torch.ones(3)
    check_refused(optimizer, ValueError, "must not have a parameter twice")


def test_elements_that_share_memory_are_refused():
    param = torch.nn.Parameter(torch.ones(4, 1).expand(4, 3))
    optimizer = Adam([param])
    param.grad = torch.ones(4, 3)
    check_refused(optimizer, ValueError, "parameter 0 must have memory for each element")


def test_a_step_inside_a_step_is_refused():
    class Curious(torch.nn.Parameter):
        optimizer = None

        @property
        def grad(self):
            if self.optimizer is not None:
                self.optimizer.step()
            return None

    weight = Curious(torch.ones(3))
    optimizer = Adam([weight])
    Curious.optimizer = optimizer
    with pytest.raises(RuntimeError, match="another step of this optimizer"):
        optimizer.step()


# What silently went wrong, or half


def test_complex_parameters_with_gaps():
    ours, theirs = (torch.nn.Parameter(torch.ones(6, 2, dtype=torch.complex64)[:, 0]) for _ in "ab")
    made = (Adam([ours], **OPTIONS), torch.optim.Adam([theirs], **OPTIONS))
    for t in range(3):
        for param, optimizer in zip((ours, theirs), made, strict=True):
            give_gradients([param], seed=t)
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Adam, SparseAdam])
def test_eps_that_is_a_tensor_is_read_in_every_step(make):
    params = tensors(shapes=((4, 2),))
    optimizer = make(params)
    optimizer.param_groups[0]["eps"] = eps = torch.tensor(1e-8)
    for value in (1e-8, 1e12):
        eps.fill_(value)
        before = params[0].detach().clone()
        params[0].grad = torch.ones(4, 2).to_sparse(1) if make is SparseAdam else torch.ones(4, 2)
        optimizer.step()
    assert (params[0] - before).abs().max() < 1e-6


@pytest.mark.parametrize("index", [(0, 2), (1, -1), (5, 0)])
def test_rows_of_two_axes_that_are_not_there_are_refused(index):
    params = tensors(shapes=((5, 2, 4),))
    optimizer = SparseAdam(params, lr=0.1)
    indices = torch.tensor(index)[:, None]
    params[0].grad = torch.sparse_coo_tensor(
        indices, torch.ones(1, 4), (5, 2, 4), check_invariants=False
    )
    check_refused(optimizer, IndexError, "outside its parameter")


def test_a_group_may_hold_a_tuple():
    params = tensors()
    optimizer = after_some_steps(Adam, params, 1)
    optimizer.param_groups[0]["params"] = tuple(params)
    optimizer.step()
    assert all(int(optimizer.state[param]["step"]) == 2 for param in params)


def test_counts_are_on_the_cpu_whatever_the_default_device():
    params = tensors()
    optimizer = Adam(params)
    give_gradients(params, seed=0)
    with torch.device("meta"):
        optimizer.step()
    saved = optimizer.state_dict()
    with torch.device("meta"):
        optimizer.load_state_dict(saved)
    optimizer.step()
    assert all(int(optimizer.state[param]["step"]) == 2 for param in params)


def test_lazy_parameters_wait():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LazyLinear(2))
    optimizer = Adam(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in model.parameters()] == [2, 2, 1, 1]


def test_the_norm_over_parts_of_a_tensor_is_refused():
    """Each process would clip by the norm of its own."""
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = torch.ones(4, 3)
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        param.grad = distribute_tensor(whole, mesh, [Shard(0)])
        optimizer = Adam([param], max_grad_norm=1.0)
        with pytest.raises(RuntimeError, match="max_grad_norm does not go with DTensors"):
            optimizer.step()
        assert torch.equal(param.to_local(), whole)
    finally:
        distributed.destroy_process_group()
