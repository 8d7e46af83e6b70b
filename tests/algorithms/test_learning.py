"""Learning on the built-in families at full size. Slow; their short forms are the probes in test_maml_probes.py."""

import pytest

import metarl

pytestmark = pytest.mark.slow


def test_2d_navigation_is_learned_far_beyond_the_best_policy_that_cannot_adapt():
    # Without adaptation the middle is the best place to be: -100 E|goal| = -38.26 over all goals.
    learner = metarl.MetaLearner("maml_trpo", "PointNavigation-v0", seed=0, max_kl=0.02, min_std=0.4, lr_in_std=True)
    learner.learn(30, eval_every=0)
    before, after_1, _, after_3 = learner.evaluate(200, episodes=40, step_sizes=(0.5, 0.25, 0.125), seed=1).mean
    assert before < -36
    assert after_1 > -15
    assert after_3 > -8


def test_a_bandit_s_better_arms_are_found_within_fifty_pulls():
    # Any policy that cannot adapt earns 0.5; the best of five arms pays 5/6.
    family = metarl.make("BernoulliBandit-v0", arms=5)
    learner = metarl.MetaLearner("maml_trpo", family, seed=0, n_tasks=40, episodes=50, hidden=(32, 32))
    learner.learn(40, eval_every=0)
    before, after = learner.evaluate(400, steps=1, seed=1).mean
    assert before == pytest.approx(0.5, abs=0.03)
    assert after > 0.65


def test_2d_navigation_from_pixels_is_learned_far_beyond_the_best_policy_that_cannot_adapt():
    # As above, -20 E|goal| = -7.65 in 20 steps.
    family = metarl.make("PointNavigationPixels-v0", horizon=20)
    settings = {"n_tasks": 12, "episodes": 10, "channels": (8, 16), "hidden": (32,)}
    learner = metarl.MetaLearner(
        "maml_trpo", family, seed=0, init_std=0.4, min_std=0.2, lr_in_std=True, max_kl=0.02, **settings
    )
    learner.learn(20, eval_every=0)
    before, after = learner.evaluate(100, episodes=20, steps=1, seed=1).mean
    assert before < -7.2
    assert after > -4.2
