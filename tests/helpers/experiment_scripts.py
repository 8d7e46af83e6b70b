"""The scripts in experiments/, as modules."""

import importlib.util
from types import ModuleType

import pytest
from documents import ROOT

EXPERIMENTS = ROOT / "experiments"


def script(name: str) -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", EXPERIMENTS / name / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
