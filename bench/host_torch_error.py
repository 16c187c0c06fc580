"""Distance of adamas.torch, and of torch's own forms, from an exact run of 1000 steps.

    python bench/host_torch_error.py [--steps 1000] [--size 4099]

The exact run is Kingma and Ba's formula in NumPy's longdouble (64 bits of mantissa on x86-64), from
the same start and the same gradients, which were rounded to the type beforehand. A distance is the
mean over all elements, in parts of the mean distance that the exact run has moved a parameter from
its start; that of a moment in parts of the mean of the exact moment.
"""

import argparse

import numpy as np
import torch

import adamas.torch

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SINGLE = {"foreach": False, "fused": False}
BETAS = (0.9, 0.999)
EPS = 1e-8
RATE = 0.001
# Name: whose classes, options, and what they are tried with; None is everything.
FORMS = {
    "adamas": (adamas.torch, {}, None),
    "adamas, master weights": (
        adamas.torch,
        {"master_weights": True},
        (torch.bfloat16, torch.float16),
    ),
    "adamas, bfloat16 moments": (adamas.torch, {"state_dtype": "bfloat16"}, TYPES[1:]),
    "torch, single tensor": (torch.optim, SINGLE, None),
    "torch, foreach": (torch.optim, {"foreach": True}, None),
    "torch, fused": (torch.optim, {"fused": True}, None),
}
# Name: class, options, and those of the exact run.
RULES = {
    "AdamW": ("AdamW", {"weight_decay": 0.01}),
    "Adam, L2, AMSGrad": ("Adam", {"weight_decay": 0.01, "amsgrad": True}),
}


class Exact:
    """The run that the others are compared with."""

    def __init__(self, start, name, *, weight_decay, amsgrad=False):
        self.param = np.array(start.double().numpy(), np.longdouble)
        self.moment1, self.moment2 = np.zeros_like(self.param), np.zeros_like(self.param)
        self.vhat = np.zeros_like(self.param) if amsgrad else None
        self.is_decoupled, self.weight_decay = name == "AdamW", np.longdouble(weight_decay)
        self.t = 0

    def step(self, grad):
        """Take a gradient in its own type."""
        self.t += 1
        grad = grad.double().numpy().astype(np.longdouble)
        beta1, beta2 = map(np.longdouble, BETAS)
        if self.is_decoupled:
            self.param *= 1 - np.longdouble(RATE) * self.weight_decay
        else:
            grad = grad + self.weight_decay * self.param
        self.moment1 = beta1 * self.moment1 + (1 - beta1) * grad
        self.moment2 = beta2 * self.moment2 + (1 - beta2) * grad**2
        second = self.moment2
        if self.vhat is not None:
            second = self.vhat = np.maximum(self.vhat, second)
        denominator = np.sqrt(second / (1 - beta2**self.t)) + np.longdouble(EPS)
        self.param -= np.longdouble(RATE) / (1 - beta1**self.t) * self.moment1 / denominator


def gradients(size, steps, dtype):
    """Yield gradients whose sizes and signs change, of many sizes among the elements."""
    generator = torch.Generator().manual_seed(1)
    scale = 10 ** (4 * torch.rand(size, generator=generator, dtype=torch.float64) - 3)
    drift = torch.randn(size, generator=generator, dtype=torch.float64) / 2
    for _ in range(steps):
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        yield (scale * (noise + drift)).to(dtype)


def distance(got, wanted, unit):
    """Return the mean distance of a tensor from an array, in units."""
    return float(np.abs(got.double().numpy() - wanted).mean() / unit)


def measure(rule, dtype, size, steps):
    """Yield form and distances: of the parameter, the first and the second moment."""
    name, options = RULES[rule]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    exact = Exact(start, name, **options)
    runs = {}
    for form, (module, more, types) in FORMS.items():
        if types is None or dtype in types:
            param = torch.nn.Parameter(start.clone())
            make = getattr(module, name)
            runs[form] = param, make([param], lr=RATE, betas=BETAS, eps=EPS, **options, **more)
    for grad in gradients(size, steps, dtype):
        exact.step(grad)
        for param, optimizer in runs.values():
            param.grad = grad.clone()
            optimizer.step()
    moved = np.abs(exact.param - start.double().numpy()).mean()
    for form, (param, optimizer) in runs.items():
        state = optimizer.state[param]
        yield (
            form,
            distance(param.detach(), exact.param, moved),
            distance(state["exp_avg"], exact.moment1, np.abs(exact.moment1).mean()),
            distance(state["exp_avg_sq"], exact.moment2, exact.moment2.mean()),
        )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4099)
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, {chosen.steps} steps, {chosen.size} elements")
    print("| rule | type | form | parameter | exp_avg | exp_avg_sq |")
    print("|---|---|---|---|---|---|")
    for rule in RULES:
        for dtype in TYPES:
            for form, *distances in measure(rule, dtype, chosen.size, chosen.steps):
                kind = str(dtype).removeprefix("torch.")
                numbers = " | ".join(f"{one:.1e}" for one in distances)
                print(f"| {rule} | {kind} | {form} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
