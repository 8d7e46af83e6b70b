"""Between Gymnasium's spaces and the policy's vectors.

A policy sees observations as float vectors [..., O] and acts in its own units: for a bounded Box they are scaled so
that [-1, 1] is the range of every action dimension. The same initial exploration and inner step size then suit an
environment whose actions reach to 0.1 and one whose actions reach to 2.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from metarl.formulas.distributions import Categorical, Distribution, Gaussian, multi_categorical

HUGE = 1e18
"""Bounds of at least this magnitude are treated as missing, see `has_range`."""
SUPPORTED = Box, Discrete, MultiDiscrete, MultiBinary
Space = Box | Discrete | MultiDiscrete | MultiBinary


@dataclass(frozen=True)
class Image:
    """Images of `height` x `width` pixels, flattened as they came: [height, width, channels], or channels first."""

    height: int
    width: int
    channels: int
    channels_first: bool = False

    def grid(self, x: Tensor) -> Tensor:
        """Flat images [..., O] -> [..., channels, height, width]."""
        if self.channels_first:
            return x.unflatten(-1, (self.channels, self.height, self.width))
        return x.unflatten(-1, (self.height, self.width, self.channels)).movedim(-1, -3)


@dataclass(frozen=True)
class Spaces:
    """The conversion of one family's observations and actions."""

    observation: Space
    action: Space

    @functools.cached_property
    def image(self) -> Image | None:
        """The shape of an image observation: a Box of three axes and uint8 in [0, 255]; None for any other.

        The shorter one of the first and the last axis has the channels; the last if they are equal.
        """
        space = self.observation
        if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) != 3:
            return None
        if space.low.any() or (space.high != 255).any():
            return None
        first = space.shape[0] < space.shape[2]
        channels, height, width = space.shape if first else (space.shape[2], *space.shape[:2])
        return Image(height, width, channels, first)

    @functools.cached_property
    def obs_dim(self) -> int:
        """O: the length of an observation vector."""
        if isinstance(self.observation, Discrete | MultiDiscrete):
            return sum(_choices(self.observation))
        return int(np.prod(self.observation.shape))

    @functools.cached_property
    def act_dim(self) -> int:
        """A: action dimensions, or the number of logits: one for every choice."""
        return int(np.prod(self.action.shape)) if isinstance(self.action, Box) else sum(_choices(self.action))

    @functools.cached_property
    def discrete(self) -> bool:
        """Whether actions are choices (a categorical policy) or vectors (a Gaussian one)."""
        return not isinstance(self.action, Box)

    @functools.cached_property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one action of the policy: (A,) for a Box, () for one choice, (D,) for D choices."""
        if isinstance(self.action, Discrete):
            return ()
        return (self.act_dim,) if isinstance(self.action, Box) else (len(_choices(self.action)),)

    @functools.cached_property
    def noise_dim(self) -> int:
        """How many random numbers one action takes: uniform ones for choices, normal ones for a Box."""
        return int(np.prod(self.action_shape))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...] | None:
        """The number of values of each of the D choices of a MultiDiscrete or MultiBinary action; None for others."""
        return _choices(self.action) if isinstance(self.action, MultiDiscrete | MultiBinary) else None

    @functools.cached_property
    def raw_dtype(self) -> torch.dtype:
        """The type that holds raw observations without loss: float64 for boxes of float64 or of long integers."""
        return torch.float64 if wide(self.observation) else torch.float32

    def encode(self, obs: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw observations of N environments -> [N, O], float32 unless `dtype` (`raw_dtype`, say) is another.

        A Discrete one becomes a one-hot vector, a MultiDiscrete one several, one after the other; images are scaled
        to [0, 1] and flattened, other boxes flattened. An array is copied: an environment may change it afterwards.

        Raises:
            ValueError: observations of another shape.
        """
        space, x = self.observation, _tensor(obs, device)
        if isinstance(space, Discrete | MultiDiscrete):
            sizes = _choices(space)
            index = x.reshape(-1, len(sizes)).long() - torch.as_tensor(lowest(space), device=device)
            hot = [torch.nn.functional.one_hot(index[:, d], n) for d, n in enumerate(sizes)]
            return torch.cat(hot, -1).to(dtype)
        if tuple(x.shape[1:]) != space.shape:
            raise ValueError(f"observations [N, ...] of the shape {tuple(x.shape)} are none of {space}, whose shape is "
                             f"{space.shape}")  # fmt: skip
        x = x.reshape(x.shape[0], self.obs_dim).to(dtype)
        return x / 255 if self.image is not None else x

    def decoder(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """The function from the policy's actions, [N], [N, A] or [N, D] on `device`, to what the environments take."""
        space = self.action
        if isinstance(space, Discrete):
            start = int(space.start)
            return lambda action: action + start if start else action
        if not isinstance(space, Box):
            offset, kind = (
                torch.as_tensor(lowest(space), device=device),
                torch.from_numpy(np.empty(0, space.dtype)).dtype,
            )
            return lambda action: (action + offset).to(kind).reshape(-1, *space.shape)
        centre, scale, low, high = (x.to(device) for x in self._bounds())
        return lambda action: torch.clamp(centre + scale * action, low, high).reshape(-1, *space.shape)

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """centre, scale, low, high, each [A]; centre 0 and scale 1 in dimensions that are not bounded on both sides.

        A bound close to the largest representable number is treated as missing.
        """
        assert isinstance(self.action, Box)
        low, high = (torch.from_numpy(x) for x in _inner_float32(self.action))
        bounded = torch.from_numpy(has_range(self.action).reshape(-1))
        centre = torch.where(bounded, (low + high) / 2, 0.0).nan_to_num()
        scale = torch.where(bounded, (high - low) / 2, 1.0)
        return centre, scale, low, high


def wide(space: Any) -> bool:
    """Whether float32 cannot hold every value of a space."""
    return isinstance(space, Box) and space.dtype in (np.float64, np.int32, np.int64)


def has_range(box: Box) -> np.ndarray:
    """Which entries of a Box are bounded on both sides, bool of its shape.

    `np.finfo(dtype).max` and the like do not count as bounds, nor does anything whose square overflows float32.
    """
    most = float(np.finfo(np.float16).max) if box.dtype == np.float16 else HUGE
    return (box.low.astype(np.float64) > -most) & (box.high.astype(np.float64) < most)


def without_huge_bounds(space: Any) -> Any:
    """A copy of `space` to draw actions from, with missing bounds (see `has_range`) set to infinity."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating) or has_range(space).all():
        return copy.deepcopy(space)
    low = np.where(space.low > -HUGE, space.low, -np.inf)
    return Box(low, np.where(space.high < HUGE, space.high, np.inf), dtype=space.dtype.type)


def _tensor(obs: Any, device: torch.device | str) -> Tensor:
    """A tensor unchanged, or a copy of any array: flipped, read-only, of either byte order, of any numeric type."""
    if isinstance(obs, Tensor):
        return obs.to(device)
    array = np.asarray(obs)
    kind = array.dtype.newbyteorder("=")
    if kind.kind == "u" and kind.itemsize > 1:  # torch has few operations on these
        kind = np.dtype(np.int64)
    elif kind.itemsize > 8:
        kind = np.dtype(np.float64)
    return torch.from_numpy(np.array(array, kind, order="C")).to(device)


def _choices(space: Space) -> tuple[int, ...]:
    """The number of values of each of a space's independent choices."""
    if isinstance(space, Discrete):
        return (int(space.n),)
    if isinstance(space, MultiDiscrete):
        return tuple(int(n) for n in space.nvec.reshape(-1))
    return (2,) * int(np.prod(space.shape))


def lowest(space: Space) -> np.ndarray:
    """The lowest value of each choice, int64 [D]."""
    start = getattr(space, "start", np.zeros(space.shape or ()))
    return np.asarray(start, np.int64).reshape(-1)


def _inner_float32(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds in float32, rounded inwards, so that values clipped to them also lie inside a float64 Box."""
    with np.errstate(over="ignore"):  # float64's largest number
        low, high = (x.reshape(-1).astype(np.float32) for x in (box.low, box.high))
    low = np.where(low < box.low.reshape(-1), np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > box.high.reshape(-1), np.nextafter(high, np.float32(-np.inf)), high)


_SUPPORTED_NAMES = "Box, Discrete, MultiDiscrete and MultiBinary"


def spaces_of(source: Any) -> Spaces:
    """The conversion for a family or environment.

    Raises:
        ValueError: no policy here supports one of the spaces.
    """
    name = getattr(source, "id", None) or type(source).__name__
    observation, action = source.observation_space, source.action_space
    if not isinstance(observation, SUPPORTED):
        raise ValueError(f"{name} has the observation space {observation}; supported are {_SUPPORTED_NAMES}: "
                         f"{_observation_remedy(observation)}")  # fmt: skip
    if not isinstance(action, SUPPORTED):
        raise ValueError(f"{name} has the action space {action}; supported are {_SUPPORTED_NAMES}: give it "
                         "one of these in a gymnasium.ActionWrapper, whose action(a) makes of it what the environment "
                         "takes (gymnasium.spaces.unflatten does so for a Dict or Tuple of Boxes)")  # fmt: skip
    if isinstance(action, Box) and not np.issubdtype(action.dtype, np.floating):
        raise ValueError(f"{name} has the action space {action}; a Box of actions must hold floats")
    for what, space in (("observation", observation), ("action", action)):
        if 0 in (space.shape or ()):
            raise ValueError(f"{name} has the {what} space {space}, which holds no number, and a policy needs one. In "
                             f"a wrapper, make the {what} space one of shape (1,), a constant if need be")  # fmt: skip
    return Spaces(observation, action)


def _observation_remedy(space: Any) -> str:
    try:
        flat = bool(space.is_np_flattenable)
    except (AttributeError, NotImplementedError):  # a package's own kind of space
        flat = False
    if flat:
        return "flatten it with gymnasium.wrappers.FlattenObservation"
    return (f"a {type(space).__name__} has no fixed number of entries, so nothing flattens it; make a Box of it "
            "in a gymnasium.ObservationWrapper (from_gymnasium takes it in wrappers=)")  # fmt: skip


def check_same_spaces(name: str, spaces: Spaces, env: Any) -> None:
    """Raise ValueError unless `env` has the observation and action space that a policy was made for.

    Bounds of actions must agree, since actions are scaled by them; those of observations only in whether it is an
    image, since nothing else is scaled.
    """
    for what, ours, theirs in (
        ("observation", spaces.observation, env.observation_space),
        ("action", spaces.action, env.action_space),
    ):
        if not (type(ours) is type(theirs) and ours.shape == theirs.shape and _same_values(ours, theirs, what)):
            raise ValueError(f"the policy was made for {name} with {what} space {ours}, this environment has {theirs}")


def _same_values(ours: Space, theirs: Any, what: str) -> bool:
    if not isinstance(ours, Box):
        return _choices(ours) == _choices(theirs) and np.array_equal(lowest(ours), lowest(theirs))
    if what == "observation":
        return Spaces(ours, ours).image == Spaces(theirs, theirs).image
    ends = ((np.where(np.abs(x) < HUGE, x, np.sign(x) * np.inf) for x in (a, b))
            for a, b in ((ours.low, theirs.low), (ours.high, theirs.high)))  # fmt: skip
    return all(bool(np.allclose(a, b)) for a, b in ends)


def distribution_of(output: Tensor, log_std: Tensor | None, sizes: tuple[int, ...] | None = None) -> Distribution:
    """A network's output [K, ..., A] as a distribution.

    Gaussian if there is a `log_std` [K, A]; otherwise categorical, over several choices if there are `sizes`.
    """
    if log_std is None:
        return Categorical(output) if sizes is None else multi_categorical(sizes)(output)
    return Gaussian(output, log_std.reshape(log_std.shape[0], *[1] * (output.dim() - 2), log_std.shape[-1]))


def spaces_to_json(spaces: Spaces) -> dict[str, Any]:
    """As JSON-serialisable data; infinite bounds become strings, since JSON has no infinite numbers."""
    return {"observation": _space_to_json(spaces.observation), "action": _space_to_json(spaces.action)}


def spaces_from_json(data: dict[str, Any]) -> Spaces:
    """The inverse of `spaces_to_json`."""
    return Spaces(_space_from_json(data["observation"]), _space_from_json(data["action"]))


def _space_to_json(space: Space) -> dict[str, Any]:
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        choices = {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
        return {"type": "MultiDiscrete", **choices}
    if isinstance(space, MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    bounds = {name: [str(x) for x in getattr(space, name).reshape(-1).tolist()] for name in ("low", "high")}
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}


def _space_from_json(data: dict[str, Any]) -> Space:
    if data["type"] == "Discrete":
        return Discrete(data["n"], start=data["start"])
    if data["type"] == "MultiDiscrete":
        return MultiDiscrete(np.array(data["nvec"]), dtype=np.dtype(data["dtype"]).type, start=np.array(data["start"]))
    if data["type"] == "MultiBinary":
        shape = data["shape"]
        return MultiBinary(shape[0] if len(shape) == 1 else shape)
    dtype = np.dtype(data["dtype"])
    low, high = (
        np.array([float(x) for x in data[name]]).astype(dtype).reshape(data["shape"]) for name in ("low", "high")
    )
    return Box(low, high, dtype=dtype.type)
