"""Small tabular Markov decision processes solved by enumeration, in float64, without sampling error.

The policy is a softmax over a table of logits [S, A]. Everything here is in the units of `metarl.formulas.losses`: an
expected return J is the expected mean (discounted) reward per step, and an inner step moves along the gradient of
that. The formulas are closed forms of their own; `expected_loss` and `meta_gradients` alone go through metarl's code,
to be compared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from metarl.formulas import losses
from metarl.formulas.distributions import Categorical, log_prob
from metarl.inner.step import sgd_step
from metarl.params import Params, expand
from metarl.policies.spaces import Spaces, spaces_of
from metarl.tasks import TaskFamily


@dataclass(frozen=True)
class Table:
    """A policy: a table of logits, one row for each state."""

    spaces: Spaces

    kind, memory = "Table", 0

    def init(self, generator: torch.Generator) -> Params:
        return {"logits": torch.randn(self.spaces.obs_dim, self.spaces.act_dim, generator=generator).double()}

    def distribution(self, params: Params, obs: Tensor) -> Categorical:
        x = obs.reshape(obs.shape[0], -1, obs.shape[-1]).to(params["logits"].dtype)
        return Categorical((x @ params["logits"]).reshape(*obs.shape[:-1], -1))


@dataclass(frozen=True)
class Episodes:
    """Data as the losses want it."""

    obs: Tensor  # [K, T, E, S]
    act: Tensor  # [K, T, E]
    rew: Tensor  # [K, T, E]

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.rew)

    def returns(self, gamma: float = 1.0) -> Tensor:
        """gamma^t times the discounted return from each step on, [K, T, E]."""
        powers = gamma ** torch.arange(self.rew.shape[1], dtype=self.rew.dtype)[:, None]
        return (powers * self.rew).flip(1).cumsum(1).flip(1)


@dataclass(frozen=True)
class MDP:
    """Starts in state 0 and ends after `horizon` steps."""

    transitions: Tensor  # [S, A, S]
    rewards: Tensor  # [S, A]
    horizon: int
    gamma: float = 1.0

    @staticmethod
    def of(family: TaskFamily, tasks: dict, gamma: float = 1.0) -> "MDP":
        """The first of `tasks` of `TabularMDP`. The last state's probability is what is left, as there."""
        rows = torch.as_tensor(tasks["transitions"][0]).double()
        rows = torch.cat([rows[..., :-1], 1 - rows[..., :-1].sum(-1, keepdim=True)], -1)
        return MDP(rows, torch.as_tensor(tasks["rewards"][0]).double(), family.horizon, gamma)

    @cached_property
    def paths(self) -> tuple[Tensor, Tensor, Tensor]:
        """All N trajectories: states [N, T], actions [N, T], and the probability of their transitions [N]."""
        S, A, T = *self.rewards.shape, self.horizon
        all_ = [((0, *s), a) for s in product(range(S), repeat=T - 1) for a in product(range(A), repeat=T)]
        states, actions = (torch.tensor(x) for x in zip(*all_, strict=True))
        chance = self.transitions[states[:, :-1], actions[:, :-1], states[:, 1:]].prod(-1)
        return states, actions, chance

    @property
    def discounts(self) -> Tensor:
        """[T]"""
        return self.gamma ** torch.arange(self.horizon, dtype=torch.float64)

    @property
    def step_rewards(self) -> Tensor:
        """Of every trajectory, discounted from its start, [N, T]."""
        states, actions, _ = self.paths
        return self.rewards[states, actions] * self.discounts

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of all trajectories. logits [..., S, A] -> [..., N]."""
        states, actions, chance = self.paths
        return chance * torch.log_softmax(logits, -1)[..., states, actions].sum(-1).exp()

    def value(self, logits: Tensor) -> Tensor:
        """J, [...]."""
        return (self.probabilities(logits) * self.step_rewards.mean(-1)).sum(-1)

    def gradients(self, logits: Tensor, baseline: Tensor | None = None) -> Tensor:
        """Of every trajectory, its policy-gradient estimate of dJ / dlogits: logits [S, A] -> [N, S, A].

        `baseline` [T, S], data, is what discounted returns from each step on are compared with; None: zero."""
        states, actions, _ = self.paths
        to_go = self.step_rewards.flip(1).cumsum(1).flip(1)
        to_go = to_go if baseline is None else to_go - baseline[torch.arange(self.horizon), states]
        score = torch.eye(logits.shape[1]).double()[actions] - torch.softmax(logits, -1)[states]  # [N, T, A]
        place = torch.eye(logits.shape[0]).double()[states]  # [N, T, S]
        return torch.einsum("nt,nts,nta->nsa", to_go / self.horizon, place, score)

    def gradient(self, logits: Tensor) -> Tensor:
        """dJ / dlogits, [S, A]; can be differentiated further."""
        return torch.einsum("n,nsa->sa", self.probabilities(logits), self.gradients(logits))

    def recursion(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Dynamic programming: values [T + 1, S] and action values [T, S, A], in rewards, not divided by T."""
        V, Q = [torch.zeros(self.rewards.shape[0], dtype=logits.dtype)], []
        for _ in range(self.horizon):
            Q.append(self.rewards + self.gamma * self.transitions @ V[-1])
            V.append((torch.softmax(logits, -1) * Q[-1]).sum(-1))
        return torch.stack(V[::-1]), torch.stack(Q[::-1])

    def advantages(self, logits: Tensor) -> Tensor:
        """The exact advantage of every step of every trajectory, discounted from its start, [N, T]."""
        states, actions, _ = self.paths
        (V, Q), t = self.recursion(logits), torch.arange(self.horizon)
        return self.discounts * (Q[t, states, actions] - V[t, states])

    def episodes(self, index: Tensor) -> Episodes:
        """Data of K tasks, each of the trajectories that `index` [K, E] names. Rewards are not discounted."""
        states, actions, _ = self.paths
        obs, act = torch.eye(self.rewards.shape[0]).double()[states[index]], actions[index]
        return Episodes(obs.transpose(1, 2), act.mT, self.rewards[states, actions][index].mT)

    def formulation_i(self, logits: Tensor, lr: float, episodes: int, baseline: Tensor | None = None) -> Tensor:
        """The expectation over `episodes` pre-adaptation episodes of J after a policy-gradient step on them."""
        index, count = multisets(len(self.paths[0]), episodes)
        weight = count * self.probabilities(logits)[index].prod(-1)
        stepped = logits + lr * self.gradients(logits, baseline)[index].mean(1)
        return (weight * self.value(stepped)).sum()

    def formulation_ii(self, logits: Tensor, lr: float) -> Tensor:
        """J after a step along the exact gradient."""
        return self.value(logits + lr * self.gradient(logits))


def multisets(n: int, size: int) -> tuple[Tensor, Tensor]:
    """All multisets of `size` of n things, [M, size], and in how many orders each can be drawn, [M].

    Episodes are exchangeable: n^size ordered draws have few different outcomes.
    """
    index = torch.tensor(list(combinations_with_replacement(range(n), size)))
    repeats = torch.nn.functional.one_hot(index, n).sum(1).double()
    return index, (math.lgamma(size + 1) - torch.lgamma(repeats + 1).sum(-1)).exp()


Loss = Callable[[Tensor, Episodes], Tensor]
"""(log-probabilities [K, T, E], data) -> [K]"""


def expected_loss(mdp: MDP, logits: Tensor, loss: Callable[[Tensor, Episodes], Tensor]) -> Callable[[Tensor], Tensor]:
    """The expectation over one episode drawn with `logits` of a loss, as a function of the logits it is taken at.

    Its derivatives at `logits` are the expectations of what the loss's derivatives estimate.
    """
    policy, data = _table(mdp), mdp.episodes(torch.arange(len(mdp.paths[0]))[:, None])
    weight = mdp.probabilities(logits).detach()

    def at(x: Tensor) -> Tensor:
        taken = log_prob(policy.distribution(expand({"logits": x}, len(weight)), data.obs), data.act)
        return (weight * loss(taken, data)).sum()

    return at


def meta_gradients(
    mdp: MDP, logits: Tensor, lr: float, episodes: int, inner: Loss, explore: bool, create_graph: bool = True
) -> tuple[Tensor, Tensor]:
    """The meta-gradient of metarl's parts after every outcome of the pre-adaptation episodes, [M, S, A], and the
    outcomes' probabilities [M]. The post-adaptation episodes are averaged over. The sign is that of J: uphill.

    One inner step by `sgd_step` on `inner`, differentiated through (with `create_graph`); outer `surrogate` with
    returns for advantages; with `explore` also `exploration`, the score being the gain over J before adaptation.
    """
    policy, N = _table(mdp), len(mdp.paths[0])
    index, count = multisets(N, episodes)
    before, after = mdp.episodes(index), mdp.episodes(torch.arange(N).expand(len(index), N))
    # One copy for each outcome, so that each has a gradient of its own.
    params = {"logits": expand({"logits": logits}, len(index))["logits"].clone().requires_grad_()}
    taken = log_prob(policy.distribution(params, before.obs), before.act)
    adapted = sgd_step(
        params, lambda p: inner(log_prob(policy.distribution(p, before.obs), before.act), before), lr, create_graph
    )
    outer_taken = log_prob(policy.distribution(adapted, after.obs), after.act)
    # Every trajectory is there once, so that its probability, which sampling would bring, comes as a factor.
    chance = mdp.probabilities(adapted["logits"]).detach()  # [M, N]
    advantage = after.returns(mdp.gamma) * (N * chance)[:, None]
    loss = losses.surrogate(outer_taken, outer_taken.detach(), advantage, after.mask)
    if explore:
        score = (chance * mdp.step_rewards.mean(-1)).sum(-1) - mdp.value(logits)
        loss = loss + losses.exploration(taken, taken.detach(), score, before.mask)
    (gradient,) = torch.autograd.grad(-loss.sum(), params["logits"])
    return gradient, count * mdp.probabilities(logits)[index].prod(-1)


def expected_meta_gradient(mdp: MDP, logits: Tensor, lr: float, episodes: int, inner: Loss, explore: bool) -> Tensor:
    """The expectation of `meta_gradients`, [S, A]."""
    gradient, weight = meta_gradients(mdp, logits, lr, episodes, inner, explore)
    return torch.einsum("m,msa->sa", weight, gradient)


def _table(mdp: MDP) -> Table:
    from metarl_envs.tabular_mdp import TabularMDP

    S, A = mdp.rewards.shape
    return Table(spaces_of(TabularMDP(S, A, mdp.horizon)))
