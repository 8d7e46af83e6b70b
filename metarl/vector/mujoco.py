"""Gymnasium's MuJoCo environments as task families: all K*E of them advanced by threads, with bitwise equal results.

An environment is one row of a contiguous array, MuJoCo's integration state. A thread copies it into its own `MjData`,
advances it by one control step and copies it back: MuJoCo's own threads if available (`mujoco.batch`, from MuJoCo 4
on), otherwise Python threads, which wait briefly for Python's lock between environments. Observations and rewards are
then computed for all environments at once.

`mujoco.rollout` cold-starts the constraint solver in every call and does not return its final state. Gymnasium carries
that warm start from step to step; without it, a half cheetah's trajectory differs from Gymnasium's in the tenth digit
after one step and entirely after a hundred. The integration state contains the warm start.
"""

import abc
import contextlib
import copy
import functools
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv

from metarl.parallel import cpu_threads, pool
from metarl.printing import family_text
from metarl.tasks import Task, Tasks, task_at, validate_task
from metarl.vector.contract import CPU, Assignment, drawn_seeds, read_reset, set_spaces

_CONTACT_FORCES = "cfrc_ext"
"""Gymnasium computes these after the control step, by a call that MuJoCo's batches do not offer."""
_CHUNKS_PER_THREAD = 4  # environments do not take equally long: whoever is done early takes another chunk


@functools.cache
def import_mujoco() -> ModuleType:
    """The `mujoco` package. Raises ImportError, with the command to install it, if it is missing."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(
            f"this task family runs on MuJoCo, which cannot be imported ({error}); "
            "install it with: pip install mujoco imageio packaging"
        ) from error
    return mujoco


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Suppress MuJoCo's warnings about Gymnasium's models, which users cannot fix and which would be written to the
    terminal and to a file MUJOCO_LOG.TXT in the working directory. Other warnings become Python warnings."""
    mujoco = import_mujoco()
    messages: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(messages.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
    for message in messages:
        if "deprecated" not in message:
            warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


class Physics:
    """The state of N environments after a control step: views of one buffer, overwritten by the next step.

    Attributes:
        qpos, qvel: positions [N, nq] and velocities [N, nv] of the joints, float64.
        ctrl: the controls [N, nu] of the step that led here.
        fields: further arrays of `MjData` [N, ...], as listed in `MujocoFamily.fields`. As in Gymnasium, they belong to
            the state before the last simulation step of the control step.
    """

    def __init__(self, qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, fields: dict[str, np.ndarray]):
        self.qpos, self.qvel, self.ctrl, self.fields = qpos, qvel, ctrl, fields


class MujocoFamily(abc.ABC):
    """A task family based on one of Gymnasium's MuJoCo environments. Subclasses implement the abstract methods.

    The reward is implemented twice: `plain_reward` uses what Gymnasium's own step returns, for the plain environment,
    and `reward` serves many environments at once. `check_family` and the tests check that the two agree.

    Args:
        horizon: number of steps after which an episode is truncated.
    """

    id: str
    horizon: int
    observation_space: gym.Space
    action_space: gym.Space
    task_space: gym.spaces.Dict
    hidden_task: ClassVar[bool] = True
    env_id: ClassVar[str]
    """The id of the Gymnasium environment, such as `HalfCheetah-v5`."""
    env_kwargs: ClassVar[dict[str, Any]] = {}
    """Further arguments of `gymnasium.make`."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Arrays of `MjData` that `observe` or `reward` need beside qpos and qvel."""
    changes_model: ClassVar[bool] = False
    """Whether `change_model` changes the model; every task then has its own model."""

    __repr__ = family_text

    def __init__(self, horizon: int):
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        import_mujoco()
        env = self.gymnasium_env()
        plain: Any = env.unwrapped
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.dt, self.frame_skip = float(plain.dt), int(plain.frame_skip)
        self.init_qpos, self.init_qvel = plain.init_qpos.copy(), plain.init_qvel.copy()
        self.model: Any = plain.model
        env.close()

    @abc.abstractmethod
    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        """`n` tasks, each value [n, ...]. Use `metarl.split_rng(rng, split)` so that splits never share draws."""

    @abc.abstractmethod
    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The first qpos [nq] and qvel [nv], with the same draws as Gymnasium's `reset_model`."""

    @abc.abstractmethod
    def observe(self, physics: Physics) -> np.ndarray:
        """Observations [N, O], as Gymnasium computes them."""

    @abc.abstractmethod
    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        """Rewards [N] of one step. `action` [N, A] has the caller's float type, `task` values are [N, ...]."""

    @abc.abstractmethod
    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        """The same for one environment, from the `reward` and `info` of Gymnasium's step."""

    def terminated(self, physics: Physics) -> np.ndarray | None:
        """Which episodes end at this step [N]; None if episodes never end early."""
        return None

    def change_model(self, model: Any, task: Task) -> None:  # noqa: B027  # a hook: most families change nothing
        """Write the task's parameters into an `MjModel` (see `changes_model`)."""

    def place(self, qpos: np.ndarray, task: Tasks) -> None:  # noqa: B027
        """Write the tasks into the first positions [N, nq]; `make` must return environments that do so too."""

    def make(self, task: Task, render_mode: str | None = None) -> gym.Env:
        """The plain Gymnasium environment of one task."""
        task = validate_task(self, task, outside=True)
        env = self.gymnasium_env(render_mode)
        self.change_model(env.unwrapped.model, task)  # type: ignore[attr-defined]
        return MujocoTaskEnv(env, self, task)

    def make_vector(self, n_tasks: int, episodes: int, device: torch.device | str = "cpu") -> "MujocoVectorEnv":
        """K*E environments as one vector environment, task-major; they always run on the CPU."""
        return MujocoVectorEnv(self, n_tasks, episodes)

    def task_model(self, task: Task) -> Any:
        """The `MjModel` of a task."""
        if not self.changes_model:
            return self.model
        model = copy.deepcopy(self.model)
        self.change_model(model, task)
        return model

    def gymnasium_env(self, render_mode: str | None = None) -> gym.Env:
        """Gymnasium's environment as it is."""
        with _without_deprecations():
            return gym.make(
                self.env_id, self.horizon, disable_env_checker=True, render_mode=render_mode, **self.env_kwargs
            )


class MujocoTaskEnv(gym.Wrapper):
    """One of Gymnasium's environments with the reward of a family's task."""

    def __init__(self, env: gym.Env, family: MujocoFamily, task: Task):
        super().__init__(env)
        self.family, self.task = family, task

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = self.family.plain_reward(float(reward), info, action, self.task)
        return obs, float(reward), bool(terminated), bool(truncated), info


class MujocoVectorEnv(VectorEnv):
    """K*E environments of a `MujocoFamily`, task-major, advanced by a pool of threads.

    Results equal those of `LoopVectorEnv` bit for bit, with any number of threads.

    Args:
        threads: by default as many as PyTorch uses when this is built.
    """

    device, tensors = CPU, False

    def __init__(self, family: MujocoFamily, n_tasks: int, episodes: int, threads: int | None = None):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        set_spaces(self, family, n_tasks * episodes)
        self.threads = cpu_threads() if threads is None else threads
        self._simulator = _simulator(family, self.num_envs, self.threads)
        self._tasks = Assignment(n_tasks, episodes)
        self._task: Tasks = {}  # the same as arrays, each value [K*E, ...]
        self._terminated, self._elapsed = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, int)
        self._begun = False  # whether all have been reset

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        tasks, mask = read_reset(options, self.n_tasks, self.num_envs, self._begun)
        seeds = drawn_seeds(self, seed)
        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        if tasks is not None and not (mask is None and self._tasks.keeps(tasks)):
            self._tasks.give(tasks, mask)
            self._set_tasks(tasks, rows)
        starts = [self.family.initial(seeding.np_random(seeds[i])[0]) for i in rows]
        qpos, qvel = np.stack([qpos for qpos, _ in starts]), np.stack([qvel for _, qvel in starts])
        self.family.place(qpos, {name: value[rows] for name, value in self._task.items()})
        self._simulator.set_start(rows, qpos, qvel)
        self._simulator.forward(rows)
        self._terminated[rows], self._elapsed[rows] = False, 0
        first = self.family.observe(self._simulator.physics(rows))
        if mask is None:
            self._obs, self._begun = first, True
        else:
            self._obs[rows] = first
        return self._obs.copy(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions).reshape(self.num_envs, -1)
        reward = np.zeros(self.num_envs)
        alive = np.flatnonzero(~self._terminated & (self._elapsed < self.family.horizon))
        self._elapsed += 1
        if len(alive):
            rows = slice(None) if len(alive) == self.num_envs else alive
            before = self._simulator.physics(rows, own=True)
            self._simulator.set_controls(rows, actions[rows])
            self._simulator.advance(alive)
            after = self._simulator.physics(rows)
            task = {name: value[rows] for name, value in self._task.items()}
            reward[rows] = self.family.reward(before, after, actions[rows], task)
            self._obs[rows] = self.family.observe(after)
            ended = self.family.terminated(after)
            if ended is not None:
                self._terminated[rows] = ended
        truncated = ~self._terminated & (self._elapsed >= self.family.horizon)
        return self._obs.copy(), reward, self._terminated.copy(), truncated, {}

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def _set_tasks(self, tasks: Tasks, rows: np.ndarray) -> None:
        """Assign the entries of `tasks` to the environments `rows`."""
        chosen = np.isin(np.arange(self.num_envs), rows)
        for name, value in tasks.items():
            every = np.repeat(np.asarray(value), self.episodes, 0)
            self._task[name] = np.where(chosen.reshape(-1, *[1] * (every.ndim - 1)), every, self._task.get(name, every))
        if self.family.changes_model:
            models = {k: self.family.task_model(task_at(tasks, k)) for k in np.unique(rows // self.episodes).tolist()}
            self._simulator.set_models({i: models[i // self.episodes] for i in rows.tolist()})


def _simulator(family: MujocoFamily, n: int, threads: int) -> "_Simulator":
    """The faster of the two implementations that this MuJoCo version and family allow; results are bitwise equal."""
    # Beside the package that was imported: an older one put first on the path lets a newer one shine through.
    native = Path(import_mujoco().__file__ or "").with_name("batch.py").exists()
    native = native and _CONTACT_FORCES not in family.fields
    return _BatchSimulator(family, n, threads) if native else _ThreadSimulator(family, n, threads)


class _Simulator(abc.ABC):
    """The integration states [N, S] of N environments, and the methods that advance them."""

    _state: np.ndarray
    _fields: dict[str, np.ndarray]

    def __init__(self, family: MujocoFamily, n: int):
        self._mujoco = mujoco = import_mujoco()
        self._model, kinds = family.model, mujoco.mjtState
        self._models = [self._model] * n
        self._frame_skip = family.frame_skip
        self._spec = int(kinds.mjSTATE_INTEGRATION)
        self._qpos, self._qvel, self._ctrl = (
            self._columns(kind) for kind in (kinds.mjSTATE_QPOS, kinds.mjSTATE_QVEL, kinds.mjSTATE_CTRL)
        )

    @abc.abstractmethod
    def forward(self, rows: np.ndarray) -> None:
        """Begin episodes as Gymnasium does: everything at its default except the positions and velocities."""

    @abc.abstractmethod
    def advance(self, rows: np.ndarray) -> None:
        """One control step of the environments `rows`."""

    def set_models(self, models: dict[int, Any]) -> None:
        """Give environments an `MjModel` of their own."""
        for i, model in models.items():
            self._models[i] = model

    def _columns(self, kind: Any) -> slice:
        """Where in a row one part of the state is: the parts follow one another in the order of their bits."""
        bit, size = int(kind), self._mujoco.mj_stateSize
        start = size(self._model, self._spec & (bit - 1))
        return slice(start, start + size(self._model, bit))

    def physics(self, rows: Any = slice(None), own: bool = False) -> Physics:
        """The environments `rows`; `own` that the next step does not overwrite."""
        state = self._state[rows]
        fields = {name: value[rows] for name, value in self._fields.items()}
        if own and isinstance(rows, slice):  # anything else has copied already
            state, fields = state.copy(), {name: value.copy() for name, value in fields.items()}
        return Physics(state[:, self._qpos], state[:, self._qvel], state[:, self._ctrl], fields)

    def set_start(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Positions and velocities of the environments `rows` for `forward`."""
        self._state[rows, self._qpos], self._state[rows, self._qvel] = qpos, qvel

    def set_controls(self, rows: Any, ctrl: np.ndarray) -> None:
        """The controls of the environments `rows`."""
        self._state[rows, self._ctrl] = ctrl


class _BatchSimulator(_Simulator):
    """MuJoCo's own batch of simulations (from MuJoCo 4 on), which does not hold Python's lock."""

    def __init__(self, family: MujocoFamily, n: int, threads: int):
        super().__init__(family, n)
        from mujoco.batch import Batch

        self._batch = Batch(self._model, nsim=n, nthread=threads)
        self._state = self._batch.state
        self._fields = {name: self._batch.bind(name) for name in family.fields}

    def set_models(self, models: dict[int, Any]) -> None:
        super().set_models(models)
        self._batch.set_models(self._models)

    def forward(self, rows: np.ndarray) -> None:
        start = self._state[rows]
        self._batch.reset(rows, stage=self._mujoco.mjtStage.mjSTAGE_NONE)
        for part in (self._qpos, self._qvel):
            self._state[rows, part] = start[:, part]
        self._batch.forward(rows)

    def advance(self, rows: np.ndarray) -> None:
        self._batch.step(None if len(rows) == len(self._models) else rows, self._frame_skip)


class _ThreadSimulator(_Simulator):
    """A pool of threads, each with its own `MjData`, into which it loads one environment after the other."""

    def __init__(self, family: MujocoFamily, n: int, threads: int):
        super().__init__(family, n)
        self._threads = threads
        self._contact_forces = _CONTACT_FORCES in family.fields
        self._state = np.zeros((n, self._mujoco.mj_stateSize(self._model, self._spec)))
        self._rows = list(self._state)  # views: making one costs as much as a call into MuJoCo
        example = self._mujoco.MjData(self._model)
        self._fields = {name: np.zeros((n, *getattr(example, name).shape)) for name in family.fields}
        self._local = threading.local()

    def forward(self, rows: np.ndarray) -> None:
        self._everywhere(self._forward, rows.tolist())

    def advance(self, rows: np.ndarray) -> None:
        self._everywhere(self._advance, rows.tolist())

    def _everywhere(self, function: Any, rows: list[int]) -> None:
        """Run `function(rows)` with the rows divided among the threads."""
        if self._threads == 1:
            function(rows)
            return
        size = -(-len(rows) // (self._threads * _CHUNKS_PER_THREAD))
        list(pool(self._threads).map(function, [rows[i : i + size] for i in range(0, len(rows), size)]))

    def _forward(self, rows: Sequence[int]) -> None:
        mujoco, (data, views) = self._mujoco, self._data()
        for i in rows:
            model, row = self._models[i], self._rows[i]
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = row[self._qpos], row[self._qvel]
            mujoco.mj_forward(model, data)
            mujoco.mj_getState(model, data, row, self._spec)
            for name, view in views:
                self._fields[name][i] = view

    def _advance(self, rows: Sequence[int]) -> None:
        mujoco, (data, views) = self._mujoco, self._data()
        put, step, take, spec, frame_skip = (
            mujoco.mj_setState, mujoco.mj_step, mujoco.mj_getState, self._spec, self._frame_skip
        )  # fmt: skip
        models, states = self._models, self._rows
        for i in rows:
            model, row = models[i], states[i]
            put(model, data, row, spec)
            step(model, data, frame_skip)
            take(model, data, row, spec)
            if views:
                if self._contact_forces:
                    mujoco.mj_rnePostConstraint(model, data)
                for name, view in views:
                    self._fields[name][i] = view

    def _data(self) -> Any:
        """This thread's `MjData` and its arrays that are asked for."""
        if not hasattr(self._local, "data"):
            data = self._mujoco.MjData(self._model)
            self._local.data = data, [(name, getattr(data, name)) for name in self._fields]
        return self._local.data
