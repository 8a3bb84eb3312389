"""Checkov over the Terraform modules and the manifests: what it knows of AWS and Kubernetes holds, but for what checkov.yaml names."""

import os
import subprocess

from check import ROOT, check

CHECKOV = os.environ["CHECKOV"]


def findings(*words):
    """What checkov says, and how many of its checks passed."""
    command = [CHECKOV, *map(str, words), "--skip-download", "--quiet", "--compact", "--config-file", ROOT / "tests/deploy/checkov.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


@check
def terraform_modules_pass_checkov():
    done = findings("--directory", ROOT / "terraform", "--framework", "terraform")
    assert done.returncode == 0, done.stdout


@check
def manifests_pass_checkov():
    for path in sorted((ROOT / "deploy/manifests").glob("*.yaml")):
        done = findings("--file", path, "--framework", "kubernetes")
        assert done.returncode == 0, done.stdout


@check
def checkov_finds_what_is_wrong():
    done = subprocess.run(
        [CHECKOV, "--file", ROOT / "deploy/manifests/sluice.yaml", "--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "--check", "CKV_K8S_19"],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 1 and "CKV_K8S_19" in done.stdout, done.stdout
