"""The Helm chart, and the manifests that are made from it."""

import functools
import json
import re
import tempfile

import jsonschema
import kubernetes_validate
import yaml

from check import ROOT, check, current, run

CHART = ROOT / "deploy/chart"
# The versions whose schemas everything is held against: the newest, and the oldest that the tool has.
KUBERNETES = ["1.32", "1.37"]
COMBINATIONS = yaml.safe_load((ROOT / "tests/deploy/combinations.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def template(values, *more):
    """What Helm makes of values, as text."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        return run("helm", "template", "sluice", CHART, "--namespace", "kube-system", "--values", file.name, *more)


@functools.cache
def rendered(name):
    """The objects of a documented combination."""
    return [found for found in yaml.safe_load_all(template(COMBINATIONS[name])) if found]


def definitions():
    """The definitions in crds/, by group, version and kind."""
    found = {}
    for path in sorted((CHART / "crds").glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())
        for version in definition["spec"]["versions"]:
            names = (definition["spec"]["group"], version["name"], definition["spec"]["names"]["kind"])
            found[names] = version["schema"]["openAPIV3Schema"]
    return found


# The part of the Prometheus Operator's PodMonitor that is used.
POD_MONITOR = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object", "properties": {"matchLabels": {"type": "object"}}, "additionalProperties": False},
        "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                **dict.fromkeys(["path", "interval", "scrapeTimeout"], {"type": "string"}),
                "relabelings": {"type": "array", "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"sourceLabels": {"type": "array", "items": {"type": "string"}}, **dict.fromkeys(["action", "regex", "targetLabel", "replacement", "separator"], {"type": "string"})},
                }},
            },
        }},
    },
}


# The part of its PrometheusRule that is used.
PROMETHEUS_RULE = {
    "type": "object",
    "required": ["groups"],
    "additionalProperties": False,
    "properties": {"groups": {"type": "array", "minItems": 1, "items": {
        "type": "object",
        "required": ["name", "rules"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "rules": {"type": "array", "minItems": 1, "items": {
                "type": "object",
                "required": ["alert", "expr"],
                "additionalProperties": False,
                "properties": {
                    **dict.fromkeys(["alert", "expr", "for"], {"type": "string"}),
                    **dict.fromkeys(["labels", "annotations"], {"type": "object", "additionalProperties": {"type": "string"}}),
                },
            }},
        },
    }}},
}
# Kinds of others' operators, by what of them is used.
OPERATORS = {"PodMonitor": POD_MONITOR, "PrometheusRule": PROMETHEUS_RULE}


def closed(schema):
    """A schema that refuses what it does not name, where it does not say that it keeps everything."""
    if "properties" not in schema:
        return schema
    properties = {name: closed(inner) for name, inner in schema["properties"].items()}
    return {"additionalProperties": bool(schema.get("x-kubernetes-preserve-unknown-fields"))} | schema | {"properties": properties}


def validate(found):
    """An object is what its kind may be, with nothing that the kind does not know."""
    group, _, version = found["apiVersion"].rpartition("/")
    own = definitions().get((group, version, found["kind"]))
    if own:
        schema = closed(own)
        schema["properties"]["metadata"] = {"type": "object"}
        jsonschema.validate(found, schema)
        return
    if found["kind"] in OPERATORS:
        jsonschema.validate(found["spec"], OPERATORS[found["kind"]])
        return
    for kubernetes in KUBERNETES:
        kubernetes_validate.validate(found, kubernetes, strict=True)


def containers(found):
    """All containers of a DaemonSet, those that come first included."""
    pod = found["spec"]["template"]["spec"]
    return pod.get("initContainers", []) + pod["containers"]


def daemonsets():
    """Each DaemonSet of each combination."""
    for name in COMBINATIONS:
        for found in rendered(name):
            if found["kind"] == "DaemonSet":
                yield name, found


@check
def it_is_a_chart():
    run("helm", "lint", "--strict", CHART)


@check
def every_combination_of_values_is_what_kubernetes_takes():
    seen = set()
    for name in COMBINATIONS:
        assert rendered(name), name
        for found in rendered(name):
            # Most combinations have most objects in common.
            text = json.dumps(found, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            try:
                validate(found)
            except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
                raise AssertionError(f"{name}: {found['kind']} {found['metadata']['name']}: {error}") from error


@check
def alerts_and_dashboards_are_those_that_are_tested():
    objects = {found["kind"]: found for found in rendered("alerts for the Prometheus Operator, dashboards for Grafana") if found["kind"] in ("PrometheusRule", "ConfigMap")}
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())
    dashboards = {path.name: json.loads(path.read_text()) for path in (ROOT / "deploy/dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in objects["ConfigMap"]["data"].items()} == dashboards


@check
def a_field_that_kubernetes_does_not_know_is_refused():
    spoilt = json.loads(json.dumps(next(found for name, found in daemonsets())))
    spoilt["spec"]["template"]["spec"]["hostNetwrok"] = True
    try:
        validate(spoilt)
    except kubernetes_validate.ValidationError:
        pass
    else:
        raise AssertionError("it passed")
    config = {"apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": "a"}}
    config["spec"] = {"subnet": "subnet-1", "securityGroup": ["sg-1"]}
    try:
        validate(config)
    except jsonschema.ValidationError:
        return
    raise AssertionError("it passed")


@check
def definitions_are_what_kubernetes_takes():
    for path in sorted((CHART / "crds").glob("*.yaml")):
        validate(yaml.safe_load(path.read_text()))


@check
def an_eniconfig_may_have_as_many_security_groups_as_the_code_takes():
    code = (ROOT / "ipamd/daemon/src/cluster/objects.rs").read_text()
    most = int(re.search(r"^const MOST_GROUPS: usize = (\d+);", code, re.M)[1])
    config = definitions()["crd.k8s.amazonaws.com", "v1alpha1", "ENIConfig"]["properties"]["spec"]["properties"]["securityGroups"]
    subnets = json.loads((CHART / "values.schema.json").read_text())["properties"]["eniConfig"]["properties"]["subnets"]
    value = subnets["additionalProperties"]["properties"]["securityGroups"]
    assert config["maxItems"] == value["maxItems"] == most, (config, value, most)


@check
def wrong_values_are_refused():
    def refused(values, word):
        try:
            template(values)
        except AssertionError as error:
            assert word in str(error), error
            return
        raise AssertionError(f"{values} passed")

    refused({"enableNetworkPolicies": True}, "enableNetworkPolicies")
    refused({"env": {"WARM_ENI_TARGET": [1]}}, "WARM_ENI_TARGET")
    refused({"cniConfig": {"extraPlugins": [{"type": "sluice-eni"}]}}, "extraPlugins")
    refused({"policyd": {"env": {"DISABLE_INTROSPECTION": "true", "DISABLE_METRICS": "true"}}}, "probes need one")
    refused({"logs": {"hostPath": "var/log"}}, "logs")
    refused({"eniConfig": {"create": True, "subnets": {"a": {"id": "vpc-1"}}}}, "subnets")


@check
def every_value_is_documented():
    documented, path, words, inside = {}, [], [], None
    for line in (CHART / "values.yaml").read_text().splitlines():
        key = re.match(r"^( *)([A-Za-z0-9]+):", line)
        if said := re.match(r"^\s*# -- (.*)", line):
            words.append(said[1])
        elif key and (inside is None or len(key[1]) // 2 <= inside):
            depth = len(key[1]) // 2
            path = [*path[:depth], key[2]]
            # What stands below a documented value is its default.
            inside = depth if words else None
            if words:
                documented[".".join(path)] = " ".join(words)
            words = []

    def walk(values, at=()):
        for name, value in values.items():
            here = ".".join([*at, name])
            if here in documented:
                yield here, value
            else:
                assert isinstance(value, dict) and value, f"values.yaml: {here} has no comment that begins with `# --`"
                yield from walk(value, (*at, name))

    table = ["| value | default | meaning |", "|---|---|---|"]
    for name, value in walk(VALUES):
        shown = json.dumps(value) if not isinstance(value, dict) or len(json.dumps(value)) < 60 else "see values.yaml"
        table.append(f"| `{name}` | `{shown}` | {documented[name].replace('|', '/')} |".replace("`see values.yaml`", "see values.yaml"))
    readme = (CHART / "README.md").read_text()
    begin, end = "<!-- values -->\n", "<!-- /values -->"
    before, rest = readme.split(begin)
    current("deploy/chart/README.md", before + begin + "\n".join(table) + "\n" + end + rest.split(end)[1])
    for name in COMBINATIONS:
        assert f"### {name}\n" in readme, f"README.md does not show the combination {name!r}"


@check
def variables_in_values_are_known():
    known = set(re.findall(r"^\| `([A-Z][A-Za-z0-9_]+)`", "".join((ROOT / "docs" / page).read_text() for page in ["configuration.md", "policyd.md", "sluice-proxy.md"]), re.M))
    used = set(VALUES["env"]) | {name for values in COMBINATIONS.values() for part in [values, values.get("policyd", {}), values.get("proxy", {})] for name in part.get("env", {})}
    assert used <= known, f"no page lists {sorted(used - known)}"


@check
def containers_have_no_more_rights_than_are_listed():
    rights = {
        "plugins": [], "seccomp": [], "conflist": [], "done": [], "ipamd": ["NET_ADMIN"], "policyd": ["BPF", "NET_ADMIN", "PERFMON"],
        "proxy": ["BPF", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "PERFMON", "SYS_ADMIN"],
    }
    privileged = {"namespaces", "uninstall"}
    for name, found in daemonsets():
        for container in containers(found):
            context, who = container["securityContext"], f"{name}: {container['name']}"
            assert context["readOnlyRootFilesystem"] is True, who
            if container["name"] in privileged:
                assert context["privileged"] is True and container in found["spec"]["template"]["spec"]["initContainers"], who
                continue
            assert "privileged" not in context and context["allowPrivilegeEscalation"] is False, who
            assert context["capabilities"]["drop"] == ["ALL"], who
            assert context["capabilities"].get("add", []) == rights[container["name"]], who
            two_ways = [mount for mount in container.get("volumeMounts", []) if mount.get("mountPropagation") == "Bidirectional"]
            assert not two_ways, f"{who}: the API server lets only privileged containers mount both ways"


@check
def pods_are_where_a_node_needs_them():
    for name, found in daemonsets():
        pod = found["spec"]["template"]["spec"]
        assert pod["hostNetwork"] is True and pod["priorityClassName"] == "system-node-critical", name
        mounted = {mount["name"] for container in containers(found) for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod["volumes"]}, f"{name}: volumes that are missing or not used"
        for container in containers(found):
            assert "ports" not in container, f"{name}: a declared port of the host's network keeps a second pod from the node"
        with_token = found["spec"]["template"]["spec"]["automountServiceAccountToken"]
        assert with_token is (found["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "node"), name
        for container in pod["containers"]:
            if container["name"] in ("ipamd", "policyd", "proxy"):
                assert container["livenessProbe"] and container["readinessProbe"] and container["startupProbe"], name


@check
def the_command_is_told_where_daemons_are_asked():
    names = ["INTROSPECTION_BIND_ADDRESS", "SLUICE_POLICY_INTROSPECTION_ADDRESS", "SLUICE_PROXY_INTROSPECTION_ADDRESS"]
    for combination, expected in [("defaults", {}), ("introspection elsewhere", dict(zip(names, ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"])))]:
        found = {container["name"]: container for name, found in daemonsets() if name == combination for container in containers(found)}
        assert {one["name"]: one["value"] for one in found["conflist"].get("env", [])} == expected, combination
        told = {one["name"]: one["value"] for one in found["policyd"]["env"] if "value" in one}
        assert {name: value for name, value in told.items() if name in names} == expected, f"{combination}: the node's page"
        for (name, variable), usual in zip([("ipamd", "SLUICE_HEALTH_ADDRESS"), ("policyd", names[1]), ("proxy", names[2])], [61681, 61680, 61682]):
            port = int(expected.get(variable, f":{usual}").rpartition(":")[2])
            assert found[name]["livenessProbe"]["httpGet"]["port"] == port, f"{combination}: {name}"


@check
def no_port_of_aws_nodes_is_probed():
    # Its daemon answers there with success, whatever is asked, for as long as it serves the node.
    for name, found in daemonsets():
        for container in containers(found):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                assert port not in (50051, 50052, 61678, 61679), f"{name}: {container['name']}"
    ports = {}
    for elsewhere, expected in [({}, 61681), ({"SLUICE_HEALTH_ADDRESS": "127.0.0.1:7000"}, 7000), ({"DISABLE_INTROSPECTION": "true", "DISABLE_METRICS": "true"}, 61681)]:
        found = next(found for found in yaml.safe_load_all(template({"env": elsewhere})) if found and found["kind"] == "DaemonSet")
        ports[expected] = {container["livenessProbe"]["httpGet"]["port"] for container in containers(found) if container["name"] == "ipamd"}
        assert ports[expected] == {expected}, (elsewhere, ports)


@check
def daemons_see_whether_aws_node_serves_the_node():
    for name, found in daemonsets():
        for container in containers(found):
            if container["name"] in ("ipamd", "policyd", "conflist"):
                mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
                assert mounts["/var/run/aws-node"]["readOnly"] is True, f"{name}: {container['name']}"


@check
def files_of_flows_and_records_are_where_containers_may_write():
    seen = set()
    for name, found in daemonsets():
        pod = found["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        wanted = COMBINATIONS[name].get("logs", {}).get("hostPath")
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", [])}
            if container["name"] in ("policyd", "proxy"):
                assert mounts.get("/var/log/sluice", {}).get("hostPath", {}).get("path") == wanted, f"{name}: {container['name']}"
            for one in container.get("env", []):
                if one["name"] in ("SLUICE_FLOWS_FILE", "SLUICE_PROXY_RECORDS_FILE"):
                    seen.add(one["name"])
                    assert any(one["value"].startswith(path + "/") for path in mounts), f"{name}: {one}"
    assert len(seen) == 2, seen


@check
def the_proxy_surges_and_outlives_its_drain():
    for name, found in daemonsets():
        if not found["metadata"]["name"].endswith("-proxy"):
            continue
        update, pod = found["spec"]["updateStrategy"]["rollingUpdate"], found["spec"]["template"]["spec"]
        assert update["maxUnavailable"] == 0 and update["maxSurge"], name
        env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert int(env["SLUICE_PROXY_DRAIN"]) < pod["terminationGracePeriodSeconds"], name


@check
def manifests_are_the_chart_rendered():
    head = "# Made from deploy/chart by tests/deploy/run --update. {}\n"
    crds = "".join(f"---\n{path.read_text()}" for path in sorted((CHART / "crds").glob("*.yaml")))
    current("deploy/manifests/crds.yaml", head.format("`kubectl create -f`: what is there already is left as it is.") + crds)
    for name, values, words in [
        ("sluice", {}, "The defaults; `kubectl apply -f`."),
        ("addresses-only", {"enableNetworkPolicy": False}, "Without gates on pods."),
        ("uninstall", {"uninstall": True}, "In place of the others: takes Sluice off the nodes."),
    ]:
        text = "\n".join(line for line in template(values).splitlines() if line.strip() and not line.startswith("# Source:"))
        current(f"deploy/manifests/{name}.yaml", head.format(words) + text.replace("managed-by: Helm", "managed-by: kubectl") + "\n")


@check
def the_conformance_job_is_what_kubernetes_takes():
    for found in yaml.safe_load_all((ROOT / "deploy/conformance.yaml").read_text()):
        validate(found)


@check
def who_installs_it_hears_what_is_missing():
    def notes(*more):
        return run("helm", "install", "sluice", CHART, "--namespace", "kube-system", "--dry-run=client", *more).partition("\nNOTES:\n")[2]

    for said in [["--set", "env.CLUSTER_NAME=prod"], ["--set", "extraEnv[0].name=CLUSTER_NAME,extraEnv[0].value=prod"], ["--set", "nodeGroups.all.env.CLUSTER_NAME=prod"]]:
        assert "rollout status" in notes(*said) and "CLUSTER_NAME" not in notes(*said), said
    for silent in [[], ["--set", "env.CLUSTER_NAME= "]]:
        assert "env.CLUSTER_NAME is empty" in notes(*silent), silent
    # As the defaults have it: ipamd takes an empty name for none.
    assert VALUES["env"]["CLUSTER_NAME"] == "" and "older than admission policies" not in notes()


@check
def ipamds_roles_are_what_its_page_lists():
    # That the page lists what ipamd asks, another test holds (tests/tests/node/ipamd_kube/rights.rs).
    page = (ROOT / "docs/ipamd-kubernetes.md").read_text()
    listed = yaml.safe_load(re.search(r"^## Rights\n.*?```yaml\n(.*?)```", page, re.M | re.S)[1])
    roles = {found["kind"]: found["rules"] for found in rendered("defaults") if found["metadata"]["name"] == "sluice-ipamd" and "rules" in found}

    def rights(rules):
        return {
            (group, resource, verb, tuple(rule.get("resourceNames", [])))
            for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
        }

    assert rights(roles["ClusterRole"]) == rights(listed["clusterRole"]) and rights(roles["Role"]) == rights(listed["role"]), "rbac.yaml and docs/ipamd-kubernetes.md differ"
    more = rights(roles["ClusterRole"]) | rights(listed["annotatePodIp"])
    for values, expected in [
        ({"env": {"ANNOTATE_POD_IP": "true"}}, more),
        ({"env": {"ANNOTATE_POD_IP": True}}, more),
        ({"nodeGroups": {"10-all": {"env": {"ANNOTATE_POD_IP": "1"}}}}, more),
        ({"extraEnv": [{"name": "ANNOTATE_POD_IP", "value": "True"}]}, more),
        ({"extraEnv": [{"name": "ANNOTATE_POD_IP", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]}, more),
        ({"env": {"ANNOTATE_POD_IP": "false"}, "extraEnv": [{"name": "ANNOTATE_POD_IP", "value": "0"}], "nodeGroups": {"10-all": {}}}, rights(roles["ClusterRole"])),
    ]:
        found = [found for found in yaml.safe_load_all(template(values)) if found and found["kind"] == "ClusterRole" and found["metadata"]["name"] == "sluice-ipamd"]
        assert rights(found[0]["rules"]) == expected, values


@check
def both_daemons_ask_the_api_server_at_its_url():
    url = COMBINATIONS["the API server by its URL"]["env"]["CLUSTER_ENDPOINT"]
    told = {}
    for name, found in daemonsets():
        if name == "the API server by its URL":
            told |= {container["name"]: one["value"] for container in containers(found) for one in container.get("env", []) if one["name"] == "CLUSTER_ENDPOINT"}
    assert told == {"ipamd": url, "policyd": url}, told
