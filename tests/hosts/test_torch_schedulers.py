"""Every scheduler of torch.optim.lr_scheduler over adamas.torch's optimizers, and averaged weights.

Each sets rates, and some set betas, before every step; what the steps have made of them is compared
with torch's single-tensor form under an equal scheduler, and so is what the groups say.
"""

import copy
import inspect
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim import lr_scheduler, swa_utils  # noqa: E402
from torch_tested import (  # noqa: E402
    Problem,
    assert_close,
    every_class,
    every_dense_class,
    is_sparse,
    kept,
    ours,
    theirs,
)

STEPS = 24


def one_by_one(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    second = lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    third = lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
    return lr_scheduler.SequentialLR(optimizer, [first, second, third], milestones=[5, 13])


def chained(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, gamma=0.9)])


def cyclic(optimizer, **options):
    return lr_scheduler.CyclicLR(optimizer, 1e-3, 0.05, step_size_up=4, **options)


# By the class that is made; each of an optimizer with two groups.
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (1 + e)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=5, gamma=0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 10], gamma=0.4),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.3, total_iters=6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.85),
    "SequentialLR": one_by_one,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20, power=1.7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=7, eta_min=1e-4),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.5, patience=1, threshold=0.3
    ),
    "CyclicLR": lambda o: cyclic(o, base_momentum=0.6, max_momentum=0.95),
    "CyclicLR, triangular2": lambda o: cyclic(o, mode="triangular2"),
    "CyclicLR, exp_range, of rates alone": lambda o: cyclic(
        o, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.05, 0.02], total_steps=STEPS + 1),
    "OneCycleLR, linear, three phases": lambda o: lr_scheduler.OneCycleLR(
        o, 0.05, total_steps=STEPS + 1, anneal_strategy="linear", three_phase=True
    ),
    "OneCycleLR, of rates alone": lambda o: lr_scheduler.OneCycleLR(
        o, 0.05, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=[0.001, 0.01], anneal_epochs=6),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)
SETS_BETAS = [
    name for name in SCHEDULERS if name.startswith(("Cyclic", "OneCycle")) and "alone" not in name
]


def made(make, name, problem, rate=0.02, **options):
    groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": copy.copy(rate) * 2}]
    if not is_sparse(name):
        options = {"weight_decay": 0.03, **options}
    return make(name, groups, lr=rate, betas=(0.8, 0.95), **options)


def options_of(optimizer):
    return [(float(group["lr"]), *map(float, group["betas"])) for group in optimizer.param_groups]


def advance(scheduler, loss):
    is_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    with warnings.catch_warnings():
        # SequentialLR itself calls step() as it advises against.
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        scheduler.step(*([loss] if is_plateau else []))


def of_both(name, scheduler):
    problems = [Problem(name, dtype=torch.float64) for _ in range(2)]
    optimizers = [
        made(make, name, problem) for make, problem in zip((ours, theirs), problems, strict=True)
    ]
    return problems, optimizers, [SCHEDULERS[scheduler](one) for one in optimizers]


def test_all_schedulers_are_here():
    here = {name.split(",")[0] for name in SCHEDULERS}
    bases = {"LRScheduler", "_LRScheduler"}
    there = {
        name
        for name, found in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(found, lr_scheduler.LRScheduler) and name not in bases
    }
    assert here == there | {"SWALR"}


@every_scheduler
@every_class
def test_trajectory(name, scheduler):
    problems, optimizers, schedulers = of_both(name, scheduler)
    seen = []
    for _ in range(STEPS):
        losses = [p.train(o, 1)[0] for p, o in zip(problems, optimizers, strict=True)]
        for one in schedulers:
            advance(one, losses[1])
        found = [kept(*pair) for pair in zip(optimizers, [p.params for p in problems], strict=True)]
        assert_close(*found, 1e-12)
        assert options_of(optimizers[0]) == options_of(optimizers[1])
        seen.append(options_of(optimizers[0]))
    assert len({options[0][0] for options in seen}) > 1  # else it tests nothing
    changes_betas = len({options[0][1] for options in seen}) > 1
    assert changes_betas == (scheduler in SETS_BETAS)


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "LambdaLR"])
@every_class
def test_resumed_run(name, scheduler):
    """Scheduler and optimizer are saved on the way, and go on in new ones, to the bit.

    Functions, and so LambdaLR's, are not in the state of a scheduler.
    """
    problem = Problem(name)
    optimizer = made(ours, name, problem)
    first = SCHEDULERS[scheduler](optimizer)
    for _ in range(9):
        advance(first, problem.train(optimizer, 1)[0])
    other = copy.deepcopy(problem)
    resumed = made(ours, name, other)
    second = SCHEDULERS[scheduler](resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(9):
        advance(first, problem.train(optimizer, 1)[0])
        advance(second, other.train(resumed, 1)[0])
        found = [kept(optimizer, problem.params), kept(resumed, other.params)]
        assert_close(*found, 0)
        assert options_of(optimizer) == options_of(resumed)


@every_scheduler
@every_class
def test_tensors_as_rates(name, scheduler):
    """Schedulers write into the tensor that the group holds."""
    problems = [Problem(name) for _ in range(2)]
    rates = (torch.tensor(0.02, dtype=torch.float64), 0.02)
    optimizers = [made(ours, name, p, rate) for p, rate in zip(problems, rates, strict=True)]
    held = [group["lr"] for group in optimizers[0].param_groups]
    schedulers = [SCHEDULERS[scheduler](one) for one in optimizers]
    for _ in range(STEPS):
        losses = [p.train(o, 1)[0] for p, o in zip(problems, optimizers, strict=True)]
        for one in schedulers:
            advance(one, losses[1])
        found = [kept(*pair) for pair in zip(optimizers, [p.params for p in problems], strict=True)]
        assert_close(*found, 1e-5)
    for group, tensor in zip(optimizers[0].param_groups, held, strict=True):
        assert group["lr"] is tensor


@every_class
def test_scheduler_warns_of_the_wrong_order(name):
    """Which it knows from the step that it has wrapped; in the right order it is silent."""
    problem = Problem(name)
    optimizer = made(ours, name, problem)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="lr_scheduler.step.* before `optimizer.step"):
        scheduler.step()
    optimizer = made(ours, name, problem)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            problem.train(optimizer, 1)
            scheduler.step()


@every_class
def test_scheduled_optimizer_is_copied_and_printed(name):
    """The scheduler has put its wrapper around the step of this one object."""
    problem = Problem(name)
    optimizer = made(ours, name, problem)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    problem.train(optimizer, 1)
    scheduler.step()
    assert "initial_lr: 0.02" in repr(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(problem)
    again = made(ours, name, other)
    again.load_state_dict(saved)
    assert [group["lr"] for group in again.param_groups] == [0.01, 0.02]
    assert other.train(again, 2) == problem.train(optimizer, 2)


# --------------------------------------------------------------------------------- averaged weights


def network(seed=0):
    """Return a model; a bias before the batch norm would be moved by rounding errors alone."""
    torch.manual_seed(seed)
    layers = [
        torch.nn.Linear(4, 8, bias=False),
        torch.nn.BatchNorm1d(8),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 1),
    ]
    return torch.nn.Sequential(*layers)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = torch.randn(16, 4, generator=generator)
        yield inputs, inputs.sum(1, keepdim=True).sin()


AVERAGES = {
    "equal": {},
    "exponential": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "with buffers": {"use_buffers": True},
}


@pytest.mark.parametrize("average", AVERAGES)
@every_dense_class
def test_averaged_models(name, average):
    """torch.optim.swa_utils: averages of the weights, their scheduler, and batch norms after."""
    averages, losses = [], []
    for make in (ours, theirs):
        model = network()
        optimizer = make(name, model.parameters(), lr=0.02, weight_decay=0.03)
        averaged = swa_utils.AveragedModel(model, **AVERAGES[average])
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        swa_scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=5)
        for step, (inputs, targets) in enumerate(batches(30)):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if step > 10:
                averaged.update_parameters(model)
                swa_scheduler.step()
            else:
                scheduler.step()
        swa_utils.update_bn(batches(3), averaged)
        averages.append([tensor.detach().clone() for tensor in averaged.state_dict().values()])
    torch.testing.assert_close(losses[:30], losses[30:], rtol=1e-4, atol=1e-5)
    assert losses[29] < losses[0]
    torch.testing.assert_close(*averages, rtol=1e-4, atol=1e-4)
