"""Speed of the audit: hashing pictures, checks, split and mapping of a million rows, the search of a million hashes.

Prints what it measured (run alone: `pytest -m benchmark -s`); asserts only results.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from endofm_lab.data.audit.audit import audit
from endofm_lab.data.coverage import coverage
from endofm_lab.data.hashing import near_pairs
from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import Manifest, checked
from endofm_lab.data.splits import holdout


def report(task: str, n: int, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{task}: {n:,} in {seconds:.1f} s = {60 * n / seconds:,.0f} per minute (peak memory {peak:.1f} GiB)")


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_ten_thousand_generated_frames_are_hashed_and_audited(tmp_path: Path) -> None:
    """Frames of generated clips as JPEG files; twenty are compressed again and lie across the split."""
    from endofm_lab.video.phantom import FINDINGS, PhantomSpec, render

    rows, n = [], 10_000
    clips, per_clip = 50, 48
    rng = np.random.default_rng(0)
    for clip in range(clips):
        finding = FINDINGS[clip % len(FINDINGS)]
        spec = PhantomSpec(seed=clip, patient=clip, finding=finding, n_frames=per_clip, size_px=256)
        frames = render(spec).frames
        for k in range(n // clips):
            # More frames than are drawn: shifted crops of drawn ones, as a slow camera gives.
            x, y = rng.integers(0, 12, 2)
            name = f"clip{clip}_{k:04d}.jpg"
            Image.fromarray(frames[k % per_clip][y : y + 244, x : x + 244]).save(tmp_path / name, quality=90)
            rows.append((name, f"p{clip}", finding, "test" if clip >= 40 else "train"))
    planted = range(0, n // 5 * 4, 400)
    for number, source in enumerate(planted):
        name = f"copy{number}_0000.jpg"
        Image.open(tmp_path / rows[source][0]).save(tmp_path / name, quality=60)
        rows.append((name, f"q{number}", rows[source][2], "test"))
    video, patient, label, split = zip(*rows, strict=True)
    table = pd.DataFrame({"video": video, "patient": patient, "label": label, "split": split})
    table = table.assign(start_s=0.0, end_s=0.0, dataset="generated")
    begin = time.perf_counter()
    result = audit(Manifest(checked(table, "made"), tmp_path), pictures=True, progress=False)
    report("hashed and audited", len(rows), time.perf_counter() - begin)
    print(result.text())
    touched = {Path(e.path).name for f in result.findings for e in f.examples if f.severity == "leak"}
    assert result.leaking["train", "test"][0] >= len(planted) and any(name.startswith("copy") for name in touched)


def million(with_names: bool) -> pd.DataFrame:
    """A million frames of three data sets: of 2000 videos and 500 patients, or pictures of which nothing is known."""
    n = 1_000_000
    rng = np.random.default_rng(0)
    labels = {"hyper-kvasir": ["polyp", "cecum"], "kvasir-capsule": ["Normal", "Ulcer"], "limuc": ["Mayo 0", "Mayo 1"]}
    video = rng.integers(0, 2000, n)
    source = video % 3 if with_names else rng.integers(0, 3, n)
    names = np.array(list(labels), dtype=object)
    text = np.array(list(labels.values()), dtype=object)[source, rng.integers(0, 2, n)]
    if with_names:
        frame = rng.permutation(n).tolist()
        paths = [f"{v:04d}/{v:04d}a_{f}.jpg" for v, f in zip(video.tolist(), frame, strict=True)]
        patient = np.char.add("p", (video // 4).astype(str))
    else:
        paths, patient = [f"picture-{i}z.jpg" for i in range(n)], ""
    table = pd.DataFrame({"video": paths, "label": text, "patient": patient, "dataset": names[source]})
    split = np.where(video < 1601, "train", "test")
    return checked(table.assign(start_s=0.0, end_s=0.0, split=split, device=rng.choice(["A", "B"], n)), "made")


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_million_rows_are_audited_by_their_ids() -> None:
    table = million(with_names=True)
    begin = time.perf_counter()
    result = audit(Manifest(table, Path()))
    report("audited by ids", len(table), time.perf_counter() - begin)
    # Videos 1600 to 1603 are one patient's, and the split runs through them: patients count within a data set.
    assert [f.numbers["common"] for f in result.findings if f.check == "same patient"] == [1]


WHOLE_WAY = """
import json, resource, sys, time
from endofm_lab.data.audit.audit import audit
from endofm_lab.data.manifest import read_manifest
manifest = read_manifest(sys.argv[1])
read = time.process_time()
fingerprint = manifest.fingerprint
hashed = time.process_time()
audit(manifest, progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"read": read, "fingerprint": hashed - read, "audit": time.process_time() - hashed, "gib": peak}))
"""


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_manifest_of_a_million_rows_is_read_fingerprinted_and_audited_in_a_minute(tmp_path: Path) -> None:
    """Seconds are those of the processor, imports included, so that other work on the machine does not count."""
    million(with_names=True).to_csv(tmp_path / "million.csv", index=False)
    command = [sys.executable, "-c", WHOLE_WAY, str(tmp_path / "million.csv")]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"\n{measured}")
    assert measured["read"] + measured["fingerprint"] + measured["audit"] < 60 and measured["gib"] < 2


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("with_names", [True, False], ids=["patients", "pictures"])
def test_a_million_rows_are_split_and_mapped(with_names: bool) -> None:
    table = million(with_names)
    begin = time.perf_counter()
    split = holdout(table)
    report(f"split into {split.n_groups:,} groups", len(table), time.perf_counter() - begin)
    assert split.torn == 0 and split.deviation < 0.02
    begin = time.perf_counter()
    covered = coverage(table, read_mapping("findings-mst"))
    report("mapped and covered", len(table), time.perf_counter() - begin)
    assert covered.labels["rows"].sum() == len(table)
    begin = time.perf_counter()
    assert len(Manifest(table, Path()).fingerprint) == 64
    report("fingerprinted", len(table), time.perf_counter() - begin)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_million_hashes_are_searched() -> None:
    """Hashes with the correlated bits of real pictures: a few shared patterns (vignette, lumen), then noise."""
    n = 1_000_000
    rng = np.random.default_rng(0)
    field = rng.normal(size=(12, 128)).astype(np.float32)
    bits = np.empty((n, 16), np.uint8)
    for start in range(0, n, 50_000):
        values = rng.normal(size=(50_000, 12)).astype(np.float32) @ field + 2 * rng.normal(size=(50_000, 128))
        bits[start : start + 50_000] = np.packbits(values > 0, axis=1)
    bits[-1000:] = bits[:1000]  # planted copies, one bit changed
    bits[-1000:, 0] ^= 1
    hashes = bits.view(np.uint64)
    begin = time.perf_counter()
    pairs = {(i, j) for block in near_pairs(hashes, 10) for i, j, _ in zip(*block, strict=True)}
    report("hashes searched", n, time.perf_counter() - begin)
    assert {(i, n - 1000 + i) for i in range(1000)} <= pairs
