"""Observation normalisation: statistics against NumPy, what a policy sees, and that it goes wherever a policy goes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from probes import Drift, PointGoal, random_params, setup
from tiny_runs import same_params, tiny
from torch import Tensor

import metarl
from metarl import AdaptedPolicy, MetaLearner, checkpoint, parallel
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config, State, iteration
from metarl.policies import normalize
from metarl.policies.mlp import MLPPolicy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces
from metarl.report import figures
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.rollout.setup import Setup

VECTOR = Spaces(Box(-np.inf, np.inf, (3,), np.float32), Discrete(2))
RUN = Config(n_tasks=4, episodes=5, hidden=(6,), inner_lr=0.3, normalize_obs=True)


def data(seed: int, K: int = 5, T: int = 7, E: int = 3) -> tuple[Tensor, Tensor]:
    """Observations whose entries lie far from zero, or differ little, and masks of episodes of different lengths."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(K, T, E, 3, generator=g) * torch.tensor([1.0, 1e-3, 1e4]) + torch.tensor([1e4, 0.0, -3.0])
    lengths = torch.randint(1, T + 1, (K, 1, E), generator=g)
    return obs, (torch.arange(T)[None, :, None] < lengths).float()


def numpy_stats(parts: list[tuple[Tensor, Tensor]]) -> tuple[int, np.ndarray, np.ndarray]:
    """count, mean and standard deviation over all valid steps."""
    x = np.concatenate([obs[mask.bool()].double().numpy() for obs, mask in parts])
    return len(x), x.mean(0), x.std(0)


def assert_stats(stats: ObsStats, parts: list[tuple[Tensor, Tensor]]) -> None:
    count, mean, std = numpy_stats(parts)
    assert int(stats["count"]) == count
    np.testing.assert_allclose(stats["mean"].numpy(), mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((stats["m2"] / stats["count"]).sqrt().numpy(), std, rtol=1e-9)


@pytest.mark.parametrize("rows", [1, 30, 10_000])
def test_the_statistics_are_those_of_numpy_over_all_data_however_they_come(rows, monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_ROWS", rows)
    parts, stats = [data(seed, K=2 + seed) for seed in range(4)], normalize.start(VECTOR)
    for i, (obs, mask) in enumerate(parts):
        stats = normalize.update(stats, obs, mask)
        assert_stats(stats, parts[: i + 1])


def test_what_the_mask_leaves_out_does_not_count():
    obs, mask = data(0)
    spoilt = torch.where(mask[..., None].bool(), obs, 1e9)
    a, b = (normalize.update(normalize.start(VECTOR), x, mask) for x in (obs, spoilt))
    assert same_params(a, b)


def test_data_without_a_valid_step_changes_nothing():
    obs, mask = data(0)
    before = normalize.update(normalize.start(VECTOR), obs, mask)
    assert same_params(normalize.update(before, obs, torch.zeros_like(mask)), before)
    assert same_params(normalize.update(normalize.start(VECTOR), obs, torch.zeros_like(mask)), normalize.start(VECTOR))


def test_normalised_data_has_mean_zero_and_standard_deviation_one():
    obs, _ = data(0, 20, 50, 4)
    stats = normalize.update(normalize.start(VECTOR), obs, torch.ones(obs.shape[:-1]))
    x = normalize.scaler(stats)(obs).reshape(-1, 3)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 0.995, 1.0]), atol=1e-3, rtol=0)  # 1e-8 beside 1e-6


def test_scaling_by_hand():
    # Values 1 and 5: mean 3, standard deviation 2. A constant becomes zero; what is far off is cut off.
    obs = torch.tensor([[1.0, 7.0, 0.0], [5.0, 7.0, 1.0]]).reshape(1, 2, 1, 3)
    stats = normalize.update(normalize.start(VECTOR), obs, torch.ones(1, 2, 1))
    got = normalize.scaler(stats)(torch.tensor([[4.0, 7.0, 0.5], [-100.0, 8.0, 100.0]]))
    assert got.tolist() == [[0.5, 0, 0], [-10, 10, 10]]


def test_before_the_first_data_observations_are_only_cut_off():
    got = normalize.scaler(normalize.start(VECTOR))(torch.tensor([0.5, -30.0, 2.0]))
    assert got.tolist() == [0.5, -10, 2]


@pytest.mark.parametrize("stats", [None, {}])
def test_without_statistics_nothing_changes(stats):
    obs, mask = data(0)
    assert normalize.scaler(stats)(obs) is obs
    assert normalize.update({}, obs, mask) == {}


@pytest.mark.parametrize(
    "space", [Box(0, 255, (4, 4, 1), np.uint8), Discrete(3), MultiDiscrete([2, 3]), MultiBinary(3)], ids=str
)
def test_observations_without_a_scale_are_refused(space):
    with pytest.raises(ValueError, match="normalize_obs is for vectors of numbers, but the observation space is"):
        normalize.start(Spaces(space, Discrete(2)))


def test_an_algorithm_refuses_them_too():
    with pytest.raises(ValueError, match="normalize_obs is for vectors"):
        tiny(metarl.make("TabularMDP-v0"), normalize_obs=True)


# ---------------------------------------------------------------------------------------------------------------------
# In rollouts


def roll(stats: ObsStats | None, family=None) -> tuple[Rollout, MLPPolicy]:
    family = family or Drift()
    sampler, policy, _ = setup(family, Config(n_tasks=4, hidden=(6,)))
    tasks = sampler.tasks(4, 0, 0)
    return sampler.collect(tasks, 3, policy, random_params(policy, 4), 0, 0, 0, stats), policy


STATS = {"count": torch.tensor(4.0), "mean": torch.tensor([0.5, -1.0]), "m2": torch.tensor([4.0, 0.16])}


def test_the_policy_sees_normalised_observations_and_the_raw_ones_are_kept():
    r, policy = roll(STATS)
    valid = r.mask.bool()
    want = ((r.raw_obs - torch.tensor([0.5, -1.0])) / torch.tensor([1.0, 0.2])).clamp(-10, 10)
    torch.testing.assert_close(r.obs[valid], want[valid])
    torch.testing.assert_close(r.dist[0][valid], policy.distribution(random_params(policy, 4), r.obs)[0][valid])
    assert torch.equal(r.raw_obs[:, 0], roll(None)[0].obs[:, 0]), "the episodes start where they always do"
    assert not r.obs[~valid].any() and not r.raw_obs[~valid].any()
    assert not valid.all()


def test_without_statistics_there_is_no_second_copy():
    r, _ = roll(None)
    assert r.raw is None
    assert r.raw_obs is r.obs


def test_parts_of_a_rollout_have_their_parts_of_the_raw_observations():
    r, _ = roll(STATS)
    assert torch.equal(r[1:3].raw_obs, r.raw_obs[1:3])
    assert roll(None)[0][1:3].raw is None


def test_an_infinite_observation_is_not_cut_off_but_refused():
    class Explodes(Drift):
        def step(self, state, action, task, draws):
            state, reward, over = super().step(state, action, task, draws)
            return state | {"x": torch.full_like(state["x"], torch.inf)}, torch.zeros_like(reward), over

    with pytest.raises(ValueError, match=r"returned the observation \[inf"):
        roll(STATS, Explodes())


def test_a_single_environment_is_rolled_out_alike():
    family = PointGoal()
    sampler, policy, _ = setup(family, Config(n_tasks=1, hidden=(6,)))
    tasks, params = sampler.tasks(1, 0, 0), random_params(policy, 1)
    env = family.make({name: value[0] for name, value in tasks.items()})
    want = sampler.collect(tasks, 3, policy, params, 0, 0, 0, STATS)
    got = EnvSampler(env, family.horizon).collect(tasks, 3, policy, params, 0, 0, 0, STATS)
    for name in ("obs", "raw_obs", "rew"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# In training


class Recording(Sampler):
    """Keeps what it collected, and the statistics that it was given."""

    def __init__(self, family):
        super().__init__(family)
        self.rollouts: list[Rollout] = []
        self.given: list[ObsStats] = []

    def collect(self, *args):
        self.given.append(args[-1])
        self.rollouts.append(super().collect(*args))
        return self.rollouts[-1]


def test_statistics_are_those_of_all_training_data_and_constant_within_an_iteration():
    sampler, (_, policy, state) = Recording(Drift()), setup(Drift(), RUN)
    states = [state]
    for _ in range(3):
        states.append(iteration(Setup(RUN, sampler, policy, 0), states[-1])[0])
        maml_trpo.evaluate(
            Setup(RUN, Sampler(Drift()), policy, 1), states[-1], sampler.tasks(3, 5, 0, "test"), 4, [0.1]
        )
    assert_stats(states[-1].obs_stats, [(r.raw_obs, r.mask) for r in sampler.rollouts])
    first, *given = sampler.given  # the survey's
    assert same_params(first, state.obs_stats)
    assert_stats(given[0], [(sampler.rollouts[0].raw_obs, sampler.rollouts[0].mask)])
    assert same_params(given[1], given[0])
    assert len(given) == 6
    for i in range(2, 6):
        assert same_params(given[i], states[i // 2].obs_stats)
    assert states[1].env_steps == sum(r.steps for r in sampler.rollouts[:3])


def test_evaluation_uses_the_statistics():
    sampler, (_, policy, state) = Recording(Drift()), setup(Drift(), RUN)
    state = State(state.params, obs_stats={name: x.double() for name, x in STATS.items()})
    maml_trpo.evaluate(Setup(RUN, sampler, policy, 1), state, sampler.tasks(3, 5, 0, "test"), 4, [0.1, 0.1])
    assert [given is state.obs_stats for given in sampler.given] == [True] * 3


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    def fresh() -> MetaLearner:
        return tiny(Drift(), normalize_obs=True)

    whole, half = fresh().learn(3, eval_every=0), fresh().learn(1, eval_every=0)
    half.save(tmp_path / "l")
    back = MetaLearner.load(tmp_path / "l", family=Drift(), device="cpu")
    assert same_params(back.state.obs_stats, half.state.obs_stats)
    back.learn(2, eval_every=0)
    assert same_params(back.state.params, whole.state.params)
    assert same_params(back.state.obs_stats, whole.state.obs_stats)


def test_checkpoints_from_before_there_was_normalisation_load(tmp_path):
    learner = tiny().learn(1, eval_every=0)
    learner.save(tmp_path / "l")
    tensors, meta = checkpoint.load(tmp_path / "l")
    assert sorted(meta["state"]) == ["env_steps", "iteration"]
    assert all(name.startswith("params/") for name in tensors)
    for name in ("normalize_obs", "network", "channels"):
        del meta["config"][name]
    checkpoint.save(tmp_path / "old", tensors, meta)
    back = MetaLearner.load(tmp_path / "old", device="cpu")
    assert same_params(back.state.params, learner.state.params)
    assert back.state.obs_stats == {}


def test_statistics_of_another_size_are_refused(tmp_path):
    learner = tiny(normalize_obs=True)
    learner.save(tmp_path / "l")
    tensors, meta = checkpoint.load(tmp_path / "l")
    checkpoint.save(tmp_path / "bad", tensors | {"obs_stats/mean": torch.zeros(3, dtype=torch.float64)}, meta)
    with pytest.raises(checkpoint.CheckpointError, match="obs_stats/mean"):
        MetaLearner.load(tmp_path / "bad", device="cpu")


@pytest.fixture(scope="module")
def learner() -> MetaLearner:
    return tiny(normalize_obs=True).learn(2, eval_every=0)


def test_an_adapted_policy_normalises_too_and_comes_back(tmp_path, learner):
    policy = learner.adapt({"goal": [0.3, -0.2]}, steps=1)
    loaded = AdaptedPolicy.load(policy.save(tmp_path / "p"))
    assert same_params(dict(sorted(loaded.obs_stats.items())), dict(sorted(learner.state.obs_stats.items())))
    obs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    x = normalize.scaler(learner.state.obs_stats)(torch.from_numpy(obs))
    mean = policy.policy.distribution({n: v[None] for n, v in policy.params.items()}, x[None]).mean[0]
    for one in (policy, loaded):
        got, _ = one.predict(obs, deterministic=True)
        np.testing.assert_allclose(got, 0.1 * mean.clamp(-1, 1).numpy(), atol=1e-6)
    plain = AdaptedPolicy(policy.policy, policy.params)
    assert not np.allclose(plain.predict(obs, deterministic=True)[0], got)


def test_adapting_to_a_plain_environment_is_adapting_to_its_task(learner):
    task = {"goal": np.array([0.3, -0.2], np.float32)}
    by_task, by_env = learner.adapt(task, steps=1), learner.adapt(learner.family.make(task), steps=1, horizon=5)
    assert all(torch.allclose(by_env.params[n], x, atol=1e-5) for n, x in by_task.params.items())
    assert same_params(by_env.obs_stats, by_task.obs_stats)


def test_pictures_show_the_observations_as_they_were(learner):
    shown: list[np.ndarray] = []
    family = learner.family
    found = learner.evaluate(3, episodes=2, steps=1, details=True)

    class Draws:
        def draw(self, axes, task, observations):
            shown.extend(observations)

    class Axes:
        def set_title(self, text):
            pass

    figures.paths([Axes(), Axes()], Draws(), found, 1)
    for path in shown:
        assert np.abs(path[0]).max() == 0, "paths start at the origin"
        assert np.abs(np.diff(path, axis=0)).max() <= family.max_step + 1e-6


ALGORITHMS = {name: {"n_tasks": 3, "episodes": 3, "hidden": (6,)} for name in
              ("maml_trpo", "maml_ppo", "maml_vpg", "promp", "reptile", "e_maml")}  # fmt: skip
ALGORITHMS["reptile, serial"] = ALGORITHMS["reptile"] | {"serial": True}
ALGORITHMS["rl2"] = {"n_tasks": 3, "trials": 2, "minibatches": 2, "hidden": 6}


class Watching(Drift):
    """Far from zero in one entry; notes what it observed."""

    def __init__(self):
        super().__init__()
        self.rollouts = 0

    def observe(self, state, task):
        self.rollouts += bool((state["t"] == 0).all())
        return state["x"] + torch.tensor([1000.0, 0.0])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_first_iteration_acts_on_normalised_observations_already(name, monkeypatch):
    seen: list[ObsStats] = []
    scaler = normalize.scaler
    monkeypatch.setattr(normalize, "scaler", lambda stats, device="cpu": seen.append(stats) or scaler(stats, device))
    settings = ALGORITHMS[name] | {"normalize_obs": True}
    learner = MetaLearner(name.split(",")[0], Watching(), device="cpu", **settings).learn(1, eval_every=0)
    survey, *later = seen
    assert int(survey["count"]) == 0
    assert later
    for stats in later:
        assert int(stats["count"]) > 0
        assert abs(float(stats["mean"][0]) - 1000) < 2
    assert learner.state.env_steps == int(learner.state.obs_stats["count"])  # the survey's steps are among both


def test_there_is_no_second_survey():
    learner = MetaLearner("maml_trpo", Watching(), device="cpu", normalize_obs=True, n_tasks=2, episodes=2)
    rollouts = []
    for _ in range(2):
        before = learner.family.rollouts
        learner.learn(1, eval_every=0)
        rollouts.append(learner.family.rollouts - before)
    assert rollouts == [3, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Entries that were constant, and large numbers


def stats_of(x: Tensor) -> ObsStats:
    return normalize.update(normalize.start(Spaces(Box(-np.inf, np.inf, x.shape[-1:], np.float32), Discrete(2))),
                            x.reshape(1, -1, 1, x.shape[-1]), torch.ones(1, len(x), 1))  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0, -7.3, 1e3, 1e7])
def test_an_entry_that_was_constant_does_not_blow_rounding_up(constant, kind):
    scale = normalize.scaler(stats_of(torch.full((50, 1), constant, dtype=kind)))
    at = torch.tensor([constant], dtype=kind)
    drift = max(1e-7, float(torch.nextafter(at, torch.tensor(torch.inf, dtype=kind)) - at))
    assert float((scale(at + drift) - scale(at)).abs()) < 0.01
    assert abs(float(scale(at))) < 1e-9


def test_the_deviation_is_that_of_stable_baselines3():
    x = torch.tensor([[1e-4], [-1e-4], [3e-4], [5e-4]])
    want = (x - x.mean()) / (x.double().var(correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(normalize.scaler(stats_of(x))(x), want.float())


@pytest.mark.parametrize("name", ["maml_trpo", "rl2"])
def test_times_since_1970_are_told_apart(name):
    """Seconds around 1.7e9, where the next float32 is 128 away."""

    class Clock(gym.Env):
        observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        action_space = Box(-1, 1, (1,), np.float32)

        def __init__(self, gain: float = 1.0):
            self.gain = gain

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.observation(), {}

        def observation(self):
            return np.array([1.7e9 + self.t, self.np_random.normal()])

        def step(self, action):
            self.t += 1
            return self.observation(), self.gain * float(action[0]), False, False, {}

    family = metarl.from_gymnasium(Clock, {"gain": Box(0.5, 2.0)}, horizon=20)
    learner = MetaLearner(name, family, device="cpu", normalize_obs=True, **ALGORITHMS[name]).learn(1, eval_every=0)
    policy = learner.adapt({"gain": 1.0}, steps=1)
    found = learner.evaluate(2, steps=1, details=True).details.rollouts[0]
    torch.testing.assert_close(found.obs[0, :, 0, 0], (torch.arange(20.0) - 9.5) / 33.25**0.5, atol=1e-3, rtol=0)
    early, late = (policy.predict(np.array([1.7e9 + t, 0.0]), deterministic=True)[0] for t in (0, 19))
    assert abs(early - late) > 0


# ---------------------------------------------------------------------------------------------------------------------
# What it is for


class Surveyed(PointGoal):
    """`PointGoal` in a surveyor's coordinates: far from zero in one axis, in kilometres in the other."""

    id = "SurveyedProbe-v0"

    def observe(self, state, task):
        return state["position"] * torch.tensor([100.0, 1e-3]) + torch.tensor([4000.0, 0.0])


def test_badly_scaled_observations_are_learned_with_it_and_not_without():
    settings = {"n_tasks": 20, "episodes": 10, "init_std": 0.3, "hidden": (32,), "min_std": 0.1}
    after = {}
    for normalised in (True, False):
        learner = MetaLearner("maml_trpo", Surveyed(), device="cpu", normalize_obs=normalised, **settings)
        learner.learn(15, eval_every=0)
        after[normalised] = learner.evaluate(100, steps=1, seed=1).mean[1]
    assert after[True] > Surveyed.blind + 1.5
    assert after[True] > after[False] + 1
