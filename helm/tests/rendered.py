"""The chart, rendered by Helm's own code."""

import json
from functools import cache

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

from settings import ROOT

CHART = ROOT / "helm/tessera"
# The oldest Kubernetes that the chart says it runs on.
OLDEST = "1.25.0"
# What `validate` raises.
INVALID = (jsonschema.ValidationError, kubernetes_validate.ValidationError)

# One mark for every value that is a secret, so that a leak can be seen.
SECRETS = {
    "broker": {"url": "amqp://u:mark-broker@rabbitmq:5672/%2f", "managementUrl": "http://u:mark-console@rabbitmq:15672/%2f"},
    "store": {"accessKeyId": "mark-id", "secretAccessKey": "mark-key"},
}
MARKS = ["mark-broker", "mark-console", "mark-id", "mark-key"]

# What people install, by name.
CASES = {
    "default": {},
    "credentials": SECRETS,
    "existing secret": {**SECRETS, "existingSecret": "mine"},
    "gpu": {
        "worker": {
            "gpu": {"enabled": True, "runtimeClassName": "nvidia"},
            "image": {"tag": "cuda"},
            "nodeSelector": {"pool": "cards"},
            "tolerations": [{"key": "cards", "operator": "Exists"}],
        },
    },
    "scaled": {
        "broker": {"managementUrl": "http://u:p@rabbitmq:15672/%2f"},
        "worker": {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 50}},
    },
    "everything": {
        **SECRETS,
        "fullnameOverride": "night-shift",
        "image": {"repository": "registry.example.com/tessera", "tag": "1.2.3"},
        "imagePullSecrets": [{"name": "registry"}],
        "farm": "night",
        "config": {"limits.max_pixels": 1_000_000_000, "log": "warn,coordinator=debug", "worker_silence": "1m"},
        "telemetry": {"otlpEndpoint": "http://collector:4317"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/farm"}},
        "coordinator": {
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "podAnnotations": {"a": "b"},
            "affinity": {"nodeAffinity": {}},
            "tolerations": [{"operator": "Exists"}],
        },
        "worker": {
            "gpu": {"enabled": True},
            "graceSeconds": 600,
            "autoscaling": {"enabled": True, "computeClass": "cuda.candle-0-11-1-1b9e5a03.f32"},
        },
    },
}


def render(values):
    """The objects that these values make, and what the installer is told."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="farm", namespace="prod")
    notes = files.pop("tessera/templates/NOTES.txt")
    objects = [found for text in files.values() for found in yaml.safe_load_all(text) if found]
    return Objects(objects), notes


@cache
def case(name):
    """The objects of one of the cases."""
    return render(CASES[name])[0]


class Objects(list):
    def of(self, kind):
        return [found for found in self if found["kind"] == kind]

    def one(self, kind, suffix=""):
        (found,) = [found for found in self.of(kind) if found["metadata"]["name"].endswith(suffix)]
        return found

    def pod(self, component):
        return self.one("Deployment", "-" + component)["spec"]["template"]["spec"]

    def container(self, component):
        (container,) = self.pod(component)["containers"]
        return container


def validate(manifest):
    """Raises where a manifest is not what a cluster would take, the oldest and the newest known."""
    kind = manifest["kind"]
    if manifest["apiVersion"] == "keda.sh/v1alpha1":
        schema = json.loads((ROOT / f"helm/tests/schemas/{kind.lower()}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(manifest)
    else:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)
