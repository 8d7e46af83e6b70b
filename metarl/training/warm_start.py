"""Starting from the result of another learner, or from a policy."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.arguments import listed
from metarl.policies.cnn import CNNPolicy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.training.contract import Learner
from metarl.warn import warn_caller


def start_from(
    learner: Learner, found: Learner, names: tuple[str, str], activations: tuple[str | None, str | None],
    path: Path | None = None,
) -> None:  # fmt: skip
    """Give `learner`, which has not trained yet, what the learner `found` has learned.

    Args:
        names: of what the learner here and the other are, for messages.
        activations: of their networks, None where they have none: networks of the same shapes may be different
            functions of their parameters.
        path: the file or directory that the other was loaded from.

    Raises:
        ValueError: the two do not fit, or `learner` has trained already.

    Warns:
        UserWarning: the other has learned something of its inner loop that is not learned here.
    """
    if learner.state.iteration:
        raise ValueError(f"this learner has trained for {learner.state.iteration} iterations, which start_from would "
                         "throw away: call it on a new one")  # fmt: skip
    (here, there), (own, its) = names, activations
    try:
        if own is not None and its is not None and own != its:
            raise ValueError(f"its network has activation={its!r}, here it is {own!r}")
        learner.state, unused = taken_over(learner.state, found.state)
    except ValueError as error:
        raise ValueError(f"cannot start from {path or there}: {error}") from None
    if unused:
        warn_caller(unused_warning(unused, there, here))
    shown = None if path is None else path.name if path.is_absolute() else str(path)  # nothing of the machine
    learner._started_from = {"path": shown, "iteration": found.state.iteration, **found.describe()}


def taken_over(own: Any, other: Any) -> tuple[Any, list[str]]:
    """`own`, the state before training, with what the learner with the state `other` has learned.

    Returns:
        The state, which behaves as `other` does (where its inner loop has more steps, as `other` does in further
        steps), and the names of what `other` has learned about its inner loop and `own` does not use.

    Raises:
        ValueError: another kind of state, parameters of other names or shapes, or normalised observations on one
            side only.
    """
    if type(own) is not type(other):
        raise ValueError("a recurrent policy and one that adapts by gradients have no parameters in common")
    mine, its = ({n: tuple(v.shape) for n, v in state.params.items()} for state in (own, other))
    if mine != its:
        name = next(n for n in sorted({*mine, *its}) if mine.get(n) != its.get(n))
        raise ValueError(f"its parameter {name!r} has the shape {its.get(name)}, here it is {mine.get(name)}: make "
                         "this learner with the other's network (hidden, activation, context, ...)")  # fmt: skip
    if "obs_stats" in own.WARM_START and bool(own.obs_stats) != bool(other.obs_stats):
        raise ValueError(f"it was trained with normalize_obs={bool(other.obs_stats)}, which is needed here too")
    values: dict[str, Any] = {}
    unused: list[str] = []
    for name in own.WARM_START:
        start, found = getattr(own, name), getattr(other, name)
        if isinstance(start, dict):
            values[name] = {n: _fitted(n, value, found.get(n)) for n, value in start.items()}
            unused += sorted(found.keys() - start.keys())
        else:
            values[name] = found.to(start, copy=True) if isinstance(start, Tensor) else copy.deepcopy(found)
    return dataclasses.replace(own, **values), unused


def _fitted(name: str, start: Tensor, found: Tensor | None) -> Tensor:
    """`found` in the place of `start`: where it has fewer inner steps (the first axis), the further ones go on with
    its last step size, or with noise as it is after its last step."""
    if found is None:
        return start
    found = found.to(start, copy=True)
    if found.shape == start.shape:
        return found
    rest = start[len(found) :]
    if name.startswith("lr_step/"):
        rest = found[-1:].expand_as(rest)
    return torch.cat([found[: len(start)], rest])


def unused_warning(unused: list[str], of: str, here: str) -> str:
    """What to tell about names that `taken_over` returns."""
    kinds = sorted({name.partition("/")[0] for name in unused})
    return f"what {of} has learned of its inner loop ({', '.join(kinds)}) is not taken over: {here} does not learn it"


MADE_FROM_SETTINGS = (MLPPolicy.__name__, CNNPolicy.__name__)
"""Kinds of policies that an algorithm's settings make."""


def network_of(policy: Any, start: AdaptedPolicy | None) -> Any:
    """The network that a learner's `policy=` brings: a module, or a policy of a kind of its own; None where it is to
    be made from settings."""
    found: Any = policy if start is None else start.policy
    if found is None or isinstance(found, nn.Module):
        return found
    missing = [name for name in ("spaces", "kind", "memory", "init", "describe") if not hasattr(found, name)]
    if missing:
        remedy = ""
        if isinstance(found, str):
            remedy = ": leave it out, the network follows from hidden, activation and network"
        elif len(missing) < 5:
            remedy = f", a policy of your own needs {', '.join(missing)} too (docs/your_own_algorithm.md)"
        raise ValueError(f"policy is a torch.nn.Module from observations to actions, a policy to start from or one of "
                         f"your own, got {found!r}{remedy}")  # fmt: skip
    if start is not None and found.kind == ModulePolicy.__name__:
        return found.module
    return None if start is not None and found.kind in MADE_FROM_SETTINGS else found


def settings_of(start: AdaptedPolicy, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `given`, with those that the policy to start from determines."""
    made: Any = start.policy
    own: dict[str, Any] = made.settings() if made.kind in (*MADE_FROM_SETTINGS, ModulePolicy.__name__) else {}
    if start.obs_stats:
        own["normalize_obs"] = True
    for name in own.keys() & given.keys():
        wanted = tuple(listed(name, given[name], "numbers")) if isinstance(own[name], tuple) else given[name]
        if wanted != own[name] and wanted != "auto":
            raise ValueError(f"{name}={given[name]!r} contradicts the policy to start from, which has {own[name]!r}: "
                             "leave it out")  # fmt: skip
    return {**given, **own}


def with_policy(state: Any, start: AdaptedPolicy, device: torch.device) -> Any:
    """`state` with the parameters and the statistics of the policy to start from.

    An adapted policy has no context vector any more: a learner that wants one starts with its own, zero.
    """
    found = {name: value for name, value in state.params.items() if name.startswith("context")}
    found |= {name: value.to(device, copy=True) for name, value in start.params.items()}
    state = dataclasses.replace(state, params={name: found[name] for name in state.params})
    if start.obs_stats:
        obs_stats = {name: value.to(device, copy=True) for name, value in start.obs_stats.items()}
        state = dataclasses.replace(state, obs_stats=obs_stats)
    return state
