"""The chart's admission policies: each expression is CEL, and refuses what it is for and nothing else.

CEL is evaluated by Google's own runtime, with what an API server gives an expression: object, oldObject, request, and the policy's variables.
What nodes cannot use is in faulty.yaml, what they can in usable.yaml; a test of policy-core reads the same two files, so that an
admission policy and the parser of nodes cannot come to mean different things.
"""

import functools

import yaml
from cel_expr_python import cel

from chart import CHART, COMBINATIONS, VALUES, rendered, template
from check import ROOT, check

HERE = ROOT / "tests/deploy"
# What an API server lets an expression see. Objects are of any type, as for it.
SEEN = {name: cel.Type.DYN for name in ["object", "oldObject", "request", "variables", "params", "namespaceObject", "authorizer"]}
ENVIRONMENT = cel.NewEnv(variables=SEEN)
compiled = functools.cache(ENVIRONMENT.compile)
DAEMONS = "system:serviceaccount:kube-system:sluice"
NODE_NAME = "authentication.kubernetes.io/node-name"
# Which resource each kind is, and of which of them a part is written.
RESOURCES = {
    "Pod": "pods", "Node": "nodes", "ConfigMap": "configmaps", "Lease": "leases", "CNINode": "cninodes", "CiliumCIDRGroup": "ciliumcidrgroups",
    "CiliumNetworkPolicy": "ciliumnetworkpolicies", "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
    "ClusterNetworkPolicy": "clusternetworkpolicies", "ENIConfig": "eniconfigs",
}


class Fault(Exception):
    """An expression that has no value."""


def value(expression, data):
    """What an expression comes to."""
    found = compiled(expression).eval(data=data)
    if found.type() == cel.Type.ERROR:
        raise Fault(f"{expression}: {found.value()}")
    return found.plain_value()


def policies(objects):
    """The admission policies among rendered objects, by the end of their names, each with its binding's actions."""
    found = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "ValidatingAdmissionPolicy"}
    actions = {one["spec"]["policyName"]: one["spec"]["validationActions"] for one in objects if one["kind"] == "ValidatingAdmissionPolicyBinding"}
    assert found.keys() == actions.keys(), f"{sorted(found)} and {sorted(actions)}: one has no binding"
    return {name.removeprefix("sluice-"): (spec, actions[name]) for name, spec in found.items()}


def matches(spec, request):
    """Whether a policy is asked about a request."""
    group, resource = request["resource"]["group"], request["resource"]["resource"]
    if request.get("subResource"):
        resource += "/" + request["subResource"]
    return any(
        group in rule["apiGroups"] and resource in rule["resources"] and request["operation"] in rule["operations"]
        and {"*", request["resource"]["version"]} & set(rule["apiVersions"])
        for rule in spec["matchConstraints"]["resourceRules"]
    )


def refused(spec, request, new, old):
    """The messages with which a policy refuses a request; a fault of an expression is one where the policy fails by it."""
    if not matches(spec, request):
        return []
    data = {"object": new, "oldObject": old, "request": request, "variables": {}, "params": None, "namespaceObject": None, "authorizer": None}
    if not all(value(one["expression"], data) for one in spec.get("matchConditions", [])):
        return []
    for variable in spec.get("variables", []):
        try:
            data["variables"][variable["name"]] = value(variable["expression"], data)
        except Fault:
            # It is a fault of what asks for it.
            pass
    found = []
    for validation in spec["validations"]:
        try:
            if not value(validation["expression"], data):
                found.append(validation["message"])
        except Fault as fault:
            assert spec["failurePolicy"] == "Fail", fault
            found.append(str(fault))
    return found


def asked(kind_of, operation, user, node, part=""):
    """The request that an API server makes of a write."""
    group, _, version = kind_of["apiVersion"].rpartition("/")
    info = {"username": user}
    if node is not None:
        info["extra"] = {NODE_NAME: [node]}
    return {"operation": operation, "resource": {"group": group, "version": version, "resource": RESOURCES[kind_of["kind"]]}, "subResource": part, "userInfo": info}


@check
def expressions_of_admission_policies_are_cel_and_are_true_or_false():
    seen = 0
    for name in COMBINATIONS:
        for spec, _ in policies(rendered(name)).values():
            for one in spec.get("variables", []):
                compiled(one["expression"])
            for one in spec.get("matchConditions", []) + spec["validations"]:
                assert compiled(one["expression"]).return_type() in (cel.Type.BOOL, cel.Type.DYN), one["expression"]
                seen += 1
    assert seen > 100, seen


@check
def a_node_writes_what_is_its_own_and_nothing_of_others():
    spec, actions = policies(rendered("defaults"))["own-objects"]
    assert spec["failurePolicy"] == "Fail" and "Deny" in actions, actions
    told = set()
    for case in yaml.safe_load((HERE / "writes.yaml").read_text()):
        new, old = case.get("object"), case.get("old")
        operation = "CREATE" if old is None else "DELETE" if new is None else "UPDATE"
        request = asked(new or old, operation, case.get("user", DAEMONS), case.get("node"), case.get("part", ""))
        found, expected = refused(spec, request, new, old), case.get("refused")
        told |= set(found)
        assert bool(found) == bool(expected) and (not expected or any(expected in one for one in found)), f"{case['write']}: {found}"
    missing = {one["message"] for one in spec["validations"]} - told
    assert not missing, f"no case is refused because: {missing}"


@check
def admission_tells_of_what_nodes_cannot_use_and_of_nothing_else():
    spec, actions = policies(rendered("defaults"))["faults"]
    assert spec["failurePolicy"] == "Ignore" and actions == ["Warn", "Audit"], actions
    usable = [*yaml.safe_load_all((HERE / "usable.yaml").read_text()), *(one for one in rendered("ENIConfigs") if one["kind"] == "ENIConfig")]
    usable += [one for one in yaml.safe_load_all((ROOT / "policy-chain/core/src/lint/tests/good.yaml").read_text()) if one["kind"] in RESOURCES]
    assert len(usable) > 10, len(usable)
    for one in usable:
        for operation in ["CREATE", "UPDATE"]:
            found = refused(spec, asked(one, operation, "somebody", None), one, one if operation == "UPDATE" else None)
            assert not found, f"{one['kind']} {one['metadata']['name']}: {found}"
    told = set()
    for one in yaml.safe_load_all((HERE / "faulty.yaml").read_text()):
        found = refused(spec, asked(one, "CREATE", "somebody", None), one, None)
        expected = one["metadata"]["annotations"]["fault"]
        assert len(found) == 1 and found[0].startswith(expected), f"{one['kind']} {one['metadata']['name']}: {found}"
        told |= set(found)
    missing = {one["message"] for one in spec["validations"]} - told
    assert not missing, f"faulty.yaml has nothing of which is said: {missing}"


@check
def admission_policies_are_there_where_they_are_wanted_and_the_api_server_has_them():
    def names(values, *more):
        return {name: actions for name, (_, actions) in policies([one for one in yaml.safe_load_all(template(values, *more)) if one]).items()}

    assert VALUES["admission"] == {"ownObjects": True, "faults": "Warn"}
    assert names({}) == {"own-objects": ["Deny", "Audit"], "faults": ["Warn", "Audit"]}
    assert names({"admission": {"faults": "Deny"}})["faults"] == ["Deny", "Audit"]
    assert names({"admission": {"faults": ""}}).keys() == {"own-objects"} and names({"admission": {"ownObjects": False}}).keys() == {"faults"}
    assert names({"admission": {"ownObjects": False, "faults": ""}}) == {} and names({"uninstall": True}) == {}
    assert names({}, "--kube-version", "1.29.9") == {} and names({}, "--kube-version", "v1.30.1-eks-0123456").keys() == {"own-objects", "faults"}
    # The daemons by whatever name their account has, in whatever namespace.
    for spec, _ in policies(rendered("everything else")).values():
        for condition in spec.get("matchConditions", []):
            assert "'system:serviceaccount:kube-system:theirs'" in condition["expression"], condition


@check
def admission_asks_for_the_names_that_the_code_writes():
    text = (CHART / "templates/admission.yaml").read_text()
    for path, words in [
        ("policy-chain/core/src/parse/cilium/groups.rs", 'NAME_PREFIX: &str = "sluice-aws-"'),
        ("ipamd/kube/src/shared.rs", 'LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "sluice-ipamd")'),
        ("ipamd/kube/src/lib.rs", 'identity: format!("{node}_{seed:016x}")'),
    ]:
        assert words in (ROOT / path).read_text(), f"{path}: no {words}: change templates/admission.yaml with it"
    for words in ["startsWith('sluice-aws-')", "'app.kubernetes.io/managed-by'] == 'sluice-ipamd'", "variables.node + '_'"]:
        assert words in text, words
