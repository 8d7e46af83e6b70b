"""Meta-World: manipulation with a Sawyer arm, 50 kinds of tasks (Yu et al. 2019, https://arxiv.org/abs/1910.10897).

Everything is the published package's own (`metaworld`, extra `metaworld`): classes, goals, rewards, successes. Only
the running of many environments at once is ours, see `metarl_envs.metaworld_vector`.
"""

import contextlib
import importlib
import pickle
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from metarl.arguments import whole
from metarl.splits import SPLITS, VALIDATION, split_rng
from metarl.tasks import Task, Tasks, did_you_mean, validate_task
from metarl.vector.loop import LoopVectorEnv

REMEDY = "pip install metaworld==3.1.1 beside metarl in an environment of its own: it needs mujoco==3.3.0"


def package() -> Any:
    """The package `metaworld`. Raises ImportError naming the remedy where it, or a MuJoCo that fits it, is missing."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"Meta-World needs MuJoCo ({error}): {REMEDY}") from None
    if int(mujoco.__version__.split(".")[0]) >= 4:
        raise ImportError(f"Meta-World does not run on MuJoCo {mujoco.__version__}: {REMEDY}")
    try:
        return importlib.import_module("metaworld")
    except ImportError as error:
        raise ImportError(f"Meta-World families need the package metaworld ({error}): {REMEDY}") from None


class _MetaWorldFamily:
    """What the families below have in common; `MetaWorldML1` has the specification."""

    splits = SPLITS
    hidden_task = False  # object positions differ between tasks and are seen
    id: str

    def __init__(self, benchmark: Callable[[Any, int], Any], train: list[str], test: list[str], seed: int,
                 horizon: int, goal_observed: bool, batched: bool, held_out_goals: int):  # fmt: skip
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"horizon must lie between 1 and the package's {MAX_HORIZON}, got {horizon}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= held_out_goals < GOALS:
            raise ValueError(f"held_out_goals must lie between 0 and {GOALS - 1}, got {held_out_goals}")
        self.horizon, self.held_out_goals = horizon, held_out_goals
        self.names = list(dict.fromkeys([*train, *test]))
        self._benchmark_of, self.seed, self.goal_observed, self.batched = benchmark, seed, goal_observed, batched
        self._classes = package().env_dict.ALL_V3_ENVIRONMENTS
        self._of_split = {"train": train, "test": test}
        hand = package().sawyer_xyz_env.SawyerXYZEnv._HAND_SPACE
        goal = (np.full(3, -np.inf), np.full(3, np.inf)) if goal_observed else (np.zeros(3), np.zeros(3))
        low = np.hstack([*(hand.low, -1.0, np.full(14, -np.inf)) * 2, goal[0]])
        high = np.hstack([*(hand.high, 1.0, np.full(14, np.inf)) * 2, goal[1]])
        self.observation_space: gym.Space = Box(low, high, dtype=np.float64)
        self.action_space: gym.Space = Box(-1.0, 1.0, (4,), np.float32)
        self.task_space = gym.spaces.Dict(
            {"task": Discrete(len(self.names)), "rand_vec": Box(-2.0, 2.0, (VECTOR_LENGTH,), np.float64)}
        )
        self.task_limits = self.task_space

    @cached_property
    def _goals(self) -> dict[str, dict[str, np.ndarray]]:
        """The benchmark's vectors by split and class, [50, VECTOR_LENGTH]."""
        with _without_physics():
            benchmark = self._benchmark_of(package(), self.seed)
        out: dict[str, dict[str, np.ndarray]] = {}
        for split, tasks in (("train", benchmark.train_tasks), ("test", benchmark.test_tasks)):
            vectors: dict[str, list[np.ndarray]] = {}
            for task in tasks:
                vectors.setdefault(task.env_name, []).append(_padded(pickle.loads(task.data)["rand_vec"]))
            out[split] = {name: np.stack(found) for name, found in vectors.items()}
        return out

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split)
        goals = self._goals["test" if split == "test" else "train"]
        if split != "test" and self.held_out_goals:
            held_out = slice(-self.held_out_goals, None) if split == VALIDATION else slice(-self.held_out_goals)
            goals = {name: vectors[held_out] for name, vectors in goals.items()}
        names = list(goals)
        rounds = [rng.permutation(len(names)) for _ in range(-(-n // len(names)))]
        chosen = [names[i] for i in np.concatenate(rounds)[:n]] if n else []
        vectors = [goals[name][rng.integers(len(goals[name]))] for name in chosen]
        return {"task": np.array([self.names.index(name) for name in chosen], np.int64), "rand_vec": np.stack(vectors)}

    def env_class(self, task: Task) -> type:
        """The package's class of a task's environment."""
        return self._classes[self.names[int(task["task"])]]

    def set_task(self, env: Any, task: Task) -> None:
        """Make `env`, of the package, an environment of `task`."""
        space = env._random_reset_space
        vector = np.asarray(task["rand_vec"], np.float64)
        used = vector[: len(space.low)]
        if vector[len(space.low) :].any() or not ((used >= space.low) & (used <= space.high)).all():
            raise ValueError(
                f"rand_vec of {self.names[int(task['task'])]} lies between {space.low} and {space.high}, "
                f"with zeros after it, got {vector}"
            )
        data = {"env_cls": type(env), "rand_vec": used.copy(), "partially_observable": not self.goal_observed}
        env.set_task(package().Task(env_name=self.names[int(task["task"])], data=pickle.dumps(data)))
        _end_rejections(
            env, f"{self.names[int(task['task'])]} refuses rand_vec {used}: its object and goal are too close"
        )

    def make(self, task: Task, render_mode: str | None = None) -> gym.Env:
        """The package's own environment of one task."""
        task = validate_task(self, task, outside=True)
        env = self.env_class(task)(render_mode=render_mode)
        self.set_task(env, task)
        return _PackageEnv(env, self)

    def make_vector(self, n_tasks: int, episodes: int, device: Any = "cpu") -> Any:
        """K*E environments as one, on the CPU whatever the device."""
        if not self.batched:
            return LoopVectorEnv(self, n_tasks, episodes)
        from metarl_envs.metaworld_vector import MetaWorldVectorEnv

        return MetaWorldVectorEnv(self, n_tasks, episodes)


class MetaWorldML1(_MetaWorldFamily):
    """Meta-World ML1: one of 50 manipulation tasks of a Sawyer arm, its goal hidden.

    Task parameters and their distribution
        `task`: which of the family's classes, an index into `names`; always 0 here. `rand_vec` [6]: the package's
        random vector of object and goal positions, with zeros after it where a class needs fewer numbers. The
        package's benchmark fixes 50 of them by its `seed`; `sample` draws among these with equal probability.
    Splits
        The benchmark's training and test tasks: other vectors of the same class. The last `held_out_goals` of a class's
        50 training vectors are not trained on: they are the validation split.
    Observation
        39 numbers: hand position, gripper opening and positions and quaternions of up to two objects, now and one
        step ago, then the goal's position: zero, unless `goal_observed`. Where a task moves its objects about, the
        first observation shows as much of it.
    Action
        How far the hand moves, in units of 1 cm, and how hard the gripper closes: `Box(-1, 1, (4,))`.
    Reward
        The package's, at most 10 a step. `info["success"]` is the package's.
    Episode end
        Truncated after `horizon` (500) steps. The seed of an episode changes nothing: its start follows from its task.
    Source
        Yu et al. 2019, https://arxiv.org/abs/1910.10897, as published in the package `metaworld` 3.1.1.
    Version history
        v0: initial.

    Args:
        task: the class, like "reach-v3".
        seed: of the benchmark's vectors.
        horizon: steps of an episode, at most the package's 500.
        goal_observed: leave the goal in the observation; a policy that sees it need not adapt.
        batched: run many environments by `MetaWorldVectorEnv`; without it the package's, one by one.
        held_out_goals: training vectors of every class that are for validation only; 0 trains on all 50, as published,
            and validates on these.
    """

    id = "MetaWorld-ML1-v0"

    def __init__(
        self,
        task: str = "reach-v3",
        seed: int = 42,
        horizon: int = 500,
        goal_observed: bool = False,
        batched: bool = True,
        held_out_goals: int = 10,
    ):
        known = package().ML1.ENV_NAMES
        if task not in known:
            raise ValueError(f"Meta-World has no task {task!r}{did_you_mean(task, known)}")
        self.task = task
        super().__init__(lambda mw, s: mw.ML1(task, seed=s), [task], [task], seed, horizon, goal_observed, batched,
                         held_out_goals)  # fmt: skip


class MetaWorldML10(_MetaWorldFamily):
    """Meta-World ML10: 10 classes of manipulation tasks to train on, 5 others to test on.

    As `MetaWorldML1`, but `task` is one of `names`: the training classes, then the test classes. Validation tasks have
    the training classes and their held-out vectors. `sample` takes the
    classes of its split in turn, in random order, so that all come up equally often.
    """

    id = "MetaWorld-ML10-v0"

    def __init__(
        self, seed: int = 42, horizon: int = 500, goal_observed: bool = False, batched: bool = True,
        held_out_goals: int = 10,
    ):  # fmt: skip
        classes = package().env_dict.ML10_V3
        train, test = list(classes["train"]), list(classes["test"])
        super().__init__(lambda mw, s: mw.ML10(seed=s), train, test, seed, horizon, goal_observed, batched,
                         held_out_goals)  # fmt: skip


class MetaWorldML45(_MetaWorldFamily):
    """Meta-World ML45: 45 classes of manipulation tasks to train on, 5 others to test on.

    As `MetaWorldML10`.
    """

    id = "MetaWorld-ML45-v0"

    def __init__(
        self, seed: int = 42, horizon: int = 500, goal_observed: bool = False, batched: bool = True,
        held_out_goals: int = 10,
    ):  # fmt: skip
        classes = package().env_dict.ML45_V3
        train, test = list(classes["train"]), list(classes["test"])
        super().__init__(lambda mw, s: mw.ML45(seed=s), train, test, seed, horizon, goal_observed, batched,
                         held_out_goals)  # fmt: skip


MAX_HORIZON = 500
GOALS = 50
"""Vectors of a class in each of the package's splits."""
VECTOR_LENGTH = 6
"""The length of the longest random vector."""


def _padded(vector: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(vector, np.float64), (0, VECTOR_LENGTH - len(vector)))


def _end_rejections(env: Any, message: str) -> None:
    """Where object and goal are too close the package draws again: the same vector, for ever, once a task is set."""
    drawn = 0

    def reset_model() -> Any:
        nonlocal drawn
        drawn = 0
        return type(env).reset_model(env)

    def draw() -> Any:
        nonlocal drawn
        drawn += 1
        if drawn > 10:
            raise ValueError(message)
        return type(env)._get_state_rand_vec(env)

    env.reset_model, env._get_state_rand_vec = reset_model, draw


@contextlib.contextmanager
def _without_physics() -> Iterator[None]:
    """The package draws a benchmark's goals by resetting environments; the goals do not depend on the simulation, so
    it is left out. A test compares with the package as it is."""
    import mujoco

    base = package().sawyer_xyz_env.SawyerXYZEnv
    had = "do_simulation" in vars(base)
    before = base.do_simulation
    base.do_simulation = lambda self, *args, **kwargs: mujoco.mj_kinematics(self.model, self.data)
    try:
        yield
    finally:
        if had:
            base.do_simulation = before
        else:
            del base.do_simulation


class _PackageEnv(gym.Wrapper):
    """The package's environment with the family's spaces and horizon."""

    def __init__(self, env: gym.Env, family: _MetaWorldFamily):
        super().__init__(env)
        self.observation_space, self.action_space = family.observation_space, family.action_space
        self._horizon = family.horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """`seed` changes nothing: an episode's start follows from its task."""
        self._elapsed = 0
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._elapsed += 1
        return obs, float(reward), terminated, truncated or self._elapsed >= self._horizon, info
