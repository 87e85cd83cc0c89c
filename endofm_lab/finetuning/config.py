"""The configuration of a fine-tuning: task, method, start and budget. The released recipes are in `presets`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.finetuning.start import Start
from endofm_lab.model.precision import Precision
from endofm_lab.tasks import TASKS, Task, task_named
from endofm_lab.tasks.budgets import checked_budget
from endofm_lab.tasks.classification import Classification, LossName
from endofm_lab.tasks.clips import Augmentation
from endofm_lab.tasks.phases import Smoother

Method = Literal["full", "frozen", "ST-Adapter", "LoRA", "attentive probe", "linear probe", "knn"]
Head = Literal["light", "transunet", "stft", "iou"]

PROBES = ("linear probe", "knn")  # methods that read nothing but pooled features of a frozen encoder
MOST_LR = 1000.0
MOST_ALPHA = 1e4
RANK, ALPHA = 8, 16.0  # of low-rank adaptation
_BOUNDS = {"rank": (1, 1024), "batch": (1, 65_536), "clips": (1, 10_000), "workers": (0, 1024)}


@dataclass(frozen=True, repr=False)
class FinetuneConfig(Brief):
    """The settings of a fine-tuning. Two runs are comparable if their manifests and test settings agree.

    Attributes:
        manifest: a manifest with the splits train, val and test.
        out: folder of the run.
        task: the task of the head, a key of ``tasks.TASKS``. ``label``, ``several_labels``, ``clips``, ``step_s`` and
            ``smoother`` are options of those tasks that have them.
        method: "full" trains everything, "frozen" the head alone, "ST-Adapter" the head and small modules that mix
            neighbouring frames in a frozen image transformer, "LoRA" the head and low-rank changes of the attention in
            any frozen transformer, which are merged into its weights in the end, "attentive probe" a head that attends
            to all frozen tokens; "linear probe" (logistic regression) and "knn" (nearest neighbours) answer classes
            from frozen CLS tokens, without any random choice.
        head: "light" reads patch tokens; "transunet" (segmentation) and "stft" (detection) are the heads of the paper;
            "iou" (detection) is the light one, whose scores learn how well a box fits.
        start: origin of the weights.
        rank: rank of the changes of "LoRA".
        alpha: factor of the changes of "LoRA", which are multiplied by alpha / rank.
        label: column of the manifest that holds the class.
        several_labels: cells of that column hold any number of labels, joined by ``|``.
        mapping: name or path of a label mapping, which turns the labels of all data sets into common classes; rows that
            do not stand for exactly one are left out; for classification.
        loss: loss of class heads: "cross-entropy"; "focal", "class-balanced" or "logit-adjusted" for classes of unequal
            size; or "coarse", which also learns from training rows whose label stands for several classes of the
            mapping; for classification (see ``tasks.losses``).
        balanced: repeat training rows so that every class is drawn as often as the most frequent one.
        augmentation: augmentation of training clips: "none", "light" (crop, flips, colour), "strong" (also quarter
            turns, blur, grid distortion; not for masks and boxes), or "scale jitter" (square crops and mirroring, as
            in the released code).
        seeds: one training run for each seed; results are means over them.
        steps: number of updates.
        batch: clips per update.
        lr: the highest learning rate, at the end of the warm-up.
        schedule: decay of the learning rate: "cosine" to ``floor``; "poly", proportional to the remaining steps to the
            power of 0.9; or "halved" at each of the ``milestones``.
        warmup: share of the steps in which the learning rate rises.
        floor: share of the learning rate at which the cosine ends.
        milestones: steps at which "halved" halves the learning rate.
        per_epoch: update the learning rate once an epoch instead of at every step.
        lr_decay: factor for ``lr`` after every epoch, without warm-up and schedule; None for the schedule.
        weight_decay: weight decay of matrices and kernels.
        layer_decay: the learning rate of a layer is this times that of the layer above it (Clark et al. 2020).
        optimiser: AdamW, SGD with momentum 0.9, or AdaBelief (arXiv 2010.07468).
        average: share that the running mean of the weights keeps in each step; validation, test and model then use
            that mean (Polyak averaging). None uses the weights themselves.
        validate_every: steps between validations.
        chosen_by: metric by which validation chooses the step, penalty or number of neighbours; None for the metric of
            the task.
        clips: clips per row at validation and test, whose scores are averaged; for classification.
        crops: square crops of each of these clips, whose scores are averaged; 1 is the whole picture; for
            classification.
        step_s: seconds from one answer to the next in a long video; for phases.
        smoother: smoother of the answers over time; "causal" sees the past only, "offline" the whole video; for phases.
        shared_patients: "refuse" a manifest with a patient or recording in two splits, or "accept" it and record it in
            the run.
        split_name: "manifest" for its column ``split``, or the name of another split (column ``split_NAME``), such as
            "released" for the lists of a paper.
        budget: label budget, the training patients that are learned from: "all", a share as in "10 %", or "5 patients";
            validation and test rows stay.
        features: folder of vectors from `endofm-lab embed --clips N`, with N as in ``clips``: "linear probe" and "knn"
            read them instead of computing them.
        precision: precision of the training's arithmetic.
        workers: number of processes that load data.
        device: device of the computation: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu.
    """

    manifest: str | Path
    out: str | Path
    task: str = Classification.name
    method: Method = "full"
    head: Head = "light"
    start: Start = field(default_factory=Start)
    rank: int = RANK
    alpha: float = ALPHA
    label: str = "label"
    several_labels: bool = False
    mapping: str | None = None
    loss: LossName = "cross-entropy"
    balanced: bool = False
    augmentation: Augmentation = "light"
    seeds: tuple[int, ...] = (0,)
    steps: int = 300
    batch: int = 8
    lr: float = 5e-4
    schedule: Literal["cosine", "poly", "halved"] = "cosine"
    warmup: float = 0.1
    floor: float = 0.01
    milestones: tuple[int, ...] = ()
    per_epoch: bool = False
    lr_decay: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    optimiser: Literal["adamw", "sgd", "adabelief"] = "adamw"
    average: float | None = None
    validate_every: int = 50
    chosen_by: str | None = None
    clips: int = 3
    crops: int = 1
    step_s: float = 1.0
    smoother: Smoother = "causal"
    shared_patients: Literal["refuse", "accept"] = "refuse"
    split_name: str = "manifest"
    budget: str = "all"
    features: str | Path | None = None
    precision: Precision = "float32"
    workers: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("manifest", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))  # text is accepted too
        if self.features is not None:
            object.__setattr__(self, "features", Path(self.features))
        self.check_task(self.configured_task)
        if self.head == "transunet" and self.method != "full":
            raise UserError(f"The method is {self.method!r}, but a transunet has a new stem to train: choose 'full'.")
        object.__setattr__(self, "budget", checked_budget(self.budget))
        if self.features is not None and (self.method not in PROBES or self.crops != 1):
            raise UserError(
                f"features are given for {self.method!r} with {self.crops} crops; only {' and '.join(PROBES)} read "
                "stored features, of whole pictures. Leave features out."
            )
        if self.loss != "cross-entropy" and self.method in PROBES:
            raise UserError(f"The loss is {self.loss!r}, but {self.method} has no choice of losses: leave it out.")
        if (self.rank, self.alpha) != (RANK, ALPHA) and self.method != "LoRA":
            raise UserError(f"rank is {self.rank} and alpha {self.alpha}, but {self.method} has none: leave them out.")
        if not 0 < self.alpha <= MOST_ALPHA:
            raise UserError(f"alpha is {self.alpha}; give a number above 0 and at most {MOST_ALPHA:g}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds are {list(self.seeds)}; give at least one seed, and no seed twice.")
        if self.augmentation not in get_args(Augmentation):
            raise UserError(f"augmentation is {self.augmentation!r}; choose {', '.join(get_args(Augmentation))}.")
        for name, (lowest, highest) in _BOUNDS.items():
            if not lowest <= getattr(self, name) <= highest:
                raise UserError(f"{name} is {getattr(self, name):,}; give a number from {lowest:,} to {highest:,}.")
        if self.average is not None and not 0 < self.average < 1:
            raise UserError(f"average is {self.average}; give a share above 0 and below 1, such as 0.99.")
        if self.validate_every < 1:
            raise UserError(f"validate_every is {self.validate_every}; give a number of steps of at least 1.")
        if not 0 <= self.warmup < 1 or not 0 <= self.floor <= 1:
            raise UserError(
                f"warmup is {self.warmup} and floor {self.floor}; give shares from 0, the warm-up's below 1 and the "
                "floor's at most 1."
            )
        if (self.schedule == "halved") != bool(self.milestones):
            raise UserError(
                f"The schedule is {self.schedule!r} and milestones are {list(self.milestones)}: give milestones for "
                "'halved', and for no other schedule."
            )
        decays = [self.layer_decay] if self.lr_decay is None else [self.layer_decay, self.lr_decay]
        if not 0 < self.lr <= MOST_LR or not all(0 < decay <= 1 for decay in decays):
            raise UserError(
                f"lr is {self.lr}, layer_decay {self.layer_decay} and lr_decay {self.lr_decay}; give a rate above 0 "
                f"and at most {MOST_LR:g}, and decays above 0 and at most 1."
            )

    def check_task(self, task: Task) -> None:
        """Refuse a method or head that does not suit a task.

        Raises:
            UserError: the message names the methods or heads that do.
        """
        if self.method not in task.methods:
            raise UserError(f"The method is {self.method!r}; for {task.name}, choose {', '.join(task.methods)}.")
        if self.head not in ("light", *task.forms):
            forms = [f"{form!r} for {kind.name}" for kind in TASKS.values() for form in kind.forms]
            raise UserError(f"The head is {self.head!r} for {task.name}; choose 'light', or {', or '.join(forms)}.")

    @property
    def configured_task(self) -> Task:
        """The task with its options."""
        return task_named(self.task).of(vars(self))
