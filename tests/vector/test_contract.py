"""One contract, which every way to run many environments at once fulfils."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from probes import Drift, Stops, Wins

import metarl
from metarl.tasks import Tasks, task_at
from metarl.vector import automatic
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.contract import Assignment, Completed, TaskVectorEnv, fulfilled
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv
from metarl.vector.single import SingleEnv

HORIZON = 4


class Ends:
    """Episode lengths by task: 0 terminates after two steps, 1 is cut off by the environment after three, 2 terminates
    in the very step of the horizon, 3 goes on to it. The observation counts the steps, and holds the seed's draw."""

    id, horizon = "Ends-v0", HORIZON
    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-1.0, 1.0, (2,), np.float32)
    task_space = Dict({"kind": gym.spaces.Discrete(4)})

    def sample(self, n: int, rng: Any, split: str = "train") -> Tasks:
        return {"kind": np.arange(n) % 4}

    def make(self, task: Any) -> gym.Env:
        return EndsEnv(int(task["kind"]))


class EndsEnv(gym.Env):
    observation_space, action_space = Ends.observation_space, Ends.action_space

    def __init__(self, kind: int):
        self.kind = kind

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.drawn = 0, self.np_random.normal()
        return np.array([0.0, self.drawn], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        obs = np.array([self.t, self.drawn], np.float32)
        ended, cut = (self.kind, self.t) in {(0, 2), (2, HORIZON)}, (self.kind, self.t) == (1, 3)
        return obs, 1.0, ended, cut, {"success": self.t == 2}


class BatchedEnds(metarl.TensorFamily):
    """The same as torch functions, but that nothing cuts an episode off before the horizon, nor reports a success."""

    id, horizon = "BatchedEnds-v0", HORIZON
    observation_space, action_space, task_space = Ends.observation_space, Ends.action_space, Ends.task_space
    reset_draws = 1

    def sample(self, n: int, rng: Any, split: str = "train") -> Tasks:
        return {"kind": np.array([0, 3, 2, 3])[np.arange(n) % 4]}

    def initial(self, task: Any, draws: torch.Tensor) -> Any:
        return {"x": torch.stack([torch.zeros_like(draws[..., 0]), draws[..., 0]], -1)}

    def observe(self, state: Any, task: Any) -> torch.Tensor:
        return state["x"]

    def step(self, state: Any, action: torch.Tensor, task: Any, draws: torch.Tensor) -> Any:
        x = state["x"] + torch.tensor([1.0, 0.0])
        over = (task["kind"] == 0) & (x[..., 0] >= 2) | (task["kind"] == 2) & (x[..., 0] >= HORIZON)
        return {"x": x}, torch.ones_like(x[..., 0]), over


class Old(gym.vector.VectorEnv):
    """As a third party may write one by Gymnasium's rules alone: it does not know its device nor describe anything."""

    def __init__(self, family: Any, n_tasks: int, episodes: int):
        self.inner = LoopVectorEnv(family, n_tasks, episodes)
        self.num_envs = self.inner.num_envs

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self.inner.step(actions)


@dataclass(frozen=True)
class Backend:
    family: Callable[[], Any]
    make: Callable[[Any, int, int], Any]
    sizes: tuple[int, int] = (4, 2)
    tensors: bool = False


def moved(family: Any, K: int, E: int) -> AutomaticVectorEnv:
    """One that is in processes by now."""
    env = AutomaticVectorEnv(family, K, E)
    env._pays = lambda: True  # type: ignore[method-assign]
    env._may_move = True
    return env


def mujoco(family: Any, K: int, E: int) -> Any:
    return pytest.importorskip("metarl.vector.mujoco").MujocoVectorEnv(family, K, E)


def cheetah() -> Any:
    pytest.importorskip("mujoco")
    return metarl.make("HopperRandParams-v0", horizon=HORIZON)


BACKENDS = {
    "loop": Backend(Ends, LoopVectorEnv),
    "process": Backend(Ends, lambda family, K, E: ProcessVectorEnv(family, K, E, 2)),
    "automatic": Backend(Ends, AutomaticVectorEnv),
    "automatic, in processes": Backend(Ends, moved),
    "tensor": Backend(BatchedEnds, lambda family, K, E: family.make_vector(K, E), tensors=True),
    "mujoco": Backend(cheetah, mujoco),
    "single": Backend(
        Ends, lambda family, K, E: SingleEnv(family.make(task_at(family.sample(1, None), 0)), HORIZON), (1, 1)
    ),
    "visible": Backend(
        lambda: metarl.visible(BatchedEnds()), lambda family, K, E: family.make_vector(K, E), tensors=True
    ),
    "of a third party": Backend(Ends, lambda family, K, E: fulfilled(Old(family, K, E), family, K, E)),
}
backends = pytest.mark.parametrize("name", list(BACKENDS))


def copied(x: Any) -> np.ndarray:
    return np.asarray(x).copy()


class Started:
    """An environment of a backend with its tasks, reset with seeds 10, 11, ..."""

    def __init__(self, name: str):
        backend = BACKENDS[name]
        self.tensors = backend.tensors
        self.family, (self.K, self.E) = backend.family(), backend.sizes
        self.N = self.K * self.E
        self.env: TaskVectorEnv = backend.make(self.family, self.K, self.E)
        self.tasks = self.family.sample(self.K, np.random.default_rng(0))
        self.seeds = list(range(10, 10 + self.N))

    def reset(self, **options: Any) -> np.ndarray:
        obs, infos = self.env.reset(seed=self.seeds, options={"tasks": self.tasks} | options)
        assert isinstance(infos, dict)
        return copied(obs)

    def step(self) -> tuple[np.ndarray, ...]:
        actions = np.zeros((self.N, *self.family.action_space.shape), np.float32)
        return tuple(copied(x) for x in self.env.step(torch.from_numpy(actions) if self.tensors else actions)[:4])


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(automatic, "cores", lambda: 2)
    begun: list[Started] = []

    def make(name: str) -> Started:
        begun.append(Started(name))
        return begun[-1]

    yield make
    for one in begun:
        one.env.close()


@backends
def test_it_says_how_large_it_is_and_where_its_numbers_are(name, start):
    s = start(name)
    assert isinstance(s.env, gym.vector.VectorEnv)
    assert (s.env.num_envs, s.env.device, s.env.tensors) == (s.N, torch.device("cpu"), s.tensors)
    assert s.env.name == (s.family.id if name != "single" else "EndsEnv")
    assert s.env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED
    assert s.env.single_observation_space.shape == s.family.observation_space.shape
    assert s.env.observation_space.shape == (s.N, *s.family.observation_space.shape)
    assert s.env.action_space.shape == (s.N, *s.family.action_space.shape)
    obs, _ = s.env.reset(seed=s.seeds, options={"tasks": s.tasks})
    kinds = [obs, *s.env.step(torch.zeros(s.env.action_space.shape).numpy())[:4]]
    assert [isinstance(x, torch.Tensor) for x in kinds] == [s.tensors] * 5
    assert [tuple(x.shape) for x in kinds] == [s.env.observation_space.shape] * 2 + [(s.N,)] * 3


@backends
def test_it_names_task_and_episode(name, start):
    s = start(name)
    s.reset()
    last = s.K - 1, s.E - 1
    if name == "single":
        assert (s.env.describe(0, 0), s.env.describe(0, 0, 3)) == ("episode 0", "episode 0")
        s.reset()
        assert s.env.describe(0, 0) == "episode 1"
        return
    task = task_at(s.tasks, s.K - 1)
    assert s.env.describe(*last) == f"episode {s.E - 1} of task {s.K - 1} = {task}"
    assert s.env.describe(*last, 5) == f"episode 5 of trial {s.E - 1} of task {s.K - 1} = {task}"
    other = {key: value[::-1].copy() for key, value in s.tasks.items()}
    some = np.arange(s.N) == s.N - 1
    s.env.reset(seed=s.seeds, options={"tasks": other, "reset_mask": some})
    assert s.env.describe(*last).endswith(f" = {task_at(other, s.K - 1)}")
    assert s.env.describe(s.K - 1, 0).endswith(f" = {task}")  # an episode beside it, which was not reset


@backends
def test_seeds_are_those_of_gymnasium(name, start):
    s = start(name)
    first = s.reset()
    assert np.array_equal(s.reset(), first)
    for same in (10, np.int64(10), np.array(s.seeds), torch.tensor(s.seeds)):
        assert np.array_equal(copied(s.env.reset(seed=same)[0]), first)
    assert not np.array_equal(copied(s.env.reset(seed=[x + 1 for x in s.seeds])[0]), first)
    unseeded = copied(s.env.reset()[0])
    assert not np.array_equal(copied(s.env.reset()[0]), unseeded)
    again = []
    for _ in range(2):  # one seed decides the unseeded resets after it, too
        s.env.reset(seed=3)
        again.append(copied(s.env.reset()[0]))
    assert np.array_equal(*again)
    with pytest.raises(ValueError, match=rf"expected one seed for each of {s.N} environments, got {s.N + 1}"):
        s.env.reset(seed=[*s.seeds, 0])


@backends
def test_an_episode_that_ended_stays_ended(name, start):
    s = start(name)
    obs, over = s.reset(), np.zeros(s.N, bool)
    flags: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(HORIZON + 2):
        before, (obs, reward, terminated, truncated) = obs, s.step()
        assert not (terminated & truncated).any()
        assert np.array_equal(obs[over], before[over]) and not reward[over].any()
        assert not np.array_equal(obs[~over], before[~over]) or over.all()
        if flags:
            assert np.array_equal(terminated[over], flags[-1][0][over])
            assert np.array_equal(truncated[over], flags[-1][1][over])
        flags.append((terminated, truncated))
        over = terminated | truncated
    assert over.all()
    lengths = [1 + sum(not (a | b)[i] for a, b in flags) for i in range(s.N)]
    ends = list(zip(lengths, flags[-1][0].tolist(), strict=True))
    by_hand = {Ends: [(2, True), (3, False), (4, True), (4, False)],
               BatchedEnds: [(2, True), (4, False), (4, True), (4, False)]}  # fmt: skip
    family = type(getattr(s.family, "family", s.family))
    if family in by_hand:
        assert ends == [one for one in by_hand[family][: s.K] for _ in range(s.E)]


@backends
def test_a_mask_resets_some_and_the_others_notice_nothing(name, start):
    s = start(name)
    s.reset()
    first, _, *_ = s.step()
    if s.N > 1:
        mask = np.arange(s.N) % 3 == 0
        obs = s.reset(reset_mask=mask)
        assert np.array_equal(obs[~mask], first[~mask]) and not np.array_equal(obs[mask], first[mask])
        for _ in range(HORIZON):
            end = s.step()
        assert (end[2] | end[3]).all()
    wrong = {"bool": np.zeros(s.N + 1, bool), "float64": np.ones(s.N), "names no environment": np.zeros(s.N, bool)}
    for message, mask in wrong.items():
        with pytest.raises(ValueError, match=message):
            s.reset(reset_mask=mask)
    assert np.array_equal(s.reset(reset_mask=np.ones(s.N, bool)), s.reset())  # all of them


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "single"])
def test_the_first_reset_is_one_of_all_with_tasks(name, start):
    s = start(name)
    with pytest.raises(ValueError, match=r"first reset needs options=..tasks.: tasks"):
        s.env.reset(seed=0)
    with pytest.raises(ValueError, match=r"first reset.* is one of all environments: leave reset_mask out"):
        s.reset(reset_mask=np.arange(s.N) == 0)
    with pytest.raises(ValueError, match="runs 4 tasks, got 3"):
        s.env.reset(options={"tasks": {key: value[:3] for key, value in s.tasks.items()}})


@pytest.mark.parametrize("name", ["loop", "process", "automatic", "automatic, in processes", "single",
                                  "of a third party"])  # fmt: skip
def test_successes_are_one_flag_for_each_environment_in_the_steps_that_report_any(name, start):
    s = start(name)
    s.reset()
    actions = np.zeros((s.N, 2), np.float32)
    found = [s.env.step(actions)[4] for _ in range(HORIZON + 1)]
    alive = [s.N, s.N, s.N - s.E, s.N - 2 * s.E, 0]  # kinds 0 and 1 have ended; the only single one is of kind 0
    for t, infos in enumerate(found):
        reports = alive[t] > 0
        assert ("success" in infos) == reports
        if reports:
            assert infos["success"].tolist() == [t == 1] * s.N


@backends
def test_what_was_returned_does_not_change_later(name, start):
    s = start(name)
    obs, _ = s.env.reset(seed=s.seeds, options={"tasks": s.tasks})
    kept = copied(obs)
    actions = np.zeros(s.env.action_space.shape, np.float32)
    step = s.env.step(actions)[:4]
    kept_step = [copied(x) for x in step]
    for _ in range(HORIZON):
        s.env.step(actions)
    assert np.array_equal(copied(obs), kept)
    assert all(np.array_equal(copied(x), y) for x, y in zip(step, kept_step, strict=True))


def test_a_plain_environment_that_terminates_at_the_horizon_is_not_cut_off_as_well():
    env = SingleEnv(EndsEnv(2), HORIZON)
    env.reset(seed=0)
    flags = [(bool(terminated), bool(truncated)) for _, _, terminated, truncated, _ in
             (env.step(np.zeros((1, 2), np.float32)) for _ in range(HORIZON))]  # fmt: skip
    assert flags == [(False, False)] * (HORIZON - 1) + [(True, False)]


@pytest.mark.filterwarnings("error")
def test_what_the_automatic_choice_refuses_does_not_keep_it_from_moving(start):
    s = start("automatic, in processes")
    env: Any = s.env
    with pytest.raises(ValueError, match="runs 4 tasks, got 3"):
        env.reset(options={"tasks": {key: value[:3] for key, value in s.tasks.items()}})
    s.reset()
    assert env.workers == 2


def test_only_what_lacks_something_is_completed():
    own = LoopVectorEnv(Ends(), 4, 2)
    assert fulfilled(own, Ends(), 4, 2) is own
    third: Any = Old(Ends(), 4, 2)
    found = fulfilled(third, Ends(), 4, 2)
    assert isinstance(found, Completed) and found.inner is third.inner  # other attributes are reached through it
    third.device = "cpu"  # as environments of tensors said so far
    assert fulfilled(third, Ends(), 4, 2).tensors and not found.tensors


@pytest.mark.parametrize("family", [Drift(), Stops(), Wins()], ids=lambda family: family.id)
def test_every_choice_of_make_vector_fulfils_it(family):
    for workers in (None, 0, 2):
        env: Any = metarl.make_vector(family, 2, 1, workers=workers)
        assert fulfilled(env, family, 2, 1) is env
        env.close()


def test_an_assignment_is_kept_only_as_the_same_dict_with_the_same_values():
    tasks = {"x": np.arange(2.0)}
    own = Assignment(2, 2)
    assert not own.keeps(tasks)
    own.give(tasks)
    assert own.keeps(tasks) and not own.keeps(dict(tasks))
    assert [own.task(i)["x"] for i in range(4)] == [0, 0, 1, 1]
    tasks["x"][0] = 7.0  # changed in place
    assert not own.keeps(tasks) and own.task(0)["x"] == 0
    own.give(tasks)
    own.forget()
    assert not own.keeps(tasks) and own.task(0)["x"] == 7
    own.give({"x": np.array([3.0, 4.0])}, np.array([True, False, False, True]))
    assert [own.task(i)["x"] for i in range(4)] == [3, 7, 1, 4]
    assert not own.keeps(tasks)
