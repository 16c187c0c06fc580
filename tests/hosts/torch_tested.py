"""The optimizers under test, adamas.torch's, and what the tests of them share.

    ADAMAS_TESTED_OPTIMIZERS=torch.optim pytest tests/hosts/test_torch_*.py

shows that what is demanded of them holds of torch's own.
"""

import copy
import importlib
import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

MODULE = os.environ.get("ADAMAS_TESTED_OPTIMIZERS", "adamas.torch")
IS_STAND_IN = MODULE != "adamas.torch"
tested = importlib.import_module(MODULE)

NAMES = ("Adam", "AdamW", "SparseAdam")
every_class = pytest.mark.parametrize("name", NAMES)
every_dense_class = pytest.mark.parametrize("name", NAMES[:2])
ours_only = pytest.mark.skipif(IS_STAND_IN, reason="holds of adamas.torch, not of torch.optim")
# What torch adds up over hundreds of steps, in units of one: each step's last places.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 5e-14}


def ours(name, params, **options):
    return getattr(tested, name)(params, **options)


def theirs(name, params, **options):
    """Return torch's optimizer in its plainest form, one tensor and operation after the other."""
    if name != "SparseAdam":
        options = {**options, "foreach": False, "fused": False}
    return getattr(torch.optim, name)(params, **copy.deepcopy(options))


def is_sparse(name):
    return name == "SparseAdam"


def as_gradient(name, dense, generator=None):
    """Return the gradient in the form the class takes; a sparse one lists some rows twice."""
    if not is_sparse(name):
        return dense
    if dense.dim() == 0 or dense.numel() == 0:
        return dense.to_sparse()
    rows = dense.shape[0]
    index = torch.randint(0, rows, (1, max(2, rows // 2 + 1)), generator=generator)
    return torch.sparse_coo_tensor(index, dense[index[0]], dense.shape, check_invariants=True)


def kept(optimizer, params):
    """Return copies of the parameters and of their state, by name."""
    found = {}
    for i, param in enumerate(params):
        found[f"param {i}"] = param.detach().clone()
        for key, value in optimizer.state.get(param, {}).items():
            found[f"{key} {i}"] = torch.as_tensor(value).detach().clone()
    return found


def assert_close(got, wanted, tolerance):
    """Compare what `kept` returned, element by element; counts may be of other types."""
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(
            got[key],
            value,
            rtol=tolerance,
            atol=tolerance,
            check_dtype=not key.startswith("step"),
            msg=lambda text, key=key: f"{key}: {text}",
        )


def assert_same(got, wanted):
    """Compare nested containers of tensors: the same bits, types and keys."""
    assert type(got) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert got == wanted


class Problem:
    """A layer of 10 x 5 whose squared outputs are the loss, as torch's tests of optimizers have it.

    ``is_strided`` puts the parameters into every second item of their memory.
    """

    def __init__(self, name, *, dtype=torch.float32, is_strided=False, seed=0):
        self.name = name
        self.generator = torch.Generator().manual_seed(seed)

        def parameter(*shape):
            if is_strided:
                values = torch.randn(*shape, 2, generator=self.generator, dtype=dtype)[..., 0]
            else:
                values = torch.randn(*shape, generator=self.generator, dtype=dtype)
            return torch.nn.Parameter(values)

        self.weight, self.bias = parameter(10, 5), parameter(10)
        self.input = torch.randn(5, generator=self.generator, dtype=dtype)
        self.params = [self.weight, self.bias]

    def closure(self, optimizer):
        """Return the function that computes the loss and the gradients anew."""

        def compute():
            optimizer.zero_grad()
            loss = (self.weight.mv(self.input) + self.bias).pow(2).sum()
            loss.backward()
            if is_sparse(self.name):
                for param in self.params:
                    param.grad = param.grad.to_sparse()
            return loss

        return compute

    def train(self, optimizer, steps):
        """Make steps and return their losses."""
        return [float(optimizer.step(self.closure(optimizer)).detach()) for _ in range(steps)]
