"""Rolling policies out: all tasks and episodes at once, every random number from a key."""

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
    """The episodes of K tasks. T is the horizon, or less where all end long before (see `recording`). After the end
    of an episode `mask`, `obs`, `act`, `rew` and `dist`'s first entry are zero, and both flags are false.

    Every episode ends with one flag: `terminated` where the environment ended it, `truncated` where it was cut off, by
    the environment or by the horizon. The step after (obs[t], act[t], rew[t]) led to obs[t + 1] or, with a flag, to
    `last_obs`; a return that is cut off continues there, one that terminated does not.
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
        """The observations as the environments gave them, [K, T, E, O]."""
        return self.obs if self.raw is None else self.raw

    @property
    def raw_last_obs(self) -> Tensor:
        """`last_obs` as the environments gave it, [K, E, O]."""
        return self.last_obs if self.last_raw is None else self.last_raw

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
        """The same for one in `stride` time steps, the first included. Flags of steps in between are lost."""
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
        env: tensors stay on its device. Where its `step` reports successes (see `metarl.vector.success.of_steps`),
            the rollout has `success`.
        seeds: int64 [K, E]; the episode's environment and its action noise both follow from its seed alone.
        obs_stats: by which the policy's observations are normalised, if at all (see `metarl.policies.normalize`).

    Raises:
        NotFiniteError: the environment or the policy gave a number that is not finite (names task, episode and step).
    """
    actor = Memoryless(policy, {name: value.to(env.device).contiguous() for name, value in params.items()})
    played = play(env, tasks, horizon, actor, seeds[None], obs_stats)
    found, dist = played.values, played.dist
    with torch.no_grad(), threads_for(seeds.numel(), env.device):
        log_prob = distributions.log_prob(dist, found["act"])
    return Rollout(
        found["x"], found["act"], found["rew"], found["mask"].float(), log_prob, dist, found["terminated"],
        found["truncated"], played.last_obs[:, 0], None if played.success is None else played.success[:, 0],
        policy.spaces.image, found.get("raw"), None if played.last_raw is None else played.last_raw[:, 0],
    )  # fmt: skip


def side_by_side(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same tasks, each [K, T_i, E_i, ...], as one of all their episodes."""
    T = max(part.mask.shape[1] for part in parts)

    def joined(name: str, values: Sequence[Tensor | None]) -> Tensor | None:
        if name == "success":
            return together(values, [part.mask[:, 0].bool() for part in parts])
        found = [x for x in values if x is not None]
        if not found or name in _OF_EPISODES:
            return torch.cat(found, 1) if found else None
        return torch.cat([longer(x, T) for x in found], 2)

    names = [f.name for f in fields(Rollout) if f.name not in ("dist", "image")]
    merged: dict[str, Any] = {name: joined(name, [getattr(part, name) for part in parts]) for name in names}
    head = torch.cat([longer(part.dist[0], T) for part in parts], 2)
    return replace(parts[0], **merged, dist=type(parts[0].dist)(head, *parts[0].dist[1:]))


def together(flags: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor | None:
    """Successes of several rollouts side by side, False where one of them has none; None where none of them has any.

    Args:
        like: a tensor of each one's shape.
    """
    if all(one is None for one in flags):
        return None
    return torch.cat(
        [torch.zeros_like(x, dtype=torch.bool) if f is None else f for f, x in zip(flags, like, strict=True)], -1
    )
