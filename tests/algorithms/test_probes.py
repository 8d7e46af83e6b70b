"""For each algorithm the test that only it passes: small families with known answers, a few seconds each.

All have one state (or two), so that a linear policy is enough, and what an algorithm finds can be read off its biases.
"""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from probes import TwoArms, setup
from torch import Tensor

from metarl import algorithms
from metarl.formulas.distributions import kl
from metarl.formulas.losses import masked_mean
from metarl.inner import loop
from metarl.outer import objective
from metarl.outer.trust_region import value_and_gradient
from metarl.params import Params
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import TaskFamily, Tasks
from metarl.vector.tensor import State, TensorFamily


class OneStep(TensorFamily):
    """One state, one step, any real numbers for an action; half of the tasks have the sign +1, half -1."""

    id = "OneStepProbe-v0"
    horizon = 1
    actions = 1

    def __init__(self) -> None:
        self.observation_space = Box(0, 1, (1,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (self.actions,), np.float32)
        self.task_space = gym.spaces.Dict({"sign": Box(-1, 1, (), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"sign": (1 - 2 * (np.arange(n) % 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"one": draws.new_ones(*draws.shape[:-1], 1)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["one"]

    def reward(self, action: Tensor, task: State) -> Tensor:
        raise NotImplementedError

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        reward = self.reward(action, task)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)


class Ridge(OneStep):
    """sign * u.a - a.Q a / 2 with u = (1, 1/2) and Q = ((1, .9), (.9, 1)): the best action, sign * Q^-1 u, goes against
    the gradient sign * u in its second number. Along the gradient no action earns more than (u.u)^2 / (2 u.Qu)."""

    id = "RidgeProbe-v0"
    actions = 2
    u, Q = torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    along = float((u @ u) ** 2 / (2 * u @ Q @ u))

    def reward(self, action: Tensor, task: State) -> Tensor:
        return task["sign"] * (action @ self.u) - ((action @ self.Q) * action).sum(-1) / 2


class Bowl(OneStep):
    """Minus half the squared distance of the action from the sign."""

    id = "BowlProbe-v0"

    def reward(self, action: Tensor, task: State) -> Tensor:
        return -((action[..., 0] - task["sign"]) ** 2) / 2


class Delay(OneStep):
    """Five steps. What the first action earns, sign times itself, is paid at the end ("reward late"), or at once and
    followed by noise ("noise late")."""

    id = "DelayProbe-v0"
    horizon = 5
    step_draws = 1

    def __init__(self, late: str) -> None:
        super().__init__()
        self.late = late

    def initial(self, task: State, draws: Tensor) -> State:
        return {"t": draws.new_zeros(draws.shape[:-1]), "earned": draws.new_zeros(draws.shape[:-1])}

    def observe(self, state: State, task: State) -> Tensor:
        return torch.ones_like(state["t"])[..., None]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        first, last = state["t"] == 0, state["t"] == self.horizon - 1
        earned = torch.where(first, task["sign"] * action[..., 0], state["earned"])
        if self.late == "reward":
            reward = torch.where(last, earned, torch.zeros_like(earned))
        else:
            reward = torch.where(first, earned, 6 * (draws[..., 0] - 0.5))
        return {"t": state["t"] + 1, "earned": earned}, reward, None


class Doors(TwoArms):
    """Three arms: a safe one, and two doors, of which the good one pays 1 and the other costs `bad`. Who does not know
    which is which earns most with the safe arm, and learns nothing there."""

    id = "DoorsProbe-v0"

    def __init__(self, safe: float = 0.4, bad: float = 3.0) -> None:
        super().__init__()
        self.safe, self.bad = safe, bad
        self.action_space = Discrete(3)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        door = torch.where(action == task["good"] + 1, 1.0, -self.bad)
        reward = torch.where(action == 0, torch.full_like(door, self.safe), door)
        return state, reward, torch.ones_like(action, dtype=torch.bool)


class Lamp(TwoArms):
    """First a lamp, for 0.1; then two arms, which pay 1 and -1, in the dark with noise of a standard deviation of 6 on
    top. Light is worth its price before adaptation, which learns from what is paid, and not afterwards."""

    id = "LampProbe-v0"
    horizon = 2
    step_draws = 1

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 1, (2,), np.float32)

    def initial(self, task: State, draws: Tensor) -> State:
        return {"t": draws.new_zeros(draws.shape[:-1]), "lit": draws.new_zeros(draws.shape[:-1])}

    def observe(self, state: State, task: State) -> Tensor:
        return torch.stack([1 - state["t"], state["t"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        first = state["t"] == 0
        lit = torch.where(first, action.to(draws.dtype), state["lit"])
        paid = 2.0 * (action == task["good"]) - 1 + (1 - lit) * 20 * (draws[..., 0] - 0.5)
        return {"t": state["t"] + 1, "lit": lit}, torch.where(first, -0.1 * lit, paid), None


class Uneven(TwoArms):
    """Two thirds of the tasks have the first arm as the good one."""

    id = "UnevenProbe-v0"

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"good": (np.arange(n) % 3 == 2).astype(np.int64)}


class Trained:
    """A learner after some iterations on a family, from seed 0."""

    def __init__(self, name: str, family: TaskFamily, iterations: int, start: Params | None = None, **settings: Any):
        self.module = algorithms.get(name)
        self.config = self.module.Config(**({"hidden": ()} | settings))
        self.sampler, self.policy, _ = setup(family, self.config)
        self.state = self.module.init(self.config, self.policy, self.sampler.family, 0)
        self.state = replace(self.state, params=self.state.params | (start or {}))
        self.rows = []
        for _ in range(iterations):
            self.state, stats = self.module.iteration(Setup(self.config, self.sampler, self.policy, 0), self.state)
            self.rows.append(stats)

    def late(self, key: str) -> float:
        """The mean of a logged number over the last quarter."""
        return float(np.mean([row[key] for row in self.rows[-len(self.rows) // 4 :]]))

    def probabilities(self, *obs: float) -> Tensor:
        """Of the choices, before adaptation."""
        stacked = {name: value[None] for name, value in self.state.params.items()}
        return torch.softmax(self.policy.distribution(stacked, torch.tensor([[list(obs)]]))[0][0, 0], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Step sizes

RIDGE = {"n_tasks": 10, "episodes": 50, "init_std": 0.3, "inner_lr": 0.05, "max_kl": 0.03}


@pytest.fixture(scope="module")
def ridge() -> dict[str, Trained]:
    return {name: Trained(name, Ridge(), 50, **RIDGE) for name in ("meta_sgd", "maml_trpo")}


def test_meta_sgd_learns_to_step_against_a_gradient(ridge):
    first, second = ridge["meta_sgd"].state.learned["lr/b0"].tolist()
    assert first > 0.1 > -0.02 > second


def test_meta_sgd_earns_more_than_any_step_along_the_gradient(ridge):
    # Its own reward has noise in the actions, which costs further.
    assert ridge["meta_sgd"].late("return/step_1") > Ridge.along + 0.02


def test_maml_does_not(ridge):
    assert ridge["maml_trpo"].late("return/step_1") < Ridge.along


LEARNING = {"outer_lr": 1e-6, "learned_outer_lr": 0.05, "n_tasks": 20, "init_std": 0.5}


def test_maml_plus_plus_strides_first_and_averages_then():
    # The first step has all to go, the second has the first one's noise to take back: half of it, with exact gradients.
    done = Trained("maml_plus_plus", Bowl(), 40, **LEARNING, episodes=6, inner_lr=0.1, first_order_until=5)
    for name in ("w0", "b0"):
        first, second = done.state.learned[f"lr_step/{name}"].tolist()
        assert first > 1.5 * second > 0


def test_maml_plus_plus_weighs_fewer_and_fewer_losses_and_derives_more():
    config = algorithms.get("maml_plus_plus").Config(multi_step_until=4, first_order_until=2, outer_lr=0.1)
    assert [config.step_weights(i)[0] for i in (0, 2, 4)] == [0.5, 0.25, 0.0]
    assert [config.at(i).first_order for i in (0, 1, 2)] == [True, True, False]


@pytest.mark.parametrize(("inner_lr", "grows"), [(0.02, True), (3.0, False)])
def test_a_learned_step_size_grows_where_it_is_too_small_and_shrinks_where_it_is_too_large(inner_lr, grows):
    done = Trained("maml_vpg", Bowl(), 15, **LEARNING, episodes=20, inner_lr=inner_lr, learned_lr="scalar")
    assert (done.rows[-1]["inner/lr_factor"] > 1.4) == grows
    assert (done.rows[-1]["inner/lr_factor"] < 0.6) == (not grows)


@pytest.mark.parametrize("which", ["discount", "lambda"])
@pytest.mark.parametrize("late", ["reward", "noise"])
def test_what_is_learned_of_the_credit_rises_with_late_rewards_and_falls_with_late_noise(which, late):
    settings = LEARNING | {"episodes": 20, "inner_lr": 0.2, "gamma": 0.8, "gae_lambda": 0.8, f"learned_{which}": True}
    done = Trained("maml_vpg", Delay(late), 15, **settings)
    moved = done.rows[-1][f"inner/{which}"] - 0.8
    assert moved * (1 if late == "reward" else -1) > 0.02


# ---------------------------------------------------------------------------------------------------------------------
# What adapts


def adapted(done: Trained, sizes: tuple[float, ...]) -> loop.Adaptation:
    tasks = done.sampler.tasks(20, 1, 0, "test")
    return done.module.evaluate(Setup(done.config, done.sampler, done.policy, 1), done.state, tasks, 20, sizes)


@pytest.fixture(scope="module")
def arms() -> dict[str, Trained]:
    settings = {"n_tasks": 10, "episodes": 20, "hidden": (16,), "output_gain": 0.3}
    return {name: Trained(name, TwoArms(), 12, **settings, inner_lr=lr) for name, lr in (("anil", 0.3), ("cavia", 1.0))}


@pytest.mark.parametrize(("name", "moves"), [("anil", {"w1", "b1"}), ("cavia", {"context"})])
def test_anil_moves_the_head_and_cavia_the_context_and_both_adapt(arms, name, moves):
    done = arms[name]
    found = adapted(done, (done.config.inner_lr,))
    moved = {n for n, v in found.params[-1].items() if not torch.equal(v, done.state.params[n].expand_as(v))}
    assert moved == moves
    before, after = found.returns.mean((0, 2)).tolist()
    assert before < 0.6 and after > 0.75  # nobody who does not adapt earns more than 0.5 on average


@pytest.mark.parametrize("name", ["anil", "cavia"])
def test_the_rest_of_the_network_is_learned_outside(arms, name):
    start = algorithms.get(name).init(arms[name].config, arms[name].policy, arms[name].sampler.family, 0).params
    moved = {n for n, v in arms[name].state.params.items() if not torch.equal(v, start[n])}
    assert moved == set(start) - {"context"}
    assert name == "anil" or not arms[name].state.params["context"].any()


# ---------------------------------------------------------------------------------------------------------------------
# Sampling in order to adapt

LAMP = {"n_tasks": 100, "episodes": 4, "inner_lr": 4.0, "gamma": 1.0, "max_kl": 0.02}


def test_e_maml_buys_light_before_it_adapts():
    done = Trained("e_maml", Lamp(), 30, **LAMP, exploration=1.0)
    assert done.probabilities(1.0, 0.0)[1] > 0.9


def test_maml_does_not_buy_any():
    done = Trained("maml_trpo", Lamp(), 30, **LAMP)
    assert done.probabilities(1.0, 0.0)[1] < 0.1


def pull_to_the_safe_arm(inner_gradient: str) -> float:
    """How much the meta-gradient wants the safe arm's logit up, from a policy that takes it more than half the time."""
    config = algorithms.get("maml_trpo").Config(
        n_tasks=40, episodes=100, hidden=(), inner_lr=1.0, output_gain=1e-6, inner_gradient=inner_gradient
    )
    sampler, policy, state = setup(Doors(), config)
    state = replace(state, params=state.params | {"b0": torch.tensor([1.0, 0.0, 0.0])})
    data = loop.experience(Setup(config, sampler, policy, 0), state).data
    gradient = value_and_gradient(objective.objectives(config, policy, data, state), state.params)[1]["b0"]
    return -float(gradient @ torch.tensor([1.0, -0.5, -0.5]))


@pytest.mark.parametrize("inner_gradient", ["lvc", "dice", "loaded_dice"])
def test_who_sees_that_other_parameters_sample_otherwise_wants_the_doors_tried(inner_gradient):
    # By enumeration the expected return after the expected step, in units of its standard deviation, says so too.
    assert pull_to_the_safe_arm(inner_gradient) < -0.05


def test_mamls_inner_derivative_does_not_and_wants_the_safe_arm():
    # One state and advantages of mean zero: the inner step has no curvature at all, and the doors are dear.
    assert pull_to_the_safe_arm("policy_gradient") > 0.05


def moved_before_adaptation(inner_kl: float) -> tuple[float, float]:
    """KL(acting pre-adaptation policy || the next one) after one iteration, and that of the adapted policies."""
    config = algorithms.get("promp").Config(
        n_tasks=10, episodes=20, hidden=(8,), inner_lr=0.3, epochs=10, outer_lr=0.05, inner_kl=inner_kl, clip=10.0
    )
    sampler, policy, _ = setup(Bowl(), config)
    state = algorithms.get("promp").init(config, policy, sampler.family, 0)
    rollout = loop.experience(Setup(config, sampler, policy, 0), state).rollouts[0]
    new, stats = algorithms.get("promp").iteration(Setup(config, sampler, policy, 0), state)
    dist = policy.distribution({n: v.expand(10, *v.shape) for n, v in new.params.items()}, rollout.obs)
    return float(masked_mean(kl(rollout.dist, dist), rollout.mask).mean()), stats["outer/kl"]


def test_promps_penalty_keeps_the_policy_before_adaptation_near_the_one_that_acted():
    free, held = moved_before_adaptation(0.0)[0], moved_before_adaptation(100.0)[0]
    assert held < 0.1 * free
    assert free > 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Reptile


def uneven(steps: int) -> Trained:
    return Trained("reptile", Uneven(), 40, n_tasks=12, episodes=20, inner_lr=2.0, inner_steps=steps, outer_lr=0.5)


def test_reptile_with_several_steps_stays_where_every_task_is_near():
    done = uneven(4)
    assert done.late("return/step_4") > 0.93
    assert done.probabilities(1.0)[1] > 0.05


def test_reptile_with_one_step_is_joint_training_and_forgets_the_rarer_tasks():
    # Always the first arm: 2/3, before adaptation and after.
    done = uneven(1)
    assert done.probabilities(1.0)[1] < 0.02
    assert done.late("return/step_1") < 0.75


@pytest.mark.parametrize("family", [Bowl(), Uneven()], ids=["gaussian", "categorical"])
def test_reptile_with_one_step_takes_the_mean_of_the_inner_steps(family):
    done = Trained("reptile", family, 1, n_tasks=6, episodes=5, inner_lr=0.3, inner_steps=1, outer_lr=0.5)
    start = done.module.init(done.config, done.policy, done.sampler.family, 0)
    found = loop.experience(Setup(done.config, Sampler(family), done.policy, 0), start)
    for name, value in start.params.items():
        want = value + 0.5 * torch.stack([found.params[1][name][k] - value for k in range(6)]).mean(0)
        torch.testing.assert_close(done.state.params[name], want, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# First order


def test_first_order_maml_learns_the_arms_as_well():
    done = Trained("fomaml", TwoArms(), 12, n_tasks=10, episodes=20, hidden=(16,), output_gain=0.1, inner_lr=0.3)
    assert done.config.first_order
    assert done.late("return/step_1") > 0.9  # and blind 0.5
