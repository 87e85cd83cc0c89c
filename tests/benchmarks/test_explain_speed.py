"""What looking inside costs: ratios and times are printed, only equal numbers are asserted."""

import statistics
import time

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.explain.atlas import Neighbours, fit_pca
from endofm_lab.model.transformer import build_backbone

pytestmark = pytest.mark.benchmark


def seconds(call, repeats=5):
    call()
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


@torch.inference_mode()
def test_all_maps_of_base_beside_a_plain_forward():
    backbone = build_backbone("base").eval()
    clip = torch.randn(1, 3, 8, 224, 224, generator=torch.Generator().manual_seed(0))
    plain, maps = seconds(lambda: backbone(clip)), seconds(lambda: backbone(clip, attention=True))
    print(f"\nall maps of base: {maps / plain:.2f} x a plain forward (bound 1.5), {plain:.2f} s and {maps:.2f} s")
    torch.testing.assert_close(backbone(clip).cls, backbone(clip, attention=True).cls, rtol=0, atol=1e-4)


def test_neighbours_and_pca_of_a_hundred_thousand():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(100_000, 768)).astype(np.float32)
    rows = pd.DataFrame({"video": np.arange(100_000) // 50, "patient": np.arange(100_000) // 500})
    finder = Neighbours(vectors, rows)
    query_s = seconds(lambda: finder.of(123, 10, "patient"), repeats=20)
    print(f"\nneighbours of one among 100,000: {query_s * 1000:.1f} ms (bound 50)")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit[123]
    similarity[rows["patient"] == rows["patient"][123]] = -2
    assert finder.of(123, 10, "patient")["row"].tolist() == np.argsort(-similarity, kind="stable")[:10].tolist()
    pca_s = seconds(lambda: fit_pca(vectors, 2).project(vectors), repeats=3)
    print(f"PCA of 100,000 x 768, fitted and projected: {pca_s:.2f} s (bound 5)")
    pca = fit_pca(vectors, 2)
    np.testing.assert_allclose(pca.axes @ pca.axes.T, np.eye(2), atol=1e-4)
