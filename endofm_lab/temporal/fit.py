"""Fit a model of time on stored vectors, test it once, and write a run that compares with those of `finetune`.

A run folder holds ``config.json``; per seed ``seed-<n>/`` with log, checkpoints, validations, the test's predictions
and ``model/``; and, last, the files of ``runs.run``.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import ManifestError
from endofm_lab.explain.embeddings import EmbeddingStore, load_store
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.card import HeadSpec
from endofm_lab.runs.run import PREDICTIONS, REPORT, Run, pooled_predictions, write_predictions, write_run
from endofm_lab.tasks.budgets import ALL, head_within, within_budget
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.examples import SPLITS, examples_of, read_split, refuse_shared_units, units_of
from endofm_lab.tasks.labels import class_head, class_targets
from endofm_lab.tasks.phases import Phases
from endofm_lab.tasks.task import Task
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.model import TemporalCard, TemporalModel, save_temporal
from endofm_lab.temporal.recordings import Recording, labelled_recordings
from endofm_lab.temporal.training import answers, fit_exactly, fit_network, measured, prepare
from endofm_lab.training.loop import Record
from endofm_lab.training.processes import train_on

CONFIG = "config.json"
METHODS = {
    "tcn": "temporal convolution",
    "tcn++": "temporal convolution with dual dilation",
    "transformer": "transformer over time",
    "gru": "recurrent network",
    "linear": "linear probe of instants",
}


def fit_temporal(config: TemporalConfig) -> Iterator[Record]:
    """Train on the recordings of the split train, choose on val if there are such rows, test once on test.

    A stopped run continues when called again with the same configuration, with the numbers of a run that was never
    stopped, bit for bit. A finished run yields nothing.

    Args:
        config: data, network and budget.

    Yields:
        One record per seed at its start ("seed", "split", "audit"); one per training step ("seed", "step", "loss", ...,
        and "validation" at validations); and one per seed at its end ("seed", "chosen", "test": metrics by name).

    Raises:
        UserError: the data are bad, the store lacks videos of the manifest, or ``out`` holds a run with another
            configuration; the message names the difference.
    """
    job = _Job.open(config)
    manifest = {"manifest": str(config.manifest.absolute()), "features": str(config.features.absolute())}
    with claim(config.out, job.request(), "a run", record=CONFIG, about=manifest, completed=_completed):
        if (config.out / REPORT).is_file():
            return
        for seed in config.seeds:
            if not (job.folder(seed) / PREDICTIONS).is_file():
                yield from job.one_seed(seed)
        job.finish()


def _completed(request: dict[str, Any]) -> dict[str, Any]:
    """The settings in ``config.json``, with the defaults of settings that are newer than the file."""
    return {"budget": ALL, **request}


@dataclass
class _Job:
    """A run in progress."""

    config: TemporalConfig
    task: Task
    manifest: Manifest
    within: Manifest
    head: HeadSpec
    store: EmbeddingStore
    recordings: dict[str, list[Recording]]
    verdict: str
    leaks: list[str]

    @classmethod
    def open(cls, config: TemporalConfig) -> "_Job":
        train_on("cpu")  # vectors are small: a GPU would wait for them
        store, manifest = load_store(config.features), read_split(config.manifest, config.split_name)
        audit_result = audit(manifest, progress=False)
        if missing := sorted({"train", "test"} - set(manifest.table["split"])):
            raise ManifestError(
                f"The split {config.split_name!r} has no rows of {' and '.join(missing)}. Make them with `endofm-lab "
                "data split`."
            )
        if config.shared_patients == "refuse":
            refuse_shared_units(manifest)
        several = config.several_labels
        manifest = _labelled(manifest, config.label, several)
        within = within_budget(manifest, config.budget, config.label)
        head = head_within(lambda part: class_head(part, config.label, several), manifest, within, config.budget)
        recordings: dict[str, list[Recording]] = {}
        for split in SPLITS:
            examples = []
            if (manifest.table["split"] == split).any():
                examples = examples_of(within, split, class_targets(within, split, head, config.label))
            recordings[split] = labelled_recordings(within, store, examples, len(head.classes) if several else None)
        task = Classification(config.label, True) if several else Phases(config.label, store.about["step_s"])
        leaks = [finding.message for finding in audit_result.findings if finding.severity == "leak"]
        return cls(config, task, manifest, within, head, store, recordings, audit_result.verdict, leaks)

    def request(self) -> dict[str, Any]:
        """Everything that the run's numbers depend on."""
        settings = asdict(self.config)
        about = self.store.about
        return {
            **{name: value for name, value in settings.items() if name not in ("manifest", "features", "out")},
            "manifest_fingerprint": self.manifest.fingerprint,
            "encoder_fingerprint": about["model_fingerprint"],
            "vector": about["vector"],
            "step_s": about["step_s"],
            "files": about["videos"],
        }

    @property
    def method(self) -> str:
        """The method in words."""
        config = self.config
        words = [METHODS[config.network.kind], "offline" if config.network.offline else "causal"]
        if config.inputs.average_s:
            words.append(f"mean over {config.inputs.average_s:g} s")
        if config.inputs.components is not None:
            words.append(f"{config.inputs.components} components")
        if config.inputs.clock:
            words.append("clock")
        if config.smooth:
            words.append("smoothed")
        return ", ".join(words)

    def folder(self, seed: int) -> Path:
        return self.config.out / f"seed-{seed}"

    def one_seed(self, seed: int) -> Iterator[Record]:
        """Fit, choose and test with one seed."""
        folder, config = self.folder(seed), self.config
        counts = ", ".join(f"{len(of_split)} {split}" for split, of_split in self.recordings.items())
        yield {"seed": seed, "split": f"{config.split_name}: recordings {counts}", "audit": self.verdict}
        torch.manual_seed(seed)
        model = TemporalModel(self._card())
        prepare(model, self.recordings["train"])
        choice = None
        if config.network.kind == "linear":
            fit_exactly(model, self.recordings["train"], config.l2)
            model.eval()
        else:
            choice = yield from fit_network(config, seed, self.task, model, self.recordings, folder)
        table = answers(model, self.recordings["test"])
        metrics = measured(self.task, table)
        model.card = replace(model.card, metrics={k: v for k, v in metrics.items() if not math.isnan(v)})
        save_temporal(model, folder / "model")
        write_predictions(folder / PREDICTIONS, table, units_of(self.manifest, "test").kind)
        chosen = {} if choice is None else {"chosen": choice.chosen, "validation": choice.validation}
        yield {"seed": seed, **chosen, "test": metrics}

    def _card(self) -> TemporalCard:
        about, config, names = self.store.about, self.config, sorted(set(self.manifest.table["dataset"]))
        return TemporalCard(
            name=f"{config.label} over time on {', '.join(names)} ({self.method})",
            classes=self.head.classes,
            several=config.several_labels,
            smooth=config.smooth,
            width=int(about["width"]),
            network=config.network,
            inputs=config.inputs,
            step_s=float(about["step_s"]),
            encoder={
                "name": about["model_name"],
                "fingerprint": about["model_fingerprint"],
                "vector": about["vector"],
            },
            data={"fingerprint": self.manifest.fingerprint, "generated": self.manifest.generated},
        )

    def finish(self) -> None:
        """Write the finished run."""
        config, manifest = self.config, self.manifest
        parts = {
            split: Manifest(self.within.rows(split), manifest.root).fingerprint
            for split in SPLITS
            if (manifest.table["split"] == split).any()
        }
        chosen = "val" in parts and config.network.kind != "linear"
        protocol: dict[str, Any] = {
            "dataset": ", ".join(sorted(set(manifest.table["dataset"]))),
            "chosen_on": "validation" if "val" in parts else "nothing",
            "classes": ", ".join(self.head.classes),
            **{split: parts[split] for split in parts if split != "test"},
            "label": config.label,
            "step_s": self.store.about["step_s"],
        }
        write_run(
            config.out,
            Run(
                run=config.out.name,
                task=self.task.name,
                method=self.method,
                initialisation=f"frozen vectors of {self.store.about['model_name']} ({self.store.about['vector']})",
                seeds=config.seeds,
                protocol=protocol,
                test={"fingerprint": parts["test"], "split": config.split_name},
                audit={"findings": self.leaks, "verdict": self.verdict},
                predictions=pooled_predictions(config.out, config.seeds),
                unit=units_of(manifest, "test").described(),
                provenance={
                    **provenance(torch.device("cpu")),
                    **({"chosen_by": f"validation {self.task.chosen_by}"} if chosen else {}),
                },
            ),
        )


def _labelled(manifest: Manifest, label: str, several: bool) -> Manifest:
    """The manifest without rows that have no label; with several labels, an empty cell means none of them."""
    if several or label not in manifest.table:
        return manifest
    return replace(manifest, table=manifest.table[manifest.table[label].fillna("") != ""].reset_index(drop=True))
