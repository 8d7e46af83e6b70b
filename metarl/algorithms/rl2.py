"""RL² (Duan et al. 2016, https://arxiv.org/abs/1611.02779): a recurrent policy that learns to learn, trained by PPO.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    trials                    E trials of each: N episodes in the same environment, throughout which memory is kept
    advantages                GAE over the whole trial, cut off at the end of the trial but not of an episode
    outer step                PPO on the trials: several epochs of minibatches of whole trials, with Adam
    There is no inner step: the policy adapts through its memory.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarl import random
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.arguments import (
    check_choice,
    check_fraction,
    check_not_negative,
    check_positive,
    check_types,
    check_whole,
)
from metarl.formulas import distributions, losses, optimizers
from metarl.formulas.returns import discounted_returns, gae
from metarl.inner.advantages import check_fits, differ
from metarl.inner.settings import cosine
from metarl.parallel import threads_over_tasks
from metarl.params import Params
from metarl.policies import normalize
from metarl.policies.base import at_least, std_statistics
from metarl.policies.cnn import check_channels, enough_channels, image_of
from metarl.policies.gru import GRUPolicy, Memory
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces
from metarl.policies.vectors import TaskVectors
from metarl.printing import fields_text
from metarl.recurrent.sequences import Sequences, sequences, summed_up
from metarl.recurrent.task_critic import CriticView, TaskCritic, view_of
from metarl.recurrent.trials import Trials, collect_trials, shown_episodes
from metarl.rollout import finite
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import TaskFamily, Tasks

SHUFFLE = 0x5F0FF1E
"""Stage number whose random keys shuffle the trials of the first epoch; larger than any episode number."""
ADAM_EPS = 1e-5
"""The usual value for PPO: it keeps the noise of near-zero gradients from being amplified to full steps."""
NETWORKS = ("auto", "flat", "cnn")
UNIT_RATE = 0.1
"""Weight of the current data in the running units of the value head."""


@dataclass(frozen=True)
class Config:
    """Settings of RL². Actions are in policy units: 1 is half the range of a bounded action."""

    n_tasks: int = 100
    """K: tasks per meta-iteration."""
    trials: int = 1
    """E: trials per task."""
    trial_episodes: int = 2
    """N: episodes per trial, in training and, by default, in evaluation."""
    gamma: float = 0.99
    """Discount per time step of the trial; it also applies across episode boundaries."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation over the whole trial."""
    outer_lr: float = 1e-3
    """Adam's step size for the policy."""
    anneal_over: int = 0
    """Anneal it to `anneal_to` times its initial value over this many iterations, by a cosine schedule; 0 keeps it
    constant."""
    anneal_to: float = 0.01
    """Final factor of that schedule."""
    epochs: int = 5
    """Passes over the trials of a meta-iteration."""
    minibatches: int = 4
    """Minibatches of whole trials per epoch, with one Adam step each."""
    clip: float = 0.2
    """Clip range of PPO's surrogate: probability ratios further than this from 1 bring no further gain."""
    value_coef: float = 0.5
    """Weight of the value loss, which is measured in units of the returns' standard deviation."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus (the policy's mean entropy)."""
    anneal_entropy: bool = False
    """Anneal that weight by the same schedule as the step size, over `anneal_over` iterations."""
    max_grad_norm: float = 0.5
    """Clip the Euclidean norm of each gradient to this value."""
    hidden: int = 128
    """H: hidden units of the GRU."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy."""
    min_std: float = 1e-3
    """Lower bound of that standard deviation."""
    output_gain: float = 0.01
    """Factor on the initial weights of the action head."""
    last_obs: bool = False
    """Also feed the previous observation to the policy, so that each input contains a complete transition. The paper
    feeds only the previous action and reward, so the memory has to hold the state that a reward belongs to."""
    products: bool = False
    """Also feed it the products of previous observation and previous action, and those products times the previous
    reward; needs `last_obs`. For one-hot vectors they directly encode the state-action pair and its reward, which the
    GRU would otherwise have to learn. (The paper does not specify how transitions are embedded.) For observations of
    size O and actions of size A this adds 2 O A inputs."""
    head_hidden: int = 0
    """Units of an extra layer between the GRU and its action and value heads; 0 keeps the heads linear, as in the
    paper."""
    input_gain: float = 1.0
    """Factor on the initial input weights of the GRU. Above 1, even the untrained memory distinguishes combinations of
    inputs, which helps if states and actions are one-hot vectors."""
    network: Literal["auto", "flat", "cnn"] = "auto"
    """The encoder in front of the GRU: "cnn" is a stack of convolutions and needs image observations (a Box of uint8 in
    [0, 255], height x width x channels); "flat" passes observations on unchanged; "auto" chooses "cnn" for images and
    "flat" otherwise."""
    channels: tuple[int, ...] = ()
    """Output channels of the convolutions (3 x 3, stride 2). Empty: 16 channels each, in as many layers as reduce the
    image to at most 4 x 4."""
    memory_steps: float = 1.0
    """Longest initial memory of the GRU: its units start out retaining their content over different numbers of steps,
    from 1 to this value. With 1, every unit initially loses half of its content per step."""
    normalize_obs: bool = False
    """Normalise observations to mean 0 and standard deviation 1 (clipped at 10) using running statistics of earlier
    training data; for vectors whose entries have different scales. The first iteration collects one extra rollout of
    the untrained policy to initialise the statistics."""

    task_critic: bool = False
    """Compute advantages with the values of a critic that sees the task's parameters and the policy's memory. The
    critic is used in training only; the policy still has to infer the task. Without it, differences between tasks add
    noise to every advantage."""
    critic_hidden: int = 128
    """Units in each layer of the task critic."""
    critic_lr: float = 2e-3
    """Adam's step size for the task critic, annealed like the policy's."""

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(
            self, n_tasks=1, trials=1, trial_episodes=1, anneal_over=0, epochs=1, minibatches=1, hidden=1,
            head_hidden=0, critic_hidden=1,
        )  # fmt: skip
        check_positive(self, "outer_lr", "clip", "max_grad_norm", "init_std", "min_std", "output_gain", "input_gain")
        check_positive(self, "critic_lr")
        if self.anneal_entropy and not self.anneal_over:
            raise ValueError("anneal_entropy=True needs anneal_over: over how many iterations")
        check_choice(self, network=NETWORKS)
        check_channels(self.channels)
        if self.channels and self.network == "flat":
            raise ValueError(f"channels={self.channels} has no meaning for network='flat'")
        if self.products and not self.last_obs:
            raise ValueError("products=True needs last_obs=True: they are products with the last observation")
        if not 1 <= self.memory_steps < math.inf:
            raise ValueError(f"memory_steps must be at least 1, got {self.memory_steps}")
        check_fraction(self, "gamma", "gae_lambda", "anneal_to")
        check_not_negative(self, "value_coef", "entropy_coef")
        if self.minibatches > self.n_tasks * self.trials:
            raise ValueError(
                f"minibatches={self.minibatches} is more than there are trials: n_tasks x trials = "
                f"{self.n_tasks * self.trials}"
            )

    @property
    def episodes(self) -> int:
        """The default number of trials per task in an evaluation."""
        return self.trials

    @property
    def unit(self) -> str:
        """The unit of adaptation: an episode, which has no step size."""
        return "episode"

    @property
    def inner_steps(self) -> int:
        """The counterpart of inner steps in gradient methods: the episodes of a trial after the first."""
        return self.trial_episodes - 1

    def policy(self, spaces: Spaces, module: nn.Module | None = None) -> GRUPolicy:
        """The policy that these settings describe."""
        if module is not None:
            raise ValueError(f"rl2 has its own recurrent policy and cannot train a {type(module).__name__}: leave "
                             "policy= out, or pass a policy with a memory")  # fmt: skip
        channels = self.channels
        if self.network == "cnn" or (self.network == "auto" and spaces.image is not None):
            channels = channels or enough_channels(image_of(spaces))
        shape = {
            name: getattr(self, name) for name in ("last_obs", "products", "head_hidden", "input_gain", "memory_steps")
        }
        return GRUPolicy(spaces, self.hidden, self.init_std, self.min_std, self.output_gain, channels=channels, **shape)


@dataclass(frozen=True, repr=False)
class State:
    """The training state passed from one meta-iteration to the next."""

    params: Params
    optimizer: Params
    """Adam's state (see `metarl.formulas.optimizers`): running means of the gradients and of their squares, and the
    step count."""
    value_units: Tensor
    """[2], float64: the value of a step is `value_units[0] + value_units[1] * (the value head's output)`. Both are 0
    before the first data arrive, which then define the units."""
    iteration: int = 0
    env_steps: int = 0
    obs_stats: ObsStats = field(default_factory=dict)
    """Running statistics of the observations; empty without `normalize_obs`."""
    critic: Params = field(default_factory=dict)
    """The parameters of `metarl.recurrent.task_critic`, in the same units; empty without `task_critic`."""
    critic_optimizer: Params = field(default_factory=dict)
    """Adam's state for those parameters."""

    WARM_START = ("params", "value_units", "obs_stats")
    """The critic is not taken over: its inputs depend on how the family describes its tasks."""

    __repr__ = fields_text

    @property
    def has_units(self) -> bool:
        """Whether `value_units` has been set from data."""
        return bool(self.value_units[1] > 0)


@dataclass(frozen=True)
class TrialBatch:
    """The trials of one meta-iteration, as the outer step uses them."""

    data: Sequences  # [L', B]
    advantage: Tensor  # [L', B], mean 0 and standard deviation 1 over all valid steps
    target: Tensor  # [L', B], of the value head and the task critic, in their units

    def __getitem__(self, trials: Tensor | slice) -> "TrialBatch":
        return TrialBatch(self.data[trials], self.advantage[:, trials], self.target[:, trials])


def init(config: Config, policy: GRUPolicy, family: TaskFamily, seed: int, device: torch.device | str = "cpu") -> State:
    """The state before the first meta-iteration."""
    if not policy.memory:
        raise ValueError(f"rl2 trains policies with a memory, and a {policy.kind} has none: leave policy= out")
    generator = torch.Generator().manual_seed(random.generator_seed(seed, 0))
    params = {name: value.to(device) for name, value in policy.init(generator).items()}
    units = torch.zeros(2, dtype=torch.float64, device=device)
    stats = normalize.start(policy.spaces, device) if config.normalize_obs else {}
    state = State(params, optimizers.adam_start(params), units, obs_stats=stats)
    if not config.task_critic:
        return state
    critic = TaskCritic(policy, TaskVectors(family.task_space).size, config.critic_hidden).init(generator)
    critic = {name: value.to(device) for name, value in critic.items()}
    return replace(state, critic=critic, critic_optimizer=optimizers.adam_start(critic))


@threads_over_tasks
def iteration(setup: Setup[Config], state: State) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics (docs/logging.md)."""
    config, sampler, policy, seed = setup.config, setup.sampler, setup.policy, setup.seed
    start, tasks = time.perf_counter(), sampler.tasks(config.n_tasks, seed, state.iteration)
    state = surveyed(setup, state, tasks)
    trials = collect_trials(
        setup, tasks, config.trials, config.trial_episodes, state.params, state.iteration, state.obs_stats
    )
    in_rollouts = time.perf_counter() - start

    data, seen = sequences(trials), None
    if config.task_critic:
        seen = critic_view(config, sampler, policy, state.params, tasks, data)
        data = replace(data, value=seen.values(state.critic))
        if not data.value.isfinite().all():
            raise finite.NotFiniteError(
                f"the task critic's values are not finite in iteration {state.iteration + 1}: lower critic_lr, or give "
                "the parameters in task_space bounds, which are used to scale them"
            )
    units = value_units(config, state, data)
    old = state.value_units if state.has_units else units
    params = in_units(state.params, old, units)
    critic = in_units(state.critic, old, units) if seen else state.critic
    batch = make_batch(config, data, old, units)
    memory, critic_memory, losses_of = state.optimizer, state.critic_optimizer, []
    factor = cosine(state.iteration, config.anneal_over, config.anneal_to)
    lr, now = config.outer_lr * factor, config
    if config.anneal_entropy:
        now = replace(config, entropy_coef=config.entropy_coef * factor)
    for epoch in range(config.epochs):
        for part in minibatches(config, data.mask.shape[1], seed, state.iteration, epoch, data.mask.device):
            grads, parts = gradient(now, policy, params, batch[part])
            grads, parts["gradient_norm"] = optimizers.clip_norm(grads, config.max_grad_norm)
            if not math.isfinite(norm := float(parts["gradient_norm"])):
                raise finite.NotFiniteError(f"the gradient of iteration {state.iteration + 1} has the norm {norm}: the "
                                            "steps are too large, lower outer_lr")  # fmt: skip
            params, memory = adam_step(params, grads, memory, lr)
            if "log_std" in params:
                params |= {"log_std": at_least(params["log_std"], config.min_std)}
            losses_of.append(parts)
            if seen:
                grads = seen[part].gradient(critic, batch.target[:, part], data.mask[:, part])
                critic, critic_memory = adam_step(critic, grads, critic_memory, config.critic_lr * factor)

    obs_stats = normalize.update(state.obs_stats, trials.raw_obs, trials.mask)
    stats = {f"return/step_{n}": trials.returns[:, n].mean().item() for n in shown_episodes(config.trial_episodes)}
    stats["return/trial"] = trials.returns.sum(1).mean().item()
    if (rates := trials.success_rates) is not None:
        stats |= {f"success/step_{n}": rates[:, n].mean().item() for n in shown_episodes(config.trial_episodes)}
    stats |= {f"outer/{name}": float(sum(x[name] for x in losses_of)) / len(losses_of) for name in losses_of[0]}
    stats |= {"outer/explained_variance": explained_variance(batch, old, units), "outer/lr": lr}
    stats["policy/entropy"] = float((distributions.entropy(trials.dist) * trials.mask).sum() / trials.mask.sum())
    stats |= std_statistics(trials.dist, config.min_std)
    stats |= {"time/rollout": in_rollouts, "time/update": time.perf_counter() - start - in_rollouts}
    steps = state.env_steps + trials.steps
    new = State(params, memory, units, state.iteration + 1, steps, obs_stats, critic, critic_memory)
    check_state(new)
    return new, stats


def check_state(state: State) -> None:
    """Raise NotFiniteError if any number is not finite, before the state is kept."""
    where = f"after the outer step of iteration {state.iteration}"
    finite.check_finite(state.params | state.optimizer, where, "the steps are too large, lower outer_lr")
    critic = {f"critic/{name}": x for name, x in (state.critic | state.critic_optimizer).items()}
    finite.check_finite(critic, where, "lower critic_lr")
    environment = state.obs_stats | {"value_units": state.value_units}
    finite.check_finite(environment, where, "the environment's rewards or observations are too large: scale them")


# ---------------------------------------------------------------------------------------------------------------------
# The parts of the outer step


def surveyed(setup: Setup[Config], state: State, tasks: Tasks) -> State:
    """The state to act with, as in `metarl.inner.loop.surveyed`: if observations are normalised, their first statistics
    come from separate trials, which count as environment steps."""
    if not state.obs_stats or state.obs_stats["count"] > 0:
        return state
    config = setup.config
    trials = collect_trials(
        setup, tasks, config.trials, config.trial_episodes, state.params, normalize.SURVEY, state.obs_stats
    )
    stats = normalize.update(state.obs_stats, trials.raw_obs, trials.mask)
    return replace(state, obs_stats=stats, env_steps=state.env_steps + trials.steps)


def trial_advantages(config: Config, rew: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """GAE over trials whose valid steps are contiguous, all [L, B].

    The end of an episode is treated like any other step: later rewards count, discounted by the steps in between. Only
    the end of the trial has no value after it.
    """
    assert rew.dim() == 2 and rew.shape == values.shape == mask.shape, (rew.shape, values.shape, mask.shape)
    values = torch.cat([values * mask, torch.zeros_like(values[:1])])
    return gae(rew[None], values[None], config.gamma, config.gae_lambda)[0]


def make_batch(config: Config, data: Sequences, units: Tensor, new_units: Tensor) -> TrialBatch:
    """Advantages, and targets of the value head in `new_units`; the values of `data` are in `units`. In float64.

    If the rewards of all trials are equal at every step, advantages would contain nothing but value errors: they are
    set to exactly zero.
    """
    mask, rew = data.mask.double(), data.rew.double()
    check_fits((rew * mask).sum(0), data.rew)
    values = _physical(data.value.double(), units) * mask
    advantage = trial_advantages(config, rew, values, mask)
    target = (advantage + values - new_units[0]) / new_units[1] * mask
    count = mask.sum()
    centred = (advantage - advantage.sum() / count) * mask
    std = (centred.square().sum() / count).sqrt()
    told_apart = differ(data.rew[None], data.mask[None])[0] & (std > 0)
    normalised = torch.where(told_apart, centred / torch.where(told_apart, std, 1.0), 0.0)
    return TrialBatch(data, normalised.to(data.value.dtype), target.to(data.value.dtype))


def _physical(value: Tensor, units: Tensor) -> Tensor:
    return units[0].to(value) + units[1].to(value) * value


def value_units(config: Config, state: State, data: Sequences) -> Tensor:
    """Running mean and standard deviation of the discounted returns over meta-iterations: [2], float64.

    If returns do not vary, their magnitude replaces the standard deviation; if all have been zero, 1 does.
    """
    mask = data.mask.double()
    returns, count = discounted_returns(data.rew[None].double(), config.gamma)[0], mask.sum()
    mean = (returns * mask).sum() / count
    std = (((returns - mean) ** 2 * mask).sum() / count).sqrt()
    current = torch.stack([mean, torch.where(std > 1e-6 * mean.abs(), std, mean.abs())])
    if not state.has_units:
        return torch.where(current[1] > 0, current, current.new_tensor([0.0, 1.0]))
    return torch.lerp(state.value_units, current, UNIT_RATE)


def in_units(params: Params, units: Tensor, new: Tensor) -> Params:
    """The parameters with the value head converted from `units` to `new` units, which leaves its values unchanged
    (van Hasselt et al. 2016, https://arxiv.org/abs/1602.07714, section 2)."""
    weight, bias = params["w_value"], params["b_value"]
    ratio = (units[1] / new[1]).to(weight)
    return params | {
        "w_value": weight * ratio,
        "b_value": bias * ratio + ((units[0] - new[0]) / new[1]).to(weight),
    }


def minibatches(
    config: Config, n_trials: int, seed: int, iteration: int, epoch: int, device: torch.device
) -> Sequence[Tensor]:
    """The trials in an order determined by (seed, iteration, epoch), split into parts of nearly equal size."""
    key = random.episode_seeds(seed, iteration, SHUFFLE + epoch, 1, 1)[0, 0]
    order = random.words(key, 0, n_trials, random.ACTION).argsort(stable=True)
    return order.to(device).tensor_split(config.minibatches)


def gradient(config: Config, policy: GRUPolicy, params: Params, batch: TrialBatch) -> tuple[Params, dict[str, Tensor]]:
    """The gradient of a minibatch's loss, and the loss's parts. Computed in chunks of trials, summed in order."""

    def loss(params: Params, chunk: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return ppo_loss(config, policy, params, batch[chunk])

    return summed_up(loss, params, batch.data.mask)


def ppo_loss(config: Config, policy: GRUPolicy, params: Params, batch: TrialBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value loss and entropy bonus of whole trials, each averaged over their valid steps."""
    data, mask = batch.data, batch.data.mask[None]
    hidden = policy.unroll(params, data.x, torch.zeros_like(data.x[0, :, :1]).expand(-1, policy.hidden).contiguous())
    dist, value = policy.heads(params, hidden)
    log_prob = distributions.log_prob(dist, data.act)
    actor = losses.clipped_surrogate(log_prob[None], data.log_prob[None], batch.advantage[None], mask, config.clip)[0]
    critic = losses.squared_error(value[None], batch.target[None], mask)[0]
    entropy = losses.masked_mean(distributions.entropy(dist)[None], mask)[0]
    difference = (log_prob - data.log_prob).detach()[None]
    parts = {
        "policy_loss": actor,
        "value_loss": critic,
        "kl": losses.masked_mean(difference.exp() - 1 - difference, mask)[0],
        "clip_fraction": losses.masked_mean(((difference.exp() - 1).abs() > config.clip).float(), mask)[0],
    }
    return actor + config.value_coef * critic - config.entropy_coef * entropy, parts


def adam_step(params: Params, grads: Params, memory: Params, lr: float) -> tuple[Params, Params]:
    """The parameters after one Adam step, and Adam's new state."""
    direction, memory = optimizers.adam(grads, memory, eps=ADAM_EPS)
    return {name: value - lr * direction[name] for name, value in params.items()}, memory


def critic_view(
    config: Config, sampler: Sampler, policy: GRUPolicy, params: Params, tasks: Tasks, data: Sequences
) -> CriticView:
    """The critic's view of the trials `data`, which the policy collected with these parameters."""
    vectors = TaskVectors(sampler.family.task_space)
    critic = TaskCritic(policy, vectors.size, config.critic_hidden)
    task = torch.from_numpy(vectors.encode(tasks)).to(data.x.device).repeat_interleave(config.trials, 0)
    return view_of(critic, params, data, task, config.trial_episodes * sampler.family.horizon)


def explained_variance(batch: TrialBatch, units: Tensor, new_units: Tensor) -> float:
    """The fraction of the variance of the value targets (in `new_units`) that is explained by the values used for the
    advantages (in `units`); at most 1."""
    on = batch.data.mask > 0
    target, value = _physical(batch.target[on].double(), new_units), _physical(batch.data.value[on].double(), units)
    return float(1 - (target - value).var(correction=0) / target.var(correction=0).clamp_min(1e-12))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@dataclass(frozen=True)
class TrialAdaptation:
    """Trials on given tasks: the return of every episode, and the memory at the end."""

    trials: Trials
    policy: Any
    params: Params
    obs_stats: ObsStats

    def policy_for(self, task: int) -> RecurrentPolicy:
        """The policy with the memory left by the first trial of that task."""
        params, stats = ({name: x.cpu() for name, x in part.items()} for part in (self.params, self.obs_stats))
        memory = Memory(*(value[task, 0].cpu() for value in self.memory))
        rates = None if self.success_rates is None else self.success_rates[task].cpu().numpy()
        returns = self.returns[task].mean(-1).cpu().numpy()
        return RecurrentPolicy(self.policy, params, memory, returns, success_rates=rates, obs_stats=stats)

    @property
    def returns(self) -> Tensor:
        """[K, N, E]."""
        return self.trials.returns

    @property
    def success_rates(self) -> Tensor | None:
        """[K, N]: fraction of trials with a success in their n-th episode; None if no environment reports success."""
        return self.trials.success_rates

    @property
    def rollouts(self) -> list[Rollout]:
        """The n-th episodes of all trials."""
        return self.trials.rollouts

    @property
    def memory(self) -> Memory:
        """After the last episode, [K, E, ...]."""
        return self.trials.memory

    @property
    def score(self) -> float:
        """The criterion for the best state of a run: the mean return of a whole trial."""
        return self.returns.sum(1).mean().item()


@threads_over_tasks
def evaluate(
    setup: Setup[Config], state: State, tasks: Tasks, episodes: int, step_sizes: Sequence[float | None]
) -> TrialAdaptation:
    """Run `episodes` trials per task, each of one episode plus one more for each entry of `step_sizes`. The entries
    must be None, because episodes have no step size.

    Raises:
        ValueError: a step size is a number.
    """
    if any(size is not None for size in step_sizes):
        raise ValueError(f"rl2 adapts through its memory and has no inner step sizes, got {list(step_sizes)}; steps= "
                         "sets the number of further episodes in a trial")  # fmt: skip
    n = len(step_sizes) + 1
    trials = collect_trials(setup, tasks, episodes, n, state.params, 0, state.obs_stats)
    return TrialAdaptation(trials, setup.policy, state.params, state.obs_stats)
