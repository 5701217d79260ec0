"""Training in several processes that torchrun starts, on one machine or on many.

Each process holds an equal share of the rows of every parameter, of its gradient and of what the optimizer remembers of
it, and computes its own rows of the batch: ZeRO, stage 3 (arXiv 1910.02054); PyTorch FSDP (arXiv 2304.11277), here its
second version, `fully_shard`. Before a layer runs, its parameters are gathered from all processes, and afterwards they
are forgotten; in the backward pass its gradients are averaged over all processes, and each keeps those of its own rows.
So all processes must run the same layers equally often, which training/tensors.py sees to.

A training of one process takes the same way: then `all_gather` gives one row, `full_tensor` is what it was given, and
`shard_parameters` shares nothing out.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillava.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # one process may keep the others waiting, while it writes the weights or reads pictures
# In the errors of a process whose peer has gone, by gloo and by NCCL.
LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed? ?out|remote process exited|ncclRemoteError", re.IGNORECASE
)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


# ------------------------------------------------------------ processes
@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Be one of the processes that torchrun started, if it did; the device of this one. Only the first process prints.

    UserError where they cannot find each other, are more than this machine's GPUs, and where one of them has gone.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        yield device
        return
    device = join(device)
    printed = sys.stdout
    try:
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the training runs)
        yield device
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise UserError(
            "another process of this training has ended: the same command with --resume goes on from the last checkpoint"
        ) from None
    finally:
        sys.stdout = printed
        dist.destroy_process_group()


def join(device: torch.device) -> torch.device:
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"torchrun is for CPUs and CUDA, not for {device.type}: start the training with python")
    import torch.distributed.checkpoint as dcp

    # shards.py needs it, and the first checkpoint would be late to find that out
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise UserError(
            f"several processes need a PyTorch that writes checkpoints as safetensors, which {torch.__version__} does not: take 2.13"
        )
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device.type == "cuda":
        if local >= count:
            raise UserError(
                f"this machine has {count} GPUs: give torchrun --nproc-per-node {count}, or train.py --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes do not find each other ({str(error)[:60]}): start them with torchrun, see the README"
        ) from None
    return device


def all_gather(*numbers: float) -> Tensor:
    """These numbers of every process, (processes, numbers) float64 on the CPU.

    All processes wait here for each other.
    """
    own = torch.tensor([numbers], dtype=torch.float64)
    if world_size() == 1:
        return own
    rows = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(rows, own)
    return torch.cat(rows)


def all_gather_objects(value: T) -> list[T]:
    """The same for any object."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def agree(make: Callable[[], T]) -> T:
    """What `make()` gives. A UserError in one process is one in all, so that none waits for it; the first that has
    it says it.
    """
    made, error = None, ""
    try:
        made = make()
    except UserError as found:
        error = str(found)
    if all_gather(bool(error)).any():
        errors = all_gather_objects(error)
        raise UserError(error if error and errors.index(error) == rank() else "")
    return made


# ------------------------------------------------------------ parameters
def shard_parameters(
    root: nn.Module,
    layers: Iterable[nn.Module],
    device: torch.device,
    types: dict[str, torch.dtype],
    products: torch.dtype,
) -> None:
    """Put every parameter on `device`, in its type of `types`. Of several processes each keeps its rows of it, and
    `root` and `layers` gather the others' whenever they are called.

    The parameters may lie in files that are mapped: then a process reads its own rows alone. Those of `layers` travel
    in the type of the matrix products, what belongs to none of them as it is.
    """
    if world_size() == 1:
        for name, parameter in root.named_parameters():
            parameter.data = parameter.data.to(device, types[name])
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    tensors = dict(root.named_parameters())
    root.to("meta")
    precision = MixedPrecisionPolicy(products, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        # PyTorch's wants weights of the type of its input
        strict = any(isinstance(part, nn.LayerNorm) for part in layer.modules())
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy() if strict else precision)
    fully_shard(root, mesh=mesh)
    root.load_state_dict(
        {name: local_rows(tensors.pop(name), mesh, types[name]) for name in list(tensors)}, assign=True
    )


def local_rows(tensor: Tensor, mesh, dtype: torch.dtype) -> Tensor:
    """What this process keeps of a tensor, as a DTensor: as many rows as every other process, the last ones fewer or
    none.
    """
    from torch.distributed.tensor import DTensor, Shard

    rows = tensor.chunk(world_size())
    rows = rows[rank()] if rank() < len(rows) else tensor[:0]
    rows = rows.detach().to(mesh.device_type, dtype, copy=True)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride())


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, which has the shape of `parameter`, on its device, and as the rows of this process where that has no
    others.
    """
    return (
        local_rows(tensor, parameter.device_mesh, tensor.dtype)
        if is_sharded(parameter) and not is_sharded(tensor)
        else tensor.to(parameter.device)
    )


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # a DTensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All rows of a tensor, in every process; all must ask for it at the same time."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@contextmanager
def unsharded(root: nn.Module) -> Iterator[None]:
    """For calling parts of `root` that are not its layers, such as its embeddings, outside of its own call."""
    if world_size() > 1:
        root.unshard()
    try:
        yield
    finally:
        if world_size() > 1:
            root.reshard()
