"""The audit checks whether the results of a split can be trusted.

It looks for everything that makes a test set easier than clinical practice: the same patient, video or sequence on both
sides, neighbouring frames across the split, the same or nearly the same pictures, pre-training data in the test set,
classes that can be guessed from the device or the source, and labels that contradict each other. The audit changes no
data. It reports its findings, the checks that were impossible, and one line for every report.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.audit.checks import SEVERITIES, Checks, Finding, percent
from endofm_lab.data.audit.duplicates import embedding_neighbours, picture_neighbours
from endofm_lab.data.audit.overlap import gather
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.units import units
from endofm_lab.errors import UserError
from endofm_lab.files import write_json
from endofm_lab.folders.provenance import provenance


@dataclass(frozen=True, repr=False)
class Audit(Brief):
    """The findings of the audit; ``verdict`` is the line in the reports of runs.

    Attributes:
        n_rows: number of rows that were checked.
        units: the units of independence of these rows, such as "16 patients" or "1 sequence; patients unknown".
        datasets: names of the data sets, sorted.
        parts: rows per split, from the most learned from (pretrain) to the most held out (test).
        findings: the worst first.
        leaking: (learned, evaluated) -> evaluated rows touched by any leak, evaluated rows.
        compared: what was compared, and how.
        unchecked: what could not be compared, and why.
        fingerprints: SHA-256 of each manifest's content, in their order.
    """

    n_rows: int
    units: str
    datasets: tuple[str, ...]
    parts: dict[str, int]
    findings: tuple[Finding, ...]
    leaking: dict[tuple[str, str], tuple[int, int]]
    compared: tuple[str, ...]
    unchecked: tuple[str, ...]
    fingerprints: tuple[str, ...]

    def _repr_html_(self) -> str:
        return html_of(
            self,
            pd.DataFrame(
                [(f.severity, f.check, f.message) for f in self.findings], columns=["severity", "check", "message"]
            ),
        )

    @property
    def leaks(self) -> bool:
        """Whether any evaluated row is not independent of what is learned from."""
        return any(touched for touched, _ in self.leaking.values())

    @property
    def verdict(self) -> str:
        """One line that names the leaks and their size, or the comparisons that found no leak."""
        if len(self.parts) < 2:
            return "Nothing to compare: the manifest has fewer than two parts. Split it first."
        if not self.leaks:
            sentence = f"no leakage found between {', '.join(self.parts)} (compared: {'; '.join(self.compared)})."
            if self.unchecked:
                return f"CANNOT TELL for everything: {' '.join(self.unchecked)} Otherwise, {sentence}"
            return sentence[0].upper() + sentence[1:]
        leaks = []
        for (learned, evaluated), (touched, total) in self.leaking.items():
            checks = dict.fromkeys(f.check for f in self.findings if (f.learned, f.evaluated) == (learned, evaluated))
            if touched:
                leaks.append(
                    f"{touched:,} of {total:,} {evaluated} rows ({percent(touched, total)}) are not independent of "
                    f"{learned} ({', '.join(checks)})"
                )
        return "LEAKAGE: " + "; ".join(leaks) + "."

    def text(self) -> str:
        """The verdict, every finding and everything that could not be checked, a line each."""
        lines = [self.verdict, f"{self.n_rows:,} rows of {self.units}.", ""]
        lines += [f"[{finding.severity}] {finding.message}" for finding in self.findings]
        lines += [f"[not checked] {sentence}" for sentence in self.unchecked]
        return "\n".join(lines).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``, for other programs."""
        return {
            "verdict": self.verdict,
            "leaks": self.leaks,
            "n_rows": self.n_rows,
            "units": self.units,
            "datasets": list(self.datasets),
            "parts": self.parts,
            "leaking": [
                {"learned": learned, "evaluated": evaluated, "rows": touched, "of_rows": total}
                for (learned, evaluated), (touched, total) in self.leaking.items()
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "compared": list(self.compared),
            "unchecked": list(self.unchecked),
            "manifest_fingerprints": list(self.fingerprints),
            "provenance": provenance(),
        }

    def write_json(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file; atomic."""
        write_json(path, self.to_json())


def audit(
    manifests: Manifest | Sequence[Manifest],
    *,
    pretrain: Sequence[Manifest] = (),
    pictures: bool = False,
    embeddings: np.ndarray | None = None,
    progress: bool = True,
) -> Audit:
    """Look for leakage between the splits of one or several manifests.

    Args:
        manifests: the training and test data; the column ``split`` tells them apart.
        pretrain: manifests that a model was pre-trained on; all their rows count as the split `pretrain`. Rows whose
            split says `pretrain` count too.
        pictures: open the pictures and videos and compare them.
        embeddings: float (N, D), one vector per row in the order of the manifests (pre-training last); compared by
            cosine.
        progress: show progress bars while pictures are read.

    Raises:
        UserError: there is no manifest or no row, or the embeddings do not fit the rows.
    """
    manifests = [manifests] if isinstance(manifests, Manifest) else list(manifests)
    if not manifests and not pretrain:
        raise UserError("The audit needs at least one manifest.")
    rows = gather(manifests, pretrain)
    if not len(rows.table):
        raise UserError("The audit found no rows: the manifests are empty.")
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != len(rows.table)):
        raise UserError(
            f"The embeddings have shape {embeddings.shape}; it must be (rows, dimensions) with {len(rows.table)} rows."
        )
    checks = Checks(rows)
    for learned, evaluated in rows.pairs:
        checks.same_ids(learned, evaluated)
        checks.near_frames(learned, evaluated)
        checks.near_clips(learned, evaluated)
    if pictures:
        checks.neighbours(picture_neighbours(rows, progress), "near-duplicate pictures")
    if embeddings is not None:
        checks.neighbours(embedding_neighbours(rows, embeddings), "near-duplicate embeddings")
    checks.label_contradictions()
    checks.confounders()
    checks.blind_spots()
    names = rows.parts
    return Audit(
        n_rows=len(rows.table),
        units=units(rows.table).words,
        datasets=tuple(sorted(set(rows.table["dataset"]) - {""})),
        parts={name: int((rows.part == number).sum()) for number, name in enumerate(names)},
        findings=tuple(
            sorted(checks.findings, key=lambda f: (SEVERITIES.index(f.severity), -f.rows / max(f.of_rows, 1)))
        ),
        leaking={
            (names[a], names[b]): (int(checks.touched[a, b].sum()), int((rows.part == b).sum())) for a, b in rows.pairs
        },
        compared=tuple(checks.compared),
        unchecked=tuple(checks.unchecked),
        fingerprints=tuple(manifest.fingerprint for manifest in [*manifests, *pretrain]),
    )
