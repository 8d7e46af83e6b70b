"""stable-baselines3's callbacks in meta-training: when they are called, what they see, log and save."""

from typing import Any

import numpy as np
import pytest
from sb3_policies import observations
from stable_baselines3.common import callbacks as sb3_callbacks
from tiny_runs import point, rows_without_time, same_params, tiny

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy
from metarl.learner import KIND as learner_kind
from metarl.training.callbacks import Hooks


class Recorder(sb3_callbacks.BaseCallback):
    def __init__(self, stop_after: int = 99):
        super().__init__()
        self.events: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append(f"start {self.num_timesteps}")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout")

    def _on_rollout_end(self) -> None:
        self.logger.record("mine/half", np.float32(self.n_calls / 2))
        self.logger.record("mine/word", "text", exclude="tensorboard")
        self.events.append("rolled out")

    def _on_step(self) -> bool:
        self.events.append(f"step {self.n_calls} {self.num_timesteps} {self.locals['stats']['iteration']}")
        return self.n_calls < self.stop_after

    def _on_training_end(self) -> None:
        self.events.append("end")


def test_a_callback_is_called_in_order_and_logs_into_the_iterations_row(tmp_path):
    recorder = Recorder()
    tiny().learn(2, run_dir=tmp_path / "run", callback=recorder, eval_every=0)
    steps = 2 * 2 * 2 * 5
    assert recorder.events == ["start 0", "rollout", "rolled out", f"step 1 {steps} 1",
                               "rollout", "rolled out", f"step 2 {2 * steps} 2", "end"]  # fmt: skip
    rows = rows_without_time(tmp_path / "run")
    assert [(row["iteration"], row["mine/half"]) for row in rows] == [(1, 0.0), (2, 0.5)]
    assert all("mine/word" not in row for row in rows)


def test_a_callback_stops_and_the_run_can_be_resumed(tmp_path):
    recorder = Recorder(stop_after=2)
    learner = tiny().learn(9, run_dir=tmp_path / "run", callback=[recorder], checkpoint_every=5, eval_every=0)
    assert learner.state.iteration == 2 and recorder.events[-1] == "end"
    assert same_params(MetaLearner.load(tmp_path / "run").state.params, learner.state.params)
    learner.learn(1, run_dir=tmp_path / "run", callback=recorder, eval_every=0)
    assert recorder.events[-5] == f"start {2 * 40}"
    assert [row["iteration"] for row in rows_without_time(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_the_model_of_a_callback_normalises_observations_as_the_learner_does(algorithm):
    config = {"trials": 2, "hidden": 8, "minibatches": 2} if algorithm == "rl2" else {"episodes": 2, "hidden": (8,)}
    learner = MetaLearner(algorithm, point(), device="cpu", n_tasks=2, normalize_obs=True, **config)
    obs, asked = observations(learner.family.observation_space), []

    def ask(locals_: Any, _: Any) -> bool:
        asked.append(callback.model.predict(obs, deterministic=True)[0])
        return True

    callback = sb3_callbacks.ConvertCallback(ask)
    learner.learn(2, callback=callback, eval_every=0)
    kind = RecurrentPolicy if algorithm == "rl2" else AdaptedPolicy
    own, plain = (
        kind(learner.policy, learner.state.params, obs_stats=stats).predict(obs, deterministic=True)[0]
        for stats in (learner.state.obs_stats, {})
    )
    np.testing.assert_array_equal(asked[1], own)
    assert np.abs(own - plain).max() > 1e-4  # the control: it matters


def test_numbers_do_not_depend_on_callbacks():
    assert same_params(tiny().learn(2, callback=Recorder()).state.params, tiny().learn(2).state.params)


def test_their_checkpoints_are_ours(tmp_path):
    callback = sb3_callbacks.CheckpointCallback(2, str(tmp_path))
    learner = tiny().learn(2, callback=[callback, lambda stats: None], eval_every=0)
    assert [p.name for p in tmp_path.iterdir()] == ["rl_model_80_steps.safetensors"]
    loaded = MetaLearner.load(tmp_path / "rl_model_80_steps.safetensors")
    assert same_params(loaded.state.params, learner.state.params)


def test_steps_and_functions_are_counted():
    seen: list[int] = []
    inner = sb3_callbacks.ConvertCallback(lambda *_: seen.append(1) or True)
    tiny().learn(4, callback=sb3_callbacks.EveryNTimesteps(80, inner), eval_every=0)
    assert len(seen) == 2
    assert tiny().learn(4, callback=[lambda stats: stats["iteration"] < 3], eval_every=0).state.iteration == 3


def test_thresholds_are_those_of_adapted_policies_on_test_tasks():
    low = sb3_callbacks.StopTrainingOnRewardThreshold(-1e9)
    high = sb3_callbacks.StopTrainingOnRewardThreshold(1e9)
    assert tiny().learn(5, callback=low, eval_every=2, eval_tasks=2).state.iteration == 2
    assert tiny().learn(3, callback=high, eval_every=2, eval_tasks=2).state.iteration == 3
    patience = sb3_callbacks.StopTrainingOnNoModelImprovement(0)
    learner = tiny(max_kl=1e-12)
    learner.learn(9, callback=sb3_callbacks.CallbackList([patience]), eval_every=1, eval_tasks=2)
    assert learner.state.iteration < 9


def test_an_improvement_is_one_over_the_best_score_and_not_over_the_last():
    hooks = Hooks(tiny(), learner_kind, sb3_callbacks.StopTrainingOnNoModelImprovement(1))
    hooks.start(None, 9)
    assert [hooks.after_iteration({"eval/score": score}) for score in (5.0, 3.0, 4.0)] == [True, True, False]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: sb3_callbacks.EvalCallback(point().make({"goal": [0.1, 0.1]})), "EvalCallback.*eval_every"),
        (lambda: sb3_callbacks.StopTrainingOnMaxEpisodes(3), "fewer iterations"),
        (lambda: sb3_callbacks.LogEveryNTimesteps(3), "LogEveryNTimesteps"),
        (lambda: sb3_callbacks.EveryNTimesteps(9, sb3_callbacks.StopTrainingOnMaxEpisodes(3)), "MaxEpisodes"),
        (lambda: sb3_callbacks.EveryNTimesteps(9, sb3_callbacks.StopTrainingOnRewardThreshold(3)), "after evaluations"),
    ],
)
def test_callbacks_that_make_no_sense_are_refused_before_anything_is_written(callback, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny().learn(1, run_dir=tmp_path / "run", callback=callback())
    assert not (tmp_path / "run").exists()


def test_what_callbacks_log_at_other_times_leaves_the_metrics_alone(tmp_path):
    class Dumps(sb3_callbacks.BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("mine", 1.0)
            self.logger.dump(self.num_timesteps)
            return True

    tiny().learn(2, run_dir=tmp_path / "run", callback=Dumps(), eval_every=0)
    assert [row["iteration"] for row in rows_without_time(tmp_path / "run")] == [1, 2]
