"""The MuJoCo families: Gymnasium's environments with the rewards that the docstrings state."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import metarl
from metarl.tasks import task_at
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.mujoco import MujocoVectorEnv, Physics

pytest.importorskip("mujoco")

RAND_PARAMS = ["HopperRandParams-v0", "Walker2dRandParams-v0", "HalfCheetahRandParams-v0"]
CHEETAHS = ["HalfCheetahDir-v0", "HalfCheetahVel-v0", "HalfCheetahVel3-v0"]
ANTS = ["AntDir-v0", "AntDir2D-v0", "AntVel-v0", "AntGoal-v0", "AntGoalDisc-v0"]
FAMILIES = [*CHEETAHS, *ANTS, "HumanoidDir-v0", "SwimmerVel-v0", "ReacherGoal-v0", *RAND_PARAMS]
FALLING = ["AntDir-v0", "AntDir2D-v0", "AntVel-v0", "AntGoal-v0", "HumanoidDir-v0", *RAND_PARAMS[:2]]
K, E, STEPS = 3, 2, 100


def actions(family, steps=STEPS, envs=K * E):
    high = 1.2 * family.action_space.high  # beyond the bounds too
    return np.random.default_rng(1).uniform(-high, high, (steps, envs, *high.shape)).astype(np.float32)


@pytest.mark.parametrize("id", FAMILIES)
def test_many_at_once_equal_the_plain_environments(id):
    family = metarl.make(id, horizon=STEPS)
    tasks = family.sample(K, np.random.default_rng(0))
    fast, slow = MujocoVectorEnv(family, K, E, threads=2), LoopVectorEnv(family, K, E)
    seeds = list(range(40, 40 + K * E))
    a, b = (env.reset(seed=seeds, options={"tasks": tasks})[0] for env in (fast, slow))
    np.testing.assert_array_equal(a, b)
    for action in actions(family, STEPS + 2):
        for got, wanted in zip(fast.step(action)[:4], slow.step(action)[:4], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)
    terminated = fast.step(action)[2]
    assert terminated.any() == (id in FALLING)  # so the comparison has seen episodes that end


@pytest.mark.parametrize("new_tasks", [False, True])
@pytest.mark.parametrize("id", ["HopperRandParams-v0", "ReacherGoal-v0"])  # a model, or a first state, of each task
def test_resetting_some_equals_the_plain_environments(id, new_tasks):
    family = metarl.make(id, horizon=12)
    masks = {t: np.random.default_rng(t).random(K * E) < 0.4 for t in (3, 8, 9, 14, 20, 21, 30)}
    played = []
    for env in (MujocoVectorEnv(family, K, E, threads=2), LoopVectorEnv(family, K, E)):
        out = [env.reset(seed=list(range(K * E)), options={"tasks": family.sample(K, np.random.default_rng(0))})[:1]]
        for t, action in enumerate(actions(family, 40)):
            if t in masks:
                options = {"reset_mask": masks[t]}
                options |= {"tasks": family.sample(K, np.random.default_rng(t))} if new_tasks else {}
                out.append(env.reset(seed=[100 * t + i for i in range(K * E)], options=options)[:1])
            out.append(env.step(action)[:4])
        played.append(out)
    for a, b in zip(*played, strict=True):
        for got, wanted in zip(a, b, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)
    truncated = np.array([step[3] for step in played[0] if len(step) == 4])
    assert (truncated.any(1) & ~truncated.all(1)).any()  # the episodes' times have come apart


def test_wrong_masks_are_refused():
    family = metarl.make("HalfCheetahDir-v0")
    env, tasks = MujocoVectorEnv(family, K, E), family.sample(K, np.random.default_rng(0))
    mask = np.arange(K * E) == 1
    with pytest.raises(ValueError, match="leave reset_mask out"):
        env.reset(options={"tasks": tasks, "reset_mask": mask})
    env.reset(seed=0, options={"tasks": tasks})
    with pytest.raises(ValueError, match="reset_mask must be bool"):
        env.reset(options={"reset_mask": mask[:-1]})


def test_stable_baselines3_runs_a_family_whose_episodes_end_early():
    pytest.importorskip("stable_baselines3")
    from metarl.sb3 import as_vec_env

    env = as_vec_env("HopperRandParams-v0", 3, seed=1)
    env.reset()
    done = np.array([env.step(action)[2] for action in actions(env.family, 60, 3)])
    assert (done.any(1) & ~done.all(1)).any()


def angle_reward(task, info, forward):
    return forward * (math.cos(task["angle"]) * info["x_velocity"] + math.sin(task["angle"]) * info["y_velocity"])


def cheetah_control(action):
    return 0.05 * (action.astype(float) ** 2).sum()


def ant_costs(info, control, survival):
    """From Gymnasium's own weights, 0.5 for the action and 1 for survival, to others."""
    return info["reward_ctrl"] * control / 0.5 + info["reward_contact"] + survival * info["reward_survive"]


def goal_distance(task, info):
    return abs(info["x_position"] - task["goal"][0]) + abs(info["y_position"] - task["goal"][1])


BY_HAND = {
    "HalfCheetahDir-v0": lambda t, r, i, a: (2 * t["forward"] - 1) * i["x_velocity"] - cheetah_control(a),
    "HalfCheetahVel-v0": lambda t, r, i, a: -abs(i["x_velocity"] - t["velocity"]) - cheetah_control(a),
    "HalfCheetahVel3-v0": lambda t, r, i, a: -abs(i["x_velocity"] - t["velocity"]) - cheetah_control(a),
    "AntDir-v0": lambda t, r, i, a: (2 * t["forward"] - 1) * i["x_velocity"] + ant_costs(i, 0.005, 0.05),
    "AntDir2D-v0": lambda t, r, i, a: r - i["x_velocity"] + angle_reward(t, i, 1.0),
    "AntVel-v0": lambda t, r, i, a: 1 - abs(i["x_velocity"] - t["velocity"]) + ant_costs(i, 0.005, 0.05),
    "AntGoal-v0": lambda t, r, i, a: 4 - goal_distance(t, i) + ant_costs(i, 0.005, 0.05),
    "AntGoalDisc-v0": lambda t, r, i, a: -goal_distance(t, i) + ant_costs(i, 0.1, 0.0),
    "HumanoidDir-v0": lambda t, r, i, a: r - i["reward_forward"] + angle_reward(t, i, 1.25),
    "SwimmerVel-v0": lambda t, r, i, a: -abs(i["x_velocity"] - t["velocity"]) + i["reward_ctrl"],
}


@pytest.mark.parametrize("id", BY_HAND)
def test_untouched_gymnasium_environments_with_the_reward_of_the_docstring(id):
    """Neither the family's Gymnasium arguments nor its plain reward are used here."""
    family = metarl.make(id)
    tasks = family.sample(1, np.random.default_rng(3))
    env, plain = MujocoVectorEnv(family, 1, 1, threads=1), gym.make(family.env_id, disable_env_checker=True)
    got, _ = env.reset(seed=[5], options={"tasks": tasks})
    obs, _ = plain.reset(seed=5)
    shown = got.shape[1] - obs.shape[0]  # x and y, where the family observes them
    for action in actions(family, 60, 1):
        np.testing.assert_array_equal(got[0, shown:], obs)
        got, reward, terminated, _, _ = env.step(action)
        obs, gym_reward, gym_terminated, _, info = plain.step(action[0])
        assert reward[0] == pytest.approx(BY_HAND[id](task_at(tasks, 0), gym_reward, info, action[0]), abs=1e-5)
        if id != "AntGoalDisc-v0":
            assert terminated[0] == gym_terminated
        if gym_terminated:
            break


def bounds_of_health(id):
    """(position in the state, values on both sides of every bound)."""
    states = {"Ant": [(2, (0.19, 0.21, 0.99, 1.01)), (-1, (np.nan, 1e9))], "Humanoid": [(2, (0.99, 1.01, 1.99, 2.01))],
              "Hopper": [(1, (0.69, 0.71, 5.0)), (2, (-0.21, -0.19, 0.19, 0.21)), (4, (-101, -99, 99, 101)),
                         (-1, (-101.0, -99.0, 99.0, 101.0))],
              "Walker2d": [(1, (0.79, 0.81, 1.99, 2.01)), (2, (-1.01, -0.99, 0.99, 1.01)), (-1, (500.0,))]}  # fmt: skip
    return next(found for name, found in states.items() if id.startswith(name))


@pytest.mark.parametrize("id", FALLING)
def test_who_has_fallen_is_decided_as_by_gymnasium(id):
    """Where random actions do not come to: at both sides of every bound."""
    family = metarl.make(id)
    plain = gym.make(family.env_id, disable_env_checker=True).unwrapped
    plain.reset(seed=0)
    qpos, qvel = plain.init_qpos.copy(), plain.init_qvel.copy()
    seen = []
    for place, values in bounds_of_health(id):
        for value in values:
            state = np.concatenate([qpos, qvel])
            state[place] = value
            plain.data.qpos[:], plain.data.qvel[:] = np.split(state, [len(qpos)])
            physics = Physics(plain.data.qpos[None].copy(), plain.data.qvel[None].copy(), np.zeros((1, 1)), {})
            assert bool(family.terminated(physics)[0]) == (not plain.is_healthy), (place, value)
            seen.append(plain.is_healthy)
    assert len(set(seen)) == 2


def test_the_humanoids_cost_of_contacts_has_a_most():
    # 5e-7 |forces|^2, at most 10: of one force of 4000 it is 8, of one of 5000 it would be 12.5.
    family, zero = metarl.make("HumanoidDir-v0"), np.zeros
    bodies, costs = family.model.nbody, []
    for force in (0.0, 4000.0, 5000.0):
        forces = zero((1, bodies, 6))
        forces[0, 3, 2] = force
        now = Physics(family.init_qpos[None], family.init_qvel[None], zero((1, 17)),
                      {"xipos": zero((1, bodies, 3)), "cfrc_ext": forces})  # fmt: skip
        costs.append(family.reward(now, now, zero((1, 17)), {"angle": zero(1)})[0])
    assert costs[0] - np.array(costs) == pytest.approx([0, 8, 10])


@pytest.mark.parametrize("id", FAMILIES)
def test_splits_share_no_draw(id):
    family = metarl.make(id)
    train, again, test = (family.sample(20, np.random.default_rng(0), split) for split in ("train", "train", "test"))
    for name, value in train.items():
        assert np.array_equal(value, again[name])
        assert not np.array_equal(value, test[name])  # from generators in the same state


@pytest.mark.parametrize("id", RAND_PARAMS)
def test_factors_of_one_leave_gymnasiums_environment(id):
    family = metarl.make(id)
    ones = {name: np.ones((1, *space.shape)) for name, space in family.task_space.spaces.items()}
    env, plain = MujocoVectorEnv(family, 1, 1), gym.make(family.env_id, disable_env_checker=True)
    env.reset(seed=[5], options={"tasks": ones})
    plain.reset(seed=5)
    for action in actions(family, 30, 1):
        got, wanted = env.step(action), plain.step(action[0])
        np.testing.assert_array_equal(got[0][0], wanted[0])
        assert got[1][0] == pytest.approx(wanted[1], abs=1e-6)
        if wanted[2]:
            break


@pytest.mark.parametrize("name", ["mass", "inertia", "damping", "friction"])
def test_every_factor_changes_the_physics(name):
    family = metarl.make("HalfCheetahRandParams-v0")
    ones = {n: np.ones((2, *space.shape)) for n, space in family.task_space.spaces.items()}
    ones[name][1] *= 1.5
    env = MujocoVectorEnv(family, 2, 1)
    env.reset(seed=[5, 5], options={"tasks": ones})
    for action in actions(family, 40, 1):
        obs = env.step(np.repeat(action, 2, 0))[0]
    assert np.abs(obs[0] - obs[1]).max() > 1e-3


def test_factors_are_distributed_as_stated():
    family = metarl.make("HopperRandParams-v0")
    tasks = family.sample(2000, np.random.default_rng(0))
    for name, base in (("mass", 1.5), ("inertia", 1.5), ("damping", 1.3), ("friction", 1.5)):
        u = np.log(tasks[name]) / math.log(base)
        assert abs(u.mean()) < 0.05 and u.std() == pytest.approx(6 / math.sqrt(12), rel=0.03)
        assert np.abs(u).max() <= 3 + 1e-9


def test_new_tasks_of_the_same_vector_environment_have_new_models():
    family = metarl.make("HopperRandParams-v0")
    env, fresh = (MujocoVectorEnv(family, 2, 1) for _ in range(2))
    first, second = (family.sample(2, np.random.default_rng(s)) for s in (0, 1))
    move = actions(family, 1, 2)[0]
    env.reset(seed=3, options={"tasks": first})
    old = env.step(move)[0]
    env.reset(seed=3, options={"tasks": second})
    fresh.reset(seed=3, options={"tasks": second})
    new = env.step(move)[0]
    np.testing.assert_array_equal(new, fresh.step(move)[0])
    assert not np.array_equal(old, new)


def test_the_reachers_target_is_the_goal_and_is_not_seen():
    family = metarl.make("ReacherGoal-v0")
    tasks = {"goal": np.array([[0.1, 0.05], [-0.1, 0.12]])}
    env = MujocoVectorEnv(family, 2, 1)
    obs, _ = env.reset(seed=[1, 1], options={"tasks": tasks})
    np.testing.assert_array_equal(obs[0], obs[1])
    still = np.zeros((2, 2), np.float32)
    obs, _, _, _, _ = env.step(still)
    obs, reward, _, _, _ = env.step(still)
    np.testing.assert_allclose(reward, -np.linalg.norm(obs[:, 6:] - tasks["goal"], axis=1), atol=2e-3)


@pytest.mark.parametrize(("id", "low", "high"), [
    ("HalfCheetahVel-v0", 0, 2), ("HalfCheetahVel3-v0", 0, 3), ("AntVel-v0", 0, 3), ("SwimmerVel-v0", 0.1, 0.2),
])  # fmt: skip
def test_velocities_fill_their_range(id, low, high):
    velocity = metarl.make(id).sample(3000, np.random.default_rng(0))["velocity"]
    assert low <= velocity.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < velocity.max() <= high
    assert velocity.mean() == pytest.approx((low + high) / 2, rel=0.03)


def test_goals_of_square_and_disc():
    square, disc = (metarl.make(id).sample(4000, np.random.default_rng(0))["goal"] for id in ANTS[3:])
    assert np.abs(square).max() == pytest.approx(3, abs=0.01)
    assert (np.linalg.norm(square, axis=1) > 3).mean() == pytest.approx(1 - math.pi / 4, abs=0.03)
    radius = np.linalg.norm(disc, axis=1)
    assert radius.max() <= 3 and (radius**2).mean() == pytest.approx(4.5, rel=0.05)


@pytest.mark.parametrize("id", [id for id in FAMILIES if id != "HalfCheetahVel3-v0"])
def test_docstring_is_a_specification(id):
    headings = ["Task parameters and their distribution", "Splits", "Observation", "Action", "Reward", "Episode end",
                "Source", "Version history"]  # fmt: skip
    family = metarl.make(id)
    lines = [line.strip() for line in type(family).__doc__.splitlines()]
    assert family.id == id and [line for line in lines if line in headings] == headings
    spec = " ".join(lines)
    for name, space in family.task_space.spaces.items():
        assert f"`{name}`" in spec and (not space.shape or f"`{name}` {list(space.shape)}" in spec)
    assert f"{family.observation_space.shape}".replace("np.int64", "") in spec
    assert f"({family.horizon})" in spec


@pytest.mark.parametrize("id", FAMILIES)
def test_check_family_finds_nothing(id):
    assert metarl.check_family(metarl.make(id, horizon=15)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("id", FAMILIES)
def test_single_environments_pass_the_checkers_of_gymnasium_and_stable_baselines3(id):
    family = metarl.make(id, horizon=15)
    task = task_at(family.sample(1, np.random.default_rng(0)), 0)
    env = gym.make(f"metarl_envs:metarl_envs/{id}", **task, horizon=15, disable_env_checker=True)
    check_env(env, skip_render_check=True)
    check_env_sb3(env)
    env.close()


def test_the_two_directions_are_shared_by_the_splits():
    for id in ("HalfCheetahDir-v0", "AntDir-v0"):
        family = metarl.make(id)
        train, test = (family.sample(40, np.random.default_rng(0), split)["forward"] for split in ("train", "test"))
        assert family.shared_splits and set(train) == set(test) == {0, 1} and not np.array_equal(train, test)
