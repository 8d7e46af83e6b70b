"""The critic that sees the task: by hand, as a part of RL²'s outer step, and what only it can explain."""

import re
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import Drift, Locks, PointGoal, TwoArms
from tiny_runs import rows_without_time, same_params
from torch import Tensor

import metarl
from metarl import MetaLearner
from metarl.algorithms import rl2
from metarl.formulas import distributions
from metarl.formulas.distributions import Categorical, Gaussian, multi_categorical
from metarl.policies.gru import GRUPolicy
from metarl.policies.spaces import spaces_of
from metarl.policies.vectors import TaskVectors
from metarl.recurrent import sequences as sequences_module
from metarl.recurrent import task_critic
from metarl.recurrent.sequences import sequences
from metarl.recurrent.task_critic import CriticView, TaskCritic
from metarl.recurrent.trials import collect_trials
from metarl.rollout.setup import Setup

SMALL: dict[str, Any] = {"n_tasks": 4, "trials": 2, "trial_episodes": 3, "hidden": 6, "epochs": 2, "minibatches": 3,
                         "task_critic": True, "critic_hidden": 5}  # fmt: skip


def small(family: Any = None, **config: Any) -> MetaLearner:
    return MetaLearner("rl2", family or Drift(), device="cpu", **(SMALL | config))


def random_params(critic: TaskCritic, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {n: v.to(dtype) + torch.randn(v.shape, generator=g, dtype=dtype) / 3 for n, v in critic.init(g).items()}


def view_of(learner: MetaLearner) -> tuple[CriticView, Any, dict[str, np.ndarray]]:
    """What the critic sees of a first iteration's trials; those; their tasks."""
    config, state = learner.config, learner.state
    tasks = learner.sampler.tasks(config.n_tasks, 0, 0)
    trials = collect_trials(
        Setup(None, learner.sampler, learner.policy, 0), tasks, config.trials, config.trial_episodes, state.params, 0
    )
    data = sequences(trials)
    return rl2.critic_view(config, learner.sampler, learner.policy, state.params, tasks, data), data, tasks


# ---------------------------------------------------------------------------------------------------------------------
# The network


def test_a_value_by_hand():
    critic = TaskCritic(GRUPolicy(spaces_of(TwoArms()), 3), task_dim=2, units=4)
    p = random_params(critic)
    g = torch.Generator().manual_seed(0)
    seen, task = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 3, 5), (3, 2)))
    left = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = critic.value(p, seen, task, left)
    assert found.shape == (2, 3)
    for t in range(2):
        for b in range(3):
            s, d, share = seen[t, b], task[b], left[t]
            sums = (p["w_sum_step"] @ s + p["w_sum_task"] @ d + p["b_sum"]).clamp_min(0)
            products = (p["w_product_step"] @ s + p["b_product_step"]) * (p["w_product_task"] @ d + p["b_product_task"])
            u = torch.cat([sums, products])
            y = (p["w_join"] @ torch.cat([u, share * u]) + p["b_join"]).clamp_min(0)
            by_hand = p["w_value"][0] @ torch.cat([y, share * y]) + p["b_value"][0]
            assert float(found[t, b]) == pytest.approx(float(by_hand), rel=1e-12)


def test_it_starts_with_the_value_zero_and_can_leave_it():
    learner = small()
    view, *_ = view_of(learner)
    assert not view.value(learner.state.critic).any()
    params = {name: value.clone().requires_grad_() for name, value in learner.state.critic.items()}
    view.value(params).sum().backward()
    assert params["w_value"].grad.abs().min() >= 0 and params["w_value"].grad.any()


def test_products_of_parts_are_in_reach_of_it():
    # What an arm pays, times how probable it is, times what is left: learned to 1% of what differs between tasks, of
    # tasks that it was not fitted to. The control: without the products the same network is left with several times
    # as much.
    critic = TaskCritic(GRUPolicy(spaces_of(metarl.make("BernoulliBandit-v0", arms=10)), 1), task_dim=10, units=32)
    left = 1 - torch.arange(8) / 8

    def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        doing, task = torch.softmax(3 * torch.randn(8, 100, 10, generator=g), -1), torch.rand(100, 10, generator=g)
        return torch.cat([torch.zeros(8, 100, 1), doing], -1), 2 * task - 1, (doing * task).sum(-1) * left[:, None]

    def fitted(**without: int) -> float:
        params = critic.init(torch.Generator().manual_seed(0))
        fixed = {name: torch.zeros_like(params[name]) for name in without}
        params = {name: value.clone().requires_grad_() for name, value in params.items()}
        optimizer = torch.optim.Adam(params.values(), 0.005)
        for i in range(300):
            seen, task, value = data(i)
            optimizer.zero_grad()
            (critic.value(params | fixed, seen, task, left) - value).square().mean().backward()
            optimizer.step()
        seen, task, value = data(1000)
        with torch.no_grad():
            error = (critic.value(params | fixed, seen, task, left) - value).square().mean()
        return float(error / (value - value.mean(1, keepdim=True)).square().mean())

    assert fitted() < 0.015
    assert fitted(w_product_step=0, b_product_step=0) > 0.045


def test_what_it_sees_of_a_step():
    hidden = torch.tensor([0.1, 0.2])
    for family, dist, doing in (
        (Drift(), Gaussian(torch.tensor([0.3, -0.4]), torch.zeros(2)), [0.3, -0.4]),
        (TwoArms(), Categorical(torch.tensor([0.0, np.log(3.0)])), [0.25, 0.75]),
        (Locks(), multi_categorical((3, 2))(torch.tensor([0, 0, np.log(2.0), np.log(4.0), 0])),
         [0.25, 0.25, 0.5, 0.8, 0.2]),
    ):  # fmt: skip
        spaces = spaces_of(family)
        obs = torch.arange(1.0, spaces.obs_dim + 1)
        critic = TaskCritic(GRUPolicy(spaces, 2), 1)
        plain = critic.seen(hidden, dist, obs)
        assert plain.tolist() == pytest.approx([0.1, 0.2, *doing]) and critic.input_dim == len(plain)
        critic = TaskCritic(GRUPolicy(spaces, 2, last_obs=True, products=True), 1)
        pairs = [o * a for o in obs.tolist() for a in doing]
        assert critic.seen(hidden, dist, obs).tolist() == pytest.approx([0.1, 0.2, *doing, *pairs])
        assert critic.input_dim == 2 + len(doing) + len(pairs)


def test_probabilities_add_up_in_every_choice():
    dist = multi_categorical((3, 2))(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    found = distributions.probabilities(dist)
    assert found.shape == (7, 5)
    assert torch.allclose(found[:, :3].sum(-1), torch.ones(7)) and torch.allclose(found[:, 3:].sum(-1), torch.ones(7))
    assert torch.allclose(found[:, 3:], torch.softmax(dist.logits[:, 3:], -1))


# ---------------------------------------------------------------------------------------------------------------------
# What it sees of trials


def test_it_sees_the_memory_of_each_step_and_its_own_task():
    learner = small(last_obs=True, products=True)
    view, data, tasks = view_of(learner)
    (L, B), policy, params = data.mask.shape, learner.policy, learner.state.params
    assert B == 8 and L < 24 and view.seen.shape == (L, B, view.critic.input_dim)  # episodes end early
    vectors = TaskVectors(learner.family.task_space).encode(tasks)
    for b in range(B):
        assert view.task[b].tolist() == vectors[b // 2].tolist()  # two trials of each task
        hidden = torch.zeros(6)
        for t in range(int(data.mask[:, b].sum())):
            hidden = policy.step(params, data.x[t, b], hidden)
            dist, _ = policy.heads(params, hidden)
            expected = torch.cat([hidden, dist.mean, (data.x[t, b, :2, None] * dist.mean).flatten()])
            assert torch.allclose(view.seen[t, b], expected, atol=1e-6)
    assert view.left.tolist() == pytest.approx([1 - t / 24 for t in range(L)])
    some = view[torch.tensor([5, 2])]
    assert torch.equal(some.seen, view.seen[:, [5, 2]]) and torch.equal(some.task, view.task[[5, 2]])


def test_gradient_against_finite_differences_and_in_chunks(monkeypatch):
    learner = small()
    view, data, _ = view_of(learner)
    view = replace(view, **{name: getattr(view, name).double() for name in ("seen", "task", "left")})
    g = torch.Generator().manual_seed(0)
    target = torch.randn(data.mask.shape, generator=g, dtype=torch.float64)
    params = random_params(view.critic)
    grads = view.gradient(params, target, data.mask)

    def loss(own: dict[str, Tensor]) -> float:
        on = data.mask > 0
        return float(0.5 * (view.value(own) - target)[on].square().mean())

    for name, value in params.items():
        v = torch.randn(value.shape, generator=g, dtype=torch.float64)
        by_difference = (loss(params | {name: value + 1e-6 * v}) - loss(params | {name: value - 1e-6 * v})) / 2e-6
        assert by_difference == pytest.approx(float((grads[name] * v).sum()), rel=1e-5, abs=1e-8), name
    values = view.values(params)
    for module in (sequences_module, task_critic):
        monkeypatch.setattr(module, "trial_chunks", lambda L, B, _: [slice(0, 1), slice(1, 5), slice(5, B)])
    parts = view.gradient(params, target, data.mask)
    assert all(torch.allclose(grads[name], parts[name], rtol=1e-9) for name in grads)
    assert torch.allclose(view.values(params), values, rtol=1e-12)
    assert torch.allclose(values, view.value(params), rtol=1e-12)
    tracked = {name: value.clone().requires_grad_() for name, value in params.items()}
    assert view.value(tracked).requires_grad and not view.values(tracked).requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# The outer step with it


def test_an_iteration_takes_advantages_with_its_values_and_fits_it():
    learner = small(critic_lr=0.05, anneal_over=6).learn(2, eval_every=0)  # it has learned, and there are units
    config, policy, state = learner.config, learner.policy, learner.state
    new, _ = rl2.iteration(Setup(config, learner.sampler, policy, 0), state)
    # The same again, from the parts that are tested above.
    tasks = learner.sampler.tasks(config.n_tasks, 0, 2)
    trials = collect_trials(
        Setup(None, learner.sampler, policy, 0), tasks, config.trials, config.trial_episodes, state.params, 2
    )
    data = sequences(trials)
    view = rl2.critic_view(config, learner.sampler, policy, state.params, tasks, data)
    values = view.value(state.critic)
    assert float((values - data.value)[data.mask > 0].abs().min()) > 0
    data = replace(data, value=values)
    units = rl2.value_units(config, state, data)
    batch = rl2.make_batch(config, data, state.value_units, units)
    tensors = {"policy": rl2.in_units(state.params, state.value_units, units),
               "critic": rl2.in_units(state.critic, state.value_units, units)}  # fmt: skip
    memories = {"policy": state.optimizer, "critic": state.critic_optimizer}
    for epoch in range(config.epochs):
        for part in rl2.minibatches(config, 8, 0, 2, epoch, torch.device("cpu")):
            own = {name: value.clone().requires_grad_() for name, value in tensors["critic"].items()}
            on = batch.data.mask[:, part] > 0
            error = (view[part].value(own) - batch.target[:, part])[on]
            grads = {"critic": dict(zip(own, torch.autograd.grad(0.5 * error.square().mean(), list(own.values())),
                                        strict=True))}  # fmt: skip
            grads["policy"] = rl2.optimizers.clip_norm(
                rl2.gradient(config, policy, tensors["policy"], batch[part])[0], config.max_grad_norm
            )[0]
            for kind, lr in (("policy", config.outer_lr), ("critic", 0.05)):
                direction, memories[kind] = rl2.optimizers.adam(grads[kind], memories[kind], eps=1e-5)
                lr *= rl2.cosine(2, 6, config.anneal_to)
                tensors[kind] = {name: value - lr * direction[name] for name, value in tensors[kind].items()}
    for found, expected in ((new.params, tensors["policy"]), (new.critic, tensors["critic"])):
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
    assert float(new.critic_optimizer["count"]) == 3 * SMALL["epochs"] * SMALL["minibatches"]


def test_it_explains_what_only_the_task_says():
    # 20 pulls in one episode: what a trial earns depends on the bandit, which no policy knows before its first pull.
    def explained(**config: Any) -> float:
        family = metarl.make("BernoulliBandit-v0", arms=2, horizon=20)
        learner = MetaLearner("rl2", family, device="cpu", n_tasks=100, trial_episodes=1, hidden=8, gamma=1.0,
                              gae_lambda=1.0, outer_lr=3e-3, **config)  # fmt: skip
        view, data, _ = view_of(learner.learn(30, eval_every=0))
        value = view.value(learner.state.critic) if config["task_critic"] else data.value
        left = data.rew.flip(0).cumsum(0)[-1]
        return float(np.corrcoef(value[0].numpy(), left.numpy())[0, 1]) if value[0].std() > 1e-6 else 0.0

    assert explained(task_critic=True) > 0.6
    assert abs(explained(task_critic=False)) < 0.1  # the control: before the first pull all trials look the same


def test_a_policy_learned_with_it_does_without():
    family = metarl.make("BernoulliBandit-v0", arms=2)
    learner = MetaLearner("rl2", family, device="cpu", n_tasks=64, trial_episodes=4, hidden=16, outer_lr=1e-2,
                          minibatches=2, task_critic=True)  # fmt: skip
    learner.learn(3, eval_every=0)
    blind = MetaLearner("rl2", family, device="cpu", n_tasks=64, trial_episodes=4, hidden=16)
    blind.start_from(learner)
    assert np.array_equal(blind.evaluate(20, seed=3).returns, learner.evaluate(20, seed=3).returns)
    assert blind.state.critic == {} and learner.adapt({"p": [0.1, 0.9]}).params.keys() == blind.state.params.keys()
    # And the other way: the policy is taken over, the critic starts anew.
    again = MetaLearner("rl2", family, seed=1, device="cpu", hidden=16, task_critic=True)
    fresh = {name: value.clone() for name, value in again.state.critic.items()}
    again.start_from(blind)
    assert same_params(again.state.params, learner.state.params) and same_params(again.state.critic, fresh)
    again.learn(1, eval_every=0)
    # Also where both have one; it may be of another size.
    for units in (128, 7):
        third = MetaLearner("rl2", family, seed=1, device="cpu", hidden=16, task_critic=True, critic_hidden=units)
        fresh = {name: value.clone() for name, value in third.state.critic.items()}
        assert same_params(third.start_from(learner).state.critic, fresh)
        assert not third.state.critic_optimizer["count"] and same_params(third.state.params, learner.state.params)


def test_two_arms_are_told_apart_with_it():
    learner = MetaLearner("rl2", TwoArms(), device="cpu", n_tasks=64, trial_episodes=4, hidden=16, outer_lr=1e-2,
                          minibatches=2, task_critic=True)  # fmt: skip
    mean = learner.learn(25, eval_every=0).evaluate(100, episodes=4).mean
    assert abs(mean[0] - 0.5) < 0.1 and (mean[1:] > 0.95).all()


@pytest.mark.slow
def test_more_is_learned_from_the_same_steps_with_it():
    # The return depends on where the goal is from the first step on, which the value head only finds out.
    def last(seed: int, task_critic: bool) -> float:
        learner = MetaLearner("rl2", PointGoal(), seed=seed, device="cpu", n_tasks=100, trial_episodes=3, hidden=32,
                              outer_lr=3e-3, task_critic=task_critic, critic_hidden=64)  # fmt: skip
        found: list[float] = []
        learner.learn(80, eval_every=0, callback=lambda stats: found.append(stats["return/trial"]))
        return float(np.mean(found[-10:]))

    gains = [last(seed, True) - last(seed, False) for seed in range(3)]
    assert min(gains) > 0.3 and np.mean(gains) > 0.8, gains


def test_a_run_resumed_equals_one_that_never_stopped(tmp_path):
    options: dict[str, Any] = {"anneal_over": 5, "anneal_entropy": True, "entropy_coef": 0.1}
    whole, half = small(**options), small(**options)
    whole.learn(4, run_dir=tmp_path / "whole", eval_every=2, eval_tasks=2)
    half.learn(2, run_dir=tmp_path / "half", eval_every=2, eval_tasks=2)
    again = MetaLearner.load(tmp_path / "half", Drift(), device="cpu")
    again.learn(2, run_dir=tmp_path / "half", eval_every=2, eval_tasks=2)
    for field in ("params", "optimizer", "critic", "critic_optimizer"):
        assert same_params(getattr(again.state, field), getattr(whole.state, field)), field
    assert rows_without_time(tmp_path / "half") == rows_without_time(tmp_path / "whole")


def test_threads_do_not_change_the_numbers():
    alone = small().learn(2, eval_every=0).state
    torch.set_num_threads(2)
    state = small().learn(2, eval_every=0).state
    assert same_params(state.params, alone.params) and same_params(state.critic, alone.critic)


def test_an_iteration_on_every_device(device):
    learner, alone = (MetaLearner("rl2", TwoArms(), device=where, **SMALL) for where in (device, "cpu"))
    state, _ = rl2.iteration(Setup(learner.config, learner.sampler, learner.policy, 0), learner.state)
    expected, _ = rl2.iteration(Setup(alone.config, alone.sampler, alone.policy, 0), alone.state)
    assert {value.device.type for value in (*state.critic.values(), *state.critic_optimizer.values())} == {device}
    assert all(torch.allclose(state.critic[n].cpu(), expected.critic[n], atol=1e-4) for n in expected.critic)


def test_the_entropy_bonus_falls_with_the_step_size(monkeypatch):
    seen: list[float] = []
    gradient = rl2.gradient

    def noted(config: rl2.Config, *rest: Any) -> Any:
        seen.append(config.entropy_coef)
        return gradient(config, *rest)

    monkeypatch.setattr(rl2, "gradient", noted)
    own: dict[str, Any] = {"epochs": 1, "minibatches": 1, "entropy_coef": 0.2, "anneal_over": 2, "anneal_to": 0.5}
    small(anneal_entropy=True, **own).learn(3, eval_every=0)
    assert seen == pytest.approx([0.2, 0.15, 0.1])
    seen.clear()
    small(**own).learn(3, eval_every=0)  # the control
    assert seen == [0.2] * 3


def test_values_that_are_not_finite_are_reported():
    learner = small()
    learner.state.critic["b_value"].fill_(float("inf"))
    with pytest.raises(ValueError, match="task critic's values are not finite in iteration 1: lower critic_lr"):
        learner.learn(1, eval_every=0)


class Named(TwoArms):
    """Tasks with a parameter that is a text."""

    def __init__(self) -> None:
        super().__init__()
        self.task_space = gym.spaces.Dict({**self.task_space.spaces, "name": gym.spaces.Text(3)})


def test_nonsense_is_refused():
    for family, setting, message in (
        (None, {"critic_hidden": 0}, "critic_hidden must be at least 1, got 0"),
        (None, {"critic_lr": 0}, "critic_lr must be positive and finite, got 0"),
        (None, {"anneal_entropy": True}, "anneal_entropy=True needs anneal_over"),
        (Named(), {}, "the parameter 'name' lies in Text"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            small(family, **setting)
    MetaLearner("rl2", Named(), device="cpu", n_tasks=4)  # the control
