"""The processes of a run, and the distribution of its weights among them (FSDP)."""

import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from endofm_lab.errors import UserError
from endofm_lab.model.precision import resolve_device


def processes() -> PartialState:
    """This process among those that `accelerate launch` or torchrun started; without a GPU they are joined by gloo.

    This function must be called before any other part of Accelerate. Otherwise processes without a GPU do not join, and
    each of them makes a separate complete run, unless ACCELERATE_USE_CPU is set.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def train_on(device: str) -> torch.device:
    """Choose the device of the trainings in this process, before the first of them; returns it.

    Args:
        device: "auto" leaves the choice to Accelerate, which gives each process a GPU of its own if there are any;
            otherwise a name as `resolve_device` takes it.

    Raises:
        UserError: this machine has no such device, or an earlier training of this process used another one.
    """
    if device == "auto":
        return processes().device
    chosen = resolve_device(device)
    if not PartialState._shared_state:
        if chosen.type == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
        elif chosen.index is not None:
            torch.accelerator.set_device_index(chosen.index)
    current = processes().device
    if current.type != chosen.type or chosen.index not in (None, current.index or 0):
        raise UserError(
            f"The device is {device!r}, but this process trains on {current}. Choose {current}, or start a new process."
        )
    return current


def sharding_asked_for() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process, as one of a group."""
    return processes().distributed_type != DistributedType.NO and parse_flag_from_env("ACCELERATE_USE_FSDP")


def shard(model: nn.Module, units: list[nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Distribute parameters, gradients and the optimiser's state among the processes, in place.

    Each parameter is divided along its first dimension (FSDP2). A unit is gathered while it computes; parameters
    outside units are gathered from the forward pass to the end of the backward pass. Buffers are not divided.

    Args:
        model: a model that is equal in all processes.
        units: modules of the model that are entered by calling them.
        optimiser: optimiser of the model's parameters, with a complete state that is equal in all processes.
    """
    device = processes().device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    parameters = dict(model.named_parameters())
    for module in [*units, model]:
        fully_shard(module, mesh=mesh)
    shards: dict[Any, Any] = {parameters[name]: parameter for name, parameter in model.named_parameters()}
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
    """A state (nested dicts and lists) with whole tensors on the CPU in place of shards; all processes must call it."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().detach().cpu(), state)
