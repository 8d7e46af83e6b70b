"""RL² (Duan et al. 2016, https://arxiv.org/abs/1611.02779): a recurrent policy that learns to learn, with PPO outside.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    trials                    E trials of each: N episodes in the same environment, the memory lasts through all
    advantages                GAE over the whole trial: an episode's end cuts nothing, the trial's end does
    outer step                PPO on the trials: some epochs of minibatches of whole trials, Adam
There is no inner step: to adapt is to remember.
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
"""The stage whose keys order the trials of the first epoch; far beyond the number of any episode."""
ADAM_EPS = 1e-5
"""As is usual for PPO: where a gradient has been almost zero, its noise is not blown up to a full step."""
NETWORKS = ("auto", "flat", "cnn")
UNIT_RATE = 0.1
"""Share of the present data in the units of the value head."""


@dataclass(frozen=True)
class Config:
    """Settings of RL². Actions are in policy units: 1 is half the range of a bounded action."""

    n_tasks: int = 100
    """K: tasks per meta-iteration."""
    trials: int = 1
    """E: trials of each task."""
    trial_episodes: int = 2
    """N: episodes of a trial, in training, and in evaluation unless that says otherwise."""
    gamma: float = 0.99
    """Discount of every further step of the trial, from one episode to the next too."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation, over the whole trial."""
    outer_lr: float = 1e-3
    """Step size of Adam."""
    anneal_over: int = 0
    """Bring it down to `anneal_to` times itself over this many iterations, by a cosine; 0: constant."""
    anneal_to: float = 0.01
    """What it ends at, as a factor."""
    epochs: int = 5
    """How often each meta-iteration goes through its trials."""
    minibatches: int = 4
    """Steps of Adam in each epoch: into this many parts the trials are shuffled."""
    clip: float = 0.2
    """How far PPO's surrogate rewards a change of an action's probability, as a ratio."""
    value_coef: float = 0.5
    """Weight of the value head's loss, in units of the returns' standard deviation."""
    entropy_coef: float = 0.01
    """Weight of the policy's mean entropy, as a bonus."""
    anneal_entropy: bool = False
    """Bring that weight down as the step size, over `anneal_over` iterations."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this Euclidean norm."""
    hidden: int = 128
    """H: units of the GRU."""
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian policy."""
    min_std: float = 1e-3
    """Floor of that standard deviation."""
    output_gain: float = 0.01
    """Factor on the initial weights of the action head."""
    last_obs: bool = False
    """Show the policy the last observation too, so that one input tells a whole transition. The paper shows the last
    action and reward only; to know what state a reward belongs to, the memory then has to hold that state."""
    products: bool = False
    """Show it the products of last observation and last action too, and those times the last reward; needs `last_obs`.
    Of one-hot vectors they say which pair of state and action it was and what it paid, which a GRU has to learn to
    tell otherwise. (The paper leaves open how a transition is embedded.) With O and A numbers in an observation and
    an action these are 2 O A inputs."""
    head_hidden: int = 0
    """Units of a layer between the GRU and its action and value heads; 0: the heads are linear, as in the paper."""
    input_gain: float = 1.0
    """Factor on the initial weights of the GRU's inputs: above 1 the first memories already tell combinations of inputs
    apart, which helps where states and actions are one-hot vectors."""
    network: Literal["auto", "flat", "cnn"] = "auto"
    """What is in front of the GRU: "cnn" has convolutions and needs image observations (a Box of uint8 in [0, 255],
    height x width x channels), "flat" nothing; "auto" is "cnn" where they are images."""
    channels: tuple[int, ...] = ()
    """Channels of the convolutions (3 x 3, stride 2). Empty: 16 in as many as bring the image to 4 x 4 or less."""
    memory_steps: float = 1.0
    """Units of the GRU initially keep what they hold for different numbers of steps, from 1 to this; with 1 all of them
    lose half of it in every step."""
    normalize_obs: bool = False
    """Give the policy observations with mean 0 and standard deviation 1 (cut off at 10), by running statistics of the
    training data before this meta-iteration: for vectors whose entries have different scales. The first iteration rolls
    the untrained policy out once more for its first statistics."""

    task_critic: bool = False
    """Take advantages with the values of a network that is told what the task is, and what the policy remembers.
    It is used in training only: the policy still has to find out. Without it, that tasks differ is noise in every
    advantage."""
    critic_hidden: int = 128
    """Units of each of its layers."""
    critic_lr: float = 2e-3
    """Its step size, which falls as that of the policy does."""

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
        """What evaluation averages over unless told otherwise: trials of each task."""
        return self.trials

    @property
    def unit(self) -> str:
        """What one unit of adaptation is; it has no size."""
        return "episode"

    @property
    def inner_steps(self) -> int:
        """Where gradient methods count inner steps: further episodes of a trial, after the first."""
        return self.trial_episodes - 1

    def policy(self, spaces: Spaces, module: nn.Module | None = None) -> GRUPolicy:
        """The policy that these settings describe."""
        if module is not None:
            raise ValueError(f"rl2 has a recurrent policy of its own and cannot train a {type(module).__name__}: leave "
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
    """What training carries from one meta-iteration to the next."""

    params: Params
    optimizer: Params
    """Adam's memory (see `metarl.formulas.optimizers`): running means of the gradients and of their squares, number of
    steps."""
    value_units: Tensor
    """[2], float64: the value of a step is `value_units[0] + value_units[1] * (the value head's output)`. Both are 0
    before the first data, whose units the head is then taken to be in."""
    iteration: int = 0
    env_steps: int = 0
    obs_stats: ObsStats = field(default_factory=dict)
    """Running statistics of the observations; empty without `normalize_obs`."""
    critic: Params = field(default_factory=dict)
    """The parameters of `metarl.recurrent.task_critic`, in the same units; empty without `task_critic`."""
    critic_optimizer: Params = field(default_factory=dict)
    """Adam's memory of those."""

    WARM_START = ("params", "value_units", "obs_stats")
    """Not the critic: it belongs to the way in which tasks are described."""

    __repr__ = fields_text

    @property
    def has_units(self) -> bool:
        """Whether any data have set `value_units`."""
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
    """One meta-iteration, from `setup` and `state` alone. -> the next state and statistics (see docs/logging.md)."""
    config, sampler, policy, seed = setup.config, setup.sampler, setup.policy, setup.seed
    start, tasks = time.perf_counter(), sampler.tasks(config.n_tasks, seed, state.iteration)
    state = surveyed(setup, state, tasks)
    trials = collect_trials(
        sampler, tasks, config.trials, config.trial_episodes, policy, state.params, seed, state.iteration,
        state.obs_stats,
    )  # fmt: skip
    in_rollouts = time.perf_counter() - start

    data, seen = sequences(trials), None
    if config.task_critic:
        seen = critic_view(config, sampler, policy, state.params, tasks, data)
        data = replace(data, value=seen.values(state.critic))
        if not data.value.isfinite().all():
            raise finite.NotFiniteError(
                f"the task critic's values are not finite in iteration {state.iteration + 1}: lower critic_lr, or give "
                "the parameters in task_space bounds, by which they are scaled"
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
    """Raise NotFiniteError for a number that is not finite, before the state is kept."""
    where = f"after the outer step of iteration {state.iteration}"
    finite.check_finite(state.params | state.optimizer, where, "the steps are too large, lower outer_lr")
    critic = {f"critic/{name}": x for name, x in (state.critic | state.critic_optimizer).items()}
    finite.check_finite(critic, where, "lower critic_lr")
    environment = state.obs_stats | {"value_units": state.value_units}
    finite.check_finite(environment, where, "the environment's rewards or observations are too large: scale them")


# ---------------------------------------------------------------------------------------------------------------------
# The parts of the outer step


def surveyed(setup: Setup[Config], state: State, tasks: Tasks) -> State:
    """The state to act with, as `metarl.inner.loop.surveyed`: first statistics of observations, where they are
    normalised, come from trials of their own, which count as environment steps."""
    if not state.obs_stats or state.obs_stats["count"] > 0:
        return state
    config = setup.config
    trials = collect_trials(
        setup.sampler, tasks, config.trials, config.trial_episodes, setup.policy, state.params, setup.seed,
        normalize.SURVEY, state.obs_stats,
    )  # fmt: skip
    stats = normalize.update(state.obs_stats, trials.raw_obs, trials.mask)
    return replace(state, obs_stats=stats, env_steps=state.env_steps + trials.steps)


def trial_advantages(config: Config, rew: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """GAE over trials whose valid steps stand one after the other, all [L, B].

    An episode's end is a step like any other: what is earned after it counts, discounted by the steps in between. Only
    the trial's end has no value beyond it.
    """
    assert rew.dim() == 2 and rew.shape == values.shape == mask.shape, (rew.shape, values.shape, mask.shape)
    values = torch.cat([values * mask, torch.zeros_like(values[:1])])
    return gae(rew[None], values[None], config.gamma, config.gae_lambda)[0]


def make_batch(config: Config, data: Sequences, units: Tensor, new_units: Tensor) -> TrialBatch:
    """Advantages, and targets of the value head in `new_units`; the values of `data` are in `units`. In float64.

    Where the rewards of all trials are the same in every step, an error of the values is all that there would be in
    the advantages: they are exactly zero.
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
    """Mean and standard deviation of the discounted returns, running over the meta-iterations: [2], float64.

    Where returns do not vary, their size takes the place of the deviation; while all have been zero, 1 does.
    """
    mask = data.mask.double()
    returns, count = discounted_returns(data.rew[None].double(), config.gamma)[0], mask.sum()
    mean = (returns * mask).sum() / count
    std = (((returns - mean) ** 2 * mask).sum() / count).sqrt()
    found = torch.stack([mean, torch.where(std > 1e-6 * mean.abs(), std, mean.abs())])
    if not state.has_units:
        return torch.where(found[1] > 0, found, found.new_tensor([0.0, 1.0]))
    return torch.lerp(state.value_units, found, UNIT_RATE)


def in_units(params: Params, units: Tensor, new: Tensor) -> Params:
    """The parameters whose value head gives in `new` units what it gave in `units`: the values stay as they are
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
    """The trials in an order that follows from (seed, iteration, epoch) alone, in parts of nearly equal size."""
    key = random.episode_seeds(seed, iteration, SHUFFLE + epoch, 1, 1)[0, 0]
    order = random.words(key, 0, n_trials, random.ACTION).argsort(stable=True)
    return order.to(device).tensor_split(config.minibatches)


def gradient(config: Config, policy: GRUPolicy, params: Params, batch: TrialBatch) -> tuple[Params, dict[str, Tensor]]:
    """The gradient of a minibatch's loss, and the loss's parts. In chunks of trials, which are summed up in order."""

    def loss(own: Params, chunk: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return ppo_loss(config, policy, own, batch[chunk])

    return summed_up(loss, params, batch.data.mask)


def ppo_loss(config: Config, policy: GRUPolicy, params: Params, batch: TrialBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value loss and entropy bonus of whole trials; means over their valid steps."""
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
    """The parameters after a step of Adam, and its memory."""
    direction, memory = optimizers.adam(grads, memory, eps=ADAM_EPS)
    return {name: value - lr * direction[name] for name, value in params.items()}, memory


def critic_view(
    config: Config, sampler: Sampler, policy: GRUPolicy, params: Params, tasks: Tasks, data: Sequences
) -> CriticView:
    """What the critic is shown of the trials `data`, in which the policy had these parameters."""
    vectors = TaskVectors(sampler.family.task_space)
    critic = TaskCritic(policy, vectors.size, config.critic_hidden)
    task = torch.from_numpy(vectors.encode(tasks)).to(data.x.device).repeat_interleave(config.trials, 0)
    return view_of(critic, params, data, task, config.trial_episodes * sampler.family.horizon)


def explained_variance(batch: TrialBatch, units: Tensor, new_units: Tensor) -> float:
    """Share of the variance of the value head's targets (in `new_units`) that the values which the advantages
    were taken with (in `units`) explain; at most 1."""
    on = batch.data.mask > 0
    target, value = _physical(batch.target[on].double(), new_units), _physical(batch.data.value[on].double(), units)
    return float(1 - (target - value).var(correction=0) / target.var(correction=0).clamp_min(1e-12))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@dataclass(frozen=True)
class TrialAdaptation:
    """Trials on given tasks: what was earned in every episode, and what is remembered at the end."""

    trials: Trials
    policy: Any
    params: Params
    obs_stats: ObsStats

    def policy_for(self, task: int) -> RecurrentPolicy:
        """The policy, with what the first trial of that task left in its memory."""
        own, stats = ({name: x.cpu() for name, x in part.items()} for part in (self.params, self.obs_stats))
        memory = Memory(*(value[task, 0].cpu() for value in self.memory))
        rates = None if self.success_rates is None else self.success_rates[task].cpu().numpy()
        returns = self.returns[task].mean(-1).cpu().numpy()
        return RecurrentPolicy(self.policy, own, memory, returns, success_rates=rates, obs_stats=stats)

    @property
    def returns(self) -> Tensor:
        """[K, N, E]."""
        return self.trials.returns

    @property
    def success_rates(self) -> Tensor | None:
        """[K, N]: share of trials with a success in their n-th episode; None where no environment reports it."""
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
        """What the best state of a run is chosen by: the return of a whole trial."""
        return self.returns.sum(1).mean().item()


@threads_over_tasks
def evaluate(
    setup: Setup[Config], state: State, tasks: Tasks, episodes: int, step_sizes: Sequence[float | None]
) -> TrialAdaptation:
    """`episodes` trials of each task, with one episode and a further one for each of `step_sizes`, which are None:
    nothing here has a size.

    Raises:
        ValueError: a step size that is a number.
    """
    if any(size is not None for size in step_sizes):
        raise ValueError(f"rl2 adapts by remembering and has no inner step sizes, got {list(step_sizes)}; steps= says "
                         "how many further episodes a trial has")  # fmt: skip
    n = len(step_sizes) + 1
    trials = collect_trials(
        setup.sampler, tasks, episodes, n, setup.policy, state.params, setup.seed, 0, state.obs_stats
    )
    return TrialAdaptation(trials, setup.policy, state.params, state.obs_stats)
