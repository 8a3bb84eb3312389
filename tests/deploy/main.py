"""Runs every check of this directory."""

import importlib
import sys

import check

for name in ["chart", "infra", "docs"]:
    importlib.import_module(name)
sys.exit(check.main())
