"""Features of sets that share their images: each image is decoded once, with the same result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pipeline import feed
from pipeline.dataset.manifest import Manifest, SetInfo
from pipeline.dataset.sets import write_order
from pipeline.embed.features import SetFeatures, extract
from pipeline.model.source import PIXELS, UNTRAINED, ModelSource
from pipeline.record.context import RunContext
from tests.test_embed import CLUSTER
from tests.test_leaks import data_set
from tests.test_mine import CONFIG, trained_run

NUM_IMAGES = 60


def sharing(folder: Path, num_probe: int) -> Manifest:
    """Return a data set whose probe set names images of the pre-training set, last one first."""
    manifest = data_set(folder, pretrain=list(range(NUM_IMAGES)))
    shard_N, row_N = np.divmod(np.arange(NUM_IMAGES)[::-1][:num_probe], NUM_IMAGES // 2)
    order = write_order(str(folder), "probe", shard_N, row_N)
    probe = SetInfo(num_probe, (num_probe,), (), order)
    return replace(manifest, sets={**manifest.sets, "probe": probe})


@pytest.mark.ray
@pytest.mark.parametrize("num_probe", [NUM_IMAGES, 20])
def test_two_sets_of_the_same_images_are_decoded_once(
    num_probe: int, ray_cluster: None, tmp_path: Path
) -> None:
    manifest = sharing(tmp_path, num_probe)
    run = RunContext(CONFIG, str(tmp_path / "run"), str(tmp_path), manifest)
    sources = [
        ModelSource("sdclr", trained_run(tmp_path, manifest), "sdclr", run.config_hash),
        ModelSource(UNTRAINED),
        ModelSource(PIXELS),
    ]
    totals: list[int] = []

    def features(*names: str) -> dict[str, SetFeatures]:
        with mock.patch.object(feed, "decoded_rows", wraps=feed.decoded_rows) as read:
            found = extract(
                run, sources=sources, set_names=names, cluster=CLUSTER,
                progress=lambda done, total: totals.append(total),
            )  # fmt: skip
        is_shared = names == ("probe", "pretrain") and num_probe == NUM_IMAGES
        assert read.call_args.args[3:] == (("pretrain",) if is_shared else names)
        return found

    both = features("probe", "pretrain")
    images = NUM_IMAGES if num_probe == NUM_IMAGES else NUM_IMAGES + num_probe
    assert set(totals) == {images} and list(both) == ["probe", "pretrain"]
    alone = features("probe") | features("pretrain")
    for name in alone:
        assert both[name].ids == alone[name].ids
        np.testing.assert_array_equal(both[name].labels_N, alone[name].labels_N)
        assert both[name].by_model.keys() == alone[name].by_model.keys()
        for model, values_NF in alone[name].by_model.items():
            np.testing.assert_array_equal(both[name].by_model[model], values_NF)
    assert both["probe"].disagreement_N is None
    found, expected = (f["pretrain"].disagreement_N for f in (both, alone))
    assert found is not None and expected is not None and expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert both["probe"].ids[0] == both["pretrain"].ids[-1]  # control: the orders differ
