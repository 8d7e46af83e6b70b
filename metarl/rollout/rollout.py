"""Rolling policies out: all tasks and episodes at once, every random number from a key."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from metarl.formulas import distributions
from metarl.formulas.distributions import Distribution, Gaussian
from metarl.parallel import threads_for
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.base import Policy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Image, Spaces
from metarl.printing import fields_text
from metarl.rollout import finite
from metarl.rollout.recording import ActionNoise, Recording
from metarl.tasks import Tasks
from metarl.vector.contract import TaskVectorEnv
from metarl.vector.success import of_steps


@dataclass(frozen=True, repr=False)
class Rollout:
    """The episodes of K tasks. T is the horizon, or less where all end long before (see `recording`). After the end
    of an episode `mask`, `obs`, `act`, `rew` and `dist`'s first entry are zero."""

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
    with torch.no_grad(), threads_for(seeds.numel(), env.device):
        return _collect(env, tasks, horizon, policy, params, seeds, obs_stats)


def _collect(
    env: TaskVectorEnv,
    tasks: Tasks,
    horizon: int,
    policy: Policy,
    params: Params,
    seeds: Tensor,
    obs_stats: ObsStats | None,
) -> Rollout:
    (K, E), spaces, device = seeds.shape, policy.spaces, env.device
    decode, scale = spaces.decoder(device), normalize.scaler(obs_stats, device)
    params = {name: value.to(device).contiguous() for name, value in params.items()}
    seeds = seeds.to(device)
    noise = ActionNoise(spaces, seeds[None], horizon)
    record = Recording(K, E, horizon, step_kinds(spaces, bool(obs_stats)), device)
    alive = torch.ones(K, E, dtype=torch.bool, device=device)
    success: Tensor | None = None
    raw, _ = env.reset(seed=seeds.reshape(-1), options={"tasks": tasks})
    for t in range(horizon):
        x = spaces.encode(raw, device, spaces.raw_dtype if obs_stats else torch.float32).reshape(K, E, -1)
        if obs_stats:
            record.put(t, raw=x)
            x = scale(x)
        dist = policy.distribution(params, x)
        action = distributions.sample(dist, noise.at(0, t))
        # Before the step: an environment may write its next observations into the same memory.
        record.put(t, obs=x, act=action, heads=dist[0], mask=alive)
        if device.type == "cpu" and finite.any_unusable(dist, action, alive):  # a GPU waits for the rollout's end
            check_recorded(record.first(t + 1), dist, env.name, env.describe)
        command = decode(action.flatten(0, 1))
        raw, reward, terminated, truncated, infos = env.step(command if env.tensors else command.numpy())
        record.put(t, rew=numbers(reward, "reward", (K, E), device))
        if (flags := of_steps(infos, K * E)) is not None:
            now = alive & numbers(flags, "success", (K, E), device).bool()
            success = now if success is None else success | now
        alive = alive & ~ended(terminated, truncated, (K, E), device)
        if device.type == "cpu" and not alive.any():  # on a GPU the question would cost more than the answer saves
            break
    found = record.first(t + 1)
    if device.type != "cpu":
        found = record.first(int(found["mask"].any(2).any(0).sum()))
    check_recorded(found, dist, env.name, env.describe)
    mask = found["mask"]
    found = {name: torch.where(_like(mask, x), x, torch.zeros_like(x)) for name, x in found.items()}
    rest = (dist.log_std.unsqueeze(1),) if isinstance(dist, Gaussian) else ()
    dist = type(dist)(found["heads"], *rest)
    log_prob = distributions.log_prob(dist, found["act"])
    return Rollout(found["obs"], found["act"], found["rew"], mask.float(), log_prob, dist, success, spaces.image,
                   found.get("raw"))  # fmt: skip


def step_kinds(spaces: Spaces, normalised: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What is recorded of every step: the shape behind [K, T, E] and the type."""
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "obs": ((spaces.obs_dim,), torch.float32),
        "act": (spaces.action_shape, torch.int64 if spaces.discrete else torch.float32),
        "rew": ((), torch.float32),
        "mask": ((), torch.bool),
        "heads": ((spaces.act_dim,), torch.float32),
    }
    return kinds | ({"raw": ((spaces.obs_dim,), spaces.raw_dtype)} if normalised else {})


def numbers(value: Any, what: str, shape: tuple[int, int], device: torch.device) -> Tensor:
    """One number for each of K*E environments, as they returned it -> [K, E].

    Raises:
        ValueError: another number of them.
    """
    found = torch.as_tensor(value, device=device)
    if found.numel() != shape[0] * shape[1]:
        raise ValueError(f"a vector environment of {shape[0] * shape[1]} environments returned {what} of shape "
                         f"{tuple(found.shape)}: return one for each")  # fmt: skip
    return found.reshape(shape)


def ended(terminated: Any, truncated: Any, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Whose episodes are over, bool [K, E]."""
    over = numbers(terminated, "terminated", shape, device).bool()
    return over | numbers(truncated, "truncated", shape, device).bool()


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))


def check_recorded(found: dict[str, Tensor], dist: Distribution, name: str, episode: Callable[[int, int], str]) -> None:
    """Raise NotFiniteError for the first number of a recording that is not finite.

    Args:
        found: `heads`, `act`, `rew`, `mask`, and the observations as `raw`, else as `obs` (scaled ones are cut off).
        dist: the policy's distribution in any step; what all steps share is taken from it.
        name: of the environment.
        episode: task and episode -> its name.
    """
    mask = found["mask"]
    obs = torch.where(mask[..., None], found["raw"] if "raw" in found else found["obs"], 0.0)
    rest = (dist.log_std.unsqueeze(1),) if isinstance(dist, Gaussian) else ()
    bad = finite.unusable(type(dist)(found["heads"], *rest), found["act"]) & mask
    fault = finite.first_fault(obs, bad, torch.where(mask, found["rew"], 0.0), mask)
    if fault is not None:
        values = {"observation": obs, "action": found["heads"], "reward": found["rew"]}[fault.what]
        value = values[fault.k, fault.t, fault.e].tolist()
        raise finite.fault_error(fault, value, name, episode(fault.k, fault.e))
