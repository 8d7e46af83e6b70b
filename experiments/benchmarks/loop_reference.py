"""One meta-iteration of MAML-TRPO as one would write it without batching: a Python loop over the tasks.

The twin against which `meta_iteration.py` times `metarl.algorithms.maml_trpo`, and against which the tests check it:
the same settings, tasks and random numbers give the same new parameters. The mathematics is written down once more
(plain autograd on one task's parameters, `torch.distributions`, the KL divergence differentiated twice); shared are
the settings, the random numbers and the rollout, which collects one task's E episodes at a time.

Nothing is slower than it need be: the tasks of one iteration share one vector environment and one graph, gradients
of the KL divergence are built once per update, and the step length needs no Fisher product of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.nn import functional

from metarl import random
from metarl.algorithms.maml_trpo import Config, State
from metarl.policies.mlp import MLPPolicy
from metarl.rollout.rollout import Rollout, collect
from metarl.tasks import TaskFamily, Tasks

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Episodes:
    """The N valid steps of one task's episodes."""

    obs: Tensor  # [N, O]
    act: Tensor  # [N, A], categorical: [N]
    advantage: Tensor  # [N]
    head: Tensor  # [N, A], means or logits of the policy that acted
    log_std: Tensor | None  # [A]


def iteration(
    config: Config, family: TaskFamily, env: VectorEnv, policy: MLPPolicy, state: State, tasks: Tasks, seed: int
) -> tuple[Params, dict[str, Any]]:
    """-> new parameters and statistics, under the names of `maml_trpo.iteration`.

    Args:
        env: a vector environment of one task and `config.episodes` episodes.
    """
    data: list[list[Episodes]] = []
    returns: list[list[Tensor]] = []
    steps = 0
    for k in range(config.n_tasks):
        task = {name: value[k : k + 1] for name, value in tasks.items()}
        params = state.params
        stages: list[Episodes] = []
        sums: list[Tensor] = []
        for stage in range(config.inner_steps + 1):
            seeds = random.episode_seeds(seed, state.iteration, stage, config.n_tasks, config.episodes)[k : k + 1]
            stacked = {name: value[None] for name, value in params.items()}
            rollout = collect(env, task, family.horizon, policy, stacked, seeds)
            stages.append(episodes_of(rollout, config.gamma, config.gae_lambda))
            sums.append((rollout.rew[0] * rollout.mask[0]).sum(0))
            steps += rollout.steps
            if stage < config.inner_steps:
                params = inner_step(config, policy, leaves_of(params), stages[-1], create_graph=False)
        data.append(stages)
        returns.append(sums)

    new_params, stats = trpo_step(config, policy, state.params, data)
    for stage in range(config.inner_steps + 1):
        stats[f"return/step_{stage}"] = float(torch.cat([sums[stage] for sums in returns]).mean())
    return new_params, stats | {"env_steps": steps}


# ---------------------------------------------------------------------------------------------------------------------
# One task's data


def episodes_of(rollout: Rollout, gamma: float, lam: float) -> Episodes:
    """The first task's episodes with their normalised advantages."""
    obs, act, rew, valid = rollout.obs[0], rollout.act[0], rollout.rew[0].double(), rollout.mask[0].bool()
    length = int(valid.any(1).sum())
    usual = rew[valid].mean() * valid.any(1, keepdim=True).double().expand_as(rew)  # an episode of the mean reward
    usual = discounted(usual, gamma)
    t = 2 * torch.arange(len(rew), device=rew.device).double() / max(length - 1, 1) - 1
    time = t[:, None].expand_as(rew)[valid][:, None]
    x = standardised(obs[valid].double()).clamp(-10, 10)
    x = torch.cat([x, standardised(x**2)], 1)
    features = torch.cat([x, torch.ones_like(time), time, time**2, time**3], 1)
    varying = int((x != 0).any(0).sum())
    ridge = torch.tensor([3.0 * max(varying, 1)] * x.shape[1] + [1e-8 * len(x)] * 4, dtype=torch.float64)
    gram = features.T @ features + torch.diag(ridge).to(rew.device)
    coefficients = torch.linalg.solve(gram, features.T @ (discounted(rew, gamma) - usual)[valid])

    values = torch.zeros(len(rew) + 1, rew.shape[1], dtype=torch.float64, device=rew.device)
    values[:-1][valid] = usual[valid] + features @ coefficients
    advantage = discounted(rew + gamma * values[1:] - values[:-1], gamma * lam)[valid]
    advantage = ((advantage - advantage.mean()) / advantage.std(unbiased=False)).float()
    log_std = rollout.dist[1][0].reshape(-1) if len(rollout.dist) == 2 else None
    return Episodes(obs[valid], act[valid], advantage, rollout.dist[0][0][valid], log_std)


def standardised(x: Tensor) -> Tensor:
    """[N, D] with mean 0 and standard deviation 1; zero where it does not vary."""
    centred, std = x - x.mean(0), x.std(0, unbiased=False)
    return torch.where(std > 1e-6 * x.mean(0).abs(), centred / std, 0.0)


def discounted(rew: Tensor, gamma: float) -> Tensor:
    """Discounted sums from each step on, [T, E]."""
    sums, total = [], torch.zeros_like(rew[0])
    for r in reversed(rew.unbind()):
        total = r + gamma * total
        sums.append(total)
    return torch.stack(sums[::-1])


# ---------------------------------------------------------------------------------------------------------------------
# Policy, inner step, objective: on one task's own parameters


def action_distribution(policy: MLPPolicy, params: Params, obs: Tensor) -> Independent | Categorical:
    """The policy's distribution in N states [N, O]."""
    x, layers = obs, len(policy.hidden) + 1
    for i in range(layers):
        x = functional.linear(x, params[f"w{i}"].T, params[f"b{i}"])
        if i < layers - 1:
            x = getattr(functional, policy.activation)(x)  # tanh, relu, elu
    log_std = params["log_std"].clamp_min(math.log(policy.min_std)) if "log_std" in params else None
    return distribution(x, log_std)


def distribution(head: Tensor, log_std: Tensor | None) -> Independent | Categorical:
    """From means [N, A] and a log standard deviation [A], or from logits."""
    if log_std is None:
        return Categorical(logits=head, validate_args=False)
    return Independent(Normal(head, log_std.exp(), validate_args=False), 1, validate_args=False)


def leaves_of(params: Params) -> Params:
    """Detached copies that require a gradient."""
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def inner_step(config: Config, policy: MLPPolicy, params: Params, episodes: Episodes, create_graph: bool) -> Params:
    """`params` after one policy-gradient step."""
    log_prob = action_distribution(policy, params, episodes.obs).log_prob(episodes.act)
    if config.inner_gradient == "lvc":
        log_prob = (log_prob - distribution(episodes.head, episodes.log_std).log_prob(episodes.act)).exp()
    loss = -(log_prob * episodes.advantage).mean()
    moving = [name for name in params if config.adapt_std or name != "log_std"]
    grads = torch.autograd.grad(loss, [params[name] for name in moving], create_graph=create_graph)
    return params | {name: params[name] - config.inner_lr * g for name, g in zip(moving, grads, strict=True)}


def objective(
    config: Config, policy: MLPPolicy, meta: Params, data: Sequence[Sequence[Episodes]], differentiable: bool
) -> tuple[Tensor, Tensor]:
    """Surrogate loss and KL divergence, each the mean over the tasks of the mean over a task's steps."""
    losses, kls = [], []
    for *train, last in data:
        params = meta
        for episodes in train:
            params = inner_step(config, policy, params, episodes, differentiable and not config.first_order)
        with torch.set_grad_enabled(differentiable):
            new, old = action_distribution(policy, params, last.obs), distribution(last.head, last.log_std)
            ratio = (new.log_prob(last.act) - old.log_prob(last.act)).exp()
            losses.append(-(ratio * last.advantage).mean())
            kls.append(kl_divergence(old, new).mean())
    return torch.stack(losses).mean(), torch.stack(kls).mean()


# ---------------------------------------------------------------------------------------------------------------------
# The outer step


def trpo_step(
    config: Config, policy: MLPPolicy, params: Params, data: Sequence[Sequence[Episodes]]
) -> tuple[Params, dict[str, Any]]:
    """-> new parameters and statistics."""
    leaves = leaves_of(params)
    tensors = list(leaves.values())
    loss, kl = objective(config, policy, leaves, data, differentiable=True)
    gradient = flat(torch.autograd.grad(loss, tensors, retain_graph=True))
    kl_gradient = flat(torch.autograd.grad(kl, tensors, create_graph=True))

    def fisher(v: Tensor) -> Tensor:
        own = kl_gradient @ v.to(kl_gradient.dtype)
        return flat(torch.autograd.grad(own, tensors, retain_graph=True)).double() + config.damping * v

    direction, residual = conjugate_gradient(fisher, gradient.double(), config.cg_iterations)
    step = direction * torch.sqrt(2 * config.max_kl / (direction @ (gradient.double() - residual)))
    step = step.to(gradient.dtype)
    start, before = flat(tensors).detach(), float(loss.detach())
    stats: dict[str, Any] = {"outer/loss_before": before}
    for i in range(config.max_backtracks):
        parts = (start - config.backtrack**i * step).split([x.numel() for x in tensors])
        new = {name: part.reshape(x.shape) for (name, x), part in zip(leaves.items(), parts, strict=True)}
        new_loss, new_kl = (float(x) for x in objective(config, policy, leaves_of(new), data, differentiable=False))
        if new_loss < before and new_kl <= config.max_kl:
            return new, stats | {"outer/loss_after": new_loss, "outer/kl": new_kl, "outer/backtracks": i}
    return dict(params), stats | {"outer/loss_after": before, "outer/kl": 0.0,
                                  "outer/backtracks": config.max_backtracks}  # fmt: skip


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """x and b - A x."""
    x, r, p, residuals = torch.zeros_like(b), b, b, [b]
    for _ in range(iterations):
        rr = r @ r
        if rr.sqrt() <= 1e-6 * b.norm():
            break
        ap = product(p)
        step = rr / (p @ ap)
        x, r = x + step * p, r - step * ap
        if any(abs(r @ old) > 0.001 * r.norm() * old.norm() for old in residuals):  # rounding would decide the rest
            break
        residuals.append(r)
        p = r + (r @ r) / rr * p
    return x, r


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """As one vector."""
    return torch.cat([x.reshape(-1) for x in tensors])
