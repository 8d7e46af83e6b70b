"""Gymnasium's environments as task families, and learners that train on them."""

import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import RescaleAction
from gymnasium_toys import GRAVITY, Toy, pendulums, reward_of, toy
from tiny_runs import same_params, tiny

import metarl
from metarl import MetaLearner, check_family, from_gymnasium
from metarl.families import registry
from metarl.tasks import task_at

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")


class LegacySeeds(Toy):
    def reset(self, *, seed=None, options=None):
        np.random.RandomState(seed)  # refuses 2**32 and more
        return super().reset(seed=seed, options=options)


class Remembering(Toy):
    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        self.bonus = float(self.episodes)
        return super().reset(seed=seed, options=options)


class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2


def lengthen(env, task):
    env.polemass_length = env.masspole * task["length"]


# ---------------------------------------------------------------------------------------------------------------------
# The family


def test_an_environment_steps_as_the_one_made_by_hand():
    env, plain = pendulums().make({"g": 12.5}), gym.make("Pendulum-v1", g=12.5)
    other = gym.make("Pendulum-v1", g=12.0)
    assert np.array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    other.reset(seed=3)
    for t in range(6):
        action = np.array([0.3 * t], np.float32)
        (obs, reward, _, truncated, _), expected = env.step(action), plain.step(action)
        assert np.array_equal(obs, expected[0]) and reward == expected[1]
        assert truncated == (t == 5)
    assert not np.array_equal(other.step(action)[0], expected[0])


def test_the_derived_attribute_of_a_pole_follows_with_configure():
    family = from_gymnasium("CartPole-v1", {"length": Box(0.3, 0.8)}, configure=lengthen)
    env = family.make({"length": 0.75}).unwrapped
    assert family.horizon == 500
    assert (env.length, env.polemass_length) == (0.75, pytest.approx(0.075))


def test_large_seeds_are_folded_and_small_ones_are_not():
    env = toy({"push": GRAVITY}, env=LegacySeeds).make({"push": 6.0})
    env.reset(seed=2**61 + 5)
    assert env.unwrapped.seed == 5
    env.reset(seed=2**31 - 1)
    assert env.unwrapped.seed == 2**31 - 1
    env.reset()
    assert env.unwrapped.seed is None


def test_check_family_finds_seeds_that_are_refused():
    class OwnFamily:
        id, horizon, hidden_task = "Own-v0", 3, False
        observation_space, action_space = Box(-1, 1, (2,), np.float32), Discrete(2)
        task_space = gym.spaces.Dict({"push": Box(0, 1, (), np.float32)})
        legacy = True

        def sample(self, n, rng, split="train"):
            return {"push": metarl.split_rng(rng, split).uniform(size=n).astype(np.float32)}

        def make(self, task):
            env = LegacySeeds if self.legacy else Toy
            return gym.wrappers.TransformObservation(env(float(task["push"])), lambda x: x["b"], self.observation_space)

    family = OwnFamily()
    assert "raises ValueError: Seed must be" in str(check_family(family, raise_problems=False)[0])
    family.legacy = False
    assert check_family(family) == []


def test_a_missing_package_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ValueError, match=r"LunarLander-v3 cannot be made: .*gymnasium\[box2d\]"):
        from_gymnasium("LunarLander-v3", {"gravity": Box(-11.0, -5.0)})


def test_it_can_be_rendered():
    pytest.importorskip("pygame")
    env = pendulums().make({"g": 9.0}, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (500, 500, 3)


def test_the_splits_draw_separately_from_one_distribution():
    family = pendulums()
    train, test = (family.sample(400, np.random.default_rng(0), split)["g"] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert scipy.stats.ks_2samp(train, test).pvalue > 0.01
    assert family.shared_splits is False


def test_the_splits_may_have_other_distributions():
    family = from_gymnasium("Pendulum-v1", {"g": Box(5.0, 10.0)}, splits={"test": {"g": Box(10.0, 20.0)}})
    train, test = (family.sample(100, np.random.default_rng(0), split)["g"] for split in ("train", "test"))
    assert train.max() < 10 < test.min()
    assert family.task_space == gym.spaces.Dict({"g": Box(5.0, 20.0, (), np.float32)})


def test_a_parameter_is_drawn_alike_whatever_others_there_are():
    one, two = toy({"push": GRAVITY}), toy({"bonus": GRAVITY, "push": GRAVITY})
    draws = two.sample(5, np.random.default_rng(0))
    assert np.array_equal(one.sample(5, np.random.default_rng(0))["push"], draws["push"])
    assert not np.array_equal(draws["bonus"], draws["push"])


def test_finite_sets_are_shared_by_the_splits_unless_they_are_kept_apart():
    assert toy({"push": [1, 2]}).shared_splits
    assert not toy({"push": [1, 2], "bonus": GRAVITY}).shared_splits
    assert not toy({}, splits={"train": {"push": [1, 2]}, "test": {"push": [3]}}).shared_splits
    assert check_family(toy({"push": [1, 2]})) == []
    assert check_family(toy({}, splits={"train": {"push": [1, 2]}, "test": {"push": [3]}})) == []


def test_dict_observations_are_flattened_and_wrappers_apply():
    family = toy({"push": GRAVITY}, wrappers=[Halved])
    assert family.observation_space.shape == (5,)
    assert reward_of(family, push=8.0) == 4.0
    assert np.array_equal(family.make({"push": 8.0}).reset(seed=0)[0], [0, 1, 0, 0, 0])


def test_spaces_that_depend_on_the_task_are_refused_at_once():
    pytest.importorskip("Box2D")
    with pytest.raises(ValueError, match="action_space of gym:LunarLander-v3 depends on the task"):
        from_gymnasium("LunarLander-v3", {"continuous": [False, True]})


def test_a_family_can_be_pickled_and_compared():
    family = from_gymnasium("CartPole-v1", {"length": scipy.stats.uniform(0.3, 0.5)}, configure=lengthen)
    again = pickle.loads(pickle.dumps(family))
    assert again == family and hash(again) == hash(family)
    task = task_at(family.sample(1, np.random.default_rng(0)), 0)
    assert again.make(task).unwrapped.polemass_length == family.make(task).unwrapped.polemass_length
    other = from_gymnasium("CartPole-v1", {"length": scipy.stats.uniform(0.3, 0.6)}, configure=lengthen)
    assert family != other and family != pendulums() and pendulums() == pendulums() != pendulums(horizon=7)


def test_an_environment_that_remembers_is_built_afresh_on_request():
    family = toy({"push": GRAVITY}, env=Remembering)
    assert "same seed and actions give another" in str(check_family(family, raise_problems=False)[0])
    family = toy({"push": GRAVITY}, env=Remembering, fresh=True)
    assert check_family(family) == []
    env = family.make({"push": 6.0})
    env.reset(seed=5)
    first = env.unwrapped
    env.reset()
    assert env.unwrapped is not first
    unseeded = env.unwrapped.noise
    env.reset(seed=5)
    env.reset()
    assert env.unwrapped.noise == unseeded  # the generator goes on


# ---------------------------------------------------------------------------------------------------------------------
# Learners


def test_a_learner_with_such_a_family_loads_without_being_handed_it(tmp_path):
    family = from_gymnasium(
        "Pendulum-v1", {"x_init": [1.0, 2.0], "g": GRAVITY, "m": scipy.stats.uniform(0.5, 1)},
        splits={"test": {"g": Box(15.0, 20.0)}}, horizon=6, hidden_task=False, fresh=True,
    )  # fmt: skip
    learner = tiny(family).learn(1, eval_every=0)
    learner.save(tmp_path / "x.safetensors")
    again = MetaLearner.load(tmp_path / "x.safetensors", device="cpu")
    assert again.family == family and again.family.hidden_task is False
    learner.learn(1, eval_every=0), again.learn(1, eval_every=0)
    assert same_params(learner.state.params, again.state.params)


def test_a_learner_whose_family_json_cannot_describe_says_so(tmp_path):
    family = pendulums(wrappers=[lambda env: RescaleAction(env, -1.0, 1.0)])
    assert family.spec is None
    assert pendulums(make_kwargs={"render_mode": None}).spec is not None
    odd = from_gymnasium("CartPole-v1", {"tau": [0.01, 0.02]}, make_kwargs={"sutton_barto_reward": np.bool_(True)})
    assert odd.spec is None
    tiny(family).save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="pass the same one as family="):
        MetaLearner.load(tmp_path / "x.safetensors")
    assert MetaLearner.load(tmp_path / "x.safetensors", family=family, device="cpu").family is family


def test_a_registered_family_is_made_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registry", {})
    metarl.register("MyPendulum-v0", lambda g=15.0: pendulums(wrappers=[Halved], id="MyPendulum-v0"))
    learner = tiny(metarl.make("MyPendulum-v0", g=12.0))
    learner.save(tmp_path / "x.safetensors")
    assert MetaLearner.load(tmp_path / "x.safetensors", device="cpu").family == learner.family
    assert metarl.make("gym:Pendulum-v1", parameters={"g": {"box": [5, 15]}}, horizon=6) == pendulums()


def test_adapting_to_a_plain_environment_puts_the_familys_wrappers_around_it():
    family = toy({"push": GRAVITY}, wrappers=[Halved])
    learner = tiny(family, inner_lr=0.1)
    plain, made = (learner.adapt(env) for env in (Toy(6.0), family.make({"push": 6.0})))
    assert plain.returns.tolist() == [12.0, 12.0]  # four steps of half a push
    assert same_params(plain.params, made.params)
    assert np.array_equal(plain.returns, learner.adapt({"push": 6.0}).returns)
    twice = gym.wrappers.OrderEnforcing(family.make({"push": 6.0}))
    assert family.wrap(twice) is twice
