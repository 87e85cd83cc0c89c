"""The processes that share a run, and how they share its weights (FSDP)."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def processes() -> PartialState:
    """This process among those that `accelerate launch` or torchrun started; without a GPU they are joined by gloo.

    To be asked before any other part of Accelerate, which leaves processes without a GPU strangers to each other, each
    with a whole run of its own, unless ACCELERATE_USE_CPU is set.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def sharding_asked_for() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process, as one of a group."""
    return processes().distributed_type != DistributedType.NO and parse_flag_from_env("ACCELERATE_USE_FSDP")


def shard(model: nn.Module, units: list[nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Share out parameters, gradients and the optimiser's state among the processes, in place.

    Each parameter is cut along its first dimension (FSDP2). A unit is whole while it computes; what belongs to no unit,
    from the forward to the end of the backward pass. Buffers stay whole.

    Args:
        model: equal in all processes.
        units: modules of it that are entered by calling them.
        optimiser: of the model's parameters, its state whole and equal in all processes.
    """
    device = processes().device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    whole = dict(model.named_parameters())
    for module in [*units, model]:
        fully_shard(module, mesh=mesh)
    shards: dict[Any, Any] = {whole[name]: parameter for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        group["params"] = [shards[p] for p in group["params"]]
    for p, state in list(optimiser.state.items()):
        del optimiser.state[p]
        optimiser.state[shards[p]] = {
            key: distribute_tensor(value, mesh, shards[p].placements, src_data_rank=None)
            if value.shape == p.shape
            else value
            for key, value in state.items()
        }


def gathered(state: Any) -> Any:
    """A state (nested dicts and lists) with whole tensors on the CPU in place of shards; for all processes at once."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().detach().cpu(), state)
