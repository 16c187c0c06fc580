"""Many steps beside torch.optim.Adam, AdamW and SparseAdam, and torch tensors as parameters."""

import itertools

import numpy as np
import pytest

import adamas

torch = pytest.importorskip("torch", reason="torch is not installed")

STEPS = 300
NUMBERS = {"lr": 0.013, "betas": (0.8, 0.95), "eps": 1e-6}
SHAPES = ((7, 5), (131,), (), (3, 2, 3, 3))
# After 300 steps: each step's few units of the last place, summed up.
TOLERANCE = {"float32": 2e-5, "float64": 5e-14}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def adam(params, *, decoupled, weight_decay, amsgrad, **more):
    return adamas.Adam(
        params,
        learning_rate=NUMBERS["lr"],
        beta1=NUMBERS["betas"][0],
        beta2=NUMBERS["betas"][1],
        eps=NUMBERS["eps"],
        weight_decay=weight_decay,
        use_amsgrad=amsgrad,
        decoupled_weight_decay=decoupled,
        **more,
    )


def torch_adam(tensors, *, decoupled, weight_decay, amsgrad):
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    return make(tensors, **NUMBERS, weight_decay=weight_decay, amsgrad=amsgrad)


def torch_states(optimizer, tensors, *, amsgrad):
    """Return {our name: torch's arrays}."""
    names = {"moment1": "exp_avg", "moment2": "exp_avg_sq"}
    if amsgrad:
        names["vhat"] = "max_exp_avg_sq"
    states = {
        ours: [optimizer.state[tensor][theirs].numpy() for tensor in tensors]
        for ours, theirs in names.items()
    }
    return {"param": [tensor.detach().numpy() for tensor in tensors], **states}


# Of torch's groups; and what they are called here.
GROUPS = (
    {"betas": (0.7, 0.9), "eps": 1e-4, "maximize": True},
    {"amsgrad": True, "weight_decay": 0.1},
    {"lr": 0.1, "betas": (0.9, 0.99)},
    {"lr": 0.002, "maximize": True, "amsgrad": True},
)
OUR_NAMES = {"amsgrad": "use_amsgrad"}


def our_group(param, group):
    own = {OUR_NAMES.get(key, key): value for key, value in group.items() if key != "betas"}
    if "betas" in group:
        own |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
    return {"params": [param], **own}


@every_dtype
@pytest.mark.parametrize("decoupled", [False, True])
def test_groups_that_differ_and_gradients_that_are_absent(dtype, decoupled):
    """Options of groups are changed on the way, too."""
    rng = np.random.default_rng(6)
    chosen = {"decoupled": decoupled, "weight_decay": 0.03, "amsgrad": False}
    initial = [np.array(rng.standard_normal(shape), dtype) for shape in SHAPES]
    tensors = [torch.tensor(array, requires_grad=True) for array in initial]
    pairs = list(zip(tensors, GROUPS, strict=True))
    theirs = torch_adam([{"params": [tensor], **group} for tensor, group in pairs], **chosen)
    params = [adamas.Parameter(array.copy()) for array in initial]
    ours = adam([our_group(*pair) for pair in zip(params, GROUPS, strict=True)], **chosen)
    for step in range(STEPS):
        if step % 50 == 20:
            theirs.param_groups[2]["lr"] = ours.groups[2].lr = 0.1 / (1 + step)
            theirs.param_groups[0]["betas"] = (0.6 + step / 1000, 0.95)
            ours.groups[0].beta1, ours.groups[0].beta2 = 0.6 + step / 1000, 0.95
        grads = [
            np.array(rng.standard_normal(shape), dtype) if rng.random() < 0.7 else None
            for shape in SHAPES
        ]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        theirs.step()
        ours(grads)
    assert ours.steps == [int(theirs.state[tensor]["step"]) for tensor in tensors]
    assert len(set(ours.steps)) > 1
    got = {"param": [p.data for p in params], "moment1": ours.moment1, "moment2": ours.moment2}
    for kind, arrays in torch_states(theirs, tensors, amsgrad=False).items():
        for mine, wanted in zip(got[kind], arrays, strict=True):
            np.testing.assert_allclose(
                mine, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], err_msg=kind
            )


@every_dtype
@pytest.mark.parametrize(
    ("decoupled", "weight_decay", "amsgrad"),
    list(itertools.product([False, True], [0.0, 0.037], [False, True])),
)
def test_hundreds_of_steps(dtype, decoupled, weight_decay, amsgrad):
    rng = np.random.default_rng(5)
    chosen = {"decoupled": decoupled, "weight_decay": weight_decay, "amsgrad": amsgrad}
    initial = [np.array(rng.standard_normal(shape), dtype) for shape in SHAPES]
    tensors = [torch.tensor(array, requires_grad=True) for array in initial]
    theirs = torch_adam(tensors, **chosen)
    params = [adamas.Parameter(array.copy()) for array in initial]
    ours = adam(params, **chosen)
    for step in range(STEPS):
        size = 10.0 ** (step % 5 - 3)  # moments that shrink make AMSGrad differ
        grads = [np.array(size * rng.standard_normal(shape), dtype) for shape in SHAPES]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        assert ours(grads)
    got = {
        "param": [param.data for param in params],
        "moment1": ours.moment1,
        "moment2": ours.moment2,
        "vhat": ours.vhat,
    }
    for kind, arrays in torch_states(theirs, tensors, amsgrad=amsgrad).items():
        for mine, wanted in zip(got[kind], arrays, strict=True):
            np.testing.assert_allclose(
                mine, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], err_msg=kind
            )


# SparseAdam adds eps to sqrt(v) without bias correction, as numerics "mindspore" does; where eps is
# too small to matter there is no difference.
SPARSE_NUMERICS = {"standard": 1e-30, "mindspore": 1e-6}


@pytest.mark.parametrize(
    ("dtype", "numerics"),
    [("float32", "standard"), ("float64", "standard"), ("float32", "mindspore")],
)
@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("shape", [(40,), (40, 7), (40, 2, 3)])
def test_lazy_steps_are_those_of_sparse_adam(dtype, numerics, coalesced, shape):
    rng = np.random.default_rng(9)
    lr, (beta1, beta2), eps = NUMBERS["lr"], NUMBERS["betas"], SPARSE_NUMERICS[numerics]
    tensor = torch.tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
    table = tensor.detach().numpy().copy()
    theirs = torch.optim.SparseAdam([tensor], lr=lr, betas=(beta1, beta2), eps=eps)
    ours = adamas.Adam(
        [adamas.Parameter(table)],
        learning_rate=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        numerics=numerics,
        use_lazy=True,
    )
    for _ in range(50):
        indices = rng.integers(0, 40, 25)
        values = rng.standard_normal((25, *shape[1:])).astype(dtype)
        grad = torch.sparse_coo_tensor(
            torch.tensor(indices[None]), torch.tensor(values), shape, check_invariants=True
        )
        assert not grad.is_coalesced()
        tensor.grad = grad.coalesce() if coalesced else grad
        theirs.step()
        assert ours([tensor.grad]) is True
    state = theirs.state[tensor]
    for mine, wanted in (
        (table, tensor.detach().numpy()),
        (ours.moment1[0], state["exp_avg"].numpy()),
        (ours.moment2[0], state["exp_avg_sq"].numpy()),
    ):
        np.testing.assert_allclose(mine, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_float16_tensors_are_updated_in_place():
    start = np.linspace(-1, 1, 7).astype(np.float16)
    tensor, array = torch.tensor(start), start.copy()
    grad = np.linspace(2, 1, 7).astype(np.float16)
    for data, given in ((tensor, torch.tensor(grad)), (array, grad)):
        adam([adamas.Parameter(data)], decoupled=False, weight_decay=0.0, amsgrad=False)([given])
    assert tensor.numpy().tobytes() == array.tobytes() != start.tobytes()


@every_dtype
@pytest.mark.parametrize("wrap", [lambda tensor: tensor, torch.nn.Parameter])
def test_tensors_are_updated_in_place(dtype, wrap):
    rng = np.random.default_rng(6)
    initial, grad = (rng.standard_normal((3, 5)).astype(dtype) for _ in range(2))
    tensor = wrap(torch.tensor(initial))
    address = tensor.data_ptr()
    array = initial.copy()
    chosen = {"decoupled": False, "weight_decay": 0.037, "amsgrad": False}
    with_tensor = adam([adamas.Parameter(tensor, "weight")], **chosen)
    with_array = adam([adamas.Parameter(array, "weight")], **chosen)
    for _ in range(3):
        with_tensor((torch.tensor(grad),))
        with_array((grad,))
    assert with_tensor.parameters[0].data is tensor
    assert tensor.data_ptr() == address
    assert tensor.detach().numpy().tobytes() == array.tobytes()


def test_gradients_from_backward_of_a_module():
    torch.manual_seed(0)
    module = torch.nn.Linear(5, 3)
    params = [adamas.Parameter(p, name) for name, p in module.named_parameters()]
    optimizer = adam(params, decoupled=False, weight_decay=0.0, amsgrad=False)
    inputs, targets = torch.randn(16, 5), torch.randn(16, 3)

    def loss():
        return torch.nn.functional.mse_loss(module(inputs), targets)

    first = loss()
    for _ in range(100):
        module.zero_grad()
        loss().backward()
        optimizer([p.grad for p in module.parameters()])
    assert loss() < 0.75 * first


@pytest.mark.parametrize(
    "convert",
    [
        lambda grad: grad.double(),
        lambda grad: grad.half(),
        lambda grad: grad.T.contiguous().T,
        lambda grad: grad.requires_grad_(),
    ],
    ids=["float64", "float16", "strided", "requires_grad"],
)
def test_other_gradients_are_converted(convert):
    rng = np.random.default_rng(8)
    grad = rng.integers(-8, 8, (3, 5)).astype(np.float32) / 4  # exact in float16 too
    arrays = [np.ones((3, 5), np.float32) for _ in range(2)]
    for array, given in zip(arrays, (grad, convert(torch.tensor(grad))), strict=True):
        adam([adamas.Parameter(array)], decoupled=False, weight_decay=0.0, amsgrad=False)([given])
    assert arrays[0].tobytes() == arrays[1].tobytes()


@pytest.mark.parametrize(
    ("tensor", "error", "fragment"),
    [
        (lambda: torch.ones(4, 6)[:, ::2], ValueError, "C-contiguous"),
        (lambda: torch.ones(3, dtype=torch.int64), TypeError, "float32, float64, float16"),
        (lambda: torch.ones(3, device="meta"), TypeError, "data must be"),
    ],
    ids=["strided", "int64", "without memory"],
)
def test_other_tensors_are_refused_as_parameters(tensor, error, fragment):
    with pytest.raises(error, match=fragment):
        adamas.Parameter(tensor())


def test_overlap_with_the_own_tensor_is_refused():
    tensor = torch.ones(3)
    optimizer = adamas.Adam([adamas.Parameter(tensor)])
    with pytest.raises(ValueError, match="shares memory"):
        optimizer((tensor,))
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert optimizer.global_step == 0
