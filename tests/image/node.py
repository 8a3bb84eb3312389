"""A node's pods, as the manifests say, by podman; then pods of its own that the plugins attach."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENTER = shlex.split(os.environ["ENTER"])
WORK = pathlib.Path(os.environ["WORK"])
LIMIT = 60
PODMAN = [*ENTER, "podman", "--cgroup-manager", "cgroupfs"]
DONE = []

CLUSTER = """
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: default, labels: {app: client}}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: default, labels: {app: other}}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: default, labels: {app: server}}, spec: {nodeName: node}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: client}}]
      toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{method: GET, path: "/public.*"}]}}]
"""


def run(*command, check=True, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def on_node(*command, **options):
    return run(*ENTER, *command, **options)


def passed(what):
    DONE.append(what)
    print(f"{what} ... ok", flush=True)


def eventually(what, holds):
    end = time.monotonic() + LIMIT
    while not holds():
        if time.monotonic() > end:
            for name in ["ipamd", "policyd", "proxy", "conflist"]:
                print(f"--- {name}\n{run(*PODMAN, 'logs', '--tail', 15, name, check=False)}")
            sys.exit(f"{what}: not within {LIMIT} s")
        time.sleep(0.1)
    passed(what)


def daemonset(name, file="sluice"):
    found = yaml.safe_load_all((ROOT / f"deploy/manifests/{file}.yaml").read_text())
    return next(one for one in found if one["kind"] == "DaemonSet" and one["metadata"]["name"] == name)["spec"]["template"]["spec"]


def default_profile(added):
    """The default seccomp profile of containerd since 1.6.9 and of Docker since 23: podman's, but bpf(2) goes with CAP_BPF."""
    profile = json.loads(pathlib.Path("/usr/share/containers/seccomp.json").read_text())
    ours = {"BPF": "bpf", "PERFMON": "perf_event_open"}
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in ours.values()]
    allowed = [ours[name] for name in added if name in ours]
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]] + ([{"names": allowed, "action": "SCMP_ACT_ALLOW"}] if allowed else [])
    path = WORK / f"seccomp-{'-'.join(added) or 'none'}.json"
    path.write_text(json.dumps(profile))
    return path


def engine(pod, container, more_env=(), more_args=(), more_mounts=(), seccomp=None):
    """How podman is told what Kubernetes is told of a container."""
    context = container["securityContext"]
    words = [*PODMAN, "run", "--name", container["name"], "--network", "host", "--user", "0:0"]
    if context.get("privileged"):
        words.append("--privileged")
    else:
        words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        added = context["capabilities"].get("add", [])
        words += [word for name in added for word in ("--cap-add", name)]
        words += ["--security-opt", f"seccomp={seccomp or default_profile(added)}"]
    if context["readOnlyRootFilesystem"]:
        words.append("--read-only")
    paths = {volume["name"]: volume["hostPath"] for volume in pod["volumes"]}
    for mount in container.get("volumeMounts", []):
        path = paths[mount["name"]]
        if path["type"] == "DirectoryOrCreate":
            on_node("mkdir", "-p", path["path"])
        how = ["ro"] if mount.get("readOnly") else []
        how += {"Bidirectional": ["rshared"], "HostToContainer": ["rslave"]}.get(mount.get("mountPropagation"), [])
        words += ["-v", ":".join([path["path"], mount["mountPath"], *([",".join(how)] if how else [])])]
    words += [word for mount in more_mounts for word in ("-v", mount)]
    downward = {"spec.nodeName": "node", "metadata.namespace": "kube-system"}
    for variable in container.get("env", []):
        value = variable["value"] if "value" in variable else downward[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        words += ["--env", f"{variable['name']}={value}"]
    words += [word for variable in more_env for word in ("--env", variable)]
    command = [*container["command"], *more_args]
    return [*words, "--entrypoint", command[0], "localhost/" + container["image"], *command[1:]]


def no_errors(*names):
    """A daemon that is denied something says so, and may go on without it."""
    for name in names:
        said = run(*PODMAN, "logs", name)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if " ERROR " in line]
        assert not errors, f"{name}:\n" + "\n".join(errors)
    passed("none of the daemons was denied anything")


def start(pod, name, **more):
    container = next(one for one in pod["containers"] if one["name"] == name)
    words = engine(pod, container, **more)
    words.insert(len(PODMAN) + 1, "--detach")
    run(*words)
    return container


def once(pod, name):
    container = next(one for one in pod["initContainers"] if one["name"] == name)
    words = engine(pod, container)
    words.insert(len(PODMAN) + 1, "--rm")
    done = run(*words, check=False)
    return done.returncode, done.stdout + done.stderr


def answers(probe):
    url = f"http://{probe['httpGet']['host']}:{probe['httpGet']['port']}{probe['httpGet']['path']}"
    return on_node("curl", "--silent", "--fail", "--max-time", "3", url, check=False).returncode == 0


def attach(name, verb="ADD", previous=None):
    """What libcni does with the conflist of the node."""
    conflist = json.loads(on_node("cat", "/etc/cni/net.d/00-sluice.conflist").stdout)
    for plugin in conflist["plugins"] if verb == "ADD" else reversed(conflist["plugins"]):
        if plugin["type"] == "portmap":
            continue
        config = plugin | {"cniVersion": conflist["cniVersion"], "name": conflist["name"]} | ({"prevResult": previous} if previous else {})
        environment = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": f"sandbox-{name}", "CNI_NETNS": f"/run/netns/{name}", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID=sandbox-{name}",
        }
        done = on_node("/opt/cni/bin/" + plugin["type"], input=json.dumps(config), env=os.environ | environment, check=False)
        if done.returncode:
            sys.exit(f"{plugin['type']} {verb} {name}: {done.stdout}{done.stderr}")
        previous = json.loads(done.stdout) if verb == "ADD" else previous
    return previous


def ask(pod, address, path, method="GET"):
    done = on_node("ip", "netns", "exec", pod, "curl", "--silent", "--max-time", "3", "--output", "/dev/null", "--write-out", "%{http_code}", "--request", method,
                   f"http://{address}:8080{path}", check=False)
    return done.stdout


# What they are told beyond the manifests. There is no API server here: objects from a directory.
MORE = {
    "ipamd": {"more_env": ["AWS_ENDPOINT_URL_EC2=http://169.254.169.252"]},
    "policyd": {"more_args": ["--cluster-dir", "/cluster"], "more_mounts": [f"{WORK}/cluster:/cluster:ro"]},
}


def under_profiles_of_our_own(node, proxy):
    """All three daemons anew, as the chart has them with `seccomp.localhost`: by profiles that the image puts in place."""
    profiles = WORK / "seccomp"
    profiles.mkdir()
    image = "localhost/" + node["containers"][0]["image"]
    run(*PODMAN, "run", "--rm", "--network", "host", "--user", "0:0", "--cap-drop", "ALL", "--read-only", "-v", f"{profiles}:/var/lib/kubelet/seccomp",
        "--entrypoint", "/usr/local/bin/sluice", image, "install", "seccomp")
    run(*PODMAN, "rm", "--force", "--time", "30", "proxy", "policyd", "ipamd")
    for pod, name in [(node, "ipamd"), (node, "policyd"), (proxy, "proxy")]:
        profile = profiles / f"sluice/{name}.json"
        assert profile.read_text() == (ROOT / f"deploy/seccomp/{name}.json").read_text(), name
        container = start(pod, name, seccomp=profile, **MORE.get(name, {}))
        eventually(f"{name} is ready under its own seccomp profile", lambda probes=container: answers(probes["livenessProbe"]) and answers(probes["readinessProbe"]))


def main():
    (WORK / "cluster").mkdir()
    (WORK / "cluster/all.yaml").write_text(CLUSTER)
    node, proxy = daemonset("sluice"), daemonset("sluice-proxy")
    code, said = once(node, "plugins")
    assert code == 0, said
    passed("plugins are copied")
    ipamd, policyd = start(node, "ipamd", **MORE["ipamd"]), start(node, "policyd", **MORE["policyd"])
    start(node, "conflist")
    eventually("ipamd lives and is ready", lambda: answers(ipamd["livenessProbe"]) and answers(ipamd["readinessProbe"]))
    eventually("policyd lives and is ready", lambda: answers(policyd["livenessProbe"]) and answers(policyd["readinessProbe"]))
    code, said = once(proxy, "namespaces")
    assert code == 0, said
    process = start(proxy, "proxy")
    eventually("the proxy lives and is ready", lambda: answers(process["livenessProbe"]) and answers(process["readinessProbe"]))
    eventually("the conflist is in place", lambda: on_node("test", "-e", "/etc/cni/net.d/00-sluice.conflist", check=False).returncode == 0)

    results = {}
    for name in ["server", "client", "other"]:
        on_node("ip", "netns", "add", name)
        results[name] = attach(name)
    address = results["server"]["ips"][0]["address"].split("/")[0]
    passed(f"pods are attached: the server has {address}")
    serve = [*ENTER, "ip", "netns", "exec", "server", sys.executable, "-m", "http.server", "8080", "--bind", address, "--directory", "/proc/self/fdinfo"]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually("a request that the policy allows reaches the server", lambda: ask("client", address, "/public") == "404")
        assert ask("client", address, "/private") == "403", "the proxy refuses what no rule allows"
        passed("a request that it does not allow is refused by the proxy")
        assert ask("other", address, "/public") == "000", "another pod does not get through"
        passed("a pod that it does not name gets no answer")
        # The proxy's namespaces outlive its container.
        inode = on_node("stat", "--format", "%i", "/run/sluice/netns/ingress").stdout
        run(*PODMAN, "rm", "--force", "--time", "30", "proxy")
        code, said = once(proxy, "namespaces")
        assert code == 0, said
        start(proxy, "proxy")
        eventually("the next proxy serves", lambda: ask("client", address, "/public") == "404")
        assert on_node("stat", "--format", "%i", "/run/sluice/netns/ingress").stdout == inode
        passed("it has the namespaces of the one before")
        # What `sluice status --cluster` asks, where it asks it: what is not seen from there is not called broken.
        told = run(*PODMAN, "exec", "conflist", "/usr/local/bin/sluice", "doctor", "--json", check=False)
        broken = [one for one in json.loads(told.stdout) if one["standing"] == "broken"]
        assert not broken, f"{json.dumps(broken, indent=1)}\n{told.stderr}"
        passed("doctor finds nothing broken, asked in the container conflist")
        no_errors("ipamd", "policyd", "proxy")
        under_profiles_of_our_own(node, proxy)
        eventually("a request that the policy allows still does", lambda: ask("client", address, "/public") == "404")
        assert ask("client", address, "/private") == "403", "the proxy refuses what no rule allows"
        attach("other", "DEL", results["other"])
        results["other"] = attach("other")
        assert ask("other", address, "/public") == "000", "another pod does not get through"
        passed("pods come and go, and are judged")
        no_errors("ipamd", "policyd", "proxy")
    finally:
        server.kill()
        server.wait()
    taken = daemonset("sluice-uninstall", "uninstall")
    run(*PODMAN, "rm", "--force", "--time", "30", "proxy", "policyd", "ipamd", "conflist")
    code, said = once(taken, "uninstall")
    assert code != 0 and "3 pods" in said, said
    passed("it is not taken off under pods")
    for name in results:
        attach(name, "DEL", results[name])
        on_node("ip", "netns", "delete", name)
    code, said = once(taken, "uninstall")
    assert code == 0, said
    for path in ["/run/sluice", "/sys/fs/bpf/sluice", "/opt/cni/bin/sluice-eni", "/etc/cni/net.d/00-sluice.conflist"]:
        assert on_node("test", "-e", path, check=False).returncode != 0, f"{path} is left\n{said}"
    assert on_node("nft", "list", "tables").stdout == "" and "sluice" not in on_node("ip", "link").stdout
    passed("it is taken off, and nothing is left")
    print(f"{len(DONE)} passed, 0 failed")


main()
