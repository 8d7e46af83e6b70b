"""An unknown name is answered with what was probably meant, also in other packages' words; never with 140 names."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from tiny_runs import point, tiny

import metarl
from metarl import MetaLearner, cli
from metarl.algorithms import ALGORITHMS
from metarl.suggestions import did_you_mean, known_arguments, nearest, setting_hint
from metarl.supervised import FewShotLearner, Sinusoid

ONE_LINE = 400
"""Characters that a message may have."""


def message(call: Any, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert len(text) < ONE_LINE and "\n" not in text, text
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Names that are like others


def test_the_nearest_name_alone_where_it_is_very_like():
    assert did_you_mean("inner_lrr", ["inner_lr", "outer_lr"]) == "; did you mean 'inner_lr'?"
    assert did_you_mean("INNER-LR", ["inner_lr", "outer_lr"]) == "; did you mean 'inner_lr'?"


def test_a_few_names_where_several_may_be_meant():
    names = ["PointNavigation-v0", "PointNavigationSparse-v0", "CartPoleParams-v0", "AntVel-v0"]
    assert did_you_mean("point", names) == "; did you mean 'PointNavigation-v0' or 'PointNavigationSparse-v0'?"
    assert nearest("CartPole-v1", names) == ["CartPoleParams-v0"]


def test_few_names_are_all_listed_and_many_are_not():
    assert did_you_mean("xyz", ["aa", "bb"]) == "; known are ['aa', 'bb']"
    assert did_you_mean("xyz", [f"a{i}" for i in range(140)]) == "; none of the 140 known names is like it"


def test_an_environment_with_many_attributes_does_not_list_them():
    text = message(lambda: metarl.from_gymnasium("Pendulum-v1", {"zzzzz": Box(0.0, 1.0)}))
    assert "Pendulum-v1 has no parameter 'zzzzz'" in text


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("name", "algorithm", "parts"),
    [
        ("learning_rate", "maml_trpo", ["inner_lr", "max_kl"]),
        ("learning_rate", "maml_ppo", ["inner_lr", "outer_lr"]),
        ("learning_rate", "rl2", ["outer_lr"]),
        ("lr", "promp", ["inner_lr", "outer_lr"]),
        ("meta_lr", "reptile", ["outer_lr"]),
        ("fast_lr", "maml_trpo", ["inner_lr"]),
        ("verbose", "maml_trpo", ["learn(progress_bar=True)"]),
        ("total_timesteps", "maml_trpo", ["learn(iterations)", "meta-iterations"]),
        ("n_steps", "maml_trpo", ["n_tasks", "episodes", "horizon"]),
        ("n_steps", "rl2", ["n_tasks", "trials", "trial_episodes"]),
        ("batch_size", "maml_trpo", ["n_tasks", "episodes"]),
        ("batch_size", "rl2", ["n_tasks", "minibatches"]),
        ("meta_batch_size", "maml_trpo", ["n_tasks"]),
        ("num_inner_steps", "maml_trpo", ["inner_steps"]),
        ("tensorboard_log", "maml_trpo", ["learn(run_dir=...)"]),
        ("env", "maml_trpo", ["the task family, the second argument"]),
        ("policy_kwargs", "maml_trpo", ["hidden", "activation"]),
        ("ent_coef", "rl2", ["entropy_coef"]),
        ("clip_range", "promp", ["clip"]),
        ("target_kl", "maml_trpo", ["max_kl"]),
        ("max_episode_steps", "maml_trpo", ["make(id, horizon=...)"]),
        ("run_dir", "maml_trpo", ["learn(run_dir=...)"]),
        ("eval_every", "maml_trpo", ["argument of learn"]),
        ("n_task", "maml_trpo", ["did you mean 'n_tasks'?"]),
        ("zzz", "maml_trpo", ["none of the", "`metarl train maml_trpo --help` lists all"]),
    ],
)
def test_a_setting_of_another_package_is_answered_with_ours(name, algorithm, parts):
    text = message(lambda: MetaLearner(algorithm, point(), **{name: 3}))
    assert f"{algorithm} has no setting {name!r}" in text
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_answer_names_a_setting_that_the_algorithm_lacks(algorithm):
    import dataclasses
    import re

    from metarl import algorithms

    known = {field.name for field in dataclasses.fields(algorithms.get(algorithm).Config)}
    outer = {"outer_lr", "max_kl", "inner_lr", "minibatches", "trial_episodes", "inner_steps", "clip", "entropy_coef"}
    for name in ("learning_rate", "batch_size", "n_steps", "fast_lr", "clip_range", "ent_coef", "num_inner_steps"):
        hint = setting_hint(name, known)
        if "did you mean" not in hint:
            assert {word for word in re.findall(r"\w+", hint) if word in outer} <= known, hint


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--learning-rate", ["--inner-lr", "--max-kl"]),
        ("--learning_rate=3", ["there is no option --learning-rate", "--inner-lr"]),
        ("--total-timesteps", ["--iterations"]),
        ("--verbose", ["--progress"]),
        ("--n-steps", ["--n-tasks", "--episodes"]),
        ("--tensorboard-log", ["--out"]),
        ("--env", ["second word"]),
        ("--inner-lrr", ["did you mean 'inner-lr'?"]),
    ],
)
def test_the_command_line_answers_with_its_options(option, parts):
    text = message(lambda: cli.run(["train", "maml_trpo", "PointNavigation-v0", option, "1"]))
    assert [part for part in parts if part not in text] == [], text
    assert "inner_lr" not in text


def test_few_shot_learning_answers_too():
    text = message(lambda: FewShotLearner(Sinusoid(), learning_rate=0.1))
    assert "inner_lr" in text and "outer_lr" in text


# ---------------------------------------------------------------------------------------------------------------------
# Algorithms and families


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("maml", "maml_trpo"), ("MAML", "maml_trpo"), ("maml-trpo", "did you mean 'maml_trpo'?"), ("ppo", "maml_ppo"),
        ("PPO", "no meta-learner"), ("TRPO", "maml_trpo"), ("sac", "not in this package"), ("pearl", "rl2"),
        ("RL^2", "rl2"), ("maml++", "maml_plus_plus"), ("MetaSGD", "meta_sgd"), ("dice", "inner_gradient='dice'"),
        ("PointNavigation-v0", "the algorithm comes first: maml_trpo PointNavigation-v0"), (None, "known are"),
        (metarl.MetaLearner, "as words"),
    ],
)  # fmt: skip
def test_an_algorithm_of_another_name_is_answered_with_ours(name, part):
    assert part in message(lambda: MetaLearner(name, point()))
    if isinstance(name, str):
        assert part in message(lambda: cli.run(["train", name, "PointNavigation-v0"]))


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("CartPole-v1", ["'CartPoleParams-v0'", "'gym:CartPole-v1'", "from_gymnasium('CartPole-v1'"]),
        ("HalfCheetah-v5", ["'HalfCheetahDir-v0'", "'gym:HalfCheetah-v5'"]),
        ("ALE/Pong-v5", ["'gym:ALE/Pong-v5'"]),
        ("cartpole", ["'CartPoleParams-v0'", "`metarl list`"]),
        ("maml_trpo", ["it is an algorithm", "the family comes after it"]),
        ("Chess", ["`metarl list`"]),
    ],
)
def test_a_family_of_another_name_is_answered_with_ours(family, parts):
    for call in (lambda: MetaLearner("maml_ppo", family), lambda: cli.run(["train", "maml_ppo", family])):
        text = message(call)
        assert [part for part in parts if part not in text] == [], text


def test_a_family_that_is_no_gymnasium_id_is_not_said_to_be_one():
    assert "gym:" not in message(lambda: metarl.make("Chess"))


@pytest.mark.parametrize(
    ("family", "part"),
    [
        (type(point()), "PointNavigation is a class: pass a family made of it"),
        (gym.Env, "Env is a class of environments: metarl.from_gymnasium(Env"),
        (None, "None is not a task family"),
    ],
)
def test_what_is_no_family_is_answered_with_how_to_get_one(family, part):
    assert part in message(lambda: MetaLearner("maml_trpo", family))
    assert part in message(lambda: metarl.visible(family))
    assert part in message(lambda: metarl.make_vector(family, 2, 2))


def test_the_id_of_a_family_where_the_family_is_wanted():
    for call in (metarl.visible, metarl.check_family, lambda id: metarl.make_vector(id, 2, 2)):
        assert "metarl.make('PointNavigation-v0')" in message(lambda call=call: call("PointNavigation-v0"))


def test_an_argument_that_the_family_does_not_have():
    text = message(lambda: metarl.make("PointNavigation-v0", horizons=3))
    assert "no argument 'horizons'; did you mean 'horizon'?" in text
    assert metarl.make("PointNavigation-v0", horizon=3).horizon == 3


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def test_learn_answers_what_other_packages_call_its_arguments():
    learner = tiny()
    assert "learn(iterations)" in message(lambda: learner.learn(total_timesteps=1000), TypeError)
    assert "learn(progress_bar=True)" in message(lambda: learner.learn(1, verbose=1), TypeError)
    assert "did you mean 'eval_every'?" in message(lambda: learner.learn(1, eval_evry=1), TypeError)
    assert learner.state.iteration == 0


@pytest.mark.parametrize(
    ("method", "word", "part"),
    [("evaluate", "lr", "the sizes of inner steps are step_sizes"), ("adapt", "inner_lr", "inner steps are step_sizes"),
     ("adapt", "learning_rate", "inner steps are step_sizes"), ("adapt", "num_steps", "number of inner steps is steps"),
     ("evaluate", "inner_steps", "the number of inner steps is steps"), ("evaluate", "num_tasks", "n_tasks")],
)  # fmt: skip
def test_evaluate_and_adapt_do_too(method, word, part):
    learner = tiny()
    call = {"evaluate": learner.evaluate, "adapt": lambda **more: learner.adapt({"goal": (0.1, 0.1)}, **more)}[method]
    assert part in message(lambda: call(**{word: 1}), TypeError)


def test_known_arguments_lets_the_others_through():
    @known_arguments
    def area(width: float, height: float = 2.0) -> float:
        return width * height

    assert area(3.0) == 6.0 and area(3.0, height=3.0) == 9.0
    with pytest.raises(TypeError, match="area has no argument 'hight'; did you mean 'height'"):
        area(3.0, hight=1.0)


REFUSED: dict[str, tuple[Any, str]] = {
    "policy": (lambda at: MetaLearner("maml_trpo", point(), policy="MlpPolicy"), "leave it out"),
    "run_dir": (lambda at: tiny().learn(0, run_dir=3), "run_dir must be a path"),
    "few-shot run_dir": (lambda at: FewShotLearner(Sinusoid()).learn(0, run_dir=3), "run_dir must be a path"),
    "callback": (lambda at: tiny().learn(0, callback="log"), "callback is a function"),
    "few-shot callback": (lambda at: FewShotLearner(Sinusoid()).learn(0, callback=3), "callback is a function"),
    "save": (lambda at: tiny().save(None), "path must be a path"),
    "save to a directory": (lambda at: tiny().save(at), "is a directory: name a file in it"),
    "few-shot save": (lambda at: FewShotLearner(Sinusoid()).save(at), "is a directory: name a file in it"),
    "load": (lambda at: MetaLearner.load(None), "path must be a path"),
    "policy load": (lambda at: metarl.AdaptedPolicy.load(3), "path must be a path"),
    "recurrent load": (lambda at: metarl.RecurrentPolicy.load(None), "path must be a path"),
    "start_from": (lambda at: tiny().start_from(None), "must be a path"),
    "details": (lambda at: tiny().evaluate(2, details="yes"), "details must be True or False"),
    "deterministic": (
        lambda at: tiny().adapt({"goal": [0.1, 0.2]}).predict(np.zeros(2), deterministic=1),
        "deterministic must be True or False, got 1",
    ),
    "task": (lambda at: tiny().adapt("goal=0.1,0.2"), "like {'goal': ...}"),
    "tasks of make_vector": (lambda at: metarl.make_vector(point(), "2", 2), "n_tasks must be a whole number"),
    "device of make_vector": (lambda at: metarl.make_vector(point(), 2, 2, device="gpu"), "device must be cpu or cuda"),
    "tasks of check_family": (lambda at: metarl.check_family(point(), n_tasks="3"), "n_tasks must be a whole number"),
    "id of register": (lambda at: metarl.register(type(point()), "X-v0"), "id is a word"),
    "factory of register": (lambda at: metarl.register("X-v0", point()), "a function or a class that makes"),
    "rng": (lambda at: metarl.split_rng(0, "train"), "numpy.random.default_rng(0), got 0"),
    "rng of a family": (lambda at: point().sample(3, 0), "numpy.random.default_rng(0), got 0"),
}


@pytest.mark.parametrize(("call", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_arguments_of_another_kind_are_refused_by_name(call, part, tmp_path):
    assert part in message(lambda: call(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# VecNormalize


def test_vec_normalize_may_be_a_path(tmp_path: Path):
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize

    from metarl.sb3 import as_vec_env, from_sb3

    env = VecNormalize(as_vec_env(point(), 2))
    env.reset()
    for _ in range(20):
        env.step(np.random.default_rng(0).uniform(-0.1, 0.1, (2, 2)).astype(np.float32))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    env.save(str(tmp_path / "stats.pkl"))
    model.save(tmp_path / "model")
    obs = np.array([[0.2, 0.1]], np.float32)
    expected = from_sb3(model).predict(obs, deterministic=True)[0]
    for path in (tmp_path / "stats.pkl", str(tmp_path / "stats.pkl")):
        found = from_sb3(tmp_path / "model", vec_normalize=path).predict(obs, deterministic=True)[0]
        np.testing.assert_array_equal(found, expected)
    plain = from_sb3(tmp_path / "model").predict(obs, deterministic=True)[0]
    assert not np.allclose(plain, expected)  # the control
    (tmp_path / "other.pkl").write_bytes(b"no pickle")
    for wrong in ("nothing.pkl", str(tmp_path / "other.pkl"), 3, as_vec_env(point(), 1)):
        with pytest.raises(ValueError, match="vec_normalize"):
            from_sb3(tmp_path / "model", vec_normalize=wrong)


def test_the_terminal_shows_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "metarl", "train", "maml", "CartPole-v1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no algorithm is called 'maml'; MAML has a name for each outer step")
    assert done.stderr.count("\n") == 1
