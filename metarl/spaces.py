"""Between Gymnasium's spaces and the policy's vectors.

A policy sees observations as float vectors [..., O] and acts in its own units: for a bounded Box they are scaled so
that [-1, 1] is the range of every action dimension. The same initial exploration and inner step size then suit an
environment whose actions reach to 0.1 and one whose actions reach to 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from metarl.distributions import Categorical, Distribution, Gaussian


@dataclass(frozen=True)
class Spaces:
    """How one family's observations and actions are translated."""

    observation: Box | Discrete
    action: Box | Discrete

    @property
    def obs_dim(self) -> int:
        """O: the length of an observation vector."""
        space = self.observation
        return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape))

    @property
    def act_dim(self) -> int:
        """A: action dimensions, or the number of choices."""
        return int(self.action.n) if isinstance(self.action, Discrete) else int(np.prod(self.action.shape))

    @property
    def discrete(self) -> bool:
        """Whether actions are choices (a categorical policy) or vectors (a Gaussian one)."""
        return isinstance(self.action, Discrete)

    def encode(self, obs: Any, device: torch.device | str = "cpu") -> Tensor:
        """Raw observations of N environments -> float32 [N, O]; a Discrete one becomes a one-hot vector."""
        x = torch.as_tensor(obs, device=device)
        if isinstance(self.observation, Discrete):
            index = x.reshape(-1).long() - int(self.observation.start)
            return torch.nn.functional.one_hot(index, self.obs_dim).float()
        return x.reshape(x.shape[0], self.obs_dim).float()

    def decoder(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """The function from the policy's actions, [N] or [N, A] on `device`, to what the environments take."""
        space = self.action
        if isinstance(space, Discrete):
            start = int(space.start)
            return lambda action: action + start if start else action
        centre, scale, low, high = (x.to(device) for x in self._bounds())
        return lambda action: torch.clamp(centre + scale * action, low, high).reshape(-1, *space.shape)

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """centre, scale, low, high, each [A]; centre 0 and scale 1 in dimensions that are not bounded on both sides."""
        assert isinstance(self.action, Box)
        low, high = (torch.from_numpy(x) for x in _inner_float32(self.action))
        bounded = torch.isfinite(low) & torch.isfinite(high)
        centre = torch.where(bounded, (low + high) / 2, 0.0).nan_to_num()
        scale = torch.where(bounded, (high - low) / 2, 1.0)
        return centre, scale, low, high


def _inner_float32(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds in float32, rounded inwards: what is clipped to them lies inside a float64 Box too."""
    low, high = (x.reshape(-1).astype(np.float32) for x in (box.low, box.high))
    low = np.where(low < box.low.reshape(-1), np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > box.high.reshape(-1), np.nextafter(high, np.float32(-np.inf)), high)


def spaces_of(source: Any) -> Spaces:
    """The translation for a family or environment.

    Raises:
        ValueError: a space that no policy here supports.
    """
    name = getattr(source, "id", None) or type(source).__name__
    observation, action = source.observation_space, source.action_space
    if not isinstance(observation, Box | Discrete):
        raise ValueError(
            f"{name} has the observation space {observation}; supported are Box and Discrete: flatten it "
            "with gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action, Box | Discrete):
        raise ValueError(f"{name} has the action space {action}; supported are Box and Discrete")
    if isinstance(action, Box) and not np.issubdtype(action.dtype, np.floating):
        raise ValueError(f"{name} has the action space {action}; a Box of actions must hold floats")
    return Spaces(observation, action)


def check_same_spaces(name: str, spaces: Spaces, env: Any) -> None:
    """Raise ValueError unless `env` has the observation and action space that a policy was made for."""
    for what, ours, theirs in (
        ("observation", spaces.observation, env.observation_space),
        ("action", spaces.action, env.action_space),
    ):
        same_kind = type(ours) is type(theirs) and ours.shape == theirs.shape
        same = same_kind and (
            _same_choices(ours, theirs) if isinstance(ours, Discrete) else _same_bounds(ours, theirs, what)
        )
        if not same:
            raise ValueError(f"the policy was made for {name} with {what} space {ours}, this environment has {theirs}")


def _same_choices(ours: Discrete, theirs: gym.Space) -> bool:
    assert isinstance(theirs, Discrete)
    return bool(ours.n == theirs.n and ours.start == theirs.start)


def _same_bounds(ours: Box, theirs: gym.Space, what: str) -> bool:
    # Actions are scaled by their bounds; observations are not, so theirs may differ.
    assert isinstance(theirs, Box)
    return what == "observation" or (np.allclose(ours.low, theirs.low) and np.allclose(ours.high, theirs.high))


def distribution_of(output: Tensor, log_std: Tensor | None) -> Distribution:
    """A network's output as a distribution: Gaussian where there is a `log_std` [K, A], else categorical."""
    if log_std is None:
        return Categorical(output)
    return Gaussian(output, log_std.reshape(log_std.shape[0], *[1] * (output.dim() - 2), log_std.shape[-1]))


def spaces_to_json(spaces: Spaces) -> dict[str, Any]:
    """As JSON-able data; infinite bounds become strings, which JSON has no numbers for."""
    return {"observation": _space_to_json(spaces.observation), "action": _space_to_json(spaces.action)}


def spaces_from_json(data: dict[str, Any]) -> Spaces:
    """The inverse of `spaces_to_json`."""
    return Spaces(_space_from_json(data["observation"]), _space_from_json(data["action"]))


def _space_to_json(space: Box | Discrete) -> dict[str, Any]:
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    bounds = {name: [str(x) for x in getattr(space, name).reshape(-1).tolist()] for name in ("low", "high")}
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}


def _space_from_json(data: dict[str, Any]) -> Box | Discrete:
    if data["type"] == "Discrete":
        return Discrete(data["n"], start=data["start"])
    dtype = np.dtype(data["dtype"])
    low, high = (
        np.array([float(x) for x in data[name]]).astype(dtype).reshape(data["shape"]) for name in ("low", "high")
    )
    return Box(low, high, dtype=dtype.type)
