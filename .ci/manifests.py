"""Checks rendered manifests: the schemas of Kubernetes, and what holds between objects and no schema says."""

import sys

import kubernetes_validate
import yaml

VERSION = "1.33"
# Made by whoever deploys; deploy/README.md says how.
GIVEN = {
    ("ConfigMap", "warmd-policy"),
    ("Secret", "warmd-cluster"),
    ("Secret", "warmd-metadata"),
    ("Secret", "warmd-signer"),
    ("Secret", "warmd-store"),
    ("Secret", "warmd-keys"),
    ("Secret", "warmd-api-keys"),
    ("Secret", "warmd-page"),
}
# The one container that is root, to give directories away.
ROOT = {"directories": ["CHOWN"]}
CUSTOM = {"PodMonitor": "podMetricsEndpoints", "ServiceMonitor": "endpoints"}


def pod(document):
    return document.get("spec", {}).get("template", {}).get("spec")


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def restricted(container, spec):
    """What the restricted pod security standard wants, and a root file system that cannot be written."""
    security, name = container.get("securityContext", {}), container["name"]
    capabilities = security.get("capabilities", {})
    user = security.get("runAsUser", spec["securityContext"].get("runAsUser"))
    yield "allowPrivilegeEscalation", security.get("allowPrivilegeEscalation") is False
    yield "readOnlyRootFilesystem", security.get("readOnlyRootFilesystem") is True
    yield "seccompProfile", security.get("seccompProfile") == {"type": "RuntimeDefault"}
    yield "drop", capabilities.get("drop") == ["ALL"]
    yield "add", capabilities.get("add", []) == ROOT.get(name, [])
    yield "runAsNonRoot", security.get("runAsNonRoot") is (name not in ROOT)
    yield "runAsUser", (user == 0) is (name in ROOT)
    yield "privileged", not security.get("privileged")


def named(value, kind):
    """Names of ConfigMaps or Secrets that a pod mentions, wherever."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if kind == "ConfigMap" and key in ("configMap", "configMapRef", "configMapKeyRef"):
                yield inner["name"]
            elif kind == "Secret" and key == "secret":
                yield inner.get("secretName") or inner["name"]
            elif kind == "Secret" and key in ("secretRef", "secretKeyRef"):
                yield inner["name"]
            else:
                yield from named(inner, kind)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner, kind)


def problems_of_pod(document, documents):
    spec = pod(document)
    labels = document["spec"]["template"]["metadata"]["labels"]
    if document["spec"]["selector"]["matchLabels"].items() - labels.items():
        yield "its selector does not match its own pods"
    if spec.get("automountServiceAccountToken") is not False:
        yield "mounts a token of the API"
    if not {("ServiceAccount", spec.get("serviceAccountName"))} & {key(other) for other in documents}:
        yield "has no service account of its own"
    for container in containers(spec):
        for rule, holds in restricted(container, spec):
            if not holds:
                yield f"container {container['name']}: {rule}"
        if "resources" not in container or "memory" not in container["resources"].get("limits", {}):
            yield f"container {container['name']}: no limit of memory"
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"container {container['name']}: no volume {mount['name']}"
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            handler = container.get(probe, {})
            port = handler.get("httpGet", handler.get("tcpSocket", {})).get("port")
            if port is not None and port not in ports:
                yield f"container {container['name']}: {probe} asks port {port}"
        if container in spec["containers"] and not container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}:
            yield f"container {container['name']}: not all probes"
        elif container in spec["containers"] and container["startupProbe"] == container["livenessProbe"]:
            yield f"container {container['name']}: start and life are asked alike"
    there = {key(other) for other in documents} | GIVEN
    for kind in ("ConfigMap", "Secret"):
        for name in named(spec, kind):
            if (kind, name) not in there:
                yield f"no {kind} {name}"


def key(document):
    return document["kind"], document["metadata"]["name"]


def selects(selector, document):
    labels = document["spec"]["template"]["metadata"]["labels"]
    return not selector.items() - labels.items()


def problems(document, documents):
    pods = [other for other in documents if pod(other)]
    if document["kind"] in CUSTOM:
        if not document["spec"].get("selector", {}).get("matchLabels") or not document["spec"][CUSTOM[document["kind"]]]:
            yield "selects nothing"
    elif document["apiVersion"].count(".") < 2 or document["apiVersion"].split("/")[0].endswith(".k8s.io"):
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{error.message} at {list(error.path)}"
    if pod(document):
        yield from problems_of_pod(document, documents)
    if document["kind"] == "Service":
        behind = [other for other in pods if selects(document["spec"]["selector"], other)]
        names = {port["name"] for other in behind for one in pod(other)["containers"] for port in one.get("ports", [])}
        for port in document["spec"]["ports"]:
            if port["targetPort"] not in names:
                yield f"no pod has a port {port['targetPort']}"
    if document["kind"] == "NetworkPolicy":
        behind = [other for other in pods if selects(document["spec"]["podSelector"]["matchLabels"], other)]
        ports = {
            (port["containerPort"], port["protocol"])
            for other in behind
            for one in pod(other)["containers"]
            for port in one.get("ports", [])
        }
        admitted = {(p["port"], p["protocol"]) for rule in document["spec"]["ingress"] for p in rule["ports"]}
        if not behind or ports - admitted:
            yield f"does not admit {sorted(ports - admitted)}, or selects nothing"


def main():
    failed = False
    for path in sys.argv[1:]:
        with open(path) as file:
            documents = [document for document in yaml.safe_load_all(file) if document]
        for document in documents:
            for problem in problems(document, documents):
                failed = True
                print(f"{path}: {'/'.join(key(document))}: {problem}")
        print(f"{path}: {len(documents)} objects")
    sys.exit(failed)


main()
