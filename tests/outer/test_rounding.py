"""A trust-region step that rounding does not decide."""

from functools import partial

import pytest
import torch
from probes import (
    setup,
)
from torch import Tensor

import metarl
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.outer import trust_region
from metarl.outer.trust_region import TrustRegion, flatten, trpo_step
from metarl.rollout.setup import Setup


def two_ways(products: int) -> tuple[Tensor, Tensor, list[dict]]:
    """The meta-update of 4 tasks of 6 episodes after some training, in float32: by hand, and automatically."""
    config = Config(n_tasks=4, episodes=6, hidden=(64, 64), cg_iterations=products, max_kl=0.02, min_std=0.1)
    sampler, policy, state = setup(metarl.make("PointNavigation-v0", horizon=30), config)
    for _ in range(6):
        state, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    data = loop.experience(Setup(config, sampler, policy, 1), state).data
    parts = [outer.objectives(config, policy, data, state, outer.Outer(by_hand=by_hand)) for by_hand in (True, False)]
    found = [trpo_step(state.meta, part, TrustRegion(0.02, 1e-5, products)) for part in parts]
    hand, automatic = (flatten(new) - flatten(state.meta) for new, _ in found)
    return hand, automatic, [stats for _, stats in found]


def test_more_products_than_float32_can_tell_apart_are_not_taken():
    hand, automatic, stats = two_ways(products=30)
    assert all(3 <= x["cg_products"] < 30 for x in stats)
    assert torch.cosine_similarity(hand.double(), automatic.double(), 0) > 0.99999
    assert stats[0]["kl"] == pytest.approx(stats[1]["kl"], rel=0.01)


def test_without_the_stop_the_two_ways_part(monkeypatch):
    monkeypatch.setattr(trust_region, "conjugate_gradient", partial(trust_region.conjugate_gradient, orthogonality=2.0))
    hand, automatic, stats = two_ways(products=30)
    assert [x["cg_products"] for x in stats] == [30, 30]
    assert torch.cosine_similarity(hand.double(), automatic.double(), 0) < 0.9999  # 0.998 or 0.999
