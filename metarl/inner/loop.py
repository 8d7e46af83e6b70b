"""The inner loop of the gradient-based meta-learners: roll out, step every task's parameters on its own data, repeat.

`experience` does it in training and `evaluate` on test tasks, by the same code; `metarl.outer.objective` does it once
more on the data that came of it, as a function of the meta-parameters that can be differentiated.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.formulas import distributions, losses, optimizers
from metarl.inner import natural_gradient
from metarl.inner.learned import noise_change, split, step_size
from metarl.inner.loss import Batch, LossInput
from metarl.inner.settings import GradientSettings
from metarl.inner.state import State, within_floor
from metarl.inner.step import Direction, inner_step
from metarl.parallel import task_chunks, thread_map, threads_over_tasks
from metarl.params import Params, expand
from metarl.policies import normalize
from metarl.policies.base import Policy, std_statistics
from metarl.policies.mlp import without_context
from metarl.policies.normalize import ObsStats
from metarl.printing import fields_text
from metarl.rollout import finite
from metarl.rollout.rollout import Rollout
from metarl.rollout.setup import Setup
from metarl.tasks import Tasks, num_tasks


def chunks(batch: Batch) -> list[slice]:
    """The chunks in which this batch's tasks are worked on."""
    K, T, E = batch.advantage.shape
    return task_chunks(K, T * E, batch.advantage.device)


# ---------------------------------------------------------------------------------------------------------------------
# One inner step


def lr_unit(config: GradientSettings, meta: Params) -> float:
    """What the inner step sizes are multiplied by; a constant of the meta-iteration, not differentiated."""
    if not config.lr_in_std or "log_std" not in meta:
        return 1.0
    return float(meta["log_std"].clamp_min(math.log(config.min_std)).mean().exp())


@dataclass(frozen=True)
class InnerStep:
    """One inner step on one stage's data; the parameters that it starts from are given separately."""

    batch: Batch
    lr: float
    number: int = 0
    initial: Params = field(default_factory=dict)  # the parameters before inner step 0, [K, ...]
    learned: Params = field(default_factory=dict)  # about the inner loop

    def __getitem__(self, tasks: slice) -> "InnerStep":
        return replace(self, batch=self.batch[tasks], initial=_of_tasks(self.initial, tasks))


def _of_tasks(params: Params, tasks: slice) -> Params:
    """Some tasks' slice of what has a task axis."""
    return {name: value[tasks] if value.dim() else value for name, value in params.items()}


def inner_loss(config: GradientSettings, policy: Policy, to_take: InnerStep, params: Params) -> Tensor:
    """The inner loss of every task on the step's data, with the parameters [K, ...]: [K]."""
    batch = to_take.batch
    dist = policy.distribution(params, batch.rollout.obs)
    return config.inner_loss(LossInput(batch, dist, policy, params, to_take.initial or params, to_take.learned))


def _direction(config: GradientSettings, policy: Policy, batch: Batch) -> Direction | None:
    if config.inner_optimizer == "momentum":
        return lambda _, grads, memory: optimizers.momentum(grads, memory, config.inner_momentum)
    if config.inner_optimizer == "adam":
        return lambda _, grads, memory: optimizers.adam(grads, memory, eps=config.inner_adam_eps)
    if config.inner_optimizer == "natural":
        return natural_gradient.natural_direction(policy, batch.rollout.obs, batch.rollout.mask, config.natural_damping)
    return None


def step(
    config: GradientSettings, policy: Policy, params: Params, to_take: InnerStep, memory: Params | None = None,
    create_graph: bool = False,
) -> tuple[Params, Params]:  # fmt: skip
    """`params` [K, ...] after an inner step, and the inner optimiser's memory; differentiable."""
    learned, number, moving = to_take.learned, to_take.number, config.moving(params)
    new, memory = inner_step(
        params, partial(inner_loss, config, policy, to_take), step_size(learned, to_take.lr, number, moving),
        create_graph, params.keys() - set(moving), _direction(config, policy, to_take.batch), memory,
    )  # fmt: skip
    if (change := noise_change(learned, number)) is not None:
        new["log_std"] = new["log_std"] + change
    return new, memory


def detached_step(
    config: GradientSettings, policy: Policy, params: Params, to_take: InnerStep, memory: Params | None = None
) -> tuple[Params, Params]:
    """The same without a graph, with tasks distributed over threads."""
    memory = {} if memory is None else memory

    def own(chunk: slice) -> tuple[Params, Params]:
        return step(config, policy, _of_tasks(params, chunk), to_take[chunk], _of_tasks(memory, chunk))

    parts = thread_map(own, chunks(to_take.batch))
    together = [
        {name: torch.cat([part[i][name] for part in parts]) if value.dim() else value for name, value in x.items()}
        for i, x in enumerate(parts[0])
    ]
    return together[0], together[1]


# ---------------------------------------------------------------------------------------------------------------------
# The whole inner loop


@dataclass(frozen=True, repr=False)
class Adaptation:
    """A whole adaptation: what was collected before and after every inner step."""

    params: list[Params]  # after 0, 1, ..., steps inner steps; each [K, ...]
    rollouts: list[Rollout]  # with those parameters
    policy: Any = field(default=None, kw_only=True)
    obs_stats: ObsStats = field(default_factory=dict, kw_only=True)

    __repr__ = fields_text

    @property
    def returns(self) -> Tensor:
        """[K, steps + 1, E]."""
        return torch.stack([rollout.returns for rollout in self.rollouts], 1)

    @property
    def success_rates(self) -> Tensor | None:
        """[K, steps + 1]: share of episodes with a success, 0 in rollouts where nothing was reported; None where no
        environment ever reports it."""
        found = [rollout.success_rate for rollout in self.rollouts]
        known = next((rate for rate in found if rate is not None), None)
        if known is None:
            return None
        return torch.stack([torch.zeros_like(known) if rate is None else rate for rate in found], 1)

    @property
    def score(self) -> float:
        """The mean return after the last step."""
        return self.returns.mean((0, 2)).tolist()[-1]

    def policy_for(self, task: int) -> AdaptedPolicy:
        """The policy after the last step on one of the tasks, on the CPU."""
        policy, params = without_context(self.policy, self.params[-1])
        own = {name: value[task].cpu() for name, value in params.items()}
        stats = {name: value.cpu() for name, value in self.obs_stats.items()}
        rates = None if self.success_rates is None else self.success_rates[task].cpu().numpy()
        returns = self.returns[task].mean(-1).cpu().numpy()
        return AdaptedPolicy(policy, own, returns, success_rates=rates, obs_stats=stats)


@dataclass(frozen=True, repr=False)
class Experience(Adaptation):
    """An adaptation in training: with the advantages of every stage, and where the time went."""

    data: list[Batch]  # of every rollout; of an evaluation, of those that a step was taken on
    seconds: float  # in rollouts

    __repr__ = fields_text

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return sum(rollout.steps for rollout in self.rollouts)

    def statistics(self, config: GradientSettings) -> dict[str, float]:
        """What all gradient-based learners log of their data (see docs/logging.md)."""
        stats = {f"return/step_{i}": rollout.returns.mean().item() for i, rollout in enumerate(self.rollouts)}
        if (rates := self.success_rates) is not None:
            stats |= {f"success/step_{i}": rates[:, i].mean().item() for i in range(len(self.rollouts))}
        last = self.rollouts[-1]
        stats["policy/entropy"] = losses.masked_mean(distributions.entropy(last.dist), last.mask).mean().item()
        return stats | std_statistics(last.dist, config.min_std)


def surveyed(setup: Setup[Any], state: State) -> State:
    """The state to act with: where observations are normalised and none has been seen yet, with the statistics of one
    rollout of the untrained policy. Its steps count as environment steps; nothing else is learned from them.

    Otherwise the first iteration would act on raw observations, and everything it learned would be for another scale.
    """
    if not state.obs_stats or state.obs_stats["count"] > 0:
        return state
    sampler, seed = setup.sampler, setup.seed
    tasks = sampler.tasks(setup.config.n_tasks, seed, state.iteration)
    rollout = sampler.collect(
        tasks, setup.config.episodes, setup.policy, expand(state.params, num_tasks(tasks)), seed, state.iteration,
        normalize.SURVEY, state.obs_stats,
    )  # fmt: skip
    stats = normalize.update(state.obs_stats, rollout.raw_obs, rollout.mask)
    finite.check_finite(stats, "among the statistics of observations", "observations are too large: scale them")
    return replace(state, obs_stats=stats, env_steps=state.env_steps + rollout.steps)


def experience(setup: Setup[Any], state: State, only: int | None = None) -> Experience:
    """Draw the tasks of this meta-iteration and adapt to them as the settings say; to one of them alone if `only` is
    its number, with episodes that no other number has."""
    config = setup.config
    tasks = setup.sampler.tasks(config.n_tasks, setup.seed, state.iteration)
    sizes = config.training_step_sizes()
    first = 0 if only is None else only * (len(sizes) + 1)
    tasks = tasks if only is None else {name: value[only : only + 1] for name, value in tasks.items()}
    return _adaptation(setup, state, tasks, state.iteration, config.episodes, sizes, first)


def _adaptation(
    setup: Setup[Any], state: State, tasks: Tasks, iteration: int, episodes: int, step_sizes: Sequence[float],
    first_stage: int = 0, learning: bool = True,
) -> Experience:  # fmt: skip
    """`learning` is whether the last rollout is learned from too; its advantages are not estimated otherwise."""
    config, policy = setup.config, setup.policy
    params, memory = [expand(state.params, num_tasks(tasks))], Params()
    rollouts, data = list[Rollout](), list[Batch]()
    unit, seconds = lr_unit(config, state.params), 0.0
    for stage in range(len(step_sizes) + 1):
        before = time.perf_counter()
        rollout = setup.sampler.collect(
            tasks, episodes, policy, params[-1], setup.seed, iteration, first_stage + stage, state.obs_stats
        )
        seconds += time.perf_counter() - before
        rollouts.append(rollout)
        if learning or stage < len(step_sizes):
            data.append(Batch.of(config, rollout, state, stage))
        if stage < len(step_sizes):
            lr = step_sizes[stage] * unit
            to_take = InnerStep(data[-1], lr, stage, params[0], state.learned)
            new, memory = detached_step(config, policy, params[-1], to_take, memory)
            when = f" of iteration {iteration + 1}" if learning else ""
            finite.check_finite(new, f"after inner step {stage} (step size {lr:g}){when}", finite.SMALLER_STEPS, True)
            params.append(new)
    return Experience(params, rollouts, data, seconds, policy=policy, obs_stats=state.obs_stats)


@threads_over_tasks
def evaluate(setup: Setup[Any], state: State, tasks: Tasks, episodes: int, step_sizes: Sequence[float]) -> Adaptation:
    """Adapt to `tasks` by one inner step for each of `step_sizes`, rolling out `episodes` episodes before each and
    after the last. Every return is that of episodes which the parameters in question acted in."""
    found = _adaptation(setup, state, tasks, 0, episodes, step_sizes, learning=False)
    return Adaptation(found.params, found.rollouts, policy=setup.policy, obs_stats=state.obs_stats)


# ---------------------------------------------------------------------------------------------------------------------
# The next state


def advance(
    config: GradientSettings, state: State, found: Experience, meta: Params, optimizer: Params | None = None
) -> State:
    """The state after a meta-iteration that saw `found` and made `meta` of the meta-parameters.

    Raises:
        NotFiniteError: a number of that state is not finite.
    """
    where = f"after the outer step of iteration {state.iteration + 1}"
    finite.check_finite(meta | (optimizer or {}), where, finite.SMALLER_STEPS)
    params, learned = split(within_floor(config, state.meta | meta))
    obs_stats = state.obs_stats
    for rollout in found.rollouts:
        obs_stats = normalize.update(obs_stats, rollout.raw_obs, rollout.mask)
    finite.check_finite(obs_stats, "among the statistics of observations", "observations are too large: scale them")
    new = replace(
        state, params=params, learned=learned, iteration=state.iteration + 1, obs_stats=obs_stats,
        env_steps=state.env_steps + found.steps, optimizer=state.optimizer if optimizer is None else optimizer,
    )  # fmt: skip
    stages = config.inner_steps + 1  # of one task after the other, where they are met like that
    return config.update_state(new, [found.rollouts[i::stages] for i in range(stages)])
