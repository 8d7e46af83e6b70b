"""Gymnasium's and other people's environments as task families."""

import pickle
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RescaleAction
from tiny_runs import same_params, tiny

import metarl
from metarl import MetaLearner, check_family, from_gymnasium
from metarl.families import find_parameters, registry
from metarl.tasks import TaskFamily, task_at
from metarl.vector.loop import LoopVectorEnv

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")

GRAVITY = Box(5.0, 15.0)


class Toy(gym.Env):
    """Every place that a parameter can have; pays `push + bonus + start` and observes nothing of it."""

    observation_space = gym.spaces.Dict({"b": Box(-1, 1, (2,), np.float32), "a": Discrete(3)})
    action_space = Discrete(2)
    bonus = 0.0

    def __init__(self, push: float = 1.0, **more):
        self.push, self.mass, self.vector, self.pair = push, 2.0, np.zeros(2, np.float64), (0, 0)
        self.weight = 9.81 * self.mass
        self.load = self.weight + 1
        self.noise = 0.0

    @property
    def inverse(self):
        return 1 / self.mass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.start = seed, (options or {}).get("start", 0.0)
        self.noise = float(self.np_random.normal())
        return self._observe(), {}

    def step(self, action):
        return self._observe(), self.push + self.bonus + self.start, False, False, {}

    def _observe(self):
        return {"b": np.zeros(2, np.float32), "a": 1}


class Heavier(Toy):
    def __init__(self, extra: int = 0, **more):
        super().__init__(**more)


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


def toy(parameters, env=Toy, horizon=4, **more) -> TaskFamily:
    return from_gymnasium(env, parameters, horizon=horizon, **more)


def pendulums(**more) -> TaskFamily:
    return from_gymnasium("Pendulum-v1", {"g": GRAVITY}, **({"horizon": 6} | more))


def lengthen(env, task):
    env.polemass_length = env.masspole * task["length"]


def reward_of(family, **task) -> float:
    env = family.make(task)
    env.reset(seed=0)
    return env.step(env.action_space.sample())[1]


# ---------------------------------------------------------------------------------------------------------------------
# Where parameters go


def test_each_parameter_is_found_where_it_is():
    family = toy({"push": Box(0.0, 1.0), "start": Box(10.0, 20.0), "bonus": Box(100.0, 200.0)})
    assert family.where == {"push": "keyword", "start": "option", "bonus": "attribute"}
    assert reward_of(family, push=0.5, start=20.0, bonus=100.0) == 120.5
    words = repr(family)
    for text in ("'push' (a keyword", "'start' (an option", "'bonus' (an attribute", "gym:Toy", "horizon 4"):
        assert text in words


def test_an_explicit_place_is_kept():
    family = toy({"push": Box(0.0, 1.0)}, where={"push": "attribute"})
    assert family.where == {"push": "attribute"}
    assert family.make({"push": 0.5}).unwrapped.push == 0.5


def test_keywords_of_base_classes_count_where_they_are_passed_on():
    assert find_parameters.keywords(Heavier) == ["extra", "push"]
    assert reward_of(toy({"push": Box(0.0, 9.0)}, env=Heavier), push=7.0) == 7.0


def test_attributes_survive_resets_and_options_can_be_added_to():
    env = toy({"bonus": Box(0.0, 9.0), "start": Box(0.0, 9.0)}).make({"bonus": 3.0, "start": 2.0})
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(0)[1] == 6.0
        env.unwrapped.bonus = 0.0
    env.reset(seed=0, options={"start": 5.0})
    assert env.step(0)[1] == 9.0


def test_numbers_come_as_python_numbers_and_arrays_as_the_attribute_had_them():
    family = toy({"push": Box(0.0, 1.0), "vector": Box(0.0, 1.0, (2,)), "pair": [[0, 1], [1, 0]], "mass": [1, 2]},
                 configure=lambda env, task: None)  # fmt: skip
    env = family.make({"push": 0.5, "vector": [0.25, 0.5], "pair": [1, 0], "mass": 2}).unwrapped
    assert type(env.push) is float and type(env.mass) is int
    assert env.vector.dtype == np.float64 and np.array_equal(env.vector, [0.25, 0.5])
    assert env.pair == (1, 0)


def test_an_array_that_steps_change_in_place_is_whole_again_after_a_reset():
    env = toy({"vector": Box(0.0, 1.0, (2,))}).make({"vector": [0.25, 0.5]})
    for _ in range(3):
        env.unwrapped.vector += 1
        env.reset(seed=0)
        assert env.unwrapped.vector.tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("parameters", "more", "message"),
    [
        ({"pusch": GRAVITY}, {}, r"no parameter 'pusch'; did you mean 'push'\?.*\['push'\].*\['start'\].*'bonus'"),
        ({"inverse": GRAVITY}, {}, "no parameter 'inverse'"),
        ({"noise": GRAVITY}, {}, "replaces the attribute 'noise'"),
        ({"bonnus": GRAVITY}, {"where": {"bonnus": "attribute"}}, "no attribute 'bonnus'; did you mean 'bonus'"),
        ({"push": GRAVITY}, {"where": {"push": "keywort"}}, r"where\['push'\] is one of .*keyword"),
        ({"push": GRAVITY}, {"where": {"pusch": "keyword"}}, "where names 'pusch'.*did you mean 'push'"),
        ({"push": GRAVITY}, {"where": {"push": "configure"}}, "left to configure, but there is no configure="),
        ({"push": GRAVITY}, {"make_kwargs": {"push": 1.0}}, r"\['push'\] are both parameters and in make_kwargs"),
        ({"push": GRAVITY}, {"make_kwargs": {"max_episode_steps": 3}}, "as horizon="),
        ({"push": GRAVITY}, {"horizon": None}, "no max_episode_steps of its own: say horizon="),
        ({"push": GRAVITY}, {"horizon": 0}, "at least 1, got 0"),
        ({"push": GRAVITY}, {"splits": {"val": {}}}, "'val': call that split 'validation'"),
        ({"push": GRAVITY}, {"horizon": 2.5}, "horizon must be a whole number, got 2.5"),
        ({"push": GRAVITY}, {"fresh": "no"}, "fresh must be True or False, got 'no'"),
        ({"push": GRAVITY}, {"visible": 1}, "visible must be True or False, got 1"),
        ({"push": GRAVITY}, {"make_kwargs": ["push"]}, r"make_kwargs must be a dict, got \['push'\]"),
        ({"push": GRAVITY}, {"wrappers": gym.wrappers.FlattenObservation}, "wrappers must be a list of functions"),
        ({"push": GRAVITY}, {"wrappers": ["flatten"]}, "wrappers: 'flatten' is no function of an environment"),
        ({"push": GRAVITY}, {"configure": 3}, "configure: 3 is no function"),
        (["push"], {}, r"parameters must be a dict, got \['push'\]"),
        ({}, {}, "at least one parameter"),
        ({}, {"splits": {"train": {"push": GRAVITY}}}, "'push' has no distribution for the split 'test'"),
        ({"push": 3.0}, {}, "parameter 'push': 3.0 is one fixed value"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, more, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        toy(parameters, **more)


@pytest.mark.parametrize(
    ("env", "message"), [("Pendulum-v9", "v9"), ("no_such_package:X-v0", "needs the package 'no_such_package'")]
)
def test_an_environment_that_is_not_there(env, message):
    with pytest.raises(ValueError, match=message):
        from_gymnasium(env, {"g": GRAVITY})


def test_attributes_that_the_constructor_derives_are_warned_of():
    assert find_parameters.derived(Toy(), "mass") == ["weight", "load"]
    assert find_parameters.derived(Toy(), "push") == []
    with pytest.warns(UserWarning, match=r"computes \['weight', 'load'\] from 'mass'"):
        toy({"mass": Box(1.0, 2.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy({"mass": Box(1.0, 2.0)}, configure=lambda env, task: None)
        toy({"bonus": Box(1.0, 2.0)})


def test_configure_sees_the_unwrapped_environment_and_the_values_once():
    calls = []

    def configure(env, task):
        calls.append(task)
        env.bonus = 10 * task["level"]

    family = toy({"level": [1, 2]}, configure=configure, where={"level": "configure"})
    calls.clear()
    env = family.make({"level": 2})
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(0)[1] == 21.0
    assert calls == [{"level": 2}]


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


# ---------------------------------------------------------------------------------------------------------------------
# Other people's environments


def swing(env, task):
    env.world.gravity = (0.0, -task["gravity"])


def lander():
    pytest.importorskip("Box2D")
    return from_gymnasium("LunarLander-v3", {"gravity": Box(-11.0, -5.0), "wind_power": Box(0.0, 15.0)},
                          make_kwargs={"enable_wind": True}, horizon=60, hidden_task=False)  # fmt: skip


def walker():
    pytest.importorskip("Box2D")
    return from_gymnasium("BipedalWalker-v3", {"gravity": Box(5.0, 12.0)}, where={"gravity": "configure"},
                          configure=swing, horizon=40, fresh=True, hidden_task=False)  # fmt: skip


def grid():
    wrappers = pytest.importorskip("minigrid.wrappers")
    return from_gymnasium(
        "minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6, 8], "agent_start_dir": Discrete(4)},
        wrappers=[wrappers.ImgObsWrapper], horizon=30, hidden_task=False,
    )  # fmt: skip


def flat_grid():
    pytest.importorskip("minigrid")
    return from_gymnasium("minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6, 8]}, wrappers=[without_words],
                          horizon=9, hidden_task=False)  # fmt: skip


def without_words(env):
    return gym.wrappers.FilterObservation(env, ["direction", "image"])


EVERY = {"pendulum": pendulums, "lander": lander, "walker": walker, "grid": grid, "flat grid": flat_grid}


@pytest.mark.parametrize("name", EVERY)
def test_every_such_family_is_healthy_and_trains(name):
    family = EVERY[name]()
    assert check_family(family) == []
    assert isinstance(family, TaskFamily) and pickle.loads(pickle.dumps(family)) == family
    tasks = family.sample(2, np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recommendations about bounds
        check_env(family.make(task_at(tasks, 0)), skip_render_check=True)
    learner, again = (tiny(family).learn(1, eval_every=0) for _ in range(2))
    assert learner.state.iteration == 1 and same_params(learner.state.params, again.state.params)


def test_gravity_and_wind_reach_the_lander():
    family = lander()
    env = family.make({"gravity": -7.0, "wind_power": 3.0}).unwrapped
    env.reset(seed=0)
    assert env.world.gravity.y == -7.0 and env.wind_power == 3.0 and env.enable_wind


def test_a_walker_falls_faster_under_more_gravity():
    heavy, light = ({"gravity": np.float32(g)} for g in (12.0, 5.0))
    env = LoopVectorEnv(walker(), 2, 1)
    env.reset(seed=[0, 0], options={"tasks": {"gravity": np.stack([heavy["gravity"], light["gravity"]])}})
    for _ in range(10):
        obs = env.step(np.zeros((2, 4), np.float32))[0]
    assert obs[0, 3] < obs[1, 3]  # vertical speed


def test_what_cannot_be_flattened_is_named():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=r"mission.*cannot be flattened.*FilterObservation"):
        from_gymnasium("minigrid:MiniGrid-Empty-5x5-v0", {"size": [5, 6]}, horizon=9)
