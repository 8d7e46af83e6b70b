"""Policies and learners go to other processes, as those of stable-baselines3 do: by pickle, or copied."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tiny_runs import point, same_params, tiny
from torch import nn

import metarl
from metarl import MetaLearner, RecurrentPolicy
from metarl.supervised import FewShotLearner, Sinusoid

GOAL = {"goal": [0.3, -0.2]}


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def module_policy() -> Any:
    return tiny(policy=nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))).adapt(GOAL)


def from_stable_baselines3() -> Any:
    from stable_baselines3 import PPO, TD3

    from metarl.sb3 import from_sb3

    env = point().make({"goal": np.array([0.3, -0.2], np.float32)})
    return [from_sb3(PPO("MlpPolicy", env, device="cpu")), from_sb3(TD3("MlpPolicy", env, device="cpu"), std=0.1)]


def pixels() -> Any:
    family = metarl.make("PointNavigationPixels-v0", horizon=3)
    return tiny(family, episodes=1).adapt({"goal": np.array([0.3, -0.2], np.float32)})


def normalised() -> Any:
    return tiny(normalize_obs=True).learn(2, eval_every=0).adapt(GOAL)


def choices() -> Any:
    family = metarl.make("CartPoleParams-v0", horizon=5)
    return tiny(family).adapt({name: x[0] for name, x in family.sample(1, np.random.default_rng(0)).items()})


def memory() -> RecurrentPolicy:
    settings = {"n_tasks": 2, "hidden": 8, "minibatches": 1, "normalize_obs": True, "last_obs": True}
    return MetaLearner("rl2", point(), device="cpu", **settings).learn(1, eval_every=0).adapt(GOAL)


POLICIES: dict[str, Callable[[], Any]] = {
    "gradient": lambda: tiny().adapt(GOAL),
    "context": lambda: MetaLearner("cavia", point(), context=3, n_tasks=2, episodes=2, hidden=(8,)).adapt(GOAL),
    "module": module_policy,
    "images": pixels,
    "normalised": normalised,
    "choices": choices,
    "recurrent": memory,
    "PPO": lambda: from_stable_baselines3()[0],
    "TD3": lambda: from_stable_baselines3()[1],
}


@pytest.mark.parametrize("again", [pickled, copy.deepcopy, copy.copy], ids=["pickle", "deepcopy", "copy"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_acts_as_before(kind, again):
    policy = POLICIES[kind]()
    obs = policy.policy.spaces.observation.sample()
    policy.predict(obs)  # the generator of actions has moved on
    other = again(policy)
    for deterministic in (True, False, False):
        np.testing.assert_array_equal(
            other.predict(obs, deterministic=deterministic)[0], policy.predict(obs, deterministic=deterministic)[0]
        )
    assert same_params(other.params, policy.params)
    np.testing.assert_array_equal(other.returns, policy.returns)


def test_the_actions_drawn_depend_on_where_the_generator_stands():
    # The control of the test above: a generator started anew draws others.
    policy = POLICIES["gradient"]()
    obs = np.zeros(2, np.float32)
    first = policy.predict(obs)[0]
    assert not np.array_equal(pickled(policy).predict(obs)[0], first)


def test_a_recurrent_policy_takes_its_memory_along():
    policy = memory()
    other, blank = pickled(policy), policy.fresh()
    assert all(torch.equal(a, b) for a, b in zip(other.memory, policy.memory, strict=True))
    assert not torch.equal(policy.memory.hidden, blank.memory.hidden)
    obs = np.array([0.1, 0.2], np.float32)
    _, state = policy.predict(obs, deterministic=True)
    _, own = other.predict(obs, deterministic=True)
    state, own = policy.observe(state, 1.0), other.observe(own, 1.0)
    assert all(np.array_equal(a, b) for a, b in zip(state, own, strict=True))


def test_a_policy_works_in_another_process(tmp_path):
    policy, obs = POLICIES["gradient"](), np.array([0.1, 0.2], np.float32)
    (tmp_path / "policy").write_bytes(pickle.dumps(policy))
    code = (
        "import pickle, sys, numpy as np; policy = pickle.load(open(sys.argv[1], 'rb'));"
        "print(policy.predict(np.array([0.1, 0.2], np.float32), deterministic=True)[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "policy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), policy.predict(obs, deterministic=True)[0], rtol=1e-5)


def gymnasium_learner() -> MetaLearner:
    return tiny(metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)}, horizon=5))


def recurrent_learner() -> MetaLearner:
    return MetaLearner("rl2", point(), device="cpu", n_tasks=2, hidden=8, minibatches=1, task_critic=True)


@pytest.mark.parametrize("again", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("make", [tiny, gymnasium_learner, recurrent_learner])
def test_a_learner_trains_on_as_the_original_does(make, again):
    learner = make().learn(1, eval_every=0)
    other = again(learner)
    before = {name: value.clone() for name, value in learner.state.params.items()}
    other.learn(2, eval_every=0)
    assert same_params(learner.state.params, before)  # a copy of its own
    learner.learn(2, eval_every=0)
    assert same_params(other.state.params, learner.state.params)
    other.close()
    learner.close()


@pytest.mark.parametrize("again", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_few_shot_learner_trains_on_as_the_original_does(again):
    learner = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(8,), device="cpu").learn(1)
    other = again(learner)
    assert same_params(other.learn(2).state.params, learner.learn(2).state.params)


@pytest.mark.parametrize("make", [tiny, lambda: FewShotLearner(Sinusoid(), n_tasks=2, hidden=(8,), device="cpu")])
def test_choices_of_step_sizes_stay_behind_with_the_state_that_they_refer_to(make):
    learner = make()
    found = learner.evaluate(2, steps=2)
    sent = learner.__getstate__()
    assert sent["_choices"].state is None and learner._choices.state is learner.state  # of a GPU, for one
    assert pickled(learner).evaluate(2, steps=2).step_sizes == found.step_sizes  # chosen again, alike


def test_worker_processes_stay_behind():
    learner = MetaLearner("maml_trpo", metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)}, horizon=5),
                          workers=1, n_tasks=2, episodes=2, hidden=(8,), device="cpu")  # fmt: skip
    with learner:
        learner.learn(1, eval_every=0)
        assert learner.sampler._envs
        with pickled(learner) as other:
            assert not other.sampler._envs
            assert other.sampler.workers == 1


def test_a_learner_of_a_gpu_wakes_up_on_the_cpu_where_there_is_none(monkeypatch):
    learner = tiny()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = learner.__getstate__() | {"device": torch.device("cuda")}
    other = object.__new__(MetaLearner)
    other.__setstate__(state)
    assert other.device == torch.device("cpu")
    assert same_params(other.learn(1, eval_every=0).state.params, learner.learn(1, eval_every=0).state.params)
