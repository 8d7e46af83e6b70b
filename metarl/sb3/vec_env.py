"""A task family as a stable-baselines3 `VecEnv`, at the speed of the family's own vector environment.

Stable-baselines3 resets an environment as soon as its episode ends, ours stay ended. Where all episodes end together
(the common case: a horizon), all are reset at once; where some end early, those are reset through `reset_mask`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from stable_baselines3.common.vec_env import VecEnv

from metarl import random
from metarl.arguments import whole
from metarl.families.registry import make
from metarl.policies.spaces import lowest
from metarl.splits import check_split, sample_split
from metarl.tasks import Task, TaskFamily, Tasks, check_is_family, requested_task, task_at
from metarl.torch_defaults import torch_defaults
from metarl.vector.backends import make_vector
from metarl.vector.success import of_steps

RESAMPLE: Literal["resample"] = "resample"
_STAGE = 0x5B3  # keeps the episodes' seeds apart from those of meta-training


@torch_defaults
def as_vec_env(
    family: str | TaskFamily,
    n_envs: int = 1,
    task: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Literal["resample"] = RESAMPLE,
    *,
    seed: int = 0,
    split: str = "train",
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> "FamilyVecEnv":
    """Environments of `family` for stable-baselines3's algorithms.

    Args:
        family: a family or its id.
        n_envs: how many environments run side by side.
        task: `"resample"` draws a new task for every episode; a task is that of all environments; a sequence of
            tasks gives every environment its own. Given ones stay until `set_attr("task", ...)`.
        seed: with the actions, determines every number: the task and the randomness of episode c in environment i
            follow from (seed, i, c) alone.
        split: where `"resample"` draws from, one of the family's splits.
        device: where a tensor family computes.
        workers: processes that step the environments. None takes what the family offers itself, else the environments
            run one by one in this process, where `env_method` and `get_attr` reach them; so does 0 for any family.
            No choice changes a number.

    Raises:
        ValueError: no such family or split, a task that is none of the family's, as many tasks as there are not
            environments, or a family that no process can take.
    """
    family = make(family) if isinstance(family, str) else family
    check_is_family(family)
    n_envs, seed = whole("n_envs", n_envs, 1), whole("seed", seed)
    check_split(family, split)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    fixed: list[Task | None]
    if isinstance(task, str):
        if task != RESAMPLE:
            raise ValueError(f"task must be a task, a sequence of tasks or {RESAMPLE!r}, got {task!r}")
        fixed = [None] * n_envs
    elif isinstance(task, Mapping):
        fixed = [requested_task(family, task)] * n_envs
    else:
        fixed = [requested_task(family, one) for one in task]
        if len(fixed) != n_envs:
            raise ValueError(f"expected one task for each of {n_envs} environments, got {len(fixed)}")
    return FamilyVecEnv(family, n_envs, fixed, isinstance(task, Mapping), seed, split, device, workers)


class FamilyVecEnv(VecEnv):
    """See `as_vec_env`. Choices are numbered from 0, as stable-baselines3 wants them.

    `get_attr("task")` has the tasks that the environments are at; `set_attr("task", task)` sets those of the episodes
    to come (`"resample"` draws them again). Other attributes and methods are those of the single environments, where
    the family's vector environment has any; attributes of the family (`horizon`, `id`) can be read everywhere.
    """

    def __init__(
        self,
        family: TaskFamily,
        n_envs: int,
        fixed: list[Task | None],
        one_task: bool,
        seed: int,
        split: str,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ):
        self.family, self.split = family, split
        # One task for all is one task with many episodes to the vector environment: a simulator builds one model.
        self._one_task = one_task
        sizes = (1, n_envs) if one_task else (n_envs, 1)
        # One by one where the family has no backend of its own and nobody asks for processes: those can be reached.
        plain = workers is None and not hasattr(family, "make_vector")
        self.vector: Any = make_vector(family, *sizes, device, 0 if plain else workers)
        self._fixed = fixed
        self._drawn = np.array([task is None for task in fixed])  # gets a new task for every episode
        self._renewed = np.ones(n_envs, bool)  # gets another given one at its next reset
        self._pools: dict[int, Tasks] = {}
        self._tasks: Tasks = {}  # of all environments, each value [n_envs, ...]
        self._episode = np.full(n_envs, -1)
        self._succeeded, self._reports_success = np.zeros(n_envs, bool), False
        self._seed, self._new_seed = seed, -1  # -1: none
        self._masks_work = False
        self._obs_start, self._act_start = (_start(s) for s in (family.observation_space, family.action_space))
        super().__init__(n_envs, _from_zero(family.observation_space), _from_zero(family.action_space))

    # -----------------------------------------------------------------------------------------------------------------
    # Reset and step

    def seed(self, seed: int | None = None) -> list[int | None]:
        """From the next `reset` on the episodes are those of `seed`, counted from the first again."""
        super().seed(seed)
        self._new_seed = int(self._seeds[0])  # type: ignore[arg-type]  # `seed` has set it
        return self._seeds

    @torch_defaults
    def reset(self) -> np.ndarray:
        if any(self._options):
            raise ValueError(f"environments of {self.family.id} take no reset options, got {self._options}")
        if self._new_seed >= 0:
            self._seed, self._new_seed = self._new_seed, -1
            self._episode[:] = -1
            self._pools.clear()
        self._reset_seeds()
        return self._begin(np.ones(self.num_envs, bool))

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions) if self._act_start is None else np.asarray(actions) + self._act_start

    @torch_defaults
    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        raw, reward, terminated, truncated, more = self.vector.step(self._actions)
        obs, terminated = self._convert(raw), _numpy(terminated)
        cut = _numpy(truncated) & ~terminated
        done = terminated | cut
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if (flags := of_steps(more, self.num_envs)) is not None:
            self._reports_success = True
            self._succeeded |= _numpy(flags).reshape(-1).astype(bool)
        if done.any():
            for i in np.flatnonzero(done):
                infos[i] = {"TimeLimit.truncated": bool(cut[i]), "terminal_observation": obs[i]}
                if self._reports_success:  # once it has been, an episode without is a failure
                    infos[i]["is_success"] = bool(self._succeeded[i])
            obs = self._begin(done, obs)
        return obs, _numpy(reward).astype(np.float32), done, infos

    def _begin(self, mask: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """Begin new episodes where `mask` says so. -> all observations."""
        self._episode[mask] += 1
        self._succeeded[mask] = False
        options: dict[str, Any] = {} if mask.all() else {"reset_mask": mask}
        if (self._renewed | self._drawn)[mask].any():
            self._renew(mask)
            options["tasks"] = {k: x[mask][:1] if self._one_task else x for k, x in self._tasks.items()}
        where, zero = torch.arange(self.num_envs), torch.zeros((), dtype=torch.int64)
        seeds = random.seeds_at(self._seed, where, zero, torch.from_numpy(self._episode), zero + _STAGE)
        obs = self._convert(self.vector.reset(seed=seeds.numpy(), options=options)[0])
        if "reset_mask" in options and not self._masks_work:
            if not np.array_equal(obs[~mask], before[~mask]):  # type: ignore[index]  # only a step resets some
                raise ValueError(
                    f"an episode of {self.family.id} ended before the others, but {type(self.vector).__name__} cannot "
                    'reset single environments: its reset must obey options["reset_mask"] (see metarl.vector)'
                )
            self._masks_work = True
        return obs

    def _renew(self, mask: np.ndarray) -> None:
        """Put the tasks of the episodes that begin into `_tasks`."""
        for c in np.unique(self._episode[mask & self._drawn]):
            self._put(mask & self._drawn & (self._episode == c), self._pool(int(c)))
        for i in np.flatnonzero(mask & self._renewed & ~self._drawn):
            given = self._fixed[i]
            assert given is not None
            every = {name: np.broadcast_to(value, (self.num_envs, *np.shape(value))) for name, value in given.items()}
            self._put(np.arange(self.num_envs) == i, every)
        self._renewed[mask] = False
        for old in [c for c in self._pools if c < self._episode.min()]:
            del self._pools[old]

    def _put(self, where: np.ndarray, tasks: Tasks) -> None:
        for name, value in tasks.items():
            self._tasks.setdefault(name, np.array(value))[where] = value[where]

    def _pool(self, c: int) -> Tasks:
        """The tasks of everybody's episode c. One draw for all: some families spread what they draw at once."""
        if c not in self._pools:
            rng = np.random.default_rng([self._seed, c])
            self._pools[c] = sample_split(self.family, self.num_envs, rng, self.split)
        return self._pools[c]

    def _convert(self, obs: Any) -> np.ndarray:
        # A copy: a vector environment may write its next observations into the same memory.
        out = np.array(_numpy(obs), dtype=self.observation_space.dtype)
        return out if self._obs_start is None else out - self._obs_start

    def close(self) -> None:
        self.vector.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Attributes and methods of the single environments

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        at = list(self._get_indices(indices))
        if attr_name == "task":
            return [task_at(self._tasks, i) for i in at]
        if attr_name == "render_mode":
            return [None] * len(at)
        envs = getattr(self.vector, "envs", None)
        if envs:
            return [envs[i].get_wrapper_attr(attr_name) for i in at]
        if hasattr(self.family, attr_name):
            return [getattr(self.family, attr_name)] * len(at)
        raise AttributeError(f"environments of {self.family.id} have no attribute {attr_name!r}")

    @torch_defaults
    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        at = list(self._get_indices(indices))
        if attr_name != "task":
            for i in at:
                setattr(self._single(f"set {attr_name!r}")[i], attr_name, value)
            return
        resample = isinstance(value, str) and value == RESAMPLE
        if self._one_task and (resample or len(set(at)) < self.num_envs):
            raise ValueError(
                f"these {self.num_envs} environments of {self.family.id} were made for one task that is the same for "
                'all; make them with task="resample" or a sequence of tasks'
            )
        task = None if resample else requested_task(self.family, value)
        for i in at:
            self._fixed[i], self._drawn[i], self._renewed[i] = task, resample, True

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        envs = self._single(f"call {method_name!r}")
        return [
            envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for i in self._get_indices(indices)
        ]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        from stable_baselines3.common.env_util import is_wrapped

        envs: Any = getattr(self.vector, "envs", None)
        return [bool(envs) and is_wrapped(envs[i], wrapper_class) for i in self._get_indices(indices)]

    def _single(self, what: str) -> list[gym.Env]:
        envs = getattr(self.vector, "envs", None)
        if not envs:
            raise AttributeError(
                f"cannot {what}: {type(self.vector).__name__} has no single environments that are built; change the "
                'task with set_attr("task", ...), read what all share with get_attr'
            )
        return envs


def _start(space: gym.Space) -> Any:
    """The lowest value of each choice, in the space's shape and type; None where it is 0."""
    if not isinstance(space, Discrete | MultiDiscrete) or not lowest(space).any():
        return None
    return lowest(space).reshape(space.shape).astype(space.dtype)


def _from_zero(space: gym.Space) -> gym.Space:
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec, space.dtype)
    return Discrete(int(space.n)) if isinstance(space, Discrete) else space


def _numpy(x: Any) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
