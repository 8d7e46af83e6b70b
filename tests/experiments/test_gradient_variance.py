"""The gradient variance study: its statistics against numpy's and known ones, and that it measures what it says."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from exact import MDP
from metarl_envs.tabular_mdp import TabularMDP

import metarl

FILE = Path(metarl.__file__).parents[1] / "experiments" / "gradient_variance" / "run.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="metarl is not run from its repository")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gradient_variance", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vectors(m: int, n: int = 50, mean: float = 0.5) -> torch.Tensor:
    return mean + torch.randn(m, n, generator=torch.Generator().manual_seed(m), dtype=torch.float64)


def test_the_standard_deviation_is_the_root_of_the_summed_variances(study):
    samples = vectors(7)
    got = study.Noise(samples).std(torch.ones(7, dtype=torch.float64))
    assert got.item() == pytest.approx(np.sqrt(samples.numpy().var(0, ddof=1).sum()))


def test_a_resample_counts_samples_as_often_as_it_says(study):
    samples, weights = vectors(4), torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    repeated = samples[[0, 0, 2, 3]]
    got = study.Noise(samples).std(weights)
    assert got.item() == pytest.approx(np.sqrt(repeated.numpy().var(0, ddof=1).sum()))


def test_the_norm_of_the_mean_has_no_noise_in_it(study):
    # True norm sqrt(50 / 4) = 3.54. The plain norm of a mean of five is sqrt(50 / 4 + 50 / 5) = 4.74 on average.
    squares, plain = [], []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        samples = 0.5 + torch.randn(5, 50, generator=generator, dtype=torch.float64)
        squares.append(study.Noise(samples).mean_norm(torch.ones(5, dtype=torch.float64)).item() ** 2)
        plain.append(samples.mean(0).norm().item() ** 2)
    assert np.mean(squares) == pytest.approx(12.5, rel=0.03)
    assert np.mean(plain) == pytest.approx(22.5, rel=0.03)


def test_rows_compare_with_lvc_and_take_off_the_first_order(study):
    names = list(study.ESTIMATORS)
    shared, own = vectors(20, mean=1.0), vectors(21)[:20]
    # Every estimator is the first-order gradient and a curvature part of its own: LVC's once, the others' twice.
    scale = torch.tensor([0.0 if n == "first order" else 1.0 if n == "LVC" else 2.0 for n in names])
    rows = study.rows_of(shared[:, None] + scale[:, None].double() * own[:, None])
    curvature = {row["estimator"]: row for row in rows if row["part"] == "curvature part"}
    assert set(curvature) == set(names) - {"first order"}
    assert curvature["DiCE"]["std_over_lvc"] == pytest.approx(2.0)
    assert curvature["DiCE"]["gap_to_unbiased"] != curvature["DiCE"]["gap_to_unbiased"]  # nothing between them: nan
    assert curvature["LVC"]["gap_to_unbiased"] == pytest.approx(0.5)
    whole = {row["estimator"]: row for row in rows if row["part"] == "meta-gradient"}
    assert whole["LVC"]["low"] == whole["LVC"]["high"] == 1.0
    assert whole["DiCE"]["low"] < whole["DiCE"]["std_over_lvc"] < whole["DiCE"]["high"]


def test_all_estimators_share_the_first_order_part_and_differ_in_the_rest(study):
    run = {"n_tasks": 2, "episodes": 3, "hidden": (4,), "inner_lr": 1.0}
    learner = metarl.MetaLearner("maml_trpo", metarl.make("TabularMDP-v0"), device="cpu", **study.COMMON, **run)
    learner.state = replace(learner.state, params={n: v + 0.3 for n, v in learner.state.params.items()})
    found = dict(zip(study.ESTIMATORS, study.meta_gradients(learner, 0), strict=True))
    again = dict(zip(study.ESTIMATORS, study.meta_gradients(learner, 0), strict=True))
    other = dict(zip(study.ESTIMATORS, study.meta_gradients(learner, 1), strict=True))
    for name, gradient in found.items():
        assert torch.equal(gradient, again[name]) and not torch.equal(gradient, other[name])
    assert len({round(float(g.norm()), 9) for g in found.values()}) == len(found)


def test_the_exact_hessians_average_to_the_true_one_where_they_should(study):
    family = TabularMDP(2, 2, 3)
    mdp = MDP.of(family, family.sample(1, np.random.default_rng(1)))
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.func.hessian(mdp.value)(logits).flatten()
    for name in study.EXACT:
        mean = -(mdp.probabilities(logits) @ study.hessians(name, mdp, logits))
        unbiased = name in ("DiCE", "loaded DiCE 1")
        assert ((mean - want).norm() < 1e-10) == unbiased
        assert unbiased or (mean - want).norm() > 0.01 * want.norm()
    # The Hessian of log pi of a softmax is the same for every action, so with a baseline nothing is left of it.
    assert (mdp.probabilities(logits) @ study.hessians("policy gradient", mdp, logits)).abs().max() < 1e-12
