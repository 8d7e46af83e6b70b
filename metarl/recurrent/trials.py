"""Trials: several consecutive episodes in the same environment, with a memory that is kept throughout.

K tasks, E parallel trials of each, N episodes per trial, at most T steps per episode (the horizon, or less if all
episodes ended long before it); time L = N T spans the whole trial. All trials run in lockstep: after an early end of an
episode, its trial waits with its memory unchanged until the next episode begins. A trial therefore does not depend on
the other trials.
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
from metarl.policies.gru import GRUPolicy, Memory, action_vector
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Image, Spaces
from metarl.printing import fields_text
from metarl.rollout.acting import Acted, longer, play
from metarl.rollout.rollout import Rollout, together
from metarl.rollout.sampler import EnvSampler, noted
from metarl.rollout.setup import Setup
from metarl.tasks import Tasks, num_tasks
from metarl.vector.contract import TaskVectorEnv
from metarl.vector.single import SingleEnv

WIDE = 128
"""Minimum number of trials per chunk: a step of the recurrence is a product with this many rows, and fewer rows would
not be faster."""


@dataclass(frozen=True, repr=False)
class Trials:
    """E trials of each of K tasks. Everything is zero where `mask` is zero. The flags and `last_obs` are as in
    `metarl.rollout.rollout.Rollout`, for each of the N episodes."""

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
    terminated: Tensor  # [K, L, E] bool
    truncated: Tensor  # [K, L, E] bool
    last_obs: Tensor  # [K, N, E, O], as the policy would see it
    success: Tensor | None = None  # [K, N, E] bool: any valid step was one; None where no environment reports it
    image: Image | None = None
    raw: Tensor | None = None  # [K, L, E, O], the observations before normalisation, where there is any
    last_raw: Tensor | None = None  # [K, N, E, O], `last_obs` before normalisation, likewise

    __repr__ = fields_text

    @property
    def raw_obs(self) -> Tensor:
        """The observations as returned by the environments, [K, L, E, O]."""
        return self.x[..., : self.obs_dim] if self.raw is None else self.raw

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, [K, N, E]."""
        return self.rew.unflatten(1, (self.episodes, -1)).sum(2)

    @property
    def success_rates(self) -> Tensor | None:
        """[K, N]: fraction of trials with a success in their n-th episode; None if no environment reports success."""
        return None if self.success is None else self.success.float().mean(2)

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return int(self.mask.sum())

    @property
    def rollouts(self) -> list[Rollout]:
        """The n-th episodes of all trials as a rollout, for every n."""
        T = self.mask.shape[1] // self.episodes
        out = []
        for n in range(self.episodes):
            now = slice(n * T, (n + 1) * T)
            dist = type(self.dist)(self.dist[0][:, now], *self.dist[1:])
            out.append(Rollout(
                self.x[:, now, :, : self.obs_dim], self.act[:, now], self.rew[:, now], self.mask[:, now],
                self.log_prob[:, now], dist, self.terminated[:, now], self.truncated[:, now], self.last_obs[:, n],
                None if self.success is None else self.success[:, n], self.image,
                None if self.raw is None else self.raw[:, now],
                None if self.last_raw is None else self.last_raw[:, n],
            ))  # fmt: skip
        return out


def shown_episodes(episodes: int) -> list[int]:
    """Which episodes of a trial get a column in the log: up to ten, all of them; otherwise numbers 0, 1, 2, 5, 10, 20,
    50, ... and the last."""
    if episodes <= 10:
        return list(range(episodes))
    series = [m * 10**e for e in range(len(str(episodes))) for m in (1, 2, 5)]
    return [0, *(k for k in series if k < episodes - 1), episodes - 1]


# ---------------------------------------------------------------------------------------------------------------------
# Acting


def collect_trials(
    setup: Setup[Any],
    tasks: Tasks,
    trials: int,
    episodes: int,
    params: Params,
    iteration: int,
    obs_stats: ObsStats | None = None,
) -> Trials:
    """Run `trials` trials of `episodes` episodes in every task, with the sampler, policy and seed of `setup`.

    The environment's numbers and the action noise of an episode follow from (seed, iteration, which episode of the
    trial, task, trial) alone; the number of the episode takes the place of other algorithms' stage.

    Raises:
        NotFiniteError: the environment or the policy gave a number that is not finite (names task, trial, episode and
            step).
    """
    sampler, policy = setup.sampler, setup.policy
    seeds = trial_seeds(setup.seed, iteration, episodes, num_tasks(tasks), trials)
    if isinstance(sampler, EnvSampler):
        single = SingleEnv(sampler.env, sampler.horizon)
        per_trial = (seeds[:, :, e : e + 1] for e in range(trials))
        parts = [run(single, tasks, sampler.horizon, policy, params, some, obs_stats) for some in per_trial]
        played = _side_by_side(parts, sampler.device)
    else:
        env = sampler.vector_env(num_tasks(tasks), trials)
        played = run(env, tasks, sampler.family.horizon, policy, params, seeds, obs_stats)
    success = noted(sampler, played.success, (num_tasks(tasks), episodes, trials))
    return replace(played, success=None if success is None else success.to(played.mask.device))


def trial_seeds(seed: int, iteration: int, episodes: int, n_tasks: int, trials: int) -> Tensor:
    """The keys of all episodes, int64 [N, K, E]: `random.episode_seeds` with the episode number as the stage."""
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
    on_device = {name: value.to(env.device) for name, value in params.items()}
    played = play(env, tasks, horizon, Remembering(policy, on_device), seeds, obs_stats)
    data, dist = played.values, played.dist
    with threads_for(seeds[0].numel(), env.device):
        log_prob = distributions.log_prob(dist, data["act"])
    return Trials(
        data["x"], data["act"], data["rew"], data["mask"].float(), log_prob, data["value"], dist, played.memory,
        len(seeds), policy.spaces.obs_dim, data["terminated"], data["truncated"], played.last_obs, played.success,
        policy.spaces.image, data.get("raw"), played.last_raw,
    )  # fmt: skip


@dataclass(frozen=True)
class Remembering:
    """A recurrent policy with its parameters, on the environments' device, for `metarl.rollout.acting.play`."""

    policy: GRUPolicy
    params: Params
    remembers: bool = True

    @property
    def spaces(self) -> Spaces:
        return self.policy.spaces

    @property
    def kinds(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"x": ((self.policy.input_dim,), torch.float32), "value": ((), torch.float32)}

    def start(self, n_tasks: int, episodes: int) -> Memory:
        return self.policy.blank(n_tasks, episodes, device=next(iter(self.params.values())).device)

    def act(self, memory: Memory, obs: Tensor, first: bool) -> Acted:
        x = self.policy.inputs(obs, memory, float(first))
        hidden = self.policy.step(self.params, x, memory.hidden)
        dist, value = self.policy.heads(self.params, hidden)
        if isinstance(dist, Gaussian):
            dist = Gaussian(dist.mean, dist.log_std.expand(len(obs), 1, -1))
        return Acted(dist, {"x": x, "value": value}, (hidden, x[..., : obs.shape[-1]]))

    def observe(self, memory: Memory, acted: Acted, action: Tensor, reward: Tensor, alive: Tensor) -> Memory:
        hidden, obs = acted.state
        after = self.policy.remember(hidden, obs, action_vector(self.policy.spaces, action), reward.float())
        return after.where(alive, memory)


def _side_by_side(parts: Sequence[Trials], device: torch.device) -> Trials:
    """Trials [K, L, 1] of the same tasks -> [K, L, E]."""
    N, T = parts[0].episodes, max(part.mask.shape[1] for part in parts) // parts[0].episodes

    def spread(x: Tensor) -> Tensor:  # every episode over T steps
        return longer(x.unflatten(1, (N, -1)).flatten(0, 1), T).unflatten(0, (-1, N)).flatten(1, 2)

    normalised = parts[0].raw is not None
    merged: dict[str, Any] = {"success": together([p.success for p in parts], [p.last_obs[..., 0] for p in parts])}
    in_time = ("x", "act", "rew", "mask", "log_prob", "value", "terminated", "truncated")
    for name in (*in_time, *(["raw"] if normalised else [])):
        merged[name] = torch.cat([spread(getattr(part, name)) for part in parts], 2).to(device)
    for name in ("last_obs", *(["last_raw"] if normalised else [])):
        merged[name] = torch.cat([getattr(part, name) for part in parts], 2).to(device)
    dist = type(parts[0].dist)(torch.cat([spread(p.dist[0]) for p in parts], 2), *parts[0].dist[1:])
    dist = type(dist)(*(x.to(device) for x in dist))
    memory = Memory(*(torch.cat(values, 1).to(device) for values in zip(*(p.memory for p in parts), strict=True)))
    return replace(parts[0], **merged, dist=dist, memory=memory)
