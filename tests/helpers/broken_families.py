"""A healthy task family, and families broken on purpose, each in one way: `name: (family, its one finding)`."""

from typing import Any

import gymnasium as gym
import numpy as np

from metarl.tasks import split_rng
from metarl.vector.loop import LoopVectorEnv

BOX = gym.spaces.Box(-10, 10, (1,), np.float32)


class Line(gym.Env):
    """A noisy walk on a line, paid by its distance to a hidden `goal`; ends beyond +-0.4."""

    observation_space = BOX
    action_space = gym.spaces.Box(-0.2, 0.2, (1,), np.float32)

    def __init__(self, goal: float):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.x += float(action[0]) + 0.01 * self.np_random.normal()
        self.steps += 1
        return self.observe(), self.reward(), self.over(), False, {}

    def observe(self) -> Any:
        return np.array([self.x], np.float32)

    def reward(self) -> Any:
        return -abs(self.x - self.goal)

    def over(self) -> Any:
        return bool(abs(self.x) > 0.4)


class Lines:
    """Healthy: random reset and steps, early ends, a plain Gymnasium environment."""

    id = "Lines-v0"
    horizon = 8
    observation_space = BOX
    action_space = Line.action_space
    task_space = gym.spaces.Dict({"goal": gym.spaces.Box(-1, 1, (), np.float32)})
    env = Line

    def sample(self, n, rng, split="train"):
        return {"goal": split_rng(rng, split).uniform(-1, 1, n).astype(np.float32)}

    def make(self, task):
        return self.env(float(task["goal"]))


def with_env(**methods: Any) -> Lines:
    """`Lines` whose environments have other methods."""
    family = Lines()
    family.env = type("Broken", (Line,), methods)
    return family


def with_members(**members: Any) -> Lines:
    """`Lines` with other members; None stands for a missing one."""
    return type("Broken", (Lines,), members)()


def with_vector(**methods: Any) -> Lines:
    """`Lines` with a vector environment of its own."""
    vector = type("BrokenVector", (LoopVectorEnv,), methods)
    return with_members(make_vector=lambda self, n_tasks, episodes, device="cpu": vector(self, n_tasks, episodes))


# ---------------------------------------------------------------------------------------------------------------------
# Broken on purpose


def same_tasks_everywhere(self, n, rng, split="train"):
    return {"goal": rng.uniform(-1, 1, n).astype(np.float32)}


def few_tasks_for_both(self, n, rng, split="train"):
    return {"goal": split_rng(rng, split).choice([-0.5, 0.1, 0.5], n).astype(np.float32)}


def ambient_tasks(self, n, rng, split="train"):
    return {"goal": np.random.default_rng().uniform(-1, 1, n).astype(np.float32)}


def no_test_split(self, n, rng, split="train"):
    if split == "test":
        raise KeyError("test")
    return Lines.sample(self, n, rng, split)


def sampled(change):
    return with_members(sample=lambda self, n, rng, split="train": change(Lines.sample(self, n, rng, split)))


def put(tasks, index, value):
    tasks["goal"][index] = value
    return tasks


def unseeded_reset(self, *, seed=None, options=None):
    Line.reset(self, seed=seed)
    self.x = np.random.default_rng().uniform(-0.1, 0.1)
    return self.observe(), {}


def ambient_step(self, action):
    self.x += 1e-3 * np.random.default_rng().normal()
    return Line.step(self, action)


def reset_with_leftovers(self, *, seed=None, options=None):
    self.episodes = getattr(self, "episodes", 0) + 1
    return Line.reset(self, seed=seed)


def step_with_leftovers(self, action):
    self.x += 1e-3 * self.episodes
    return Line.step(self, action)


def failing_step(self, action):
    if self.steps == 1:
        raise RuntimeError("joint limit")
    return Line.step(self, action)


def unseedable_reset(self):
    return Line.reset(self)


class Cached(Lines):
    def __init__(self):
        self.made = Line(0.5)

    def make(self, task):
        return self.made


class Varying(Lines):
    def make(self, task):
        return Line(float(np.random.default_rng().uniform(-1, 1)))


BROKEN_PLAIN = {
    "class": (Lines, "is a class"),
    "no horizon": (with_members(horizon=None), "has no 'horizon'"),
    "no task space": (with_members(task_space=None), "has no 'task_space'"),
    "no sample": (with_members(sample=None), "has no method 'sample'"),
    "no make": (with_members(make=None), "has no method 'make'"),
    "zero horizon": (with_members(horizon=0), "'horizon' is 0"),
    "horizon of 2.5": (with_members(horizon=2.5), "'horizon' is 2.5"),
    "task space no Dict": (with_members(task_space=BOX), "'task_space' is Box"),
    "Dict observations": (with_members(observation_space=gym.spaces.Dict({"x": BOX})), "'observation_space' is Dict"),
    "no test split": (with_members(sample=no_test_split), "raises KeyError: 'test'"),
    "test tasks out of space": (
        with_members(
            sample=lambda s, n, r, split="train": put(Lines.sample(s, n, r, split), -1, 9.0 * (split == "test"))
        ),
        r"task 49 is not in task_space.*got .*9.0",
    ),
    "wrong name": (sampled(lambda t: {"gaol": t["goal"]}), r"returns \['gaol'\], task_space has \['goal'\]"),
    "wrong length": (sampled(lambda t: {"goal": t["goal"][1:]}), r"'goal' has shape \(49,\), not \(50,\)"),
    "wrong shape": (sampled(lambda t: {"goal": t["goal"][:, None]}), r"'goal' has shape \(50, 1\), not \(50,\)"),
    "tasks not finite": (sampled(lambda t: put(t, 3, np.inf)), "'goal' has entries that are not finite"),
    "tasks not from rng": (with_members(sample=ambient_tasks), "same generator state gives different tasks each time"),
    "same draws": (with_members(sample=same_tasks_everywhere), "train and test tasks are the same"),
    "common tasks": (with_members(sample=few_tasks_for_both), "the splits train and test have tasks in common"),
    "make fails": (with_members(make=lambda self, task: 1 / 0), "raises ZeroDivisionError"),
    "make returns none": (with_members(make=lambda self, task: None), "make returns <class 'NoneType'>"),
    "make varies": (Varying(), "a second environment of the same task differs at step 1"),
    "make remembers": (Cached(), "make returns the same object twice"),
    "other space": (with_env(observation_space=gym.spaces.Box(-1, 1, (1,), np.float32)), "its observation_space is"),
    "step fails": (with_env(step=failing_step), "raises RuntimeError: joint limit"),
    "reset takes no seed": (with_env(reset=unseedable_reset), "raises TypeError.*seed"),
    "reset ignores seed": (with_env(reset=unseeded_reset), "the same seed gives another first observation"),
    "ambient noise": (with_env(step=ambient_step), "the same seed and actions give another"),
    "leftovers": (with_env(reset=reset_with_leftovers, step=step_with_leftovers), "the same seed and actions give"),
    "leftovers in the end": (
        with_env(reset=reset_with_leftovers, over=lambda self: self.steps == 8 and self.episodes == 1),
        "the same seed and actions give",
    ),
    "observation dtype": (with_env(observe=lambda self: np.array([self.x])), "has dtype float64, not float32"),
    "observation shape": (with_env(observe=lambda self: np.zeros(2, np.float32)), r"has shape \(2,\), not \(1,\)"),
    "observation no array": (with_env(observe=lambda self: [self.x]), "is <class 'list'>, not an array"),
    "observation out of bounds": (
        with_env(observe=lambda self: np.full(1, 11.0 * (self.steps == 2), np.float32)),
        r"observation \[11.\] is out of bounds",
    ),
    "observation not finite": (
        with_env(observe=lambda self: np.full(1, np.nan if self.steps == 2 else 0, np.float32)),
        r"observation \[nan\] is not finite",
    ),
    "reward not finite": (with_env(reward=lambda self: float("nan")), "reward nan is not one finite number"),
    "reward an array": (with_env(reward=lambda self: np.zeros(1)), r"reward array\(\[0.\]\) is not one finite number"),
    "end a number": (with_env(over=lambda self: int(self.steps > 3)), "terminated, truncated are"),
    "goal leaks": (
        with_env(observe=lambda self: np.full(1, self.goal, np.float32)),
        "observation tells tasks apart",
    ),
}


def stuck_reset(self, *, seed=None, options=None):
    return LoopVectorEnv.reset(self, seed=seed, options=None if self.envs else options)


def ignores_seeds(self, *, seed=None, options=None):
    return LoopVectorEnv.reset(self, seed=seed[0], options=options)


def step_then(change):
    """A `step` whose five results `change(self, obs, reward, terminated, truncated)` alters in place."""

    def step(self, actions):
        out = LoopVectorEnv.step(self, actions)
        change(self, *out[:4])
        return out

    return step


def reward_once(self, obs, reward, terminated, truncated):
    reward[5] += 1e-3 * (self._elapsed[5] == 2)


def drift_after_the_end(self, obs, reward, terminated, truncated):
    obs += 0.1 * self._terminated[:, None] * (self._elapsed > self.family.horizon)[:, None]


def pay_after_the_end(self, obs, reward, terminated, truncated):
    reward += self._truncated * (self._elapsed > self.family.horizon)


def forget_the_end(self, obs, reward, terminated, truncated):
    terminated &= self._elapsed <= self.family.horizon


def never_truncate(self, obs, reward, terminated, truncated):
    truncated[:] = False


def end_as_truncation(self, obs, reward, terminated, truncated):
    truncated |= terminated
    terminated[:] = False


def too_many(self, n_tasks, episodes, device="cpu"):
    return LoopVectorEnv(self, n_tasks, episodes + 1)


BROKEN_VECTOR = {
    "num_envs": (with_members(make_vector=too_many), "num_envs is 9"),
    "keeps its tasks": (with_vector(reset=stuck_reset), "reward of environment 0 is"),
    "ignores seeds": (with_vector(reset=ignores_seeds), "observation of environment [0-9] is"),
    "reward": (with_vector(step=step_then(reward_once)), "reward of environment 5 is"),
    "reward shape": (
        with_vector(step=lambda s, a: [x[:, None] if i == 1 else x for i, x in enumerate(LoopVectorEnv.step(s, a))]),
        r"reward has shape \(6, 1\), not \(6,\)",
    ),
    "moves after the end": (with_vector(step=step_then(drift_after_the_end)), "observation of environment"),
    "pays after the end": (with_vector(step=step_then(pay_after_the_end)), "reward of environment"),
    "forgets the end": (with_vector(step=step_then(forget_the_end)), "terminated of environment"),
    "no horizon": (with_vector(step=step_then(never_truncate)), "ended of environment"),
    "termination as truncation": (with_vector(step=step_then(end_as_truncation)), "terminated of environment"),
    "raises": (with_vector(step=lambda self, actions: actions.no_such_attribute), "raises AttributeError"),
}
