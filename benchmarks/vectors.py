"""Work on vectors: rates of one thread, and what 1e8 images need by them, on paper.

    python -m benchmarks.vectors

Each rate is of the function that a stage calls, in multiply-adds a second, on 20,000 vectors of
2048 numbers. The rows on paper divide the multiply-adds of N images by it: K = sqrt(N) cells, a
sample of 20,000 images, 20 iterations. The network of `embed` is a ResNet-50 at 224 px, in images a
second without reading and decoding. faiss is measured where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.table import Row, main
from benchmarks.timing import in_turns
from pipeline.curate.selection import SAMPLE_IMAGES, Cells, near_duplicates, nearest
from pipeline.mine.scoring import REFERENCE_IMAGES
from sdclr import build_network, centre_view
from sdclr.kmeans import kmeans
from sdclr.rarity import knn_distance

DIM, NUM_VECTORS, NUM_CELLS, NUM_QUERIES, REPEATS = 2048, 20_000, 141, 256, 3
NUM_IMAGES, NUM_PROBED, ITERATIONS = 10**8, 16, 20
EMBED, NUM_EMBEDDED = "embed: the network", 8


def rows() -> list[Row]:
    """Measure the rates, and divide by them."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    unit_NF = torch.nn.functional.normalize(
        torch.randn(NUM_VECTORS, DIM, generator=generator), dim=1
    )
    some_nF, centres_KF = unit_NF[:2000], unit_NF[:NUM_CELLS]
    labels_N = np.arange(NUM_VECTORS) % NUM_CELLS
    cells = Cells(labels_N, centres_KF)
    work: dict[str, tuple[Callable[[], object], float]] = {
        "k-means of the sample": (
            lambda: kmeans(some_nF, NUM_CELLS, max_iterations=2),
            len(some_nF) * 4 * NUM_CELLS * DIM,  # seeds, first cells, two iterations
        ),
        "cell of each image": (
            lambda: nearest(unit_NF, centres_KF),
            NUM_VECTORS * NUM_CELLS * DIM,
        ),
        "near-duplicates within cells": (
            lambda: near_duplicates(unit_NF, cells, 0.99),
            NUM_VECTORS * NUM_VECTORS / NUM_CELLS * DIM,
        ),
        "distance to the nearest": (
            lambda: knn_distance(some_nF, unit_NF, k=10),
            len(some_nF) * NUM_VECTORS * DIM,
        ),
        "exact search": (
            lambda: (unit_NF[:NUM_QUERIES] @ unit_NF.T).topk(10, dim=1),
            NUM_QUERIES * NUM_VECTORS * DIM,
        ),
    }
    approximate = _faiss(unit_NF.numpy())
    if approximate is not None:
        work["approximate search, faiss"] = (
            approximate,
            NUM_QUERIES * (NUM_PROBED * NUM_VECTORS / NUM_CELLS + NUM_CELLS) * DIM,
        )
    network = build_network("resnet50", stem="imagenet", head_depth=2, seed=0).eval()
    images_NCHW = torch.zeros(NUM_EMBEDDED, 3, 256, 256, dtype=torch.uint8)
    sizes_N2 = torch.full((NUM_EMBEDDED, 2), 256)
    work[EMBED] = (
        lambda: network.features(centre_view(images_NCHW, sizes_N2, crop_px=224, resize_px=256)),
        NUM_EMBEDDED,
    )
    with torch.inference_mode():
        spent = in_turns({name: call for name, (call, _) in work.items()}, repeats=REPEATS)
    rates = {name: [adds / s for s in spent[name]] for name, (_, adds) in work.items()}
    shown = [
        Row(name=name, values=tuple(found), unit="images/s")
        if name == EMBED
        else Row(name=name, values=tuple(rate / 1e9 for rate in found), unit="G multiply-adds/s")
        for name, found in rates.items()
    ]
    if approximate is None:
        shown.append(
            Row(name="approximate search, faiss", values=(), unit="", note="not installed")
        )
    return [*shown, *on_paper(rates)]


def on_paper(rates: dict[str, list[float]]) -> list[Row]:
    """Return what 1e8 images need at these rates, in multiply-adds a second of one core."""
    num_cells = math.sqrt(NUM_IMAGES)
    adds = {
        EMBED: float(NUM_IMAGES),
        "k-means of the sample": SAMPLE_IMAGES * num_cells * (ITERATIONS + 2) * DIM,
        "cell of each image": NUM_IMAGES * num_cells * DIM,
        "near-duplicates within cells": NUM_IMAGES * NUM_IMAGES / num_cells * DIM,
        "distance to the nearest": NUM_IMAGES * REFERENCE_IMAGES * DIM,
    }
    found = [
        Row(
            name=f"1e8 images: {name}",
            values=tuple(number / rate / 3600 for rate in rates[name]),
            unit="core hours",
        )
        for name, number in adds.items()
    ]
    searches = {
        "exact search": NUM_IMAGES * DIM,
        "approximate search, faiss": (NUM_PROBED * NUM_IMAGES / num_cells + num_cells) * DIM,
    }
    found += [
        Row(
            name=f"1e8 images: {name}",
            values=tuple(number / rate for rate in rates[name]),
            unit="core seconds/query",
        )
        for name, number in searches.items()
        if name in rates
    ]
    size = NUM_IMAGES * DIM
    return [
        *found,
        Row(name="1e8 images: vectors, float16", values=(2 * size / 1e9,), unit="GB"),
        Row(name="1e8 images: driver of curate", values=(8 * size / 1e9,), unit="GB",
            note="the vectors in float32, and their unit vectors"),
        Row(name="1e8 images: driver of mine", values=(NUM_IMAGES * 100 / 1e9,), unit="GB",
            note="assumed: ten numbers and a name an image"),
    ]  # fmt: skip


def _faiss(vectors_NF: np.ndarray) -> Callable[[], object] | None:
    """Return a search of some queries in an inverted file, None where faiss is not installed."""
    if find_spec("faiss") is None:
        return None
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, NUM_CELLS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors_NF[:6000])
    index.add(vectors_NF)
    index.nprobe = NUM_PROBED
    return lambda: index.search(vectors_NF[:NUM_QUERIES], 10)


if __name__ == "__main__":
    main(rows)
