"""The compiled YAML is what KFP takes, and says what each step needs."""

import inspect
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from components.harness.stages import stage_config, stage_names, stages_in_order
from components.lib.contract import UserError
from pipelines import compiling
from pipelines.catalog import COMPILED, ENCODING, PIPELINES
from pipelines.commands.compile import command
from pipelines.compiling import image_overrides
from pipelines.stage_list import with_stage_list

PICTURES = COMPILED.parent / "pictures"
README = COMPILED.parents[1] / "README.md"
FORMS = [*((name, 1) for name in PIPELINES), *((name, 3) for name in ENCODING)]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"{form[0]}-{form[1]}")
def form(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Name of a pipeline, and how many pods encode its latents."""
    found: tuple[str, int] = request.param
    return found


@pytest.fixture(scope="module")
def text(form: tuple[str, int]) -> str:
    """The committed YAML, and what `--encode-pods 3` makes."""
    name, pods = form
    if pods == 1:
        return (COMPILED / f"{name}.yaml").read_text()
    return compiling.compile_pipeline(name, encode_pods=pods)


@pytest.fixture(scope="module")
def compiled(form: tuple[str, int], text: str) -> tuple[str, list[Any]]:
    return form[0], list(yaml.safe_load_all(text))


def executors(documents: list[Any]) -> dict[str, Any]:
    return documents[0]["deploymentSpec"]["executors"]


def steps(documents: list[Any]) -> dict[str, Any]:
    """The tasks that run a container, at any depth (conditions and exit handlers hold others)."""
    spec = documents[0]
    dags = [spec["root"], *(c for c in spec["components"].values() if "dag" in c)]
    return {
        name: task
        for dag in dags
        for name, task in dag["dag"]["tasks"].items()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }


def test_committed_yaml_is_current(tmp_path: Path) -> None:
    for name in PIPELINES:
        assert compiling.compile_pipeline(name) == (COMPILED / f"{name}.yaml").read_text()


def test_stale_yaml_fails_the_check(tmp_path: Path) -> None:
    for name in PIPELINES:
        (tmp_path / f"{name}.yaml").write_text((COMPILED / f"{name}.yaml").read_text() + "# old\n")
    with pytest.raises(UserError, match=r"diffusion\.yaml"):
        command(output=tmp_path, check=True)


def test_kfp_loads_it(text: str) -> None:
    from kfp.components import load_component_from_text

    pipeline = load_component_from_text(text)
    assert "videos" in pipeline.component_spec.inputs


def test_the_readme_s_picture_shows_every_stage(compiled: tuple[str, list[Any]]) -> None:
    name, documents = compiled
    picture = PICTURES / ("fleet.svg" if name.startswith("fleet") else "pipelines.svg")
    assert f"pipelines/pictures/{picture.name}" in README.read_text()
    shown = {text for text in ElementTree.parse(picture).getroot().itertext() if text.strip()}
    words = set(re.findall(r"\w+", " ".join(shown)))
    title = documents[0]["pipelineInfo"]["name"].replace("-", "_")
    stages = {task["componentRef"]["name"] for task in steps(documents).values()}
    kinds = {re.sub(r"(-part)?(-\d+)?$", "", stage).removeprefix("comp-") for stage in stages}
    assert words >= {title, *(kind.replace("-", "_") for kind in kinds)}


def test_no_pip_and_no_logic_at_run_time(compiled: tuple[str, list[Any]]) -> None:
    for name, executor in executors(compiled[1]).items():
        source = "\n".join(executor["container"]["command"])
        assert "pip install" not in source, name
        body = re.split(r"run_(?:report_)?task\(", source)[1]
        assert not re.search(r"^\s+(if|for|while|try|with) ", body, re.M), name


def test_steps_carry_resources_retries_and_a_restricted_user(
    compiled: tuple[str, list[Any]],
) -> None:
    _, documents = compiled
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, executor in executors(documents).items():
        assert executor["container"]["resources"]["resourceMemoryLimit"], name
        assert platform[name]["securityContext"]["runAsNonRoot"] is True, name
        assert platform[name]["secretAsEnv"][0]["secretName"] == "cosmos-s3", name
    assert all(task["retryPolicy"]["maxRetryCount"] >= 2 for task in steps(documents).values())


def test_what_the_world_decides_is_never_cached(compiled: tuple[str, list[Any]]) -> None:
    name, documents = compiled
    cached = {
        name: bool(task["cachingOptions"].get("enableCache"))
        for name, task in steps(documents).items()
    }
    if name.startswith("fleet"):  # its run report would not know of steps that KFP skips
        assert not any(cached.values()), cached
        return
    assert cached.pop("video-discovery") is False
    assert cached.pop("promotion") is False
    assert cached.pop("evaluation") is False
    assert all(cached.values()), cached


def test_form_is_short_and_described(compiled: tuple[str, list[Any]]) -> None:
    parameters = compiled[1][0]["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 13 + 2 * compiled[0].startswith("fleet")
    assert all(parameter["description"] for parameter in parameters.values())
    required = [name for name, p in parameters.items() if not p.get("isOptional")]
    assert required == ["videos"]


@pytest.mark.parametrize("name", ["fleet", "fleet-tokenizer"])
def test_a_fleet_run_trains_under_a_condition_and_always_reports(name: str) -> None:
    (spec, *_) = yaml.safe_load_all((COMPILED / f"{name}.yaml").read_text())
    tasks = spec["root"]["dag"]["tasks"]
    handler = next(task for key, task in tasks.items() if key.startswith("exit-handler"))
    report = tasks["run-report"]
    assert report["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert report["dependentTasks"] == [handler["componentRef"]["name"].removeprefix("comp-")]
    inner = spec["components"][handler["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inner) == {"video-discovery", "condition-2"}
    assert "== 'train'" in inner["condition-2"]["triggerPolicy"]["condition"]
    trained = spec["components"]["comp-condition-2"]["dag"]["tasks"]
    assert {"training", "evaluation", "promotion"} <= set(trained)
    entered = trained["promotion"]["inputs"]
    assert entered["artifacts"]["videos"] and entered["parameters"]["ledger"]


@pytest.mark.parametrize("name", PIPELINES)
def test_jobs_run_in_the_image_of_their_step(name: str) -> None:
    pinned = "registry.example/cosmos/train@sha256:" + "1" * 64
    text = compiling.compile_pipeline(name, image_overrides([f"train={pinned}"]))
    step = executors(list(yaml.safe_load_all(text)))["exec-training"]["container"]
    assert step["image"] == pinned
    assert {"name": "COSMOS_TRAIN_IMAGE", "value": pinned} in step["env"]


def platform(documents: list[Any]) -> dict[str, Any]:
    return documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_steps_with_gpus_tolerate_their_nodes_taint(compiled: tuple[str, list[Any]]) -> None:
    _, documents = compiled
    for name, executor in executors(documents).items():
        has_gpus = "accelerator" in executor["container"].get("resources", {})
        found = platform(documents)[name].get("tolerations", [])
        wanted = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert found == (wanted if has_gpus else []), name


def test_the_kind_of_gpu_can_be_chosen(
    form: tuple[str, int], compiled: tuple[str, list[Any]]
) -> None:
    """Of the steps by their node selector, of the training job through the step's environment."""
    name, plain = compiled
    assert not any("nodeSelector" in item for item in platform(plain).values())
    kind = "NVIDIA-H100-80GB-HBM3"
    compiled_for = compiling.compile_pipeline(name, gpu_type=kind, encode_pods=form[1])
    documents = list(yaml.safe_load_all(compiled_for))
    chosen = {
        executor: item["nodeSelector"]["labels"]
        for executor, item in platform(documents).items()
        if "nodeSelector" in item
    }
    assert set(chosen) == {
        executor
        for executor, item in executors(documents).items()
        if "accelerator" in item["container"].get("resources", {})
    }
    assert "exec-evaluation" in chosen
    assert all(labels == {"nvidia.com/gpu.product": kind} for labels in chosen.values())
    step = executors(documents)["exec-training"]["container"]
    assert {"name": "COSMOS_GPU_TYPE", "value": kind} in step["env"]


@pytest.mark.parametrize("name", ENCODING)
def test_pods_share_the_encoding_and_one_task_waits_for_all(name: str) -> None:
    (spec, *_) = yaml.safe_load_all(compiling.compile_pipeline(name, encode_pods=3))
    dags = [spec["root"], *(c for c in spec["components"].values() if "dag" in c)]
    (tasks,) = [d["dag"]["tasks"] for d in dags if "latent-encoding" in d["dag"]["tasks"]]
    ((loop, iterated),) = [item for item in tasks.items() if "parameterIterator" in item[1]]
    assert iterated["parameterIterator"]["items"] == {"raw": "[0, 1, 2]"}
    assert loop in tasks["latent-encoding"]["dependentTasks"]
    data = tasks["training"]["inputs"]["artifacts"]["data"]["taskOutputArtifact"]
    assert data["producerTask"] == "latent-encoding"
    inner = spec["components"][iterated["componentRef"]["name"]]["dag"]["tasks"]
    part = inner["latent-encoding-part"]["inputs"]["parameters"]
    item = iterated["parameterIterator"]["itemInput"]
    assert part.pop("part_index") == {"componentInputParameter": item}
    assert part.pop("part_count") == {"runtimeValue": {"constant": 3.0}}
    alone = tasks["latent-encoding"]["inputs"]
    assert set(part) == set(alone["parameters"])
    assert set(inner["latent-encoding-part"]["inputs"]["artifacts"]) == set(alone["artifacts"])


def test_pods_are_counted_where_there_is_something_to_encode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tokenizer' encodes no latents, so --encode-pods 2"):
        command(names=["tokenizer"], output=tmp_path, encode_pods=2)
    command(output=tmp_path, encode_pods=2)
    for name in PIPELINES:
        written = (tmp_path / f"{name}.yaml").read_text()
        assert ("raw: '[0, 1]'" in written) == (name in ENCODING)
    command(output=tmp_path, encode_pods=2, check=True)


def stage_of(task: dict[str, Any]) -> str:
    """The stage whose component a task runs: comp-checkpoint-fetch-2 -> checkpoint_fetch."""
    component = task["componentRef"]["name"].removeprefix("comp-")
    return re.sub(r"(-part)?(-\d+)?$", "", component).replace("-", "_")


def test_the_order_of_the_stages_is_that_of_every_pipeline(
    compiled: tuple[str, list[Any]],
) -> None:
    tasks = {name: task for name, task in steps(compiled[1]).items() if name != "run-report"}
    order = stages_in_order()
    pairs = set()
    for task in tasks.values():
        for source in task.get("inputs", {}).get("artifacts", {}).values():
            producer = source.get("taskOutputArtifact", {}).get("producerTask")
            if producer in tasks:
                pairs.add((stage_of(tasks[producer]), stage_of(task)))
    assert len(pairs) >= 5
    assert [pair for pair in pairs if order.index(pair[0]) >= order.index(pair[1])] == []


def test_a_stale_list_of_stages_in_the_readme_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "README.md"
    monkeypatch.setattr("pipelines.commands.compile.README", copy)
    copy.write_text(README.read_text().replace("* [training]", "* [schooling]"))
    with pytest.raises(UserError, match=r"README\.md"):
        command(names=["tokenizer"], check=True)
    copy.write_text(with_stage_list(copy.read_text()))
    assert copy.read_text() == README.read_text()
    command(names=["tokenizer"], check=True)
    with pytest.raises(UserError, match="lacks the lines"):
        with_stage_list("# A README without marks\n")


def test_images_can_be_pinned_by_digest() -> None:
    pinned = "registry.example/cosmos/data@sha256:" + "0" * 64
    text = compiling.compile_pipeline("tokenizer", image_overrides([f"data={pinned}"]))
    images = {e["container"]["image"] for e in executors(list(yaml.safe_load_all(text))).values()}
    assert pinned in images
    with pytest.raises(UserError, match="--image dta=x"):
        image_overrides(["dta=x"])


@pytest.mark.parametrize("name", [*stage_names(), "latent_encoding_part"])
def test_component_passes_only_fields_that_its_stage_has(name: str) -> None:
    import importlib

    stage = name.removesuffix("_part")
    component = getattr(importlib.import_module(f"components.{stage}.component"), name)
    source = inspect.getsource(component.python_func)
    call = source[source.index("run_task(") :]
    passed = set(re.findall(r'"(\w+)": \w+', call))
    assert passed <= set(stage_config(stage).model_fields)
