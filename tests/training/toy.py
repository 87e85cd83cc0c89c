"""A small model with everything that a run has to keep, and data for it."""

import torch
from torch import nn

from endofm_lab.errors import VideoError
from endofm_lab.training.loop import LoopConfig, Trainable, train
from endofm_lab.training.optimiser import parameter_groups


class Toy(Trainable):
    """Regression with dropout, in two parts, with a state that moves after each step."""

    def __init__(self, poison_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("moving", torch.zeros(1))
        self.poison_at = poison_at

    def parts(self, batch):
        return [0, 1]

    def forward(self, batch, part, step):
        error = self.net(batch + self.moving).square().mean() * (0.25 if part else 0.75)
        return {"loss": error * (float("nan") if step == self.poison_at else 1.0)}

    def after_step(self, step):
        self.moving += 0.01 * self.net[0].weight.detach().mean()
        return {"moving": float(self.moving)}


class Numbers:
    """Random vectors; some files cannot be read."""

    def __init__(self, n=12, bad=(), n_files=None):
        self.n, self.bad, self.n_files, self.read_indices = n, set(bad), n_files or n, []

    def __len__(self):
        return self.n

    def name(self, index):
        return f"video{index}.mp4"

    def sample(self, index, seed):
        self.read_indices.append(index)
        if index in self.bad:
            raise VideoError(self.name(index), "it is broken")
        return torch.randn(4, generator=torch.Generator().manual_seed(seed)) + index

    def collate(self, samples):
        return torch.stack(samples)


CONFIG = LoopConfig(steps=20, batch=4, accumulation=2, clip=0.3, save_every=5)


def start(out, config=CONFIG, data=None, model=None, **options):
    model = model or Toy()
    optimiser = torch.optim.AdamW(parameter_groups(model))
    return train(
        model, optimiser, lambda s: {"lr": 1e-2, "weight_decay": 0.1}, data or Numbers(), config, out, **options
    )


def losses(records):
    return [record["loss"] for record in records]
