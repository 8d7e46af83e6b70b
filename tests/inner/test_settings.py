"""Settings: every check names the field and the value; what follows from the settings, by hand."""

import math
import re
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import torch
from gymnasium.spaces import Box
from probes import Drift, setup
from torch import nn

from metarl import algorithms, arguments
from metarl.algorithms import maml_ppo, maml_trpo, promp, reptile
from metarl.inner.settings import GradientSettings, cosine
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import Spaces
from metarl.supervised import maml as supervised

NONSENSE = [
    (GradientSettings, "n_tasks", 0),
    (GradientSettings, "n_tasks", 2.5),
    (GradientSettings, "n_tasks", math.nan),
    (GradientSettings, "n_tasks", math.inf),
    (GradientSettings, "episodes", -1),
    (GradientSettings, "gamma", 1.1),
    (GradientSettings, "gamma", math.nan),
    (GradientSettings, "gae_lambda", -0.1),
    (GradientSettings, "reward_baseline", math.nan),
    (GradientSettings, "reward_baseline", -math.inf),
    (GradientSettings, "inner_steps", -1),
    (GradientSettings, "inner_steps", 0.5),
    (GradientSettings, "inner_lr", 0.0),
    (GradientSettings, "inner_lr", math.inf),
    (GradientSettings, "inner_lr", math.nan),
    (GradientSettings, "first_order_until", -1),
    (GradientSettings, "multi_step_until", 1.5),
    (GradientSettings, "dice_lambda", 1.5),
    (GradientSettings, "inner_momentum", -0.5),
    (GradientSettings, "inner_adam_eps", 0.0),
    (GradientSettings, "natural_damping", -0.1),
    (GradientSettings, "natural_damping", math.nan),
    (GradientSettings, "exploration", -1.0),
    (GradientSettings, "exploration", math.inf),
    (GradientSettings, "lr_schedule", (1.0, 0.0)),
    (GradientSettings, "lr_schedule", (math.inf,)),
    (GradientSettings, "learned_lr", "per_layer"),
    (GradientSettings, "inner_gradient", "vpg"),
    (GradientSettings, "loss_per", "task"),
    (GradientSettings, "inner_optimizer", "rmsprop"),
    (GradientSettings, "adapts", "body"),
    (GradientSettings, "network", "rnn"),
    (GradientSettings, "context", -1),
    (GradientSettings, "init_std", 0.0),
    (GradientSettings, "min_std", -1.0),
    (GradientSettings, "input_gain", 0.0),
    (GradientSettings, "output_gain", math.nan),
    (maml_ppo.Config, "outer_lr", 0.0),
    (maml_ppo.Config, "learned_outer_lr", -1.0),
    (maml_ppo.Config, "anneal_over", -1),
    (maml_ppo.Config, "anneal_to", 2.0),
    (maml_ppo.Config, "max_grad_norm", -1.0),
    (maml_ppo.Config, "max_grad_norm", math.nan),
    (maml_ppo.Config, "epochs", 0),
    (maml_ppo.Config, "clip", 0.0),
    (promp.Config, "epochs", 1.5),
    (promp.Config, "clip", -0.3),
    (promp.Config, "inner_kl", -1.0),
    (promp.Config, "n_tasks", 0),
    (promp.Config, "outer_lr", -1.0),
    (maml_trpo.Config, "damping", math.nan),
    (reptile.Config, "inner_steps", 0),
    (reptile.Config, "outer_lr", 0.0),
    (reptile.Config, "anneal_over", -1),
    (reptile.Config, "anneal_to", -0.1),
]


@pytest.mark.parametrize(("kind", "name", "value"), NONSENSE)
def test_nonsense_is_refused_with_its_name_and_value(kind, name, value):
    shown = repr(value) if isinstance(value, str | tuple) else str(value)
    with pytest.raises(ValueError, match=f"{name} must") as error:
        kind(**{name: value})
    assert shown in str(error.value)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "normalize_obs": ("yes", 1, None),
        "n_tasks": ("3", True, None, [3]),
        "inner_lr": ("0.1", True, None, [0.1]),
        "graph_tasks": ("all", False),
        "reward_baseline": ("no", False),
        "hidden": (8, "8", (8.5,), ("8",), (True,), None),
        "lr_schedule": (0.5, "0.5", ("a",), (True,), None),
    }.items(),
)
def test_a_value_of_another_type_is_refused(name, values):
    for value in values:
        shown = value[0] if isinstance(value, tuple) else value
        with pytest.raises(ValueError, match=f"{name} must be .*, got {re.escape(repr(shown))}"):
            maml_trpo.Config(**{name: value})


@pytest.mark.parametrize("name", [*algorithms.ALGORITHMS, "supervised"])
def test_no_setting_takes_a_word_for_anything_else(name):
    kind = supervised.Config if name == "supervised" else algorithms.get(name).Config
    for field in {field.name for field in fields(kind)} - {"activation"}:  # which the network checks
        with pytest.raises(ValueError, match=f"{field} must be .* got 'yes'"):
            kind(**{field: "yes"})


@pytest.mark.parametrize("name", [*algorithms.ALGORITHMS, "supervised"])
def test_every_field_is_a_word_or_has_a_type_that_is_checked(name):
    hints = get_type_hints(supervised.Config if name == "supervised" else algorithms.get(name).Config)
    others = [field for field, hint in hints.items() if hint is not str and get_origin(hint) is not Literal]
    assert len(others) > 10
    assert not [field for field in others if hints[field] not in arguments._PLAIN]


CONTRADICTIONS: list[tuple[type, dict[str, Any], str]] = [
    (GradientSettings, {"learned_discount": True, "gamma": 1.0}, "learned_discount starts at gamma, .* got 1.0"),
    (GradientSettings, {"learned_lambda": True}, "learned_lambda starts at gae_lambda, .* got 1.0"),
    (GradientSettings, {"learned_discount": True, "first_order": True}, "learned_discount .* first_order leaves out"),
    (GradientSettings, {"learned_discount": True, "first_order_until": 3}, "learned_discount .* first_order"),
    (GradientSettings, {"learned_discount": True, "inner_gradient": "dice"}, "learned_discount .*'dice' has none"),
    (GradientSettings, {"adapts": "context"}, "adapts='context' needs a context vector: set context"),
    (GradientSettings, {"exploration": 0.5, "n_tasks": 1}, "exploration=0.5 .* got n_tasks=1: set n_tasks"),
    (GradientSettings, {"context": 2, "network": "cnn"}, "context=2 has no meaning for network='cnn'"),
    (GradientSettings, {"channels": (4,), "network": "mlp"}, r"channels=\(4,\) has no meaning for network='mlp'"),
    *[
        (reptile.Config, {name: value}, f"{name}={value!r} needs a meta-gradient, and Reptile has none")
        for name, value in {
            "learned_lr": "scalar", "learned_mask": True, "learned_discount": True, "inner_gradient": "lvc",
            "first_order": True, "first_order_until": 3, "multi_step_until": 3, "exploration": 1.0, "adapts": "head",
        }.items()
    ],
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "message"), CONTRADICTIONS, ids=str)
def test_settings_that_contradict_each_other_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize("name", [name for name in algorithms.ALGORITHMS if name != "rl2"])
def test_every_algorithm_checks_what_it_shares(name):
    # Two base classes with checks of their own: neither may be forgotten.
    config = algorithms.get(name).Config
    for field, value in {"n_tasks": 0, "inner_lr": -1.0, "init_std": 0.0, "outer_lr": -1.0}.items():
        if field in {f.name for f in fields(config)}:
            with pytest.raises(ValueError, match=field):
                config(**{field: value})


OWN = {
    "promp": {"inner_gradient": "lvc", "inner_kl": 5e-4},
    "fomaml": {"first_order": True},
    "meta_sgd": {"learned_lr": "per_parameter"},
    "anil": {"adapts": "head"},
    "cavia": {"adapts": "context", "context": 5},
    "maml_plus_plus": {"learned_lr": "per_layer_and_step", "inner_steps": 2},
    "maml_trpo": {"first_order": False, "learned_lr": "none", "adapts": "all", "exploration": 0.0},
}


@pytest.mark.parametrize("name", OWN)
def test_an_algorithm_is_what_its_settings_make_of_it(name):
    config = algorithms.get(name).Config()
    assert {key: getattr(config, key) for key in OWN[name]} == OWN[name]
    assert algorithms.get("e_maml").Config().exploration > 0


def test_the_edges_of_sense_are_allowed():
    GradientSettings(gamma=1.0, gae_lambda=0.0, inner_steps=0, dice_lambda=0.0, inner_momentum=1.0, natural_damping=0.0)
    maml_ppo.Config(anneal_to=0.0, max_grad_norm=0.0, epochs=1)


# ---------------------------------------------------------------------------------------------------------------------
# What follows


def test_the_step_sizes_by_hand():
    config = GradientSettings(inner_steps=3, inner_lr=0.5, lr_schedule=(1.0, 0.5))
    assert config.training_step_sizes() == (0.5, 0.25, 0.25)
    assert config.training_step_sizes(1) == (0.5,)
    assert GradientSettings(inner_steps=2, inner_lr=0.5).training_step_sizes(4) == (0.5,) * 4


@pytest.mark.parametrize(("at", "want"), [(0, 1.0), (5, 0.55), (10, 0.1), (99, 0.1)])
def test_the_cosine_by_hand(at, want):
    assert cosine(at, 10, 0.1) == pytest.approx(want)
    assert cosine(at, 0, 0.1) == 1.0


def test_first_order_lasts_as_long_as_it_is_asked_to():
    config = GradientSettings(first_order_until=3)
    assert [config.at(i).first_order for i in (0, 2, 3, 9)] == [True, True, False, False]
    assert GradientSettings(first_order=True).at(9).first_order


NAMES = {"conv0": 0, "w0": 0, "b0": 0, "w2": 0, "b2": 0, "w10": 0, "b10": 0, "context": 0, "log_std": 0}


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, set(NAMES) - {"log_std"}),
        ({"adapt_std": True}, set(NAMES)),
        ({"adapts": "head"}, {"w10", "b10"}),  # the highest number, not the last in the alphabet
        ({"adapts": "head", "adapt_std": True}, {"w10", "b10", "log_std"}),
        ({"adapts": "context", "context": 1}, {"context"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_what_moves(settings, want):
    assert set(GradientSettings(**settings).moving(NAMES)) == want


@pytest.mark.parametrize(
    ("net", "head"),
    [
        (nn.Linear(2, 2), {"module.weight", "module.bias"}),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), {"module.2.weight", "module.2.bias"}),
        (nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2, bias=False))), {"module.1.1.weight"}),
    ],
    ids=["linear", "sequential", "nested"],
)
def test_the_head_of_a_module_is_its_last_part(net, head):
    policy = ModulePolicy(setup(Drift(), maml_trpo.Config(hidden=()))[1].spaces, net)
    names = policy.init(torch.Generator())
    assert set(GradientSettings(adapts="head").moving(names)) == head


def test_a_policy_without_a_context_has_none_to_adapt():
    with pytest.raises(ValueError, match="needs a policy with a context vector"):
        GradientSettings(adapts="context", context=2).moving(["w0", "b0"])


def test_the_context_reaches_the_policy_and_images_have_none():
    spaces = setup(Drift(), maml_trpo.Config())[1].spaces
    policy = GradientSettings(context=3, hidden=(4,)).policy(spaces)
    assert isinstance(policy, MLPPolicy) and policy.context == 3
    shapes = {n: tuple(v.shape) for n, v in policy.init(torch.Generator()).items() if n.startswith("context")}
    assert shapes == {"context": (3,), "context_weight": (3, 4)}
    images = Spaces(Box(0, 255, (8, 8, 1), "uint8"), spaces.action)
    with pytest.raises(ValueError, match="context=3 needs network='mlp'"):
        GradientSettings(context=3).policy(images)
