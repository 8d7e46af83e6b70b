"""What training of a gradient-based meta-learner carries from one iteration to the next."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metarl import random
from metarl.inner import value_baseline
from metarl.inner.learned import NOISE, learned_sizes
from metarl.inner.settings import GradientSettings
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.base import Policy, at_least
from metarl.policies.normalize import ObsStats
from metarl.printing import fields_text
from metarl.tasks import TaskFamily


@dataclass(frozen=True, repr=False)
class State:
    """What training carries from one meta-iteration to the next."""

    params: Params
    """The policy's, where every task starts from."""
    iteration: int = 0
    env_steps: int = 0
    obs_stats: ObsStats = field(default_factory=dict)
    """Running statistics of the observations; empty without `normalize_obs`."""
    learned: Params = field(default_factory=dict)
    """What is learned about the inner loop: step sizes, mask, noise, discount, lambda; empty if nothing is."""
    optimizer: Params = field(default_factory=dict)
    """The outer optimiser's statistics; empty without any."""
    baseline: Params = field(default_factory=dict)
    """The value network that returns are compared with (`metarl.inner.value_baseline`); empty without any."""

    WARM_START = ("params", "obs_stats", "learned")
    """Not the optimiser's statistics and the value network, which belong to their own settings."""

    __repr__ = fields_text

    @property
    def meta(self) -> Params:
        """All meta-parameters."""
        return self.params | self.learned


def init(
    config: GradientSettings, policy: Policy, family: TaskFamily | None, seed: int, device: torch.device | str = "cpu"
) -> State:
    """The state before the first meta-iteration. `family` is not looked at: tasks are met in episodes."""
    if policy.memory:
        raise ValueError(f"inner steps need a policy without memory, and a {policy.kind} remembers "
                         f"{policy.memory} numbers: train it with rl2")  # fmt: skip
    generator = torch.Generator().manual_seed(random.generator_seed(seed, 0))
    params = {name: value.to(device) for name, value in policy.init(generator).items()}
    moving = config.moving(params)
    learned = learned_sizes(config.learned_lr, params, moving, config.inner_steps, config.learned_mask)
    if config.learned_noise:
        if "log_std" not in params:
            raise ValueError("learned_noise is for Gaussian policies, and this one chooses among discrete actions")
        learned[NOISE] = params["log_std"].new_zeros(max(1, config.inner_steps), params["log_std"].shape[-1])
    for name, wanted, start in (
        ("discount", config.learned_discount, config.gamma),
        ("lambda", config.learned_lambda, config.gae_lambda),
    ):
        if wanted:
            learned[name] = torch.tensor(math.log(start / (1 - start)), device=device)
    state = State(params, 0, 0, normalize.start(policy.spaces, device) if config.normalize_obs else {}, learned)
    if config.baseline == "value":
        generator = torch.Generator().manual_seed(random.generator_seed(seed, 1))
        network = value_baseline.start(policy.spaces, config.inner_steps + 1, config.value_hidden, generator)
        state = replace(state, baseline={name: value.to(device) for name, value in network.items()})
    return state


def within_floor(config: GradientSettings, meta: Params) -> Params:
    """The meta-parameters with every Gaussian standard deviation that they determine on its floor, at least: the one
    before adaptation and, where the inner steps leave it alone but for `learned_noise`, those after each step."""
    if "log_std" not in meta:
        return meta
    meta = meta | {"log_std": at_least(meta["log_std"], config.min_std)}
    if NOISE not in meta or config.adapt_std:
        return meta
    after, changes = meta["log_std"], list[Tensor]()
    for change in meta[NOISE]:
        floored = at_least(after + change, config.min_std)
        changes.append(torch.where(after + change < floored, floored - after, change))
        after = floored
    return meta | {NOISE: torch.stack(changes)}


def learned_statistics(state: State) -> dict[str, Any]:
    """What is logged of the learned inner loop: the mean step-size factor, the share of numbers that adapt, the
    discount and lambda."""
    stats: dict[str, Any] = {}
    factors = [v.flatten() for n, v in state.learned.items() if n == "lr" or n.startswith(("lr/", "lr_step/"))]
    masks = [(v >= 0).flatten() for n, v in state.learned.items() if n.startswith("mask/")]
    if factors:
        stats["inner/lr_factor"] = torch.cat(factors).mean().item()
    if masks:
        stats["inner/mask_open"] = torch.cat(masks).float().mean().item()
    if NOISE in state.learned:
        stats["inner/noise"] = state.learned[NOISE].sum(0).mean().exp().item()
    for name in ("discount", "lambda"):
        if name in state.learned:
            stats[f"inner/{name}"] = torch.sigmoid(state.learned[name]).item()
    return stats
