"""Rewards by hand, and distributions against the parameters they should have, by standard errors and tests."""

import itertools
import math

import numpy as np
import pytest
import torch
from metarl_envs.point_navigation import CORNERS
from metarl_envs.tabular_mdp import optimal_return, uniform_return
from scipy import stats

import metarl
from metarl import random
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.tensor import TensorVectorEnv


def start(family, tasks, episodes, seed=0):
    """A vector environment after its reset, tasks as lists."""
    tasks = {name: np.asarray(value, family.task_space[name].dtype) for name, value in tasks.items()}
    k = len(next(iter(tasks.values())))
    env = TensorVectorEnv(family, k, episodes)
    env.reset(seed=random.episode_seeds(seed, 0, 0, k, episodes), options={"tasks": tasks})
    return env


def sample(family, n, seed=0):
    return family.sample(n, np.random.default_rng(seed))


def within(values, mean, errors=4.0):
    """Whether the average of independent `values` is `mean`, to so many standard errors."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - mean) < errors * values.std(ddof=1) / math.sqrt(len(values))


# ---------------------------------------------------------------------------------------------------------------------
# Point navigation

MEAN_DISTANCE = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6  # of a uniform point in a unit square from its centre


def test_point_navigation_by_hand():
    env = start(metarl.make("PointNavigation-v0"), {"goal": [[0.3, -0.2]]}, 1)
    obs, reward, terminated, _, _ = env.step([[0.1, -0.1]])
    assert torch.allclose(obs, torch.tensor([[0.1, -0.1]]))
    assert reward.item() == pytest.approx(-math.hypot(0.2, 0.1))
    obs, reward, terminated, _, _ = env.step([[7.0, -0.1]])  # clipped to 0.1
    assert reward.item() == pytest.approx(-0.1)
    assert not terminated
    obs, reward, terminated, _, _ = env.step([[0.085, 0.0]])
    assert reward.item() == pytest.approx(-0.015, abs=1e-6)
    assert not terminated
    obs, reward, terminated, truncated, _ = env.step([[0.01, 0.0]])
    assert reward.item() == pytest.approx(-0.005, abs=1e-6)
    assert (terminated.item(), truncated.item()) == (True, False)
    obs, reward, terminated, truncated, _ = env.step([[0.1, 0.1]])
    assert torch.allclose(obs, torch.tensor([[0.295, -0.2]]))
    assert (reward.item(), terminated.item(), truncated.item()) == (0, True, False)


PIXELS = "PointNavigationPixels-v0"


def spot(position, size=16):
    return metarl.make(PIXELS, size=size).observe({"position": torch.tensor(position)}, {})[..., 0].int()


def test_the_picture_of_the_origin_by_hand():
    # The middle is where four pixels meet: each is sqrt(1/2) pixels away, the next ones sqrt(5/2).
    near, next_, size = round(255 * (1 - 0.5**0.5 / 2)), round(255 * (1 - 2.5**0.5 / 2)), 16
    want = torch.zeros(size, size, dtype=torch.int32)
    want[7:9, 7:9] = near
    want[6, 7:9] = want[9, 7:9] = next_
    want[7:9, 6] = want[7:9, 9] = next_
    assert torch.equal(spot([0.0, 0.0]), want)


def test_the_picture_shows_right_and_up():
    pixel = 1.5 / 16
    assert torch.equal(spot([2 * pixel, 0.0]), spot([0.0, 0.0]).roll(2, 1))
    assert torch.equal(spot([0.0, 3 * pixel]), spot([0.0, 0.0]).roll(-3, 0))


def test_a_spot_at_the_edge_stays_whole_and_there():
    edge = spot([0.75 - 2 * 1.5 / 16, 0.0])
    assert torch.equal(edge[:, -4:], spot([0.0, 0.0])[:, 6:10])
    assert torch.equal(spot([5.0, 0.0]), edge)
    assert not torch.equal(spot([0.5, 0.0]), edge), "every goal lies inside"


def test_pictures_show_small_differences_of_the_position():
    path = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    family = metarl.make(PIXELS)
    seen = family.positions(family.observe({"position": path}, {}).flatten(-3).numpy())
    assert np.abs(seen - path.numpy()).max() < 0.005  # a twentieth of a pixel


def test_navigation_by_pixels_is_point_navigation_but_for_the_observation():
    tasks = {"goal": [[0.3, -0.2], [-0.1, 0.4], [0.1, 0.1]]}
    pixels, plain = (start(metarl.make(id, horizon=6), tasks, 2) for id in (PIXELS, "PointNavigation-v0"))
    plain.action_space.seed(0)
    for t in range(8):
        action = torch.full((6, 2), 0.1) if t == 0 else plain.action_space.sample()
        (image, *got), (position, *want) = pixels.step(action), plain.step(action)
        for a, b in zip(got[:3], want[:3], strict=True):
            assert torch.equal(a, b)
        shown = pixels.family.observe({"position": position}, {})  # no goal comes in
        assert torch.equal(image, shown)
    assert want[1].any() and not want[1].all()


def test_standing_still_and_walking_straight_earn_what_the_paper_leads_to_expect():
    family = metarl.make("PointNavigation-v0")
    tasks = sample(family, 4000)
    still, straight = np.zeros(4000), np.zeros(4000)
    goal = torch.from_numpy(tasks["goal"])
    env, walker = start(family, tasks, 1), start(family, tasks, 1)
    position = torch.zeros(4000, 2)
    for _ in range(family.horizon):
        still += env.step(np.zeros((4000, 2)))[1].numpy()
        position, reward, ended, _, _ = walker.step(goal - position)
        straight += reward.numpy()
    assert within(still, -100 * MEAN_DISTANCE)  # -38.26
    assert ended.all()
    assert -0.6 < straight.mean() < -0.4


@pytest.mark.parametrize("backend", [TensorVectorEnv, LoopVectorEnv])
def test_an_end_at_the_horizon_is_a_termination_and_later_steps_change_nothing(backend):
    env = backend(metarl.make("PointNavigation-v0", horizon=2), 2, 1)
    env.reset(seed=0, options={"tasks": {"goal": np.array([[0.2, 0.0], [0.3, 0.0]], np.float32)}})
    env.step(torch.tensor([[0.1, 0.0], [0.1, 0.0]]))
    for _ in range(2):
        obs, _, terminated, truncated, _ = env.step(torch.tensor([[0.1, 0.0], [0.1, 0.0]]))
        assert np.allclose(obs, [[0.2, 0.0], [0.2, 0.0]])
        assert terminated.tolist() == [True, False]
        assert truncated.tolist() == [False, True]


def test_sparse_reward_by_hand():
    family = metarl.make("PointNavigationSparse-v0")
    assert (family.horizon, family.goal_radius, family.max_step) == (20, 0.2, 0.1)
    env = start(family, {"goal": [[0.0, 1.0]]}, 1)
    rewards = [env.step([[0.0, 0.7]])[1].item() for _ in range(7)]  # clipped to 0.1
    assert rewards == [0.0] * 7
    rewards = [env.step([[0.0, 0.09]])[1].item() for _ in range(3)]  # 0.79, 0.88, 0.97 on the way to 1
    assert rewards == pytest.approx([0.0, 0.88, 0.97], abs=1e-6)
    _, reward, terminated, _, _ = env.step([[0.0, 0.03]])
    assert reward.item() == pytest.approx(1.0, abs=1e-6)
    assert not terminated


def test_sparse_goals_lie_on_the_upper_half_circle_uniformly():
    goal = sample(metarl.make("PointNavigationSparse-v0"), 4000)["goal"]
    np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 1, atol=1e-6)
    assert stats.kstest(np.arctan2(goal[:, 1], goal[:, 0]) / math.pi, "uniform").pvalue > 1e-3


def test_dense_goals_fill_the_square_uniformly():
    goal = sample(metarl.make("PointNavigation-v0"), 4000)["goal"]
    for i in range(2):
        assert stats.kstest(goal[:, i] + 0.5, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(goal.T)[0, 1]) < 4 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("position", "action", "corner", "reward"),
    [
        ((0.4, 0.4), (0.2, 0.2), 3, 0.2 * math.sqrt(2)),  # towards the corner
        ((0.4, 0.4), (9.0, 0.2), 3, 1.6 * math.sqrt(2) - 1.4 * math.sqrt(2)),  # clipped
        ((0.6, 0.6), (-0.2, -0.2), 3, -0.2 * math.sqrt(2)),  # away from it
        ((0.4, 0.4), (0.2, 0.2), 0, 0.0),  # in another corner's quarter
        ((0.4, 0.4), (0.2, 0.2), 1, 0.0),
        ((0.1, 0.1), (0.1, 0.1), 3, 0.0),  # still at the start: 0.4 < 0.5
        ((0.3, 0.1), (0.0, 0.2), 3, math.hypot(1.7, 1.9) - math.hypot(1.7, 1.7)),  # 0.6 >= 0.5 in the 1-norm
        ((-0.5, 0.5), (-0.1, 0.0), 2, math.hypot(1.5, 1.5) - math.hypot(1.4, 1.5)),
    ],
)
def test_corner_reward_by_hand(position, action, corner, reward):
    family = metarl.make("PointNavigationCorners-v0")
    state, task = {"position": torch.tensor([[position]])}, {"corner": torch.tensor([[corner]])}
    _, got, terminated = family.step(state, torch.tensor([[action]]), task, torch.zeros(1, 1, 0))
    assert got.item() == pytest.approx(reward, abs=1e-6)
    assert terminated is None


def test_corners_are_equally_likely_and_the_start_is_uniform():
    family = metarl.make("PointNavigationCorners-v0")
    counts = np.bincount(sample(family, 4000)["corner"], minlength=4)
    assert len(counts) == len(CORNERS) == len(set(CORNERS)) == 4
    assert stats.chisquare(counts).pvalue > 1e-3
    position = start(family, {"corner": [0]}, 4000).state["position"][0].numpy()
    for i in range(2):
        assert stats.kstest((position[:, i] + 0.2) / 0.4, "uniform").pvalue > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Bandits


def test_bernoulli_arms_pay_as_often_as_they_should():
    p, n = [[0.0, 1.0, 0.3], [0.5, 0.9, 0.01]], 20_000
    for arm in range(3):
        env = start(metarl.make("BernoulliBandit-v0", arms=3), {"p": p}, n)
        reward = env.step(np.full(2 * n, arm))[1].reshape(2, n)
        assert set(reward.unique().tolist()) <= {0.0, 1.0}
        for k in range(2):
            q = p[k][arm]
            assert abs(reward[k].mean().item() - q) <= 4 * math.sqrt(q * (1 - q) / n)


def test_bernoulli_arms_without_chance_never_fail_at_the_ends_of_the_draws():
    draws = torch.tensor([0.0, 1 - 2.0**-24]).reshape(1, 2, 1)
    family, state = metarl.make("BernoulliBandit-v0", arms=2), {"pulls": torch.zeros(1, 2, dtype=torch.int64)}
    for arm in (0, 1):
        task = {"p": torch.tensor([0.0, 1.0]).expand(1, 2, 2)}
        assert family.step(state, torch.full((1, 2), arm), task, draws)[1].tolist() == [[arm, arm]]


def test_later_pulls_are_new_draws():
    env = start(metarl.make("BernoulliBandit-v0", arms=2, horizon=2), {"p": [[0.5, 0.5]]}, 4000)
    pulls = [env.step(np.zeros(4000))[1].numpy() for _ in range(2)]
    assert abs(np.corrcoef(*pulls)[0, 1]) < 4 / math.sqrt(4000)


def test_gaussian_arms_pay_normal_amounts():
    env = start(metarl.make("GaussianBandit-v0", arms=2, std=0.5), {"mean": [[-1.0, 2.0]]}, 10_000)
    reward = env.step(np.ones(10_000))[1].numpy()
    assert stats.kstest(reward, "norm", (2.0, 0.5)).pvalue > 1e-3


def test_arms_are_distributed_as_documented():
    assert stats.kstest(sample(metarl.make("BernoulliBandit-v0"), 1000)["p"].ravel(), "uniform").pvalue > 1e-3
    mean = sample(metarl.make("GaussianBandit-v0"), 4000)["mean"]
    assert stats.kstest(mean.ravel(), "norm").pvalue > 1e-3
    assert within(mean.max(1), 1.53875)  # the expected maximum of ten standard normal numbers


@pytest.mark.parametrize("id", ["BernoulliBandit-v0", "GaussianBandit-v0"])
def test_a_bandit_shows_one_and_terminates_after_its_pulls(id):
    env = TensorVectorEnv(metarl.make(id, horizon=3), 2, 2)
    obs, _ = env.reset(seed=0, options={"tasks": sample(env.family, 2)})
    for t in range(1, 4):
        assert torch.equal(obs, torch.ones(4, 1))
        obs, _, terminated, truncated, _ = env.step(np.zeros(4))
        assert terminated.tolist() == [t == 3] * 4
        assert not truncated.any()


# ---------------------------------------------------------------------------------------------------------------------
# Tabular MDPs


def test_tabular_rewards_and_transitions_follow_the_task():
    family, n = metarl.make("TabularMDP-v0", states=4, actions=2), 20_000
    tasks = sample(family, 2)
    env = start(family, tasks, n)
    first = env.step(np.ones(2 * n))
    second = env.step(np.zeros(2 * n))
    state, following = (x[0].reshape(2, n).numpy() for x in (first, second))
    reward, later = (x[1].reshape(2, n).numpy() for x in (first, second))
    for k in range(2):
        counts = np.bincount(state[k], minlength=4)
        row = tasks["transitions"][k, 0, 1].astype(np.float64)
        assert stats.chisquare(counts, n * row / row.sum()).pvalue > 1e-3
        assert stats.kstest(reward[k], "norm", (tasks["rewards"][k, 0, 1], 1)).pvalue > 1e-3
        for s in range(4):  # the second step, from whatever state the first led to
            here = state[k] == s
            assert within(reward[k][here], tasks["rewards"][k, 0, 1])  # the reward says nothing of the next state
            row = tasks["transitions"][k, s, 0].astype(np.float64)
            counts = np.bincount(following[k][here], minlength=4)
            assert stats.chisquare(counts, here.sum() * row / row.sum()).pvalue > 1e-3
            assert within(later[k][here], tasks["rewards"][k, s, 0])


def test_a_cycle_is_walked_in_its_order():
    rows = np.roll(np.eye(3), 1, axis=1)[:, None, :]
    family = metarl.make("TabularMDP-v0", states=3, actions=1)
    env = start(family, {"transitions": [rows], "rewards": np.zeros((1, 3, 1))}, 50)
    assert [env.step(np.zeros(50))[0].unique().tolist() for _ in range(4)] == [[1], [2], [0], [1]]


def test_tabular_tasks_are_distributed_as_documented():
    tasks = sample(metarl.make("TabularMDP-v0"), 100)
    np.testing.assert_allclose(tasks["transitions"].sum(-1), 1, atol=1e-5)
    # A coordinate of a flat Dirichlet distribution over 10 states is Beta(1, 9); one per row, for independence.
    assert stats.kstest(tasks["transitions"][..., 3].ravel(), "beta", (1, 9)).pvalue > 1e-3
    assert stats.kstest(tasks["rewards"].ravel(), "norm", (1, 1)).pvalue > 1e-3


def brute_force(transitions, rewards, horizon, discount):
    """The best of all deterministic policies that may change with time, and the average of all: forward in time."""
    states, actions = rewards.shape
    values = []
    for policy in itertools.product(range(actions), repeat=states * horizon):
        here, value = np.eye(states)[0], 0.0
        for t in range(horizon):
            a = np.array(policy[t * states : (t + 1) * states])
            value += discount**t * here @ rewards[np.arange(states), a]
            here = here @ transitions[np.arange(states), a]
        values.append(value)
    return max(values), np.mean(values)


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_value_iteration_equals_brute_force(discount):
    tasks = sample(metarl.make("TabularMDP-v0", states=2, actions=3), 4)
    want = [brute_force(p.astype(float), r.astype(float), 3, discount) for p, r in zip(*tasks.values(), strict=True)]
    best, average = np.transpose(want)
    np.testing.assert_allclose(optimal_return(tasks, 3, discount), best, rtol=1e-12)
    # The uniform policy mixes the deterministic ones evenly.
    np.testing.assert_allclose(uniform_return(tasks, 3, discount), average, rtol=1e-12)


def test_published_returns_of_the_best_and_of_a_random_policy():
    """20.87 per episode normalises RL2's results; a random policy earns 10.0."""
    tasks = sample(metarl.make("TabularMDP-v0"), 4000)
    assert within(optimal_return(tasks, 10, 0.99), 20.87, errors=3)
    assert within(uniform_return(tasks, 10), 10.0, errors=3)
    assert not within(optimal_return(tasks, 10), 20.87, errors=10)  # so much says that it was discounted


def test_random_actions_earn_the_uniform_return():
    family, n = metarl.make("TabularMDP-v0"), 4000
    tasks = sample(family, 3)
    env = start(family, tasks, n)
    rng, total = np.random.default_rng(0), np.zeros(3 * n)
    for _ in range(family.horizon):
        total += env.step(rng.integers(5, size=3 * n))[1].numpy()
    for k, want in enumerate(uniform_return(tasks, family.horizon)):
        assert within(total.reshape(3, n)[k], want)
