"""The acting loop: episodes in K*E environments at once, for policies with and without a memory.

An `Actor` is the loop's view of a policy with its parameters: `start` before the first episode, `act` in every step,
`observe` after it. The loop encodes, normalises, draws, decodes, records and checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution, Gaussian, sample
from metarl.parallel import threads_for
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.base import Policy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces
from metarl.rollout import finite
from metarl.rollout.recording import ActionNoise, Recording
from metarl.tasks import Tasks
from metarl.vector.contract import TaskVectorEnv
from metarl.vector.success import of_steps


class Acted(NamedTuple):
    """The output of a policy for an observation."""

    dist: Distribution  # of actions, [K, E, A] (log_std: [K, 1, A])
    record: dict[str, Tensor]  # what is recorded of the step, [K, E, ...] by name
    state: Any  # what `observe` needs beside the action and its reward


class Actor(Protocol):
    """A policy with its parameters, for K*E environments."""

    @property
    def spaces(self) -> Spaces:
        """Its observation and action spaces."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether its memory lasts from one episode to the next, so that several episodes make one trial."""
        ...

    @property
    def kinds(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """What `act` records: name -> the shape after [K, T, E] and the type. One entry is `x`, the network's input,
        whose first O entries are the observation."""
        ...

    def start(self, n_tasks: int, episodes: int) -> Any:
        """The memory before the first episode."""
        ...

    def act(self, memory: Any, obs: Tensor, first: bool) -> Acted:
        """Act on obs [K, E, O], normalised if enabled; `first` says whether it is the first step of the episodes.

        The environment may overwrite `obs` in the next step, so `Acted.state` must not refer to it.
        """
        ...

    def observe(self, memory: Any, acted: Acted, action: Tensor, reward: Tensor, alive: Tensor) -> Any:
        """The memory after the step. action [K, E, ...] in policy units, reward [K, E], alive [K, E] bool: which
        episodes took the step; the memory of the others is unchanged."""
        ...


@dataclass(frozen=True)
class Memoryless:
    """A policy that acts on the current observation alone, with parameters [K, ...] on the environments' device."""

    policy: Policy
    params: Params
    remembers: bool = False

    @property
    def spaces(self) -> Spaces:
        return self.policy.spaces

    @property
    def kinds(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"x": ((self.policy.spaces.obs_dim,), torch.float32)}

    def start(self, n_tasks: int, episodes: int) -> None:
        return None

    def act(self, memory: None, obs: Tensor, first: bool) -> Acted:
        return Acted(self.policy.distribution(self.params, obs), {"x": obs}, None)

    def observe(self, memory: None, acted: Acted, action: Tensor, reward: Tensor, alive: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Played:
    """N episodes of K*E environments, concatenated in time: L = N T. Zero where `mask` is false."""

    values: dict[str, Tensor]  # [K, L, E, ...]: act, rew, mask, terminated, truncated, what the actor records, raw
    dist: Distribution  # [K, L, E, A] (log_std: [K, 1, 1, A])
    last_obs: Tensor  # [K, N, E, O]: what each episode's last step led to, normalised if at all
    last_raw: Tensor | None  # the same before normalisation, where there is any
    success: Tensor | None  # [K, N, E] bool; None where no environment reports any
    memory: Any  # after the last episode


def play(
    env: TaskVectorEnv, tasks: Tasks, horizon: int, actor: Actor, seeds: Tensor, obs_stats: ObsStats | None = None
) -> Played:
    """Let `actor` act for N episodes of at most `horizon` steps in each of K*E environments.

    Args:
        seeds: int64 [N, K, E]; an episode's environment and action noise are both determined by its seed.
        obs_stats: statistics used to normalise observations; empty for none (see `metarl.policies.normalize`).

    Raises:
        NotFiniteError: the environment or the policy returned a number that is not finite (names task, episode and
            step).
    """
    with torch.no_grad(), threads_for(seeds[0].numel(), env.device):
        loop = _Loop(env, tasks, horizon, actor, seeds.to(env.device), obs_stats)
        return loop.joined([loop.episode(n) for n in range(len(seeds))])


class _Episode(NamedTuple):
    values: dict[str, Tensor]  # [K, T, E, ...]
    last: Tensor  # [K, E, O], before normalisation
    dist: Distribution  # of one step, [K, E, A]


class _Loop:
    """What is carried from step to step: the actor's memory, and which episodes have had a success."""

    def __init__(
        self,
        env: TaskVectorEnv,
        tasks: Tasks,
        horizon: int,
        actor: Actor,
        seeds: Tensor,
        obs_stats: ObsStats | None,
    ):
        self.env, self.tasks, self.horizon, self.actor, self.seeds = env, tasks, horizon, actor, seeds
        self.device, self.spaces, self.shape = env.device, actor.spaces, (seeds.shape[1], seeds.shape[2])
        self.decode, self.normalised = self.spaces.decoder(self.device), bool(obs_stats)
        self.scale = normalize.scaler(obs_stats, self.device)
        self.noise = ActionNoise(self.spaces, seeds, horizon)
        self.kinds = step_kinds(self.spaces, self.normalised) | actor.kinds
        self.memory = actor.start(*self.shape)
        self.success: Tensor | None = None

    def episode(self, n: int) -> _Episode:
        """Play episode n in every environment."""
        record = Recording(*self.shape, self.horizon, self.kinds, self.device)
        alive = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        options: dict[str, Any] = {} if n else {"tasks": self.tasks}
        raw, _ = self.env.reset(seed=self.seeds[n].reshape(-1), options=options)
        for t in range(self.horizon):
            obs = self._encoded(raw)
            if self.normalised:
                record.put(t, raw=obs)
                obs = self.scale(obs)
            acted = self.actor.act(self.memory, obs, t == 0)
            action = sample(acted.dist, self.noise.at(n, t))
            # Before the step: an environment may write its next observations into the same memory.
            record.put(t, act=action, heads=acted.dist[0], mask=alive, **acted.record)
            if self.device.type == "cpu" and finite.any_unusable(acted.dist, action, alive):  # a GPU waits for the end
                self._check(n, record.first(t + 1), acted.dist)
            command = self.decode(action.flatten(0, 1))
            raw, reward, *flags, infos = self.env.step(command if self.env.tensors else command.numpy())
            reward = self._each(reward, "reward")
            terminated = alive & self._each(flags[0], "terminated").bool()
            truncated = alive & ~terminated & self._each(flags[1], "truncated").bool()
            record.put(t, rew=reward, terminated=terminated, truncated=truncated)
            self.memory = self.actor.observe(self.memory, acted, action, reward, alive)
            self._note_success(n, alive, infos)
            alive = alive & ~(terminated | truncated)
            if self.device.type == "cpu" and not alive.any():  # to ask a GPU would cost more than the answer saves
                break
        record.put(t, truncated=truncated | alive)  # by the horizon, whatever the environment says
        lengths = record.whole("mask").sum(1)  # [K, E]
        last = _at(lengths, record.whole("raw" if self.normalised else "x"), t + 1, self._encoded(raw))
        values = record.first(t + 1 if self.device.type == "cpu" else int(lengths.max()))
        self._check(n, values, acted.dist)
        return _Episode(values, last, acted.dist)

    def joined(self, parts: Sequence[_Episode]) -> Played:
        """The episodes, concatenated in time."""
        T = max(part.values["mask"].shape[1] for part in parts)
        values: dict[str, Tensor] = {}
        for name in self.kinds:
            padded = [longer(part.values[name], T) for part in parts]
            values[name] = padded[0] if len(padded) == 1 else torch.cat(padded, 1)
        mask = values["mask"]
        for name, x in values.items():
            if x.dtype != torch.bool:  # flags are false there
                values[name] = torch.where(_like(mask, x), x, torch.zeros_like(x))
        last = torch.stack([part.last for part in parts], 1)
        dist = _spread(parts[-1].dist, values.pop("heads"))
        seen = self.scale(last) if self.normalised else last
        return Played(values, dist, seen, last if self.normalised else None, self.success, self.memory)

    def _encoded(self, raw: Any) -> Tensor:
        kind = self.spaces.raw_dtype if self.normalised else torch.float32
        return self.spaces.encode(raw, self.device, kind).reshape(*self.shape, -1)

    def _note_success(self, n: int, alive: Tensor, infos: dict[str, Any]) -> None:
        K, E = self.shape
        if (flags := of_steps(infos, K * E)) is not None:
            if self.success is None:
                self.success = torch.zeros(K, len(self.seeds), E, dtype=torch.bool, device=self.device)
            self.success[:, n] |= alive & self._each(flags, "success").bool()

    def _each(self, value: Any, what: str) -> Tensor:
        """One number for each of K*E environments, as they returned it -> [K, E]."""
        K, E = self.shape
        found = torch.as_tensor(value, device=self.device)
        if found.numel() != K * E:
            raise ValueError(f"a vector environment of {K * E} environments returned {what} of shape "
                             f"{tuple(found.shape)}: return one for each")  # fmt: skip
        return found.reshape(K, E)

    def _check(self, n: int, values: dict[str, Tensor], dist: Distribution) -> None:
        """Raise NotFiniteError for the first number of episode n that is not finite."""
        mask = values["mask"]
        # Scaled observations are cut off: an infinite one shows only before.
        obs = values["raw"] if self.normalised else values["x"][..., : self.spaces.obs_dim]
        obs = torch.where(mask[..., None], obs, 0.0)
        bad = finite.unusable(_spread(dist, values["heads"]), values["act"]) & mask
        fault = finite.first_fault(obs, bad, torch.where(mask, values["rew"], 0.0), mask)
        if fault is not None:
            whose = {"observation": obs, "action": values["heads"], "reward": values["rew"]}[fault.what]
            where = self.env.describe(fault.k, fault.e, n if self.actor.remembers else None)
            raise finite.fault_error(fault, whose[fault.k, fault.t, fault.e].tolist(), self.env.name, where)


def step_kinds(spaces: Spaces, normalised: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What the loop records in every step: the shape after [K, T, E] and the type."""
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "act": (spaces.action_shape, torch.int64 if spaces.discrete else torch.float32),
        "rew": ((), torch.float32),
        "mask": ((), torch.bool),
        "terminated": ((), torch.bool),
        "truncated": ((), torch.bool),
        "heads": ((spaces.act_dim,), torch.float32),
    }
    return kinds | ({"raw": ((spaces.obs_dim,), spaces.raw_dtype)} if normalised else {})


def longer(x: Tensor, steps: int) -> Tensor:
    """x [K, T, E, ...] padded with zeros to [K, steps, E, ...]."""
    if x.shape[1] == steps:
        return x
    return torch.cat([x, x.new_zeros(len(x), steps - x.shape[1], *x.shape[2:])], 1)


def _at(step: Tensor, recorded: Tensor, steps: int, after: Tensor) -> Tensor:
    """The observation at `step` [K, E], taken from those of `steps` steps, [K, T, E, O or more], and from `after` [K,
    E, O], which followed them."""
    O = after.shape[-1]
    index = step.clamp(max=recorded.shape[1] - 1)[:, None, :, None].expand(-1, 1, -1, O)
    return torch.where((step < steps)[..., None], recorded[..., :O].gather(1, index)[:, 0], after)


def _spread(dist: Distribution, heads: Tensor) -> Distribution:
    """The distribution of all steps, [K, T, E, A], from their heads and the parts that are the same in every step."""
    return type(dist)(heads, *((dist.log_std.unsqueeze(1),) if isinstance(dist, Gaussian) else ()))


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
