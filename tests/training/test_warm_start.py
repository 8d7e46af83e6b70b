"""A learner that starts from another one does what that one did, and then goes its own way."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

import metarl
from metarl import cli
from metarl.checkpoint import CheckpointError
from metarl.learner import MetaLearner
from metarl.rollout.setup import Setup

SMALL = {"n_tasks": 3, "episodes": 2, "hidden": (6,)}
FAMILY = "PointNavigation-v0"


def point(algorithm: str = "maml_trpo", seed: int = 0, **settings) -> MetaLearner:
    family = metarl.make(FAMILY, horizon=5)
    return MetaLearner(algorithm, family, seed=seed, device="cpu", **{**SMALL, **settings})


def trained(algorithm: str = "maml_trpo", **settings) -> MetaLearner:
    return point(algorithm, **settings).learn(2, eval_every=0)


def curve(learner: MetaLearner, **how) -> np.ndarray:
    return learner.evaluate(4, episodes=2, seed=5, **{"step_sizes": (0.3, 0.2, 0.1), **how}).returns


def recurrent(**settings) -> MetaLearner:
    family = metarl.make("BernoulliBandit-v0", arms=3)
    return MetaLearner("rl2", family, device="cpu", **{"n_tasks": 8, "hidden": 5, "trial_episodes": 4, **settings})


@pytest.mark.parametrize("algorithm", ["maml_ppo", "promp", "reptile"])
def test_another_algorithm_starts_where_the_first_one_ended(algorithm):
    other, own = trained(), point(algorithm, seed=1)
    before = curve(own)
    assert own.start_from(other) is own
    # ProMP's inner gradient is the same number in another order of operations.
    assert np.allclose(curve(own), curve(other), rtol=0, atol=0 if algorithm != "promp" else 1e-5)
    assert not np.allclose(before, curve(other))
    assert own.state.iteration == own.state.env_steps == 0 and own.seed == 1


def test_training_goes_on_and_leaves_the_other_learner_alone():
    other, own = trained("meta_sgd"), point("meta_sgd")
    own.start_from(other)
    kept = {name: value.clone() for name, value in other.state.meta.items()}
    start = {name: value.clone() for name, value in own.state.meta.items()}
    for value in own.state.meta.values():
        value.add_(0)  # in place: a shared tensor would be the other's too
        assert all(value.data_ptr() != theirs.data_ptr() for theirs in other.state.meta.values())
    own.learn(1, eval_every=0)
    assert all(torch.equal(value, kept[name]) for name, value in other.state.meta.items())
    assert any(not torch.equal(value, start[name]) for name, value in own.state.meta.items())
    assert own.state.iteration == 1


def test_the_outer_optimiser_starts_anew():
    other, own = trained("maml_ppo"), point("maml_ppo")
    own.start_from(other)
    assert float(own.state.optimizer["count"]) == 0 < float(other.state.optimizer["count"])


@pytest.mark.parametrize("algorithm", ["meta_sgd", "maml_plus_plus"])
@pytest.mark.parametrize("steps", [(1, 3), (3, 1), (2, 2)], ids=str)
def test_what_is_learned_of_the_inner_loop_fits_other_numbers_of_steps(algorithm, steps):
    noisy = {"learned_std": False, "learned_noise": True}
    other, own = (point(algorithm, inner_steps=n, **noisy) for n in steps)
    g = torch.Generator().manual_seed(3)  # two iterations would hardly move them
    learned = {n: v + 0.5 * torch.rand(v.shape, generator=g) for n, v in other.state.learned.items()}
    other.state = dataclasses.replace(other.state, iteration=2, learned=learned)
    unlike = curve(own)
    own.start_from(other)
    few = min(steps)  # with fewer steps the later ones' are not needed
    sizes = (0.3, 0.2, 0.1) if steps[0] <= steps[1] else (0.3, 0.2, 0.1)[:few]
    assert np.array_equal(curve(own, step_sizes=sizes), curve(other, step_sizes=sizes))
    assert not np.allclose(curve(own), unlike)
    shapes = {
        name: value.shape for name, value in point(algorithm, inner_steps=steps[1], **noisy).state.learned.items()
    }
    assert {name: value.shape for name, value in own.state.learned.items()} == shapes
    own.learn(1, eval_every=0)


def test_what_the_other_does_not_learn_starts_as_in_any_new_learner():
    other, own = trained(), point("meta_sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.start_from(other)
    assert all((value == 1).all() for name, value in own.state.learned.items() if name.startswith("lr/"))
    assert np.array_equal(curve(own), curve(other))


def test_what_is_not_learned_here_is_left_behind_with_a_warning():
    with pytest.warns(UserWarning, match=r"what meta_sgd on PointNavigation-v0 has learned .*\(lr\) is not taken over: "
                                         "maml_trpo"):  # fmt: skip
        own = point().start_from(trained("meta_sgd"))
    assert own.state.learned == {}


def test_statistics_of_observations_come_along():
    other, own = trained(normalize_obs=True), point(normalize_obs=True)
    own.start_from(other)
    assert np.array_equal(curve(own), curve(other))
    assert all(torch.equal(value, other.state.obs_stats[name]) for name, value in own.state.obs_stats.items())
    for here, there in ((True, False), (False, True)):
        with pytest.raises(ValueError, match=f"trained with normalize_obs={there}, which is needed here too"):
            point(normalize_obs=here).start_from(trained(normalize_obs=there))


def test_a_recurrent_policy_goes_on_with_longer_trials_and_its_values_mean_the_same(monkeypatch):
    other = recurrent().learn(3, eval_every=0)
    own = recurrent(trial_episodes=9, outer_lr=1e-4)
    assert own.state.value_units.tolist() == [0, 0] and not own.state.has_units
    own.start_from(other)
    assert torch.equal(own.state.value_units, other.state.value_units) and own.state.has_units
    assert np.array_equal(*(x.evaluate(5, steps=3, episodes=1, seed=1).returns for x in (own, other)))
    read_in, make_batch = [], own._module.make_batch
    monkeypatch.setattr(own._module, "make_batch", lambda *args: read_in.append(args[2]) or make_batch(*args))
    own.learn(1, eval_every=0)
    assert torch.equal(read_in[0], other.state.value_units)
    # A tenth of the new data's units is taken in, as later in training; a new learner would take all of them.
    moved = (own.state.value_units - other.state.value_units)[0]
    found = own._module.value_units(own.config, recurrent().state, _data(own, other))
    assert float(moved) == pytest.approx(0.1 * float(found[0] - other.state.value_units[0]), rel=1e-6)


def _data(own: MetaLearner, start: MetaLearner):
    """The data of `own`'s first iteration, which it collected with the parameters of `start`."""
    from metarl.recurrent.sequences import sequences
    from metarl.recurrent.trials import collect_trials

    tasks = own.sampler.tasks(own.config.n_tasks, own.seed, 0)
    return sequences(
        collect_trials(Setup(None, own.sampler, own.policy, own.seed), tasks, 1, 9, start.state.params, 0, {})
    )


def test_a_run_or_a_checkpoint_is_started_from_by_its_path(tmp_path):
    other = point()
    other.learn(3, run_dir=tmp_path / "run", eval_every=1, eval_tasks=2)
    best = point(seed=9)
    best.save(tmp_path / "run" / "best.safetensors")  # whose iterations are certain to be others than the latest's
    own = point(seed=4).start_from(tmp_path / "run")
    assert np.array_equal(curve(own), curve(best))
    other.save(tmp_path / "other.safetensors")
    assert np.array_equal(curve(point().start_from(str(tmp_path / "other.safetensors"))), curve(other))
    own.learn(1, run_dir=tmp_path / "next", eval_every=0)
    said = json.loads((tmp_path / "next" / "config.json").read_text())["started_from"]
    assert said["path"] == "run" and said["iteration"] == best.state.iteration
    assert said["algorithm"] == "maml_trpo" and said["family"]["id"] == FAMILY
    again = MetaLearner.load(tmp_path / "next", device="cpu")
    again.learn(1, run_dir=tmp_path / "next", eval_every=0)
    assert json.loads((tmp_path / "next" / "config.json").read_text())["started_from"] == said


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    own = point()
    start = own.state
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    cases = [
        (point(hidden=(7,)), r"from maml_trpo on PointNavigation-v0: its parameter 'b0' has the shape \(7,\), here it "
                             r"is \(6,\): make this learner with the other's network"),
        (point(hidden=(6, 6)), r"its parameter 'b1' has the shape \(6,\), here it is \(2,\)"),
        (point(activation="relu"), "its network has activation='relu', here it is 'tanh'"),
        (recurrent(), "the policy was made for rl2 on BernoulliBandit-v0 with observation space"),
    ]  # fmt: skip
    for other, message in cases:
        with pytest.raises(ValueError, match=message):
            own.start_from(other)
    for path in ("broken.safetensors", "missing"):
        with pytest.raises(CheckpointError, match=path):
            own.start_from(tmp_path / path)
    assert own.state is start
    with pytest.raises(ValueError, match="has trained for 2 iterations, which start_from would throw away"):
        trained().start_from(point())


def test_a_gradient_method_cannot_start_from_a_recurrent_policy():
    bandit = metarl.make("BernoulliBandit-v0", arms=3)
    with pytest.raises(ValueError, match="from rl2 on BernoulliBandit-v0: a recurrent policy and one that adapts"):
        MetaLearner("maml_trpo", bandit, device="cpu", **SMALL).start_from(recurrent())


def test_other_spaces_are_refused():
    own = MetaLearner("rl2", metarl.make("BernoulliBandit-v0", arms=4), device="cpu", n_tasks=8, hidden=5)
    assert own.policy.spaces.action == Discrete(4)
    with pytest.raises(ValueError, match=r"made for rl2 on BernoulliBandit-v0 with action space Discrete\(3\)"):
        own.start_from(recurrent())


def test_on_the_command_line(tmp_path, capsys):
    common = [FAMILY, "--family-kwargs", "horizon=5", "--n-tasks", "3", "--episodes", "2", "--hidden", "6",
              "--iterations", "1", "--eval-every", "0", "--no-progress", "--device", "cpu"]  # fmt: skip
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert cli.run(["train", "maml_trpo", *common, "--out", first]) == 0
    assert cli.run(["train", "maml_vpg", *common, "--out", second, "--start-from", first, "--outer-lr", "1e-9"]) == 0
    a, b = (MetaLearner.load(path, device="cpu") for path in (first, second))
    assert all((a.state.params[n] - b.state.params[n]).abs().max() < 1e-6 for n in a.state.params)
    assert any((a.state.params[n] - point().state.params[n]).abs().max() > 1e-3 for n in a.state.params)
    capsys.readouterr()
    third = ["--out", str(tmp_path / "sgd"), "--start-from", first]
    assert cli.run(["train", "meta_sgd", *common, *third]) == 0 and "note:" not in capsys.readouterr().err
    third = ["--out", str(tmp_path / "trpo"), "--start-from", str(tmp_path / "sgd")]
    assert cli.run(["train", "maml_trpo", *common, *third]) == 0
    assert "note: what meta_sgd on PointNavigation-v0 has learned" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot start from"):
        cli.run(
            ["train", "maml_vpg", *common, "--out", str(tmp_path / "third"), "--start-from", first, "--hidden", "7"]
        )
    assert not (tmp_path / "third").exists()
