"""MAML with a TRPO outer step (Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 4.2).

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    data_S                    roll out the adapted policies
    outer step                TRPO on the adapted policies' surrogate, differentiating through the S inner steps
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from metarl import distributions, losses, normalize, random
from metarl.adapt import Params, expand, sgd_step
from metarl.advantages import advantages
from metarl.distributions import Distribution
from metarl.normalize import ObsStats
from metarl.parallel import task_chunks, thread_map, threads_over_tasks
from metarl.policies import MLPPolicy, Policy
from metarl.policies_cnn import CNNPolicy
from metarl.rollout import EnvSampler, Rollout, Sampler
from metarl.spaces import Spaces
from metarl.tasks import Tasks, num_tasks
from metarl.trust_region import Jacobian, Objective, Surrogate, trpo_step
from metarl.unrolled import unrolled_jacobian

INNER_GRADIENTS = ("policy_gradient", "lvc")
NETWORKS = ("auto", "mlp", "cnn")


@dataclass(frozen=True)
class Config:
    """Settings of MAML-TRPO. Actions are in policy units: 1 is half the range of a bounded action."""

    n_tasks: int = 20
    """K: tasks per meta-iteration."""
    episodes: int = 20
    """E: episodes per task, before and again after every inner step."""
    inner_steps: int = 1
    """Inner gradient steps in training; 0 trains one policy on all tasks jointly, with plain TRPO."""
    inner_lr: float = 0.5
    """Step size of the inner loop. With a Gaussian policy it acts in proportion to 1 / init_std^2."""
    lr_in_std: bool = False
    """Measure the inner step sizes in units of the meta-policy's present standard deviation (the geometric mean over
    actions). The policy gradient grows as the standard deviation shrinks in training; with this the step does not."""
    inner_gradient: Literal["policy_gradient", "lvc"] = "policy_gradient"
    """What the outer loop differentiates of the inner gradient. "policy_gradient": the gradient of log pi * A, as in
    MAML. "lvc": of the importance-weighted return (low-variance curvature, Rothfuss et al. 2019, section 5): the same
    step, but its derivative also sees that other parameters would have sampled other episodes."""
    adapt_std: bool = False
    """Whether the inner step moves a Gaussian policy's standard deviation too. It multiplies the noise of the next
    step's gradient: on 2D navigation adaptation over several steps became unstable with it."""
    first_order: bool = False
    """Leave the inner gradient out when differentiating (first-order MAML)."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the discounted return minus the baseline."""
    normalize_obs: bool = False
    """Give the policy observations with mean 0 and standard deviation 1 (cut off at 10), by running statistics of the
    training data before this meta-iteration: for vectors whose entries have different scales."""
    network: Literal["auto", "mlp", "cnn"] = "auto"
    """The policy's network: "cnn" has convolutions before the hidden layers and needs image observations (a Box of
    uint8 in [0, 255], height x width x channels); "auto" is "cnn" where they are images, else "mlp"."""
    channels: tuple[int, ...] = ()
    """Channels of the convolutions (3 x 3, stride 2) of a "cnn". Empty: 16 in as many as bring the image to 4 x 4 or
    less."""
    hidden: tuple[int, ...] = (64, 64)
    """Units in the hidden layers of the policy."""
    activation: str = "tanh"
    """Activation of the hidden layers: tanh, relu or elu."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy."""
    min_std: float = 1e-3
    """Floor of that standard deviation."""
    input_gain: float = 1.0
    """Factor on the initial weights of the policy's first layer: above 1 where observations are small numbers."""
    output_gain: float = 0.01
    """Factor on the initial weights of the policy's last layer."""
    max_kl: float = 0.01
    """Largest KL divergence of one meta-update, averaged over states and tasks."""
    damping: float = 1e-5
    """Multiple of the identity that is added to the Fisher matrix."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations: Fisher products per meta-update."""
    max_backtracks: int = 15
    """Candidates that the line search tries at most."""
    backtrack: float = 0.8
    """Factor between one candidate's step and the next one's."""
    graph_tasks: int | None = None
    """Cap on memory: how many tasks keep their graphs between Fisher products (None: all). Same numbers, slower."""

    def __post_init__(self) -> None:
        if self.inner_gradient not in INNER_GRADIENTS:
            raise ValueError(f"inner_gradient must be one of {INNER_GRADIENTS}, got {self.inner_gradient!r}")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {NETWORKS}, got {self.network!r}")
        if self.channels and self.network == "mlp":
            raise ValueError(f"channels={self.channels} has no meaning for network='mlp'")
        for name, least in (
            ("n_tasks", 1),
            ("episodes", 1),
            ("inner_steps", 0),
            ("cg_iterations", 1),
            ("max_backtracks", 1),
            ("graph_tasks", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
            if value is not None and value != int(value):
                raise ValueError(f"{name} must be a whole number, got {value}")
        for name in ("inner_lr", "max_kl", "init_std", "min_std", "input_gain", "output_gain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.backtrack < 1:
            raise ValueError(f"backtrack must lie in (0, 1), got {self.backtrack}")
        if not self.damping >= 0:
            raise ValueError(f"damping must not be negative, got {self.damping}")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parameters that the inner step leaves alone."""
        return () if self.adapt_std else ("log_std",)

    def policy(self, spaces: Spaces) -> MLPPolicy | CNNPolicy:
        """The policy that these settings describe."""
        rest = (
            tuple(self.hidden), self.activation, self.init_std, self.min_std, self.input_gain, self.output_gain
        )  # fmt: skip
        if self.network == "cnn" or (self.network == "auto" and spaces.image is not None):
            return CNNPolicy(spaces, tuple(self.channels), *rest)
        if self.channels:
            raise ValueError(f"channels={self.channels} needs image observations, got {spaces.observation}")
        return MLPPolicy(spaces, *rest)


@dataclass(frozen=True)
class State:
    """What training carries from one meta-iteration to the next."""

    params: Params
    iteration: int = 0
    env_steps: int = 0
    obs_stats: ObsStats = field(default_factory=dict)
    """Running statistics of the observations; empty without `normalize_obs`."""


@dataclass(frozen=True)
class Batch:
    """One stage's data."""

    rollout: Rollout
    advantage: Tensor  # [K, T, E]

    def __getitem__(self, tasks: slice) -> "Batch":
        return Batch(self.rollout[tasks], self.advantage[tasks])


def init(config: Config, policy: Policy, seed: int, device: torch.device | str = "cpu") -> State:
    """The state before the first meta-iteration."""
    generator = torch.Generator().manual_seed(random.generator_seed(seed, 0))
    params = {name: value.to(device) for name, value in policy.init(generator).items()}
    return State(params, obs_stats=normalize.start(policy.spaces, device) if config.normalize_obs else {})


@threads_over_tasks
def iteration(
    config: Config, sampler: Sampler, policy: Policy, state: State, seed: int
) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, from `seed` and `state` alone. -> the next state and statistics (see docs/logging.md)."""
    start = time.perf_counter()
    tasks = sampler.tasks(config.n_tasks, seed, state.iteration)
    params, data, in_rollouts = expand(state.params, config.n_tasks), [], 0.0
    for step in range(config.inner_steps + 1):
        before = time.perf_counter()
        rollout = sampler.collect(
            tasks, config.episodes, policy, params, seed, state.iteration, step, state.obs_stats
        )  # fmt: skip
        in_rollouts += time.perf_counter() - before
        data.append(Batch(rollout, advantages(rollout, config.gamma, config.gae_lambda)))
        if step < config.inner_steps:
            params = adapt(config, policy, params, data[-1], config.inner_lr * lr_unit(config, state.params))

    objectives = [
        objective(config, policy, [batch[chunk] for batch in data], config.n_tasks, unit=lr_unit(config, state.params))
        for chunk in chunks(data[-1])
    ]
    kept = None if config.graph_tasks is None else config.graph_tasks * len(objectives) // config.n_tasks
    new_params, outer = trpo_step(
        state.params, objectives, config.max_kl, config.damping, config.cg_iterations, config.max_backtracks,
        config.backtrack, kept,
    )  # fmt: skip
    obs_stats = state.obs_stats
    for batch in data:
        obs_stats = normalize.update(obs_stats, batch.rollout.raw_obs, batch.rollout.mask)
    steps = sum(batch.rollout.steps for batch in data)
    stats = {f"return/step_{i}": batch.rollout.returns.mean().item() for i, batch in enumerate(data)}
    rates = {f"success/step_{i}": batch.rollout.success_rate for i, batch in enumerate(data)}
    stats |= {name: rate.mean().item() for name, rate in rates.items() if rate is not None}
    stats |= {f"outer/{name}": value for name, value in outer.items()}
    stats["policy/entropy"] = losses.masked_mean(distributions.entropy(rollout.dist), rollout.mask).mean().item()
    stats |= {"time/rollout": in_rollouts, "time/update": time.perf_counter() - start - in_rollouts}
    new = State(new_params, state.iteration + 1, state.env_steps + steps, obs_stats)
    return new, stats


def lr_unit(config: Config, meta: Params) -> float:
    """What the inner step sizes are multiplied by; a constant of the meta-iteration, not differentiated."""
    if not config.lr_in_std or "log_std" not in meta:
        return 1.0
    return float(meta["log_std"].clamp_min(math.log(config.min_std)).mean().exp())


def inner_loss(config: Config, policy: Policy, batch: Batch, params: Params) -> Tensor:
    """The inner loss of every task on its own data, [K]."""
    return inner_loss_of(config, batch, policy.distribution(params, batch.rollout.obs))


def inner_loss_of(config: Config, batch: Batch, dist: Distribution) -> Tensor:
    """The same as a function of the policy's action distribution."""
    rollout = batch.rollout
    log_prob = distributions.log_prob(dist, rollout.act)
    if config.inner_gradient == "lvc":
        return losses.surrogate(log_prob, rollout.log_prob, batch.advantage, rollout.mask)
    return losses.policy_gradient(log_prob, batch.advantage, rollout.mask)


def adapt(config: Config, policy: Policy, params: Params, batch: Batch, lr: float) -> Params:
    """`params` [K, ...] after one inner step on `batch`; no graph."""

    def step(chunk: slice) -> Params:
        own = {name: value[chunk] for name, value in params.items()}
        return sgd_step(own, partial(inner_loss, config, policy, batch[chunk]), lr, frozen=config.frozen)

    parts = thread_map(step, chunks(batch))
    return {name: torch.cat([part[name] for part in parts]) for name in params}


def chunks(batch: Batch) -> list[slice]:
    """The chunks in which this batch's tasks are worked on."""
    K, T, E = batch.advantage.shape
    return task_chunks(K, T * E, batch.advantage.device)


def objective(
    config: Config, policy: Policy, data: Sequence[Batch], n_tasks: int, by_hand: bool = True, unit: float = 1.0
) -> Objective:
    """The meta-objective of the tasks in `data` (a chunk of `n_tasks`) as a function of the meta-parameters.

    `by_hand` takes the derivatives of an MLP from `metarl.unrolled`; without it all are automatic.
    `unit` multiplies the inner step size (see `lr_unit`).
    """
    *train, last = data
    lr = config.inner_lr * unit
    rollout, k = last.rollout, last.advantage.shape[0]
    weight = rollout.mask / rollout.mask.sum((1, 2), keepdim=True) / n_tasks

    def adapted(meta: Params, differentiable: bool) -> tuple[Distribution, Jacobian | None]:
        if differentiable and by_hand and isinstance(policy, MLPPolicy):
            inner = [(b.rollout.obs, partial(inner_loss_of, config, b)) for b in train]
            second_order = not config.first_order
            return unrolled_jacobian(policy, meta, k, inner, rollout.obs, lr, second_order, config.frozen)
        params = expand(meta, k)
        for batch in train:
            create_graph = differentiable and not config.first_order
            loss = partial(inner_loss, config, policy, batch)
            params = sgd_step(params, loss, lr, create_graph, config.frozen)
        return policy.distribution(params, rollout.obs), None

    def evaluate_at(meta: Params, differentiable: bool) -> Surrogate:
        dist, jacobian = adapted(meta, differentiable)
        log_prob = distributions.log_prob(dist, rollout.act)
        loss = losses.surrogate(log_prob, rollout.log_prob, last.advantage, rollout.mask)
        kl = losses.masked_mean(distributions.kl(rollout.dist, dist), rollout.mask)
        return Surrogate(loss.sum() / n_tasks, kl.sum() / n_tasks, dist, weight, jacobian)

    return evaluate_at


@dataclass(frozen=True)
class Adaptation:
    """An adaptation in full: what was met before and after every inner step."""

    params: list[Params]  # after 0, 1, ..., steps inner steps; each [K, ...]
    rollouts: list[Rollout]  # with those parameters

    @property
    def returns(self) -> Tensor:
        """[K, steps + 1, E]."""
        return torch.stack([rollout.returns for rollout in self.rollouts], 1)

    @property
    def success_rates(self) -> Tensor | None:
        """[K, steps + 1]: share of episodes with a success; None where no environment reports it."""
        rates = [rate for rollout in self.rollouts if (rate := rollout.success_rate) is not None]
        return torch.stack(rates, 1) if len(rates) == len(self.rollouts) else None


@threads_over_tasks
def evaluate(
    config: Config,
    sampler: Sampler | EnvSampler,
    policy: Policy,
    state: State,
    tasks: Tasks,
    seed: int,
    episodes: int,
    step_sizes: Sequence[float],
) -> Adaptation:
    """Adapt to `tasks` by one inner step for each of `step_sizes`, rolling out `episodes` episodes before each and
    after the last. Every return is that of episodes which the parameters in question acted in."""
    params = [expand(state.params, num_tasks(tasks))]
    rollouts: list[Rollout] = []
    for stage in range(len(step_sizes) + 1):
        rollouts.append(sampler.collect(tasks, episodes, policy, params[-1], seed, 0, stage, state.obs_stats))
        if stage < len(step_sizes):
            batch = Batch(rollouts[-1], advantages(rollouts[-1], config.gamma, config.gae_lambda))
            params.append(adapt(config, policy, params[-1], batch, step_sizes[stage] * lr_unit(config, state.params)))
    return Adaptation(params, rollouts)
