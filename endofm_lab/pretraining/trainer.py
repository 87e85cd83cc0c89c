"""Self-supervised pre-training of a video transformer: a generator of records, and a run folder that can be resumed.

A run folder holds ``config.json``, ``log.jsonl``, ``checkpoints/``, the trackers' files, and at the end ``model/``.
To train with several processes, start the same call in each of them with `accelerate launch --multi_gpu` (each process
holds all weights) or `--use_fsdp` (each holds its share), or with `accelerate.notebook_launcher`. A stopped run can
continue with another number of processes; its numbers then agree within rounding.
"""

import dataclasses
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.files import fingerprint_of, read_json, write_json
from endofm_lab.folders.plain import to_plain
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import check_request, claim
from endofm_lab.model.card import InitialisationRecord, Metric, ModelCard
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.frame import FrameBackbone, load_frame_weights
from endofm_lab.model.loading.load import in_memory, initialise, load_model, save_model, without_heads
from endofm_lab.model.loading.locate import absolute, locate
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.model.video_model import VideoModel, described
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.outside import Allowed, allowing
from endofm_lab.pretraining.config import PretrainConfig, known_settings, own_objective, settings, stored_settings
from endofm_lab.pretraining.corpus import Corpus, Mixture, mixed
from endofm_lab.pretraining.health import ProbeData, encode, feature_measures, load_probe, probe, verdict
from endofm_lab.pretraining.objective import Objective
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.training.extension import extend, shorter_run, steps_done
from endofm_lab.training.loop import LOG, LoopConfig, Record, read_log, train
from endofm_lab.training.optimiser import parameter_groups
from endofm_lab.training.processes import gathered, processes, train_on
from endofm_lab.training.schedules import cosine
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec

CONFIG, MODEL, PROBE = "config.json", "model", "probe.json"
_NO_HASHES = ("report.html", "report.json")  # written again after the run has ended
START = "start"  # folder of the backbone that was given as an object
_FEATURES_EVERY = 10  # steps between measurements of the features' spread and rank


def pretrain(
    config: PretrainConfig, objective: Objective | None = None, start: VideoModel | Encoder | None = None
) -> Generator[Record, None, None]:
    """Pre-train, from the last checkpoint in the run folder if there is one, and yield a record per step.

    >>> for record in pretrain(tiny(Path("phantom/manifest.csv"), Path("runs/first"))):
    ...     print(record["step"], record["loss"], record["health"])

    Args:
        config: configuration of the run.
        objective: an objective of your own, which replaces the objective of the configuration.
        start: a model or encoder in memory to start from, which replaces the configuration's ``backbone`` (or
            ``image_model``) and ``initialisation``; it keeps its weights and is saved in the run's folder.

    Yields:
        Records of the loop (see `endofm_lab.training.loop.train`): "loss" and the other values of the objective; every
        ten steps "feature_std" and "rankme"; after a probe "knn", "linear" and "chance" (balanced accuracy). "health"
        is the state of the verdict; it is not logged, because it follows from the log.

    Raises:
        UserError: the folder holds another run, the manifest or a video has changed since (the message names the
            differences), or the settings cannot work.
        ManifestError: there are no rows to learn from, or files are missing.
        DivergenceError: the loss is not a number.
    """
    run = _Pretraining(config, objective, start)
    with run.claimed():
        run.prepare()
        records = read_log(run.out / LOG)[: run.steps_done]
        for record in run.train():
            records.append(record)
            yield record | {"health": verdict(records, run.signs).state}
        run.save_model()


def resume(out: str | Path, allow: Allowed = ()) -> Generator[Record, None, None]:
    """Continue the run in a folder.

    Args:
        out: folder of the run.
        allow: code from outside the library that the run may use: its objective and encoder, as in `load_model`.

    Raises:
        UserError: the folder holds no run, or the run needs code that is not allowed.
    """
    with allowing(allow):
        return pretrain(run_config(out), *handed_over(out))


def handed_over(out: str | Path) -> tuple[Objective | None, VideoModel | None]:
    """The objective and the start that were given to the run in a folder as objects.

    Raises:
        UserError: they need code that is not allowed, or the run was stopped before its start was saved.
    """
    out = Path(out)
    description = read_json(out / CONFIG)
    objective = own_objective(description.get("config", {}), str(out))
    if "start" not in description:
        return objective, None
    if not (out / START).is_dir():
        raise UserError(f"{out} was stopped before it saved its start: call pretrain(config, start=...) again.")
    return objective, load_model(out / START)


def run_config(out: str | Path) -> PretrainConfig:
    """The configuration of the run in a folder, which may have been moved.

    Raises:
        UserError: the folder holds no run.
    """
    path = Path(out) / CONFIG
    if not path.is_file():
        raise UserError(f"{out} holds no pre-training run ({CONFIG} is missing); start one with --out {out}.")
    return dataclasses.replace(known_settings(read_json(path)["config"]), out=Path(out))


def plan(
    config: PretrainConfig, objective: Objective | None = None, start: VideoModel | Encoder | None = None
) -> dict[str, Any]:
    """What a run would do, before any network is built: configuration, clips, videos, steps. Arguments of `pretrain`.

    Raises:
        UserError: as `pretrain`.
    """
    run = _Pretraining(config, objective, start)
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
    """The parts of one run: data, network, objective and optimiser."""

    def __init__(self, config: PretrainConfig, objective: Objective | None, start: VideoModel | Encoder | None) -> None:
        self.device = train_on(config.device)
        self.objective = config.chosen if objective is None else objective
        self.objective.check()
        self.config, self.signs, self.out = config, self.objective.signs(config), Path(config.out)
        self.start = None if start is None else without_heads(start)
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
        """Build the network and record the origin of its weights; a resumed run keeps its record."""
        config = self.config
        self.steps_done = steps_done(self.out)
        path = self.out / CONFIG
        description = read_json(path) if path.is_file() else {}  # only the main process writes the file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone = self.encoder(self.shapes)
            if self.steps_done:  # the checkpoint holds the weights
                self.initialisation: InitialisationRecord = description["initialisation"]
            else:
                self.initialisation = self._initialised(backbone)
                description["initialisation"] = self.initialisation
            self.model = self.objective.build(backbone, config, self.steps, self.per_epoch)
        if config.compile:
            for module in self.model.backbones():
                module.compile()
        self.probe, self.last_probe = self._load_probes()
        if processes().is_main_process:
            if self.start is not None and not (self.out / START).is_dir():
                save_model(self.start, self.out / START)
            write_json(path, description)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run folder in the main process; refuse the folder of another run in every process."""
        tree = _absolute(settings(self.config, self.objective))
        config = {name: value for name, value in tree.items() if name not in ("out", "device")}
        first, *further = (manifest.fingerprint for manifest in self.manifests)
        request = {"config": config, "manifest_fingerprint": first}
        request |= {f"manifest_{number}_fingerprint": fingerprint for number, fingerprint in enumerate(further, 2)}
        if self.start is not None:
            weights = state_fingerprint(self.start)
            request["start"] = {"backbone": self.start.card.backbone, "weights": weights}
        request |= {"videos": self.corpus.contents(), **self._weights_request(), **self._probe_request()}
        kind, out = "a pre-training run", self.out
        own_values = self.objective.depends_on_length
        request_there = shorter_run(out, request, self.steps, self.schedule, own_values, CONFIG, _completed)
        if not processes().is_main_process:
            if (out / CONFIG).is_file() and request_there is None:
                check_request(out, request, kind, CONFIG, _completed)
            yield
            return
        description = {
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
            out, request_there or request, kind, record=CONFIG, about=description, allowed_files=_NO_HASHES,
            completed=_completed,
        ):  # fmt: skip
            if request_there is not None:
                extend(out, tree, self.steps, self.device, CONFIG)
            yield

    def _weights_request(self) -> dict[str, str]:
        """Fingerprints of the weights on this disk; a run can continue although its start was deleted."""
        sources = {"start_weights": self.config.initialisation, **self.objective.sources()}
        paths = {
            name: locate(source) if source == "demo" else Path(source).expanduser() for name, source in sources.items()
        }
        return {name: fingerprint_of(path) for name, path in paths.items() if sources[name] and path.exists()}

    def _probe_request(self) -> dict[str, Any]:
        """Fingerprints of the labelled rows and videos of the probe."""
        if self.config.probe is None:
            return {}
        manifest = read_manifest(self.config.probe)
        return {"probe_fingerprint": manifest.fingerprint, "probe_videos": manifest.contents()}

    def _initialised(self, backbone: Encoder) -> InitialisationRecord:
        """Initialise the backbone; returns the record of the origin of its weights."""
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
        """The probe's data during the run ("val" if possible), and before and after the run ("test" if possible)."""
        c = self.config
        if c.probe is None or not processes().is_main_process:
            return None, None
        manifest, frames, px = read_manifest(c.probe), c.views.global_frames[0], c.views.global_px
        during = load_probe(manifest, frames, px, c.probe_label)
        if not {"val", "test"} <= set(manifest.table["split"]):
            return during, during
        return during, load_probe(manifest, frames, px, c.probe_label, held_out=("test", "val"))

    def train(self) -> Iterator[Record]:
        """The records of the training loop."""
        c = self.config
        loop = LoopConfig(
            steps=self.steps, batch=c.batch, accumulation=c.accumulation, precision=c.precision, clip=c.clip,
            seed=c.seed, save_every=c.save_every, keep=c.keep, workers=c.workers, trackers=c.trackers,
        )  # fmt: skip
        optimiser = torch.optim.AdamW(parameter_groups(self.model), fused=True)  # one pass over the weights
        if self.last_probe is not None and not self.steps_done:
            write_json(self.out / PROBE, {"untrained": self._probed(self.teacher(), self.last_probe, n_resamples=1000)})
        return train(
            self.model, optimiser, partial(self.schedule, steps=self.steps), self.corpus, loop, self.out, self.measure
        )

    def schedule(self, step: int, steps: int) -> dict[str, float]:
        """Learning rate and weight decay at a step of a run with this number of steps."""
        c = self.config
        warmup = round(c.warmup_epochs * self.per_epoch)
        return {
            "lr": cosine(step, c.lr * c.batch / 256, c.lr_end, steps, min(warmup, steps)),
            "weight_decay": cosine(step, *c.weight_decay, steps),
        }

    def measure(self, step: int) -> Record:
        """Spread and rank of the features and the results of the probe, at the steps that measure them."""
        numbers: Record = {}
        last = step + 1 == self.steps
        if (step + 1) % _FEATURES_EVERY == 0 or last:
            numbers |= feature_measures(self.model.recent.rows())
        if self.config.probe is not None and ((step + 1) % self.config.probe_every == 0 or last):
            teacher = self.teacher()
            if self.probe is not None:
                numbers |= self._probed(teacher, self.probe, n_resamples=0)
            if self.last_probe is not None and last:
                trained = self._probed(teacher, self.last_probe, n_resamples=1000)
                write_json(self.out / PROBE, read_json(self.out / PROBE) | {"trained": trained})
        return numbers

    def _probed(self, teacher: Encoder, data: ProbeData, n_resamples: int) -> Record:
        return probe(encode(teacher, data.frames, self.input), data, n_resamples)

    def teacher(self) -> Encoder:
        """The backbone that the run saves, with its current weights; to be called in every process that shares them."""
        is_complete = self.encoder.state_is_whole
        with torch.random.fork_rng(devices=[]), torch.device("meta") if is_complete else nullcontext():
            backbone = self.encoder(self.shapes)
        backbone.load_state_dict(gathered(self.model.kept().state_dict()), assign=is_complete)
        return backbone.to(processes().device).eval()

    @property
    def input(self) -> InputSpec:
        """The input of the saved backbone: whole frames of the global views' size."""
        views = self.config.views
        return dataclasses.replace(views.input, size_px=views.global_px)

    def save_model(self) -> None:
        """Save the teacher's backbone with its card; to be called in every process."""
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
        save_model(VideoModel(backbone.cpu(), nn.ModuleDict(), card), self.out / MODEL)

    def _metrics(self) -> Iterator[Metric]:
        if self.config.probe is None:
            return
        for state, numbers in read_json(self.out / PROBE).items():
            for name in ("knn", "linear"):
                metric = Metric(
                    name=f"{name} probe of {self.config.probe_label}, balanced accuracy, {state}",
                    value=numbers[name],
                    data=Path(self.config.probe).name,
                    seed=self.config.seed,
                )
                if numbers[f"{name}_low"] is not None:
                    metric["interval"] = [numbers[f"{name}_low"], numbers[f"{name}_high"]]
                yield metric


def _completed(description: dict[str, Any]) -> dict[str, Any]:
    """The content of ``config.json``, with the defaults of settings that are newer than the file."""
    return {**description, "config": _absolute(stored_settings(description["config"]))}


def _absolute(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings with absolute paths, so that a run can continue from another working directory."""
    paths = {name: tree[name] for name in ("manifest", "probe") if tree.get(name)}
    if tree.get("others"):
        paths_of = [str(Path(path).expanduser().resolve()) for path in tree["others"]]
        tree = {**tree, "others": paths_of}
    plain = {name: str(Path(path).expanduser().resolve()) for name, path in paths.items()}
    return {**tree, **plain, "initialisation": absolute(tree["initialisation"])}


def _check_views(views: ViewSpec, backbone: Encoder) -> None:
    """Refuse views whose size is not a multiple of the encoder's patches."""
    for px in (views.global_px, views.local_px)[: 2 if views.local_frames else 1]:
        if px % backbone.patch_px:
            raise UserError(f"Views of {px} px do not divide into patches of {backbone.patch_px} px.")


@torch.no_grad()
def _forget_constants(backbone: VideoTransformer) -> None:
    """Set CLS and its position to zero in place, so that an untrained feature depends on the clip alone.

    Otherwise most of the feature is the same for every clip, and the teacher's targets are nearly uniform after
    centring. On the phantom, the spread of untrained features (`feature_std`) of `tiny` grows from 0.29 to 0.76 with
    these zeros and the preset's normalisation, and to 0.33 and 0.49 with only one of the two.
    """
    backbone.cls_token.zero_()
    backbone.pos_embed[:, :1].zero_()
