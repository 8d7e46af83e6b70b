"""An inner loss, advantages and state of one's own: they reach every place, and the derivatives go through them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from probes import Drift, Signs, finite_differences, linearise, problem, setup
from torch import Tensor

from metarl.algorithms import maml_trpo
from metarl.formulas import distributions
from metarl.formulas.losses import masked_mean
from metarl.formulas.returns import discounted_returns
from metarl.inner import loop
from metarl.inner.advantages import Estimate
from metarl.inner.loss import LossInput
from metarl.outer import objective
from metarl.params import Params, expand
from metarl.rollout.rollout import Rollout
from metarl.rollout.setup import Setup


@dataclass(frozen=True)
class NearTheStart(maml_trpo.Config):
    """A KL divergence from the initial policy in the inner loss."""

    weight: float = 0.7

    def inner_loss(self, at: LossInput) -> Tensor:
        kl = distributions.kl(at.initial_dist, at.dist)
        return super().inner_loss(at) + self.weight * masked_mean(kl, at.batch.rollout.mask)


SMALL: dict[str, Any] = {"n_tasks": 3, "episodes": 4, "hidden": (3,), "inner_lr": 0.4, "inner_steps": 2}


@pytest.mark.parametrize("family", [Drift, Signs])
@pytest.mark.parametrize("settings", [{}, {"inner_steps": 1}, {"adapt_std": True}, {"learned_lr": "scalar"}], ids=str)
def test_the_meta_gradient_goes_through_an_inner_loss_of_ones_own(family, settings):
    config = NearTheStart(**SMALL | settings)
    policy, state, data = problem(family(), config)
    found = objective.objective(config, policy, data, config.n_tasks)
    got, _ = linearise(found, state.meta)
    want = finite_differences(lambda meta: found(meta, False).loss.detach(), state.meta)
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-5)
    plain, _ = linearise(objective.objective(maml_trpo.Config(**SMALL | settings), policy, data, 3), state.meta)
    if config.inner_steps == 1:  # the divergence from oneself is smallest, whoever one is: no step depends on it
        torch.testing.assert_close(got, plain)
    else:
        assert (got - plain).norm() > 1e-4 * plain.norm()


def test_the_initial_policy_is_that_of_the_first_step_in_every_step_and_is_differentiated():
    """Two steps by hand, in float64: the second one's divergence is from where the first began."""
    config = NearTheStart(**SMALL, first_order=False)
    policy, state, data = problem(Drift(), config)
    initial = expand(state.params, 3)

    def stepped(params: Params, batch: Any, penalised: bool) -> Params:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items() if name != "log_std"}
        dist = policy.distribution(params | leaves, batch.rollout.obs)
        loss = maml_trpo.Config.inner_loss(config, LossInput(batch, dist))
        if penalised:
            before = policy.distribution(initial, batch.rollout.obs)
            loss = loss + 0.7 * masked_mean(distributions.kl(before, dist), batch.rollout.mask)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return params | {name: params[name] - 0.4 * g for name, g in zip(leaves, grads, strict=True)}

    first = stepped(initial, data[0], penalised=False)  # zero there, and so is its derivative
    want, control = (stepped(first, data[1], on) for on in (True, False))
    now, memory = initial, None
    for i in range(2):
        now, memory = loop.detached_step(config, policy, now, loop.InnerStep(data[i], 0.4, i, initial), memory)
    for name, value in want.items():
        torch.testing.assert_close(now[name], value, atol=1e-12, rtol=1e-9)
    assert not torch.equal(control["w0"], now["w0"])


def test_training_and_evaluation_adapt_by_it(monkeypatch):
    monkeypatch.setattr(loop, "chunks", lambda batch: [slice(0, 2), slice(2, 3)])  # as several threads would
    found = []
    for config in (NearTheStart(**SMALL), maml_trpo.Config(**SMALL)):
        sampler, policy, state = setup(Drift(), config)
        done = loop.experience(Setup(config, sampler, policy, 0), state)
        tasks = sampler.tasks(3, 1, 0)
        tested = loop.evaluate(Setup(config, sampler, policy, 0), state, tasks, 4, (0.4, 0.4))
        found.append((done.params[-1]["w0"], tested.params[-1]["w0"]))
        again = expand(state.params, 3)
        for i in range(2):
            now = loop.InnerStep(done.data[i], 0.4, i, expand(state.params, 3), state.learned)
            again = loop.detached_step(config, policy, again, now)[0]
        torch.testing.assert_close(done.params[-1]["w0"], again["w0"])
    assert not torch.allclose(found[0][0], found[1][0]) and not torch.allclose(found[0][1], found[1][1])


def test_an_inner_loss_of_ones_own_is_not_differentiated_by_hand():
    config = maml_trpo.Config(**SMALL)
    policy, _, data = problem(Drift(), config)
    assert objective._known_by_hand(config, policy, 2, (0.0, 1.0), objective.Outer())
    assert not objective._known_by_hand(NearTheStart(**SMALL), policy, 2, (0.0, 1.0), objective.Outer())
    assert len(data) == 3


def test_without_a_policy_an_inner_loss_is_told_that_it_knows_no_initial_one():
    _, _, data = problem(Drift(), maml_trpo.Config(**SMALL))
    with pytest.raises(AssertionError, match="without a policy knows no initial one"):
        NearTheStart(**SMALL).inner_loss(LossInput(data[0], data[0].rollout.dist))


# ---------------------------------------------------------------------------------------------------------------------
# Advantages and state


@dataclass(frozen=True)
class Counting(maml_trpo.Config):
    """Advantages that are the number of the stage, times the iteration plus one."""

    def advantages(self, rollout: Rollout, state: Any, stage: int) -> Estimate:
        plain = super().advantages(rollout, state, stage)
        return replace(plain, advantage=rollout.mask * stage * (state.iteration + 1))

    def update_state(self, state: Any, stages: Sequence[Sequence[Rollout]]) -> Any:
        assert [len(stage) for stage in stages] == [1, 1, 1]
        return replace(state, learned=state.learned | {"steps": torch.tensor(sum(s[0].steps for s in stages))})


def test_advantages_of_ones_own_are_those_of_every_stage_in_training_and_evaluation():
    config = Counting(**SMALL)
    sampler, policy, state = setup(Drift(), config)
    state = replace(state, iteration=4)
    done = loop.experience(Setup(config, sampler, policy, 0), state)
    assert [batch.advantage.max().item() for batch in done.data] == [0.0, 5.0, 10.0]
    tasks = sampler.tasks(3, 1, 0)
    tested = loop.evaluate(Setup(config, sampler, policy, 0), state, tasks, 4, (0.4, 0.4))
    moved = [not torch.equal(a["w0"], b["w0"]) for a, b in zip(tested.params, tested.params[1:], strict=False)]
    assert moved == [False, True]  # nothing is preferred before the first step


@dataclass(frozen=True)
class LeaveOneOut(maml_trpo.Config):
    """Returns compared with the mean of the task's other episodes, as a plain tensor."""

    shape: tuple[int, ...] = ()

    def advantages(self, rollout: Rollout, state: Any, stage: int) -> Tensor:
        returns = discounted_returns(rollout.rew, self.gamma)
        found = returns - (returns.sum(2, keepdim=True) - returns) / (returns.shape[2] - 1)
        return found[:, 1:] if self.shape else found


def test_advantages_may_be_a_plain_tensor_that_is_used_as_it_is():
    config = LeaveOneOut(**SMALL)
    sampler, policy, state = setup(Drift(), config)
    batch = loop.experience(Setup(config, sampler, policy, 0), state).data[0]
    want = config.advantages(batch.rollout, state, 0) * batch.rollout.mask
    torch.testing.assert_close(batch.advantage, want)
    assert batch.scale.tolist() == [1.0] * 3 and not batch.baseline.any()
    maml_trpo.iteration(Setup(config, sampler, policy, 0), state)


def test_advantages_of_another_shape_or_kind_are_refused_by_the_hooks_name(monkeypatch):
    sampler, policy, state = setup(Drift(), LeaveOneOut(**SMALL))
    with pytest.raises(ValueError, match=r"Config.advantages must return one number per step, shape \(3, 8, 4\)"):
        loop.experience(Setup(LeaveOneOut(**SMALL, shape=(1,)), sampler, policy, 0), state)
    monkeypatch.setattr(LeaveOneOut, "advantages", lambda *_: None)
    with pytest.raises(TypeError, match=r"Config.advantages must return a tensor \[K, T, E\] or an Estimate, got None"):
        loop.experience(Setup(LeaveOneOut(**SMALL), sampler, policy, 0), state)


def test_what_else_the_state_learns_is_in_the_next_one():
    config = Counting(**SMALL)
    sampler, policy, state = setup(Drift(), config)
    new, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    assert int(new.learned["steps"]) == new.env_steps > 0
