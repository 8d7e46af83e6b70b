"""Numbers that are not finite: whoever made them is named, and nothing of them is kept."""

import importlib
import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from probes import Stops, TwoArms
from tiny_runs import point, same_params

from metarl import MetaLearner
from metarl.algorithms import ALGORITHMS, rl2
from metarl.formulas.distributions import Categorical, Gaussian
from metarl.inner import loop, settings
from metarl.outer import trust_region
from metarl.rollout import finite
from metarl.rollout.finite import Fault, NotFiniteError, all_finite, check_finite, first_fault
from metarl.supervised import FewShotLearner, Sets, Sinusoid

SMALL: dict[str, Any] = {"n_tasks": 2, "episodes": 2, "hidden": (4,)}
RL2: dict[str, Any] = {"n_tasks": 2, "trials": 2, "minibatches": 1, "hidden": 4, "epochs": 1}


def learner(algorithm: str, family: Any = None, **more: Any) -> MetaLearner:
    options = (RL2 if algorithm == "rl2" else SMALL) | more
    return MetaLearner(algorithm, family or point(4), device="cpu", **options)


# ---------------------------------------------------------------------------------------------------------------------
# What is finite


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 2.0], True), ([1.0, math.nan], False), ([math.inf], False), ([math.inf, -math.inf], False), ([], True),
     ([3e38, 3e38], True)],
)  # fmt: skip
def test_only_a_bad_entry_makes_a_tensor_not_finite(values, expected):
    # The sum of the last overflows, its entries do not.
    assert all_finite([torch.ones(2), torch.tensor(values), torch.tensor([1, 2])]) == expected


def test_the_error_names_tensor_task_value_place_and_remedy():
    tensors = {"w": torch.zeros(3, 2), "b": torch.tensor([[0.0], [math.inf], [0.0]])}
    with pytest.raises(NotFiniteError, match=r"^b of task 1 is not finite \(inf\) after the step: go slower$"):
        check_finite(tensors, "after the step", "go slower", per_task=True)
    check_finite(tensors | {"b": torch.zeros(3, 1)}, "after the step", "go slower", per_task=True)


def faulty(**at: tuple[int, int, int]) -> Fault | None:
    """K = 2, T = 4, E = 2, with one bad number of each kind at the given (k, t, e)."""
    obs, rew, bad = torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 2), torch.zeros(2, 4, 2, dtype=torch.bool)
    for kind, (k, t, e) in at.items():
        if kind == "observation":
            obs[k, t, e, 1] = math.nan
        elif kind == "action":
            bad[k, t, e] = True
        else:
            rew[k, t, e] = -math.inf
    mask = torch.ones(2, 4, 2)
    mask[1, 3, 1] = 0
    return first_fault(obs, bad, rew, mask)


def test_the_first_fault_in_time_is_the_one_that_is_named():
    later = {"observation": (0, 2, 0), "action": (0, 2, 0), "reward": (0, 2, 0)}
    assert faulty(**later) == Fault("observation", 0, 2, 0)  # the order within a step
    assert faulty(**later | {"observation": (0, 3, 0)}) == Fault("action", 0, 2, 0)
    assert faulty(**later | {"reward": (1, 1, 1)}) == Fault("reward", 1, 1, 1)
    assert faulty(reward=(1, 3, 1)) is None  # after the end of its episode
    assert faulty() is None


def test_a_choice_that_is_ruled_out_is_usable_and_one_that_is_certain_is_not():
    logits = torch.tensor([[0.0, -math.inf], [0.0, math.inf], [math.nan, 0.0], [-math.inf, -math.inf]])
    assert finite.unusable(Categorical(logits), torch.zeros(4)).tolist() == [False, True, True, True]


def test_an_infinite_deviation_makes_actions_unusable_although_the_mean_is_finite():
    dist = Gaussian(torch.zeros(2, 1), torch.zeros(1, 1))
    assert finite.unusable(dist, torch.tensor([[math.inf], [1.0]])).tolist() == [True, False]
    for alive in ([True, True], [False, True]):  # an episode that is over does not count
        assert finite.any_unusable(dist, torch.tensor([[math.inf], [1.0]]), torch.tensor(alive)) == alive[0]


# ---------------------------------------------------------------------------------------------------------------------
# Environment or policy


class Plain(gym.Env):
    """As most environments do, it computes with whatever action it gets."""

    def __init__(self, bad_obs: int | None = None, bad_reward: int | None = None):
        self.observation_space, self.action_space = Box(-9, 9, (2,), np.float32), Box(-1, 1, (1,), np.float32)
        self.bad_obs, self.bad_reward = bad_obs, bad_reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = -1
        return self._obs(), {}

    def _obs(self) -> np.ndarray:
        return np.full(2, np.nan if self.t == self.bad_obs else 0.5, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = math.nan if self.t == self.bad_reward else float(1.0 - action[0] ** 2)
        return self._obs(), reward, False, False, {}


class PlainFamily(Stops):
    id, horizon = "Plain-v0", 5

    def __init__(self, **bad: Any) -> None:
        super().__init__()
        self.bad = bad
        self.observation_space, self.action_space = Plain().observation_space, Plain().action_space

    def make(self, task: Any) -> gym.Env:
        return Plain(**self.bad)


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [({"bad_obs": 2}, r"Plain-v0 returned the observation \[nan, nan\] in step 2 of episode 0 of "),
     ({"bad_obs": -1}, r"Plain-v0 returned the observation \[nan, nan\] from the reset before episode 0 of "),
     ({"bad_reward": 2}, r"Plain-v0 returned the reward nan in step 2 of episode 0 of "),
     ({"bad_obs": 2, "bad_reward": 1}, r"Plain-v0 returned the reward nan in step 1 of episode 0 of ")],
)  # fmt: skip
def test_the_environments_first_bad_number_is_named_and_not_what_follows_from_it(algorithm, bad, message):
    one = learner(algorithm, PlainFamily(**bad))
    before = one.state
    with pytest.raises(NotFiniteError, match=message):
        one.learn(1, eval_every=0)
    assert one.state is before


def test_a_plain_environments_observation_is_named_too():
    with pytest.raises(NotFiniteError, match=r"Plain returned the observation \[nan, nan\] in step 1 of episode 0"):
        learner("maml_trpo", PlainFamily()).adapt(Plain(bad_obs=1), horizon=5)


def overflowing(one: MetaLearner) -> MetaLearner:
    """Parameters that are finite, with products that are not."""
    params = {name: torch.full_like(x, 3e38) if x.dim() > 1 else x for name, x in one.state.params.items()}
    one.state = type(one.state)(**{**one.state.__dict__, "params": params})
    return one


@pytest.mark.parametrize(
    ("algorithm", "family"),
    [("maml_trpo", point(4)), ("maml_trpo", PlainFamily()), ("maml_trpo", TwoArms()), ("rl2", point(4)),
     ("rl2", PlainFamily())],
)  # fmt: skip
def test_the_policys_own_overflow_is_not_blamed_on_the_environment(algorithm, family):
    one = overflowing(learner(algorithm, family))
    with pytest.raises(NotFiniteError, match=r"the policy's own output .* in step \d of episode 0 of .*smaller steps"):
        one.learn(1, eval_every=0)


def test_an_action_that_is_not_finite_never_reaches_the_environment(monkeypatch):
    seen: list[float] = []
    step = Plain.step
    monkeypatch.setattr(Plain, "step", lambda self, action: (seen.extend(action), step(self, action))[1])
    with pytest.raises(NotFiniteError, match="the policy's own output"):
        overflowing(learner("maml_trpo", PlainFamily())).learn(1, eval_every=0)
    learner("maml_trpo", PlainFamily()).learn(1, eval_every=0)  # the control
    assert seen and np.isfinite(seen).all()


GRADIENTS = sorted(set(ALGORITHMS) - {"rl2"})


@pytest.mark.parametrize("algorithm", GRADIENTS)
def test_step_sizes_that_overflow_are_the_policys_fault_in_training_evaluation_and_adaptation(algorithm):
    message = r"(after inner step 0 \(step size 1e\+200\)|^the policy's own output).*smaller steps"
    one = learner(algorithm, inner_lr=1e200)  # no float32
    before = one.state
    for call in (
        lambda: one.learn(1, eval_every=0),
        lambda: learner(algorithm).evaluate(2, step_sizes=[1e200]),
        lambda: learner(algorithm).adapt({"goal": [0.1, 0.2]}, step_sizes=[1e200]),
    ):
        with pytest.raises(NotFiniteError, match=message):
            call()
    assert one.state is before


@pytest.mark.parametrize("algorithm", GRADIENTS)
def test_an_inner_step_that_makes_a_parameter_not_finite_is_named_with_task_and_iteration(algorithm, monkeypatch):
    def broken(*args: Any) -> Any:
        new, memory = adapt(*args)
        name = next(iter(new))
        return new | {name: new[name] * torch.tensor([1.0, math.nan]).reshape(2, *[1] * (new[name].dim() - 1))}, memory

    adapt = loop.detached_step
    monkeypatch.setattr(loop, "detached_step", broken)
    one = learner(algorithm)
    before = one.state
    message = r"of task 1 is not finite \(nan\) after inner step 0 \(step size [\d.e-]+\)"
    with pytest.raises(NotFiniteError, match=message + " of iteration 1: take smaller steps"):
        one.learn(1, eval_every=0)
    with pytest.raises(NotFiniteError, match=message + ": take smaller steps"):
        one.evaluate(2, steps=1)
    assert one.state is before


# ---------------------------------------------------------------------------------------------------------------------
# Outer steps


def poison(monkeypatch: pytest.MonkeyPatch, one: MetaLearner, on: list[bool]) -> None:
    """While `on[0]`, the advantages that the outer loss is made of are NaN; the inner loop's stay as they are."""
    stages, count = one.config.inner_steps + 1, [0]
    estimate, make_batch = settings.estimate, rl2.make_batch

    def of_stage(*args: Any) -> Any:
        found = estimate(*args)
        count[0] += 1
        spoil = on[0] and count[0] % stages == 0
        return replace(found, advantage=found.advantage * math.nan) if spoil else found

    def of_trials(*args: Any) -> Any:
        batch = make_batch(*args)
        return replace(batch, advantage=batch.advantage * math.nan) if on[0] else batch

    monkeypatch.setattr(settings, "estimate", of_stage)
    monkeypatch.setattr(rl2, "make_batch", of_trials)


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"reptile"}))
def test_a_gradient_that_is_not_finite_stops_every_algorithm_before_anything_is_kept(algorithm, monkeypatch, tmp_path):
    one, on = learner(algorithm), [False]
    poison(monkeypatch, one, on)

    def callback(stats: dict[str, Any]) -> None:
        on[0] = stats["iteration"] == 2

    with pytest.raises(NotFiniteError, match=r"gradient of iteration 3 has the norm nan"):
        one.learn(4, run_dir=tmp_path, callback=callback, eval_every=0)
    assert one.state.iteration == 2
    assert all_finite(one.state.params.values())
    loaded = MetaLearner.load(tmp_path)
    assert loaded.state.iteration == 2
    assert same_params(loaded.state.params, one.state.params)
    on[0] = False
    loaded.learn(2, run_dir=tmp_path, eval_every=0)  # the run can go on
    assert loaded.state.iteration == 4


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"reptile", "rl2"}))
def test_parameters_that_an_outer_step_makes_infinite_are_refused(algorithm, monkeypatch, tmp_path):
    one = learner(algorithm)

    def broken(*args: Any, **more: Any) -> Any:
        return ({name: x + math.inf for name, x in one.state.params.items()}, *found(*args, **more)[1:])

    module = importlib.import_module(one._module.iteration.__module__)
    step = "adam_steps" if hasattr(module, "adam_steps") else "trpo_step"
    found = getattr(module, step)
    monkeypatch.setattr(module, step, broken)
    with pytest.raises(NotFiniteError, match=r"not finite \(inf\) after the outer step of iteration 1: take smaller"):
        one.learn(1, run_dir=tmp_path, eval_every=0)
    assert all_finite(MetaLearner.load(tmp_path).state.params.values())


def test_fisher_products_that_are_not_finite_are_no_silent_refusal_of_the_step(monkeypatch):
    product = trust_region.fisher_vector_product
    monkeypatch.setattr(trust_region, "fisher_vector_product", lambda *a: lambda v: product(*a)(v) * math.nan)
    one = learner("maml_trpo")
    before = one.state
    with pytest.raises(NotFiniteError, match="Fisher products of this outer step are not finite: take smaller"):
        one.learn(1, eval_every=0)
    assert one.state is before


@pytest.mark.parametrize("algorithm", ["maml_ppo", "maml_vpg", "promp", "maml_plus_plus"])
def test_an_outer_step_of_huge_size_is_refused_by_the_loss_or_the_parameters(algorithm):
    with pytest.raises(NotFiniteError, match=r"(lower|take smaller steps: lower) inner_lr"):
        learner(algorithm, outer_lr=1e38, max_grad_norm=0.0).learn(3, eval_every=0)


@pytest.mark.parametrize("serial", [False, True])
def test_reptile_refuses_a_step_that_overflows(serial):
    one = learner("reptile", outer_lr=3e38, inner_lr=10.0, serial=serial)
    before = one.state
    with pytest.raises(NotFiniteError, match="smaller steps"):
        one.learn(1, eval_every=0)
    assert one.state is before


@pytest.mark.parametrize(("field", "remedy"), [("params", "outer_lr"), ("critic", "critic_lr"), ("obs_stats", "scale")])
def test_every_part_of_rl2s_state_is_checked(field, remedy, monkeypatch):
    one = learner("rl2", task_critic=True, normalize_obs=True).learn(1, eval_every=0)
    rl2.check_state(one.state)
    value = getattr(one.state, field)
    name = next(iter(value))
    broken = replace(one.state, **{field: value | {name: value[name] * math.nan}})
    with pytest.raises(NotFiniteError, match=f"{name} is not finite .*{remedy}"):
        rl2.check_state(broken)
    monkeypatch.setattr(rl2, "State", lambda *args: broken)  # and an iteration asks
    with pytest.raises(NotFiniteError, match=remedy):
        one._step(one.state)


def test_statistics_of_observations_that_overflow_are_refused(monkeypatch):
    from metarl.policies import normalize

    monkeypatch.setattr(normalize, "update", lambda stats, *_: {n: x * math.inf for n, x in stats.items()})
    with pytest.raises(NotFiniteError, match="among the statistics of observations"):
        learner("maml_trpo", normalize_obs=True).learn(1, eval_every=0)


def test_a_score_that_is_not_finite_is_never_the_best():
    from fake_training import Fake

    fake = Fake({1: math.nan, 2: 1.0, 3: math.nan})
    fake.train(3)
    assert [(state, best) for name, state, best in fake.saved if name == "best.safetensors"] == [(2, 1.0)]


# ---------------------------------------------------------------------------------------------------------------------
# Few-shot learning


class Spoilt(Sinusoid):
    on = False

    def sample(self, n: int, *args: Any) -> Sets:
        sets = super().sample(n, *args)
        if self.on:
            sets.y_query[n // 2, 0] = math.nan
        return sets


@pytest.mark.parametrize("outer", ["adam", "reptile"])
def test_examples_that_are_not_finite_are_the_familys_fault(outer):
    family = Spoilt()
    one = FewShotLearner(family, device="cpu", outer=outer, n_tasks=4, hidden=(4,)).learn(1)
    family.on, before = True, one.state
    with pytest.raises(NotFiniteError, match=r"y_query of task 2 is not finite \(nan\) in the sets drawn by "):
        one.learn(1)
    assert one.state is before
    with pytest.raises(NotFiniteError, match=r"y_query of task 3"):
        one.evaluate(6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"inner_lr": 1e38}, "meta-gradient of iteration 1|after the outer step"),
     ({"outer_lr": 1e38}, "after the outer step of iteration 1|meta-gradient of iteration 2"),
     ({"outer": "reptile", "inner_lr": 1e38}, "Reptile's step in iteration 1")],
)  # fmt: skip
def test_few_shot_steps_that_overflow_keep_the_last_good_state(settings, message, tmp_path):
    one = FewShotLearner(Sinusoid(), device="cpu", **{"n_tasks": 4, "hidden": (4,), **settings})
    with pytest.raises(NotFiniteError, match=message):
        one.learn(3, run_dir=tmp_path, checkpoint_every=1)
    assert all_finite(one.state.params.values())
    assert all_finite(FewShotLearner.load(tmp_path, Sinusoid(), device="cpu").state.params.values())


def test_few_shot_evaluation_and_adaptation_name_the_step_that_overflows():
    one = FewShotLearner(Sinusoid(), device="cpu", n_tasks=4, hidden=(4,))
    message = r" of task 0 is not finite \(.*\) after inner step [01] \(step size 1e\+38\): lower the step sizes"
    x, y = np.linspace(-1, 1, 5)[:, None], np.linspace(-1, 1, 5)[:, None]
    with pytest.raises(NotFiniteError, match=message):
        one.evaluate(4, step_sizes=[1e38, 1e38])
    with pytest.raises(NotFiniteError, match=message):
        one.adapt(x, y, step_sizes=[1e38, 1e38])
    with pytest.raises(NotFiniteError, match="y_support of task 0"):
        one.adapt(x, y * math.nan)
