"""Episodes of given actions in vector environments of three tasks, and whether two are equal."""

from typing import Any

import numpy as np

K, E = 3, 2


def tasks_of(family: Any, n: int = K, seed: int = 0) -> dict[str, np.ndarray]:
    return family.sample(n, np.random.default_rng(seed))


def play(env: Any, family: Any, seeds: list[int], tasks: Any, steps: int = 9) -> list[Any]:
    """All that an environment returns in an episode of given actions."""
    family.action_space.seed(1)
    out = [env.reset(seed=seeds, options=None if tasks is None else {"tasks": tasks})[0]]
    for _ in range(steps):
        out += env.step(np.array([family.action_space.sample() for _ in range(env.num_envs)]))[:4]
    return out


def assert_equal(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
