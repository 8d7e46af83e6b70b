"""Rolling policies out: all tasks and episodes at once, every random number from a key."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl import distributions, finite, normalize, random
from metarl.adapt import Params
from metarl.distributions import Distribution, Gaussian
from metarl.normalize import ObsStats
from metarl.parallel import threads_for
from metarl.policies import Policy
from metarl.printing import fields_text
from metarl.spaces import Image, spaces_of
from metarl.tasks import TaskFamily, Tasks, num_tasks, task_at
from metarl.vector import check_workers, make_vector


@dataclass(frozen=True, repr=False)
class Rollout:
    """The episodes of K tasks. After an episode's end `mask`, `obs`, `act`, `rew` and `dist`'s first entry are zero."""

    obs: Tensor  # [K, T, E, O], as the policy saw them
    act: Tensor  # [K, T, E, A] in policy units; one choice: [K, T, E] integers; several: [K, T, E, D] integers
    rew: Tensor  # [K, T, E]
    mask: Tensor  # [K, T, E], 1 while the step counts
    log_prob: Tensor  # [K, T, E], under the policy that acted
    dist: Distribution  # of the policy that acted, [K, T, E, A] (log_std: [K, 1, 1, A])
    success: Tensor | None = None  # [K, E] bool: any valid step was one; None where no environment reports it
    image: Image | None = None  # what the observations are images of
    raw: Tensor | None = None  # [K, T, E, O], the observations before normalisation, where there is any

    __repr__ = fields_text

    @property
    def raw_obs(self) -> Tensor:
        """The observations as the environments gave them, [K, T, E, O]."""
        return self.obs if self.raw is None else self.raw

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, [K, E]."""
        return (self.rew * self.mask).sum(1)

    @property
    def success_rate(self) -> Tensor | None:
        """Share of each task's episodes with a success, [K]; None where no environment reports it."""
        return None if self.success is None else self.success.float().mean(1)

    @property
    def steps(self) -> int:
        """Environment steps taken, ended episodes not counted."""
        return int(self.mask.sum())

    def __getitem__(self, tasks: slice) -> "Rollout":
        """The same for some of the tasks."""
        return self._map(lambda x: x[tasks])

    def every(self, stride: int) -> "Rollout":
        """The same for one in `stride` time steps, the first included."""
        return self._map(lambda x: x if x.dim() == 2 else x[:, ::stride])

    def to(self, device: torch.device | str) -> "Rollout":
        """The same on `device`."""
        return self._map(lambda x: x.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Rollout":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: function(x) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **changed, dist=type(self.dist)(*(function(x) for x in self.dist)))


def collect(
    env: VectorEnv,
    tasks: Tasks,
    horizon: int,
    policy: Policy,
    params: Params,
    seeds: Tensor,
    obs_stats: ObsStats | None = None,
) -> Rollout:
    """Act with `params` [K, ...] in K*E environments for one episode each.

    Args:
        env: any vector environment of `metarl.vector`'s kind; the tensors of one with a `device` stay there. Where
            its `step` returns `infos["success"]` [N], the rollout has `success`.
        seeds: int64 [K, E]; the episode's environment and its action noise both follow from its seed alone.
        obs_stats: by which the policy's observations are normalised, if at all (see `metarl.normalize`).

    Raises:
        NotFiniteError: the environment or the policy gave a number that is not finite (names task, episode and step).
    """
    device = getattr(env, "device", torch.device("cpu"))
    with torch.no_grad(), threads_for(seeds.numel(), device):
        return _collect(env, device, tasks, horizon, policy, params, seeds, obs_stats)


def _collect(
    env: VectorEnv,
    device: torch.device,
    tasks: Tasks,
    horizon: int,
    policy: Policy,
    params: Params,
    seeds: Tensor,
    obs_stats: ObsStats | None,
) -> Rollout:
    (K, E), T, spaces = seeds.shape, horizon, policy.spaces
    tensors = hasattr(env, "device")
    decode, scale = spaces.decoder(device), normalize.scaler(obs_stats, device)
    params = {name: value.to(device).contiguous() for name, value in params.items()}
    seeds = seeds.to(device)
    noise = (random.uniform if spaces.discrete else random.normal)(
        seeds, 0, T * spaces.noise_dim, random.ACTION
    ).unflatten(-1, (T, -1))  # [K, E, T, 1 or A or D]

    raw, _ = env.reset(seed=seeds.reshape(-1), options={"tasks": tasks})  # type: ignore[arg-type]  # one for each
    obs = torch.zeros(K, T, E, spaces.obs_dim, device=device)
    unscaled = torch.zeros_like(obs, dtype=spaces.raw_dtype) if obs_stats else None
    act = torch.zeros(
        noise.shape[0],
        T,
        E,
        *spaces.action_shape,
        device=device,
        dtype=torch.int64 if spaces.discrete else torch.float32,
    )
    rew, mask = torch.zeros(K, T, E, device=device), torch.zeros(K, T, E, dtype=torch.bool, device=device)
    heads = torch.zeros(K, T, E, spaces.act_dim, device=device)
    alive = torch.ones(K, E, dtype=torch.bool, device=device)
    success: Tensor | None = None
    for t in range(T):
        x = spaces.encode(raw, device, spaces.raw_dtype if obs_stats else torch.float32).reshape(K, E, -1)
        if unscaled is not None:
            unscaled[:, t], x = x, scale(x)
        dist = policy.distribution(params, x)
        action = distributions.sample(dist, noise[:, :, t])
        obs[:, t], act[:, t], heads[:, t], mask[:, t] = x, action, dist[0], alive
        if device.type == "cpu" and finite.any_unusable(dist, action, alive):  # a GPU waits for the rollout's end
            rest = (dist.log_std.unsqueeze(1),) if isinstance(dist, Gaussian) else ()
            seen = obs if unscaled is None else unscaled
            _check_finite(env, tasks, seen, type(dist)(heads, *rest), act, rew, mask)
        command = decode(action.flatten(0, 1))
        raw, reward, terminated, truncated, infos = env.step(command if tensors else command.numpy())
        rew[:, t] = torch.as_tensor(reward, device=device).reshape(K, E)
        if "success" in infos:
            now = alive & torch.as_tensor(infos["success"], device=device).reshape(K, E).bool()
            success = now if success is None else success | now
        alive = alive & ~torch.as_tensor(terminated | truncated, device=device).reshape(K, E)
        if device.type == "cpu" and not alive.any():  # on a GPU the question would cost more than the answer saves
            break
    rew = torch.where(mask, rew, 0.0)  # a product with the mask would let a NaN through
    obs, heads = (torch.where(mask[..., None], x, 0.0) for x in (obs, heads))
    unscaled = None if unscaled is None else torch.where(mask[..., None], unscaled, 0.0)
    act = torch.where(mask if act.dim() == 3 else mask[..., None], act, torch.zeros_like(act))
    rest = (dist.log_std.unsqueeze(1),) if isinstance(dist, Gaussian) else ()
    dist = type(dist)(heads, *rest)
    _check_finite(env, tasks, obs if unscaled is None else unscaled, dist, act, rew, mask)
    log_prob = distributions.log_prob(dist, act)
    return Rollout(obs, act, rew, mask.float(), log_prob, dist, success, spaces.image, unscaled)


def _check_finite(
    env: VectorEnv, tasks: Tasks, obs: Tensor, dist: Distribution, act: Tensor, rew: Tensor, mask: Tensor
) -> None:
    """Raise for the first number that is not finite. obs before normalisation: scaled ones are cut off."""
    obs = torch.where(mask[..., None], obs, 0.0)
    fault = finite.first_fault(obs, finite.unusable(dist, act) & mask, torch.where(mask, rew, 0.0), mask)
    if fault is None:
        return
    at = fault.k, fault.t, fault.e
    value = {"observation": obs, "action": dist[0], "reward": rew}[fault.what][at].tolist()
    if isinstance(env, SingleEnv):
        name, where = env.name, f"episode {env.episode}"
    else:
        name = getattr(getattr(env, "family", None), "id", None) or type(env).__name__
        where = f"episode {fault.e} of task {fault.k} = {task_at(tasks, fault.k)}"
    raise finite.fault_error(fault, value, name, where)


class Sampler:
    """Draws a family's tasks and rolls policies out in them; keeps its vector environments for the whole run.

    Args:
        workers: of `metarl.make_vector`: None chooses, 0 steps environments one by one, n uses n processes.
    """

    def __init__(self, family: TaskFamily, device: torch.device | str = "cpu", workers: int | None = None):
        spaces_of(family)
        check_workers(workers)
        self.family, self.device, self.workers = family, torch.device(device), workers
        self._envs: dict[tuple[int, int], VectorEnv] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the environments and their processes stay behind; `collect` makes new ones."""
        return vars(self) | {"_envs": {}}

    def tasks(self, n: int, seed: int, iteration: int, split: str = "train") -> Tasks:
        """`n` tasks of meta-iteration `iteration`, from `seed` alone."""
        return self.family.sample(n, np.random.default_rng([seed, iteration]), split)

    def collect(
        self,
        tasks: Tasks,
        episodes: int,
        policy: Policy,
        params: Params,
        seed: int,
        iteration: int,
        stage: int,
        obs_stats: ObsStats | None = None,
    ) -> Rollout:
        """Roll out `episodes` episodes per task with `params` [K, ...]; see `collect`."""
        n = num_tasks(tasks)
        seeds = random.episode_seeds(seed, iteration, stage, n, episodes)
        env = self.vector_env(n, episodes)
        return collect(env, tasks, self.family.horizon, policy, params, seeds, obs_stats).to(self.device)

    def vector_env(self, n_tasks: int, episodes: int) -> VectorEnv:
        """The K*E environments that rollouts of this size run in, made at the first and kept."""
        key = (n_tasks, episodes)
        if key not in self._envs:
            self._envs[key] = make_vector(self.family, n_tasks, episodes, self.device, self.workers)
        return self._envs[key]

    def close(self) -> None:
        """Close the environments and end their processes; `collect` makes new ones."""
        for env in self._envs.values():
            env.close()
        self._envs = {}


class EnvSampler:
    """Rolls a policy out in one plain `gymnasium.Env`, episode after episode, as if it were a family of one task."""

    def __init__(self, env: gym.Env, horizon: int, device: torch.device | str = "cpu"):
        self.env, self.horizon, self.device = env, horizon, torch.device(device)

    def collect(
        self,
        tasks: Tasks,
        episodes: int,
        policy: Policy,
        params: Params,
        seed: int,
        iteration: int,
        stage: int,
        obs_stats: ObsStats | None = None,
    ) -> Rollout:
        """As `Sampler.collect` for one task."""
        seeds = random.episode_seeds(seed, iteration, stage, 1, episodes)
        single = SingleEnv(self.env, self.horizon)
        parts = [
            collect(single, tasks, self.horizon, policy, params, seeds[:, e : e + 1], obs_stats)
            for e in range(episodes)
        ]
        merged: dict[str, Any] = {
            name: torch.cat([getattr(p, name) for p in parts], 2)
            for name in ("obs", "act", "rew", "mask", "log_prob", *(["raw"] if obs_stats else []))
        }
        head = torch.cat([p.dist[0] for p in parts], 2)
        flags = [p.success for p in parts if p.success is not None]
        success = torch.cat(flags, 1) if len(flags) == episodes else None
        dist = type(parts[0].dist)(head, *parts[0].dist[1:])
        return replace(parts[0], **merged, dist=dist, success=success).to(self.device)


class SingleEnv(VectorEnv):
    """One plain environment as a vector environment of length one that leaves the task alone."""

    num_envs = 1

    def __init__(self, env: gym.Env, horizon: int):
        self.env, self.horizon, self.episode = env, horizon, -1
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.elapsed, self.episode = 0, self.episode + 1
        return np.asarray(self.env.reset(seed=int(seed[0]))[0])[None], {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.elapsed += 1
        obs, reward, terminated, truncated, info = self.env.step(actions[0])
        over = truncated or self.elapsed >= self.horizon
        return np.asarray(obs)[None], np.array([reward]), np.array([terminated]), np.array([over]), _success(info)


def _success(info: dict[str, Any]) -> dict[str, Any]:
    return {"success": np.array([bool(info["success"])])} if "success" in info else {}
