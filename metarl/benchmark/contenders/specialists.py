"""Contenders made of specialists: one policy for each of some training tasks, trained side by side from one start.

They become one by distillation into a student, by the mean of their parameters, or by the mean of their action
distributions. None of the three adapts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metarl.benchmark.contract import Policies, Test, Training
from metarl.benchmark.meter import BudgetSpent
from metarl.formulas import distributions, losses, optimizers
from metarl.formulas.distributions import Categorical, Distribution, Gaussian
from metarl.inner.loop import InnerStep, detached_step
from metarl.inner.loss import Batch
from metarl.inner.state import init
from metarl.learner import make_config
from metarl.params import Params, expand
from metarl.policies.base import Policy
from metarl.policies.spaces import Spaces, spaces_of
from metarl.random import generator_seed
from metarl.rollout.acting import Memoryless
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.tasks import TaskFamily

SPECIALISTS = 10
"""Training tasks that have one."""


@dataclass(frozen=True)
class Specialists:
    """Policies with parameters [M, ...] for M tasks, and the last episodes of each."""

    policy: Policy
    params: Params
    rollout: Rollout


def config_of(options: Mapping[str, Any]) -> Any:
    """The settings of specialists' training."""
    rest = {name: value for name, value in options.items() if name not in ("specialists", "lr")}
    return make_config("maml_trpo", {**rest, "inner_optimizer": "adam"})


def specialised(run: Training, options: Mapping[str, Any]) -> Specialists:
    """M specialists, trained by Adam on the policy gradient of their own task until the budget is used up.

    Args:
        options: of `maml_trpo`'s `Config`, and `specialists` (M) and `lr`, Adam's step size.
    """
    config, count, lr = config_of(options), options.get("specialists", SPECIALISTS), options.get("lr", 0.01)
    policy = config.policy(spaces_of(run.family))
    state = init(config, policy, run.family, run.seed)
    sampler = Sampler(run.family)
    tasks = sampler.tasks(count, run.seed, 0)
    params, memory, last = expand(state.params, count), Params(), None
    with run.meter.planned():
        for i in range(10**9):
            rollout = sampler.collect(tasks, config.episodes, policy, params, run.seed, 0, i)
            last = Specialists(policy, params, rollout)
            to_take = InnerStep(Batch.of(config, rollout, state), lr)
            params, memory = detached_step(config, policy, params, to_take, memory)
    sampler.close()
    if last is None:
        raise BudgetSpent(f"a budget of {run.meter.limit} environment steps does not reach for one batch of {count} "
                          f"specialists with {config.episodes} episodes each")  # fmt: skip
    return last


def distilled(teachers: Specialists, student: Policy, start: Params, steps: int = 500, lr: float = 3e-3) -> Params:
    """The student's parameters after `steps` of Adam on the KL divergence of its actions from the teachers', in the
    states that these visit (Rusu et al. 2016, https://arxiv.org/abs/1511.06295)."""
    obs, mask = teachers.rollout.obs, teachers.rollout.mask
    target = teachers.policy.distribution(teachers.params, obs)
    target = type(target)(*(x.detach() for x in target))
    params, memory = dict(start), Params()
    for _ in range(steps):
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            dist = student.distribution(expand(leaves, len(obs)), obs)
            loss = losses.masked_mean(distributions.kl(target, dist), mask).mean()
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        direction, memory = optimizers.adam(grads, memory)
        params = {name: value - lr * direction[name] for name, value in params.items()}
    return params


@dataclass(frozen=True)
class Ensemble:
    """A policy without parameters whose action distribution is the mean of M members' in every state (see `mixed`)."""

    policy: Policy
    params: Params  # [M, ...]

    @property
    def spaces(self) -> Spaces:
        return self.policy.spaces

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def memory(self) -> int:
        return 0

    def init(self, generator: torch.Generator) -> Params:
        return {}

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError("an ensemble is made by training its members, not from a file")

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        members = next(iter(self.params.values())).shape[0]
        flat = obs.reshape(1, -1, obs.shape[-1]).expand(members, -1, -1)
        dist = mixed(self.policy.distribution(self.params, flat))
        return type(dist)(*(x.reshape(*obs.shape[:-1], -1) for x in dist))


def mixed(dist: Distribution) -> Distribution:
    """The mean over members of distributions [M, N, A] -> [N, A]; of a Gaussian with a standard deviation for every
    state."""
    if isinstance(dist, Gaussian):
        mean = dist.mean.mean(0)
        spread = dist.mean.var(0, correction=0)
        variance = dist.log_std.mul(2).exp().mean(0) + spread
        return Gaussian(mean, 0.5 * variance.log().expand_as(mean))
    if isinstance(dist, Categorical):
        return Categorical(distributions.probabilities(dist).mean(0).clamp_min(1e-12).log())
    raise ValueError(f"the mean of {type(dist).__name__} distributions is not one: an ensemble needs Gaussian actions "
                     "or one choice among several")  # fmt: skip


@dataclass(frozen=True)
class FromSpecialists:
    """What the contenders here have in common: their training."""

    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        config_of(self.options)

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Any:
        return specialised(run, self.options)


@dataclass(frozen=True)
class Averaged(FromSpecialists):
    """The mean of the specialists' parameters."""

    label: str = "specialists, parameters averaged"

    def adapt(self, learned: Specialists, test: Test) -> Iterator[Policies]:
        mean = {name: value.mean(0) for name, value in learned.params.items()}
        yield Policies(Memoryless(learned.policy, expand(mean, test.n_tasks)))


@dataclass(frozen=True)
class EnsembleOfSpecialists(FromSpecialists):
    """The mean of the specialists' action distributions."""

    label: str = "specialists, actions averaged"

    def fits(self, family: TaskFamily) -> str:
        several = spaces_of(family).sizes is not None
        return "the mean of joint distributions of several choices is not one of them" if several else ""

    def adapt(self, learned: Specialists, test: Test) -> Iterator[Policies]:
        yield Policies(Memoryless(Ensemble(learned.policy, learned.params), {}))


@dataclass(frozen=True)
class Distilled(FromSpecialists):
    """One student that acts as the specialists do in the states that they visit."""

    label: str = "specialists, distilled"

    def train(self, run: Training) -> Specialists:
        teachers = specialised(run, self.options)
        start = teachers.policy.init(torch.Generator().manual_seed(generator_seed(run.seed, 0)))
        student = distilled(teachers, teachers.policy, start)
        return Specialists(teachers.policy, expand(student, 1), teachers.rollout)

    def adapt(self, learned: Specialists, test: Test) -> Iterator[Policies]:
        student = {name: value[0] for name, value in learned.params.items()}
        yield Policies(Memoryless(learned.policy, expand(student, test.n_tasks)))
