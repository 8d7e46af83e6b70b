"""What the losses and the meta-gradient estimate, by sampling: every task is a replicate."""

from functools import cache

import numpy as np
import pytest
import torch
from exact import MDP, Episodes, Loss, Table
from exact_cases import LR, case, dice, dice_with_baseline, gradient_of, loaded_dice, lvc, policy_gradient
from probes import QuietMDP
from torch import Tensor
from torch.autograd.functional import hessian

from metarl.algorithms import e_maml
from metarl.formulas import losses
from metarl.formulas.distributions import log_prob
from metarl.inner.loop import experience
from metarl.inner.loss import Batch
from metarl.inner.state import State
from metarl.inner.step import sgd_step
from metarl.outer import objective as outer
from metarl.outer.exploration import gain
from metarl.outer.trust_region import value_and_gradient
from metarl.params import expand
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import Tasks


def sampled(family: QuietMDP, tasks: Tasks, logits: Tensor, episodes: int, stage: int) -> tuple[Rollout, Episodes]:
    """Rollouts with logits [K, S, A]."""
    repeated = {name: np.repeat(value, len(logits), 0) for name, value in tasks.items()}
    policy = Table(spaces_of(family))
    rollout = Sampler(family).collect(repeated, episodes, policy, {"logits": logits}, 0, 0, stage)
    return rollout, Episodes(rollout.obs.double(), rollout.act, rollout.rew.double())


def z_scores(samples: Tensor, want: Tensor) -> Tensor:
    """How many standard errors the mean over the first axis is off, where anything varies."""
    mean, spread = samples.mean(0), samples.std(0)
    z = (mean - want) / (spread / len(samples) ** 0.5)
    return z[spread > 1e-6].abs()


@cache
def replicates(n: int, horizon: int) -> tuple[QuietMDP, Tasks, MDP, Tensor]:
    family = QuietMDP(2, 2, horizon)
    tasks = family.sample(1, np.random.default_rng(1))
    return family, tasks, MDP.of(family, tasks), case(1, horizon)[1].expand(n, 2, 2).clone()


def hessians(loss: Loss, logits: Tensor, policy: Table, data: Episodes) -> Tensor:
    """Every replicate's own, [K, SA, SA], uphill."""
    x = logits.clone().requires_grad_()
    total = -loss(log_prob(policy.distribution({"logits": x}, data.obs), data.act), data).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0].flatten(1) for g in gradient.flatten(1).unbind(1)]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("loss", "unbiased"),
    [(dice, True), (dice_with_baseline, True), (policy_gradient, False), (lvc, False)],
)
def test_sampled_hessians(loss, unbiased):
    family, tasks, mdp, logits = replicates(100_000, 3)
    _, data = sampled(family, tasks, logits, 1, 0)
    z = z_scores(hessians(loss, logits, Table(spaces_of(family)), data), hessian(mdp.value, logits[0]).reshape(4, 4))
    assert len(z) >= 4
    assert z.max() < 4 if unbiased else z.max() > 10


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_sampled_hessian_of_loaded_dice_with_exact_advantages(lam):
    family, tasks, mdp, logits = replicates(100_000, 3)
    _, data = sampled(family, tasks, logits, 1, 0)
    values, q = mdp.recursion(logits[0])
    states, t = data.obs.argmax(-1), torch.arange(3)[None, :, None]
    loss = loaded_dice(q[t, states, data.act] - values[t, states], lam)
    z = z_scores(hessians(loss, logits, Table(spaces_of(family)), data), hessian(mdp.value, logits[0]).reshape(4, 4))
    assert z.max() < 4 if lam == 1.0 else z.max() > 10


@pytest.mark.parametrize("explore", [True, False])
def test_sampled_meta_gradient_is_that_of_formulation_i_with_the_exploration_term_only(explore):
    family, tasks, mdp, logits = replicates(100_000, 3)
    policy, meta = Table(spaces_of(family)), logits.clone().requires_grad_()
    before, pre = sampled(family, tasks, logits, 2, 0)

    def inner(params):
        return policy_gradient(log_prob(policy.distribution(params, pre.obs), pre.act), pre)

    adapted = sgd_step({"logits": meta}, inner, LR, create_graph=True)
    after, post = sampled(family, tasks, adapted["logits"].detach(), 2, 1)
    taken = log_prob(policy.distribution(adapted, post.obs), post.act)
    loss = losses.surrogate(taken, after.log_prob.double(), post.returns(), post.mask)
    if explore:
        score = gain(Batch(after, post.returns(), torch.zeros_like(post.rew), torch.ones(len(logits))))
        taken = log_prob(policy.distribution({"logits": meta}, pre.obs), pre.act)
        loss = loss + losses.exploration(taken, before.log_prob.double(), score, pre.mask)
    (gradient,) = torch.autograd.grad(-loss.sum(), meta)
    z = z_scores(gradient, gradient_of(lambda x: mdp.formulation_i(x, LR, 2), logits[0]))
    assert z.max() < 4 if explore else z.max() > 10


class OneMDP(QuietMDP):
    """All tasks are the same one."""

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {name: np.repeat(x, n, 0) for name, x in super().sample(1, np.random.default_rng(1), split).items()}


@pytest.mark.parametrize("exploration", [1.0, 0.0])
def test_from_settings_to_meta_gradient_e_maml_is_formulation_i_with_the_weight_one(exploration):
    # Undiscounted returns for advantages, as they are: all else is as in training.
    mdp, logits = case(1, 3)
    family = OneMDP(2, 2, 3)
    sampler, policy, state = Sampler(family), Table(spaces_of(family)), State({"logits": logits.float()})
    config = e_maml.Config(
        n_tasks=2000, episodes=2, inner_lr=LR, gamma=1.0, reward_baseline=0.0, exploration=exploration
    )
    gradients = []
    for seed in range(50):
        data = experience(Setup(config, sampler, policy, seed), state).data
        parts = outer.objectives(config, policy, data, state)
        gradients.append(-value_and_gradient(parts, state.params)[1]["logits"].double())
    z = z_scores(torch.stack(gradients), gradient_of(lambda x: mdp.formulation_i(x, LR, 2), logits))
    assert len(z) == 4
    assert z.max() < 4 if exploration else z.max() > 10


def test_the_step_sizes_of_replicates_are_those_of_one():
    # The control of the above: K replicates side by side are K tasks alone.
    family, tasks, _, logits = replicates(3, 3)
    policy = Table(spaces_of(family))
    _, data = sampled(family, tasks, logits, 2, 0)

    def step(k: slice) -> Tensor:
        own = Episodes(data.obs[k], data.act[k], data.rew[k])
        inner = lambda p: dice(log_prob(policy.distribution(p, own.obs), own.act), own)  # noqa: E731
        return sgd_step(expand({"logits": logits[0]}, len(own.rew)), inner, LR)["logits"]

    torch.testing.assert_close(step(slice(3)), torch.cat([step(slice(k, k + 1)) for k in range(3)]))
