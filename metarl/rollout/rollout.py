"""Rolling policies out: all tasks and episodes at once, with keyed random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metarl.formulas import distributions
from metarl.formulas.distributions import Distribution
from metarl.parallel import threads_for
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Image
from metarl.printing import fields_text
from metarl.rollout.acting import Memoryless, longer, play
from metarl.tasks import Tasks
from metarl.vector.contract import TaskVectorEnv

_OF_EPISODES = ("success", "last_obs", "last_raw")  # what has no time axis


@dataclass(frozen=True, repr=False)
class Rollout:
    """The episodes of K tasks. T is the horizon, or less if all end long before it (see `recording`). After the end of
    an episode `mask`, `obs`, `act`, `rew` and `dist`'s first entry are zero, and both flags are false.

    Every episode ends with one flag: `terminated` if the environment ended it, `truncated` if it was cut off by the
    environment or by the horizon. Step t (obs[t], act[t], rew[t]) led to obs[t + 1] or, with a flag, to `last_obs`; the
    return of a truncated episode would continue there, that of a terminated one does not.
    """

    obs: Tensor  # [K, T, E, O], as the policy saw them
    act: Tensor  # [K, T, E, A] in policy units; one choice: [K, T, E] integers; several: [K, T, E, D] integers
    rew: Tensor  # [K, T, E]
    mask: Tensor  # [K, T, E], 1 while the step counts
    log_prob: Tensor  # [K, T, E], under the policy that acted
    dist: Distribution  # of the policy that acted, [K, T, E, A] (log_std: [K, 1, 1, A])
    terminated: Tensor  # [K, T, E] bool
    truncated: Tensor  # [K, T, E] bool
    last_obs: Tensor  # [K, E, O], what an episode's last step led to, as the policy would see it; not checked for NaN
    success: Tensor | None = None  # [K, E] bool: any valid step was one; None where no environment reports it
    image: Image | None = None  # what the observations are images of
    raw: Tensor | None = None  # [K, T, E, O], the observations before normalisation, where there is any
    last_raw: Tensor | None = None  # [K, E, O], `last_obs` before normalisation, likewise

    __repr__ = fields_text

    @property
    def raw_obs(self) -> Tensor:
        """The observations as returned by the environments, [K, T, E, O]."""
        return self.obs if self.raw is None else self.raw

    @property
    def raw_last_obs(self) -> Tensor:
        """`last_obs` as returned by the environments, [K, E, O]."""
        return self.last_obs if self.last_raw is None else self.last_raw

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, [K, E]."""
        return (self.rew * self.mask).sum(1)

    @property
    def success_rate(self) -> Tensor | None:
        """Fraction of each task's episodes with a success, [K]; None if no environment reports success."""
        return None if self.success is None else self.success.float().mean(1)

    @property
    def steps(self) -> int:
        """Number of environment steps taken, not counting episodes that have ended."""
        return int(self.mask.sum())

    def __getitem__(self, tasks: slice) -> "Rollout":
        """The same for some of the tasks."""
        return self._map(lambda x: x[tasks])

    def every(self, stride: int) -> "Rollout":
        """Every `stride`-th time step, including the first. Flags of steps in between are lost."""
        return self._map(lambda x: x[:, ::stride], kept=_OF_EPISODES)

    def to(self, device: torch.device | str) -> "Rollout":
        """The same on `device`."""
        return self._map(lambda x: x.to(device))

    def _map(self, function: Callable[[Tensor], Tensor], kept: Sequence[str] = ()) -> "Rollout":
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}
        changed: dict[str, Any] = {name: function(x) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **changed, dist=type(self.dist)(*(function(x) for x in self.dist)))


def collect(
    env: TaskVectorEnv,
    tasks: Tasks,
    horizon: int,
    policy: Policy,
    params: Params,
    seeds: Tensor,
    obs_stats: ObsStats | None = None,
) -> Rollout:
    """Act with `params` [K, ...] in K*E environments for one episode each.

    Args:
        env: tensors stay on its device. If its `step` reports successes (see `metarl.vector.success.of_steps`), the
            rollout has `success`.
        seeds: int64 [K, E]; an episode's environment and action noise are both determined by its seed.
        obs_stats: statistics used to normalise observations; empty for none (see `metarl.policies.normalize`).

    Raises:
        NotFiniteError: the environment or the policy returned a number that is not finite (names task, episode and
            step).
    """
    actor = Memoryless(policy, {name: value.to(env.device).contiguous() for name, value in params.items()})
    played = play(env, tasks, horizon, actor, seeds[None], obs_stats)
    data, dist = played.values, played.dist
    with torch.no_grad(), threads_for(seeds.numel(), env.device):
        log_prob = distributions.log_prob(dist, data["act"])
    return Rollout(
        data["x"], data["act"], data["rew"], data["mask"].float(), log_prob, dist, data["terminated"],
        data["truncated"], played.last_obs[:, 0], None if played.success is None else played.success[:, 0],
        policy.spaces.image, data.get("raw"), None if played.last_raw is None else played.last_raw[:, 0],
    )  # fmt: skip


def side_by_side(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same tasks, each [K, T_i, E_i, ...], combined into one with all their episodes."""
    T = max(part.mask.shape[1] for part in parts)

    def joined(name: str, values: Sequence[Tensor | None]) -> Tensor | None:
        if name == "success":
            return together(values, [part.mask[:, 0].bool() for part in parts])
        present = [x for x in values if x is not None]
        if not present or name in _OF_EPISODES:
            return torch.cat(present, 1) if present else None
        return torch.cat([longer(x, T) for x in present], 2)

    names = [f.name for f in fields(Rollout) if f.name not in ("dist", "image")]
    merged: dict[str, Any] = {name: joined(name, [getattr(part, name) for part in parts]) for name in names}
    head = torch.cat([longer(part.dist[0], T) for part in parts], 2)
    return replace(parts[0], **merged, dist=type(parts[0].dist)(head, *parts[0].dist[1:]))


def together(flags: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor | None:
    """Successes of several rollouts, concatenated; False for a rollout without reports, None if none has reports.

    Args:
        like: a tensor of each rollout's shape.
    """
    if all(one is None for one in flags):
        return None
    return torch.cat(
        [torch.zeros_like(x, dtype=torch.bool) if f is None else f for f, x in zip(flags, like, strict=True)], -1
    )
