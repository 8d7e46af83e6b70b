"""Every algorithm: one iteration written down once more, and what all of them promise."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import Drift, Locks, TwoArms, double, setup
from slow_objective import SlowObjective, heads
from torch import Tensor, nn

import metarl
from metarl import AdaptedPolicy, MetaLearner, algorithms, cli, parallel
from metarl.checkpoint import pack_state
from metarl.inner import loop
from metarl.outer.trust_region import flatten, unflatten
from metarl.params import Params
from metarl.rollout.setup import Setup
from metarl.tasks import task_at

GRADIENT_BASED = [name for name in algorithms.ALGORITHMS if name != "rl2"]

# ---------------------------------------------------------------------------------------------------------------------
# One iteration, written out: finite differences of the slow objective, and the outer step in a few plain lines

TINY = {"n_tasks": 3, "episodes": 4, "hidden": (), "inner_lr": 0.2, "gamma": 0.9, "output_gain": 0.3}


def started(name: str, at: int = 0, **settings: Any):
    """Settings, sampler, policy, a state in iteration `at`, and the state's data in float64."""
    module = algorithms.get(name)
    config = module.Config(**(TINY | settings))
    sampler, policy, _ = setup(Drift(), config)
    state = replace(module.init(config, policy, sampler.family, 0), iteration=at)
    data = double(loop.experience(Setup(config, sampler, policy, 0), state).data)
    return module, config, sampler, policy, state, data


def slopes(function, at: Params) -> Tensor:
    """The derivative [n, ...] of a tensor in all the numbers of `at`."""
    x = flatten(at)
    rows = [
        (function(unflatten(x + e, at)) - function(unflatten(x - e, at))) / 2e-5
        for e in 1e-5 * torch.eye(len(x)).double()
    ]
    return torch.stack(rows)


def doubled(params: Params) -> Params:
    return {name: value.double() for name, value in params.items()}


ADAM = [
    ("maml_ppo", {"epochs": 3, "clip": 0.02}, {"clip": 0.02}),
    ("maml_vpg", {"inner_steps": 2}, {"ratio": False}),
    ("promp", {"epochs": 3, "clip": 0.02, "inner_kl": 0.5}, {"clip": 0.02, "inner_kl": 0.5}),
    ("promp", {"epochs": 2, "inner_steps": 2, "inner_kl": 3.0, "max_grad_norm": 0.05}, {"clip": 0.3, "inner_kl": 3.0}),
    ("maml_plus_plus", {"epochs": 2, "anneal_over": 10}, {"clip": 0.3}),
]


@pytest.mark.parametrize("at", [0, 6, 30])
@pytest.mark.parametrize(("name", "settings", "kind"), ADAM, ids=str)
def test_an_iteration_with_adam(name, settings, kind, at):
    settings = {"outer_lr": 0.03, "learned_outer_lr": 0.1} | settings
    module, config, sampler, policy, state, data = started(name, at, **settings)
    at_start = doubled(state.meta)
    # The objective's constants (of first order, of DiCE) are those of wherever the derivative is taken.
    meta, mean, square = at_start, 0.0, 0.0
    share = 0.5 * (1 + math.cos(math.pi * min(at / config.anneal_over, 1))) if config.anneal_over else 1.0
    factor = config.anneal_to + (1 - config.anneal_to) * share if config.anneal_over else 1.0
    for i in range(1, settings.get("epochs", 1) + 1):
        gradient = slopes(SlowObjective(config, policy, data, meta, iteration=at, **kind), meta)
        if config.max_grad_norm:
            assert gradient.norm() > config.max_grad_norm
            gradient = gradient * config.max_grad_norm / gradient.norm()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        step = mean / (1 - 0.9**i) / (torch.sqrt(square / (1 - 0.999**i)) + 1e-8)
        moved = unflatten(step, meta)
        sizes = {n: factor * (0.03 if n in state.params else 0.1) for n in meta}
        meta = {n: value - sizes[n] * moved[n] for n, value in meta.items()}
    new, stats = module.iteration(Setup(config, sampler, policy, 0), state)
    for n, value in new.meta.items():
        torch.testing.assert_close(value.double(), meta[n], atol=3e-4 * factor, rtol=1e-5)
    assert stats["outer/lr"] == pytest.approx(0.03 * factor)
    assert float(new.optimizer["count"]) == settings.get("epochs", 1)


TRPO = [
    ("maml_trpo", {"inner_steps": 2}),
    ("fomaml", {}),
    ("e_maml", {"exploration": 3.0}),
    ("e_maml", {"inner_steps": 2}),
    ("meta_sgd", {"hidden": (2,)}),
    ("anil", {"hidden": (2,)}),
    ("cavia", {"context": 2}),
]


@pytest.mark.parametrize(("name", "settings"), TRPO, ids=str)
def test_an_iteration_with_trpo(name, settings):
    module, config, sampler, policy, state, data = started(name, damping=0.1, max_kl=0.02, cg_iterations=30, **settings)
    fixed = {n: v for n, v in doubled(state.params).items() if name == "cavia" and n == "context"}
    at = {n: v for n, v in doubled(state.meta).items() if n not in fixed}
    slow = SlowObjective(config, policy, data, fixed | at)
    rollout = data[-1].rollout

    def outputs(meta: Params) -> Tensor:
        """All that is differentiated, one after the other: the loss, the adapted means, the log standard deviations."""
        own = [slow.adapted(fixed | meta, k) for k in range(3)]
        means = torch.stack([heads(own[k], rollout.obs[k]) for k in range(3)])
        return torch.cat([slow(fixed | meta)[None], means.flatten(), torch.cat([x["log_std"] for x in own])])

    rows = slopes(outputs, at)
    # F: over the tasks' valid steps 1 / std^2 for every mean, and 2 for every log std.
    weight = (rollout.mask / rollout.mask.sum((1, 2), keepdim=True) / 3)[..., None].expand(*rollout.mask.shape, 2)
    M = torch.cat([weight.flatten(), torch.full((6,), 2 / 3, dtype=torch.float64)])  # every std is 1
    gradient, J = rows[:, 0], rows[:, 1:]
    direction = torch.linalg.solve((J * M) @ J.T + 0.1 * torch.eye(len(gradient)).double(), gradient)
    step = direction * torch.sqrt(2 * 0.02 / (gradient @ direction))
    new, stats = module.iteration(Setup(config, sampler, policy, 0), state)
    assert stats["outer/accepted"]
    want = unflatten(flatten(at) - 0.8 ** stats["outer/backtracks"] * step, at)
    for n, value in want.items():
        torch.testing.assert_close(new.meta[n].double(), value, atol=2e-4, rtol=2e-3)
    assert stats["outer/gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-3)
    assert all(torch.equal(new.params[n], state.params[n]) for n in fixed)


@pytest.mark.parametrize("settings", [{}, {"inner_optimizer": "momentum"}, {"anneal_over": 8}], ids=str)
def test_an_iteration_of_batched_reptile(settings):
    module, config, sampler, policy, state, data = started("reptile", 4, inner_steps=3, outer_lr=0.4, **settings)
    slow = SlowObjective(config, policy, data, doubled(state.params))
    ends = [slow.adapted(doubled(state.params), k) for k in range(3)]
    lr = 0.4 * (0.01 + 0.99 * 0.5 if "anneal_over" in settings else 1.0)  # half-way through the cosine
    new, stats = module.iteration(Setup(config, sampler, policy, 0), state)
    length = 0.0
    for n, value in doubled(state.params).items():
        want = value + lr * (sum(end[n] for end in ends) / 3 - value)
        length += float((want - value).square().sum())
        torch.testing.assert_close(new.params[n].double(), want, atol=1e-5, rtol=1e-5)
    assert stats["outer/step_norm"] == pytest.approx(length**0.5, rel=1e-4)
    assert stats["outer/lr"] == pytest.approx(lr)


def test_an_iteration_of_serial_reptile():
    module, config, sampler, policy, state, _ = started("reptile", inner_steps=2, outer_lr=0.4, serial=True)
    here, steps, returns = state, 0, []
    tasks = sampler.tasks(3, 0, 0)
    for k in range(3):
        one, params, data = {n: v[k : k + 1] for n, v in tasks.items()}, here.params, []
        for stage in range(3):  # every task starts from where the task before it has brought the parameters
            stacked = {n: v[None] for n, v in params.items()}
            rollout = sampler.collect(one, 4, policy, stacked, 0, 0, 3 * k + stage)
            steps += int(rollout.mask.sum())
            data.append(loop.Batch.of(config, rollout))
            if stage < 2:
                slow = SlowObjective(config, policy, double([data[stage], data[stage]]), doubled(params))
                params = {n: v.float() for n, v in slow.adapted(doubled(params), 0).items()}
        returns.append(float(rollout.returns.mean()))
        here = replace(here, params={n: v + 0.4 * (params[n] - v) for n, v in here.params.items()})
    new, stats = module.iteration(Setup(config, sampler, policy, 0), state)
    for n, value in here.params.items():
        torch.testing.assert_close(new.params[n], value, atol=1e-5, rtol=1e-5)
    assert (new.env_steps, new.iteration) == (steps, 1)
    assert stats["return/step_2"] == pytest.approx(np.mean(returns), rel=1e-4)


def test_serial_and_batched_reptile_differ():
    ends = []
    for serial in (False, True):
        module, config, sampler, policy, state, _ = started("reptile", serial=serial)
        ends.append(module.iteration(Setup(config, sampler, policy, 0), state)[0])
    assert (ends[0].params["w0"] - ends[1].params["w0"]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# What all promise

SMALL = {"n_tasks": 3, "episodes": 2, "hidden": (5,), "inner_lr": 0.1}
EXTRA = {
    "maml_trpo": {"inner_optimizer": "momentum", "inner_steps": 2},
    "maml_ppo": {"learned_discount": True, "learned_lambda": True, "gae_lambda": 0.9},
    "maml_vpg": {"learned_lr": "scalar", "learned_mask": True, "normalize_obs": True},
    "promp": {"learned_lr": "per_parameter", "normalize_obs": True},
    "maml_plus_plus": {"multi_step_until": 3, "first_order_until": 1, "anneal_over": 4},
    "reptile": {"serial": True, "anneal_over": 4},
    # Of three tasks E-MAML's term is mostly noise: with more of it the line search finds no step.
    "e_maml": {"inner_optimizer": "adam", "inner_steps": 2, "exploration": 0.01},
    "meta_sgd": {"lr_in_std": True},
    "cavia": {"learned_lr": "scalar"},
    "rl2": {"hidden": 5, "minibatches": 2},
}
every = pytest.mark.parametrize("name", algorithms.ALGORITHMS)
gradient_based = pytest.mark.parametrize("name", GRADIENT_BASED)


def learner(name: str, family: Any = None, seed: int = 0, **settings: Any) -> MetaLearner:
    config = SMALL | EXTRA.get(name, {}) | settings
    known = {"policy", *algorithms.get(name).Config.__dataclass_fields__}
    return MetaLearner(
        name, family or Drift(), seed=seed, device="cpu", **{k: v for k, v in config.items() if k in known}
    )


def everything(learner: MetaLearner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return pack_state(learner.state)


def assert_same_state(a: MetaLearner, b: MetaLearner) -> None:
    (tensors, rest), (others, other_rest) = everything(a), everything(b)
    assert list(tensors) == list(others) and rest == other_rest
    assert [name for name, value in tensors.items() if not torch.equal(value, others[name])] == []


@every
def test_the_seed_determines_every_number(name):
    a, again, b = (learner(name, seed=seed).learn(2, eval_every=0) for seed in (0, 0, 1))
    assert_same_state(a, again)
    assert any(not torch.equal(value, b.state.params[n]) for n, value in a.state.params.items())


@every
def test_a_saved_learner_goes_on_bit_for_bit(name, tmp_path):
    whole = learner(name).learn(4, eval_every=0)
    learner(name).learn(2, eval_every=0).save(tmp_path / "half")
    resumed = MetaLearner.load(tmp_path / "half", Drift(), device="cpu").learn(2, eval_every=0)
    assert_same_state(resumed, whole)
    tasks = whole.sampler.tasks(3, 0, 0, "test")
    a, b = (x.evaluate(tasks=tasks, steps=2, episodes=3).returns for x in (whole, resumed))
    assert np.array_equal(a, b)


@every
def test_two_iterations_change_all_that_is_learned(name):
    # The control of the tests above: what never moves would be equal in any case.
    before, after = everything(learner(name))[0], everything(learner(name).learn(2, eval_every=0))[0]
    stay = {n for n, value in before.items() if torch.equal(value, after[n])}
    # CAVIA's context starts from zero in every task; what does not adapt has no part in Reptile.
    expected = {"cavia": {"params/context"}, "reptile": {"params/log_std"}}.get(name, set())
    assert stay == expected


@every
def test_the_number_of_threads_changes_nothing(name, monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8 * 2)
    one = learner(name).learn(1, eval_every=0)
    torch.set_num_threads(3)
    assert_same_state(learner(name).learn(1, eval_every=0), one)


@every
def test_a_caller_may_have_turned_gradients_off(name):
    with torch.no_grad():
        without = learner(name).learn(1, eval_every=0)
    assert_same_state(without, learner(name).learn(1, eval_every=0))
    assert not any(value.requires_grad for value in everything(without)[0].values())


@every
def test_an_iteration_leaves_the_state_it_was_given_alone(name):
    mine = learner(name)
    before = {n: value.clone() for n, value in everything(mine)[0].items()}
    mine._step(mine.state)
    assert all(torch.equal(value, before[n]) for n, value in everything(mine)[0].items())


@every
@pytest.mark.parametrize("family", [TwoArms(), Locks()], ids=["one-choice", "several"])
def test_it_learns_with_choices(name, family):
    before = learner(name, family, normalize_obs=False, episodes=6).state.params
    after = learner(name, family, normalize_obs=False, episodes=6).learn(2, eval_every=0).state.params
    assert {n for n, value in after.items() if torch.equal(value, before[n])} <= {"context"}
    assert all(value.isfinite().all() for value in after.values())


EDGES = [
    (name, settings)
    for name in GRADIENT_BASED
    for settings in ({"n_tasks": 1}, {"episodes": 1}, {"inner_steps": 0}, {"inner_steps": 3})
    if (name, settings) not in (("reptile", {"inner_steps": 0}), ("e_maml", {"n_tasks": 1}))
    # Those are refused, see the tests of settings.
]


@pytest.mark.parametrize(("name", "settings"), EDGES, ids=str)
def test_the_edges_of_sense_are_finite(name, settings):
    rows: list[dict[str, Any]] = []
    done = learner(name, **settings).learn(1, eval_every=0, callback=rows.append)
    assert all(value.isfinite().all() for value in everything(done)[0].values())
    stages = [key for key in rows[0] if key.startswith("return/step_")]
    assert len(stages) == done.config.inner_steps + 1


@gradient_based
def test_it_learns_with_a_module_or_says_why_not(name):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    if name == "cavia":
        with pytest.raises(ValueError, match=r"context=5 .* policy="):
            learner(name, policy=net)
        return
    config = SMALL | EXTRA.get(name, {})
    start = MetaLearner(name, Drift(), device="cpu", policy=net, **config)
    before = {n: value.clone() for n, value in start.state.params.items()}
    start.learn(1, eval_every=0)
    moved = {n for n, value in start.state.params.items() if not torch.equal(value, before[n])}
    assert {n for n in before if n.startswith("module.")} <= moved
    if name == "anil":
        adapted = start.evaluate(tasks=start.sampler.tasks(2, 0, 0), steps=1, details=True).details.params[-1]
        steps = {n for n, value in adapted.items() if not torch.equal(value, start.state.params[n].expand_as(value))}
        assert steps == {"module.2.weight", "module.2.bias"}


@gradient_based
def test_it_learns_from_images_or_says_why_not(name):
    family = metarl.make("PointNavigationPixels-v0", horizon=3)
    if name == "cavia":
        with pytest.raises(ValueError, match=r"context=5 needs network='mlp'"):
            learner(name, family)
        return
    before = learner(name, family, channels=(2,), normalize_obs=False).state.params
    after = learner(name, family, channels=(2,), normalize_obs=False, episodes=4).learn(1, eval_every=0).state.params
    assert all((value - before[n]).abs().max() > 0 for n, value in after.items() if n != "log_std" or name != "reptile")


@gradient_based
def test_a_task_adapts_alone_as_it_does_among_others(name):
    done = learner(name).learn(1, eval_every=0)
    tasks = done.sampler.tasks(3, 0, 0, "test")
    first = {n: value[:1] for n, value in tasks.items()}
    many, alone = (done.evaluate(tasks=t, steps=2, episodes=4, seed=3).returns for t in (tasks, first))
    np.testing.assert_allclose(many[:1], alone, rtol=1e-4, atol=1e-4)


@every
def test_every_logged_number_stands_in_the_documentation(name):
    text = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
    rows: list[dict[str, Any]] = []
    learner(name).learn(2, eval_every=2, eval_tasks=2, callback=rows.append)
    keys = {key.rstrip("0123456789") + "k" if key[-1].isdigit() else key for row in rows for key in row}
    assert {key for key in keys if f"`{key}`" not in text} == set()
    assert "return/step_k" in keys and "env_steps" in keys


@every
def test_the_command_line_explains_every_setting(name, capsys):
    with pytest.raises(SystemExit) as done:
        cli.run(["train", name, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    for setting in algorithms.get(name).Config.__dataclass_fields__:
        assert f"--{setting.replace('_', '-')}" in text or f"--no-{setting.replace('_', '-')}" in text


# ---------------------------------------------------------------------------------------------------------------------
# CAVIA's policies


def test_an_adapted_cavia_policy_has_no_context_and_acts_the_same(tmp_path):
    done = learner("cavia", inner_lr=0.5).learn(2, eval_every=0)
    tasks = done.sampler.tasks(2, 0, 0, "test")
    adapted = done.adapt(task_at(tasks, 0), steps=2, seed=3)
    adapted.save(tmp_path / "policy")
    found = done.evaluate(tasks={n: v[:1] for n, v in tasks.items()}, steps=2, seed=3, details=True).details
    assert found.params[-1]["context"].abs().max() > 1e-3
    obs = found.rollouts[-1].obs
    want = done.policy.distribution(found.params[-1], obs)
    for policy in (adapted, AdaptedPolicy.load(tmp_path / "policy.safetensors")):
        assert not any(name.startswith("context") for name in policy.params) and policy.policy.context == 0
        got = policy.policy.distribution({n: v[None] for n, v in policy.params.items()}, obs)
        torch.testing.assert_close(got.mean, want.mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(got.log_std, want.log_std)
    zero = found.params[-1] | {"context": torch.zeros_like(found.params[-1]["context"])}
    assert (done.policy.distribution(zero, obs).mean - want.mean).abs().max() > 1e-4  # the context did something


def test_a_cavia_learner_starts_from_a_policy_without_a_context():
    start = learner("cavia").learn(1, eval_every=0).adapt(task_at(Drift().sample(1, np.random.default_rng(0)), 0))
    mine = MetaLearner("cavia", Drift(), device="cpu", policy=start, n_tasks=2, episodes=2)
    obs = torch.randn(1, 3, 2)
    got = mine.policy.distribution({n: v[None] for n, v in mine.state.params.items()}, obs)
    want = start.policy.distribution({n: v[None] for n, v in start.params.items()}, obs)
    torch.testing.assert_close(got.mean, want.mean)
    assert not mine.state.params["context"].any() and mine.state.params["context_weight"].any()
    assert not torch.equal(mine.learn(1, eval_every=0).state.params["context_weight"], torch.zeros(5, 5))


def test_a_module_and_a_context_do_not_go_together():
    with pytest.raises(ValueError, match=r"context=3 .*with policy= leave it at 0"):
        MetaLearner("maml_trpo", Drift(), device="cpu", policy=nn.Linear(2, 2), context=3)
