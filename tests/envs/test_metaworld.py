"""Meta-World: the families against the published package's benchmarks and environments, number by number.

The package needs another MuJoCo than the rest of the tests: `make test-mujoco33` runs this file with it.
"""

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

import metarl
from metarl import check_family
from metarl.tasks import task_at
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv

NAMES = [
    "assembly", "basketball", "bin-picking", "box-close", "button-press-topdown", "button-press-topdown-wall",
    "button-press", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble",
    "door-close", "door-lock", "door-open", "door-unlock", "hand-insert", "drawer-close", "drawer-open",
    "faucet-open", "faucet-close", "hammer", "handle-press-side", "handle-press", "handle-pull-side", "handle-pull",
    "lever-pull", "pick-place-wall", "pick-out-of-hole", "pick-place", "plate-slide", "plate-slide-side",
    "plate-slide-back", "plate-slide-back-side", "peg-insert-side", "peg-unplug-side", "soccer", "stick-push",
    "stick-pull", "push", "push-wall", "push-back", "reach", "reach-wall", "shelf-place", "sweep-into", "sweep",
    "window-open", "window-close",
]  # fmt: skip
K, E = 3, 2


@pytest.fixture(scope="module")
def mw() -> Any:
    return pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def reach(mw: Any) -> Any:
    return metarl.make("MetaWorld-ML1-v0", task="reach-v3", horizon=60)


@pytest.fixture(scope="module")
def push(mw: Any) -> Any:
    return metarl.make("MetaWorld-ML1-v0", task="push-v3", horizon=40, goal_observed=True)


# ---------------------------------------------------------------------------------------------------------------------
# What is missing, what makes no sense


@pytest.mark.parametrize("id", ["MetaWorld-ML1-v0", "MetaWorld-ML10-v0", "MetaWorld-ML45-v0"])
def test_without_the_package_the_remedy_is_named(id, monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install metaworld==3.1.1"):
        metarl.make(id)


def test_without_mujoco_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"needs MuJoCo .*pip install metaworld==3.1.1"):
        metarl.make("MetaWorld-ML1-v0")


def test_a_mujoco_that_does_not_fit_is_named(monkeypatch):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.setattr(mujoco, "__version__", "4.1.0")
    with pytest.raises(ImportError, match=r"does not run on MuJoCo 4.1.0: pip install .*mujoco==3.3.0"):
        metarl.make("MetaWorld-ML1-v0")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"task": "reech-v3"}, "Meta-World has no task 'reech-v3'; did you mean 'reach-v3'?"),
     ({"task": "push-v2"}, "did you mean 'push-v3'"),
     ({"horizon": 501}, "horizon must lie between 1 and the package's 500, got 501"),
     ({"horizon": 0}, "got 0"), ({"seed": -1}, "seed must not be negative, got -1")],
)  # fmt: skip
def test_wrong_arguments_are_explained(mw, kwargs, message):
    with pytest.raises(ValueError, match=message):
        metarl.make("MetaWorld-ML1-v0", **kwargs)


@pytest.mark.parametrize(
    ("vector", "message"),
    [([0.0, 0.6, 0.02, 0.5, 0.85, 0.1], r"rand_vec of reach-v3 lies between \[-0.1 .*got \[0"),
     ([0.09, 0.7, 0.02, 0.09, 0.81, 0.1], "reach-v3 refuses rand_vec .*: its object and goal are too close")],
)  # fmt: skip
def test_a_vector_that_the_package_would_not_draw_is_refused(reach, vector, message):
    with pytest.raises(ValueError, match=message):
        reach.make({"task": 0, "rand_vec": vector}).reset()
    env = make_vector(reach, 1, 1)
    with pytest.raises(ValueError, match=message):
        env.reset(options={"tasks": {"task": np.zeros(1, int), "rand_vec": np.array([vector])}})


# ---------------------------------------------------------------------------------------------------------------------
# Classes and goals


def test_there_are_fifty_tasks(mw):
    assert sorted(mw.ML1.ENV_NAMES) == sorted(f"{name}-v3" for name in NAMES)
    assert len(NAMES) == 50


@pytest.mark.parametrize(("id", "sizes"), [("ML10", (10, 5)), ("ML45", (45, 5))])
def test_the_classes_are_the_packages(mw, id, sizes):
    family = metarl.make(f"MetaWorld-{id}-v0")
    classes = getattr(mw.env_dict, f"{id}_V3")
    assert family.names == [*classes["train"], *classes["test"]]
    assert (len(classes["train"]), len(classes["test"])) == sizes
    tasks = {"task": np.arange(len(family.names)), "rand_vec": np.zeros((len(family.names), 6))}
    found = [family.env_class(task_at(tasks, k)) for k in range(len(family.names))]
    assert found == [*classes["train"].values(), *classes["test"].values()]


@pytest.mark.parametrize("name", ["reach-v3", "lever-pull-v3"])
def test_the_goals_are_the_packages_own(mw, name):
    """The package's benchmark with its simulation against ours without."""
    benchmark = mw.ML1(name, seed=7)
    family = metarl.make("MetaWorld-ML1-v0", task=name, seed=7)
    for split, tasks in (("train", benchmark.train_tasks), ("test", benchmark.test_tasks)):
        want = np.array([pickle.loads(task.data)["rand_vec"] for task in tasks])
        got = family._goals[split][name]
        np.testing.assert_array_equal(got[:, : want.shape[1]], want)
        assert not got[:, want.shape[1] :].any()
        drawn = family.sample(400, np.random.default_rng(0), split)["rand_vec"]
        assert {tuple(v) for v in drawn} == {tuple(v) for v in (got[:40] if split == "train" else got)}
    held_out = family.sample(200, np.random.default_rng(0), "validation")["rand_vec"]
    assert {tuple(v) for v in held_out} == {tuple(v) for v in family._goals["train"][name][40:]}


@pytest.mark.slow
@pytest.mark.parametrize("id", ["ML10", "ML45"])
def test_the_goals_of_many_classes_are_the_packages_own(mw, id):
    """The same for all classes of a benchmark, and that the splits take them from where they should."""
    benchmark, family = getattr(mw, id)(seed=42), metarl.make(f"MetaWorld-{id}-v0")
    for split, tasks in (("train", benchmark.train_tasks), ("test", benchmark.test_tasks)):
        want = [(task.env_name, *pickle.loads(task.data)["rand_vec"]) for task in tasks]
        got = [(name, *vector[: len(want[50 * i]) - 1]) for i, name in enumerate(family._goals[split])
               for vector in family._goals[split][name]]  # fmt: skip
        assert got == want


def test_goals_are_drawn_without_side_effects(mw):
    before = vars(mw.sawyer_xyz_env.SawyerXYZEnv).copy()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert len(metarl.make("MetaWorld-ML1-v0", task="reach-v3")._goals["train"]["reach-v3"]) == 50
    assert vars(mw.sawyer_xyz_env.SawyerXYZEnv) == before
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_every_class_comes_up_equally_often(mw, monkeypatch):
    family = metarl.make("MetaWorld-ML10-v0")
    goals = {split: {name: np.full((50, 6), i) for i, name in enumerate(family._of_split[split])}
             for split in ("train", "test")}  # fmt: skip
    family.__dict__["_goals"] = goals  # the benchmark itself takes a while
    train, test = (family.sample(20, np.random.default_rng(0), split)["task"] for split in ("train", "test"))
    assert np.bincount(train).tolist() == [2] * 10
    assert np.bincount(test).tolist() == [0] * 10 + [4] * 5
    assert np.bincount(family.sample(13, np.random.default_rng(0))["task"], minlength=10).max() == 2
    assert family.sample(20, np.random.default_rng(1))["task"].tolist() != train.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Environments


def play(env: Any, actions: np.ndarray, tasks: Any) -> list[Any]:
    out: list[Any] = [env.reset(seed=0, options={"tasks": tasks})[0]]
    for action in actions:
        obs, reward, terminated, truncated, infos = env.step(action)
        out += [obs, reward, terminated, truncated, infos.get("success", np.zeros(len(reward), bool))]
    return out


def moves(steps: int, n: int, seed: int = 0) -> np.ndarray:
    """Wandering hands that also grasp: a random direction for ten steps, with noise."""
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.uniform(-1.2, 1.2, (-(-steps // 10), n, 4)), 10, 0)[:steps]
    return np.clip(base + rng.normal(0, 0.3, base.shape), -1, 1).astype(np.float32)


@pytest.mark.parametrize("family", ["reach", "push"])
def test_all_at_once_equal_the_packages_one_by_one(family, request):
    """Through the whole episode and two steps beyond; other tasks in the second round."""
    family = request.getfixturevalue(family)
    fast, slow = make_vector(family, K, E), LoopVectorEnv(family, K, E)
    assert type(fast).__name__ == "MetaWorldVectorEnv"
    for round in range(2):
        tasks = family.sample(K, np.random.default_rng(round))
        actions = moves(family.horizon + 2, K * E, round)
        for got, want in zip(play(fast, actions, tasks), play(slow, actions, tasks), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    slow.close()


class Branching:
    """Code for one number, as the package's is."""

    def value(self, x: float) -> float:
        if x > 2:
            return 10.0 * max(x, 3.5)
        return -float(np.linalg.norm(np.array([x, 2.0]))) if x > 1 else 1.0 + 0 * x


def test_every_environment_takes_its_own_branch():
    from metarl_envs.metaworld_batch import Attributes, Code, batch, call

    x = [3.0, 0.0, 1.5, 4.0, 0.5, 2.0, 7.0]
    got = call(Code(Branching), Attributes([{}] * 7), None, None, 7, lambda env, index: env.value(batch(x)[index]))
    assert got.tolist() == [35, 1, -2.5, 40, 1, -np.sqrt(8), 70]
    assert got.tolist() == [Branching().value(number) for number in x]


def start(env: Any, name: str) -> np.ndarray:
    """Random vectors [2, 6] as the package may draw them."""
    space, rng = env._random_reset_space, np.random.default_rng(len(name))
    draws = rng.uniform(space.low, space.high, (50, len(space.low)))
    if draws.shape[1] == 6:  # the package refuses an object too close to its goal
        draws = draws[np.argsort(-np.linalg.norm(draws[:, :2] - draws[:, 3:5], axis=1))]
    return np.pad(draws[:2], ((0, 0), (0, 6 - draws.shape[1])))


@pytest.mark.parametrize("name", NAMES)
def test_every_class_equals_the_package(mw, name):
    """Observations, rewards and successes of two tasks at once, one of which the package plays along.

    With actions of 64 bits: of 32-bit ones the package carries some rewards on in 32 bits, which ours only do in part.
    """
    from metarl_envs.metaworld_vector import _builder

    family = metarl.make("MetaWorld-ML1-v0", task=f"{name}-v3")
    env = _builder(family.env_class({"task": np.array(0)}))
    tasks = {"task": np.zeros(2, int), "rand_vec": start(env, name)}
    fast = make_vector(family, 2, 1)
    obs, _ = fast.reset(options={"tasks": tasks})
    np.testing.assert_array_equal(env.reset()[0], obs[1])  # it is at the second task, and resets to the same state
    for action in moves(25, 2, 3).astype(np.float64):
        obs, reward, _, _, infos = fast.step(action)
        want, want_reward, _, _, info = env.step(action[1])
        np.testing.assert_allclose(obs[1], want, rtol=0, atol=1e-12)
        assert reward[1] == pytest.approx(float(want_reward), abs=1e-11)
        assert infos["success"][1] == bool(info["success"])


def test_the_packages_expert_succeeds_and_success_is_reported(mw, reach):
    """The control for successes: its policy for reach solves the task, in our vector environment too."""
    from metaworld.policies import ENV_POLICY_MAP

    family = metarl.make("MetaWorld-ML1-v0", task="reach-v3", horizon=80, goal_observed=True)
    tasks, expert = family.sample(2, np.random.default_rng(0)), ENV_POLICY_MAP["reach-v3"]()
    env = make_vector(family, 2, 1)
    obs, _ = env.reset(options={"tasks": tasks})
    found = []
    for _ in range(family.horizon):
        obs, _, _, _, infos = env.step(np.clip([expert.get_action(o) for o in obs], -1, 1).astype(np.float32))
        found.append(infos["success"])
    assert not found[0].any()
    assert np.any(found, 0).all()


def test_classes_mix_in_one_batch(mw):
    family = metarl.make("MetaWorld-ML10-v0", horizon=12)
    from metarl_envs.metaworld_vector import _builder

    chosen = [0, 3, 0, 7]  # reach, door-open, reach, window-open
    vectors = [start(_builder(family.env_class({"task": np.array(i)})), str(n))[0] for n, i in enumerate(chosen)]
    tasks = {"task": np.array(chosen), "rand_vec": np.stack(vectors)}
    actions = moves(12, 4)
    fast, slow = make_vector(family, 4, 1), LoopVectorEnv(family, 4, 1)
    for got, want in zip(play(fast, actions, tasks), play(slow, actions, tasks), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("new_tasks", [False, True])
def test_some_can_be_reset_and_the_others_notice_nothing(mw, new_tasks):
    """Against the package one by one; new tasks change classes, and differ within what was one task."""
    family = metarl.make("MetaWorld-ML10-v0", horizon=6)
    from metarl_envs.metaworld_vector import _builder

    def tasks(*chosen: int) -> Any:
        vectors = [start(_builder(family.env_class({"task": np.array(i)})), f"{i}")[n % 2]
                   for n, i in enumerate(chosen)]  # fmt: skip
        return {"task": np.array(chosen), "rand_vec": np.stack(vectors)}

    rounds = {2: tasks(3, 3, 7), 3: tasks(0, 7, 7), 7: tasks(0, 0, 0), 11: tasks(7, 3, 0)}
    masks = {2: [1, 0, 0, 0, 1, 1], 3: [0, 0, 1, 0, 0, 1], 7: [0, 1, 1, 1, 0, 0], 11: [1] * 6}
    first, actions, found = tasks(0, 3, 0), moves(15, K * E), []
    for env in (make_vector(family, K, E), LoopVectorEnv(family, K, E)):
        out: list[Any] = [env.reset(options={"tasks": first})[0]]
        for t, action in enumerate(actions):
            if t in masks:
                options: dict[str, Any] = {"reset_mask": np.array(masks[t], bool)}
                before = out[-5]
                obs, _ = env.reset(options=options | ({"tasks": rounds[t]} if new_tasks else {}))
                np.testing.assert_array_equal(obs[~options["reset_mask"]], before[~options["reset_mask"]])
                out.append(obs)
            obs, reward, terminated, truncated, infos = env.step(action)
            out += [obs, reward, terminated, truncated, infos.get("success", np.zeros(K * E, bool))]
        found.append(out)
        env.close()
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    cut = np.array([x for x in found[0] if x.dtype == bool]).reshape(-1, 3, K * E)[:, 1]
    assert (cut.any(1) & ~cut.all(1)).any() and (cut[:-1] & ~cut[1:]).any()


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_number(reach, threads):
    from metarl_envs.metaworld_vector import MetaWorldVectorEnv

    tasks, actions = reach.sample(K, np.random.default_rng(0)), moves(20, K * E)
    one, more = (play(MetaWorldVectorEnv(reach, K, E, n), actions, tasks) for n in (1, threads))
    assert all(np.array_equal(a, b) for a, b in zip(one, more, strict=True))


def test_one_by_one_on_demand(mw):
    assert type(make_vector(metarl.make("MetaWorld-ML1-v0", batched=False), 1, 1)) is LoopVectorEnv


def test_the_goal_is_hidden_or_seen(reach, push):
    for family in (reach, push):
        tasks = family.sample(2, np.random.default_rng(0))
        env = make_vector(family, 2, 1)
        obs, _ = env.reset(options={"tasks": tasks})
        goal = tasks["rand_vec"][:, 3:] if family.goal_observed else np.zeros((2, 3))
        for _ in range(2):
            np.testing.assert_allclose(obs[:, 36:], goal, atol=0.011)  # push puts its goal on the table
            obs, *_ = env.step(np.zeros((2, 4), np.float32))


def test_observations_are_clipped_to_the_packages_space(reach, monkeypatch):
    """Its own bounds are hard to reach, so narrow ones: they hold for what is observed, not for what is remembered."""
    from metarl_envs.metaworld_vector import _builder

    tasks = reach.sample(1, np.random.default_rng(0))
    env = _builder(reach.env_class(task_at(tasks, 0)))
    reach.set_task(env, task_at(tasks, 0))
    monkeypatch.setitem(vars(env), "sawyer_observation_space", Box(-0.1, 0.1, (39,), np.float64))
    fast = make_vector(reach, 1, 1)
    fast.reset(options={"tasks": tasks})
    env.reset()
    for action in moves(3, 1):
        obs, want = fast.step(action)[0], env.step(action[0])[0]
        np.testing.assert_allclose(obs[0], want, rtol=0, atol=1e-12)
        assert np.abs(obs).max() == 0.1


def test_the_family_passes_our_check(mw):
    assert check_family(metarl.make("MetaWorld-ML1-v0", task="reach-v3", horizon=25)) == []


def test_a_task_survives_storage(reach):
    import json

    task = task_at(reach.sample(1, np.random.default_rng(3)), 0)
    again = json.loads(json.dumps({name: value.tolist() for name, value in task.items()}))
    first, second = (reach.make(t).reset()[0] for t in (task, again))
    np.testing.assert_array_equal(first, second)


def test_meta_training_runs_end_to_end(reach, tmp_path):
    family = metarl.make("MetaWorld-ML1-v0", task="reach-v3", horizon=10)
    learner = metarl.MetaLearner("maml_trpo", family, n_tasks=2, episodes=2, hidden=(8,), device="cpu")
    learner.learn(1, run_dir=tmp_path / "run", eval_every=1, eval_tasks=2)
    again = metarl.MetaLearner.load(tmp_path / "run")
    assert again.family.task == "reach-v3"
    found = again.evaluate(2, steps=1)
    assert found.success_rates.shape == (2, 2)
    assert "success/step_1" in (tmp_path / "run" / "metrics.csv").read_text()
