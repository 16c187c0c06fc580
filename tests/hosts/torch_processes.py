"""What two processes train together, for test_torch_distributed.py.

Each process of `run` does all tasks and leaves what came of them in a file of its own: parameters
after each step and, of a task that fails, the traceback as a string.
"""

import multiprocessing
import sys
import traceback
import warnings

import torch
from torch import distributed
from torch_tested import ours, tested, theirs

STEPS = 6
WORLD = 2
TIMEOUT = 600  # seconds, on any machine
OPTIONS = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)]
    return torch.nn.Sequential(*layers)


def batch(step, rank):
    """Return the inputs of a process; of all processes with rank None."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(WORLD, 4, 5, generator=generator)
    return inputs.flatten(0, 1) if rank is None else inputs[rank]


def loss_of(model, inputs):
    targets = inputs[:, :3].sin()
    return (model(inputs) - targets).square().mean()


def full(param):
    param = param.detach()
    return (param.full_tensor() if hasattr(param, "full_tensor") else param).clone()


def train(model, optimizer, rank, steps=range(STEPS)):
    """Return all parameters after each step."""
    trajectory = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, batch(step, rank)).backward()
        optimizer.step()
        trajectory.append([full(param) for param in model.parameters()])
    return trajectory


def parallel(model):
    return torch.nn.parallel.DistributedDataParallel(model)


def zero(make, rank, **options):
    """Optimizer states sharded over the processes, and gathered to go on elsewhere."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = parallel(network())

    def sharded():
        is_ours = make is ours
        return ZeroRedundancyOptimizer(
            model.parameters(),
            optimizer_class=tested.AdamW if is_ours else torch.optim.AdamW,
            **OPTIONS,
            **({} if is_ours else {"foreach": False}),
            **options,
        )

    optimizer = sharded()
    found = train(model, optimizer, rank, range(3))
    optimizer.consolidate_state_dict(to=0)
    saved = [optimizer.state_dict() if rank == 0 else None]
    distributed.broadcast_object_list(saved, src=0)
    again = sharded()
    again.load_state_dict(saved[0])
    return found + train(model, again, rank, range(3, STEPS))


def zero_buckets(make, rank):
    """The parameters lie in buckets, where they are moved when the optimizer is made."""
    return zero(make, rank, parameters_as_bucket_view=True)


def data_parallel(make, rank):
    model = parallel(network())
    return train(model, make("AdamW", model.parameters(), **OPTIONS), rank)


def data_parallel_views(make, rank):
    """Gradients are views of the buckets that are reduced."""
    model = torch.nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    return train(model, make("Adam", model.parameters(), **OPTIONS), rank)


def fully_sharded(make, rank):
    """Parameters and states are DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = make("AdamW", model.parameters(), **OPTIONS, amsgrad=True)
    found = train(model, optimizer, rank)
    for param in model.parameters():
        state = optimizer.state[param]
        assert type(state["exp_avg"]) is type(param) or type(state["exp_avg"]) is type(param.data)
        assert state["exp_avg"].placements == param.placements
        assert int(state["step"]) == STEPS
        found[-1] += [full(state[key]) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
    return found


def fully_sharded_resumed(make, rank):
    """torch.distributed.checkpoint takes the state apart, and puts it together again."""
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))

    def sharded():
        model = network()
        fully_shard(model, mesh=mesh)
        return model, make("AdamW", model.parameters(), **OPTIONS)

    model, optimizer = sharded()
    found = train(model, optimizer, rank, range(3))
    whole = dcp.StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
    saved = dcp.get_state_dict(model, optimizer, options=whole)
    other, again = sharded()
    # Every process has gathered all of it; that of the first goes to all.
    objects = [saved if rank == 0 else None]
    distributed.broadcast_object_list(objects, src=0)
    dcp.set_state_dict(
        other, again, model_state_dict=objects[0][0], optim_state_dict=objects[0][1], options=whole
    )
    return found + train(other, again, rank, range(3, STEPS))


def tensor_parallel(make, rank):
    """Both processes see all inputs; the first layer is split by columns, the second by rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import parallel as tp

    mesh = init_device_mesh("cpu", (WORLD,))
    plan = {"0": tp.ColwiseParallel(), "2": tp.RowwiseParallel()}
    model = tp.parallelize_module(wide_network(), mesh, plan)
    return train(model, make("Adam", model.parameters(), **OPTIONS), None)


def wide_network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)]
    return torch.nn.Sequential(*layers)


TASKS = {
    "zero": zero,
    "zero_buckets": zero_buckets,
    "data_parallel": data_parallel,
    "data_parallel_views": data_parallel_views,
    "fully_sharded": fully_sharded,
    "fully_sharded_resumed": fully_sharded_resumed,
    "tensor_parallel": tensor_parallel,
}


def work(rank, folder):
    """Do all tasks with our optimizers and with torch's, as one of the processes."""
    warnings.simplefilter("ignore")  # of torch's distributed packages
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    results = {}
    for name, task in TASKS.items():
        for whose, make in (("ours", ours), ("theirs", theirs)):
            try:
                results[name, whose] = task(make, rank)
            except Exception:
                results[name, whose] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def run(folder):
    """Return the results of each process."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    if codes != [0] * WORLD:
        raise RuntimeError(f"processes that train together ended with {codes}")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


if __name__ == "__main__":
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for (task, whose), result in run(pathlib.Path(place))[0].items():
            print(task, whose, result if isinstance(result, str) else len(result), file=sys.stderr)
