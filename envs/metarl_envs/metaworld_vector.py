"""K*E Meta-World environments at once: the simulator in threads, the package's own rewards once for all of them.

`mujoco.mj_step` releases Python's lock, so threads that step simulator states one after the other use all cores. Each
environment keeps its own state from step to step (solver warm start included), so its numbers are the package's.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from metarl.parallel import cpu_threads, pool
from metarl.tasks import Task
from metarl.vector.contract import CPU, Assignment, read_reset, set_spaces
from metarl_envs.metaworld_batch import Attributes, Code, Columns, StandIn, batch, call, snapshot

MOCAP_QUAT = (1.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Start:
    """One task right after its reset."""

    changes: dict[str, np.ndarray]  # fields of the model that differ from the class's own
    state: np.ndarray
    obs: np.ndarray
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """An environment in the middle of its episode."""

    state: np.ndarray
    previous: np.ndarray  # the part of its last observation that the next one repeats
    mocap: np.ndarray
    attributes: dict[str, Any]


@cache
def _builder(cls: type) -> Any:
    return cls()


@cache
def _base(cls: type) -> Any:
    """The class's model before any task has changed it."""
    return copy.copy(_builder(cls).model)


@cache
def _model_fields(cls: type) -> list[str]:
    """The model's fields of numbers, without the shapes and pictures that make most of its 20 MB."""
    large = ("mesh_", "tex_", "hfield_", "skin_", "bvh_", "names", "paths", "text_")
    named = [name for name in dir(_base(cls)) if not name.startswith(("_", *large))]
    return [name for name in named if isinstance(getattr(_base(cls), name, None), np.ndarray)]


@cache
def _code(cls: type) -> Code:
    return Code(cls)


def start_of(cls: type, set_task: Callable[[Any], None]) -> Start:
    """Reset an environment of the package to a task and keep everything that follows depends on."""
    import mujoco

    env, base = _builder(cls), _base(cls)
    set_task(env)
    obs, _ = env.reset()
    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(env.model, spec))
    mujoco.mj_getState(env.model, env.data, state, spec)
    pairs = {name: (getattr(env.model, name), getattr(base, name)) for name in _model_fields(cls)}
    changes = {name: mine.copy() for name, (mine, theirs) in pairs.items() if not np.array_equal(mine, theirs)}
    return Start(changes, state, obs, snapshot(vars(env), env.data))


class _Slot:
    """A model and E simulator states of it, taken over by one task after the other.

    Kept for the life of the vector environment: models have 20 MB, and MuJoCo's binding does not give back the memory
    of all that are thrown away.
    """

    def __init__(self, cls: type, episodes: int):
        import mujoco

        self._base = _base(cls)
        self.model = copy.copy(self._base)
        self.datas = [mujoco.MjData(self.model) for _ in range(episodes)]
        self._changed: set[str] = set()

    def take(self, start: Start) -> None:
        import mujoco

        self._changed |= start.changes.keys()
        for name in self._changed:
            getattr(self.model, name)[:] = start.changes.get(name, getattr(self._base, name))
        for data in self.datas:
            mujoco.mj_resetData(self.model, data)
            mujoco.mj_setState(self.model, data, start.state, int(mujoco.mjtState.mjSTATE_INTEGRATION))
            data.mocap_quat[0] = MOCAP_QUAT  # as the package does in every step


class MetaWorldVectorEnv(VectorEnv):
    """As `LoopVectorEnv` over the package's environments, to the number, and several times faster.

    `options["reset_mask"]` resets some of the environments. Episodes of one task that have different tasks from then
    on (new tasks for some of them only) each take a model of their own.

    Args:
        family: a `metarl_envs.metaworld` family.
        threads: that step the simulator; by default as many as PyTorch has.
    """

    device, tensors = CPU, False

    def __init__(self, family: Any, n_tasks: int, episodes: int, threads: int | None = None):
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        set_spaces(self, family, n_tasks * episodes)
        self.threads = threads or cpu_threads()
        self._starts: dict[bytes, Start] = {}
        self._slots: dict[type, list[_Slot]] = {}
        self._groups: list[_Group] = []
        self._tasks = Assignment(n_tasks, episodes)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """`seed` changes nothing: an episode's start follows from its task."""
        tasks, mask = read_reset(options, self.n_tasks, self.num_envs, begun=bool(self._groups))
        chosen = np.ones(self.num_envs, bool) if mask is None else mask
        if tasks is not None:
            self._tasks.give(tasks, mask)
        self._regroup({i: group.keep(j) for group in self._groups for j, i in enumerate(group.rows.tolist())
                       if not chosen[i]})  # fmt: skip
        if mask is None:
            self._obs = np.empty((self.num_envs, *self.family.observation_space.shape))
            self._elapsed = np.zeros(self.num_envs, int)
        for group in self._groups:
            fresh = chosen[group.rows]
            self._obs[group.rows[fresh]] = group.first[fresh]
        self._elapsed[chosen] = 0
        return self._obs.copy(), {}

    def _regroup(self, kept: dict[int, Kept]) -> None:
        """Put every environment to the start of its task, or back to where it was if it is in `kept`."""
        tasks = [self._tasks.task(i) for i in range(self.num_envs)]
        keys = [b"|".join(np.asarray(task[name]).tobytes() for name in sorted(task)) for task in tasks]
        old = self._starts
        self._starts = {}
        for key, task in zip(keys, tasks, strict=True):
            if key not in self._starts:
                self._starts[key] = old[key] if key in old else self._start(task)
        units: dict[type, dict[tuple[int, bytes], list[int]]] = {}  # of a class: the rows that share a model
        for i, key in enumerate(keys):
            of_class = units.setdefault(self.family.env_class(tasks[i]), {})
            of_class.setdefault((i // self.episodes, key), []).append(i)
        self._groups = []
        for cls, shared in units.items():
            slots = self._slots.setdefault(cls, [])
            slots += [_Slot(cls, self.episodes) for _ in range(len(shared) - len(slots))]
            parts = [(self._starts[key], rows) for (_, key), rows in shared.items()]
            self._groups.append(_Group(cls, parts, slots, kept, self.family.goal_observed))

    def _start(self, task: Task) -> Start:
        return start_of(self.family.env_class(task), lambda env: self.family.set_task(env, task))

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, success = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        terminated = np.zeros(self.num_envs, bool)
        alive = self._elapsed < self.family.horizon
        if alive.any():
            self._elapsed[alive] += 1
            actions = np.asarray(actions)
            self._simulate(actions)  # those that ended too: nobody looks at them before they are reset
            for group in self._groups:
                on = alive[group.rows]
                obs, rewards, successes = group.evaluate(actions[group.rows])
                rows = group.rows[on]
                self._obs[rows], reward[rows], success[rows] = obs[on], rewards[on], successes[on]
        truncated = self._elapsed >= self.family.horizon
        return self._obs.copy(), reward, terminated, truncated, {"success": success}

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def _simulate(self, actions: np.ndarray) -> None:
        """One control step of every simulator, an equal share of them in each thread."""
        jobs = [job for group in self._groups for job in group.jobs(actions[group.rows])]
        shares = [jobs[i :: self.threads] for i in range(min(self.threads, len(jobs)))]
        if len(shares) == 1:
            _run(shares[0])
        else:
            list(pool(self.threads).map(_run, shares))

    def close_extras(self, **kwargs: Any) -> None:
        self._groups, self._starts, self._slots = [], {}, {}


def _run(jobs: Sequence[tuple[Any, Any, int]]) -> None:
    import mujoco

    step, forward = mujoco.mj_step, mujoco.mj_forward
    for model, data, frame_skip in jobs:
        step(model, data, frame_skip)
        forward(model, data)  # positions of the last state; forces too, which the next step's solver starts from


class _Group:
    """The environments of one class."""

    def __init__(
        self, cls: type, parts: list[tuple[Start, list[int]]], slots: list[_Slot], kept: dict[int, Kept],
        goal_observed: bool,
    ):  # fmt: skip
        self.goal_observed, env = goal_observed, _builder(cls)
        self.rows = np.concatenate([rows for _, rows in parts])
        self.models, self.datas = [], []
        for slot, (start, rows) in zip(slots, parts, strict=False):  # there may be more slots, of earlier tasks
            slot.take(start)
            self.models += [slot.model] * len(rows)
            self.datas += slot.datas[: len(rows)]
        starts = [start for start, rows in parts for _ in rows]
        self.first = np.stack([start.obs for start in starts])  # [N, 39]
        self._previous = batch(self.first[:, :18].T.copy())
        self._mocap = np.stack([data.mocap_pos[0] for data in self.datas])
        self._inputs = [(data.mocap_pos[0], data.ctrl) for data in self.datas]  # views
        self._limits = env.action_scale, env.mocap_low, env.mocap_high
        self._jobs = [(model, data, env.frame_skip) for model, data in zip(self.models, self.datas, strict=True)]
        space = env.sawyer_observation_space
        self._bounds = space.low, space.high
        attributes = [start.attributes for start in starts]
        for j, i in enumerate(self.rows.tolist()):
            if i in kept:
                attributes[j] = kept[i].attributes
                self._put_back(j, kept[i])
        self._code, self._attributes = _code(cls), Attributes(attributes)
        self._columns = Columns(self.datas, self.models[0])

    def keep(self, j: int) -> Kept:
        """The j-th environment as it is."""
        import mujoco

        model, data, spec = self.models[j], self.datas[j], int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(model, spec))
        mujoco.mj_getState(model, data, state, spec)
        previous = np.array(self._previous[:, j])
        return Kept(state, previous, self._mocap[j].copy(), self._attributes.snapshot(j))

    def _put_back(self, j: int, kept: Kept) -> None:
        import mujoco

        mujoco.mj_setState(self.models[j], self.datas[j], kept.state, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        self._previous[:, j], self._mocap[j] = kept.previous, kept.mocap

    def jobs(self, actions: np.ndarray) -> list[tuple[Any, Any, int]]:
        """Sets every simulator's inputs, as the package does: an action moves a mocap body and closes the gripper."""
        scale, low, high = self._limits
        self._mocap = np.clip(self._mocap + np.clip(actions[:, :3], -1, 1) * scale, low, high)
        controls = np.stack([actions[:, -1], -actions[:, -1]], 1)
        for (mocap, control), position, command in zip(self._inputs, self._mocap, controls, strict=True):
            mocap[:], control[:] = position, command
        return self._jobs

    def evaluate(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations [N, 39], rewards [N] and successes [N] of the present states."""
        self._columns.forget()
        n, columns = len(self.rows), self._columns
        obs: Any = batch(np.zeros((39, n)))
        obs[:18] = call(self._code, self._attributes, columns, self.models, n, _observe)
        obs[18:36], self._previous = self._previous, obs[:18].copy()
        if self.goal_observed:
            obs[36:] = call(self._code, self._attributes, columns, self.models, n, _goal)
        obs[:] = np.clip(obs, self._bounds[0][:, None], self._bounds[1][:, None])
        action = batch(np.ascontiguousarray(actions.T))

        def evaluate_state(env: StandIn, index: np.ndarray) -> np.ndarray:
            reward, info = env.evaluate_state(obs[:, index], action[:, index])
            return np.stack([_number_each(reward, len(index)), _number_each(info["success"], len(index))])

        reward, success = call(self._code, self._attributes, columns, self.models, n, evaluate_state)
        return np.asarray(obs).T, reward, success.astype(bool)


def _observe(env: StandIn, index: np.ndarray) -> np.ndarray:
    return np.asarray(env._get_curr_obs_combined_no_goal())


def _number_each(value: Any, n: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), n)


def _goal(env: StandIn, index: np.ndarray) -> np.ndarray:
    return np.asarray(env._target_pos)
