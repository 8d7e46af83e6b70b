"""RecurrentPolicy: a policy with the memory of a trial in one environment, with stable-baselines3's `predict`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl import checkpoint
from metarl.adapted.gradient_policy import (
    policy_text,
    read_returns,
    read_stats,
    with_functions,
    with_suffix,
    without_functions,
)
from metarl.adapted.observations import batch_of, check_actions, check_parts
from metarl.arguments import yes_or_no
from metarl.checkpoint import CheckpointError, check_values, own_memory, reading
from metarl.formulas import distributions
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.gru import GRUPolicy, Memory, action_vector
from metarl.policies.kinds import described_policy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import spaces_from_json, spaces_to_json
from metarl.torch_defaults import torch_defaults

KIND = "recurrent policy"
_STATS, _MEMORY = "obs_stats/", "memory/"

PolicyState = tuple[np.ndarray, ...]
"""The memory (see `policies.gru.Memory`) as far as it is known, with a leading axis n; then hidden state [n, H],
observation [n, O] and action [n, A] of the step taken since, which wait for their reward."""


class RecurrentPolicy:
    """A policy for one environment that starts with the memory left by a trial.

    Rewards are an input of the policy, but stable-baselines3's `predict` does not take them. The memory is therefore
    only updated when the reward is passed to `observe`:

        action, state = policy.predict(obs, state, episode_start)
        obs, reward, terminated, truncated, _ = env.step(action)
        state = policy.observe(state, reward)

    Without `observe` the memory stays as the trial left it: actions then depend only on the current observation and on
    that memory. With it the trial continues as in training, episode after episode, without resetting the memory.
    `episode_start` marks an episode's first step; by default that is the step without a `state`.
    """

    @torch_defaults
    def __init__(
        self,
        policy: GRUPolicy,
        params: Params,
        memory: Memory | None = None,
        returns: np.ndarray | None = None,
        seed: int = 0,
        success_rates: np.ndarray | None = None,
        obs_stats: ObsStats | None = None,
    ):
        check_parts(type(self).__name__, policy, params)
        self.policy, self.params = policy, {name: own_memory(value) for name, value in params.items()}
        self.memory = Memory(*map(own_memory, policy.blank() if memory is None else memory))
        """What it starts from, without leading axes; by default nothing, as at the start of a trial."""
        self.returns = returns
        """Mean return of each episode of the trials that adapted it."""
        self.success_rates = success_rates
        """Share of successes, likewise; None where the environment does not report it."""
        self.obs_stats: ObsStats = obs_stats or {}
        """By which observations are normalised, if at all (see `metarl.policies.normalize`)."""
        self._prepare(torch.Generator().manual_seed(seed))

    def _prepare(self, generator: torch.Generator) -> None:
        """What follows from the rest, and holds functions that cannot be pickled."""
        self._decode, self._scale = self.policy.spaces.decoder(), normalize.scaler(self.obs_stats)
        self._generator = generator

    def __repr__(self) -> str:
        return policy_text(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the data, memory included, and where the generator of actions stands."""
        return without_functions(self)

    @torch_defaults
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(with_functions(self, state))

    @torch_defaults
    def fresh(self) -> "RecurrentPolicy":
        """The same policy at the start of a trial, with nothing in its memory."""
        return RecurrentPolicy(self.policy, self.params, obs_stats=self.obs_stats)

    @torch_defaults
    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: PolicyState | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PolicyState]:
        """Actions for one observation or a batch of n, and the state for `observe` or the next `predict`.

        Args:
            state: what `observe` or `predict` returned; None is the memory that the trial left.
            episode_start: bool or [n] bools.

        Raises:
            ValueError: an observation that is none of the policy's (see `metarl.adapted.observations`), or a state of
                another number of them.
        """
        spaces = self.policy.spaces
        deterministic = yes_or_no("deterministic", deterministic)
        obs, single = batch_of(spaces, observation)
        x = self._scale(spaces.encode(obs, dtype=spaces.raw_dtype if self.obs_stats else torch.float32))
        memory, n = self._memory(state, len(x)), len(x)
        flags = state is None if episode_start is None else episode_start
        first = torch.from_numpy(np.broadcast_to(np.asarray(flags, np.float32), (n,)).copy())
        hidden = self.policy.step(self.params, self.policy.inputs(x, memory, first), memory.hidden)
        dist, _ = self.policy.heads(self.params, hidden)
        action = distributions.mode(dist) if deterministic else distributions.sample(dist, self._noise(n))
        check_actions(list(dist), action, obs)
        new = tuple(value.numpy() for value in (*memory, hidden, x, action_vector(spaces, action)))
        out = self._decode(action).numpy().astype(spaces.action.dtype)
        return (out[0] if single else out), new

    @torch_defaults
    def observe(self, state: PolicyState, reward: Any) -> PolicyState:
        """The state after the step that `predict` took, now that its `reward` (a number, or [n] of them) is known."""
        taken = state[len(Memory._fields) :]
        hidden, obs, action = (torch.from_numpy(value) for value in taken)
        rewards = torch.from_numpy(np.broadcast_to(np.asarray(reward, np.float32), (len(hidden),)).copy())
        return (*(value.numpy() for value in self.policy.remember(hidden, obs, action, rewards)), *taken)

    def _memory(self, state: PolicyState | None, n: int) -> Memory:
        if state is None:
            return Memory(*(value.expand(n, *value.shape).clone() for value in self.memory))
        if len(state) != len(Memory._fields) + 3 or len(state[0]) != n:
            raise ValueError(f"the state belongs to {len(state[0])} observations, got {n}")
        return Memory(*(torch.from_numpy(np.asarray(value, np.float32)) for value in state[: len(Memory._fields)]))

    def _noise(self, n: int) -> Tensor:
        draw = torch.rand if self.policy.spaces.discrete else torch.randn
        return draw(n, self.policy.spaces.noise_dim, generator=self._generator)

    @torch_defaults
    def save(self, path: Path | str) -> Path:
        """Write the policy and its memory to one file (`.safetensors` is added if missing). -> its path."""
        path, own = with_suffix(path), self.policy
        kind = {"type": own.kind, **own.describe()}
        returns = None if self.returns is None else [float(x) for x in self.returns]
        meta = {"kind": KIND, "policy": kind, "spaces": spaces_to_json(own.spaces), "returns": returns}
        stats = {_STATS + name: value for name, value in self.obs_stats.items()}
        memory = {_MEMORY + name: value for name, value in self.memory._asdict().items() if value.numel()}
        checkpoint.save(path, self.params | stats | memory, meta)
        return path

    @classmethod
    @torch_defaults
    def load(cls, path: Path | str, *, trust: bool = False) -> "RecurrentPolicy":
        """The policy that `save` wrote to `path`; `trust` as of `AdaptedPolicy.load`.

        Raises:
            CheckpointError: a damaged file, or no recurrent policy.
        """
        path = with_suffix(path)
        tensors, meta = checkpoint.load(path)
        if meta.get("kind") != KIND:
            raise CheckpointError(f"{path} holds a {meta.get('kind')}, not a {KIND}")
        with reading(path, tensors):
            return cls(*_parts(path, tensors, meta, yes_or_no("trust", trust)))


def _parts(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], trust: bool) -> tuple[Any, ...]:
    """The arguments of `RecurrentPolicy`, from a file."""
    described = {name: value for name, value in meta["policy"].items() if name != "type"}
    kind = meta["policy"].get("type", GRUPolicy.__name__)  # older files do not say it
    policy: Any = described_policy(kind, spaces_from_json(meta["spaces"]), described, trust)
    stats = {name.removeprefix(_STATS): x for name, x in tensors.items() if name.startswith(_STATS)}
    blank: dict[str, Tensor] = policy.blank()._asdict()
    kept = {_MEMORY + name: x for name, x in blank.items() if x.numel()}
    expected = policy.init(torch.Generator()) | kept
    found = {name: x for name, x in tensors.items() if not name.startswith(_STATS)}
    if {n: x.shape for n, x in expected.items()} != {n: x.shape for n, x in found.items()}:
        raise CheckpointError(f"{path} holds the tensors {sorted(found)}, the policy has {sorted(expected)}")
    memory = Memory(**{name: found.get(_MEMORY + name, x) for name, x in blank.items()})
    check_values(found, expected)
    params = {name: found[name] for name in expected if name not in kept}
    return policy, params, memory, read_returns(meta), 0, None, read_stats(stats, policy.spaces)
