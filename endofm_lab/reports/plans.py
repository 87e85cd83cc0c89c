"""The memory that a pre-training will need, before any of it is allocated."""

import torch

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.precision import dtype_of
from endofm_lab.pretraining.config import PretrainConfig
from endofm_lab.pretraining.objective import Objective
from endofm_lab.training.memory import MemoryEstimate, estimated
from endofm_lab.training.processes import train_on


def memory_of(
    config: PretrainConfig, objective: Objective | None = None, start: Encoder | None = None
) -> MemoryEstimate:
    """The memory of one training step, before any of it is allocated. Arguments of `pretrain`.

    Raises:
        UserError: the batch does not divide into the pieces of ``accumulation``.
    """
    objective = config.chosen if objective is None else objective
    encoder, shapes = config.network if start is None else (type(start), start.config)
    with torch.device("meta"):
        model = objective.build(encoder(objective.backbone(shapes)), config, 1, 1).train()
    if config.batch % config.accumulation:
        raise UserError(
            f"A batch of {config.batch} does not divide into {config.accumulation} pieces; give a multiple."
        )
    B, views = config.batch // config.accumulation, objective.views(config.views)
    clips = [(B, 3, T, views.global_px, views.global_px) for T in views.global_frames]
    clips += [(B, 3, T, views.local_px, views.local_px) for T in views.local_frames]
    parts = [
        [clips[index] for index in (range(len(clips)) if part is None else part if isinstance(part, list) else [part])]
        for part in model.parts([torch.zeros(shape, device="meta") for shape in clips])
    ]
    prototypes = objective.signs(config).prototypes or 0
    half = dtype_of(config.precision, train_on(config.device).type) != torch.float32
    return estimated(model, model.backbones()[0], parts, half=half, logits=3 * len(clips) * B * prototypes)
