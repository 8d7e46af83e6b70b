"""What is given instead of an environment, or of one that can be used: one line says what it is and what to do."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from probes import PointGoal
from tiny_runs import TINY, tiny

from metarl import MetaLearner, check_family, from_gymnasium
from metarl.families.check import FamilyError
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError


class Driver:
    """Steps like an environment, and is none for Gymnasium."""

    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


class OldDriver(Driver):
    def seed(self, seed):
        pass


class Plain(gym.Env):
    """Pays `gain`."""

    observation_space, action_space = Box(-1.0, 1.0, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        return np.zeros(self.observation_space.shape, np.float32), self.gain, False, False, {}


class Blind(Plain):
    observation_space = Box(-1.0, 1.0, (0,), np.float32)


class Idle(Plain):
    action_space = Box(-1.0, 1.0, (0,), np.float32)


class Nothing(Plain):
    observation_space = gym.spaces.Dict({})


class Drivers(PointGoal):
    """A family of one's own that makes drivers."""

    def make(self, task):
        return Driver()


MAKERS = {
    "driver": (lambda gain=1.0: Driver(), "write a class that inherits from gymnasium.Env around it"),
    "class of drivers": (Driver, "write a class that inherits from gymnasium.Env around it"),
    "of the old gym": (lambda gain=1.0: OldDriver(), "shimmy.GymV26CompatibilityV0"),
    "vector": (lambda gain=1.0: gym.make_vec("CartPole-v1", num_envs=2), "give the single environment"),
    "nothing": (lambda gain=1.0: None, "makes None"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_makes_no_environment_is_named_with_a_way_to_make_one(name):
    maker, message = MAKERS[name]
    where = {"gain": "configure"} if name == "class of drivers" else None
    with pytest.raises(ValueError, match=f"which is no gymnasium.Env.*{message}|{message}.*which is no gymnasium.Env"):
        from_gymnasium(maker, {"gain": Box(0.0, 1.0)}, horizon=5, where=where, configure=where and (lambda e, t: None))


def test_a_family_of_drivers_is_found_by_the_check_and_in_both_backends():
    with pytest.raises(FamilyError, match=r"(?s)make returns .*Driver.*return a gymnasium.Env"):
        check_family(Drivers())
    tasks = Drivers().sample(2, np.random.default_rng(0))
    message = r"returned <.*Driver.*which is no gymnasium.Env: write a class that inherits"
    for start, error in ((LoopVectorEnv, ValueError), (lambda *a: ProcessVectorEnv(*a, 1), WorkerError)):
        env = start(Drivers(), 2, 1)
        try:
            with pytest.raises((error, RuntimeError), match=f"(?s){message}"):
                env.reset(seed=0, options={"tasks": tasks})
        finally:
            env.close()


def test_a_driver_is_not_adapted_to():
    with pytest.raises(ValueError, match=r"is neither a task of .* nor a gymnasium.Env: write a class that inherits"):
        tiny().adapt(Driver())
    with pytest.raises(ValueError, match=r"a task of .* is a dict with the keys"):  # the control: no environment at all
        tiny().adapt(3)


@pytest.mark.parametrize(("kind", "what"), [(Blind, "observation"), (Idle, "action"), (Nothing, "observation")])
def test_a_space_without_a_number_is_refused(kind, what):
    with pytest.raises(ValueError, match=f"gym:{kind.__name__} has the {what} space .*, which holds no number"):
        from_gymnasium(kind, {"gain": Box(0.0, 1.0)}, horizon=5)


def test_a_family_of_ones_own_without_a_number_to_see_is_refused():
    class Unseen(PointGoal):
        def __init__(self):
            super().__init__()
            self.observation_space = Blind.observation_space

    with pytest.raises(
        ValueError, match=r"has the observation space Box\(\[\], \[\], \(0,\), float32\), which holds no"
    ):
        MetaLearner("maml_trpo", Unseen(), device="cpu", **TINY)
    (finding,) = check_family(Unseen(), raise_problems=False)
    assert "'observation_space' is Box([], [], (0,), float32), which holds no number" in finding.problem
