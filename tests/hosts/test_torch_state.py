"""State dicts and copies of adamas.torch's optimizers, and the hooks around them and the steps."""

import collections
import copy
import gc
import io
import pickle
import weakref
from multiprocessing.reduction import ForkingPickler

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_tested import (  # noqa: E402
    IS_STAND_IN,
    Problem,
    assert_close,
    assert_same,
    every_class,
    every_dense_class,
    is_sparse,
    kept,
    ours,
    ours_only,
    tested,
    theirs,
)

OPTIONS = {"lr": 0.013, "betas": (0.8, 0.95), "eps": 1e-6}


def options_of(name):
    more = {} if is_sparse(name) else {"weight_decay": 0.03, "amsgrad": True}
    return {**OPTIONS, **more}


def trained(name, steps=7, **options):
    """Return a problem and its optimizer after a few steps."""
    problem = Problem(name)
    groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.02}]
    optimizer = ours(name, groups, **{**options_of(name), **options})
    problem.train(optimizer, steps)
    return problem, optimizer


def twin(problem, make):
    """Return a problem of equal parameters, and the optimizer that is made of its groups."""
    other = copy.deepcopy(problem)
    groups = [{"params": [other.weight]}, {"params": [other.bias], "lr": 0.1}]
    return other, make(groups)


def assert_go_on_alike(one, other, tolerance=0):
    """Train both pairs of problem and optimizer; compare losses, parameters and state."""
    for _ in range(5):
        losses = [problem.train(optimizer, 1) for problem, optimizer in (one, other)]
        torch.testing.assert_close(*losses, rtol=tolerance, atol=tolerance)
    found = [kept(optimizer, problem.params) for problem, optimizer in (one, other)]
    assert_close(*found, tolerance)


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS = {
    "as it is": lambda state_dict: state_dict,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state_dict: pickle.loads(pickle.dumps(state_dict)),  # noqa: S301
    "torch.save": through_a_file,
}


@pytest.mark.parametrize("way", WAYS)
@every_class
def test_loaded_state_goes_on_alike(name, way):
    """To the bit, and what was loaded is not changed by it, nor shared."""
    if IS_STAND_IN and way == "as it is":
        pytest.skip("torch's own optimizers take the tensors that are loaded, and share them")
    problem, optimizer = trained(name)
    other, loaded = twin(problem, lambda groups: ours(name, groups, **OPTIONS))
    saved = WAYS[way](optimizer.state_dict())
    before = copy.deepcopy(saved)
    loaded.load_state_dict(saved)
    assert_same(saved, before)
    assert_same(loaded.state_dict(), optimizer.state_dict())
    other.train(loaded, 1)
    if not IS_STAND_IN:  # torch's own optimizers take the tensors that are loaded, and change them
        assert_same(saved, before)
    problem.train(optimizer, 1)
    assert_go_on_alike((problem, optimizer), (other, loaded))


@every_class
def test_state_dict_holds_the_state_itself(name):
    """As torch's does: references, by position, and the groups without their parameters."""
    problem, optimizer = trained(name)
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    for i, param in enumerate(problem.params):
        assert list(saved["state"][i]) == list(optimizer.state[param])
        for key, value in optimizer.state[param].items():
            assert saved["state"][i][key] is value
    plain = theirs(name, [torch.nn.Parameter(torch.ones(1))]).state_dict()
    assert set(saved["param_groups"][0]) == set(plain["param_groups"][0])
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]


@pytest.mark.parametrize("direction", ["from torch", "to torch"])
@every_class
def test_state_goes_to_torch_and_back(name, direction):
    problem = Problem(name, dtype=torch.float64)
    makes = [ours, theirs] if direction == "to torch" else [theirs, ours]
    optimizer = makes[0](name, problem.params, **options_of(name))
    problem.train(optimizer, 5)
    other = copy.deepcopy(problem)
    loaded = makes[1](name, other.params, **OPTIONS)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_go_on_alike((problem, optimizer), (other, loaded), 1e-12)


@every_class
def test_equal_parameters_have_equal_state_dicts(name):
    """Also groups that are listed again."""
    problem, optimizer = trained(name)
    other, loaded = twin(problem, lambda groups: ours(name, groups, **OPTIONS))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        problem.train(optimizer, 1)
        other.train(loaded, 1)
        assert_same(optimizer.state_dict(), loaded.state_dict())
    loaded.param_groups.extend(loaded.param_groups)
    last = [one.state_dict()["param_groups"][-1] for one in (optimizer, loaded)]
    assert_same(*last)


OLDER = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")


@pytest.mark.parametrize("key", [*OLDER, "decoupled_weight_decay"])
@every_dense_class
def test_state_dicts_of_older_releases(name, key):
    """They lack an option, which then has the value it had before it was one."""
    problem, optimizer = trained(name, amsgrad=False)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group[key]
    other, loaded = twin(problem, lambda groups: ours(name, groups, **OPTIONS))
    loaded.load_state_dict(saved)
    assert all(key in group for group in loaded.param_groups)
    assert all(g["decoupled_weight_decay"] == (name == "AdamW") for g in loaded.param_groups)
    assert_go_on_alike((problem, optimizer), (other, loaded))


COUNTS = {
    "int": int,
    "float": float,
    "tensor of one item": lambda step: torch.tensor([float(step)]),
    "integer tensor": lambda step: torch.tensor(int(step)),
    "float64 tensor": lambda step: torch.tensor(float(step), dtype=torch.float64),
}


@pytest.mark.parametrize("count", COUNTS)
@every_class
def test_counts_of_other_types(name, count):
    """Older releases kept the number of steps as a number."""
    if IS_STAND_IN and "tensor" in count:
        pytest.skip("torch's own optimizers leave tensors of other shapes and types as they are")
    problem, optimizer = trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = COUNTS[count](state["step"])
    other, loaded = twin(problem, lambda groups: ours(name, groups, **OPTIONS))
    loaded.load_state_dict(saved)
    for param in other.params:
        if not is_sparse(name):
            assert isinstance(loaded.state[param]["step"], torch.Tensor)
            assert loaded.state[param]["step"].shape in [(), (1,)]
        assert int(loaded.state[param]["step"]) == 7
    assert_go_on_alike((problem, optimizer), (other, loaded))
    assert int(loaded.state[other.weight]["step"]) == 12


@every_class
def test_refused_state_dicts_change_nothing(name):
    problem, optimizer = trained(name)
    fewer_groups = copy.deepcopy(optimizer.state_dict())
    del fewer_groups["param_groups"][1]
    fewer_params = copy.deepcopy(optimizer.state_dict())
    fewer_params["param_groups"][0]["params"] = []
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(fewer_groups)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(fewer_params)
    assert_same(optimizer.state_dict(), before)
    problem.train(optimizer, 1)


@ours_only
@every_class
def test_state_of_another_shape_is_refused(name):
    """Torch's own takes it, and fails in the step, half done, or broadcasts."""
    _, optimizer = trained(name)
    before = copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(optimizer.state_dict())
    bad["state"][1]["exp_avg"] = torch.zeros(1)
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.load_state_dict(bad)
    assert_same(optimizer.state_dict(), before)


@every_class
def test_named_parameters(name):
    """Names are kept in the groups and in state dicts; loading goes by position."""
    problem = Problem(name)
    named = [("weight", problem.weight), ("bias", problem.bias)]
    optimizer = ours(name, named, **options_of(name))
    problem.train(optimizer, 3)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    other = copy.deepcopy(problem)
    unnamed = ours(name, other.params, **OPTIONS)
    unnamed.load_state_dict(copy.deepcopy(saved))
    assert_go_on_alike((problem, optimizer), (other, unnamed))
    third = copy.deepcopy(problem)
    renamed = ours(name, [("w", third.weight), ("b", third.bias)], **OPTIONS)
    without = copy.deepcopy(optimizer.state_dict())
    del without["param_groups"][0]["param_names"]
    renamed.load_state_dict(without)
    assert renamed.param_groups[0]["param_names"] == ["w", "b"]
    assert_go_on_alike((problem, optimizer), (third, renamed))


@every_class
def test_loading_before_the_first_step(name):
    """And an optimizer without state, whose loading resets the one it comes into."""
    problem = Problem(name)
    fresh = ours(name, problem.params, **options_of(name))
    saved = fresh.state_dict()
    assert saved["state"] == {}
    other = copy.deepcopy(problem)
    used = ours(name, other.params, **options_of(name))
    other.train(used, 3)
    with torch.no_grad():
        for mine, start in zip(other.params, problem.params, strict=True):
            mine.copy_(start)
    used.load_state_dict(saved)
    assert_go_on_alike((problem, fresh), (other, used))


@every_dense_class
def test_state_of_another_type_of_parameter(name):
    """A float64 run is loaded into a float32 one: the state gets the parameters' type."""
    problem = Problem(name, dtype=torch.float64)
    optimizer = ours(name, problem.params, **options_of(name))
    problem.train(optimizer, 3)
    short = Problem(name, dtype=torch.float32)
    loaded = ours(name, short.params, **OPTIONS)
    loaded.load_state_dict(optimizer.state_dict())
    for param, source in zip(short.params, problem.params, strict=True):
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert loaded.state[param][key].dtype is torch.float32
            wanted = optimizer.state[source][key].float()
            assert torch.equal(loaded.state[param][key], wanted)
    assert all(int(state["step"]) == 3 for state in loaded.state.values())
    short.train(loaded, 1)


@ours_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_class
def test_long_state_of_short_parameters_is_not_cast(name, dtype):
    """Where torch's own loading would make it as short as the parameters."""
    problem = Problem(name, dtype=dtype)
    optimizer = ours(name, problem.params, **options_of(name))
    problem.train(optimizer, 3)
    other = copy.deepcopy(problem)
    loaded = ours(name, other.params, **OPTIONS)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(loaded.state_dict()["state"], optimizer.state_dict()["state"])
    assert loaded.state[other.weight]["exp_avg"].dtype is torch.float32
    assert_go_on_alike((problem, optimizer), (other, loaded))


@every_class
def test_default_dtype_is_that_of_counts(name):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        problem = Problem(name, dtype=torch.float64)
        optimizer = ours(name, problem.params)
        problem.train(optimizer, 1)
        step = optimizer.state[problem.weight]["step"]
        assert is_sparse(name) or step.dtype is torch.float64
        problem.train(optimizer, 1)
        assert int(step if is_sparse(name) else optimizer.state[problem.weight]["step"]) in (1, 2)
    finally:
        torch.set_default_dtype(before)


# ----------------------------------------------------------------------------------------- copies


def of_both(problem, optimizer, way):
    """Copy parameters and optimizer together, so that the one is still about the other."""
    problem.generator = None
    return way((problem, optimizer))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@every_class
def test_copies_go_on_alike(name, way):
    problem, optimizer = trained(name)
    other, copied = of_both(problem, optimizer, WAYS[way])
    public = [{k for k in vars(one) if not k.startswith("_")} for one in (optimizer, copied)]
    assert public[0] == public[1]
    assert type(copied) is type(optimizer)
    assert copied.param_groups[0]["params"][0] is other.weight
    assert other.weight is not problem.weight
    assert_go_on_alike((problem, optimizer), (other, copied))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@every_class
def test_copies_before_the_first_step(name, way):
    problem, optimizer = trained(name, steps=0)
    other, copied = of_both(problem, optimizer, WAYS[way])
    assert not copied.state
    assert_go_on_alike((problem, optimizer), (other, copied))


@every_class
def test_copy_and_original_are_independent(name):
    problem, optimizer = trained(name)
    other, copied = of_both(problem, optimizer, copy.deepcopy)
    before = kept(optimizer, problem.params)
    other.train(copied, 3)
    copied.param_groups[0]["lr"] = 5.0
    assert_close(kept(optimizer, problem.params), before, 0)
    assert optimizer.param_groups[0]["lr"] == OPTIONS["lr"]


@every_class
def test_the_optimizer_is_freed_with_its_last_reference(name):
    """There is no cycle that would keep the parameters until the collector comes."""
    problem, optimizer = trained(name)
    references = [weakref.ref(optimizer), weakref.ref(problem.weight)]
    gc.collect()
    gc.disable()
    try:
        del problem, optimizer
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


@every_class
def test_printed(name):
    _, optimizer = trained(name)
    text = repr(optimizer)
    assert text.startswith(f"{name} (\nParameter Group 0\n")
    assert "lr: 0.013" in text
    assert "lr: 0.02" in text


# ------------------------------------------------------------------------------------------ hooks


@every_class
def test_hooks_around_a_step(name):
    """Those of the optimizer and those of all; they are gone when removed."""
    problem, optimizer = trained(name, steps=1)
    compute = problem.closure(optimizer)
    seen = []

    def hook(label):
        def called(of, args, kwargs):
            assert of is optimizer
            assert args[0] is optimizer
            seen.append((label, int(optimizer.state[problem.weight]["step"]), args[1:], kwargs))

        return called

    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    handles = [
        register_optimizer_step_pre_hook(hook("global pre")),
        register_optimizer_step_post_hook(hook("global post")),
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
    ]
    try:
        optimizer.step(compute)
        assert seen == [
            ("global pre", 1, (compute,), {}),
            ("pre", 1, (compute,), {}),
            ("post", 2, (compute,), {}),
            ("global post", 2, (compute,), {}),
        ]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(seen) == 4


@every_class
def test_hook_that_changes_the_arguments(name):
    problem, optimizer = trained(name, steps=1)
    compute = problem.closure(optimizer)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((*args, compute), kwargs))
    assert float(optimizer.step().detach()) > 0
    optimizer.register_step_pre_hook(lambda *_: 5)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
    assert int(optimizer.state[problem.weight]["step"]) == 2


@every_class
def test_hook_that_sets_gradients_and_rates(name):
    """What a hook has set is what the step uses."""
    problem, optimizer = trained(name, steps=1)
    before = problem.weight.detach().clone()

    def silence(of, args, kwargs):
        for group in of.param_groups:
            for param in group["params"]:
                param.grad = None

    handle = optimizer.register_step_pre_hook(silence)
    problem.closure(optimizer)()
    optimizer.step()
    assert torch.equal(problem.weight, before)
    handle.remove()
    problem.closure(optimizer)()
    optimizer.step()
    assert not torch.equal(problem.weight, before)


@every_class
def test_hooks_around_state_dict(name):
    """Before and after, in the order of `prepend`; the last may return another dict."""
    _, optimizer = trained(name, steps=1)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("first"), prepend=True)

    def add(of, state_dict):
        seen.append("post")
        state_dict["more"] = 1

    optimizer.register_state_dict_post_hook(add)
    optimizer.register_state_dict_post_hook(lambda _, d: {**d, "replaced": True})
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("before"), prepend=True)
    saved = optimizer.state_dict()
    assert seen == ["first", "pre", "before", "post"]
    assert saved["more"] == 1
    assert saved["replaced"]


@every_class
def test_hooks_around_load_state_dict(name):
    problem, optimizer = trained(name, steps=3)
    saved = copy.deepcopy(optimizer.state_dict())
    seen = []

    def halve(of, state_dict):
        seen.append("pre")
        state_dict = copy.deepcopy(state_dict)
        for group in state_dict["param_groups"]:
            group["lr"] /= 2
        return state_dict

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(
        lambda of: seen.append(("post", of.param_groups[0]["lr"]))
    )
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("middle"), prepend=True)
    optimizer.load_state_dict(saved)
    assert seen == ["first", "pre", "middle", ("post", OPTIONS["lr"] / 2)]
    assert saved["param_groups"][0]["lr"] == OPTIONS["lr"]
    problem.train(optimizer, 1)
    assert int(optimizer.state[problem.weight]["step"]) == 4


@every_class
def test_hook_that_renames_by_name(name):
    """Torch's recipe for a model whose parameters come in another order."""
    problem = Problem(name)
    optimizer = ours(name, [("w", problem.weight), ("b", problem.bias)], **options_of(name))
    problem.train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(problem)
    swapped = ours(name, [("b", other.bias), ("w", other.weight)], **OPTIONS)

    def reorder(of, state_dict):
        names = state_dict["param_groups"][0]["param_names"]
        wanted = of.param_groups[0]["param_names"]
        state = {wanted.index(n): state_dict["state"][i] for i, n in enumerate(names)}
        group = {**state_dict["param_groups"][0], "param_names": wanted, "params": [0, 1]}
        return {"state": state, "param_groups": [group]}

    swapped.register_load_state_dict_pre_hook(reorder)
    swapped.load_state_dict(saved)
    assert_go_on_alike((problem, optimizer), (other, swapped))


@every_class
def test_closures(name):
    """Called once, with gradients enabled though the caller disabled them; its loss is returned."""
    problem = Problem(name)
    optimizer = ours(name, problem.params)
    calls = []

    def compute():
        calls.append(torch.is_grad_enabled())
        return problem.closure(optimizer)()

    with torch.no_grad():
        loss = optimizer.step(compute)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    assert loss.requires_grad
    assert torch.is_grad_enabled()
    assert optimizer.step(closure=compute) < loss
    assert optimizer.step() is None


@every_class
def test_closure_that_raises(name):
    """Nothing has been done, and gradients are as enabled as before."""
    problem, optimizer = trained(name, steps=2)
    before = kept(optimizer, problem.params)

    def fail():
        raise KeyError("no data")

    with pytest.raises(KeyError, match="no data"):
        optimizer.step(fail)
    assert torch.is_grad_enabled()
    assert_close(kept(optimizer, problem.params), before, 0)
    problem.train(optimizer, 1)


@every_class
def test_added_groups(name):
    """A layer that is trained later counts its own steps; what it lacks are the defaults."""
    problem = Problem(name)
    optimizer = ours(name, [problem.weight], **options_of(name))
    compute = problem.closure(optimizer)
    for _ in range(3):
        optimizer.step(compute)
    before = problem.bias.detach().clone()
    optimizer.add_param_group({"params": problem.bias, "lr": 0.05})
    assert optimizer.param_groups[1]["eps"] == OPTIONS["eps"]
    for _ in range(2):
        optimizer.step(compute)
    assert (problem.bias != before).all()
    counts = [int(optimizer.state[param]["step"]) for param in problem.params]
    assert counts == [5, 2]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [problem.weight]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([problem.weight])


@every_class
def test_subclasses(name):
    """Of a user's, with a step of its own around ours; hooks fire once."""
    fired = []

    class Mine(getattr(tested, name)):
        def step(self, closure=None):
            fired.append("mine")
            return super().step(closure)

    problem = Problem(name)
    optimizer = Mine(problem.params, **options_of(name))
    optimizer.register_step_post_hook(lambda *_: fired.append("hook"))
    plain = copy.deepcopy(problem)
    reference = ours(name, plain.params, **options_of(name))
    losses = [problem.train(optimizer, 3), plain.train(reference, 3)]
    assert losses[0] == losses[1]
    assert fired.count("mine") == 3
    assert fired.count("hook") >= 3


# ----------------------------------------------------------------------------- whose state it is


@every_class
def test_the_state_stays_the_same_dict(name):
    """Of the optimizer from the start, or what a wrapper shares with it."""
    problem = Problem(name)
    optimizer = ours(name, problem.params)
    held = optimizer.state
    problem.train(optimizer, 1)
    assert optimizer.state is held
    assert len(held) == 2
    shared = optimizer.state = collections.defaultdict(dict)
    problem.train(optimizer, 2)
    assert optimizer.state is shared
    saved = {key: dict(value) for key, value in held.items()}
    shared.update(saved)
    problem.train(optimizer, 1)
    assert [int(shared[param]["step"]) for param in problem.params] == [2, 2]


@every_class
def test_shared_state_is_shared_by_pickled_optimizers(name):
    """Between processes: the moments are one, as torch's are."""
    problem, optimizer = trained(name)
    tensors_of = [
        value
        for param in problem.params
        for value in optimizer.state[param].values()
        if isinstance(value, torch.Tensor)
    ]
    for tensor in [*problem.params, *tensors_of]:
        tensor.grad = None
        tensor.share_memory_()
    pair = (problem.params, optimizer)
    params, other = pickle.loads(ForkingPickler.dumps(pair))  # noqa: S301
    for param, copied in zip(problem.params, params, strict=True):
        for key, value in optimizer.state[param].items():
            if isinstance(value, torch.Tensor):
                value.fill_(3.0)
                assert torch.equal(other.state[copied][key], value)


@ours_only
@every_class
def test_state_of_another_optimizer_is_refused(name):
    _, optimizer = trained(name)
    before = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(before)
    saved["state"][1] = {"momentum_buffer": torch.zeros(10)}
    with pytest.raises(ValueError, match="must hold 'step'"):
        optimizer.load_state_dict(saved)
    assert_same(optimizer.state_dict(), before)


@ours_only
def test_copies_that_are_not_kept_are_not_loaded():
    """They would be those of long ago when they are loaded from here where they are kept."""
    problem = Problem("AdamW", dtype=torch.bfloat16)
    optimizer = ours("AdamW", problem.params, master_weights=True, ema_decay=0.9)
    problem.train(optimizer, 1)
    plain = ours("AdamW", problem.params)
    plain.load_state_dict(optimizer.state_dict())
    assert "master" not in plain.state[problem.weight]
    assert "ema" not in plain.state[problem.weight]
