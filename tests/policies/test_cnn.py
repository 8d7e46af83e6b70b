"""The convolutional policy: against plain torch modules task by task, differentiated twice, through everything."""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from probes import random_params, setup, stages
from tiny_runs import pixels, same_params
from torch import Tensor, nn

import metarl
from metarl import AdaptedPolicy, MetaLearner
from metarl.algorithms.maml_trpo import Config
from metarl.formulas.distributions import Categorical, Gaussian, MultiCategorical
from metarl.inner import loop
from metarl.params import Params
from metarl.policies.cnn import CNNPolicy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import Spaces, spaces_of

K = 3
IMAGE = Box(0, 255, (9, 12, 2), np.uint8)
FIRST = Box(0, 255, (2, 9, 12), np.uint8)
ACTION = Box(-1, 1, (2,), np.float32)
TINY = {"n_tasks": 2, "episodes": 2, "channels": (3,), "hidden": (8,)}


def images(spaces: Spaces, *shape: int) -> Tensor:
    raw = np.random.default_rng(0).integers(0, 256, (math.prod(shape), *spaces.observation.shape)).astype(np.uint8)
    return spaces.encode(raw).reshape(*shape, -1)


def plain(policy: CNNPolicy, params: Params, k: int) -> nn.Module:
    """Task k's network of torch's own layers, for [N, channels, height, width]."""
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}[policy.activation]
    layers: list[nn.Module] = []
    for i in range(len(policy.channels)):
        weight = params[f"conv{i}"][k]
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2, padding=1)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(params[f"conv_bias{i}"][k])
        layers += [layer, activation()]
    layers.append(nn.Flatten())
    for i in range(len(policy.hidden) + 1):
        weight = params[f"w{i}"][k]
        linear = nn.Linear(*weight.shape)
        linear.weight, linear.bias = nn.Parameter(weight.T), nn.Parameter(params[f"b{i}"][k])
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("observation", [IMAGE, FIRST], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize(("channels", "hidden"), [((4,), ()), ((4, 5), (6,)), ((3, 4, 5), (6, 7))])
def test_the_stacked_network_equals_a_plain_one_for_every_task(observation, activation, channels, hidden):
    spaces = Spaces(observation, ACTION)
    policy = CNNPolicy(spaces, channels, hidden, activation)
    params, obs = random_params(policy, K), images(spaces, K, 4, 2)
    grid = obs.reshape(K, 8, 2, 9, 12) if observation is FIRST else obs.reshape(K, 8, 9, 12, 2).permute(0, 1, 4, 2, 3)
    want = torch.stack([plain(policy, params, k)(grid[k]) for k in range(K)])
    got = policy.distribution(params, obs)
    torch.testing.assert_close(got.mean, want.reshape(K, 4, 2, 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(got.log_std, params["log_std"][:, None, None])
    assert want.std() > 0.05, "the images make a difference"


@pytest.mark.parametrize(
    ("action", "kind"), [(ACTION, Gaussian), (Discrete(4), Categorical), (MultiDiscrete([3, 2]), MultiCategorical)]
)
def test_the_action_space_says_which_distribution_it_is(action, kind):
    spaces = Spaces(IMAGE, action)
    policy = CNNPolicy(spaces, (4,), (5,))
    params = policy.init(torch.Generator().manual_seed(0))
    dist = policy.distribution({name: x.expand(K, *x.shape) for name, x in params.items()}, images(spaces, K, 4, 2))
    assert isinstance(dist, kind)
    assert dist[0].shape == (K, 4, 2, spaces.act_dim)
    assert ("log_std" in params) == (kind is Gaussian)


def test_a_policy_serves_observations_with_and_without_time():
    spaces = Spaces(IMAGE, ACTION)
    policy = CNNPolicy(spaces, (4,), (5,))
    params, obs = random_params(policy, K), images(spaces, K, 4, 2)
    torch.testing.assert_close(policy.distribution(params, obs[:, 1]).mean, policy.distribution(params, obs).mean[:, 1])


@pytest.mark.parametrize(
    ("shape", "layers", "features"),
    [((16, 16, 1), 2, 16 * 16), ((24, 24, 1), 3, 9 * 16), ((4, 84, 84), 5, 9 * 16), ((8, 32, 3), 3, 1 * 4 * 16),
     ((4, 4, 1), 1, 4 * 16)],
)  # fmt: skip
def test_networks_by_default_bring_the_image_to_four_by_four_or_less(shape, layers, features):
    policy = CNNPolicy(Spaces(Box(0, 255, shape, np.uint8), ACTION))
    assert policy.channels == (16,) * layers
    assert policy.features == features
    assert policy.init(torch.Generator())["w0"].shape == (features, 64)


def test_initial_parameters():
    spaces = Spaces(IMAGE, ACTION)
    params = CNNPolicy(spaces, (200, 300), (5,), init_std=0.3).init(torch.Generator().manual_seed(0))
    assert list(params) == ["conv0", "conv_bias0", "conv1", "conv_bias1", "w0", "b0", "w1", "b1", "log_std"]
    assert params["conv1"].abs().max().item() == pytest.approx(math.sqrt(6 / (9 * 500)), rel=1e-3)
    assert not any(params[name].any() for name in ("conv_bias0", "conv_bias1", "b0", "b1"))
    torch.testing.assert_close(params["log_std"].exp(), torch.tensor([0.3, 0.3]))
    gained = CNNPolicy(spaces, (200, 300), (5,), input_gain=2.0, output_gain=0.5).init(torch.Generator().manual_seed(0))
    assert torch.equal(gained["conv0"], 2 * params["conv0"])
    torch.testing.assert_close(gained["w1"], 50 * params["w1"])
    assert torch.equal(gained["w0"], params["w0"])


@pytest.mark.parametrize(
    ("observation", "setting", "shown"),
    [
        (IMAGE, {"channels": (4, 0)}, r"\(4, 0\)"),
        (IMAGE, {"hidden": (0,)}, r"\(0,\)"),
        (IMAGE, {"activation": "sigmoid"}, "sigmoid"),
        (IMAGE, {"min_std": 2.0}, "2.0"),
        (ACTION, {}, r"takes images.*Box\(-1"),
        (ACTION, {"channels": (4,)}, r"takes images.*Box\(-1"),
    ],
)
def test_nonsense_is_refused_with_its_value(observation, setting, shown):
    with pytest.raises(ValueError, match=shown):
        CNNPolicy(Spaces(observation, ACTION), **setting)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives


def test_adaptation_of_many_tasks_equals_task_by_task():
    config = Config(n_tasks=3, episodes=4, channels=(3, 4), hidden=(5,))
    sampler, policy, state = setup(pixels(), config)
    batch, params = stages(config, sampler, policy, state.params)[0], random_params(policy, 3)
    both = loop.detached_step(config, policy, params, loop.InnerStep(batch, 0.3))[0]
    for k in range(3):
        one = slice(k, k + 1)
        alone = loop.detached_step(
            config, policy, {n: v[one] for n, v in params.items()}, loop.InnerStep(batch[one], 0.3)
        )[0]
        for name, value in alone.items():
            torch.testing.assert_close(both[name][one], value, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# From the settings, and on disk


def test_images_get_convolutions_and_vectors_none_unless_told():
    image, vector = Spaces(IMAGE, ACTION), Spaces(Box(-1, 1, (3,)), ACTION)
    assert isinstance(Config().policy(image), CNNPolicy)
    assert isinstance(Config(network="cnn").policy(image), CNNPolicy)
    assert isinstance(Config().policy(vector), MLPPolicy)
    assert isinstance(Config(network="mlp").policy(image), MLPPolicy)


def test_all_settings_reach_the_network():
    settings = {
        "hidden": (5,),
        "activation": "relu",
        "init_std": 0.5,
        "min_std": 0.1,
        "input_gain": 2.0,
        "output_gain": 0.5,
    }
    spaces = Spaces(IMAGE, ACTION)
    assert Config(channels=(3, 4), **settings).policy(spaces) == CNNPolicy(spaces, (3, 4), **settings)


@pytest.mark.parametrize(
    ("settings", "observation", "message"),
    [
        ({"network": "cnn"}, ACTION, "takes images"),
        ({"channels": (4,)}, ACTION, r"channels=\(4,\) needs image observations, got Box\(-1"),
        ({"channels": (4,), "network": "mlp"}, IMAGE, r"channels=\(4,\) has no meaning for network='mlp'"),
        ({"network": "rnn"}, IMAGE, "network must be one of .*got 'rnn'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, observation, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings).policy(Spaces(observation, ACTION))


def test_a_learner_on_images_comes_back_and_goes_on_bit_for_bit(tmp_path):
    whole = MetaLearner("maml_trpo", pixels(), device="cpu", **TINY).learn(2, eval_every=0)
    half = MetaLearner("maml_trpo", pixels(), device="cpu", **TINY).learn(1, eval_every=0)
    half.save(tmp_path / "l")
    back = MetaLearner.load(tmp_path / "l", device="cpu").learn(1, eval_every=0)
    assert same_params(back.state.params, whole.state.params)
    assert not torch.equal(back.state.params["conv0"], half.state.params["conv0"]), "and the convolutions learn"


def test_an_adapted_policy_on_images_predicts_and_comes_back(tmp_path):
    learner = MetaLearner("maml_trpo", pixels(), device="cpu", **TINY)
    policy = learner.adapt({"goal": [0.3, -0.2]}, steps=1)
    loaded = AdaptedPolicy.load(policy.save(tmp_path / "p"))
    assert loaded.policy == policy.policy
    space = learner.family.observation_space
    obs = np.stack([space.sample() for _ in range(5)])
    want = policy.policy.distribution(
        {n: x[None] for n, x in policy.params.items()}, torch.tensor(obs / 255).float().reshape(1, 5, -1)
    )
    actions, _ = loaded.predict(obs, deterministic=True)
    np.testing.assert_allclose(actions, 0.1 * want.mean[0].clamp(-1, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(loaded.predict(obs[2], deterministic=True)[0], actions[2], atol=1e-6)


def test_a_learner_starts_from_a_convolutional_policy(tmp_path):
    start = MetaLearner("maml_trpo", pixels(), device="cpu", activation="relu", **TINY).adapt(
        {"goal": [0.3, -0.2]}, steps=1
    )
    start = AdaptedPolicy.load(start.save(tmp_path / "start"))
    learner = MetaLearner("maml_trpo", pixels(), policy=start, device="cpu", n_tasks=2, episodes=2)
    assert isinstance(learner.policy, CNNPolicy)
    config = learner.config
    assert (config.network, config.channels, config.hidden, config.activation) == ("cnn", (3,), (8,), "relu")
    assert same_params(learner.state.params, start.params)
    obs = images(learner.policy.spaces, 6).reshape(6, *learner.family.observation_space.shape) * 255
    unmoved = learner.adapt({"goal": [0.1, 0.2]}, step_sizes=(1e-12,))
    got, want = (p.predict(obs.numpy().astype(np.uint8), deterministic=True)[0] for p in (unmoved, start))
    np.testing.assert_allclose(got, want, atol=1e-6)
    learner.learn(1, eval_every=0).save(tmp_path / "learner")
    assert not same_params(learner.state.params, start.params)
    again = MetaLearner.load(tmp_path / "learner", device="cpu")
    assert isinstance(again.policy, CNNPolicy)
    assert same_params(again.learn(1, eval_every=0).state.params, learner.learn(1, eval_every=0).state.params)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"channels": (4,)}, r"channels=\(4,\) contradicts the policy to start from, which has \(3,\)"),
     ({"network": "mlp"}, "network='mlp' contradicts")],
)  # fmt: skip
def test_settings_that_contradict_a_convolutional_policy_are_refused(setting, message):
    policy = CNNPolicy(spaces_of(pixels()), (3,), (8,))
    start = AdaptedPolicy(policy, policy.init(torch.Generator()))
    with pytest.raises(ValueError, match=message):
        MetaLearner("maml_trpo", pixels(), policy=start, **setting)
    MetaLearner("maml_trpo", pixels(), policy=start, network="auto")


def test_a_learner_adapts_to_a_plain_environment_with_images():
    learner = MetaLearner("maml_trpo", pixels(), device="cpu", **TINY)
    env = pixels().make({"goal": np.array([0.3, -0.2], np.float32)})
    by_env, by_task = learner.adapt(env, steps=1, horizon=4), learner.adapt({"goal": [0.3, -0.2]}, steps=1)
    assert all(torch.allclose(by_env.params[n], x, atol=1e-5) for n, x in by_task.params.items())


# ---------------------------------------------------------------------------------------------------------------------
# Learning (its long form is in test_learning.py)


def test_an_adapted_policy_finds_from_pixels_what_no_blind_policy_can():
    # Without adaptation nothing beats the middle: -15 E|goal| = -5.74. A network that was not meta-trained adapts too,
    # to -4.2.
    blind = -15 * (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6
    family = metarl.make("PointNavigationPixels-v0", horizon=15, size=8)
    learner = MetaLearner(
        "maml_trpo", family, device="cpu", n_tasks=10, episodes=10, channels=(4, 8), hidden=(16,), init_std=0.4,
        min_std=0.2, lr_in_std=True, max_kl=0.02,
    )  # fmt: skip
    learner.learn(6, eval_every=0)
    before, after = learner.evaluate(40, episodes=20, steps=1, seed=1).mean
    assert before < blind + 0.3
    assert after > -3.5
