"""Which tests are expected to notice a bug in which module."""

from pathlib import Path

ALSO: dict[str, tuple[str, ...]] = {
    "metarl/adapt.py": ("test_inner_loop", "test_outer", "test_exact"),
    "metarl/adapted_policy.py": ("test_adapt", "test_evaluate", "test_checkpoint", "test_learner"),
    "metarl/advantages.py": ("test_no_information", "test_exact", "test_inner_loop"),
    "metarl/checkpoint.py": ("test_loading_safely", "test_damaged_files", "test_old_files", "test_resuming",
                             "test_train", "test_learner", "test_rl2"),
    "metarl/cli.py": ("test_options",),
    "metarl/distributions.py": ("test_policies", "test_trust_region", "test_exact"),
    "metarl/evaluate.py": ("test_cli", "test_options", "test_success", "test_learner"),
    "metarl/figures.py": ("test_cli", "test_family_pictures"),
    "metarl/inner_loop.py": ("test_logging", "test_outer", "test_exact", "test_algorithms", "test_maml_trpo"),
    "metarl/learner.py": ("test_options", "test_evaluate", "test_adapt", "test_train", "test_checkpoint",
                          "test_success", "test_rl2", "test_errors"),
    "metarl/losses.py": ("test_logging", "test_exact", "test_outer"),
    "metarl/normalize.py": ("test_observations", "test_policies_gru", "test_rl2"),
    "metarl/optimizers.py": ("test_outer", "test_algorithms", "test_rl2"),
    "metarl/outer.py": ("test_no_information",
                        "test_logging", "test_exact", "test_algorithms", "test_maml_trpo", "test_meta_gradients"),
    "metarl/rollout.py": ("test_success", "test_adapt", "test_trial"),
    "metarl/settings.py": ("test_algorithms", "test_outer", "test_rl2"),
    "metarl/train.py": ("test_health", "test_resuming", "test_damaged_runs", "test_cli", "test_learner", "test_sb3"),
    "metarl/trust_region.py": ("test_logging", "test_maml_trpo", "test_outer"),
    "metarl/algorithms/rl2.py": ("test_logging", "test_options",),
    "metarl/algorithms/reptile.py": ("test_algorithms",),
}  # fmt: skip
"""Beside the file of the module's own name."""


def tests_of(module: str, root: Path) -> list[str]:
    """The test files for a module that exist, its own first; for one that is not listed those that name it."""
    own = [f"test_{Path(module).stem}", *ALSO.get(module, ())]
    found = [f"tests/{name}.py" for name in own if (root / "tests" / f"{name}.py").exists()]
    if module in ALSO:
        return found
    name = ".".join(Path(module).with_suffix("").parts[-2:]).removeprefix("envs.")
    naming = [
        str(path.relative_to(root)) for path in sorted((root / "tests").glob("test_*.py"))
        if name in path.read_text() or name.replace(".", " import ") in path.read_text()
    ]  # fmt: skip
    return list(dict.fromkeys([*found, *naming]))
