"""Random programs over adamas.torch and torch.optim: after each step both have the same.

A program is made of what users do to optimizers between steps: they change options, freeze
and add parameters, move memory, save and load, copy, and reach into the state.
"""

import copy
import io
import random

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_tested import (  # noqa: E402
    assert_close,
    every_class,
    is_sparse,
    kept,
    ours,
    theirs,
)

SHAPES = ((7, 5), (131,), (), (3, 2, 3, 3), (0, 4), (1,), (64, 3))
ROWS = ((7, 5), (131,), (3, 2, 3, 3), (1,), (64, 3))
LENGTH = 40
TOLERANCE = 1e-8


class World:
    """Parameters and their optimizer, of one side; what happens to it is drawn from `random`."""

    def __init__(self, make, name, seed, dtype=torch.float64):
        self.make, self.name = make, name
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes = ROWS if is_sparse(name) else SHAPES
        self.dtype = dtype
        self.params = [self.parameter() for _ in range(5)]
        groups = [
            {"params": self.params[:2], **self.options()},
            {"params": self.params[2:], **self.options()},
        ]
        self.optimizer = make(name, groups)

    def parameter(self):
        shape = self.random.choice(self.shapes)
        values = torch.randn(*shape, 2, generator=self.generator, dtype=self.dtype)[..., 0]
        layout = self.random.randrange(3)
        if layout == 1 or is_sparse(self.name):
            values = values.contiguous()
        elif layout == 2 and len(shape) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return torch.nn.Parameter(values)

    def options(self):
        draw = self.random
        # Torch's sparse sums, old + (new - old), lose all digits where a beta is 0.
        betas = [(0.9, 0.999), (0.5, 0.9), (0.7, 0.8)]
        if not is_sparse(self.name):
            betas += [(0.0, 0.7), (0.8, 0.0)]
        found = {
            "lr": draw.choice([0.01, 0.1, 1, torch.tensor(0.03, dtype=torch.float64)]),
            "betas": draw.choice(betas),
            "eps": draw.choice([1e-8, 1e-3]),
            "maximize": draw.random() < 0.3,
        }
        if not is_sparse(self.name):
            found["weight_decay"] = draw.choice([0, 0.0, 0.1, 1])
            found["amsgrad"] = draw.random() < 0.4
        return found

    # What can happen.

    def set_gradients(self):
        for param in self.params:
            kind = self.random.randrange(6)
            grad = torch.randn(param.shape, generator=self.generator, dtype=self.dtype)
            grad = grad * 10.0 ** self.random.randrange(-4, 3)
            if kind == 0:
                param.grad = None
            elif is_sparse(self.name):
                count = self.random.randrange(0, 2 * param.shape[0] + 1)
                rows = torch.randint(0, param.shape[0], (1, count), generator=self.generator)
                values = grad[rows[0]]
                sparse = torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=True)
                param.grad = sparse.coalesce() if kind == 1 else sparse
            elif kind == 1 and grad.dim():
                param.grad = torch.stack([grad, grad], -1)[..., 0]  # every second item
            elif kind == 2 and grad.dim() > 1:
                param.grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
            elif kind == 3:
                param.grad = grad.sum().expand(param.shape)
            else:
                param.grad = grad.requires_grad_(kind == 4)

    def change_options(self):
        group = self.random.choice(self.optimizer.param_groups)
        drawn = self.options()
        if any(self.optimizer.state.get(param) for param in group["params"]):
            drawn.pop("amsgrad", None)  # torch's has no maximum then
        group.update(drawn)

    def add_group(self):
        options = self.options()
        new = [self.parameter() for _ in range(self.random.randrange(1, 3))]
        self.params = self.params + new
        self.optimizer.add_param_group({"params": new, **options})

    def move_memory(self):
        param = self.random.choice(self.params)
        param.data = param.data.clone(memory_format=torch.preserve_format)

    def move_state(self):
        state = self.optimizer.state.get(self.random.choice(self.params))
        if state:
            key = self.random.choice(["exp_avg", "exp_avg_sq"])
            state[key] = state[key] * 0.5

    def change_state(self):
        state = self.optimizer.state.get(self.random.choice(self.params))
        if state:
            state["exp_avg"].mul_(0.25)

    def forget_state(self):
        kind, param = self.random.randrange(4), self.random.choice(self.params)
        if kind == 0:
            self.optimizer.state.clear()
        elif kind == 1:
            self.optimizer.state.pop(param, None)
        elif kind == 2:
            self.optimizer.state[param] = {}
        elif param in self.optimizer.state:
            del self.optimizer.state[param]

    def set_count(self):
        state = self.optimizer.state.get(self.random.choice(self.params))
        if state:
            if isinstance(state["step"], torch.Tensor):
                state["step"].fill_(3)
            else:
                state["step"] = 3

    def reorder(self):
        group = self.random.choice(self.optimizer.param_groups)
        params = list(group["params"])
        self.random.shuffle(params)
        if self.random.random() < 0.5:
            group["params"] = params
        else:
            group["params"][:] = params

    def take_out(self):
        group = self.random.choice(self.optimizer.param_groups)
        if len(group["params"]) > 1:
            taken = group["params"].pop(self.random.randrange(len(group["params"])))
            other = self.random.choice(self.optimizer.param_groups)
            drops_maximum = other.get("amsgrad") and "max_exp_avg_sq" not in (
                self.optimizer.state.get(taken) or {"max_exp_avg_sq": 0}
            )
            if not drops_maximum:
                other["params"].append(taken)
            else:
                self.optimizer.state.pop(taken, None)
                self.params = [param for param in self.params if param is not taken]

    def save_and_load(self):
        """Within the side, into the optimizer itself or a new one."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        if self.random.random() < 0.5:
            groups = [{"params": list(g["params"])} for g in self.optimizer.param_groups]
            self.optimizer = self.make(self.name, groups)
        self.optimizer.load_state_dict(saved)

    def copy_all(self):
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))

    def freeze(self):
        param = self.random.choice(self.params)
        param.requires_grad_(not param.requires_grad)

    def step_again(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad(set_to_none=self.random.random() < 0.5)
        self.optimizer.step()


ACTIONS = [name for name in vars(World) if not name.startswith("_")]
ACTIONS = [name for name in ACTIONS if name not in ("parameter", "options", "set_gradients")]


def run(worlds, seed, between=None):
    """Do the same in all worlds, and compare after each step; say what was done if they differ."""
    draw = random.Random(seed)
    done = []
    for _ in range(LENGTH):
        for world in worlds:
            world.set_gradients()
            world.optimizer.step()
        chosen = draw.choice(ACTIONS)
        done.append(chosen)
        for world in worlds:
            getattr(world, chosen)()
        if between is not None:
            between(done)
        found = [kept(world.optimizer, world.params) for world in worlds]
        try:
            assert_close(*found, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"after {', '.join(done)}: {error}") from None


SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
@every_class
def test_random_programs(name, seed):
    run([World(make, name, seed) for make in (ours, theirs)], seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
@every_class
def test_many_random_programs(name, seed):
    run([World(make, name, seed) for make in (ours, theirs)], seed)


@pytest.mark.parametrize("seed", SEEDS)
@every_class
def test_random_programs_that_change_sides(name, seed):
    """Now and then each of the two goes on from the state dict of the other."""
    worlds = [World(make, name, seed) for make in (ours, theirs)]

    def swap(done):
        if len(done) % 3 == 0:
            saved = [copy.deepcopy(world.optimizer.state_dict()) for world in worlds]
            for world, other in zip(worlds, reversed(saved), strict=True):
                world.optimizer.load_state_dict(other)

    run(worlds, seed, swap)
