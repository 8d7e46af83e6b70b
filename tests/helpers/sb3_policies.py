"""Policies and models with the same spaces, and whether their action distributions are the same."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from metarl import AdaptedPolicy
from metarl.params import expand
from metarl.policies import normalize
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import spaces_of
from metarl.vector.loop import LoopVectorEnv

LOW, HIGH = np.array([-0.5, -1.0], np.float32), np.array([0.5, 3.0], np.float32)
CENTRE, SCALE = np.array([0.0, 1.0]), np.array([0.5, 2.0])
VECTOR, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(LOW, HIGH)
SPACES = {
    "box to box": (VECTOR, ACTIONS),
    "discrete to box": (Discrete(4), ACTIONS),
    "box to discrete": (VECTOR, Discrete(3)),
    "matrix to matrix": (Box(-1, 1, (2, 2), np.float32), Box(LOW.reshape(1, 2), HIGH.reshape(1, 2))),
    "box to several": (VECTOR, MultiDiscrete([3, 2, 4])),
    "several to bits": (MultiDiscrete([2, 3]), MultiBinary(3)),
    "bits to several": (MultiBinary((2, 3)), MultiDiscrete([2, 2])),
}


def adapted(obs: Any, act: Any, policy: Any = None, seed: int = 0, **settings: Any) -> AdaptedPolicy:
    """A policy with parameters as no initialisation has them; the second action's deviation lies below its floor."""
    spaces = spaces_of(SimpleNamespace(id="Test", observation_space=obs, action_space=act))
    policy = MLPPolicy(spaces, **({"hidden": (7, 5), "min_std": 0.1} | settings)) if policy is None else policy(spaces)
    g = torch.Generator().manual_seed(seed)
    params = {name: x + 0.4 * torch.randn(x.shape, generator=g) for name, x in policy.init(g).items()}
    if not spaces.discrete:
        params["log_std"] = torch.tensor([-0.3, -5.0])
    return AdaptedPolicy(policy, params)


def observations(space: Any, n: int = 50) -> np.ndarray:
    rng = np.random.default_rng(1)
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=n)
    if isinstance(space, MultiDiscrete | MultiBinary):
        return rng.integers(getattr(space, "nvec", 2), size=(n, *space.shape))
    if space.dtype == np.uint8:
        return rng.integers(256, size=(n, *space.shape)).astype(np.uint8)
    return rng.normal(size=(n, *space.shape)).astype(np.float32)


def ours(policy: AdaptedPolicy, obs: np.ndarray) -> list[np.ndarray]:
    """Mean and standard deviation in the environment's units, by the bounds written down above; or probabilities."""
    x = normalize.scaler(policy.obs_stats)(policy.policy.spaces.encode(obs)[None])
    dist: Any = policy.policy.distribution(expand(policy.params, 1), x)
    if isinstance(policy.policy.spaces.action, MultiBinary):  # the probability of a one
        return [torch.softmax(dist.logits[0].reshape(len(obs), -1, 2), -1)[..., 1].numpy()]
    if isinstance(policy.policy.spaces.action, MultiDiscrete):
        return [torch.softmax(x, -1).numpy() for x in dist.logits[0].split(list(dist.sizes), -1)]
    if policy.policy.spaces.discrete:
        return [torch.softmax(dist.logits[0], -1).numpy()]
    return [CENTRE + SCALE * dist.mean[0].numpy(), SCALE * dist.log_std[0].exp().numpy() + 0 * dist.mean[0].numpy()]


def theirs(policy: Any, obs: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        dist = policy.get_distribution(policy.obs_to_tensor(obs)[0]).distribution
    if isinstance(dist, list):
        return [choice.probs.numpy() for choice in dist]
    return [dist.probs.numpy()] if hasattr(dist, "probs") else [dist.mean.numpy(), dist.stddev.numpy()]


def assert_close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def assert_same_distributions(policy: AdaptedPolicy, model: Any, obs: np.ndarray | None = None) -> None:
    obs = observations(policy.policy.spaces.observation) if obs is None else obs
    for a, b in zip(ours(policy, obs), theirs(model.policy, obs), strict=True):
        assert a.shape == b.shape and a.std() > 0.01
        assert_close(a, b)
    mine, its = (p.predict(obs, deterministic=True)[0] for p in (policy, model))
    assert_close(mine, its)
    one, its_one = (p.predict(obs[0], deterministic=True)[0] for p in (policy, model))
    assert_close(one, its_one)


class Still(gym.Env):
    """An environment with any spaces, in which nothing happens."""

    def __init__(self, obs: Any, act: Any):
        self.observation_space, self.action_space = obs, act

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def plain(cls: Any) -> Any:
    """The same family without its fast vector environment."""
    family = cls()
    if hasattr(family, "make_vector"):
        family.make_vector = lambda n, e, device="cpu": LoopVectorEnv(family, n, e)
    return family
