"""MAML and related methods on support and query sets, using the same inner step as the policies.

One iteration, top to bottom:
    sets                      K tasks from the training split, a support and a query set of each
    theta_0 .. theta_S        step each task's parameters on its own support set, S times
    outer step                Adam on the query loss of theta_S, differentiated through the S steps; or (Reptile)
                              move the initialisation towards theta_S

    The settings determine the method (see `metarl.supervised.methods` and docs/algorithms/supervised.md): MAML, FOMAML,
    Reptile, ANIL, Meta-SGD, MAML++, or, without inner steps, one network trained on all tasks jointly.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from metarl import random
from metarl.arguments import check_choice, check_fraction, check_not_negative, check_positive, check_types, check_whole
from metarl.formulas import optimizers
from metarl.inner.learned import LEARNED_LR, LearnedLr, learned_sizes, split, step_size
from metarl.inner.settings import cosine, head_of, multi_step_weights
from metarl.inner.step import Direction, StepSize, inner_step
from metarl.parallel import threads_for
from metarl.params import Params, expand
from metarl.printing import fields_text
from metarl.rollout.finite import NotFiniteError, check_finite
from metarl.supervised.losses import ACCURACIES, LOSSES
from metarl.supervised.networks import Network
from metarl.supervised.sets import SetFamily, Sets

OUTER = ("adam", "reptile", "reptile_serial")
INNER_OPTIMIZERS = ("sgd", "momentum", "adam")
ADAPTS = ("all", "head")


@dataclass(frozen=True)
class Config:
    """Settings of few-shot learning. The defaults are MAML on sinusoids (Finn, Abbeel, Levine 2017, section 5.1)."""

    n_tasks: int = 25
    """K: tasks per meta-iteration."""
    shots: int = 10
    """Examples in a support set; in classification, per class."""
    queries: int = 10
    """Examples in a query set; in classification, per class."""
    inner_steps: int = 1
    """Inner gradient steps during training; 0 trains one network on all tasks' query sets jointly."""
    inner_lr: float = 0.01
    """Step size of the inner loop, whose loss is the mean over a task's examples."""
    learned_lr: LearnedLr = "none"
    """Which factors on the inner step sizes the outer loop learns, all starting at 1: none, a single one ("scalar"),
    one per tensor and inner step ("per_layer_and_step", MAML++), or one per parameter ("per_parameter", Meta-SGD)."""
    learned_mask: bool = False
    """Learn which parameters adapt: each has a binary mask, initially open (sparse MAML, von Oswald et al. 2021)."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """The optimiser of the inner step. "momentum" and "adam" carry statistics from one inner step to the next, and are
    differentiated through."""
    inner_momentum: float = 0.9
    """Momentum coefficient of "momentum"."""
    inner_adam_eps: float = 1e-5
    """Added by "adam" to the root of the second moment: gradients far below it take proportional steps, those above it
    take steps of a fixed size. The meta-gradient through a parameter whose gradient is zero grows as 1 / this value."""
    adapts: Literal["all", "head"] = "all"
    """What the inner loop adapts: the whole network, or only its last layer (ANIL)."""
    first_order: bool = False
    """Do not differentiate through the inner gradient (first-order MAML)."""
    first_order_until: int = 0
    """Use first-order meta-gradients for this many initial iterations (derivative-order annealing of MAML++)."""
    multi_step_until: int = 0
    """Weight the query losses after all inner steps equally at first, shifting within this many iterations to the last
    one alone (multi-step loss of MAML++)."""
    outer: Literal["adam", "reptile", "reptile_serial"] = "adam"
    """The outer step: Adam on the meta-gradient; or Reptile, either once by the mean over the tasks ("reptile") or
    after every task ("reptile_serial"). Reptile does not distinguish support from query sets: each inner step uses the
    next `shots` of all the examples, shuffled."""
    outer_lr: float = 1e-3
    """Adam's step size for the network; or the fraction of the distance to the adapted parameters by which Reptile
    moves (1: all the way)."""
    learned_outer_lr: float = 1e-2
    """Adam's step size for what is learned about the inner loop (step-size factors, masks)."""
    anneal_over: int = 0
    """Anneal both step sizes to `anneal_to` times their initial value over this many iterations, by a cosine schedule
    (MAML++); 0 keeps them constant."""
    anneal_to: float = 0.01
    """Final factor of that schedule."""
    max_grad_norm: float = 0.0
    """Clip the norm of the meta-gradient to this value; 0 disables clipping."""
    hidden: tuple[int, ...] = (40, 40)
    """Units in the hidden layers of the network; not used if a module is given."""
    activation: str = "relu"
    """Activation of the hidden layers: tanh, relu or elu."""

    def __post_init__(self) -> None:
        check_types(self)
        check_choice(self, inner_optimizer=INNER_OPTIMIZERS, adapts=ADAPTS, learned_lr=LEARNED_LR, outer=OUTER)
        check_whole(self, n_tasks=1, shots=1, queries=1, inner_steps=0, anneal_over=0)
        check_whole(self, first_order_until=0, multi_step_until=0)
        check_positive(self, "inner_lr", "inner_adam_eps", "outer_lr", "learned_outer_lr")
        check_fraction(self, "inner_momentum", "anneal_to")
        check_not_negative(self, "max_grad_norm")
        if self.outer != "adam":
            self._check_reptile()

    def _check_reptile(self) -> None:
        check_whole(self, inner_steps=1)
        needs = {"learned_lr": "none", "learned_mask": False, "first_order": False, "first_order_until": 0,
                 "multi_step_until": 0, "adapts": "all", "max_grad_norm": 0.0}  # fmt: skip
        for name, default in needs.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} needs a meta-gradient, and Reptile has none: only "
                                 f"what adapts is learned. Leave it at {default!r}")  # fmt: skip

    def at(self, iteration: int) -> Self:
        """These settings as they are in effect in meta-iteration `iteration`."""
        factor = cosine(iteration, self.anneal_over, self.anneal_to)
        return replace(self, first_order=self.first_order or iteration < self.first_order_until,
                       outer_lr=factor * self.outer_lr, learned_outer_lr=factor * self.learned_outer_lr)  # fmt: skip

    def moving(self, names: Sequence[str] | Params) -> tuple[str, ...]:
        """The parameters among `names` that the inner step moves."""
        head = head_of(list(names)) if self.adapts == "head" else set(names)
        return tuple(name for name in names if name in head)


@dataclass(frozen=True, repr=False)
class State:
    """The training state passed from one meta-iteration to the next."""

    params: Params
    """The network's parameters before adaptation, shared by all tasks."""
    iteration: int = 0
    learned: Params = field(default_factory=dict)
    """What is learned about the inner loop (step-size factors, masks); empty if nothing is."""
    optimizer: Params = field(default_factory=dict)
    """Adam's statistics; empty for Reptile."""

    WARM_START = ("params", "learned")
    """Not Adam's statistics, which belong to its own settings."""

    __repr__ = fields_text


def init(config: Config, network: Network, seed: int, device: torch.device | str = "cpu") -> State:
    """The state before the first meta-iteration."""
    generator = torch.Generator().manual_seed(random.generator_seed(seed, 0))
    params = {name: value.to(device) for name, value in network.init(generator).items()}
    learned = learned_sizes(
        config.learned_lr, params, config.moving(params), config.inner_steps, config.learned_mask
    )  # fmt: skip
    memory = optimizers.adam_start(params | learned) if config.outer == "adam" else {}
    return State(params, 0, learned, memory)


# ---------------------------------------------------------------------------------------------------------------------
# The inner loop


def task_loss(family: SetFamily, network: Network, x: Tensor, y: Tensor, params: Params) -> Tensor:
    """Every task's loss on its own examples, [K]."""
    return LOSSES[family.loss](network.outputs(params, x), y)


def _direction(config: Config) -> Direction | None:
    if config.inner_optimizer == "momentum":
        return lambda _, grads, memory: optimizers.momentum(grads, memory, config.inner_momentum)
    if config.inner_optimizer == "adam":
        return lambda _, grads, memory: optimizers.adam(grads, memory, eps=config.inner_adam_eps)
    return None


def step(
    config: Config, loss: Callable[[Params], Tensor], params: Params, lr: StepSize, memory: Params | None = None,
    create_graph: bool = False,
) -> tuple[Params, Params]:  # fmt: skip
    """`params` [K, ...] after one inner step down every task's `loss` [K], and the inner optimiser's memory."""
    frozen = params.keys() - set(config.moving(params))
    return inner_step(params, loss, lr, create_graph, frozen, _direction(config), memory)


def query_loss(
    config: Config, family: SetFamily, network: Network, meta: Params, sets: Sets, iteration: int
) -> Tensor:  # fmt: skip
    """MAML's objective: every task's query loss after adaptation (with the multi-step loss, the weighted sum over all
    inner steps), [K], as a function of the meta-parameters; differentiable as the settings say."""
    config = config.at(iteration)
    weights = multi_step_weights(config.inner_steps, config.multi_step_until, iteration)
    own, learned = split(meta)
    params, memory = expand(own, sets.n_tasks), Params()
    measure = partial(task_loss, family, network, sets.x_query, sets.y_query)
    loss = partial(task_loss, family, network, sets.x_support, sets.y_support)
    total = measure(params) if config.inner_steps == 0 else sets.x_query.new_zeros(sets.n_tasks)
    for i in range(config.inner_steps):
        lr = step_size(learned, config.inner_lr, i, config.moving(params))
        params, memory = step(config, loss, params, lr, memory, create_graph=not config.first_order)
        if weights[i]:
            total = total + weights[i] * measure(params)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# The outer loop


def iteration(
    config: Config, family: SetFamily, network: Network, state: State, seed: int
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """One meta-iteration, a function of the arguments only -> the next state and statistics (see
    docs/algorithms/supervised.md)."""
    start = time.perf_counter()
    rng = np.random.default_rng([seed, state.iteration])
    device = next(iter(state.params.values())).device
    sets = family.sample(config.n_tasks, rng, "train", config.shots, config.queries).to(device)
    check_data(family, sets)
    drawn = time.perf_counter()
    with threads_for(sets.x_query.shape[0] * sets.x_query.shape[1], device):
        if config.outer == "adam":
            new, stats = _adam(config, family, network, state, sets)
        else:
            new, stats = _reptile(config, family, network, state, sets, rng)
    stats |= {"time/sampling": drawn - start, "time/update": time.perf_counter() - drawn}
    where = f"after the outer step of iteration {state.iteration + 1}"
    check_finite(new.params | new.learned | new.optimizer, where, "lower inner_lr or outer_lr")
    return replace(new, iteration=state.iteration + 1), stats


def check_data(family: SetFamily, sets: Sets) -> None:
    """Raise NotFiniteError for examples that are not finite, naming the family and the task."""
    data = {name: getattr(sets, name) for name in ("x_support", "y_support", "x_query", "y_query")}
    check_finite(data, f"in the sets drawn by {family.id}", "fix its sample", per_task=True)


def _adam(
    config: Config, family: SetFamily, network: Network, state: State, sets: Sets
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    now = config.at(state.iteration)
    meta = {name: value.detach().requires_grad_() for name, value in (state.params | state.learned).items()}
    loss = query_loss(config, family, network, meta, sets, state.iteration).mean()
    grads = torch.autograd.grad(loss, list(meta.values()), materialize_grads=True)
    gradient, norm = optimizers.clip_norm(dict(zip(meta, grads, strict=True)), config.max_grad_norm or math.inf)
    if not math.isfinite(float(norm)):
        raise NotFiniteError(f"the meta-gradient of iteration {state.iteration + 1} has the norm {float(norm)}: the "
                             "steps are too large, lower inner_lr or outer_lr")  # fmt: skip
    direction, memory = optimizers.adam(gradient, state.optimizer)
    lr = {name: now.outer_lr if name in state.params else now.learned_outer_lr for name in meta}
    moved = {name: value.detach() - lr[name] * direction[name] for name, value in meta.items()}
    params, learned = split(moved)
    stats = {"loss/query": loss.item(), "outer/gradient_norm": float(norm), "outer/lr": now.outer_lr}
    return State(params, state.iteration, learned, memory), stats | _learned_statistics(learned)


def _learned_statistics(learned: Params) -> dict[str, float]:
    stats: dict[str, float] = {}
    masks = [(value >= 0).flatten() for name, value in learned.items() if name.startswith("mask/")]
    factors = [value.flatten() for name, value in learned.items() if not name.startswith("mask/")]
    if factors:
        stats["inner/lr_factor"] = torch.cat(factors).mean().item()
    if masks:
        stats["inner/mask_open"] = torch.cat(masks).float().mean().item()
    return stats


def _reptile(
    config: Config, family: SetFamily, network: Network, state: State, sets: Sets, rng: np.random.Generator
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999: algorithm 1 is "reptile_serial", 2 "reptile"."""
    lr, params = config.at(state.iteration).outer_lr, state.params
    n, size = sets.x_support.shape[1] + sets.x_query.shape[1], sets.x_support.shape[1]
    order = rng.permuted(np.tile(np.arange(n), (sets.n_tasks, 1)), axis=1)  # every task's own
    groups = [slice(k, k + 1) for k in range(sets.n_tasks)] if config.outer == "reptile_serial" else [slice(None)]
    losses = []
    for group in groups:
        own = sets[group]
        adapted = _through_all(config, family, network, expand(params, own.n_tasks), own, order[group], size)
        losses.append(task_loss(family, network, own.x_query, own.y_query, adapted))
        params = {name: value + lr * (adapted[name] - value).mean(0) for name, value in params.items()}
    length = torch.stack([(params[name] - value).norm() for name, value in state.params.items()]).norm()
    if not math.isfinite(float(length)):
        raise NotFiniteError(f"Reptile's step in iteration {state.iteration + 1} has the length {float(length)}: the "
                             "inner steps are too large, lower inner_lr")  # fmt: skip
    stats = {"loss/query": torch.cat(losses).mean().item(), "outer/step_norm": length.item(), "outer/lr": lr}
    return State(params, state.iteration), stats


def _through_all(
    config: Config, family: SetFamily, network: Network, params: Params, sets: Sets, order: np.ndarray, size: int
) -> Params:  # fmt: skip
    """`params` after the inner steps of Reptile: each on the next `size` examples, in every task's `order` [K, N]."""
    x = torch.cat([sets.x_support, sets.x_query], 1)
    y = torch.cat([sets.y_support, sets.y_query], 1)
    task, memory = torch.arange(sets.n_tasks, device=x.device)[:, None], Params()
    for i in range(config.inner_steps):
        now = torch.as_tensor(order[:, np.arange(i * size, (i + 1) * size) % order.shape[1]], device=x.device)
        loss = partial(task_loss, family, network, x[task, now], y[task, now])
        params, memory = step(config, loss, params, config.inner_lr, memory)
    return params


# ---------------------------------------------------------------------------------------------------------------------
# Test tasks


@dataclass(frozen=True, repr=False)
class Adaptation:
    """The adaptation to K tasks by S inner steps."""

    params: Params  # after the last step, [K, ...]
    losses: Tensor  # [K, S + 1], on the query sets, after 0, 1, ..., S steps
    accuracies: Tensor | None  # [K, S + 1], likewise; None for "mse"

    __repr__ = fields_text


def evaluate(
    config: Config, family: SetFamily, network: Network, state: State, sets: Sets, step_sizes: Sequence[float]
) -> Adaptation:  # fmt: skip
    """Adapt to `sets` by one inner step on the support set per entry of `step_sizes`."""
    check_data(family, sets)
    params, memory = expand(state.params, sets.n_tasks), Params()
    losses, accuracies = [], []
    loss = partial(task_loss, family, network, sets.x_support, sets.y_support)
    with threads_for(sets.x_query.shape[0] * sets.x_query.shape[1], sets.x_query.device):
        for i in range(len(step_sizes) + 1):
            with torch.no_grad():
                out = network.outputs(params, sets.x_query)
                losses.append(LOSSES[family.loss](out, sets.y_query))
                if family.loss in ACCURACIES:
                    accuracies.append(ACCURACIES[family.loss](out, sets.y_query))
            if i < len(step_sizes):
                lr = step_size(state.learned, step_sizes[i], i, config.moving(params))
                params, memory = step(config, loss, params, lr, memory)
                where = f"after inner step {i} (step size {step_sizes[i]:g})"
                check_finite(params, where, "lower the step sizes", per_task=True)
    return Adaptation(params, torch.stack(losses, 1), torch.stack(accuracies, 1) if accuracies else None)
