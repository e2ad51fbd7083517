"""Several pods encode the latents of one data set, as the pipeline's own graph runs them."""

from __future__ import annotations

from components.lib.manifest import MANIFEST_NAME
from components.lib.store import ObjectStore
from tests.diffusion.conftest import Pipeline


def test_parts_make_the_data_set_of_one_pod_and_a_lost_part_stops_the_run(
    pipeline: Pipeline, store: ObjectStore
) -> None:
    pipeline.run()
    alone = pipeline.manifest("latent_encoding")
    assert sum(entry.path.endswith(".tar") for entry in alone.files) >= 3

    # the same work again for three pods, the second of which meets a saved segment that is broken
    for info in list(store.list(f"{pipeline.root}/latent_encoding/")):
        store.delete(info.uri)
    broken = f"{alone.uri}segments/train-000001/0000.tar"
    store.put_bytes(broken, b"not a tar file" * 100)
    pipeline.run("--encode-pods", "3", fails=True)
    assert store.stat(alone.uri + MANIFEST_NAME) is None
    assert not {"training", "evaluation"} & {record["stage"] for record in pipeline.stages()}
    part = alone.uri.rstrip("/") + "-part-{}-of-3/" + MANIFEST_NAME
    assert [store.stat(part.format(index)) is not None for index in range(3)] == [True, False, True]

    store.delete(broken)
    pipeline.run("--encode-pods", "3")
    *parts, whole = [s for s in pipeline.stages() if s["stage"] == "latent_encoding"]
    assert sorted(record["reused"] for record in parts) == [False, True, True]
    assert not whole["reused"]
    joined = pipeline.manifest("latent_encoding")
    assert joined.timing["frames_encoded"] == 0  # there was nothing left to encode
    assert joined.files == alone.files
    (trained,) = [record for record in pipeline.stages() if record["stage"] == "training"]
    assert trained["reused"]  # to what comes after, the data set is the same
