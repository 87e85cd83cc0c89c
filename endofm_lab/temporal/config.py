"""The configuration of the training of a model of time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.tasks.budgets import checked_budget
from endofm_lab.temporal.inputs import InputConfig
from endofm_lab.temporal.networks import NetworkConfig


@dataclass(frozen=True, repr=False)
class TemporalConfig(Brief):
    """Data, network and budget of one run.

    Attributes:
        manifest: table whose rows are stretches of videos with a label; instants between rows have no label.
        features: store of the videos' vectors, from `endofm-lab embed --step-s`.
        out: folder of the run.
        network: kind and sizes of the network.
        inputs: what the network is shown of every instant.
        label: column of the manifest that holds the answer.
        several_labels: cells hold any number of labels, joined by ``|``, such as tools.
        smooth: smooth the answers by a hidden Markov model whose transitions are counted in training.
        steps: updates of the network.
        batch: recordings per update.
        lr: learning rate, which falls to 0 along half a cosine.
        weight_decay: weight decay of AdamW.
        steady: weight of the loss that keeps neighbouring instants alike.
        l2: penalty of the network "linear", which is fitted exactly and needs no steps.
        validate_every: steps between validations, of which the best is kept; without rows of the split val, the weights
            of the last step are kept.
        seeds: one training for each of these seeds.
        split_name: column of the split, as in `endofm-lab finetune`.
        budget: label budget, the training patients that are learned from: "all", a share as in "10 %", or "5 patients".
        shared_patients: "refuse" or "accept" patients in more than one split.
    """

    manifest: Path
    features: Path
    out: Path
    network: NetworkConfig = field(default_factory=NetworkConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    label: str = "label"
    several_labels: bool = False
    smooth: bool = False
    steps: int = 400
    batch: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-2
    steady: float = 0.15
    l2: float = 0.1
    validate_every: int = 50
    seeds: tuple[int, ...] = (0,)
    split_name: str = "manifest"
    budget: str = "all"
    shared_patients: Literal["refuse", "accept"] = "refuse"

    def __post_init__(self) -> None:
        for name in ("manifest", "features", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "budget", checked_budget(self.budget))
        for name in ("steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a whole number above 0.")
        for name in ("lr", "l2"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a number above 0.")
        if self.weight_decay < 0 or self.steady < 0:
            raise UserError("weight_decay and steady must be 0 or more. Give such numbers.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds are {self.seeds}; give different numbers of 0 or more.")
        if self.smooth and self.several_labels:
            raise UserError("The smoother is for exclusive classes. Leave out smooth or several_labels.")
