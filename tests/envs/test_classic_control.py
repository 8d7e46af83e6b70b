"""Classic control with varied constants: equal to Gymnasium's own environments, and to numbers found by hand."""

import inspect
import math
import textwrap

import gymnasium as gym
import metarl_envs  # noqa: F401  (registers the environments with Gymnasium)
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import acrobot, cartpole, continuous_mountain_car, mountain_car, pendulum

import metarl
from metarl import random
from metarl.tasks import task_at
from metarl.vector.tensor import TensorVectorEnv

IDS = [
    "AcrobotParams-v0",
    "CartPoleParams-v0",
    "MountainCarContinuousParams-v0",
    "MountainCarParams-v0",
    "PendulumParams-v0",
]

# ---------------------------------------------------------------------------------------------------------------------
# Gymnasium's environments with the parameters of a task


def patched(module, cls, method, constant, name):
    """Gymnasium's class with one constant in the text of `method` replaced by the attribute `name`."""
    source = textwrap.dedent(inspect.getsource(getattr(cls, method)))
    assert source.count(constant) == 1
    scope = dict(vars(module))
    exec(source.replace(constant, constant.replace(constant.split()[-1], f"self.{name}")), scope)
    return type(cls.__name__, (cls,), {method: scope[method]})


Acrobot = patched(acrobot, acrobot.AcrobotEnv, "_dsdt", "g = 9.8", "gravity")
MountainCarContinuous = patched(
    continuous_mountain_car, continuous_mountain_car.Continuous_MountainCarEnv, "step", "0.0025", "gravity"
)
THEIRS = {
    "AcrobotParams-v0": (Acrobot, "Acrobot-v1", ("theta1", "theta2", "dtheta1", "dtheta2")),
    "CartPoleParams-v0": (cartpole.CartPoleEnv, "CartPole-v1", ("x", "x_dot", "theta", "theta_dot")),
    "MountainCarContinuousParams-v0": (MountainCarContinuous, "MountainCarContinuous-v0", ("position", "velocity")),
    "MountainCarParams-v0": (mountain_car.MountainCarEnv, "MountainCar-v0", ("position", "velocity")),
    "PendulumParams-v0": (pendulum.PendulumEnv, "Pendulum-v1", ("theta", "theta_dot")),
}


def theirs(id, task, **kwargs):
    """Gymnasium's environment with a task's parameters and all that Gymnasium derives from them."""
    env = THEIRS[id][0](**kwargs)
    env.reset(seed=0)
    for name, value in task.items():
        attribute = name.upper() if id == "AcrobotParams-v0" and name != "gravity" else name
        assert hasattr(env, attribute) or name == "gravity", attribute
        setattr(env, attribute, float(value))
    if id == "CartPoleParams-v0":
        env.total_mass = env.masspole + env.masscart
        env.polemass_length = env.masspole * env.length
    if id == "AcrobotParams-v0":
        env.LINK_COM_POS_1, env.LINK_COM_POS_2 = env.LINK_LENGTH_1 / 2, env.LINK_LENGTH_2 / 2
    return env


def some_states(id, n, rng):
    """States [n, S] all over the space, some of them beyond its edges so that clipping and ends occur."""
    if id == "CartPoleParams-v0":
        return rng.uniform(-1, 1, (n, 4)) * [2.45, 3, 0.22, 4]
    if id == "PendulumParams-v0":
        return rng.uniform(-1, 1, (n, 2)) * [math.pi, 8]
    if id == "AcrobotParams-v0":
        return rng.uniform(-1, 1, (n, 4)) * [math.pi, math.pi, 4 * math.pi, 9 * math.pi]
    return np.stack([rng.uniform(-1.2, 0.6, n), rng.uniform(-0.07, 0.07, n)], -1)


def some_actions(id, n, rng):
    if id in ("PendulumParams-v0", "MountainCarContinuousParams-v0"):
        return rng.uniform(-3, 3, (n, 1)).astype(np.float32)  # some beyond the bounds, to be clipped
    return rng.integers(metarl.make(id).action_space.n, size=n)


def wide_tasks(family, n):
    """Tasks far beyond the default ranges, forces of both signs among them."""
    rng = np.random.default_rng(7)
    tasks = {}
    for name, p in family.parameters.items():
        sign = rng.choice([-1, 1], n) if name in ("force_mag", "force", "power") else 1
        tasks[name] = (sign * rng.uniform(0.4, 2.5, n) * p.default).astype(np.float32)
    return tasks


def mod_angles(id, difference, names):
    """Differences of states, angles modulo a full turn."""
    for i, name in enumerate(names):
        if id != "CartPoleParams-v0" and name.startswith("theta") and not name.endswith("dot"):
            difference[..., i] = (difference[..., i] + math.pi) % (2 * math.pi) - math.pi
    return difference


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_one_step_from_anywhere_equals_gymnasium(id, dtype, tolerance):
    """The functions on float64 tensors against Gymnasium's float64; in float32 to that type's precision."""
    family, n, names = metarl.make(id), 2000, THEIRS[id][2]
    rng = np.random.default_rng(0)
    tasks = wide_tasks(family, n)
    states, actions = some_states(id, n, rng).astype(np.float32).astype(np.float64), some_actions(id, n, rng)
    if id == "AcrobotParams-v0" and dtype == torch.float32:
        states *= [1, 1, 0.15, 0.15]  # at full speed one step of 0.2 s magnifies rounding a thousandfold
    state = {name: torch.tensor(states[:, i], dtype=dtype) for i, name in enumerate(names)}
    action = torch.tensor(actions).to(dtype if actions.ndim == 2 else torch.int64)
    task = {name: torch.tensor(value).to(dtype) for name, value in tasks.items()}
    following, reward, terminated = family.step(state, action, task, torch.empty(n, 0, dtype=dtype))
    got = torch.stack([following[name] for name in names], -1).double().numpy()
    observed = family.observe(following, task).double().numpy()
    ended = np.zeros(n, bool)
    want, want_reward, want_observed = np.empty_like(got), np.empty(n), np.empty_like(observed)
    for i in range(n):
        env = theirs(id, task_at(tasks, i))
        env.state = states[i].copy()
        taken = actions[i].astype(np.float64) if actions.ndim == 2 else actions[i]
        want_observed[i], want_reward[i], ended[i], _, _ = env.step(taken)
        want[i] = env.state
    if id == "MountainCarContinuousParams-v0":
        tolerance = max(tolerance, 1e-7)  # its state is stored in float32
    scale = np.maximum(1, np.abs(want))
    assert np.abs(mod_angles(id, got - want, names) / scale).max() < tolerance
    assert (np.abs(observed - want_observed) / np.maximum(1, np.abs(want_observed))).max() < max(tolerance, 2e-6)
    if terminated is None:
        assert not ended.any()
    else:
        differ = np.flatnonzero(terminated.numpy() != ended)
        assert len(differ) <= (0 if dtype == torch.float64 else 2), "only on the very edge, by rounding"
        assert 0.001 < ended.mean() < 0.999, "both cases occur"
        reward, want_reward = np.delete(reward.numpy(), differ), np.delete(want_reward, differ)
    np.testing.assert_allclose(reward, want_reward, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("id", IDS)
def test_whole_episodes_equal_gymnasium(id):
    """From the same first state with the same actions, in the environments that training uses (float32).

    The acrobot is chaotic and the pendulum unstable where it stands: there Gymnasium goes on from our state, after
    every step or every 25 of them.
    """
    family, k, names = metarl.make(id), 4, THEIRS[id][2]
    together = {"AcrobotParams-v0": 1, "PendulumParams-v0": 25}.get(id, 1000)
    tasks = family.sample(k, np.random.default_rng(1))
    env = TensorVectorEnv(family, k, 1)
    obs, _ = env.reset(seed=3, options={"tasks": tasks})
    single = [theirs(id, task_at(tasks, i)) for i in range(k)]
    alive, lengths = np.ones(k, bool), np.zeros(k, int)
    rng = np.random.default_rng(2)
    for i in range(k):
        single[i].state = np.array([float(env.state[name][i, 0]) for name in names])
    for t in range(300):
        actions = some_actions(id, k, rng)
        if id.startswith("MountainCar"):  # with the velocity, so that some arrive
            towards = np.sign(obs[:, 1].numpy()).astype(int)
            actions = towards + 1 if actions.ndim == 1 else towards[:, None].astype(np.float32)
        before = [np.array([float(env.state[name][i, 0]) for name in names]) for i in range(k)]
        obs, reward, terminated, truncated, _ = env.step(actions)
        for i in np.flatnonzero(alive):
            if t % together == 0:
                single[i].state = before[i]
            want, want_reward, ended, _, _ = single[i].step(actions[i])
            np.testing.assert_allclose(obs[i], want, rtol=2e-4, atol=2e-4, err_msg=f"step {t}")
            assert reward[i].item() == pytest.approx(want_reward, rel=1e-4, abs=1e-3)
            assert bool(terminated[i]) == ended, f"step {t}"
            lengths[i] = t + 1
        alive &= ~(terminated | truncated).numpy()
    if id in ("CartPoleParams-v0", "MountainCarParams-v0", "MountainCarContinuousParams-v0"):
        assert len(set(lengths)) > 1, "episodes end at different times"
    else:
        assert (lengths >= 200).any()


@pytest.mark.parametrize("id", IDS)
def test_a_parameter_that_is_wrong_shows(id):
    """The comparison above notices a single parameter that is off by a thousandth."""
    family, n, names = metarl.make(id), 200, THEIRS[id][2]
    rng = np.random.default_rng(0)
    task = {name: torch.tensor(value).double() for name, value in wide_tasks(family, n).items()}
    state = {name: torch.tensor(some_states(id, n, rng)[:, i]) for i, name in enumerate(names)}
    action = torch.tensor(some_actions(id, n, rng))
    for name in family.parameters:
        other = {**task, name: task[name] * 1.001}
        (a, _, _), (b, _, _) = (family.step(state, action, x, torch.empty(n, 0)) for x in (task, other))
        assert max((a[key] - b[key]).abs().max() for key in names) > 1e-6, name


@pytest.mark.parametrize("id", IDS)
def test_spaces_horizon_and_default_task_are_gymnasiums(id):
    spec = gym.spec(THEIRS[id][1])
    reference, ours = gym.make(spec.id).unwrapped, gym.make(f"metarl_envs/{id}").unwrapped
    assert ours.observation_space == reference.observation_space
    assert ours.action_space == reference.action_space
    assert ours.family.horizon == spec.max_episode_steps
    for name, value in ours.task.items():
        attribute = name.upper() if name.startswith("link") else name
        constant = {"AcrobotParams-v0": 9.8, "MountainCarContinuousParams-v0": 0.0025}.get(id)
        assert float(value) == pytest.approx(getattr(reference, attribute, constant), rel=1e-7)


@pytest.mark.parametrize("id", IDS)
def test_first_states_are_distributed_as_gymnasiums(id):
    n, names = 4000, THEIRS[id][2]
    family = metarl.make(id)
    env = TensorVectorEnv(family, 1, n)
    env.reset(seed=random.episode_seeds(0, 0, 0, 1, n), options={"tasks": family.sample(1, np.random.default_rng(0))})
    reference = THEIRS[id][0]()
    starts = []
    for seed in range(n):
        reference.reset(seed=seed)
        starts.append(np.array(reference.state, np.float64))
    for i, name in enumerate(names):
        got, want = env.state[name][0].numpy(), np.array(starts)[:, i]
        spread = want.max() - want.min()
        for quantile in (0.001, 0.25, 0.5, 0.75, 0.999):
            assert abs(np.quantile(got, quantile) - np.quantile(want, quantile)) <= 0.05 * spread + 1e-9, name


# ---------------------------------------------------------------------------------------------------------------------
# By hand


def one_step(id, state, action, **task):
    """-> next state, reward, terminated of one float64 environment."""
    family = metarl.make(id)
    full = {name: torch.tensor([float(task.get(name, p.default))]).double() for name, p in family.parameters.items()}
    state = {name: torch.tensor([float(value)]).double() for name, value in state.items()}
    action = torch.tensor([action])
    following, reward, terminated = family.step(state, action, full, torch.empty(1, 0))
    ended = None if terminated is None else bool(terminated)
    return {name: value.item() for name, value in following.items()}, reward.item(), ended


def test_cart_pole_by_hand():
    """Upright, at rest, pushed by F: the pole accelerates by -F/M / (l (4/3 - m/M))."""
    rest = {"x": 0.1, "x_dot": 0.5, "theta": 0.0, "theta_dot": -1.0}
    after, reward, ended = one_step(
        "CartPoleParams-v0", rest, 1, masscart=2.0, masspole=1.0, length=0.25, force_mag=6.0
    )
    theta_acc = -2 / (0.25 * (4 / 3 - 1 / 3))  # -8
    x_acc = 2 - 0.25 * theta_acc / 3  # 2 2/3
    assert (theta_acc, x_acc) == (-8, pytest.approx(8 / 3))
    assert after["x"] == pytest.approx(0.1 + 0.02 * 0.5)
    assert after["theta"] == pytest.approx(-0.02)  # by the old velocity: explicit Euler
    assert after["x_dot"] == pytest.approx(0.5 + 0.02 * 8 / 3)
    assert after["theta_dot"] == pytest.approx(-1 - 0.02 * 8)
    assert (reward, ended) == (1, False)


@pytest.mark.parametrize(("x", "degrees", "over"), [(2.39, 0, False), (2.41, 0, True), (-2.41, 0, True),
                                                    (0, 11.9, False), (0, 12.1, True), (0, -12.1, True)])  # fmt: skip
@pytest.mark.parametrize("sutton_barto", [False, True])
def test_cart_pole_ends_and_rewards(x, degrees, over, sutton_barto):
    state = {"x": x, "x_dot": 0, "theta": math.radians(degrees), "theta_dot": 0}
    family = metarl.make("CartPoleParams-v0", sutton_barto_reward=sutton_barto)
    task = {name: torch.tensor([p.default]) for name, p in family.parameters.items()}
    state = {name: torch.tensor([float(value)]) for name, value in state.items()}
    _, reward, ended = family.step(state, torch.tensor([0]), task, torch.empty(1, 0))
    assert (reward.item(), ended.item()) == ((-1 if over else 0) if sutton_barto else 1, over)


def test_random_pushes_keep_the_pole_up_for_22_steps():
    family, n = metarl.make("CartPoleParams-v0", horizon=200), 3000
    env = TensorVectorEnv(family, 1, n)
    env.reset(seed=0, options={"tasks": {name: np.array([v]) for name, v in family.default_task.items()}})
    rng, total = np.random.default_rng(0), np.zeros(n)
    for _ in range(family.horizon):
        total += env.step(rng.integers(2, size=n))[1].numpy()
    assert abs(total.mean() - 22.2) < 4 * total.std() / math.sqrt(n) + 0.3


def test_pendulum_by_hand():
    """Horizontal: gravity's part is 3 g / (2 l), the torque's 3 u / (m l^2)."""
    state = {"theta": math.pi / 2, "theta_dot": 1.0}
    after, reward, ended = one_step("PendulumParams-v0", state, [5.0], g=6.0, m=0.5, l=2.0)  # the torque is clipped
    speed = 1 + (4.5 + 3 * 2 / (0.5 * 4)) * 0.05
    assert after["theta_dot"] == pytest.approx(speed)
    assert after["theta"] == pytest.approx(math.pi / 2 + 0.05 * speed)  # by the new velocity
    assert reward == pytest.approx(-((math.pi / 2) ** 2 + 0.1 + 0.001 * 4))
    assert ended is None


def test_acrobot_at_rest_hangs_still_and_conserves_energy_when_it_swings():
    names = THEIRS["AcrobotParams-v0"][2]
    still, reward, ended = one_step("AcrobotParams-v0", dict.fromkeys(names, 0.0), 1)
    assert (still, reward, ended) == (dict.fromkeys(names, 0.0), -1, False)
    # Physics that no formula of the code contains: kinetic plus potential energy of two rods stays what it was.
    task = {"link_length_1": 0.8, "link_length_2": 1.2, "link_mass_1": 1.2, "link_mass_2": 0.7, "link_moi": 0.9}

    def energy(s):
        g, l1, lc1, lc2 = 9.8, 0.8, 0.4, 0.6
        m1, m2, inertia = 1.2, 0.7, 0.9
        w1, w2 = s["dtheta1"], s["dtheta1"] + s["dtheta2"]
        speed2 = (l1 * w1) ** 2 + (lc2 * w2) ** 2 + 2 * l1 * lc2 * w1 * w2 * math.cos(s["theta2"])
        kinetic = 0.5 * ((m1 * lc1**2 + inertia) * w1**2 + inertia * w2**2 + m2 * speed2)
        height2 = -l1 * math.cos(s["theta1"]) - lc2 * math.cos(s["theta1"] + s["theta2"])
        return kinetic + m1 * g * -lc1 * math.cos(s["theta1"]) + m2 * g * height2

    state = {"theta1": 1.0, "theta2": -0.7, "dtheta1": 0.3, "dtheta2": 0.5}
    start = energy(state)
    for _ in range(5):
        state, _, _ = one_step("AcrobotParams-v0", state, 1, **task)
    assert energy(state) == pytest.approx(start, abs=0.02)
    assert abs(energy({**state, "dtheta2": state["dtheta2"] + 0.2}) - start) > 0.05, "a small error would show"


def test_mountain_car_by_hand():
    after, reward, ended = one_step(
        "MountainCarParams-v0", {"position": 0.0, "velocity": 0.01}, 2, force=0.004, gravity=0.001
    )
    assert after == pytest.approx({"position": 0.013, "velocity": 0.013})
    assert (reward, ended) == (-1, False)
    after, reward, ended = one_step("MountainCarParams-v0", {"position": 0.48, "velocity": 0.06}, 1)
    assert (reward, ended) == (-1, True)
    after, *_ = one_step("MountainCarParams-v0", {"position": -1.19, "velocity": -0.06}, 1)
    assert after == {"position": -1.2, "velocity": 0.0}  # the wall on the left


def test_mountain_car_continuous_by_hand():
    after, reward, ended = one_step(
        "MountainCarContinuousParams-v0", {"position": 0.0, "velocity": 0.01}, [2.0], power=0.004, gravity=0.001
    )
    assert after == pytest.approx({"position": 0.013, "velocity": 0.013})
    assert (reward, ended) == (pytest.approx(-0.4), False)  # the action's cost is taken before it is clipped
    _, reward, ended = one_step("MountainCarContinuousParams-v0", {"position": 0.44, "velocity": 0.06}, [0.5])
    assert (reward, ended) == (pytest.approx(100 - 0.025), True)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks, devices, pictures


def test_ranges_replace_and_fix_parameters():
    family = metarl.make("PendulumParams-v0", ranges={"g": [2.0, 3.0], "m": 1.5}, test_ranges={"g": (8.0, 9.0)})
    train, test = (family.sample(1000, np.random.default_rng(0), split) for split in ("train", "test"))
    assert 2 <= train["g"].min() < 2.01 and 2.99 < train["g"].max() <= 3
    assert test["g"].min() >= 8 and test["g"].max() <= 9
    assert (train["m"] == 1.5).all() and (test["m"] == 1.5).all()
    assert 0.75 <= train["l"].min() < 0.76 and 1.24 < train["l"].max() <= 1.25
    assert abs(np.corrcoef(train["g"], train["l"])[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ranges": {"lenght": 1.0}}, "CartPoleParams-v0 has no task parameter 'lenght'; did you mean 'length'"),
        ({"ranges": {"length": (1.0, 0.5)}}, r"range of 'length' must be .* got \(1.0, 0.5\)"),
        ({"ranges": {"length": (1.0, 2.0, 3.0)}}, "range of 'length' must be"),
        ({"ranges": {"gravity": (1.0, math.inf)}}, "range of 'gravity' must be"),
        ({"test_ranges": {"masspole": (0.0, 1.0)}}, r"'masspole' must be positive, got the range \(0.0, 1.0\)"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_nonsense_is_refused_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        metarl.make("CartPoleParams-v0", **kwargs)


def test_gymnasium_make_takes_parameters_and_knows_the_rest():
    env = gym.make("metarl_envs/CartPoleParams-v0", length=2.0, horizon=7).unwrapped
    assert float(env.task["length"]) == 2.0
    assert float(env.task["gravity"]) == np.float32(9.8)
    assert env.family.horizon == 7
    with pytest.raises(ValueError, match="'length' of CartPoleParams-v0 lies in"):
        gym.make("metarl_envs/CartPoleParams-v0", length=-1.0)


@pytest.mark.parametrize("id", IDS)
def test_no_step_needs_the_value_of_a_tensor(id):
    """Tensors on the meta device have shapes and no values: any round trip to the CPU would raise."""
    family = metarl.make(id)
    task = {name: torch.empty(2, 3, device="meta") for name in family.parameters}
    state = family.initial(task, torch.empty(2, 3, family.reset_draws, device="meta"))
    discrete = isinstance(family.action_space, gym.spaces.Discrete)
    action = torch.zeros((2, 3) if discrete else (2, 3, 1), dtype=torch.int64 if discrete else None, device="meta")
    following, reward, _ = family.step(state, action, task, torch.empty(2, 3, 0, device="meta"))
    assert {name: value.shape for name, value in following.items()} == {name: (2, 3) for name in state}
    assert reward.shape == (2, 3)
    assert family.observe(following, task).shape == (2, 3, *family.observation_space.shape)


TIP = {  # where the moving thing is in the picture: colour, half width, centre, and its position from the state
    "CartPoleParams-v0": ((31, 119, 180), 2.6, (0.0, 0.8), lambda s: (s["x"], 0.0)),
    "MountainCarParams-v0": ((31, 119, 180), 1.0, (-0.3, 0.6),
                             lambda s: (s["position"], 0.45 * math.sin(3 * s["position"]) + 0.6)),
    "MountainCarContinuousParams-v0": ((31, 119, 180), 1.0, (-0.3, 0.6),
                                       lambda s: (s["position"], 0.45 * math.sin(3 * s["position"]) + 0.6)),
    "PendulumParams-v0": ((31, 119, 180), 1.5, (0.0, 0.0),
                          lambda s: (-0.5 * math.sin(s["theta"]), 0.5 * math.cos(s["theta"]))),
    "AcrobotParams-v0": ((255, 127, 14), 2.2, (0.0, 0.0),  # the middle of the second link
                         lambda s: (math.sin(s["theta1"]) + math.sin(s["theta1"] + s["theta2"]) / 2,
                                    -math.cos(s["theta1"]) - math.cos(s["theta1"] + s["theta2"]) / 2)),
}  # fmt: skip


@pytest.mark.parametrize("id", IDS)
def test_picture_shows_the_state(id):
    colour, half, centre, where = TIP[id]
    env = gym.make(f"metarl_envs/{id}", render_mode="rgb_array").unwrapped
    env.reset(seed=1)
    for _ in range(4):
        image = env.render()
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8
        rows, columns = (image == colour).all(-1).nonzero()
        x = centre[0] + (2 * (columns.mean() + 0.5) / 256 - 1) * half
        y = centre[1] + (1 - 2 * (rows.mean() + 0.5) / 256) * half
        want = where({name: float(value) for name, value in env._batch.state.items()})
        np.testing.assert_allclose([x, y], want, atol=0.035 * half)
        for _ in range(3):
            env.step(env.action_space.high if hasattr(env.action_space, "high") else 0)


@pytest.mark.parametrize("id", IDS)
def test_draw_shows_the_episodes(id):
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    family = metarl.make(id)
    rng = np.random.default_rng(0)
    angles = rng.uniform(-math.pi, math.pi, (2, 40))
    episodes = [rng.uniform(-1, 1, (n, *family.observation_space.shape)) for n in (5, 40)]
    if id == "PendulumParams-v0":
        episodes[1][:, :2] = np.stack([np.cos(angles[0]), np.sin(angles[0])], -1)
    if id == "AcrobotParams-v0":
        episodes[1][:, :4] = np.stack([f(a) for a in angles for f in (np.cos, np.sin)], -1)
    family.draw(axes, family.default_task, episodes)
    x, y = axes.lines[1].get_xdata(), axes.lines[1].get_ydata()
    if id == "PendulumParams-v0":
        assert np.isnan(x).any(), "a line is broken where the angle turns over"
        np.testing.assert_allclose(x[~np.isnan(x)], angles[0])
    elif id == "AcrobotParams-v0":
        np.testing.assert_allclose(y, -np.cos(angles[0]) - np.cos(angles.sum(0)))
    elif id == "CartPoleParams-v0":
        np.testing.assert_allclose(np.stack([x, np.radians(y)], -1), episodes[1][:, [0, 2]])
    else:
        np.testing.assert_allclose(np.stack([x, y], -1), episodes[1])


# ---------------------------------------------------------------------------------------------------------------------
# Learning


def test_balancing_is_learned_in_a_few_meta_iterations():
    """A policy that knows nothing earns about 20 over these tasks; 100 is the most there is."""
    family = metarl.make("CartPoleParams-v0", horizon=100)
    learner = metarl.MetaLearner(
        "maml_trpo", family, seed=0, n_tasks=8, episodes=10, hidden=(32,), max_kl=0.05, inner_lr=0.1
    )
    before = learner.evaluate(40, episodes=10, steps=1, seed=1).mean
    learner.learn(7, eval_every=0)
    after = learner.evaluate(40, episodes=10, steps=1, seed=1).mean
    assert max(before) < 25
    assert min(after) > 55
