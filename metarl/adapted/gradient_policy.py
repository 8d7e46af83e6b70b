"""AdaptedPolicy: the result of adaptation, with stable-baselines3's `predict`."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from metarl import checkpoint
from metarl.adapted.observations import batch_of, check_actions, check_parts
from metarl.arguments import file_path, yes_or_no
from metarl.checkpoint import CheckpointError, check_values, own_memory, reading
from metarl.formulas import distributions
from metarl.params import Params, expand
from metarl.policies import normalize
from metarl.policies.base import Policy
from metarl.policies.kinds import described_policy
from metarl.policies.module import ModulePolicy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces, spaces_from_json, spaces_to_json
from metarl.printing import curve_text
from metarl.torch_defaults import torch_defaults

_STATS = "obs_stats/"


class AdaptedPolicy:
    """A policy for one environment, with stable-baselines3's `predict`."""

    @torch_defaults
    def __init__(
        self,
        policy: Policy,
        params: Params,
        returns: np.ndarray | None = None,
        seed: int = 0,
        success_rates: np.ndarray | None = None,
        obs_stats: ObsStats | None = None,
    ):
        check_parts(type(self).__name__, policy, params)
        self.policy, self.params = policy, {name: own_memory(value) for name, value in params.items()}
        self.returns = returns
        """Mean return before and after each inner step of the adaptation."""
        self.success_rates = success_rates
        """Fraction of episodes with a success, likewise; None if the environment does not report success."""
        self.obs_stats: ObsStats = obs_stats or {}
        """Statistics used to normalise observations; empty for none (see `metarl.policies.normalize`)."""
        self._prepare(torch.Generator().manual_seed(seed))

    def _prepare(self, generator: torch.Generator) -> None:
        """What follows from the rest, and holds functions that cannot be pickled."""
        self._decode, self._scale = self.policy.spaces.decoder(), normalize.scaler(self.obs_stats)
        self._stacked = expand(self.params, 1)
        self._generator = generator

    def __repr__(self) -> str:
        return policy_text(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the data, and where the generator of actions stands."""
        return without_functions(self)

    @torch_defaults
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(with_functions(self, state))

    @torch_defaults
    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions for one observation or a batch of them, and `state` unchanged.

        Args:
            state: the value returned by `predict` or `observe`; like `episode_start`, only used by policies with
                memory.

        Raises:
            ValueError: an observation is not in the policy's space (see `metarl.adapted.observations`).
        """
        deterministic = yes_or_no("deterministic", deterministic)
        obs, single = batch_of(self.policy.spaces, observation)
        spaces = self.policy.spaces
        kind = spaces.raw_dtype if self.obs_stats else torch.float32
        x = self._scale(spaces.encode(obs, dtype=kind))[None]
        dist = self.policy.distribution(self._stacked, x)
        if deterministic:
            action = distributions.mode(dist)[0]
        elif isinstance(dist, distributions.Gaussian):
            action = distributions.sample(dist, torch.randn(dist.mean.shape, generator=self._generator))[0]
        else:
            action = distributions.sample(
                dist, torch.rand(*x.shape[:-1], self.policy.spaces.noise_dim, generator=self._generator)
            )[0]
        check_actions(list(dist), action, obs)
        out = self._decode(action).numpy().astype(self.policy.spaces.action.dtype)
        return (out[0] if single else out), state

    def observe(self, state: Any, reward: Any) -> Any:
        """`state` unchanged: unlike policies with a memory, this one does not use rewards after adaptation."""
        return state

    def fresh(self) -> "AdaptedPolicy":
        """This policy itself, since it has no memory to reset."""
        return self

    @torch_defaults
    def save(self, path: Path | str) -> Path:
        """Write the policy to one file (`.safetensors` is added if missing). -> its path."""
        path = with_suffix(path)
        kind = {"type": self.policy.kind, **self.policy.describe()}
        returns = None if self.returns is None else [float(x) for x in self.returns]
        meta = {"kind": "policy", "policy": kind, "spaces": spaces_to_json(self.policy.spaces), "returns": returns}
        stats = {_STATS + name: value for name, value in self.obs_stats.items()}
        checkpoint.save(path, self.params | stats, meta)
        return path

    @classmethod
    @torch_defaults
    def load(cls, path: Path | str, module: nn.Module | None = None, *, trust: bool = False) -> "AdaptedPolicy":
        """The policy that `save` wrote to `path`; `module` is needed if it was one of the user's own. `trust` imports
        the package that announces its kind (see `metarl.policies.kinds`).

        Raises:
            CheckpointError: a damaged file, or no policy.
        """
        path = with_suffix(path)
        tensors, meta = checkpoint.load(path)
        if meta.get("kind") != "policy":
            other = "RecurrentPolicy" if meta.get("kind") == "recurrent policy" else "MetaLearner"
            raise CheckpointError(f"{path} holds a {meta.get('kind')}, not a policy: use {other}.load")
        with reading(path, tensors):
            return cls(*_parts(path, tensors, meta, module, yes_or_no("trust", trust)))


def policy_text(policy: Any) -> str:
    """What `print` shows of an adapted policy: its network, its spaces, and what its adaptation earned."""
    own, numbers = policy.policy, sum(value.numel() for value in policy.params.values())
    earned = "" if policy.returns is None else f"; returns in its adaptation: {curve_text(policy.returns)}"
    return (f"{type(policy).__name__}({type(own).__name__} of {numbers:,} parameters, from {own.spaces.observation} to "
            f"{own.spaces.action}{earned})")  # fmt: skip


def without_functions(policy: Any) -> dict[str, Any]:
    """The public attributes of an adapted policy, and its generator's state."""
    public = {name: value for name, value in vars(policy).items() if not name.startswith("_")}
    return public | {"_generator": policy._generator.get_state()}


def with_functions(policy: Any, state: dict[str, Any]) -> torch.Generator:
    """Give `policy` the attributes that `without_functions` took. -> its generator, where it stood."""
    vars(policy).update({name: value for name, value in state.items() if not name.startswith("_")})
    generator = torch.Generator()
    generator.set_state(state["_generator"])
    return generator


def _parts(path: Path, tensors: Params, meta: dict[str, Any], module: nn.Module | None, trust: bool) -> tuple[Any, ...]:
    """The arguments of `AdaptedPolicy`, from a file."""
    spaces, saved = spaces_from_json(meta["spaces"]), meta["policy"]
    described = {name: value for name, value in saved.items() if name != "type"}
    policy: Policy
    if saved["type"] != ModulePolicy.__name__:
        policy = cast(Policy, described_policy(saved["type"], spaces, described, trust))
    elif module is None:
        raise CheckpointError(f"{path} holds the parameters of a module of your own: pass it as module=")
    else:
        policy = ModulePolicy(spaces, copy.deepcopy(module), saved["init_std"], saved["min_std"])
    stats = {name.removeprefix(_STATS): x for name, x in tensors.items() if name.startswith(_STATS)}
    tensors = {name: x for name, x in tensors.items() if not name.startswith(_STATS)}
    expected = policy.init(torch.Generator())
    if {n: x.shape for n, x in expected.items()} != {n: x.shape for n, x in tensors.items()}:
        raise CheckpointError(f"{path} holds the parameters {sorted(tensors)}, the policy has {sorted(expected)}")
    check_values(tensors, expected)
    return policy, {name: tensors[name] for name in expected}, read_returns(meta), 0, None, read_stats(stats, spaces)


def read_stats(stats: ObsStats, spaces: Spaces) -> ObsStats:
    """Statistics of observations from a file. Raises CheckpointError where they are not those of the spaces."""
    expected = normalize.start(spaces, "cpu") if stats else {}
    if {n: x.shape for n, x in stats.items()} != {n: x.shape for n, x in expected.items()}:
        raise CheckpointError(f"it holds the statistics {sorted(stats)}, which are not those of its observations")
    check_values(stats, expected)
    return stats


def read_returns(meta: Mapping[str, Any]) -> np.ndarray | None:
    """The returns from a file's header."""
    return None if meta["returns"] is None else np.array([float(x) for x in meta["returns"]])


def with_suffix(path: Path | str) -> Path:
    """`path` with the suffix that policies are saved with."""
    path = file_path("path", path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
