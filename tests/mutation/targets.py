"""Which tests are expected to notice a bug in which module."""

from pathlib import Path

ALSO: dict[str, tuple[str, ...]] = {
    "metarl/inner/step.py": ("inner/test_loop", "inner/test_learned", "outer/test_objective",
        "outer/test_exact_gradients",),
    "metarl/inner/learned.py": ("inner/test_loop", "outer/test_meta_gradients",),
    "metarl/adapted/gradient_policy.py": ("inner/test_step", "report/test_evaluation", "test_checkpoint",
        "adapted/test_predictions", "test_saved_learners",),
    "metarl/inner/advantages.py": ("inner/test_no_information", "outer/test_exact_gradients", "inner/test_loop",),
    "metarl/checkpoint.py": ("families/test_loading_safely", "training/test_damaged_files",
        "training/test_old_files", "training/test_resuming", "training/test_interruptions", "test_saved_learners",
        "algorithms/test_rl2", "adapted/test_recurrent_policy",),
    "metarl/cli.py": ("test_options", "test_cli_errors", "test_cli_processes",),
    "metarl/formulas/distributions.py": ("policies/test_mlp", "outer/test_trust_region",
        "outer/test_exact_gradients",),
    "metarl/report/evaluation.py": ("test_cli", "test_options", "rollout/test_success", "test_learner",),
    "metarl/report/figures.py": ("test_cli", "envs/test_family_pictures",),
    "metarl/inner/loss.py": ("inner/test_hooks", "inner/test_value_baseline", "outer/test_objective",
        "outer/test_exact_gradients", "outer/test_exact_losses", "inner/test_divisor"),
    "metarl/inner/baseline.py": ("inner/test_advantages", "inner/test_value_baseline"),
    "metarl/inner/loop.py": ("inner/test_hooks", "training/test_logging", "outer/test_objective",
        "outer/test_exact_gradients", "inner/test_optimizers", "inner/test_learned", "inner/test_adaptation",
        "algorithms/test_algorithms", "algorithms/test_maml_trpo",),
    "metarl/learner.py": ("test_options", "report/test_evaluation", "inner/test_step", "training/test_train",
        "test_checkpoint", "rollout/test_success", "algorithms/test_rl2", "test_errors",
        "test_learner_arguments", "test_saved_learners",),
    "metarl/formulas/losses.py": ("training/test_logging", "outer/test_exact_gradients", "outer/test_exact_losses",
        "outer/test_objective",),
    "metarl/policies/normalize.py": ("adapted/test_observations", "policies/test_gru",
        "adapted/test_recurrent_policy",),
    "metarl/formulas/optimizers.py": ("outer/test_objective", "algorithms/test_algorithms",
        "algorithms/test_rl2_loss",),
    "metarl/outer/objective.py": ("inner/test_no_information", "training/test_logging",
        "outer/test_exact_gradients", "algorithms/test_algorithms", "outer/test_maml_gradient",
        "outer/test_meta_gradients", "outer/test_surrogate", "outer/test_fisher_stride",),
    "metarl/rollout/rollout.py": ("rollout/test_success", "inner/test_step", "recurrent/test_trials",),
    "metarl/inner/settings.py": ("inner/test_hooks", "inner/test_value_baseline",
        "algorithms/test_algorithms", "outer/test_objective", "algorithms/test_rl2",),
    "metarl/training/train.py": ("training/test_health", "training/test_resuming", "training/test_damaged_runs",
        "training/test_interruptions", "training/test_run_files", "test_cli", "test_learner", "sb3/test_callbacks",),
    "metarl/outer/trust_region.py": ("training/test_logging", "algorithms/test_maml_trpo", "outer/test_objective",
        "outer/test_rounding",),
    "metarl/algorithms/rl2.py": ("training/test_logging", "test_options", "algorithms/test_rl2_loss",
        "algorithms/test_rl2_probes", "algorithms/test_rl2_interfaces",),
    "metarl/algorithms/reptile.py": ("algorithms/test_algorithms",),
}  # fmt: skip
"""Beside the file of the module's own name."""


def tests_of(module: str, root: Path) -> list[str]:
    """The test files for a module that exist, its own first; for one that is not listed those that name it."""
    names = [f"{Path(module).parent.name}/test_{Path(module).stem}", f"test_{Path(module).stem}", *ALSO.get(module, ())]
    found = [f"tests/{name}.py" for name in names if (root / "tests" / f"{name}.py").exists()]
    if module in ALSO:
        return found
    name = ".".join(Path(module).with_suffix("").parts[-2:]).removeprefix("envs.")
    naming = [
        str(path.relative_to(root)) for path in sorted((root / "tests").rglob("test_*.py"))
        if name in path.read_text() or name.replace(".", " import ") in path.read_text()
    ]  # fmt: skip
    return list(dict.fromkeys([*found, *naming]))
