"""What a script has set in PyTorch changes no number: float64, gradients off, another device, half precision, seeds."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tiny_runs import point, same_params, tiny
from torch import nn

import metarl
from metarl import MetaLearner
from metarl.algorithms import ALGORITHMS
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.torch_defaults import torch_defaults

SETTINGS: dict[str, dict[str, Any]] = {
    "rl2": {"trial_episodes": 2, "minibatches": 1, "hidden": 8, "task_critic": True, "critic_hidden": 8,
            "normalize_obs": True},
    "cavia": {"context": 2},
    "meta_sgd": {"learned_noise": True, "normalize_obs": True},
    "maml_trpo": {"inner_optimizer": "adam", "fisher_stride": 2},
    "maml_vpg": {"inner_optimizer": "natural"},
}  # fmt: skip


@contextlib.contextmanager
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def other_seeds() -> Iterator[None]:
    torch.manual_seed(12345)
    np.random.seed(12345)  # noqa: NPY002  (what users do)
    yield


SURROUNDINGS = {
    "float64": float64,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "another default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
    "other seeds": other_seeds,
}


def numbers_of(algorithm: str) -> dict[str, torch.Tensor]:
    """Everything that a short life of a learner gives."""
    small = {"hidden": (8,), "episodes": 2} if algorithm != "rl2" else {}
    config = {"n_tasks": 2, **small, **SETTINGS.get(algorithm, {})}
    learner = MetaLearner(algorithm, point(), seed=1, device="cpu", **config)
    learner.learn(2, eval_tasks=2, eval_every=2)
    policy = learner.adapt({"goal": [0.3, -0.2]})
    action, _ = policy.predict(np.array([0.1, 0.2], np.float32))
    curve = learner.evaluate(2, steps=1).returns
    return {**learner.state.params, "action": torch.from_numpy(action), "returns": torch.from_numpy(curve)}


@pytest.fixture(scope="module")
def usual() -> dict[str, dict[str, torch.Tensor]]:
    return {algorithm: numbers_of(algorithm) for algorithm in ALGORITHMS}


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("name", ["float64", "inference_mode"])
def test_every_algorithm_computes_the_usual_numbers(usual, algorithm, name):
    with SURROUNDINGS[name]():
        found = numbers_of(algorithm)
    assert same_params(found, usual[algorithm])


@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if name not in ("float64", "inference_mode")])
@pytest.mark.parametrize("algorithm", ["maml_trpo", "promp", "rl2"])
def test_other_surroundings_change_no_number(usual, algorithm, name):
    with SURROUNDINGS[name]():
        found = numbers_of(algorithm)
    assert same_params(found, usual[algorithm])


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_supervised_learning_computes_the_usual_numbers(name):
    def numbers() -> list[np.ndarray]:
        learner = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(8,), device="cpu").learn(2, eval_every=1, eval_tasks=2)
        predictor = learner.adapt(np.linspace(-1, 1, 5)[:, None], np.ones((5, 1)))
        return [learner.evaluate(3).losses, predictor.predict(np.zeros((1, 1)))]

    expected = numbers()
    with SURROUNDINGS[name]():
        found = numbers()
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_module_made_there_is_trained_as_ever(name):
    def numbers() -> dict[str, torch.Tensor]:
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        weights = {n: torch.full(p.shape, 0.1, device="cpu") for n, p in module.named_parameters()}
        module = module.to_empty(device="cpu")
        module.load_state_dict(weights)
        return tiny(policy=module).learn(1, eval_every=0).state.params

    expected = numbers()
    with SURROUNDINGS[name]():
        found = numbers()
    assert same_params(found, expected)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_single_environments_and_stable_baselines3_models_act_as_ever(name):
    from metarl.sb3 import as_vec_env, from_sb3, to_sb3

    def numbers() -> list[np.ndarray]:
        policy = tiny().adapt({"goal": [0.3, -0.2]})
        obs = np.array([0.1, 0.2], np.float32)
        model = to_sb3(policy, seed=0)
        env = as_vec_env(point(), 2)
        env.reset()
        stepped = env.step(np.full((2, 2), 0.1, np.float32))
        single = point().make({"goal": np.array([0.3, -0.2], np.float32)})
        single.reset(seed=3)
        there, reward, *_ = single.step(np.array([0.1, 0.1], np.float32))
        return [from_sb3(model).predict(obs)[0], stepped[0], stepped[1], there, np.array(reward)]

    expected = numbers()
    with SURROUNDINGS[name]():
        found = numbers()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_an_environment_stepped_one_by_one_is_learned_from_as_ever():
    def numbers() -> dict[str, torch.Tensor]:
        family = metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)}, horizon=5)
        return tiny(family).learn(1, eval_every=0).state.params

    expected = numbers()
    with float64():
        assert same_params(numbers(), expected)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_afterwards_everything_is_as_it_was(name):
    def seen() -> tuple[Any, ...]:
        return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                torch.get_default_device(), torch.is_autocast_enabled("cpu"))  # fmt: skip

    def failing() -> None:
        inside.append(seen())
        raise KeyError

    inside: list[tuple[Any, ...]] = []
    usual = seen()
    with SURROUNDINGS[name]():
        before = seen()
        with pytest.raises(KeyError):
            torch_defaults(failing)()
        assert seen() == before
    assert inside == [usual]
