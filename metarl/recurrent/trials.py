"""Trials: several episodes in the same environment, one after the other, with a memory that lasts through all of them.

K tasks, E trials of each side by side, N episodes in a trial, at most T steps in an episode (the horizon, or less where
all episodes ended long before it); time L = N T spans the whole trial. All trials go in lockstep: where an episode has
ended early, its trial waits with its memory as it is until the next episode begins. So what happens in a trial does not
depend on the trials beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metarl import random
from metarl.formulas import distributions
from metarl.formulas.distributions import Distribution, Gaussian
from metarl.parallel import threads_for
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.gru import GRUPolicy, Memory, action_vector
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Image
from metarl.printing import fields_text
from metarl.rollout import finite
from metarl.rollout.recording import ActionNoise, Recording
from metarl.rollout.rollout import Rollout, check_recorded, ended, numbers, step_kinds
from metarl.rollout.sampler import EnvSampler, Sampler, longer, noted, together
from metarl.tasks import Tasks, num_tasks
from metarl.vector.contract import TaskVectorEnv
from metarl.vector.single import SingleEnv
from metarl.vector.success import of_steps

WIDE = 128
"""Trials per chunk at least: each step of the recurrence is a product with so many rows, and fewer cost as much."""


@dataclass(frozen=True, repr=False)
class Trials:
    """E trials of each of K tasks. Where `mask` is zero, so is everything else."""

    x: Tensor  # [K, L, E, I], what went into the policy (see `GRUPolicy.inputs`)
    act: Tensor  # [K, L, E, A] in policy units; one choice: [K, L, E] integers; several: [K, L, E, D] integers
    rew: Tensor  # [K, L, E]
    mask: Tensor  # [K, L, E], 1 while the step counts
    log_prob: Tensor  # [K, L, E], under the policy that acted
    value: Tensor  # [K, L, E], of the policy's value head
    dist: Distribution  # [K, L, E, A] (log_std: [K, 1, 1, A])
    memory: Memory  # after the last episode, [K, E, ...]
    episodes: int  # N
    obs_dim: int  # O: the first entries of x are the observation, as the policy saw it
    success: Tensor | None = None  # [K, N, E] bool: any valid step was one; None where no environment reports it
    image: Image | None = None
    raw: Tensor | None = None  # [K, L, E, O], the observations before normalisation, where there is any

    __repr__ = fields_text

    @property
    def raw_obs(self) -> Tensor:
        """The observations as the environments gave them, [K, L, E, O]."""
        return self.x[..., : self.obs_dim] if self.raw is None else self.raw

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, [K, N, E]."""
        return self.rew.unflatten(1, (self.episodes, -1)).sum(2)

    @property
    def success_rates(self) -> Tensor | None:
        """[K, N]: share of trials with a success in their n-th episode; None where no environment reports it."""
        return None if self.success is None else self.success.float().mean(2)

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return int(self.mask.sum())

    @property
    def rollouts(self) -> list[Rollout]:
        """The n-th episodes of all trials as a rollout of their own, for every n."""
        T = self.mask.shape[1] // self.episodes
        out = []
        for n in range(self.episodes):
            now = slice(n * T, (n + 1) * T)
            dist = type(self.dist)(self.dist[0][:, now], *self.dist[1:])
            out.append(Rollout(
                self.x[:, now, :, : self.obs_dim], self.act[:, now], self.rew[:, now], self.mask[:, now],
                self.log_prob[:, now], dist, None if self.success is None else self.success[:, n], self.image,
                None if self.raw is None else self.raw[:, now],
            ))  # fmt: skip
        return out


def shown_episodes(episodes: int) -> list[int]:
    """Which episodes of a trial are worth a column in a log: of up to ten all, of more those with the numbers 0, 1, 2,
    5, 10, 20, 50, ... and the last."""
    if episodes <= 10:
        return list(range(episodes))
    series = [m * 10**e for e in range(len(str(episodes))) for m in (1, 2, 5)]
    return [0, *(k for k in series if k < episodes - 1), episodes - 1]


# ---------------------------------------------------------------------------------------------------------------------
# Gradients over trials


# ---------------------------------------------------------------------------------------------------------------------
# Acting


def collect_trials(
    sampler: Sampler | EnvSampler,
    tasks: Tasks,
    trials: int,
    episodes: int,
    policy: GRUPolicy,
    params: Params,
    seed: int,
    iteration: int,
    obs_stats: ObsStats | None = None,
) -> Trials:
    """Run `trials` trials of `episodes` episodes in every task.

    The environment's numbers and the action noise of an episode follow from (seed, iteration, which episode of the
    trial, task, trial) alone; the number of the episode takes the place of other algorithms' stage.

    Raises:
        NotFiniteError: the environment or the policy gave a number that is not finite (names task, trial, episode and
            step).
    """
    seeds = trial_seeds(seed, iteration, episodes, num_tasks(tasks), trials)
    if isinstance(sampler, EnvSampler):
        single = SingleEnv(sampler.env, sampler.horizon)
        own = (seeds[:, :, e : e + 1] for e in range(trials))
        parts = [run(single, tasks, sampler.horizon, policy, params, some, obs_stats) for some in own]
        found = _side_by_side(parts, sampler.device)
    else:
        env = sampler.vector_env(num_tasks(tasks), trials)
        found = run(env, tasks, sampler.family.horizon, policy, params, seeds, obs_stats)
    success = noted(sampler, found.success, (num_tasks(tasks), episodes, trials))
    return replace(found, success=None if success is None else success.to(found.mask.device))


def trial_seeds(seed: int, iteration: int, episodes: int, n_tasks: int, trials: int) -> Tensor:
    """The keys of all episodes, int64 [N, K, E]: `random.episode_seeds` with the number of the episode as stage."""
    n, k, e = torch.meshgrid(*(torch.arange(size) for size in (episodes, n_tasks, trials)), indexing="ij")
    return random.seeds_at(seed, k, e, torch.tensor(iteration), n)


@torch.no_grad()
def run(
    env: TaskVectorEnv,
    tasks: Tasks,
    horizon: int,
    policy: GRUPolicy,
    params: Params,
    seeds: Tensor,
    obs_stats: ObsStats | None = None,
) -> Trials:
    """Trials of N episodes in K*E environments. seeds int64 [N, K, E], one for every episode."""
    with threads_for(seeds[0].numel(), env.device):
        return _Run(env, tasks, horizon, policy, params, seeds.to(env.device), obs_stats).trials()


class _Run:
    """What `run` fills while it goes."""

    def __init__(
        self,
        env: TaskVectorEnv,
        tasks: Tasks,
        horizon: int,
        policy: GRUPolicy,
        params: Params,
        seeds: Tensor,
        obs_stats: ObsStats | None,
    ):
        (_, K, E), spaces = seeds.shape, policy.spaces
        device = env.device
        self.env, self.device, self.tasks, self.seeds, self.policy = env, device, tasks, seeds, policy
        self.horizon, self.shape = horizon, (K, E)
        self.params = {name: value.to(device) for name, value in params.items()}
        self.decode, self.scale = spaces.decoder(device), normalize.scaler(obs_stats, device)
        self.memory = policy.blank(K, E, device=device)
        self.raw_dtype = spaces.raw_dtype if obs_stats else torch.float32
        self.noise = ActionNoise(spaces, seeds, horizon)
        kinds = {"x": ((policy.input_dim,), torch.float32), "value": ((), torch.float32)}
        self.kinds = {name: kind for name, kind in step_kinds(spaces, bool(obs_stats)).items() if name != "obs"} | kinds
        self.parts: list[dict[str, Tensor]] = []  # of every episode
        self.success: Tensor | None = None

    def trials(self) -> Trials:
        for n in range(len(self.seeds)):
            self.parts.append(self._episode(n))
        T = max(part["mask"].shape[1] for part in self.parts)
        found = {name: torch.cat([longer(part[name], T) for part in self.parts], 1) for name in self.kinds}
        mask, policy = found["mask"], self.policy
        for name, value in found.items():
            wide = mask.reshape(*mask.shape, *[1] * (value.dim() - 3))
            found[name] = torch.where(wide, value, torch.zeros_like(value))
        dist, _ = policy.heads(self.params, self.memory.hidden)
        rest = (dist.log_std.expand(len(mask), 1, 1, -1),) if isinstance(dist, Gaussian) else ()
        dist = type(dist)(found["heads"], *rest)
        return Trials(
            found["x"], found["act"], found["rew"], mask.float(), distributions.log_prob(dist, found["act"]),
            found["value"], dist, self.memory, len(self.seeds), policy.spaces.obs_dim, self.success,
            policy.spaces.image, found.get("raw"),
        )  # fmt: skip

    def _episode(self, n: int) -> dict[str, Tensor]:
        """Episode n of every trial: what was recorded, [K, T, E, ...]."""
        (K, E), spaces, policy = self.shape, self.policy.spaces, self.policy
        record = Recording(K, E, self.horizon, self.kinds, self.device)
        options: dict[str, Any] = {} if n else {"tasks": self.tasks}
        alive = torch.ones(K, E, dtype=torch.bool, device=self.device)
        raw, _ = self.env.reset(seed=self.seeds[n].reshape(-1), options=options)
        for t in range(self.horizon):
            # A copy: an environment may write its next observations into the same memory.
            obs = spaces.encode(raw, self.device, self.raw_dtype).reshape(K, E, -1).clone()
            if "raw" in self.kinds:
                record.put(t, raw=obs)
                obs = self.scale(obs)
            x = policy.inputs(obs, self.memory, float(t == 0))
            hidden = policy.step(self.params, x, self.memory.hidden)
            dist, value = policy.heads(self.params, hidden)
            action = distributions.sample(dist, self.noise.at(n, t))
            record.put(t, x=x, act=action, mask=alive, heads=dist[0], value=value)
            if self.device.type == "cpu" and finite.any_unusable(dist, action, alive):  # a GPU waits for the end
                self._check_finite(n, record.first(t + 1), dist)
            command = self.decode(action.flatten(0, 1))
            raw, reward, terminated, truncated, infos = self.env.step(command if self.env.tensors else command.numpy())
            reward = numbers(reward, "reward", self.shape, self.device).float()
            record.put(t, rew=reward)
            after = policy.remember(hidden, obs, action_vector(spaces, action), reward)
            self.memory = after.where(alive, self.memory) if t else after  # every trial is in its first step
            self._note_success(n, alive, infos)
            alive = alive & ~ended(terminated, truncated, self.shape, self.device)
            if self.device.type == "cpu" and not alive.any():
                break
        found = record.first(t + 1)
        if self.device.type != "cpu":
            found = record.first(int(found["mask"].any(2).any(0).sum()))
        self._check_finite(n, found, dist)
        return found

    def _note_success(self, n: int, alive: Tensor, infos: dict[str, Any]) -> None:
        K, E = self.shape
        if (flags := of_steps(infos, K * E)) is not None:
            now = alive & numbers(flags, "success", self.shape, self.device).bool()
            if self.success is None:
                self.success = torch.zeros(K, len(self.seeds), E, dtype=torch.bool, device=self.device)
            self.success[:, n] |= now

    def _check_finite(self, n: int, found: dict[str, Tensor], dist: Distribution) -> None:
        """Raise for the first number of episode n that is not finite."""
        seen = found if "raw" in found else found | {"obs": found["x"][..., : self.policy.spaces.obs_dim]}
        check_recorded(seen, dist, self.env.name, lambda k, e: self.env.describe(k, e, n))


def _side_by_side(parts: Sequence[Trials], device: torch.device) -> Trials:
    """Trials [K, L, 1] of the same tasks -> [K, L, E]."""
    N, T = parts[0].episodes, max(part.mask.shape[1] for part in parts) // parts[0].episodes

    def spread(x: Tensor) -> Tensor:  # every episode over T steps
        return longer(x.unflatten(1, (N, -1)).flatten(0, 1), T).unflatten(0, (-1, N)).flatten(1, 2)

    merged: dict[str, Any] = {"success": together([p.success for p in parts], (1, N, 1))}
    for name in ("x", "act", "rew", "mask", "log_prob", "value", *(["raw"] if parts[0].raw is not None else [])):
        merged[name] = torch.cat([spread(getattr(part, name)) for part in parts], 2).to(device)
    dist = type(parts[0].dist)(torch.cat([spread(p.dist[0]) for p in parts], 2), *parts[0].dist[1:])
    dist = type(dist)(*(x.to(device) for x in dist))
    memory = Memory(*(torch.cat(values, 1).to(device) for values in zip(*(p.memory for p in parts), strict=True)))
    return replace(parts[0], **merged, dist=dist, memory=memory)
