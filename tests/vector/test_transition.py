"""What environments return, the same in every way to run them: copied, checked, named where it is wrong."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from probes import random_params
from tiny_runs import learner_of, tiny

import metarl
from metarl import from_gymnasium, random
from metarl.algorithms.maml_trpo import Config
from metarl.policies.spaces import Spaces, spaces_of
from metarl.rollout.rollout import Rollout, collect
from metarl.rollout.sampler import Sampler
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError
from metarl.vector.transition import EpisodeError, Reader

VECTOR = Box(-9.0, 9.0, (2,), np.float32)
STEP: dict[str, Any] = {
    "obs": np.zeros(2, np.float32),
    "reward": 0.5,
    "terminated": False,
    "truncated": False,
    "info": {},
}
made: list[int] = []


class Says(gym.Env):
    """Returns what it is told to from its third step on; `change` is a function of the five values."""

    observation_space, action_space = VECTOR, Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, gain: float = 1.0, change: Any = None, first: Any = None):
        made.append(1)
        self.gain, self.change, self.first = gain, change, first

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return (np.zeros(2, np.float32), {}) if self.first is None else self.first

    def step(self, action: Any) -> Any:
        self.t += 1
        five = tuple((STEP | {"reward": self.gain}).values())
        return self.change(five) if self.change and self.t == 3 else five


def family_of(**keywords: Any) -> Any:
    return from_gymnasium(Says, {"gain": Box(0.5, 2.0)}, horizon=5, make_kwargs=keywords)


def put(place: int, value: Any) -> Any:
    return lambda five: (*five[:place], value, *five[place + 1 :])


def rolled(family: Any, backend: str) -> Rollout:
    """Two tasks, two episodes each."""
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks, seeds = family.sample(2, np.random.default_rng(0)), random.episode_seeds(0, 0, 0, 2, 2)
    kinds = {"loop": LoopVectorEnv, "automatic": AutomaticVectorEnv}
    env = ProcessVectorEnv(family, 2, 2, 2) if backend == "process" else kinds[backend](family, 2, 2)
    try:
        return collect(env, tasks, family.horizon, policy, random_params(policy, 2), seeds)
    finally:
        env.close()


def adapted(algorithm: str, **keywords: Any) -> Any:
    return learner_of(algorithm, family_of()).adapt(Says(1.0, **keywords), seed=0)


WRONG = {
    "four values": (lambda five: five[:3] + five[4:], r"expected 5, got 4|five"),
    "nothing": (lambda five: None, "five|NoneType"),
    "longer observation": (put(0, np.zeros(3, np.float32)), r"observation of shape \(3,\), .* has \(2,\)"),
    "one number": (put(0, 0.0), r"observation of shape \(\), .* has \(2,\)"),
    "a row": (put(0, np.zeros((1, 2), np.float32)), r"observation of shape \(1, 2\), .* has \(2,\)"),
    "words": (put(0, np.array(["1", "2"])), "holds no numbers"),
    "reward a word": (put(1, "1.5"), "returned the reward '1.5' of <class 'str'>.*return one number"),
    "reward none": (put(1, None), "returned the reward None"),
    "two rewards": (put(1, np.zeros(2)), "returned the reward array"),
    "one reward in an array": (put(1, np.array([0.25])), "returned the reward array"),
    "reward complex": (put(1, 1j), "returned the reward 1j"),
    "terminated a word": (put(2, "False"), "returned terminated = 'False'.*return True or False"),
    "truncated none": (put(3, None), "returned truncated = None"),
    "info none": (put(4, None), "returned the info None from step: return a dict"),
    "two successes": (
        put(4, {"success": np.array([True, False])}),
        r"info\['success'\] is array.*report one yes or no",
    ),
    "success a word": (put(4, {"is_success": "no"}), r"info\['is_success'\] is 'no'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_step_returns_is_refused_with_its_place_and_a_remedy(name):
    change, message = WRONG[name]
    where = r"step 2 of episode 0 of task 0 = \{'gain': .*\}"
    with pytest.raises((ValueError, EpisodeError), match=f"gym:Says.*({message}).*{where}"):
        rolled(family_of(change=change), "loop")
    for algorithm in ("maml_trpo", "rl2"):
        with pytest.raises((ValueError, EpisodeError), match=f"Says.*({message}).*step 2 of episode 0"):
            adapted(algorithm, change=change)


@pytest.mark.parametrize(
    "name", ["four values", "longer observation", "reward a word", "terminated a word", "info none"]
)
def test_workers_refuse_the_same(name):
    change, message = WRONG[name]
    with pytest.raises(WorkerError, match=f"(?s)step 2 of episode . of task .*{message}"):
        rolled(family_of(change=change), "process")


FIRST = [np.zeros(2, np.float32), (np.zeros(2, np.float32),), (np.zeros(2, np.float32), 0.0), None]


@pytest.mark.parametrize("first", FIRST[:3], ids=["observation alone", "one value", "no info"])
def test_reset_returns_two_values(first):
    with pytest.raises(
        ValueError, match=r"from reset, which must return two values, \(obs, info\).*reset of episode 0"
    ):
        rolled(family_of(first=first), "loop")
    with pytest.raises(ValueError, match=r"from reset, which must return two values, \(obs, info\)"):
        adapted("maml_trpo", first=first)


@pytest.mark.parametrize("engine", ["loop", "process"])
def test_reset_returns_an_info(engine):
    family = family_of(first=(np.zeros(2, np.float32), None))
    with pytest.raises(
        (ValueError, WorkerError), match=r"returned the info None from reset: return a dict, \{\} where"
    ):
        rolled(family, engine)
    with pytest.raises(ValueError, match="returned the info None from reset"):
        adapted("maml_trpo", first=(np.zeros(2, np.float32), None))
    with pytest.raises(ValueError, match="returned the info None from reset"):
        metarl.check_family(family)


FINE = [
    put(0, [0.5, -0.5]), put(0, np.array([0.5, -0.5])), put(0, torch.tensor([0.5, -0.5])),
    put(0, np.array([0.5, -0.5], ">f8")), put(0, np.array([-0.5, 0.5], np.float32)[::-1]),
    put(1, np.array(0.25)), put(1, torch.tensor(0.25)), put(1, np.float32(0.25)), put(1, True), put(1, 7),
    put(2, np.bool_(True)), put(2, 1), put(3, np.array([False])), put(4, {"success": None}),
]  # fmt: skip


@pytest.mark.parametrize("change", FINE, ids=range(len(FINE)))
def test_other_forms_of_the_same_values_are_read_alike_everywhere(change):
    loop, process = (rolled(family_of(change=change), backend) for backend in ("loop", "process"))
    obs, reward, terminated, _, _ = change(tuple(STEP.values()))
    assert (
        loop.rew[0, 2].tolist() == [float(np.asarray(reward).item()) if change in FINE[5:10] else loop.rew[0, 0, 0]] * 2
    )
    assert loop.mask[0].sum(0).tolist() == [3.0 if bool(terminated) else 5.0] * 2
    if not terminated:
        np.testing.assert_array_equal(loop.obs[0, 3, 0], np.asarray(obs))
    for name in ("obs", "act", "rew", "mask"):
        assert torch.equal(getattr(loop, name), getattr(process, name))
    by_task, by_env = (
        tiny(family_of(change=change)).adapt(x, seed=0).returns for x in ({"gain": 1.0}, Says(1.0, change))
    )
    np.testing.assert_array_equal(by_task, by_env)


def test_observations_of_choices_lie_in_their_space():
    reader = Reader("Some-v0", Discrete(3, start=1))
    assert reader.first((3, {})) == 3
    for wrong in (0, 4, 1.5):
        with pytest.raises(ValueError, match=rf"Some-v0 returned the observation {wrong} .*does not lie in Discrete"):
            reader.first((wrong, {}))


def fails(five: Any) -> Any:
    raise ZeroDivisionError("no such gear")


def test_an_environment_that_raises_is_named_with_task_episode_and_step_in_every_backend():
    where = r"step 2 of episode 0 of task 0 = \{'gain': "
    with pytest.raises(EpisodeError, match=f"gym:Says raised ZeroDivisionError: no such gear .in {where}") as caught:
        rolled(family_of(change=fails), "loop")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(EpisodeError, match=r"(?s)step 2 of episode . of task .*no such gear"):
        rolled(family_of(change=fails), "process")
    for algorithm in ("maml_trpo", "rl2"):
        with pytest.raises(EpisodeError, match=r"Says raised ZeroDivisionError: no such gear .in step 2 of episode 0"):
            adapted(algorithm, change=fails)


# ---------------------------------------------------------------------------------------------------------------------
# Copies


class Walk(gym.Env):
    """Changes its observation in place; `form` is what it makes of it."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, gain: float = 1.0, form: str = "same"):
        self.gain, self.form, self.memory = gain, form, np.zeros(2, ">f4" if form == "big-endian" else np.float32)
        self.observation_space = VECTOR
        self.view = self.memory[::-1] if form == "flipped" else self.memory.view()
        self.view.flags.writeable = form != "read-only"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.memory[:] = self.np_random.uniform(-0.1, 0.1, 2)
        return self.view, {}

    def step(self, action: Any) -> Any:
        self.memory += np.float32(self.gain) * action
        return self.view, -float(np.abs(self.memory).sum()), False, False, {}


FORMS = ["same", "flipped", "read-only", "big-endian"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_observations_that_change_in_place_are_copied(form, algorithm):
    family = from_gymnasium(Walk, {"gain": Box(0.5, 2.0)}, horizon=6, make_kwargs={"form": form})
    learner = learner_of(algorithm, family, **({"last_obs": True} if algorithm == "rl2" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_task, by_env = (learner.adapt(x, seed=5) for x in ({"gain": 1.3}, Walk(1.3, form)))
        env = Walk(1.3, form)
        obs, state = env.reset(seed=0)[0], None
        _, state = by_env.predict(obs, state, deterministic=True)
        kept = [np.array(x) for x in state] if state is not None else []
        env.step(np.ones(2, np.float32))
    np.testing.assert_array_equal(by_task.returns, by_env.returns)
    assert all(np.array_equal(x, y) for x, y in zip(kept, state or [], strict=True))


def test_a_vector_environment_may_write_into_the_memory_that_it_returned():
    class Reuses(LoopVectorEnv):
        def step(self, actions: Any) -> Any:
            _, *rest = super().step(actions)
            return self._obs, *rest

        def reset(self, **keywords: Any) -> Any:
            super().reset(**keywords)
            return self._obs, {}

    family = from_gymnasium(Walk, {"gain": Box(0.5, 2.0)}, horizon=6)
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks, seeds = family.sample(2, np.random.default_rng(0)), random.episode_seeds(0, 0, 0, 2, 2)
    args = tasks, family.horizon, policy, random_params(policy, 2), seeds
    one, other = (collect(kind(family, 2, 2), *args) for kind in (Reuses, LoopVectorEnv))
    assert torch.equal(one.obs, other.obs)


def test_flipped_images_are_encoded():
    image = Box(0, 255, (4, 5, 3), np.uint8)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    got = Spaces(image, VECTOR).encode(pixels[None, ::-1, ::-1])
    np.testing.assert_allclose(got[0], pixels[::-1, ::-1].reshape(-1) / 255)
    with pytest.raises(ValueError, match=r"\(1, 5, 4, 3\) are none of Box.*\(4, 5, 3\)"):
        Spaces(image, VECTOR).encode(pixels[None].swapaxes(1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# What is built, and what room is made


@pytest.mark.parametrize("kind", [LoopVectorEnv, AutomaticVectorEnv])
def test_rollouts_in_the_same_tasks_build_nothing(kind):
    env, family = None, family_of()
    env = kind(family, 2, 3)
    tasks = family.sample(2, np.random.default_rng(0))
    counts = []
    for given in (tasks, tasks, dict(tasks), {name: value + 0.1 for name, value in tasks.items()}):
        made.clear()
        env.reset(seed=0, options={"tasks": given})
        counts.append(len(made))
    assert counts == [6, 0, 6, 6]  # an equal dict is another adaptation
    tasks = dict(tasks)
    env.reset(seed=0, options={"tasks": tasks})
    env.reset(seed=0, options={"tasks": tasks, "reset_mask": np.array([True] + [False] * 5)})
    tasks["gain"][:] = 1.7  # changed in place: other tasks
    made.clear()
    env.reset(seed=0, options={"tasks": tasks})
    assert len(made) == 6
    env.close()


@pytest.mark.parametrize("backend", ["loop", "process"])
def test_a_kept_environment_gives_the_numbers_of_a_new_one(backend):
    family = from_gymnasium(Walk, {"gain": Box(0.5, 2.0)}, horizon=6)
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks, params = family.sample(2, np.random.default_rng(0)), random_params(policy, 2)
    sampler = Sampler(family, workers=0 if backend == "loop" else 2)
    again = [sampler.collect(tasks, 2, policy, params, 0, 0, stage) for stage in (0, 1)]
    new = [sampler.collect(dict(tasks), 2, policy, params, 0, 0, stage) for stage in (0, 1)]
    for a, b in zip(again, new, strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.rew, b.rew)
    sampler.close()


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_a_horizon_that_nobody_reaches_changes_no_number_and_takes_no_room(algorithm):
    ends = {"change": put(2, True)}  # after three steps
    found = []
    for horizon in (64, 20_000):
        family = from_gymnasium(Says, {"gain": Box(0.5, 2.0)}, horizon=horizon, make_kwargs=ends)
        learner = learner_of(algorithm, family).learn(1, eval_every=0)
        evaluation = learner.evaluate(2, steps=1, details=True)
        assert evaluation.details.rollouts[0].mask.shape[1] == 64
        found.append((evaluation.returns, learner.state.params))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_room_grows_with_the_steps_and_noise_does_not_depend_on_the_horizon():
    family = from_gymnasium(Walk, {"gain": Box(0.5, 2.0)}, horizon=700)
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks, params = family.sample(1, np.random.default_rng(0)), random_params(policy, 1)
    whole = Sampler(family).collect(tasks, 2, policy, params, 0, 0, 0)
    seeds = random.episode_seeds(0, 0, 0, 1, 2)
    noise = random.normal(seeds, 0, 700 * 2, random.ACTION).unflatten(-1, (700, 2)).transpose(1, 2)
    std = whole.dist.log_std.exp()
    torch.testing.assert_close(whole.act, whole.dist.mean + std * noise)
    assert whole.mask.shape == (1, 700, 2)
    assert whole.mask.all()


# ---------------------------------------------------------------------------------------------------------------------
# Bounds that are none


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bounds_of_the_largest_number_are_none(dtype):
    most = np.finfo(dtype).max
    box = Box(np.array([-most, -2.0, 0.0], dtype), np.array([most, 4.0, most], dtype), dtype=dtype)
    command = Spaces(VECTOR, box).decoder()(torch.tensor([[0.5, 0.5, 0.5], [-3.0, -3.0, -3.0]]))
    np.testing.assert_allclose(command, [[0.5, 2.5, 0.5], [-3.0, -2.0, 0.0]])
