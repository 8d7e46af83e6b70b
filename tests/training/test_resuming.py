"""A learner that is saved, loaded and trained on has the bits of one that never was: every algorithm, odd sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TINY, point, rows_without_time, same_params

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy, checkpoint
from metarl.algorithms import ALGORITHMS
from metarl.checkpoint import in_own_memory, own_memory, pack_state
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import LATEST

TOTAL = 3
RL2: dict[str, Any] = {"n_tasks": 3, "trials": 2, "trial_episodes": 2}
TASK = {"goal": np.array([0.3, -0.2], np.float32)}


def made(algorithm: str, width: int, **config: Any) -> MetaLearner:
    own = RL2 | {"hidden": width} if algorithm == "rl2" else TINY | {"hidden": (width, 3)}
    return MetaLearner(algorithm, point(), seed=1, device="cpu", **own | config)


def assert_same_state(a: Any, b: Any) -> None:
    (tensors, counters), (others, other_counters) = pack_state(a), pack_state(b)
    assert same_params(tensors, others) and counters == other_counters


def resumed(learner: Any, stop: int, path: Path, load: Any) -> Any:
    """The learner after `TOTAL` iterations, with a file in between."""
    learner.learn(stop, eval_every=0).save(path)
    return load(path).learn(TOTAL - stop, eval_every=0)


@pytest.mark.parametrize("width", [1, 7, 13])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_goes_on_bit_for_bit(tmp_path, algorithm, width):
    whole = made(algorithm, width).learn(TOTAL, eval_every=0)
    for stop in range(TOTAL):
        found = resumed(made(algorithm, width), stop, tmp_path / "l", lambda path: MetaLearner.load(path, device="cpu"))
        assert_same_state(found.state, whole.state)


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [("maml_trpo", {"normalize_obs": True, "learned_lr": "per_parameter", "learned_noise": True}),
     ("maml_vpg", {"learned_lr": "per_layer_and_step", "learned_mask": True}),
     ("rl2", {"normalize_obs": True, "last_obs": True}),
     ("rl2", {"task_critic": True})],
    ids=["trpo", "vpg", "rl2", "critic"],
)  # fmt: skip
def test_so_does_all_that_is_learned_besides(tmp_path, algorithm, config):
    whole = made(algorithm, 5, **config).learn(TOTAL, eval_every=0)
    found = resumed(made(algorithm, 5, **config), 1, tmp_path / "l", lambda path: MetaLearner.load(path, device="cpu"))
    assert_same_state(found.state, whole.state)


@pytest.mark.parametrize("config", [{}, {"outer": "reptile"}, {"learned_lr": "per_parameter", "inner_steps": 2}],
                         ids=["maml", "reptile", "meta-sgd"])  # fmt: skip
@pytest.mark.parametrize("width", [1, 7, 13])
def test_few_shot_learning_goes_on_bit_for_bit(tmp_path, width, config):
    def fresh() -> FewShotLearner:
        return FewShotLearner(Sinusoid(), seed=1, device="cpu", n_tasks=3, shots=3, hidden=(width, 3), **config)

    whole = fresh().learn(TOTAL)
    for stop in range(TOTAL):
        found = resumed(fresh(), stop, tmp_path / "f", lambda path: FewShotLearner.load(path, Sinusoid(), device="cpu"))
        assert_same_state(found.state, whole.state)


def test_metrics_and_files_are_the_same_too(tmp_path):
    made("rl2", 7).learn(TOTAL, run_dir=tmp_path / "whole", eval_every=0)
    made("rl2", 7).learn(1, run_dir=tmp_path / "half", eval_every=0)
    MetaLearner.load(tmp_path / "half", device="cpu").learn(TOTAL - 1, run_dir=tmp_path / "half", eval_every=0)
    assert rows_without_time(tmp_path / "half") == rows_without_time(tmp_path / "whole")
    assert (tmp_path / "half" / LATEST).read_bytes() == (tmp_path / "whole" / LATEST).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Why: where tensors start


def addresses(state: Any) -> set[int]:
    return {value.data_ptr() % 64 for value in pack_state(state)[0].values()}


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_states_lie_in_memory_alike_whether_computed_or_loaded(tmp_path, algorithm):
    learner = made(algorithm, 7).learn(1, eval_every=0)
    learner.save(tmp_path / "l")
    loaded = MetaLearner.load(tmp_path / "l", device="cpu")
    assert addresses(learner.state) == addresses(loaded.state) == {0}
    assert all(value.is_contiguous() for value in pack_state(learner.state)[0].values())


def test_a_view_of_a_file_starts_anywhere(tmp_path):
    import safetensors

    checkpoint.save(tmp_path / "c", {"a": torch.zeros(1), "b": torch.zeros(3), "c": torch.zeros(5)}, {})
    with safetensors.safe_open(tmp_path / "c", framework="pt") as file:
        assert {file.get_tensor(name).data_ptr() % 64 for name in "abc"} != {0}  # the control
    assert {value.data_ptr() % 64 for value in checkpoint.load(tmp_path / "c")[0].values()} == {0}


def test_only_views_are_copied():
    flat = torch.arange(6.0)
    assert own_memory(flat) is flat
    part = own_memory(flat[1:3])
    assert part.storage_offset() == 0 and part.tolist() == [1, 2]
    assert own_memory(flat.reshape(2, 3).T).is_contiguous()
    state = made("reptile", 3).state
    assert in_own_memory(state).params["w0"] is state.params["w0"]


# ---------------------------------------------------------------------------------------------------------------------
# Policies


@pytest.mark.parametrize("width", [1, 7, 13])
def test_a_loaded_policy_predicts_the_same_bits(tmp_path, width):
    policy = made("maml_trpo", width).adapt(TASK)
    loaded = AdaptedPolicy.load(policy.save(tmp_path / "p"))
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for deterministic in (True, False):
        both = (p.predict(obs, deterministic=deterministic)[0] for p in (policy, loaded))
        assert np.array_equal(*both)


@pytest.mark.parametrize("width", [1, 7, 13])
def test_a_loaded_recurrent_policy_predicts_the_same_bits_as_it_goes_on(tmp_path, width):
    policy = made("rl2", width, last_obs=True).learn(1, eval_every=0).adapt(TASK)
    loaded = RecurrentPolicy.load(policy.save(tmp_path / "p"))
    states: list[Any] = [None, None]
    for t, obs in enumerate(np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)):
        actions = []
        for i, one in enumerate((policy, loaded)):
            action, state = one.predict(obs, states[i], episode_start=t % 5 == 0)
            states[i] = one.observe(state, float(t))
            actions.append(action)
        assert np.array_equal(*actions)
        assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
