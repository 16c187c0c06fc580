"""adamas.torch in programs of several processes: ZeRO, DDP, FSDP2 and tensor parallelism.

Two processes on this machine talk by gloo, and meet in a file; torch_processes.py is what they do.
"""

import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this build of torch has no gloo", allow_module_level=True)

import torch_processes as processes  # noqa: E402
from torch_tested import ours  # noqa: E402

from helpers import once  # noqa: E402


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Return what each process has made of all tasks; they run once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "torch_processes"
    folder.mkdir(exist_ok=True)
    once(folder, lambda: processes.run(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes.WORLD)]


def assert_trajectories_close(got, wanted, tolerance=2e-5):
    for result in (got, wanted):
        assert not isinstance(result, str), result
    assert len(got) == len(wanted) == processes.STEPS
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("task", processes.TASKS)
def test_as_with_torchs_optimizer(results, task):
    for of_rank in results:
        assert_trajectories_close(of_rank[task, "ours"], of_rank[task, "theirs"])


@pytest.mark.parametrize("task", processes.TASKS)
def test_processes_agree(results, task):
    """To the bit: what is computed in each is gathered, or computed alike."""
    for one, other in zip(*[of_rank[task, "ours"] for of_rank in results], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("task", processes.TASKS)
def test_as_in_one_process(results, task):
    names = {"data_parallel_views": "Adam", "tensor_parallel": "Adam"}
    model = processes.wide_network() if task == "tensor_parallel" else processes.network()
    more = {"amsgrad": True} if task == "fully_sharded" else {}
    name = names.get(task, "AdamW")
    optimizer = ours(name, model.parameters(), **processes.OPTIONS, **more)
    alone = processes.train(model, optimizer, None)
    params = len(alone[0])
    together = [step[:params] for step in results[0][task, "ours"]]
    assert_trajectories_close(together, alone)
    assert any((one != other).any() for one, other in zip(alone[0], alone[-1], strict=True))
