"""Speed of the audit: hashing pictures, the table checks on a million rows, the search among a million hashes.

Prints what it measured (run alone: `pytest -m benchmark -s`); asserts only results.
"""

import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from endofm_lab.data.audit import audit
from endofm_lab.data.hashing import near_pairs
from endofm_lab.data.manifest import Manifest, checked


def report(what: str, n: int, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{what}: {n:,} in {seconds:.1f} s = {60 * n / seconds:,.0f} per minute (peak memory {peak:.1f} GiB)")


@pytest.mark.benchmark
def test_ten_thousand_generated_frames_are_hashed_and_audited(tmp_path: Path) -> None:
    """Frames of generated clips as JPEG files; every twentieth is a re-compressed copy across the split."""
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


@pytest.mark.benchmark
def test_a_million_rows_are_audited_by_their_ids() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    video = rng.integers(0, 2000, n)
    frame = rng.permutation(n)
    table = pd.DataFrame(
        {
            "video": [f"{v:04d}/{v:04d}a_{f}.jpg" for v, f in zip(video.tolist(), frame.tolist(), strict=True)],
            "label": rng.choice(["normal", "polyp", "ulcer"], n),
            "patient": np.char.add("p", (video // 4).astype(str)),
            "split": np.where(video < 1601, "train", "test"),
        }
    ).assign(start_s=0.0, end_s=0.0, dataset="generated")
    data = Manifest(checked(table, "made"), Path())
    begin = time.perf_counter()
    result = audit(data)
    report("audited by ids", n, time.perf_counter() - begin)
    assert [f.numbers for f in result.findings if f.check == "same patient"] == [{"common": 1, "of": 100}]


@pytest.mark.benchmark
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
