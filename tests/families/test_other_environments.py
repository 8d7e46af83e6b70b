"""Families made of other people's environments."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium_toys import pendulums
from tiny_runs import same_params, tiny

from metarl import check_family, from_gymnasium
from metarl.tasks import TaskFamily, task_at
from metarl.vector.loop import LoopVectorEnv

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")


def swing(env, task):
    env.world.gravity = (0.0, -task["gravity"])


def lander():
    pytest.importorskip("Box2D")
    return from_gymnasium("LunarLander-v3", {"gravity": Box(-11.0, -5.0), "wind_power": Box(0.0, 15.0)},
                          make_kwargs={"enable_wind": True}, horizon=60, hidden_task=False)  # fmt: skip


def walker():
    pytest.importorskip("Box2D")
    return from_gymnasium("BipedalWalker-v3", {"gravity": Box(5.0, 12.0)}, where={"gravity": "configure"},
                          configure=swing, horizon=40, fresh=True, hidden_task=False)  # fmt: skip


def grid():
    wrappers = pytest.importorskip("minigrid.wrappers")
    return from_gymnasium(
        "minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6, 8], "agent_start_dir": Discrete(4)},
        wrappers=[wrappers.ImgObsWrapper], horizon=30, hidden_task=False,
    )  # fmt: skip


def flat_grid():
    pytest.importorskip("minigrid")
    return from_gymnasium("minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6, 8]}, wrappers=[without_words],
                          horizon=9, hidden_task=False)  # fmt: skip


def without_words(env):
    return gym.wrappers.FilterObservation(env, ["direction", "image"])


EVERY = {"pendulum": pendulums, "lander": lander, "walker": walker, "grid": grid, "flat grid": flat_grid}


@pytest.mark.parametrize("name", EVERY)
def test_every_such_family_is_healthy_and_trains(name):
    family = EVERY[name]()
    assert check_family(family) == []
    assert isinstance(family, TaskFamily) and pickle.loads(pickle.dumps(family)) == family
    tasks = family.sample(2, np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recommendations about bounds
        check_env(family.make(task_at(tasks, 0)), skip_render_check=True)
    learner, again = (tiny(family).learn(1, eval_every=0) for _ in range(2))
    assert learner.state.iteration == 1 and same_params(learner.state.params, again.state.params)


def test_gravity_and_wind_reach_the_lander():
    family = lander()
    env = family.make({"gravity": -7.0, "wind_power": 3.0}).unwrapped
    env.reset(seed=0)
    assert env.world.gravity.y == -7.0 and env.wind_power == 3.0 and env.enable_wind


def test_a_walker_falls_faster_under_more_gravity():
    heavy, light = ({"gravity": np.float32(g)} for g in (12.0, 5.0))
    env = LoopVectorEnv(walker(), 2, 1)
    env.reset(seed=[0, 0], options={"tasks": {"gravity": np.stack([heavy["gravity"], light["gravity"]])}})
    for _ in range(10):
        obs = env.step(np.zeros((2, 4), np.float32))[0]
    assert obs[0, 3] < obs[1, 3]  # vertical speed


def test_what_cannot_be_flattened_is_named():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=r"mission.*cannot be flattened.*FilterObservation"):
        from_gymnasium("minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6]}, horizon=9)
