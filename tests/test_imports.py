"""Imports point one way, and `import metarl` costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metarl
from metarl.algorithms import ALGORITHMS

ROOT = Path(metarl.__file__).parent

LAYERS = [
    {"distributions", "tasks", "random", "adapt", "losses", "optimizers", "parallel", "worker", "arguments", "splits"}
    | {"torch_defaults", "suggestions", "printing", "finite", "survival", "success", "transition", "step_sizes"},
    {"spaces", "mlp", "modules", "normalize", "places", "priors", "visible_family", "observations"},
    {
        *("policies", "policies_cnn", "policies_gru", "gymnasium_family", "vector", "vector.automatic", "vector.loop"),
        *("vector.mujoco", "vector.process", "vector.resets", "vector.tensor"),
    },
    {"recording", "rollout", "trial", "check", "check_environments", "check_parameters", "task_critic"}
    | {"supervised.losses", "supervised.networks", "supervised.sets"},
    {"advantages", "baseline", "natural", "settings", "trust_region", "unrolled"},
    {"inner_loop", "outer"},
    {"algorithms", *(f"algorithms.{name}" for name in ALGORITHMS)}
    | {"supervised.maml", "supervised.methods", "supervised.sinusoid"},
    {"evaluate", "figures", "checkpoint", "train", "adapted_policy", "recurrent_policy", "callbacks", "render"}
    | {"run_directory", "metrics_file", "saved_learner"}
    | {
        "warm_start",
        "saved_family",
        "health",
        "event_files",
        "supervised.classes",
        "supervised.evaluation",
        "supervised.letters",
    },
    {"learner", "supervised", "supervised.learner"},
    {"cli", "__main__", "sb3", "sb3.policies", "sb3.saved_models", "sb3.vec_env"},
]
"""From the bottom up. A module may import from lower layers and from its own; a new module belongs into one of them."""

LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def imported(path: Path) -> set[str]:
    """All that a file imports, wherever in it, by absolute name: `from a import b` may mean a or a.b, so both."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative imports are not used here"
            out |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def ours(path: Path) -> set[str]:
    names = {name.removeprefix("metarl.") for name in imported(path) if name.startswith("metarl.")}
    return names & MODULES.keys()


def test_every_module_has_a_layer():
    assert set(MODULES) - set(LEVEL) == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    upward = {name for name in ours(MODULES[module]) if LEVEL.get(name, 0) > LEVEL.get(module, 0)}
    assert upward == set()


def test_the_parser_finds_the_imports():
    # The control: were `ours` to find nothing, the test above could not fail.
    assert {"inner_loop", "outer", "trust_region", "policies", "settings"} <= ours(MODULES["algorithms.maml_trpo"])


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_package_does_not_know_its_built_in_families(module):
    assert not {name for name in imported(MODULES[module]) if name.split(".")[0] == "metarl_envs"}


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "gymnasium", "stable_baselines3", "matplotlib", "scipy", "rich", "tyro"]
    code = f"import sys, metarl; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_can_be_had():
    assert all(getattr(metarl, name) is not None for name in metarl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MetaLerner"):
        _ = metarl.MetaLerner
