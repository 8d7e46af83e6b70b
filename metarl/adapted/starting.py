"""Adapted policies where adaptation starts: the meta-policy as one, and one that a learner starts from."""

from typing import Any

from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.params import Params
from metarl.policies.base import AnyPolicy
from metarl.policies.normalize import ObsStats


def meta_policy(policy: AnyPolicy, params: Params, obs_stats: ObsStats) -> AdaptedPolicy | RecurrentPolicy:
    """The policy before any adaptation, on the CPU, with `predict`."""
    own, stats = ({name: value.cpu() for name, value in part.items()} for part in (params, obs_stats))
    kind: Any = RecurrentPolicy if policy.memory else AdaptedPolicy
    return kind(policy, own, obs_stats=stats)


def started_from(policy: Any) -> AdaptedPolicy | None:
    """What a learner's `policy=` is to start from, None where it is a network alone.

    Raises:
        ValueError: a `RecurrentPolicy`, whose value head and optimiser are in its learner's files alone.
    """
    if isinstance(policy, RecurrentPolicy):
        raise ValueError("a learner cannot start from a RecurrentPolicy: load the learner that it came from")
    return policy if isinstance(policy, AdaptedPolicy) else None
