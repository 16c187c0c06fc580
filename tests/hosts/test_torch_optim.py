"""adamas.torch by what torch's own tests of optimizers are made from, in the installed wheel.

`torch.testing._internal.common_optimizers` describes every optimizer of torch's: with which options
it must work (``optim_inputs_func``), which calls it must refuse in which words
(``optim_error_inputs_func``), and what it supports. Here the same entries describe our classes.
"""

import copy
import inspect
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("expecttest", reason="expecttest, which torch's tests need, is not installed")

from torch.testing._internal import common_optimizers  # noqa: E402
from torch_tested import (  # noqa: E402
    IS_STAND_IN,
    NAMES,
    TOLERANCE,
    Problem,
    as_gradient,
    assert_close,
    every_class,
    every_dense_class,
    is_sparse,
    kept,
    ours,
    ours_only,
    tested,
    theirs,
)

# The import forbids setting torch.backends' flags, which other tests' programs do.
torch.backends.__allow_nonbracketed_mutation_flag = True

CPU = torch.device("cpu")
STEPS = 20


def entry(name):
    """Return torch's description of its class, now of ours."""
    of_torch = getattr(torch.optim, name)
    info = copy.copy(next(e for e in common_optimizers.optim_db if e.optim_cls is of_torch))
    info.optim_cls = getattr(tested, name)
    info.supported_impls = tuple(i for i in info.supported_impls if i != "differentiable")
    return info


OPTIM_DB = [entry(name) for name in NAMES]


def inputs(dtype=None):
    """Return (name, input) for all options that torch's tests try, foreach and fused included."""
    for info in OPTIM_DB:
        of_all = common_optimizers._get_optim_inputs_including_global_cliquey_kwargs
        found = of_all(CPU, dtype, info)
        # foreach=True is tried on devices only: torch has no such kernels for the CPU.
        if "foreach" in info.supported_impls:
            for one in info.optim_inputs_func(CPU, dtype):
                options = {**one.kwargs, "foreach": True}
                found.append(
                    common_optimizers.OptimizerInput(None, options, f"{one.desc} & foreach")
                )
        for one in found:
            yield pytest.param(info.name, one.kwargs, id=f"{info.name}-{one.desc}")


def error_inputs():
    for info in OPTIM_DB:
        for one in info.optim_error_inputs_func("cpu", torch.float32):
            described = one.optimizer_error_input.desc
            yield pytest.param(info.name, one, id=f"{info.name}-{described}")


every_input = pytest.mark.parametrize(("name", "options"), list(inputs()))
every_dense_input = pytest.mark.parametrize(
    ("name", "options"), [one for one in inputs() if one.values[0] != "SparseAdam"]
)


def plainly(options):
    """Return the options for torch's single-tensor form; tensors as rates are rounded there."""
    plain = {k: v for k, v in options.items() if k not in ("foreach", "fused")}
    return {**plain, "lr": float(plain.get("lr", 0.001))}


def test_torchs_list_describes_our_classes():
    assert [info.optim_cls for info in OPTIM_DB] == [getattr(tested, name) for name in NAMES]
    for info in OPTIM_DB:
        assert issubclass(info.optim_cls, torch.optim.Optimizer)
        for one in info.optim_inputs_func(CPU):
            assert not {"foreach", "fused", "differentiable"}.intersection(one.kwargs)


@every_class
def test_constructors_take_what_torchs_take(name):
    """In the same order and with the same defaults; what is added is keyword-only."""
    ours_ = inspect.signature(getattr(tested, name)).parameters
    theirs_ = inspect.signature(getattr(torch.optim, name)).parameters
    for key, parameter in theirs_.items():
        assert ours_[key].kind is parameter.kind, key
        assert ours_[key].default == parameter.default, key
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert [k for k in ours_ if ours_[k].kind is positional] == [
        k for k in theirs_ if theirs_[k].kind is positional
    ]
    added = set(ours_) - set(theirs_)
    assert {ours_[k].kind for k in added} <= {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(("name", "error"), list(error_inputs()))
def test_refusals_in_torchs_words(name, error):
    given = error.optimizer_error_input

    def make(of):
        params = given.params
        if params is None:
            params = [torch.nn.Parameter(torch.ones(1, 2))]
        elif not isinstance(params, torch.Tensor):
            params = [dict(one) if isinstance(one, dict) else one for one in params]
        return of(params, **copy.deepcopy(given.kwargs))

    assert error.error_on is common_optimizers.OptimizerErrorEnum.CONSTRUCTION_ERROR
    words = []
    for of in (getattr(torch.optim, name), getattr(tested, name)):
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex) as caught:
                make(of)
            words.append([str(one.message) for one in caught])
        else:
            with pytest.raises(error.error_type, match=error.error_regex) as raised:
                make(of)
            words.append(str(raised.value))
    assert words[0] == words[1]


BAD_OPTIONS = [
    {"lr": -0.1},
    {"lr": float("nan")},
    {"lr": torch.ones(2)},
    {"eps": -1e-8},
    {"betas": (0.9, 1.0)},
    {"betas": (-0.1, 0.9)},
    {"weight_decay": -0.1},
    {"foreach": True, "fused": True},
    {"fused": True, "differentiable": True},
    {"betas": (torch.ones(2) / 2, torch.tensor(0.9))},
    {"betas": (torch.tensor(0.5), torch.ones(2) / 2)},
]


@every_class
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_more_refusals_in_torchs_words(name, options):
    if is_sparse(name) and not {"lr", "eps", "betas"}.issuperset(options):
        options = {"betas": (0.9, -0.5)}
    words = []
    for of in (getattr(torch.optim, name), getattr(tested, name)):
        with pytest.raises((ValueError, RuntimeError)) as raised:
            of([torch.nn.Parameter(torch.ones(2))], **options)
        words.append((raised.type, str(raised.value)))
    assert words[0] == words[1]


@every_class
def test_bad_parameters_in_torchs_words(name):
    leaf = torch.nn.Parameter(torch.ones(2))
    for params in ([], {leaf}, [leaf * 2], [3.0], [{"params": {leaf}}], [{"params": [None]}]):
        words = []
        for of in (getattr(torch.optim, name), getattr(tested, name)):
            given = [dict(one) if isinstance(one, dict) else one for one in params]
            if isinstance(params, set):
                given = {"params": params}
                optimizer = of([leaf])
                with pytest.raises(TypeError) as raised:
                    optimizer.add_param_group(given)
            else:
                with pytest.raises((TypeError, ValueError)) as raised:
                    of(given)
            words.append((raised.type, str(raised.value)))
        assert words[0] == words[1]


@ours_only
@every_dense_class
@pytest.mark.parametrize("flag", ["capturable", "differentiable"])
def test_what_is_refused_is_named(name, flag):
    """In the constructor, and where a group or a state dict brings it later."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    with pytest.raises((ValueError, RuntimeError), match=flag):
        ours(name, [param], **{flag: True})
    optimizer = ours(name, [param])
    optimizer.step()
    before = kept(optimizer, [param])
    optimizer.param_groups[0][flag] = True
    with pytest.raises((ValueError, RuntimeError), match=flag):
        optimizer.step()
    assert_close(kept(optimizer, [param]), before, 0)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("is_strided", [False, True], ids=["dense", "strided"])
@every_input
def test_trajectory(name, options, dtype, is_strided):
    """Parameters and state after each of the steps, beside torch's single-tensor form."""
    if IS_STAND_IN and is_strided and options.get("fused"):
        pytest.skip("torch's own fused form takes strided parameters on the CPU for dense ones")
    problems = [Problem(name, dtype=dtype, is_strided=is_strided) for _ in range(2)]
    made = [ours(name, problems[0].params, **copy.deepcopy(options))]
    made += [theirs(name, problems[1].params, **plainly(options))]
    rounds = IS_STAND_IN and isinstance(options.get("lr"), torch.Tensor)
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        for i in range(2):
            dense = torch.randn(problems[0].params[i].shape, generator=generator, dtype=dtype)
            grad = as_gradient(name, dense * 10.0 ** (step % 4 - 2), generator)
            for problem in problems:
                problem.params[i].grad = grad.clone()
        for one in made:
            one.step()
        found = [kept(*pair) for pair in zip(made, [p.params for p in problems], strict=True)]
        assert_close(*found, 1e-7 if rounds else TOLERANCE[dtype])


@ours_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_input
def test_trajectory_of_short_types(name, options, dtype):
    """That of torch in float32, had each step rounded the parameters once."""
    start = [param.detach() for param in Problem(name, dtype=dtype).params]
    short = [torch.nn.Parameter(param.clone()) for param in start]
    long = [torch.nn.Parameter(param.float()) for param in start]
    made = [ours(name, short, **copy.deepcopy(options)), theirs(name, long, **plainly(options))]
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        for one, other in zip(short, long, strict=True):
            dense = torch.randn(one.shape, generator=generator).to(dtype)
            one.grad = as_gradient(name, dense, generator)
            other.grad = one.grad.float()
        for optimizer in made:
            optimizer.step()
        for one, other in zip(short, long, strict=True):
            rounded = other.detach().to(dtype)
            assert (one == rounded).sum() >= 0.9 * one.numel()  # else a tie of the two sums
            torch.testing.assert_close(one.detach(), rounded, rtol=torch.finfo(dtype).eps, atol=0)
            with torch.no_grad():
                other.copy_(one)
    for one, other in zip(short, long, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert made[0].state[one][key].dtype is torch.float32
            torch.testing.assert_close(
                made[0].state[one][key], made[1].state[other][key], rtol=1e-5, atol=1e-6
            )


def schedulers(name):
    return next(info for info in OPTIM_DB if info.name == name).scheduler_inputs


@pytest.mark.parametrize("is_strided", [False, True], ids=["dense", "strided"])
@pytest.mark.parametrize("with_schedulers", [False, True], ids=["", "scheduled"])
@every_input
def test_goes_in_the_right_direction(name, options, with_schedulers, is_strided):
    if IS_STAND_IN and is_strided and options.get("fused"):
        pytest.skip("torch's own fused form takes strided parameters on the CPU for dense ones")
    for constructors in schedulers(name) if with_schedulers else [()]:
        problem = Problem(name, is_strided=is_strided)
        optimizer = ours(name, problem.params, **copy.deepcopy(options))
        made = [construct(optimizer) for construct in constructors]
        losses = []
        for _ in range(STEPS):
            loss = optimizer.step(problem.closure(optimizer))
            losses.append(float(loss.detach()))
            for one in made:
                plateau = isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau)
                one.step(*([loss.detach()] if plateau else []))
        assert (losses[-1] > losses[0]) == options.get("maximize", False)


@pytest.mark.parametrize("with_schedulers", [False, True], ids=["", "scheduled"])
@every_input
def test_groups_go_in_the_right_direction(name, options, with_schedulers):
    """The bias has a learning rate of its own."""
    for constructors in schedulers(name) if with_schedulers else [()]:
        problem = Problem(name)
        groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.01}]
        optimizer = ours(name, groups, **copy.deepcopy(options))
        made = [construct(optimizer) for construct in constructors]
        losses = []
        for _ in range(STEPS):
            losses.append(float(optimizer.step(problem.closure(optimizer)).detach()))
            for one in made:
                plateau = isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau)
                one.step(*([losses[-1]] if plateau else []))
        assert (losses[-1] > losses[0]) == options.get("maximize", False)


@pytest.mark.parametrize("dims", [0, 1, 2])
@every_class
def test_tensor_as_learning_rate(name, dims):
    """It is read in every step, and the same tensor stays in the group."""
    problems = [Problem(name) for _ in range(2)]
    rate = torch.full((1,) * dims, 0.02)
    made = [ours(name, problems[0].params, lr=rate), theirs(name, problems[1].params, lr=0.02)]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(made[0], gamma=0.8)
    for step in range(STEPS):
        made[1].param_groups[0]["lr"] = 0.02 * 0.8**step
        for problem, one in zip(problems, made, strict=True):
            problem.train(one, 1)
        scheduler.step()
        assert made[0].param_groups[0]["lr"] is rate
        found = [kept(*pair) for pair in zip(made, [p.params for p in problems], strict=True)]
        assert_close(*found, 1e-4)
    torch.testing.assert_close(rate, torch.full((1,) * dims, 0.02 * 0.8**STEPS))


@pytest.mark.parametrize("dims", [0, 1, 2])
@every_dense_class
def test_tensors_as_betas(name, dims):
    problems = [Problem(name, dtype=torch.float64) for _ in range(2)]
    betas = [torch.full((1,) * dims, value, dtype=torch.float64) for value in (0.7, 0.98)]
    made = [ours(name, problems[0].params, betas=tuple(betas), lr=0.02)]
    made += [theirs(name, problems[1].params, betas=(0.7, 0.98), lr=0.02)]
    for step in range(STEPS):
        for one in made if step == 7 else ():  # betas are read in every step
            beta1 = torch.tensor(0.8, dtype=torch.float64) if one is made[0] else 0.8
            one.param_groups[0]["betas"] = (beta1, one.param_groups[0]["betas"][1])
        for problem, one in zip(problems, made, strict=True):
            problem.train(one, 1)
    found = [kept(*pair) for pair in zip(made, [p.params for p in problems], strict=True)]
    assert_close(*found, 1e-13)


@every_class
def test_learning_rates_of_groups(name):
    """A group of lr 0 stands still, as SparseAdam's of 1e-30 does."""
    problem = Problem(name)
    still = 1e-30 if is_sparse(name) else 0.0
    options = {} if is_sparse(name) else {"weight_decay": 0.0}
    groups = [{"params": [problem.weight], "lr": still}, {"params": [problem.bias]}]
    optimizer = ours(name, groups, lr=0.02, **options)
    before = [param.detach().clone() for param in problem.params]
    losses = problem.train(optimizer, STEPS)
    assert losses[-1] < losses[0]
    assert torch.equal(problem.weight, before[0])
    assert (problem.bias != before[1]).all()


@every_dense_class
def test_weight_decay_of_groups(name):
    """Weights decay where the group says so, with gradients of zero."""
    params = [torch.nn.Parameter(torch.randn(7, 3)) for _ in range(2)]
    groups = [{"params": [params[0]], "weight_decay": 0.5}, {"params": [params[1]]}]
    optimizer = ours(name, groups, lr=0.01, weight_decay=0.0)
    before = [param.detach().clone() for param in params]
    for _ in range(STEPS):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert (params[0].abs() < before[0].abs()).all()
    assert torch.equal(params[1], before[1])


@every_input
def test_without_gradients_nothing_happens(name, options):
    param = torch.nn.Parameter(torch.randn(2, 3), requires_grad=False)
    before = param.detach().clone()
    optimizer = ours(name, [param], **copy.deepcopy(options))
    optimizer.step()
    assert torch.equal(param, before)
    assert not optimizer.state


@every_input
def test_zero_gradients_move_nothing(name, options):
    """But for the weight decay."""
    if name == "AdamW" and "weight_decay" not in options:
        options = {**options, "weight_decay": 0.0}
    decays = options.get("weight_decay", 0.0) != 0.0
    param = torch.nn.Parameter(torch.randn(5, 3))
    before = param.detach().clone()
    optimizer = ours(name, [param], **copy.deepcopy(options))
    zeros = torch.zeros(5, 3)
    param.grad = zeros.to_sparse() if is_sparse(name) else zeros
    optimizer.step()
    assert torch.equal(param, before) != decays
    assert int(optimizer.state[param]["step"]) == 1


@every_input
def test_state_is_not_empty_after_a_step(name, options):
    problem = Problem(name)
    optimizer = ours(name, problem.params, **copy.deepcopy(options))
    problem.train(optimizer, 1)
    for param in problem.params:
        assert set(optimizer.state[param]) >= {"step", "exp_avg", "exp_avg_sq"}
        assert ("max_exp_avg_sq" in optimizer.state[param]) == options.get("amsgrad", False)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@every_dense_input
def test_complex_numbers_are_pairs(name, options, dtype):
    """With fused=True as well, which torch's takes for real numbers only."""
    if IS_STAND_IN and options.get("fused"):
        pytest.skip("torch's own fused form takes no complex parameters")
    values = torch.randn(5, 3, dtype=dtype)
    whole = torch.nn.Parameter(values.clone())
    pairs = torch.nn.Parameter(torch.view_as_real(values).clone())
    made = [ours(name, [param], **copy.deepcopy(options)) for param in (whole, pairs)]
    tolerance = 1e-6 if IS_STAND_IN else 0
    for _ in range(3):
        whole.grad = torch.randn_like(whole)
        pairs.grad = torch.view_as_real(whole.grad).clone()
        for one in made:
            one.step()
        got, wanted = kept(made[0], [whole]), kept(made[1], [pairs])
        for key, value in wanted.items():
            if not key.startswith("step"):
                assert got[key].dtype is dtype
                got[key] = torch.view_as_real(got[key])
            torch.testing.assert_close(got[key], value, rtol=tolerance, atol=tolerance)


@every_dense_class
def test_complex_rosenbrock(name):
    """Beside the real and imaginary parts as parameters of their own."""
    whole = torch.randn(2, dtype=torch.complex64, requires_grad=True)
    parts = [part.detach().clone().requires_grad_() for part in (whole.real, whole.imag)]
    made = [ours(name, [whole], lr=0.01), ours(name, parts, lr=0.01)]

    def rosenbrock(z):
        x, y = z
        return ((1 - x) ** 2 + 100 * (y - x**2) ** 2).abs()

    for _ in range(10):
        for one in made:
            one.zero_grad()
        rosenbrock(whole).backward()
        rosenbrock(torch.complex(*parts)).backward()
        torch.testing.assert_close(whole.grad, torch.complex(*[p.grad for p in parts]))
        for one in made:
            one.step()
        torch.testing.assert_close(whole.detach(), torch.complex(*[p.detach() for p in parts]))


@pytest.mark.parametrize("maximize", [False, True])
def test_sparse_rosenbrock(maximize):
    """One coordinate after the other, each in a gradient that lists it twice."""
    start = torch.tensor([1.5, 1.5])
    param = torch.nn.Parameter(start.clone())
    optimizer = ours("SparseAdam", [param], lr=0.04, maximize=maximize)

    def rosenbrock(xy):
        return (1 - xy[0]) ** 2 + 100 * (xy[1] - xy[0] ** 2) ** 2

    for i in range(200):
        optimizer.zero_grad()
        rosenbrock(param).backward()
        share = float(param.grad[i % 2])
        values = torch.tensor([share / 4, share - share / 4])
        index = [[i % 2, i % 2]]
        param.grad = torch.sparse_coo_tensor(index, values, (2,), check_invariants=True)
        optimizer.step()
    if maximize:
        assert rosenbrock(param) > rosenbrock(start)
    else:
        assert param.detach().dist(torch.ones(2)) < start.dist(torch.ones(2))


@every_class
def test_wrong_layout_of_gradients(name):
    """In torch's words, and nothing has changed, of the other parameter neither."""
    words = []
    for of in (getattr(torch.optim, name), getattr(tested, name)):
        params = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
        optimizer = of(params)
        for param in params:
            param.grad = as_gradient(name, torch.ones(3, 2))
        optimizer.step()
        before = kept(optimizer, params)
        bad = torch.ones(3, 2)
        params[1].grad = bad if is_sparse(name) else bad.to_sparse()
        with pytest.raises(RuntimeError) as raised:
            optimizer.step()
        words.append(str(raised.value))
        if of is getattr(tested, name) and not IS_STAND_IN:
            assert_close(kept(optimizer, params), before, 0)
    assert words[0] == words[1]


@every_class
def test_duplicate_parameters(name):
    """Torch warns, and then steps twice; a step here refuses that and changes nothing."""
    runs = []
    for of in (getattr(torch.optim, name), getattr(tested, name)):
        param = torch.nn.Parameter(torch.ones(3, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = of([param, param], lr=0.1)
        param.grad = as_gradient(name, torch.full((3, 2), 0.5), torch.Generator().manual_seed(0))
        if of is getattr(tested, name) and not IS_STAND_IN:
            with pytest.raises(ValueError, match=r"must not have a parameter twice"):
                optimizer.step()
            assert torch.equal(param, torch.ones(3, 2))
            return
        optimizer.step()
        runs.append(kept(optimizer, [param]))
    assert_close(*runs, 1e-6)
