"""Self-supervised pre-training of a video transformer: a generator of records, and a run folder that can be resumed.

A run folder holds ``config.json``, ``log.jsonl``, ``checkpoints/``, the trackers' files, and at the end ``model/``.
With several processes start the same call in each of them, by `accelerate launch --multi_gpu` (each holds all weights)
or `--use_fsdp` (each holds its share), or by `accelerate.notebook_launcher`. A run can go on with another number of
them, within rounding.
"""

import dataclasses
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.files import fingerprint_of, read_json, write_json
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import check_request, claim
from endofm_lab.model.card import HANDED_OVER, InitialisationRecord, Metric, ModelCard
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.frame import FrameBackbone, load_frame_weights
from endofm_lab.model.loading.load import in_memory, initialise, load_model, save_model
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.model.video_model import VideoModel, described, model_on
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.outside import Allowed, allowing
from endofm_lab.plain import to_plain
from endofm_lab.pretraining.background import OUTPUT, PROCESS
from endofm_lab.pretraining.config import PretrainConfig, known_settings, own_objective, settings, stored_settings
from endofm_lab.pretraining.corpus import Corpus, Mixture, mixed
from endofm_lab.pretraining.health import ProbeData, encode, feature_measures, load_probe, probe, verdict
from endofm_lab.pretraining.objective import Objective
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import CHECKPOINTS, LOG, LoopConfig, Record, read_log, train
from endofm_lab.training.optimiser import parameter_groups
from endofm_lab.training.processes import gathered, processes, train_on
from endofm_lab.training.schedules import cosine
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec

CONFIG, MODEL, PROBE = "config.json", "model", "probe.json"
START = "start"  # folder with the backbone that was handed over as an object
_FEATURES_EVERY = 10  # steps between looks at the features' spread and rank


def pretrain(
    config: PretrainConfig, objective: Objective | None = None, start: VideoModel | Encoder | None = None
) -> Generator[Record, None, None]:
    """Pre-train, from where the run folder is, and yield a record per step.

    >>> for record in pretrain(tiny(Path("phantom/manifest.csv"), Path("runs/first"))):
    ...     print(record["step"], record["loss"], record["health"])

    Args:
        config: the run.
        objective: one of your own, in place of that which the configuration names.
        start: a model or encoder in memory that goes on learning, in place of the configuration's ``backbone`` (or
            ``image_model``) and ``initialisation``; it keeps its weights and is saved in the run's folder.

    Yields:
        What the loop logs (see `endofm_lab.training.loop.train`): "loss" and the objective's other numbers; every ten
        steps "feature_std" and "rankme"; after a probe "knn", "linear" and "chance" (balanced accuracy). "health" is
        the verdict's state, which is not logged, because it follows from the log.

    Raises:
        UserError: the folder holds another run, or the manifest or a video has changed since (the message names what
            differs); settings that cannot work.
        ManifestError: no rows to learn from, or missing files.
        DivergenceError: the loss is not a number.
    """
    run = _Pretraining(config, objective, start)
    with run.claimed():
        run.prepare()
        records = read_log(config.out / LOG)[: run.steps_done]
        for record in run.train():
            records.append(record)
            yield record | {"health": verdict(records, run.signs).state}
        run.save_model()


def resume(out: str | Path, allow: Allowed = ()) -> Generator[Record, None, None]:
    """Go on with the run in a folder.

    Args:
        out: the folder.
        allow: code from outside the library that the run may name: its objective and encoder, as in `load_model`.

    Raises:
        UserError: there is none, or it needs code that is not allowed.
    """
    with allowing(allow):
        return pretrain(run_config(out), *handed_over(out))


def handed_over(out: str | Path) -> tuple[Objective | None, VideoModel | None]:
    """The objective and the start that the run in a folder was given as objects.

    Raises:
        UserError: they need code that is not allowed, or the run was stopped before its start was kept.
    """
    out = Path(out)
    described = read_json(out / CONFIG)
    objective = own_objective(described.get("config", {}), str(out))
    if "start" not in described:
        return objective, None
    if not (out / START).is_dir():
        raise UserError(f"{out} was stopped before it kept its start: call pretrain(config, start=...) again.")
    return objective, load_model(out / START)


def run_config(out: str | Path) -> PretrainConfig:
    """The configuration of the run in a folder, which may have been moved.

    Raises:
        UserError: there is none.
    """
    path = Path(out) / CONFIG
    if not path.is_file():
        raise UserError(f"{out} holds no pre-training run ({CONFIG} is missing); start one with --out {out}.")
    return dataclasses.replace(known_settings(read_json(path)["config"]), out=Path(out))


def plan(config: PretrainConfig) -> dict[str, Any]:
    """What a run would do, before any network is built: configuration, clips, videos, steps.

    Raises:
        UserError: as `pretrain`.
    """
    run = _Pretraining(config, None, None)
    return {
        "config": to_plain(dataclasses.asdict(config)),
        "n_clips": len(run.corpus),
        "n_files": run.corpus.n_files,
        "manifests": run.corpus.described() if isinstance(run.corpus, Mixture) else [],
        "steps": run.steps,
        "steps_per_epoch": run.per_epoch,
        "device": str(run.device),
    }


class _Pretraining:
    """Everything that one run needs: data, network, objective, optimiser."""

    def __init__(self, config: PretrainConfig, objective: Objective | None, start: VideoModel | Encoder | None) -> None:
        self.device = train_on(config.device)
        self.objective = config.chosen if objective is None else objective
        self.objective.check()
        self.config, self.signs = config, self.objective.signs(config)
        self.start = None if start is None else _without_heads(start)
        self.encoder, shapes = config.network
        if self.start is not None:
            self.encoder, shapes = type(self.start.backbone), self.start.backbone.config
            _check_views(config.views, self.start.backbone)
        self.shapes = self.objective.backbone(shapes)
        self.manifests = [read_manifest(path) for path in (config.manifest, *config.others)]
        views = MultiView(self.objective.views(config.views))
        corpora = [Corpus(manifest, views, config.split) for manifest in self.manifests]
        self.corpus = mixed(corpora, config.weights)
        self.steps = config.n_steps(len(self.corpus))
        self.per_epoch = config.steps_per_epoch(len(self.corpus))

    def prepare(self) -> None:
        """Build the network, or as it was when the run began, and write down where its weights come from."""
        config = self.config
        done = Checkpoints(config.out / CHECKPOINTS).all()
        self.steps_done = int(done[-1].name.removeprefix("step-")) if done else 0
        path = config.out / CONFIG
        described = read_json(path) if path.is_file() else {}  # of several processes one writes it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone = self.encoder(self.shapes)
            if self.steps_done:  # the checkpoint brings the weights
                self.initialisation: InitialisationRecord = described["initialisation"]
            else:
                self.initialisation = self._initialised(backbone)
                described["initialisation"] = self.initialisation
            self.model = self.objective.build(backbone, config, self.steps, self.per_epoch)
        if config.compile:
            for module in self.model.backbones():
                module.compile()
        self.probe, self.last_probe = self._load_probes()
        if processes().is_main_process:
            if self.start is not None and not (config.out / START).is_dir():
                save_model(self.start, config.out / START)
            write_json(path, described)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run folder in the main process; in all of them refuse that of another run."""
        tree = _absolute(settings(self.config, self.objective))
        config = {name: value for name, value in tree.items() if name not in ("out", "device")}
        first, *others = (manifest.fingerprint for manifest in self.manifests)
        request = {"config": config, "manifest_fingerprint": first}
        request |= {f"manifest_{number}_fingerprint": other for number, other in enumerate(others, 2)}
        if self.start is not None:
            weights = state_fingerprint(self.start)
            request["start"] = {"backbone": self.start.card.backbone, "weights": weights}
        request |= {"videos": self.corpus.contents(), **self._weights_request(), **self._probe_request()}
        kind, out = "a pre-training run", self.config.out
        if not processes().is_main_process:
            if (out / CONFIG).is_file():
                check_request(out, request, kind, CONFIG, _completed)
            yield
            return
        about = {
            "config": tree,
            "signs": to_plain(dataclasses.asdict(self.signs)),
            "n_clips": len(self.corpus),
            "n_files": self.corpus.n_files,
            "manifests": self.corpus.described() if isinstance(self.corpus, Mixture) else [],
            "steps": self.steps,
            "steps_per_epoch": self.per_epoch,
            "provenance": provenance(self.device),
            "initialisation": {"words": "Not known yet: the network is being built."},
        }
        with claim(
            out, request, kind, record=CONFIG, about=about, allowed_files=(PROCESS, OUTPUT), completed=_completed
        ):
            yield

    def _weights_request(self) -> dict[str, str]:
        """Content of the weights that are read from this disk; a run goes on without a start that is gone."""
        named = {"start_weights": self.config.initialisation, **self.objective.sources()}
        paths = {
            name: locate(source) if source == "demo" else Path(source).expanduser() for name, source in named.items()
        }
        return {name: fingerprint_of(path) for name, path in paths.items() if named[name] and path.exists()}

    def _probe_request(self) -> dict[str, Any]:
        """Which labelled rows and videos are asked during the run."""
        if self.config.probe is None:
            return {}
        manifest = read_manifest(self.config.probe)
        return {"probe_fingerprint": manifest.fingerprint, "probe_videos": manifest.contents()}

    def _initialised(self, backbone: Encoder) -> InitialisationRecord:
        """Fill the backbone, and say from where."""
        source = self.config.initialisation
        if self.start is not None:
            return initialise(backbone, in_memory(self.start))
        if isinstance(backbone, FrameBackbone) and source != "scratch" and not Path(source).expanduser().is_dir():
            return load_frame_weights(backbone, source)
        record = initialise(backbone, source)
        if source == "scratch" and isinstance(backbone, VideoTransformer):
            _forget_constants(backbone)
        return record

    def _load_probes(self) -> tuple[ProbeData | None, ProbeData | None]:
        """Whom to ask during the run ("val" rows if there are any), and before and after it ("test" rows likewise)."""
        c = self.config
        if c.probe is None or not processes().is_main_process:
            return None, None
        manifest, frames, px = read_manifest(c.probe), c.views.global_frames[0], c.views.global_px
        asked = load_probe(manifest, frames, px, c.probe_label)
        if not {"val", "test"} <= set(manifest.table["split"]):
            return asked, asked
        return asked, load_probe(manifest, frames, px, c.probe_label, held_out=("test", "val"))

    def train(self) -> Iterator[Record]:
        """The loop's records."""
        c = self.config
        loop = LoopConfig(
            steps=self.steps, batch=c.batch, accumulation=c.accumulation, precision=c.precision, clip=c.clip,
            seed=c.seed, save_every=c.save_every, keep=c.keep, workers=c.workers, trackers=c.trackers,
        )  # fmt: skip
        optimiser = torch.optim.AdamW(parameter_groups(self.model), fused=True)  # one pass over the weights
        if self.last_probe is not None and not self.steps_done:
            write_json(c.out / PROBE, {"untrained": self._ask(self.teacher(), self.last_probe, n_resamples=1000)})
        return train(self.model, optimiser, self.schedule, self.corpus, loop, c.out, self.measure)

    def schedule(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay at a step."""
        c = self.config
        warmup = round(c.warmup_epochs * self.per_epoch)
        return {
            "lr": cosine(step, c.lr * c.batch / 256, c.lr_end, self.steps, min(warmup, self.steps)),
            "weight_decay": cosine(step, *c.weight_decay, self.steps),
        }

    def measure(self, step: int) -> Record:
        """Spread and rank of the features, and the probe, at the steps that have them."""
        numbers: Record = {}
        last = step + 1 == self.steps
        if (step + 1) % _FEATURES_EVERY == 0 or last:
            numbers |= feature_measures(self.model.recent.rows())
        if self.config.probe is not None and ((step + 1) % self.config.probe_every == 0 or last):
            teacher = self.teacher()
            if self.probe is not None:
                numbers |= self._ask(teacher, self.probe, n_resamples=0)
            if self.last_probe is not None and last:
                trained = self._ask(teacher, self.last_probe, n_resamples=1000)
                write_json(self.config.out / PROBE, read_json(self.config.out / PROBE) | {"trained": trained})
        return numbers

    def _ask(self, teacher: Encoder, data: ProbeData, n_resamples: int) -> Record:
        return probe(encode(teacher, data.frames, self.input), data, n_resamples)

    def teacher(self) -> Encoder:
        """The backbone that is kept, with the weights of now; to be asked for in every process where they share it."""
        whole = self.encoder.state_is_whole
        with torch.random.fork_rng(devices=[]), torch.device("meta") if whole else nullcontext():
            backbone = self.encoder(self.shapes)
        backbone.load_state_dict(gathered(self.model.kept().state_dict()), assign=whole)
        return backbone.to(processes().device).eval()

    @property
    def input(self) -> InputSpec:
        """What the backbone sees when it is asked: whole frames of the global views' size."""
        views = self.config.views
        return dataclasses.replace(views.input, size_px=views.global_px)

    def save_model(self) -> None:
        """Write the teacher's backbone with a truthful card; in every process."""
        c, backbone = self.config, self.teacher()
        if not processes().is_main_process:
            return
        card = ModelCard(
            name=f"{self.objective.name} pre-training, {self.steps} steps",
            backbone=described(self.encoder, self.shapes),
            input=self.input,
            clip=ClipSpec(n_frames=c.views.global_frames[0], duration_s=c.views.clip_s),
            initialisation=self.initialisation,
            data={
                "description": f"{len(self.corpus)} clips of {self.corpus.n_files} videos, without labels",
                "fingerprint": " ".join(manifest.fingerprint for manifest in self.manifests),
                "split": c.split or "pretrain, train and rows without a split",
                "generated": all(manifest.generated for manifest in self.manifests),
            },
            audit=audit(self.manifests, progress=False).verdict,
            metrics=tuple(self._metrics()),
        )
        save_model(VideoModel(backbone.cpu(), nn.ModuleDict(), card), c.out / MODEL)

    def _metrics(self) -> Iterator[Metric]:
        if self.config.probe is None:
            return
        for state, numbers in read_json(self.config.out / PROBE).items():
            for name in ("knn", "linear"):
                metric = Metric(
                    name=f"{name} probe of {self.config.probe_label}, balanced accuracy, {state}",
                    value=numbers[name],
                    data=self.config.probe.name,
                    seed=self.config.seed,
                )
                if numbers[f"{name}_low"] is not None:
                    metric["interval"] = [numbers[f"{name}_low"], numbers[f"{name}_high"]]
                yield metric


def _completed(described: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` holds, with the defaults of settings that are newer than it."""
    return {**described, "config": _absolute(stored_settings(described["config"]))}


def _absolute(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings whose paths are absolute, so that a run goes on when it is called from another folder."""
    paths = {name: tree[name] for name in ("manifest", "probe") if tree.get(name)}
    if tree.get("others"):
        paths_of = [str(Path(path).expanduser().absolute()) for path in tree["others"]]
        tree = {**tree, "others": paths_of}
    if Path(tree["initialisation"]).expanduser().exists():
        paths["initialisation"] = tree["initialisation"]
    return {**tree, **{name: str(Path(path).expanduser().absolute()) for name, path in paths.items()}}


def _without_heads(start: VideoModel | Encoder) -> VideoModel:
    """The backbone of what a run begins with, as a model that can be saved."""
    if isinstance(start, Encoder):
        return model_on(start, {}, start.kind, HANDED_OVER)
    return VideoModel(start.backbone, nn.ModuleDict(), dataclasses.replace(start.card, heads={}))


def _check_views(views: ViewSpec, backbone: Encoder) -> None:
    """Refuse views that the patches of an encoder do not divide."""
    for px in (views.global_px, views.local_px)[: 2 if views.local_frames else 1]:
        if px % backbone.patch_px:
            raise UserError(f"Views of {px} px do not divide into patches of {backbone.patch_px} px.")


@torch.no_grad()
def _forget_constants(backbone: VideoTransformer) -> None:
    """Start CLS and its position at zero, in place, so that a fresh feature holds nothing but the clip.

    Otherwise most of it is the same for every clip, and the teacher's answers are nearly uniform once they are centred:
    on the phantom the spread of untrained features (`feature_std`) of `tiny` grows from 0.29 to 0.76 with this and the
    preset's normalisation (0.33 and 0.49 with one of them).
    """
    backbone.cls_token.zero_()
    backbone.pos_embed[:, :1].zero_()
