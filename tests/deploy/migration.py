"""docs/migration.md, as somebody pastes it: its blocks are run, in a cluster of files by stand-ins for kubectl, helm and aws.

What is rendered, patched and printed is done by kubectl and helm themselves, which need no cluster for it. The stand-ins know of pods what
matters here: they come and go after a label does, one of Sluice's that still runs makes `sluice handback` refuse, and `kubectl debug`
ends with 0 whatever became of what it ran.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import textwrap

import kubernetes_validate
import yaml

from check import ROOT, check, run

PAGE = (ROOT / "docs/migration.md").read_text()
IMAGE = "registry.example/sluice"

# What of these two matters here, as their releases have it: aws-node's affinity and environment (1.23.1), Cilium's affinity.
AWS_NODE = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: aws-node, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: aws-node}}
  template:
    metadata: {labels: {k8s-app: aws-node}}
    spec:
      hostNetwork: true
      initContainers: [{name: aws-vpc-cni-init, image: amazon-k8s-cni-init, env: [{name: ENABLE_V6_EGRESS, value: "false"}]}]
      containers:
        - name: aws-node
          image: amazon-k8s-cni
          env:
            - {name: ADDITIONAL_ENI_TAGS, value: "{}"}
            - {name: AWS_VPC_K8S_CNI_EXTERNALSNAT, value: "true"}
            - {name: WARM_ENI_TARGET, value: "1"}
            - {name: MY_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: aws-eks-nodeagent, image: aws-network-policy-agent, env: [{name: MY_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - {key: kubernetes.io/os, operator: In, values: [linux]}
                  - {key: kubernetes.io/arch, operator: In, values: [amd64, arm64]}
                  - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate, hybrid, auto]}
"""
CILIUM = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cilium, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: cilium}}
  template:
    metadata: {labels: {k8s-app: cilium}}
    spec:
      hostNetwork: true
      nodeSelector: {kubernetes.io/os: linux}
      containers: [{name: cilium-agent, image: cilium}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - {labelSelector: {matchLabels: {k8s-app: cilium}}, topologyKey: kubernetes.io/hostname}
"""
LINUX = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}

# The cluster: nodes with their labels, DaemonSets, and the pods that run.
STAND_IN = r'''
import json, os, pathlib, re, subprocess, sys
import yaml

here = pathlib.Path(os.environ["CLUSTER_DIR"])
program, words = sys.argv[1], sys.argv[2:]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([program, *words]) + "\n")


def real(*command):
    return subprocess.run([os.environ["REAL_" + program.upper()], *command], check=True, capture_output=True, text=True).stdout


def load():
    return json.loads((here / "cluster.json").read_text())


def save(cluster):
    (here / "cluster.json").write_text(json.dumps(cluster))


def option(name):
    found = [words[at + 1] if word == name else word.partition("=")[2] for at, word in enumerate(words) if word == name or word.startswith(name + "=")]
    return found[0] if found else None


def expression_fits(expression, labels):
    value = labels.get(expression["key"])
    return {"In": value in expression.get("values", []), "NotIn": value not in expression.get("values", []),
            "Exists": value is not None, "DoesNotExist": value is None}[expression["operator"]]


def fits(pod, labels):
    if any(labels.get(key) != value for key, value in pod.get("nodeSelector", {}).items()):
        return False
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    return not required or any(all(expression_fits(one, labels) for one in term["matchExpressions"]) for term in required["nodeSelectorTerms"])


def selected(selector, labels):
    for part in re.split(r",(?![^(]*\))", selector):
        if found := re.fullmatch(r"(\S+) notin \((.*)\)", part):
            fit = labels.get(found[1]) not in found[2].split(",")
        elif "!=" in part:
            fit = labels.get(part.split("!=")[0]) != part.split("!=")[1]
        else:
            fit = labels.get(part.split("=")[0]) == part.split("=")[1]
        if not fit:
            return False
    return True


def settle(cluster):
    """The controller: pods go where they belong."""
    cluster["pods"] = {node: sorted(name for name, found in cluster["daemonsets"].items() if fits(found["spec"]["template"]["spec"], labels))
                       for node, labels in cluster["nodes"].items()}
    save(cluster)


def put(cluster, text):
    for found in yaml.safe_load_all(text):
        if found and found["kind"] == "DaemonSet":
            cluster["daemonsets"][found["metadata"]["name"]] = found


def local(cluster, name, *command):
    (here / "one.yaml").write_text(yaml.safe_dump(cluster["daemonsets"][name]))
    return real(*command, "--local", "-f", str(here / "one.yaml"))


cluster = load()
if program == "aws":
    sys.exit()
if program == "helm":
    command = [word for word in words if word != "--reset-values"]
    if command[0] == "template":
        sys.stdout.write(real(*command))
    elif command[0] in ("install", "upgrade"):
        own = [name for name in cluster["daemonsets"] if name.startswith("sluice")]
        assert (command[0] == "upgrade") == bool(own), command
        for name in own:
            del cluster["daemonsets"][name]
        put(cluster, real("template", *command[1:]))
        settle(cluster)
    sys.exit()

verbs = [word for at, word in enumerate(words) if not word.startswith("-") and (at == 0 or words[at - 1] not in ("-n", "-l", "-o", "-p", "-f", "--field-selector"))]
verb, what, *rest = verbs[:3] + [""] * (3 - len(verbs))
if verb == "get" and what == "ds":
    sys.stdout.write(local(cluster, rest[0], "label", "x=y", "-o", option("-o")))
elif verb == "get" and what == "nodes":
    sys.stdout.write("".join(f"node/{name}\n" for name, labels in cluster["nodes"].items() if selected(option("-l"), labels)))
elif verb == "patch":
    kind = [word for word in words if word.startswith("--type")]
    put(cluster, local(cluster, rest[0], "patch", *kind, "-p", option("-p"), "-o", "yaml"))
    settle(cluster)
elif verb == "label":
    change = words[-1]
    for name in cluster["nodes"] if "--all" in words else [rest[0]]:
        if change.endswith("-"):
            cluster["nodes"][name].pop(change[:-1], None)
        else:
            key, value = change.split("=")
            assert "--overwrite" in words or key not in cluster["nodes"][name], f"{name} has {key} already"
            cluster["nodes"][name][key] = value
    save(cluster)
elif verb == "wait":
    node = option("--field-selector").removeprefix("spec.nodeName=")
    match = lambda: [name for name in cluster["pods"].get(node, []) if selected(option("-l"), cluster["daemonsets"][name]["spec"]["template"]["metadata"]["labels"])]
    before = match()
    settle(cluster)
    if option("--for") == "delete":
        sys.exit(1 if match() else 0)
    if not before:
        sys.exit("error: no matching resources found")
elif verb == "debug":
    node = what.removeprefix("node/")
    command = words[words.index("--") + 1:]
    assert command == ["/usr/local/bin/sluice", "handback", "--root", "/host"], command
    assert option("--profile") == "sysadmin", words
    print(f"Creating debugging pod node-debugger-{node}-abcde with container debugger on node {node}.", flush=True)
    if [name for name in cluster["pods"][node] if name.startswith("sluice")] or os.environ.get("HANDBACK") == "refuses":
        print("sluice handback: sluice-ipamd serves this node at /host/run/sluice/ipamd.sock: stop it first", file=sys.stderr)
    else:
        print("pods that are the AWS VPC CNI's: 3 (/host/run/aws-node/ipam.json)")
    # Of its own it has no status.
elif verb == "apply":
    put(cluster, pathlib.Path(option("-f")).read_text())
    settle(cluster)
elif verb == "delete" and what == "ds":
    del cluster["daemonsets"][rest[0]]
    settle(cluster)
else:
    assert verb == "rollout", words
'''


def blocks(heading):
    """The blocks of shell in a section, with the names that are its reader's."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    found = [textwrap.dedent(block) for _, block in re.findall(r"^( *)```sh\n(.*?)^\1```", section, re.M | re.S)]
    return [block.replace("REGISTRY/sluice", IMAGE).replace("CLUSTER", "production") for block in found]


class Cluster:
    """A cluster in a directory, and a shell that commands are pasted into."""

    def __init__(self, directory, daemonsets, nodes):
        self.here = pathlib.Path(directory)
        (self.here / "bin").mkdir()
        (self.here / "deploy").symlink_to(ROOT / "deploy")
        (self.here / "stand-in.py").write_text(STAND_IN)
        for name in ["kubectl", "helm", "aws"]:
            self.program(name, f'exec python3 "$CLUSTER_DIR/stand-in.py" {name} "$@"')
        self.program("sleep", "exit 0")
        (values,) = re.findall(r"^```yaml\n(image: .*?)^```", PAGE, re.M | re.S)
        (self.here / "values.yaml").write_text(values.replace("REGISTRY/sluice", IMAGE))
        found = {one["metadata"]["name"]: one for one in map(yaml.safe_load, daemonsets)}
        pods = {name: sorted(found) for name in nodes}
        self.write({"nodes": nodes, "daemonsets": found, "pods": pods})
        self.environment = {
            **os.environ, "PATH": f"{self.here / 'bin'}:{os.environ['PATH']}", "CLUSTER_DIR": str(self.here),
            "REAL_KUBECTL": shutil.which("kubectl"), "REAL_HELM": shutil.which("helm"),
        }

    def program(self, name, body):
        path = self.here / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def write(self, cluster):
        (self.here / "cluster.json").write_text(json.dumps(cluster))

    def read(self):
        return json.loads((self.here / "cluster.json").read_text())

    def paste(self, block, node="", **environment):
        """Runs a block, not ended by what fails in it; whether its last command succeeded, and what was said."""
        block = re.sub(r"\bNODE\b", node, block)
        done = subprocess.run(
            ["bash", "-c", block], cwd=self.here, env={**self.environment, **environment}, capture_output=True, text=True, check=False, timeout=120,
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        return done.returncode == 0, said

    def well(self, block, node=""):
        done, said = self.paste(block, node)
        assert done, f"{block}\n{said}"
        return said

    def label(self, node):
        return self.read()["nodes"][node].get("cni")

    def runs(self, **labels):
        """What a Linux node with these labels runs, once pods are where they belong."""
        cluster = self.read()
        cluster["nodes"]["looked-at"] = LINUX | {name.replace("_", "/"): value for name, value in labels.items()}
        with tempfile.TemporaryDirectory() as directory:
            there = pathlib.Path(directory) / "cluster.json"
            there.write_text(json.dumps(cluster))
            settle = STAND_IN.split("cluster = load()")[0] + "settle(load())\n"
            run("python3", "-c", settle, "none", env={**self.environment, "CLUSTER_DIR": directory})
            return json.loads(there.read_text())["pods"]["looked-at"]


def migrating(directory, *more):
    """A cluster with the first steps done."""
    cluster = Cluster(directory, [AWS_NODE, *more], {"n1": dict(LINUX), "n2": dict(LINUX)})
    begin, over = blocks("The nodes")[:2]
    cluster.well(begin)
    return cluster, over


@check
def each_node_has_one_cni_and_nodes_without_a_label_are_aws_nodes():
    with tempfile.TemporaryDirectory() as directory:
        cluster, _ = migrating(directory, CILIUM)
        cluster.well(blocks("From Cilium behind the VPC CNI")[0])
        cluster.well(blocks("Back")[0])
        assert cluster.runs() == cluster.runs(cni="anything") == ["aws-node", "cilium"]
        assert cluster.runs(cni="sluice") == ["sluice"]
        assert cluster.runs(cni="leaving") == []
        assert cluster.runs(cni="clearing") == ["sluice-uninstall"]
        # Other conditions are as they were.
        daemonsets = cluster.read()["daemonsets"]
        terms = daemonsets["aws-node"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        keys = [one["key"] for term in terms for one in term["matchExpressions"]]
        assert keys == ["kubernetes.io/os", "kubernetes.io/arch", "eks.amazonaws.com/compute-type", "cni"], keys
        assert "podAntiAffinity" in daemonsets["cilium"]["spec"]["template"]["spec"]["affinity"]
        for found in daemonsets.values():
            kubernetes_validate.validate(found, "1.37", strict=True)
            images = {one["image"] for one in found["spec"]["template"]["spec"]["containers"]}
            assert not found["metadata"]["name"].startswith("sluice") or images == {f"{IMAGE}:0.1.0"}, images
        assert set(re.findall(r"--image=(\S*sluice\S*)", PAGE)) == {"REGISTRY/sluice:0.1.0"}


@check
def the_settings_of_aws_node_are_printed_as_values_have_them():
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(directory, [AWS_NODE], {"n1": dict(LINUX)})
        settings, addon = blocks("Before")
        printed = yaml.safe_load("env:\n" + cluster.well(settings))
        assert printed == {"env": {"ADDITIONAL_ENI_TAGS": "{}", "AWS_VPC_K8S_CNI_EXTERNALSNAT": "true", "WARM_ENI_TARGET": "1"}}, printed
        with (cluster.here / "printed.yaml").open("w") as file:
            yaml.safe_dump(printed, file)
        run("helm", "template", "sluice", ROOT / "deploy/chart", "--values", cluster.here / "printed.yaml")
        cluster.well(addon)
        last = json.loads((cluster.here / "calls").read_text().splitlines()[-1])
        assert last == ["aws", "eks", "delete-addon", "--cluster-name", "production", "--addon-name", "vpc-cni", "--preserve"], last


@check
def a_node_goes_over_when_it_is_served_and_comes_back_only_handed_back():
    with tempfile.TemporaryDirectory() as directory:
        cluster, over = migrating(directory)
        prepare, back = blocks("Back")
        cluster.well(over, "n1")
        # It has ended when the pod was there, and not at once.
        assert "sluice" in cluster.read()["pods"]["n1"] and cluster.read()["pods"]["n2"] == ["aws-node"]
        cluster.well(prepare)
        # What refuses keeps the node as it is.
        done, said = cluster.paste(back, "n1", HANDBACK="refuses")
        assert not done and "stop it first" in said and cluster.label("n1") == "leaving", said
        # Nor does it go on with a daemon of Sluice's there.
        hasty = re.sub(r"^.*--for=delete.*\n", "", back, flags=re.M)
        assert hasty != back
        cluster.well(over, "n2")
        done, said = cluster.paste(hasty, "n2")
        assert not done and "stop it first" in said and cluster.label("n2") == "leaving", said
        for node in ["n1", "n2"]:
            begun = len((cluster.here / "calls").read_text().splitlines())
            said = cluster.well(back, node)
            assert "pods that are the AWS VPC CNI's: 3" in said, said
            assert cluster.label(node) is None and cluster.read()["pods"][node] == ["sluice-uninstall"], cluster.read()["pods"]
            calls = map(json.loads, (cluster.here / "calls").read_text().splitlines()[begun:])
            verbs = [next(word for word in call if word in ("label", "wait", "debug")) for call in calls]
            assert verbs == ["label", "wait", "debug", "label", "wait", "wait", "label"], verbs
        assert cluster.runs() == ["aws-node"]


@check
def the_end_is_refused_while_a_node_is_left_and_takes_new_nodes_in():
    with tempfile.TemporaryDirectory() as directory:
        cluster, over = migrating(directory)
        (end,) = blocks("When all nodes are over")
        cluster.well(over, "n1")
        done, said = cluster.paste(end)
        assert not done and "node/n2" in said and "aws-node" in cluster.read()["daemonsets"], said
        cluster.well(over, "n2")
        # Nodes that aws-node never served are no reason.
        state = cluster.read()
        state["nodes"]["w"] = {"kubernetes.io/os": "windows"}
        state["nodes"]["f"] = LINUX | {"eks.amazonaws.com/compute-type": "fargate"}
        cluster.write(state)
        cluster.well(end)
        assert "aws-node" not in cluster.read()["daemonsets"]
        assert not [name for name, labels in cluster.read()["nodes"].items() if "cni" in labels]
        assert "sluice" in cluster.runs() and cluster.runs() == cluster.runs(cni="anything")
        assert cluster.runs(**{"eks.amazonaws.com_compute-type": "fargate"}) == []
