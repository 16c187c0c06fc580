"""What users write, for the type checker; test_stubs.py also runs it."""

import array
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import adamas
from adamas.typing import Array, Gradient, Group, LearningRate, Order, WeightDecay

Float32 = npt.NDArray[np.float32]


class HalvedAfter(adamas.LearningRateSchedule):
    """A schedule of one's own."""

    def __init__(self, first: float, steps: int) -> None:
        self.first = first
        self.steps = steps

    def __call__(self, step: int) -> float:
        return self.first if step < self.steps else self.first / 2


class Growing(adamas.WeightDecaySchedule):
    """A weight decay of one's own."""

    def __call__(self, step: int) -> float:
        return 1e-4 * step


def rates() -> Iterator[float]:
    """A learning rate as an iterator without an end."""
    while True:
        yield 1e-3


def groups(kernel: adamas.Parameter, bias: adamas.Parameter) -> adamas.Adam:
    return adamas.Adam(
        [
            {"params": [kernel], "lr": HalvedAfter(0.1, 2), "grad_centralization": True},
            {"params": (bias,), "weight_decay": Growing(), "lr": adamas.warmup_lr(0.1, 4, 2, 2)},
            {"order_params": [bias, kernel]},
        ],
        learning_rate=adamas.CosineDecayLR(0.0, 1e-3, 10),
        weight_decay=0.01,
        use_nesterov=True,
        decoupled_weight_decay=True,
        state_dtype="bfloat16",
    )


def dense() -> list[float]:
    kernel = adamas.Parameter(np.ones((2, 3, 4), np.float32), name="kernel")
    bias = adamas.Parameter(np.zeros(2, np.float32))
    opt = groups(kernel, bias)
    done: bool = opt((np.ones(2, np.float32), np.ones((2, 3, 4), np.float64)))
    opt.begin_step()
    opt.apply(kernel, np.ones(kernel.shape, kernel.dtype))
    opt.apply(bias, np.ones(bias.shape, np.float16))
    opt.end_step()
    assert done
    step: int = opt.global_step
    opt.global_step = step + 1
    lr = opt.get_lr()
    decay = opt.get_weight_decay()
    one = opt.get_lr_parameter(kernel)
    many = opt.get_lr_parameter([kernel, bias])
    assert isinstance(lr, tuple)
    assert isinstance(decay, tuple)
    assert isinstance(one, float)
    assert isinstance(many, list)
    return [*lr, *decay, one, *many]


def changing(kernel: Float32, bias: Float32) -> list[float]:
    """Arrays by name, and rates that are set between steps."""
    opt = adamas.Adam({"dense": {"kernel": kernel, "bias": bias}}, learning_rate=0.1)
    opt({"dense": {"kernel": np.ones_like(kernel), "bias": np.ones_like(bias)}})
    rate: LearningRate = opt.learning_rate
    opt.learning_rate = adamas.CosineDecayLR(0.0, 0.1, 10)
    opt.weight_decay = 0.01
    for group in opt.groups:
        group.lr = rate
        group.weight_decay = Growing()
        members: list[adamas.Parameter] = group.parameters
        assert len(members) == 2
        assert not group.grad_centralization
        group.beta1, group.use_nesterov, group.max_grad_norm = 0.8, True, None
    opt.eps = 2 * opt.eps
    opt.steps = [step + 1 for step in opt.steps]
    opt([None, np.ones_like(bias)])
    opt.add({"params": {"late": np.ones(3, np.float32)}, "lr": 0.1, "beta1": 0.7})
    opt.add(np.ones(2, np.float32))
    opt({"late": np.ones(3, np.float32)})
    assert len(opt) == 4
    assert opt.summary()
    opt = copy.deepcopy(opt)
    opt({"dense.kernel": np.ones_like(kernel)})
    return [float(kernel.sum()), float(bias.sum())]


def sparse(table: Float32) -> float:
    opt = adamas.Adam([adamas.Parameter(table, "table")], rates(), use_lazy=True, max_grad_norm=1.0)
    rows = adamas.RowTensor(np.array([1, 3, 1]), np.ones((3, 2), np.float32), table.shape)
    opt.step([rows])
    moments = [*opt.moment1, *opt.moment2, *opt.vhat]
    return opt.last_grad_norm + float(sum(moment.sum() for moment in moments))


def scaled(managers: "list[adamas.DynamicLossScaleManager | adamas.FixedLossScaleManager]") -> int:
    weight = np.ones(5, np.float16)
    opt = adamas.AdamWeightDecay([adamas.Parameter(weight)], np.array([0.1, 0.01]))
    strict = adamas.Adam([adamas.Parameter(weight)], skip_nonfinite=True, master_weights=True)
    for manager in managers:
        strict.loss_scale = manager.get_loss_scale()
        grads = [np.full(5, np.inf, np.float16)]
        strict(grads)
        manager.update_loss_scale(strict.last_step_skipped)
        if adamas.all_finite(grads):
            opt(grads)
    masters = [master for master in strict.master_weights if master is not None]
    assert len(masters) == 1
    return strict.skipped_steps


class Tensor:
    """An array of a library of one's own."""

    def __init__(self, values: Float32) -> None:
        self._memory = values

    def __dlpack__(self, *, stream: int | None = None, copy: bool | None = None) -> Any:
        return self._memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def named(name: str, data: Array) -> Group:
    """A group in a function of one's own."""
    return {"params": [adamas.Parameter(data, name=name)], "lr": 0.1}


def foreign() -> int:
    """Arrays, gradients and rates in all their forms."""
    scalar = adamas.Parameter(np.zeros((), np.float32))
    listed: list[Group | Order] = [named("a", array.array("f", [1.0])), {"params": iter([scalar])}]
    learning_rates: list[LearningRate] = [1, np.float32(0.1), [1, 0.5], np.ones(3), iter([0.5])]
    decays: list[WeightDecay] = [0, np.float64(0.1), lambda step: 0.1 / (1 + step), Growing()]
    grads: list[Sequence[Gradient]] = [
        [array.array("f", [1.0]), np.float32(1.0)],
        [Tensor(np.ones(1, np.float32)), np.ones((), np.float16)],
        (adamas.RowTensor(np.array([0]), np.ones(1, np.float32), [1]), np.float64(1.0)),
    ]
    optimizers = [adamas.Adam(listed, rate) for rate in learning_rates[:1]]
    optimizers += [adamas.Adam([scalar], rate) for rate in learning_rates]
    optimizers += [adamas.Adam((p for p in [scalar]), weight_decay=decay) for decay in decays]
    step_all(optimizers[:1], grads)
    step_all(optimizers[1:], [[np.float32(1.0)]])
    return sum(opt.global_step for opt in optimizers)


def step_all(optimizers: list[adamas.Adam], grads: Sequence[Sequence[Gradient]]) -> None:
    for opt in optimizers:
        for grad in grads:
            opt(grad)


if __name__ == "__main__":
    print(foreign())
    print(changing(np.ones((2, 3), np.float32), np.ones(2, np.float32)))
    print(dense(), sparse(np.ones((5, 2), np.float32)), adamas.__version__)
    print(scaled([adamas.DynamicLossScaleManager(2**10), adamas.FixedLossScaleManager(8.0)]))
