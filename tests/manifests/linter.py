"""kube-linter's default checks that concern us, under its names, over a set of documents.

`problems` looks at everything that starts pods (StatefulSets, Jobs, TrainingRuntimes, PyTorchJobs)
together with the Services, accounts and policies beside it, since half of the checks are about
whether these fit each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Document = dict[str, Any]
SECRET_NAME = re.compile(r"(?i)secret|token|password|passwd|api_?key|access_?key")
HOST_FOLDERS = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var/run")
SAFE_VOLUMES = {"emptyDir", "configMap", "secret", "projected", "downwardAPI", "csi", "ephemeral",
                "persistentVolumeClaim"}  # fmt: skip


class Pod(NamedTuple):
    """A pod template, and whose it is."""

    owner: Document
    labels: dict[str, str]
    spec: Document

    @property
    def name(self) -> str:
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """The pod templates of the documents."""
    for document in documents:
        spec, kind = document.get("spec") or {}, document["kind"]
        templates = []
        if kind in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
            templates = [spec["template"]]
        elif kind == "TrainingRuntime":
            jobs = spec["template"]["spec"]["replicatedJobs"]
            templates = [job["template"]["spec"]["template"] for job in jobs]
        elif kind == "PyTorchJob":
            templates = [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]
        for template in templates:
            labels = (template.get("metadata") or {}).get("labels") or {}
            yield Pod(document, labels, template["spec"])


def problems(documents: list[Document]) -> list[str]:
    """``check: whose: what``, empty when all is well."""
    found = []
    for pod in pods(documents):
        for of_pod in POD_CHECKS:
            found += [f"{_title(of_pod)}: {pod.name}: {what}" for what in of_pod(pod)]
        for container in pod.containers:
            for of_container in CONTAINER_CHECKS:
                where = f"{pod.name}/{container['name']}"
                found += [
                    f"{_title(of_container)}: {where}: {what}" for what in of_container(container)
                ]
    for of_set in SET_CHECKS:
        found += [f"{_title(of_set)}: {what}" for what in of_set(documents)]
    return found


def _title(check: Callable[..., Any]) -> str:
    return check.__name__.replace("_", "-")


# -- pods --------------------------------------------------------------------------------------


def host_namespaces(pod: Pod) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield field


def sensitive_host_mounts(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= SAFE_VOLUMES:
            yield f"volume {volume['name']} is {', '.join(kinds)}"


def deprecated_service_account_field(pod: Pod) -> Iterator[str]:
    if "serviceAccount" in pod.spec:
        yield "use serviceAccountName"


def default_service_account(pod: Pod) -> Iterator[str]:
    if pod.spec.get("serviceAccountName", "default") == "default":
        yield "runs as the default account"


def automounted_token(pod: Pod) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "gets a token that it does not need"


def unsafe_sysctls(pod: Pod) -> Iterator[str]:
    if (pod.spec.get("securityContext") or {}).get("sysctls"):
        yield "sets sysctls"


def job_ttl_seconds_after_finished(pod: Pod) -> Iterator[str]:
    spec = pod.owner["spec"]
    place = {
        "Job": spec,
        "TrainingRuntime": (spec.get("template") or {}).get("spec"),
        "PyTorchJob": spec.get("runPolicy"),
    }.get(pod.owner["kind"])
    if place is not None and "ttlSecondsAfterFinished" not in place:
        yield "stays for ever when it has finished"


def mismatching_selector(pod: Pod) -> Iterator[str]:
    selector = (pod.owner["spec"].get("selector") or {}).get("matchLabels")
    if selector is None:
        if pod.owner["kind"] in ("StatefulSet", "Deployment"):
            yield "has no selector"
    elif not selector.items() <= pod.labels.items():
        yield f"selects {selector}, its pods have {pod.labels}"


# -- containers --------------------------------------------------------------------------------


def latest_tag(container: Document) -> Iterator[str]:
    image = container["image"]
    pinned = re.search(r"@sha256:[0-9a-f]{64}$", image)
    if not pinned and (":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")):
        yield image


def run_as_root(container: Document) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("runAsUser") == 0:
        yield "runs as root"


def privileged_container(container: Document) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("privileged"):
        yield "is privileged"


def privilege_escalation_container(container: Document) -> Iterator[str]:
    security = container.get("securityContext") or {}
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"


def drop_capabilities(container: Document) -> Iterator[str]:
    given = (container.get("securityContext") or {}).get("capabilities") or {}
    if given.get("drop") != ["ALL"] or given.get("add"):
        yield f"capabilities {given}"


def no_read_only_root_fs(container: Document) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"


def unsafe_proc_mount(container: Document) -> Iterator[str]:
    if (container.get("securityContext") or {}).get("procMount", "Default") != "Default":
        yield "unmasks /proc"


def unset_requirements(container: Document) -> Iterator[str]:
    resources = container.get("resources") or {}
    for part, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
        for name in names:
            if name not in resources.get(part, {}):
                yield f"no {part}.{name}"


def duplicate_env_var(container: Document) -> Iterator[str]:
    names = [entry["name"] for entry in container.get("env", [])]
    yield from sorted({name for name in names if names.count(name) > 1})


def env_var_secret(container: Document) -> Iterator[str]:
    for entry in container.get("env", []):
        if SECRET_NAME.search(entry["name"]) and entry.get("value"):
            yield f"{entry['name']} is written out"


def probe_ports(container: Document) -> Iterator[str]:
    ports = {port.get("name") for port in container.get("ports", [])}
    ports |= {port["containerPort"] for port in container.get("ports", [])}
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(kind) or {}
        action = probe.get("httpGet") or probe.get("tcpSocket") or {}
        if action and action["port"] not in ports:
            yield f"{kind} asks port {action['port']}"


def ssh_port(container: Document) -> Iterator[str]:
    if any(port["containerPort"] == 22 for port in container.get("ports", [])):
        yield "opens port 22"


def mounted_volumes(container: Document) -> Iterator[str]:
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    for path in paths:
        if path.rstrip("/") in ("", *HOST_FOLDERS) or paths.count(path) > 1:
            yield f"mounts over {path}"


# -- how documents fit each other --------------------------------------------------------------


def dangling_service(documents: list[Document]) -> Iterator[str]:
    for service in (d for d in documents if d["kind"] == "Service"):
        selector = service["spec"].get("selector") or {}
        served = [pod for pod in pods(documents) if selector.items() <= pod.labels.items()]
        if not selector or not served:
            yield f"{service['metadata']['name']} selects no pods"
        names = {
            port.get(key)
            for pod in served
            for container in pod.containers
            for port in container.get("ports", [])
            for key in ("name", "containerPort")
        }
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in names:
                yield f"{service['metadata']['name']} has a port that no pod opens: {port}"


def non_existent_service_account(documents: list[Document]) -> Iterator[str]:
    have = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    for pod in pods(documents):
        if pod.spec.get("serviceAccountName") not in have:
            yield f"{pod.name} runs as {pod.spec.get('serviceAccountName')}"
    for binding in (d for d in documents if d["kind"] == "RoleBinding"):
        for subject in binding["subjects"]:
            if subject["name"] not in have:
                yield f"{binding['metadata']['name']} binds {subject['name']}"


def non_existent_role(documents: list[Document]) -> Iterator[str]:
    roles = {d["metadata"]["name"] for d in documents if d["kind"] == "Role"}
    for binding in (d for d in documents if d["kind"] == "RoleBinding"):
        if binding["roleRef"]["kind"] != "Role" or binding["roleRef"]["name"] not in roles:
            yield f"{binding['metadata']['name']} refers to {binding['roleRef']}"


def wildcard_in_rules(documents: list[Document]) -> Iterator[str]:
    dangerous = {"*", "escalate", "bind", "impersonate"}
    for role in (d for d in documents if d["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            words = {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            if words & dangerous or "pods/exec" in words:
                yield f"{role['metadata']['name']}: {rule}"


def non_isolated_pod(documents: list[Document]) -> Iterator[str]:
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    for pod in pods(documents):
        isolated = {
            direction
            for policy in policies
            for direction in policy["spec"]["policyTypes"]
            if (policy["spec"]["podSelector"].get("matchLabels") or {}).items()
            <= pod.labels.items()
        }
        if isolated != {"Ingress", "Egress"}:
            yield f"{pod.name} is isolated for {sorted(isolated)} only"


def unnamed_namespace(documents: list[Document]) -> Iterator[str]:
    spaces = {d["metadata"].get("namespace") for d in documents if d["kind"] not in CLUSTER_WIDE}
    have = {d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"}
    if spaces - have:
        yield f"documents in {spaces - have}, while the namespaces are {have}"


def duplicates(documents: list[Document]) -> Iterator[str]:
    keys = [f"{d['kind']}/{d['metadata']['name']}" for d in documents]
    yield from sorted({key for key in keys if keys.count(key) > 1})


CLUSTER_WIDE = ("Namespace", "ResourceFlavor", "ClusterQueue")
POD_CHECKS = (
    host_namespaces, sensitive_host_mounts, deprecated_service_account_field,
    default_service_account, automounted_token, unsafe_sysctls, job_ttl_seconds_after_finished,
    mismatching_selector,
)  # fmt: skip
CONTAINER_CHECKS = (
    latest_tag, run_as_root, privileged_container, privilege_escalation_container,
    drop_capabilities, no_read_only_root_fs, unsafe_proc_mount, unset_requirements,
    duplicate_env_var, env_var_secret, probe_ports, ssh_port, mounted_volumes,
)  # fmt: skip
SET_CHECKS = (
    dangling_service, non_existent_service_account, non_existent_role, wildcard_in_rules,
    non_isolated_pod, unnamed_namespace, duplicates,
)  # fmt: skip
