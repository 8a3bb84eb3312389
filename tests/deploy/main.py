"""Runs every check of this directory."""

import importlib
import os
import sys

import check

for name in ["chart", "admission", "seccomp", "infra", "docs", "migration", *(["scan"] if "CHECKOV" in os.environ else [])]:
    importlib.import_module(name)
sys.exit(check.main())
