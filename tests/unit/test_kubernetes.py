"""What deploy/kubernetes promises, as far as no cluster is needed to tell: schemas, references, and who may do what."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from farm.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "deploy" / "kubernetes"
VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
SCHEMAS: Final = ("1.31", "1.34", "1.37")
COMPOSE: Final = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))

NAMED: Final = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
WHOLE: Final = {"type": "integer", "minimum": 0}
TRIGGER: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "metadata"],
    "properties": {
        "type": {"const": "metrics-api"},
        "name": {"type": "string"},
        "useCachedMetrics": {"type": "boolean"},
        "metricType": {"enum": ["AverageValue", "Value"]},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["url", "valueLocation", "targetValue"],
            "properties": {
                "url": {"type": "string", "pattern": "^https?://"},
                "valueLocation": {"type": "string"},
                "targetValue": {"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                "activationTargetValue": {"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                "format": {"enum": ["json", "xml", "yaml", "prometheus"]},
                "authMode": {"enum": ["apiKey", "basic", "tls", "bearer"]},
                "unsafeSsl": {"enum": ["true", "false"]},
            },
        },
        "authenticationRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "kind": {"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]},
            },
        },
    },
}
# No cluster's operator is here to ask: the fields that KEDA 2.22 and the Prometheus operator document, as far as used.
CUSTOM: Final[dict[str, dict[str, Any]]] = {
    "ScaledObject": {
        "type": "object",
        "additionalProperties": False,
        "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "scaleTargetRef": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "name": {"type": "string"},
                    "envSourceContainerName": {"type": "string"},
                },
            },
            "pollingInterval": WHOLE,
            "cooldownPeriod": WHOLE,
            "initialCooldownPeriod": WHOLE,
            "idleReplicaCount": WHOLE,
            "minReplicaCount": WHOLE,
            "maxReplicaCount": WHOLE,
            "fallback": {
                "type": "object",
                "additionalProperties": False,
                "required": ["failureThreshold", "replicas"],
                "properties": {"failureThreshold": WHOLE, "replicas": WHOLE, "behavior": {"type": "string"}},
            },
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "restoreToOriginalReplicaCount": {"type": "boolean"},
                    "horizontalPodAutoscalerConfig": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"name": {"type": "string"}, "behavior": {"type": "object"}},
                    },
                },
            },
            "triggers": {"type": "array", "minItems": 1, "items": TRIGGER},
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["parameter", "name", "key"],
                    "properties": {key: {"type": "string"} for key in ("parameter", "name", "key")},
                },
            }
        },
    },
    "ServiceMonitor": {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", "endpoints"],
        "properties": {
            "jobLabel": {"type": "string"},
            "selector": {"type": "object"},
            "endpoints": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string"},
                        "interval": {"type": "string", "pattern": r"^\d+s$"},
                        "scrapeTimeout": {"type": "string", "pattern": r"^\d+s$"},
                        "authorization": {"type": "object", "properties": {"credentials": NAMED}},
                    },
                },
            },
        },
    },
}


def documents(paths) -> list[dict[str, Any]]:
    """Return all documents of these files."""
    return [document for path in paths for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


OURS: Final = documents(p for p in sorted(FOLDER.rglob("*.yaml")) if p.name != "kustomization.yaml")
WORKLOADS: Final = [document for document in OURS if document["kind"] in {"Deployment", "StatefulSet"}]
every_document = pytest.mark.parametrize("document", OURS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
every_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w["metadata"]["name"])


def check(document) -> None:
    """Raise unless a document is what its kind's schema says, with no field that nobody knows."""
    if document["kind"] in CUSTOM:
        assert document["apiVersion"] in {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
        jsonschema.validate(document["spec"], CUSTOM[document["kind"]])
        return
    for version in SCHEMAS:
        kubernetes_validate.validate(document, version, strict=True)


def container_of(workload) -> dict[str, Any]:
    """Return the one container of a workload."""
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return container


def labels_of(workload) -> set[tuple[str, str]]:
    """Return the labels of a workload's pods."""
    return set(workload["spec"]["template"]["metadata"]["labels"].items())


def named(kind: str, name: str) -> dict[str, Any]:
    """Return one document."""
    (found,) = [d for d in OURS if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


@every_document
def test_a_document_is_what_its_kind_says(document) -> None:
    """By the schemas of three versions of Kubernetes; a field that is misspelt would be dropped without a word."""
    check(document)


def test_a_misspelt_field_would_be_seen() -> None:
    """The checks above can fail, for built-in kinds and for those of operators."""
    worker = yaml.safe_load(yaml.safe_dump(named("StatefulSet", "worker")))
    worker["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError):
        check(worker)
    scaled = yaml.safe_load(yaml.safe_dump(named("ScaledObject", "worker")))
    scaled["spec"]["cooldown"] = 300
    with pytest.raises(jsonschema.ValidationError):
        check(scaled)


@every_workload
def test_pods_have_no_rights_that_they_do_not_need(workload) -> None:
    """What the namespace enforces (Pod Security's `restricted`), and no token of the cluster."""
    pod, container = workload["spec"]["template"]["spec"], container_of(workload)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} <= set(container["resources"])
    assert "memory" in container["resources"]["limits"]
    namespace = named("Namespace", "diffusion-farm")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@every_workload
def test_what_a_pod_names_is_there(workload) -> None:
    """Selectors match, volumes are declared, ports of probes exist, configuration and services come with them."""
    spec, container = workload["spec"], container_of(workload)
    assert set(spec["selector"]["matchLabels"].items()) <= labels_of(workload)
    volumes = {volume["name"] for volume in spec["template"]["spec"].get("volumes", ())}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    ports = {port["name"] for port in container.get("ports", ())}
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if "httpGet" in container.get(probe, {}):
            assert container[probe]["httpGet"]["port"] in ports
    if workload["kind"] == "StatefulSet":
        assert named("Service", spec["serviceName"])
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            assert named("ConfigMap", source["configMapRef"]["name"])


@pytest.mark.parametrize("kind", ["Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"])
def test_selectors_find_somebody(kind) -> None:
    """Whatever speaks of pods or services by their labels speaks of some that exist."""
    services = [set(d["metadata"].get("labels", {}).items()) for d in OURS if d["kind"] == "Service"]
    pods = [labels_of(workload) for workload in WORKLOADS]
    for document in (d for d in OURS if d["kind"] == kind):
        selector = document["spec"].get("selector") or document["spec"].get("podSelector") or {}
        wanted = set(selector.get("matchLabels", {} if kind == "NetworkPolicy" else selector).items())
        assert any(wanted <= found for found in (services if kind == "ServiceMonitor" else pods)), document


def test_prometheus_finds_the_job_that_the_rules_ask_for() -> None:
    """The label that names a scraped Service's job stands on it, with the name that the rules match."""
    labels = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["labels"][0]["pairs"]
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    job = labels[named("ServiceMonitor", "diffusion-farm")["spec"]["jobLabel"]]
    assert set(re.findall(r'job="([^"]*)"', rules)) == {job}


def test_every_variable_is_a_setting() -> None:
    """A misspelt FARM_ variable would be ignored without a word, in secrets too."""
    given = set(named("ConfigMap", "farm-config")["data"])
    given |= {variable["name"] for workload in WORKLOADS for variable in container_of(workload).get("env", ())}
    text = (FOLDER / "example" / "secrets.env.example").read_text(encoding="utf-8")
    given |= set(re.findall(r"^(?:# )?([A-Z][A-Z_0-9]*)=", text, re.MULTILINE))
    fields = {f"FARM_{field.upper()}" for field in Settings.model_fields}
    assert {name for name in given if name.startswith("FARM_")} <= fields
    Settings(**{name.removeprefix("FARM_").lower(): v for name, v in named("ConfigMap", "farm-config")["data"].items()})


def test_secrets_are_nobodys_but_whose_they_are() -> None:
    """Every secret that is named is asked for in the example; none has a value; a worker never has the operator's."""
    text = (FOLDER / "example" / "secrets.env.example").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^(?:# )?([A-Z][A-Z_0-9]*)=(.*)$", text, re.MULTILINE))
    assert {name for name, value in asked.items() if value} == {"FARM_S3_ACCESS_KEY"}
    for workload in WORKLOADS:
        for variable in container_of(workload).get("env", ()):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            assert secret is None or secret["key"] in asked
    worker = container_of(named("StatefulSet", "worker"))
    assert all("secretRef" not in source for source in worker["envFrom"])
    assert "secrets.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_farm_is_the_one_of_compose() -> None:
    """Same images, same grace, same ways to start Redis and S3."""
    services = COMPOSE["services"]
    assert container_of(named("Deployment", "api"))["image"] == services["api"]["image"]
    worker = named("StatefulSet", "worker")
    assert container_of(worker)["image"] == services["worker"]["image"]
    grace_s = worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert f"{grace_s}s" == services["worker"]["stop_grace_period"]
    for name in ("redis", "s3"):
        container = container_of(named("StatefulSet", name))
        assert container["image"] == services[name]["image"]
    redis = container_of(named("StatefulSet", "redis"))
    assert redis["command"][:-1] == services["redis"]["command"][:-1]
    assert redis["command"][-2:] == ["--maxmemory", "3gb"]
    assert redis["resources"]["limits"]["memory"] == "4Gi"  # room for what a copy of its log takes
    assert container_of(named("StatefulSet", "s3"))["args"] == services["s3"]["command"]


def test_a_worker_has_one_gpu_and_a_name_that_lasts() -> None:
    """One process, one GPU; its successor of the same name takes its leases over at once."""
    worker = container_of(named("StatefulSet", "worker"))
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    (name,) = [variable for variable in worker["env"] if variable["name"] == "FARM_WORKER_NAME"]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert "livenessProbe" not in worker
    source = worker["readinessProbe"]["exec"]["command"][-1]
    compile(source, "readiness", "exec")


def test_workers_come_with_work_that_the_api_really_tells() -> None:
    """The scaler asks for fields that GET /v1/throughput has, with a key, and may go down to none."""
    from api.report_schemas import Throughput  # noqa: PLC0415  what it asks for

    spec = named("ScaledObject", "worker")["spec"]
    assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) == ("StatefulSet", "worker")
    assert spec["minReplicaCount"] == 0
    service = named("Service", "api")
    for trigger in spec["triggers"]:
        told = trigger["metadata"]
        assert Throughput.model_fields[told["valueLocation"]].annotation is int
        assert told["url"] == f"http://{service['metadata']['name']}.diffusion-farm.svc/v1/throughput"
        assert told["authMode"] == "bearer"
        authentication = named("TriggerAuthentication", trigger["authenticationRef"]["name"])
        assert authentication["spec"]["secretTargetRef"][0]["parameter"] == "token"
    assert service["spec"]["ports"][0]["port"] == 80


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kustomize comes with kubectl")
def test_the_example_builds(tmp_path) -> None:
    """`kubectl kustomize` makes of it what is documented: one namespace, our images by the names of the registry."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    example = tmp_path / "kubernetes" / "example"
    secrets = (example / "secrets.env.example").read_text(encoding="utf-8")
    (example / "secrets.env").write_text(re.sub(r"^([A-Z_0-9]+)=$", r"\1=x", secrets, flags=re.MULTILINE))
    built = subprocess.run(["kubectl", "kustomize", str(example)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    for document in found:
        check(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "diffusion-farm"
    assert {(d["kind"], d["metadata"]["name"]) for d in found} == {(d["kind"], d["metadata"]["name"]) for d in OURS} | {
        ("Secret", "farm-secrets")
    }
    images = {container_of(d)["image"] for d in found if d["kind"] in {"Deployment", "StatefulSet"}}
    assert f"registry.example/diffusion-farm-api:{VERSION}" in images
    assert f"registry.example/diffusion-farm-worker:{VERSION}" in images
    (config,) = [d for d in found if d["kind"] == "ConfigMap"]
    assert config["data"]["FARM_S3_PUBLIC_ENDPOINT"] == "api"
    assert config["data"]["FARM_PUBLIC_URL"] == "https://farm.example"
