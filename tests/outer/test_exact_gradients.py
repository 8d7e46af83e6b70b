"""The meta-gradient through one inner step, exactly: summed over all trajectories of small tabular MDPs."""

from itertools import product

import pytest
import torch
from exact import MDP, Episodes, Table, expected_meta_gradient, multisets
from exact_cases import LR, case, dice, gradient_of, lvc, policy_gradient
from metarl_envs.tabular_mdp import TabularMDP
from probes import ends
from torch import Tensor
from torch.autograd.functional import hessian

from metarl.algorithms.maml_trpo import Config
from metarl.formulas import losses
from metarl.formulas.distributions import log_prob
from metarl.inner.loss import Batch
from metarl.outer import objective as outer
from metarl.outer.trust_region import value_and_gradient
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout


def error(got: Tensor, want: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((got - want).norm() / want.norm())


# ---------------------------------------------------------------------------------------------------------------------
# The enumeration itself


def finite_differences(function, x: Tensor, eps: float = 1e-5) -> Tensor:
    """The derivative of a tensor-valued function, its shape followed by x's."""
    directions = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    columns = [(function(x + eps * d) - function(x - eps * d)) / (2 * eps) for d in directions]
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_return_is_that_of_dynamic_programming(gamma):
    mdp, logits = case(horizon=4, gamma=gamma)
    values, _ = mdp.recursion(logits)
    torch.testing.assert_close(mdp.value(logits), values[0, 0] / 4)
    torch.testing.assert_close(mdp.probabilities(logits).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_return_by_hand():
    # Action 1 pays 1 and leads to state 1, where action 0 pays 2; even odds: 1/2 + 1/2 * 1/2 * 2 over two steps.
    transitions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    mdp = MDP(transitions, torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64), 2)
    # State 0 again with probability 1/2, and then 1/2 once more for the first reward: 1/4.
    assert mdp.value(torch.zeros(2, 2).double()).item() == (0.5 + 0.5 * 0.5 * 2 + 0.5 * 0.5) / 2


def test_gradient_and_hessian_are_those_of_finite_differences_and_dynamic_programming():
    mdp, logits = case(gamma=0.9)
    by_recursion = lambda x: mdp.recursion(x)[0][0, 0] / mdp.horizon  # noqa: E731
    torch.testing.assert_close(mdp.gradient(logits), gradient_of(mdp.value, logits))
    torch.testing.assert_close(mdp.gradient(logits), gradient_of(by_recursion, logits))
    torch.testing.assert_close(mdp.gradient(logits), finite_differences(mdp.value, logits))
    torch.testing.assert_close(hessian(mdp.value, logits), hessian(by_recursion, logits))
    torch.testing.assert_close(hessian(mdp.value, logits), finite_differences(mdp.gradient, logits))


def test_multisets_count_every_ordered_draw():
    index, count = multisets(3, 4)
    want: dict[tuple, int] = {}
    for draw in product(range(3), repeat=4):
        want[tuple(sorted(draw))] = want.get(tuple(sorted(draw)), 0) + 1
    assert {tuple(i): round(c) for i, c in zip(index.tolist(), count.tolist(), strict=True)} == want


def test_formulation_i_is_the_double_sum_over_two_episodes():
    # The slow twin: every ordered pair, and the inner gradient by automatic differentiation of log-probabilities.
    mdp, logits = case(horizon=2)
    states, actions, _ = mdp.paths
    to_go = mdp.step_rewards.flip(1).cumsum(1).flip(1) / mdp.horizon
    p, want = mdp.probabilities(logits), 0.0
    for i, j in product(range(len(p)), repeat=2):

        def objective(x, pair=(i, j)):
            taken = torch.log_softmax(x, -1)[states[list(pair)], actions[list(pair)]]
            return (taken * to_go[list(pair)]).sum(1).mean()

        want += p[i] * p[j] * mdp.value(logits + LR * gradient_of(objective, logits))
    torch.testing.assert_close(mdp.formulation_i(logits, LR, 2), want)


def test_the_formulations_differ_with_few_episodes_and_agree_without_a_step():
    mdp, logits = case(horizon=2)
    assert abs(mdp.formulation_i(logits, LR, 1) - mdp.formulation_ii(logits, LR)) > 0.01
    for zero in (mdp.formulation_i(logits, 0.0, 2), mdp.formulation_ii(logits, 0.0)):
        torch.testing.assert_close(zero, mdp.value(logits))


# ---------------------------------------------------------------------------------------------------------------------
# Meta-gradients through one inner step


@pytest.mark.parametrize(("horizon", "episodes"), [(3, 1), (3, 2), (2, 4)])
def test_maml_with_the_exploration_term_is_formulation_i(horizon, episodes):
    mdp, logits = case(horizon=horizon)
    want = gradient_of(lambda x: mdp.formulation_i(x, LR, episodes), logits)
    e_maml = expected_meta_gradient(mdp, logits, LR, episodes, policy_gradient, explore=True)
    maml = expected_meta_gradient(mdp, logits, LR, episodes, policy_gradient, explore=False)
    torch.testing.assert_close(e_maml, want)
    assert error(maml, want) > 0.3


def test_a_baseline_changes_formulation_i_and_the_meta_gradient_alike():
    mdp, logits = case()
    baseline = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def inner(log_prob: Tensor, data: Episodes) -> Tensor:
        advantage = data.returns() - baseline[torch.arange(3)[None, :, None], data.obs.argmax(-1)]
        return losses.policy_gradient(log_prob, advantage, data.mask)

    want = gradient_of(lambda x: mdp.formulation_i(x, LR, 2, baseline), logits)
    torch.testing.assert_close(expected_meta_gradient(mdp, logits, LR, 2, inner, True), want)
    assert error(gradient_of(lambda x: mdp.formulation_i(x, LR, 2), logits), want) > 0.02
    torch.testing.assert_close(mdp.probabilities(logits) @ mdp.gradients(logits, baseline).flatten(1),
                               mdp.gradient(logits).flatten())  # fmt: skip


def test_a_mean_over_the_steps_in_place_of_the_sum_is_not_formulation_i():
    # The mistake of published code: the exploration term too small by T * E.
    mdp, logits = case()
    want = gradient_of(lambda x: mdp.formulation_i(x, LR, 2), logits)
    e_maml, maml = (expected_meta_gradient(mdp, logits, LR, 2, policy_gradient, explore=e) for e in (True, False))
    assert error(maml + (e_maml - maml) / (mdp.horizon * 2), want) > 0.3


@pytest.mark.parametrize("seed", range(3))
def test_maml_with_dice_approaches_formulation_ii_as_episodes_grow(seed):
    # The noise of the inner gradient enters the outer return through its curvature: an error of order 1 / E.
    mdp, logits = case(seed, horizon=2)
    want = gradient_of(lambda x: mdp.formulation_ii(x, 0.25), logits)
    two, eight = (error(expected_meta_gradient(mdp, logits, 0.25, n, dice, False), want) for n in (2, 8))
    assert 3.5 < two / eight < 5.0 and eight < 0.005


@pytest.mark.parametrize("seed", range(3))
def test_maml_with_the_policy_gradient_does_not(seed):
    mdp, logits = case(seed, horizon=2)
    want = gradient_of(lambda x: mdp.formulation_ii(x, 0.25), logits)
    two, eight = (error(expected_meta_gradient(mdp, logits, 0.25, n, policy_gradient, False), want) for n in (2, 8))
    assert 0.9 < two / eight < 1.1 and eight > 0.05


def rollout_of(data: Episodes, logits: Tensor) -> Rollout:
    """As the policy with logits [K, S, A] would have drawn them."""
    dist = Table(spaces_of(TabularMDP(2, 2))).distribution({"logits": logits}, data.obs)
    return Rollout(data.obs, data.act, data.rew, data.mask, log_prob(dist, data.act), dist,
                   **ends(data.obs, data.mask))  # fmt: skip


@pytest.mark.parametrize(
    ("inner_gradient", "inner", "explore"),
    [
        ("policy_gradient", policy_gradient, True),
        ("policy_gradient", policy_gradient, False),
        ("lvc", lvc, False),
        ("dice", dice, False),
    ],
)
def test_the_outer_objective_has_the_meta_gradient_of_its_parts(inner_gradient, inner, explore):
    # The objective that the algorithms lower, on the enumerated data, with scores in the units of the outer loss.
    mdp, logits = case(horizon=2)
    index, count = multisets(len(mdp.paths[0]), 2)
    M, N = len(index), len(mdp.paths[0])
    weight = M * count * mdp.probabilities(logits)[index].prod(-1)  # the objective is a mean over M tasks
    before, after = mdp.episodes(index), mdp.episodes(torch.arange(N).expand(M, N))
    stepped = logits + LR * mdp.gradients(logits)[index].mean(1)
    chance = mdp.probabilities(stepped)
    nothing, one = torch.zeros_like(before.rew), torch.ones(M, dtype=torch.float64)
    data = [
        Batch(rollout_of(before, logits.expand(M, 2, 2)), before.returns(), nothing, one),
        Batch(rollout_of(after, stepped), after.returns() * (N * weight[:, None] * chance)[:, None], after.rew, one),
    ]
    scores = weight * (chance * mdp.step_rewards.mean(-1)).sum(-1)
    config = Config(
        n_tasks=M, episodes=2, inner_gradient=inner_gradient, inner_lr=LR, gamma=1.0, exploration=1.0 * explore
    )
    policy = Table(spaces_of(TabularMDP(2, 2)))
    objective = outer.objective(config, policy, data, M, scores=[scores])
    gradient = value_and_gradient([objective], {"logits": logits})[1]["logits"]
    torch.testing.assert_close(-gradient, expected_meta_gradient(mdp, logits, LR, 2, inner, explore))


SCALES = (1.0, 2.5)
"""What the outer advantages of two tasks are divided by."""


def expected_of_two_tasks(exploration: float, episodes: int) -> Tensor:
    """The expectation, uphill, of the meta-gradient that the algorithms take of two tasks, with a credit of their own
    making from one post-adaptation episode each; over all outcomes of both tasks."""
    (one, logits), (two, _) = case(1, 2), case(2, 2)
    index, count = multisets(len(one.paths[0]), episodes)
    M, N = len(index), len(one.paths[0])
    drawn = [count * mdp.probabilities(logits)[index].prod(-1) for mdp in (one, two)]
    stepped = [logits + LR * mdp.gradients(logits)[index].mean(1) for mdp in (one, two)]
    chance = [p[:, None] * mdp.probabilities(x) for p, mdp, x in zip(drawn, (one, two), stepped, strict=True)]  # [M, N]
    config = Config(n_tasks=2, episodes=episodes, inner_lr=LR, gamma=1.0, exploration=exploration)
    total = torch.zeros_like(logits)
    for k, mdp in enumerate((one, two)):
        # One row for every outcome before and after adaptation of task k, and after adaptation of the other task.
        m, n, other = (x.flatten() for x in torch.meshgrid(*map(torch.arange, (M, N, N)), indexing="ij"))
        weight = len(m) * chance[k][m, n] * chance[1 - k].sum(0)[other]  # the objective is a mean over rows
        earned = torch.tensor([[float(credit_of(k, x, y, config)) for y in range(N)] for x in range(N)]).double()
        before, after = mdp.episodes(index[m]), mdp.episodes(n[:, None])
        nothing, one_each = torch.zeros_like(before.rew), torch.ones(len(m), dtype=torch.float64)
        advantage = after.returns() / SCALES[k] * weight[:, None, None]
        data = [
            Batch(rollout_of(before, logits.expand(len(m), 2, 2)), before.returns(), nothing, one_each),
            Batch(rollout_of(after, stepped[k][m]), advantage, after.rew, one_each),
        ]
        policy = Table(spaces_of(TabularMDP(2, 2)))
        objective = outer.objective(config, policy, data, len(m), scores=[weight * earned[n, other]])
        total = total - value_and_gradient([objective], {"logits": logits})[1]["logits"] / 2
    return total


def credit_of(k: int, own: int, other: int, config: Config) -> Tensor:
    """What task k of the two earns with its trajectory number `own` where the other has number `other`."""
    parts = [case(seed, 2)[0].episodes(torch.tensor([[n]])) for seed, n in ((1 + k, own), (2 - k, other))]
    data = Episodes(*(torch.cat([getattr(part, name) for part in parts]) for name in ("obs", "act", "rew")))
    scale = torch.tensor([SCALES[k], SCALES[1 - k]], dtype=torch.float64)
    advantage = data.returns() / scale[:, None, None]
    last = Batch(rollout_of(data, torch.zeros(2, 2, 2).double()), advantage, torch.zeros_like(data.rew), scale)
    return outer.credits(config, [last, last])[0][0]


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_with_the_weight_one_e_maml_has_the_gradient_of_formulation_i(episodes):
    (one, logits), (two, _) = case(1, 2), case(2, 2)

    def formulation_i(x: Tensor) -> Tensor:
        found = [mdp.formulation_i(x, LR, episodes) / scale for mdp, scale in zip((one, two), SCALES, strict=True)]
        return (found[0] + found[1]) / 2

    want = gradient_of(formulation_i, logits)
    torch.testing.assert_close(expected_of_two_tasks(1.0, episodes), want)
    assert error(expected_of_two_tasks(0.0, episodes), want) > 0.2
    assert error(expected_of_two_tasks(0.5, episodes), want) > 0.1
