"""Tasks whose rewards do not differ teach nothing, exactly; what is learned does not depend on the unit of rewards."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from probes import Drift, ends, problem
from tiny_runs import same_params
from torch import Tensor

from metarl import MetaLearner
from metarl.algorithms import get, maml_trpo, rl2
from metarl.formulas.distributions import Categorical
from metarl.inner.advantages import advantages, differ, estimate
from metarl.inner.loop import InnerStep, detached_step
from metarl.outer import objective
from metarl.outer.trust_region import flatten, value_and_gradient
from metarl.recurrent.sequences import Sequences
from metarl.rollout.rollout import Rollout


class Paid(Drift):
    """Drift in episodes of full length, with all rewards times `factor`, plus `offset`. Of 20 tasks the first `flat`
    pay -1 for every step."""

    id = "PaidProbe-v0"
    horizon = 12

    def __init__(self, flat: int = 0, factor: float = 1.0, offset: float = 0.0):
        super().__init__()
        self.flat, self.factor, self.offset = flat, factor, offset
        self.task_space = gym.spaces.Dict(dict(self.task_space.spaces) | {"flat": Discrete(2)})

    def sample(self, n, rng, split="train"):
        return super().sample(n, rng, split) | {"flat": (20 * np.arange(n) < self.flat * n).astype(np.int64)}

    def step(self, state, action, task, draws):
        state, reward, _ = super().step(state, action, task, draws)
        return state, torch.where(task["flat"] > 0, -1.0, reward * self.factor + self.offset), None


SMALL = {"n_tasks": 20, "episodes": 4, "hidden": (8,)}


def learner(name: str, family: Paid, **settings) -> MetaLearner:
    return MetaLearner(name, family, seed=3, device="cpu", **(SMALL | settings))


def change(name: str, family: Paid, **settings) -> Tensor:
    """What a complete meta-iteration does to all meta-parameters."""
    if "damping" in get(name).Config.__dataclass_fields__:  # a direction that rounding has no say in
        settings = {"damping": 0.1, "cg_iterations": 5, **settings}
    one = learner(name, family, **settings)
    before = flatten(one.state.meta)
    return flatten(one.learn(1, eval_every=0).state.meta) - before


# ---------------------------------------------------------------------------------------------------------------------
# Whose rewards differ


def rewards(*episodes: list[float]) -> tuple[Tensor, Tensor]:
    """One task's episodes -> rewards and mask [1, T, E]."""
    T = max(len(e) for e in episodes)
    rew = torch.tensor([[*e, *[0.0] * (T - len(e))] for e in episodes]).T[None]
    return rew, torch.tensor([[1.0] * len(e) + [0.0] * (T - len(e)) for e in episodes]).T[None]


EQUAL = {
    "constant": rewards([-1.0] * 5, [-1.0] * 5),
    "of the time alone": rewards([0.1, 2.0, -3.0], [0.1, 2.0, -3.0]),
    "but for rounding": rewards([1e5, 1e5], [1e5 + 0.0078125, 1e5]),
    "of different length and nothing paid": rewards([0.0, 0.0], [0.0, 0.0, 0.0]),
    "of different length with the same returns": rewards([2.0], [2.0, 0.0, 0.0]),
    "a single episode": rewards([-1.0, -1.0, -1.0]),
}
DIFFERENT = {
    "of different length": rewards([-1.0, -1.0], [-1.0, -1.0, -1.0]),
    "in one step": rewards([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]),
    "a little": rewards([1.0, 1.0], [1.0, 1.000001]),
    "small beside another step": rewards([1e9, 0.1], [1e9, 0.2]),
    "the same sum": rewards([1.0, 0.0], [0.0, 1.0]),
    "a single episode": rewards([-1.0, -1.0, -2.0]),
    "tiny": rewards([1e-12, 0.0], [2e-12, 0.0]),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_rewards_that_do_not_differ(kind):
    assert not differ(*EQUAL[kind]).item()


@pytest.mark.parametrize("kind", DIFFERENT)
def test_rewards_that_differ(kind):
    assert differ(*DIFFERENT[kind]).item()


def rollout(rew: Tensor, mask: Tensor) -> Rollout:
    obs = torch.randn(*rew.shape, 2, generator=torch.Generator().manual_seed(0))
    return Rollout(obs, torch.zeros_like(rew).long(), rew, mask, torch.zeros_like(rew),
                   Categorical(torch.zeros(*rew.shape, 2)), **ends(obs, mask))  # fmt: skip


@pytest.mark.parametrize("gamma", [0.9, 0.99, 1.0])
@pytest.mark.parametrize("lam", [0.9, 1.0])
@pytest.mark.parametrize("reward", [-1.0, 0.1, 1e20])
def test_constant_rewards_have_no_advantages(reward, lam, gamma):
    # Neither the misfit of a cubic of the time to a discounted sum nor rounding, both divided by themselves.
    found = estimate(rollout(torch.full((2, 100, 5), reward), torch.ones(2, 100, 5)), gamma, lam)
    assert not found.advantage.any()
    assert found.scale.tolist() == [torch.inf, torch.inf]


def test_a_task_with_episodes_of_different_length_still_has_advantages():
    mask = (torch.arange(50)[:, None] < torch.tensor([10, 20, 30, 50])).float()[None]
    got = advantages(rollout(-mask, mask), 0.99, 1.0)
    assert got.square().sum() / mask.sum() == pytest.approx(1.0, rel=1e-5)
    assert got[0, :10, 0].mean() > got[0, :10, 3].mean()  # the shortest is the best


# ---------------------------------------------------------------------------------------------------------------------
# Complete meta-iterations


ALGORITHMS = {
    "maml_trpo": {}, "maml_ppo": {}, "maml_vpg": {}, "promp": {}, "fomaml": {}, "reptile": {}, "meta_sgd": {},
    "maml_plus_plus": {}, "anil": {}, "cavia": {}, "e_maml": {},
    "rl2": {"n_tasks": 20, "hidden": 8, "entropy_coef": 0.0, "value_coef": 0.0, "trials": 2},
}  # fmt: skip


@pytest.mark.parametrize("gamma", [0.99, 1.0])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_rewards_that_differ_nothing_is_changed(name, gamma):
    settings = ALGORITHMS[name] | {"gamma": gamma} | ({"episodes": 4} if name != "rl2" else {})
    one = MetaLearner(name, Paid(flat=20), seed=3, device="cpu", **({} if name == "rl2" else SMALL) | settings)
    state = one.state
    before = dict(state.params) if name == "rl2" else state.meta
    after = one.learn(2, eval_every=0).state
    after = after.params if name == "rl2" else after.meta
    if name == "rl2":  # the value head is rewritten in the units of the returns; what it says stays
        before, after = ({n: v for n, v in x.items() if n not in ("w_value", "b_value")} for x in (before, after))
    assert same_params(dict(before), dict(after))


INNER = [
    {}, {"inner_gradient": "lvc"}, {"inner_gradient": "dice"}, {"inner_gradient": "loaded_dice"},
    {"inner_optimizer": "natural"}, {"inner_optimizer": "adam"}, {"inner_optimizer": "momentum"},
    {"learned_discount": True}, {"learned_lambda": True, "gae_lambda": 0.9}, {"learned_lr": "per_parameter"},
    {"exploration": 1.0}, {"inner_steps": 2, "multi_step_until": 5}, {"adapt_std": True},
]  # fmt: skip


@pytest.mark.parametrize("settings", INNER, ids=str)
def test_the_meta_gradient_of_constant_tasks_is_zero_and_that_of_the_others_as_if_they_were_alone(settings):
    config = maml_trpo.Config(**(SMALL | {"inner_lr": 0.1} | settings))
    policy, state, data = problem(Paid(flat=14), config, spread=0.0)

    def gradient(tasks: slice) -> Tensor:
        some = [batch[tasks] for batch in data]
        parts = objective.objectives(config, policy, some, state)
        return flatten(value_and_gradient(parts, objective.trained(config, state))[1])

    stepped = detached_step(
        config, policy, {n: v.expand(20, *v.shape) for n, v in state.params.items()}, InnerStep(data[0], 0.1)
    )[0]
    moved = torch.stack([(stepped[n] - v).flatten(1).abs().amax(1) for n, v in state.params.items()]).amax(0)
    assert not moved[:14].any()
    assert moved[14:].all()
    assert not gradient(slice(0, 14)).any()
    assert gradient(slice(14, 20)).norm() > 1e-3
    torch.testing.assert_close(gradient(slice(0, 20)), gradient(slice(14, 20)), atol=1e-12, rtol=1e-9)


def test_trpo_takes_no_step_where_there_is_nothing_to_learn():
    rows = []
    learner("maml_trpo", Paid(flat=20)).learn(1, eval_every=0, callback=lambda info: rows.append(info))
    stats = rows[0]
    assert stats["outer/gradient_norm"] == 0.0
    assert not stats["outer/accepted"]


# ---------------------------------------------------------------------------------------------------------------------
# Units of the reward


UNITS = {
    "maml_trpo": {}, "maml_ppo": {}, "promp": {}, "e_maml": {}, "reptile": {"inner_steps": 2}, "meta_sgd": {},
}  # fmt: skip
MORE = [
    ("maml_trpo", {"inner_gradient": "loaded_dice"}), ("maml_trpo", {"learned_discount": True}),
    ("maml_vpg", {"inner_optimizer": "natural"}), ("maml_trpo", {"gae_lambda": 0.9, "gamma": 0.95}),
]  # fmt: skip


def agree(got: Tensor, want: Tensor, cosine: float, norm: float) -> None:
    assert want.norm() > 1e-4
    assert torch.cosine_similarity(got, want, 0) > cosine
    assert got.norm() / want.norm() == pytest.approx(1.0, rel=norm)


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e4, 1e15, 1e30])
@pytest.mark.parametrize(("name", "settings"), [*UNITS.items(), *MORE, ("maml_trpo", {"inner_gradient": "dice"})])
def test_the_update_does_not_depend_on_the_scale_of_the_rewards(name, settings, factor):
    got, want = (change(name, Paid(factor=x), **settings) for x in (factor, 1.0))
    agree(got, want, 0.999, 0.02)


@pytest.mark.parametrize("offset", [-1e5, 1e3, 1e5])
@pytest.mark.parametrize(("name", "settings"), [*UNITS.items(), *MORE])
def test_the_update_does_not_depend_on_a_number_added_to_all_rewards(name, settings, offset):
    got, want = (change(name, Paid(offset=x), **settings) for x in (offset, 0.0))
    agree(got, want, 0.99, 0.05)


@pytest.mark.parametrize("settings", [{}, {"reward_baseline": 0.0}])
def test_rewards_that_add_up_to_more_than_their_type_holds_are_refused(settings):
    with pytest.raises(
        ValueError, match=r"rewards of up to .*e\+38 add up to more than 3\.4e\+38.*scale the rewards down"
    ):
        change("maml_trpo", Paid(offset=-2e38), **settings)
    with pytest.raises(ValueError, match="scale them down"):
        change("maml_trpo", Paid(factor=1e39), **settings)


def test_rl2_refuses_them_too():
    one = MetaLearner("rl2", Paid(offset=-2e38), device="cpu", n_tasks=4, hidden=4)
    with pytest.raises(ValueError, match="scale the rewards down"):
        one.learn(1, eval_every=0)


@pytest.mark.parametrize("factor", [1e-9, 1e15])
def test_rl2s_advantages_do_not_depend_on_the_scale_of_the_rewards(factor):
    """Those of values that say nothing; what the policy is shown of the rewards does depend on it."""
    config = rl2.Config(n_tasks=3, trials=2, minibatches=2)
    g = torch.Generator().manual_seed(0)
    rew, mask = torch.randn(9, 6, generator=g), torch.ones(9, 6)
    blank = torch.zeros(9, 6)
    state = rl2.State({}, {}, torch.zeros(2, dtype=torch.float64))
    found = []
    for unit in (1.0, factor):
        data = Sequences(torch.zeros(9, 6, 1), blank.long(), unit * rew, mask, blank, blank)
        units = rl2.value_units(config, state, data)
        found.append(rl2.make_batch(config, data, units, units))
    torch.testing.assert_close(found[1].advantage, found[0].advantage, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1].target, found[0].target, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_rl2s_units_of_returns_that_do_not_vary(reward):
    config = rl2.Config(n_tasks=3, trials=2, minibatches=2, gamma=0.0)
    blank = torch.zeros(4, 6)
    data = Sequences(blank[..., None], blank.long(), blank + reward, torch.ones(4, 6), blank, blank)
    state = rl2.State({}, {}, torch.zeros(2, dtype=torch.float64))
    assert rl2.value_units(config, state, data).tolist() == [reward, 1.0]
    batch = rl2.make_batch(config, data, torch.tensor([0.0, 0.5]).double(), torch.tensor([reward, 1.0]).double())
    assert not batch.advantage.any()


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_the_baseline_of_100_steps_takes_up_a_number_added_to_all_rewards(gamma):
    rew = torch.randn(2, 100, 20, generator=torch.Generator().manual_seed(1))
    plain, moved = (advantages(rollout(x, torch.ones_like(x)), gamma, 0.95) for x in (rew, rew + 1024.0))
    torch.testing.assert_close(moved, plain, atol=1e-3, rtol=0)
