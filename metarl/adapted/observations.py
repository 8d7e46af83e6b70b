"""What users pass to `predict`, as an array of the right shape; anything else is refused before the network sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from metarl.policies.spaces import Spaces, lowest


def batch_of(spaces: Spaces, observation: Any) -> tuple[np.ndarray, bool]:
    """One observation, or a batch of them -> the batch [n, ...], and whether it was one.

    Raises:
        ValueError: an observation of another kind, shape or type, one that is not finite, or a choice that the space
            does not have.
    """
    space, shape = spaces.observation, spaces.observation.shape or ()
    obs = _as_array(observation, shape)
    single = obs.shape == shape
    if not single and obs.shape[1:] != shape:
        raise ValueError(f"observations have the shape {shape} or are a batch of such, got {obs.shape}")
    obs = obs[None] if single else obs
    if obs.dtype.kind == "f" and not np.isfinite(obs).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(obs))[0][single:])
        raise ValueError(f"predict takes finite observations, got {obs[~np.isfinite(obs)][0]} at index {where}: "
                         "see what the environment computes")  # fmt: skip
    if isinstance(space, Discrete | MultiDiscrete):
        low = lowest(space).reshape(shape)
        above = low + (space.n if isinstance(space, Discrete) else space.nvec)
        if not ((obs >= low) & (obs < above) & (obs == np.floor(obs))).all():
            raise ValueError(f"predict takes observations of {space}, got {observation!r}")
    return obs, single


def check_parts(kind: str, policy: Any, params: Any) -> None:
    """Raise ValueError for what is no network with its parameters."""
    if not hasattr(policy, "spaces") or not hasattr(policy, "init"):
        hint = "; a learner's are learner.policy and learner.state.params" if hasattr(policy, "state") else ""
        raise ValueError(f"{kind} takes a network such as MLPPolicy first, got {policy!r}{hint}")
    if not isinstance(params, Mapping) or not params or not all(isinstance(x, Tensor) for x in params.values()):
        raise ValueError(f"{kind} takes the parameters of its {type(policy).__name__} as a dict of tensors, "
                         f"got {params!r:.60}")  # fmt: skip


def check_actions(dist: Sequence[Tensor], action: Tensor, obs: np.ndarray) -> None:
    """Raise ValueError where the network's outputs, or the actions drawn from them, are not finite."""
    for what, value in (("outputs", dist[0]), ("actions", action)):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            largest = float(np.abs(obs).max(initial=0.0))
            raise ValueError(f"the policy's {what} are not finite ({value[~value.isfinite()][0].item()}) for "
                             f"observations of up to {largest:g}: look at the scale of the observations, and at the "
                             "parameters")  # fmt: skip


def _as_array(observation: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], Mapping):
        raise ValueError("predict takes the observation alone, got a pair with a dict: env.reset() returns "
                         "(observation, info), so write obs, info = env.reset()")  # fmt: skip
    if isinstance(observation, Mapping) or (isinstance(observation, tuple) and _is_mixed(observation)):
        got = f"a dict with the keys {list(observation)}" if isinstance(observation, Mapping) else "a tuple"
        raise ValueError(f"predict takes vectors of the shape {shape}, got {got}: the family flattens its "
                         "environments' observations; wrap the plain one likewise, env = family.wrap(env) or "
                         "gymnasium.wrappers.FlattenObservation(env)")  # fmt: skip
    if isinstance(observation, Tensor):
        return observation.detach().cpu().numpy()
    try:
        obs = np.asarray(observation)
    except ValueError:  # rows of several lengths
        raise ValueError(f"predict takes observations of the shape {shape}, got {observation!r}, "
                         "which is no array") from None  # fmt: skip
    if obs.dtype.kind not in "biuf":
        raise ValueError(f"predict takes observations of numbers, got {observation!r}")
    return obs


def _is_mixed(observation: tuple[Any, ...]) -> bool:
    """Whether the entries have different shapes, as those of a Tuple space have."""
    return len({np.shape(value) for value in observation}) > 1
