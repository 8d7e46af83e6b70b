"""The slow obvious twin of `metarl.outer.objective.objective`: task by task, every formula written down once more.

It is a function whose finite differences are the meta-gradient. Where an algorithm takes something for a constant (the
inner gradient of first-order MAML, the log-probabilities of DiCE's operator, the baseline of a learned discount, the
threshold of a mask), the function holds it as it is at the parameters `at` that it is made for.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from metarl.formulas.distributions import Gaussian, MultiCategorical
from metarl.inner.advantages import fitted_values
from metarl.inner.learned import split
from metarl.inner.loss import Batch
from metarl.inner.settings import GradientSettings
from metarl.params import Params
from metarl.policies.base import Policy


def heads(params: Params, obs: Tensor) -> Tensor:
    """A tanh network of one task, obs [..., O]; a context vector is a further input of the first layer."""
    x, layers = obs, sum(name[0] == "w" for name in params)
    for i in range(layers):
        weight, bias = params[f"w{i}"], params[f"b{i}"]
        if i == 0 and "context" in params:
            x = torch.cat([x, params["context"].expand(*x.shape[:-1], -1)], -1)
            weight = torch.cat([weight, params["context_weight"]])
        x = x @ weight + bias
        x = torch.tanh(x) if i + 1 < layers else x
    return x


def distribution(policy: Policy, params: Params, obs: Tensor) -> list[Distribution]:
    """Of one task, as torch's own: one for every independent choice."""
    out = heads(params, obs)
    if "log_std" in params:
        return [Independent(Normal(out, params["log_std"].clamp_min(math.log(policy.min_std)).exp()), 1)]
    return [Categorical(logits=part) for part in out.split(list(policy.spaces.sizes or [out.shape[-1]]), -1)]


def acted(batch: Batch, k: int) -> list[Distribution]:
    """The policy that acted in task k."""
    dist = batch.rollout.dist
    if isinstance(dist, Gaussian):
        return [Independent(Normal(dist.mean[k], dist.log_std[k].exp().expand_as(dist.mean[k])), 1)]
    sizes = dist.sizes if isinstance(dist, MultiCategorical) else [dist.logits.shape[-1]]
    return [Categorical(logits=part) for part in dist.logits[k].split(list(sizes), -1)]


def log_prob(dists: list[Distribution], act: Tensor) -> Tensor:
    """[T, E]"""
    columns = act.unbind(-1) if len(dists) > 1 else [act]
    return sum(d.log_prob(a) for d, a in zip(dists, columns, strict=True))  # type: ignore[return-value]


def advantages(batch: Batch, k: int, gamma: Tensor, lam: Tensor, values: Tensor) -> Tensor:
    """[T, E], from the last step to the first; `values` [T, E] of the baseline."""
    rew, mask = batch.rollout.rew[k], batch.rollout.mask[k]
    after, next_value, out = torch.zeros_like(rew[0]), torch.zeros_like(rew[0]), []
    for t in reversed(range(len(rew))):
        after = rew[t] + gamma * next_value - values[t] + gamma * lam * after
        next_value = values[t]
        out.insert(0, after)
    raw = torch.stack(out)
    valid = raw[mask.bool()]
    return (raw - valid.mean()) / valid.std(correction=0)


def usual_values(batch: Batch, k: int, gamma: Tensor) -> Tensor:
    """Discounted sums [T, 1] of the task's mean reward, up to the end of its longest episode."""
    rew, mask = batch.rollout.rew[k], batch.rollout.mask[k]
    longest, mean = int(mask.sum(0).max()), (rew * mask).sum() / mask.sum()
    sums = [mean * sum((gamma**n for n in range(longest - t)), torch.zeros(())) for t in range(len(rew))]
    return torch.stack(sums)[:, None]


@dataclass
class Held:
    """What is constant, by task and inner step: noted in the first pass, looked up ever after."""

    notes: dict[tuple, Tensor] = field(default_factory=dict)

    def __call__(self, value: Tensor, *key: object) -> Tensor:
        return self.notes.setdefault(key, value.detach())


@dataclass
class SlowObjective:
    """The meta-objective at given data as a function of the meta-parameters, a mapping of plain tensors."""

    config: GradientSettings
    policy: Policy
    data: list[Batch]
    at: Params
    unit: float = 1.0
    iteration: int = 0
    clip: float | None = None
    inner_kl: float = 0.0
    ratio: bool = True
    held: Held = field(default_factory=Held)

    def __post_init__(self) -> None:
        self(self.at)

    def __call__(self, meta: Params) -> Tensor:
        return torch.stack([self.task(meta, k) for k in range(len(self.data[-1].scale))]).mean()

    def gain(self, k: int, stage: int) -> float:
        """A task's mean return minus that of the others, per step of its own and in units of its advantages."""
        batch = self.data[stage]
        rew, mask, scale = batch.rollout.rew, batch.rollout.mask, float(batch.scale[k])
        earned = [float((rew[j] * mask[j]).sum()) / mask.shape[2] for j in range(len(mask))]
        tell = [j for j in range(len(earned)) if j != k and math.isfinite(float(batch.scale[j]))]
        others = [earned[j] for j in tell] or [x for j, x in enumerate(earned) if j != k]
        return (earned[k] - sum(others) / len(others)) * mask.shape[2] / self.steps(k, stage) / scale

    def steps(self, k: int, stage: int) -> float:
        """What the sum over a task's valid steps is divided by."""
        mask = self.data[stage].rollout.mask[k]
        return float(mask.numel() if self.config.loss_per == "episode" else mask.sum())

    def task(self, meta: Params, k: int) -> Tensor:
        """The loss of one task."""
        own = split(meta)[0]
        loss, memory = torch.zeros((), dtype=torch.float64), {}
        S = len(self.data) - 1
        left = max(0.0, 1 - self.iteration / self.config.multi_step_until) if self.config.multi_step_until else 0.0
        weights = [1.0] if S <= 1 else [left / S] * (S - 1) + [1 - left * (S - 1) / S]
        for i in range(S):
            credit = sum(weights[j] * self.gain(k, j + 1) for j in range(i, S)) if self.config.exploration else 0.0
            loss = loss + self.before(own, k, i, credit)
            own, memory = self.step(own, meta, k, i, memory)
            loss = loss + weights[i] * self.after(own, k, i + 1)
        return loss if S else self.after(own, k, 0)

    def adapted(self, meta: Params, k: int) -> Params:
        """What the inner steps make of the policy's parameters in task k."""
        own, memory = split(meta)[0], {}
        for i in range(len(self.data) - 1):
            own, memory = self.step(own, meta, k, i, memory)
        return own

    def after(self, own: Params, k: int, stage: int) -> Tensor:
        """The policy loss of the parameters after an inner step."""
        batch, valid = self.data[stage], self.data[stage].rollout.mask[k].bool()
        new = log_prob(distribution(self.policy, own, batch.rollout.obs[k]), batch.rollout.act[k])
        ratio = (new - log_prob(acted(batch, k), batch.rollout.act[k])).exp()
        if not self.ratio:
            return -(new * batch.advantage[k])[valid].sum() / self.steps(k, stage)
        gains = ratio * batch.advantage[k]
        if self.clip is not None:
            low, high = 1 - self.clip, 1 + self.clip
            gains = torch.minimum(gains, torch.clamp(ratio, low, high) * batch.advantage[k])
        return -gains[valid].sum() / self.steps(k, stage)

    def before(self, own: Params, k: int, stage: int, credit: float) -> Tensor:
        """What the loss has of the parameters before an inner step: ProMP's penalty, E-MAML's credit."""
        batch, valid = self.data[stage], self.data[stage].rollout.mask[k].bool()
        old, new = acted(batch, k), distribution(self.policy, own, batch.rollout.obs[k])
        kl = sum(kl_divergence(p, q) for p, q in zip(old, new, strict=True))[valid].mean()  # type: ignore[index]
        ratio = (log_prob(new, batch.rollout.act[k]) - log_prob(old, batch.rollout.act[k])).exp()
        penalty = self.inner_kl * kl if self.penalised(k, stage) else 0.0
        return penalty - self.config.exploration * credit * (ratio - 1)[valid].sum()

    def penalised(self, k: int, stage: int) -> bool:
        """Whether the task's step after `stage` has anything to go by, and changes any later loss."""
        tells = [math.isfinite(float(batch.scale[k])) for batch in self.data]
        return tells[stage] and any(tells[stage + 1 :])

    def inner_loss(self, own: Params, meta: Params, k: int, i: int) -> Tensor:
        config, batch = self.config, self.data[i]
        mask, act, A = batch.rollout.mask[k], batch.rollout.act[k], batch.advantage[k]
        n, T = self.steps(k, i), mask.shape[0]
        new = log_prob(distribution(self.policy, own, batch.rollout.obs[k]), act)
        if "discount" in meta or "lambda" in meta:
            gamma, lam = (
                torch.sigmoid(meta[name]) if name in meta else torch.tensor(fixed, dtype=torch.float64)
                for name, fixed in (("discount", config.gamma), ("lambda", config.gae_lambda))
            )
            usual = usual_values(batch, k, gamma)
            fit = self.held(fitted_values(batch.rollout, float(gamma))[k] - usual, "values", k, i)
            A = advantages(batch, k, gamma, lam, (fit + usual) * mask)
        if config.inner_gradient == "policy_gradient":
            return -(new * A * mask).sum() / n
        if config.inner_gradient == "lvc":
            return -((new - log_prob(acted(batch, k), act)).exp() * A * mask).sum() / n
        # DiCE's operator has the derivatives of the probability ratio to the parameters it is evaluated at.
        d = (new - self.held(new, "log_prob", k, i)) * mask
        total = torch.zeros((), dtype=torch.float64)
        for t in range(T):
            if config.inner_gradient == "dice":
                rew, baseline = (x[k, t] / batch.scale[k] for x in (batch.rollout.rew, batch.baseline))
                term = d[: t + 1].sum(0).exp() * rew + (1 - d[t].exp()) * baseline
                total = total + config.gamma**t * (term * mask[t]).sum()
            else:
                before = sum((config.dice_lambda ** (t - s) * d[s] for s in range(t)), torch.zeros_like(d[0]))
                total = total + (((before + d[t]).exp() - before.exp()) * A[t] * mask[t]).sum()
        return -total / n

    def size(self, meta: Params, name: str, i: int) -> Tensor | float:
        schedule = self.config.lr_schedule or (1.0,)
        size: Tensor | float = self.unit * self.config.inner_lr * schedule[min(i, len(schedule) - 1)]
        if "lr" in meta:
            size = size * meta["lr"]
        if f"lr/{name}" in meta:
            size = size * meta[f"lr/{name}"]
        if f"lr_step/{name}" in meta:
            size = size * meta[f"lr_step/{name}"][i]
        if f"mask/{name}" in meta:  # a factor of 1 or 0, differentiated as any factor is
            mask = meta[f"mask/{name}"]
            factor = self.held((mask >= 0).double(), "open", name) + mask - self.held(mask, "mask", name)
            size = size * factor
        return size

    def step(self, own: Params, meta: Params, k: int, i: int, memory: dict) -> tuple[Params, dict]:
        config = self.config
        moving = [name for name in own if name != "log_std" or config.adapt_std]
        if config.adapts == "head":
            last = max(int(name[1:]) for name in own if name[0] == "w")
            moving = [name for name in moving if name in (f"w{last}", f"b{last}", "log_std")]
        if config.adapts == "context":
            moving = [name for name in moving if name in ("context", "log_std")]
        leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
        loss = self.inner_loss(leaves, meta, k, i)
        found = torch.autograd.grad(loss, [leaves[name] for name in moving], materialize_grads=True)
        found = dict(zip(moving, (g.detach() for g in found), strict=True))
        found, memory = self.direction(own, found, k, i, memory)
        if config.first_order or self.iteration < config.first_order_until:
            found = {name: self.held(g, "gradient", name, k, i) for name, g in found.items()}
        return own | {name: own[name] - self.size(meta, name, i) * found[name] for name in moving}, memory

    def direction(self, own: Params, found: Params, k: int, i: int, memory: dict) -> tuple[Params, dict]:
        kind = self.config.inner_optimizer
        if kind == "momentum":
            found = {n: g + self.config.inner_momentum * memory[n] if i else g for n, g in found.items()}
            return found, found
        if kind == "adam":
            out, new = {}, {}
            for name, g in found.items():
                m, v = memory[name] if i else (0.0, 0.0)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                new[name] = (m, v)
                eps = self.config.inner_adam_eps
                root = torch.sqrt(v / (1 - 0.999 ** (i + 1)) + (eps / 10) ** 2)  # see `metarl.formulas.optimizers.adam`
                out[name] = m / (1 - 0.9 ** (i + 1)) / (root + eps)
            return out, new
        if kind == "natural":
            return self.natural(own, found, k, i), memory
        return found, memory

    def natural(self, own: Params, found: Params, k: int, i: int) -> Params:
        """The Fisher matrix as the expected outer product of scores, over exact expectations."""
        batch, names = self.data[i], list(found)
        valid = batch.rollout.mask[k].bool()
        obs = batch.rollout.obs[k][valid]

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            at = own | dict(zip(names, values, strict=True))
            return heads(at, obs), at.get("log_std", torch.zeros(1, dtype=torch.float64))

        rows = torch.autograd.functional.jacobian(outputs, tuple(own[n] for n in names), vectorize=True)
        mean, log_std = (torch.cat([x.reshape(*x.shape[: x.dim() - own[n].dim()], -1) for n, x in zip(names, row,
                         strict=True)], -1) for row in rows)  # fmt: skip
        P = mean.shape[-1]
        if "log_std" in own:
            scaled = mean / own["log_std"].exp()[:, None]
            fisher = torch.einsum("nap,naq->pq", scaled, scaled) / len(obs) + 2 * log_std.T @ log_std
        else:
            fisher, start = torch.zeros(P, P, dtype=torch.float64), 0
            for d in distribution(self.policy, own, obs):
                p, j = d.probs, mean[:, start : start + d.probs.shape[-1]]
                start += p.shape[-1]
                second = torch.einsum("na,nap,naq->pq", p, j, j)
                first = torch.einsum("na,nap->np", p, j)
                fisher = fisher + (second - first.T @ first) / len(obs)
        flat = torch.cat([found[n].reshape(-1) for n in names])
        fisher = fisher + self.config.natural_damping * torch.eye(P, dtype=torch.float64)
        parts = torch.linalg.inv(fisher) @ flat
        return {n: x.reshape(own[n].shape) for n, x in zip(names, parts.split([own[n].numel() for n in names]),
                                                           strict=True)}  # fmt: skip
