"""Numbers that are not finite, caught where they arise, before they are kept, and attributed to their source."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution, Gaussian

SMALLER_STEPS = "take smaller steps: lower inner_lr or the step sizes that were passed, outer_lr or max_kl"


class NotFiniteError(ValueError):
    """A number is NaN or infinite. The message says which, where it arose, its source and what to change.

    It is raised before the number is kept: a learner that raised it still has its state from before that iteration.
    """


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all entries are finite: one sum per tensor; entries are only checked if the sum is not finite."""
    floats = [x.detach() for x in tensors if x.is_floating_point()]
    sums = [x.sum() for x in floats]
    if not sums or bool(torch.stack([x.double() for x in sums]).isfinite().all()):
        return True
    return all(bool(x.isfinite().all()) for x in floats)


def check_finite(tensors: Mapping[str, Tensor], where: str, remedy: str, per_task: bool = False) -> None:
    """Raise NotFiniteError if a tensor has an entry that is not finite.

    Args:
        tensors: by name; with `per_task` their first axis counts the tasks.
        where: completes the sentence "... is not finite ".
        remedy: what to change.
    """
    if all_finite(tensors.values()):
        return
    for name, value in tensors.items():
        bad = ~value.detach().isfinite()
        if bool(bad.any()):
            task = f" of task {int(bad.flatten(1).any(1).nonzero()[0])}" if per_task and value.dim() else ""
            shown = value.detach()[bad][0].item()
            raise NotFiniteError(f"{name}{task} is not finite ({shown}) {where}: {remedy}")


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


class Fault(NamedTuple):
    """The first number of a rollout that is not finite."""

    what: str  # "observation", "action" or "reward"
    k: int  # its task
    t: int  # the step: of an observation, the step that it was given for
    e: int  # its episode


def unusable(dist: Distribution, action: Tensor) -> Tensor:
    """Which of a policy's outputs give no valid action, bool [...]. A logit of -inf is allowed: it excludes a
    choice."""
    if isinstance(dist, Gaussian):
        return ~(dist.mean.isfinite() & action.isfinite()).all(-1)
    return (dist.logits.isnan() | dist.logits.isposinf()).any(-1) | dist.logits.isneginf().all(-1)


def any_unusable(dist: Distribution, action: Tensor, alive: Tensor) -> bool:
    """Whether a policy's output is unusable in an ongoing episode, bool [...]; usually decided by a single sum."""
    if bool((action.sum() if isinstance(dist, Gaussian) else dist.logits.sum()).isfinite()):
        return False
    return bool((unusable(dist, action) & alive).any())


def first_fault(obs: Tensor, unusable: Tensor, rew: Tensor, mask: Tensor) -> Fault | None:
    """The first fault: obs [K, T, E, O] before normalisation; unusable, rew and mask [K, T, E].

    Within a step the observation comes before the action and the action before the reward, so that the fault is
    attributed to its source and not to where it propagated.
    """
    if bool((obs.sum() + rew.sum()).isfinite()) and not bool(unusable.any()):
        return None
    kinds = torch.stack([~obs.isfinite().all(-1), unusable, ~rew.isfinite()]) & (mask > 0)  # [3, K, T, E]
    for t, kind, k, e in kinds.permute(2, 0, 1, 3).nonzero()[:1].tolist():
        return Fault(("observation", "action", "reward")[kind], k, t, e)
    return None


def fault_error(fault: Fault, value: object, name: str, where: str) -> NotFiniteError:
    """The error to raise for a fault.

    Args:
        value: the number or numbers.
        name: the name of the environment.
        where: the episode, such as "episode 0 of task 2 = {...}".
    """
    if fault.what == "action":
        return NotFiniteError(
            f"the policy's own output {value} in step {fault.t} of {where} is not finite, and all that {name} returned "
            f"before it is: parameters too large have overflowed. Nothing of it was kept; {SMALLER_STEPS}"
        )
    step = fault.t if fault.what == "reward" else fault.t - 1
    when = f"in step {step} of {where}" if step >= 0 else f"from the reset before {where}"
    return NotFiniteError(
        f"{name} returned the {fault.what} {value} {when}. Training stopped before this update; fix the environment's "
        "arithmetic or, if its numbers reach 3.4e38, which is more than float32 holds, scale them down"
    )
