"""Every number of docs/logging.md, computed by hand from what was collected and from the parameters before and after.

The episodes have different lengths, the tasks differ, two inner steps make three stages, Adam takes several epochs, and
it is the second iteration that is looked at: a number of a wrong stage, mask, epoch or iteration is another one.
"""

import dataclasses
import math
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from probes import double
from slow_objective import SlowObjective, acted, distribution
from torch import Tensor
from torch.distributions import kl_divergence

from metarl import MetaLearner, algorithms
from metarl.algorithms import rl2
from metarl.inner import loop
from metarl.inner.loss import Batch
from metarl.inner.state import State, learned_statistics
from metarl.outer import trust_region
from metarl.outer.trust_region import flatten, unflatten
from metarl.params import Params
from metarl.rollout import sampler
from metarl.rollout.rollout import Rollout
from metarl.tasks import Task, Tasks
from metarl.training.train import RunDirectory

K, E = 3, 4
PER_ROLLOUT, PER_UPDATE = 2.0, 5.0  # seconds on the clock of these tests


class Uneven:
    """Walk in a plane; the reward is minus the squared distance from the task's goal. An episode lasts as many steps
    as the task says, or ends early beyond x = 0.6, which alone is a success."""

    id = "UnevenProbe-v0"
    horizon = 6

    def __init__(self, discrete: bool = False):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Discrete(3) if discrete else Box(-0.5, 0.5, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"steps": Discrete(7), "goal": Box(-1, 1, (2,), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"steps": 3 + np.arange(n) % 4, "goal": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}

    def make(self, task: Task) -> gym.Env:
        return _UnevenEnv(self, task)


class _UnevenEnv(gym.Env):
    def __init__(self, family: Uneven, task: Task):
        self.task, self.observation_space, self.action_space = task, family.observation_space, family.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t, self.x = 0, np.random.default_rng(seed).normal(0, 0.3, 2)
        return self.x.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        moves = np.array([[0.5, 0.0], [-0.4, 0.2], [0.0, -0.5]])
        self.t, self.x = self.t + 1, self.x + (np.asarray(action) if np.ndim(action) else moves[int(action)])
        reward = -float(((self.x - self.task["goal"]) ** 2).sum())
        won = bool(self.x[0] > 0.6)
        return self.x.astype(np.float32), reward, won or self.t >= int(self.task["steps"]), False, {"success": won}


# ---------------------------------------------------------------------------------------------------------------------
# Formulas, in numpy


def earned(r: Rollout) -> np.ndarray:
    """Return of every episode, [K, E]."""
    rew, mask = r.rew.double().numpy(), r.mask.numpy()
    return np.array([[rew[k, mask[k, :, e] > 0, e].sum() for e in range(mask.shape[2])] for k in range(len(mask))])


def over_states(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean over each task's valid states, then over tasks; values, mask [K, T, E]."""
    return float(np.mean([values[k][mask[k] > 0].mean() for k in range(len(mask))]))


def entropies(dist: Any) -> np.ndarray:
    """In nats, of every state."""
    if hasattr(dist, "logits"):
        weights = np.exp(dist.logits.double().numpy())
        p = weights / weights.sum(-1, keepdims=True)
        return -(p * np.log(p)).sum(-1)
    std = np.exp(dist.log_std.double().numpy())
    per_task = (0.5 * np.log(2 * np.pi * np.e * std**2)).sum(-1)
    return np.broadcast_to(per_task, dist.mean.shape[:-1])


def slopes(function: Callable[[Params], Tensor], at: Params) -> np.ndarray:
    """The gradient by finite differences."""
    x = flatten(at)
    steps = 1e-5 * torch.eye(len(x), dtype=x.dtype)
    values = [(function(unflatten(x + e, at)) - function(unflatten(x - e, at))) / 2e-5 for e in steps]
    return torch.stack(values).numpy()


class Noisy(SlowObjective):
    """With the learned noise of every inner step."""

    def step(self, own: Params, meta: Params, k: int, i: int, memory: dict) -> tuple[Params, dict]:
        own, memory = super().step(own, meta, k, i, memory)
        return (own | {"log_std": own["log_std"] + meta["noise"][i]} if "noise" in meta else own), memory


def divergence(slow: SlowObjective, meta: Params) -> float:
    """KL(policies that acted || adapted policies of `meta`)."""
    out = []
    for k in range(K):
        batch, valid = slow.data[-1], slow.data[-1].rollout.mask[k].bool()
        new = distribution(slow.policy, slow.adapted(meta, k), batch.rollout.obs[k])
        parts = [kl_divergence(p, q)[valid].mean() for p, q in zip(acted(batch, k), new, strict=True)]
        out.append(float(sum(parts)))
    return float(np.mean(out))


def doubled(params: Params) -> Params:
    return {name: value.detach().double() for name, value in params.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Two iterations, with all that went through them


class Run:
    """A learner, what it collected and logged, and its states."""

    def __init__(self, name: str, discrete: bool, settings: dict[str, Any], path: Path, patch: pytest.MonkeyPatch):
        self.collected: list[Any] = []
        self.states: list[Any] = []
        clock = types.SimpleNamespace(now=0.0)
        fake = types.SimpleNamespace(perf_counter=lambda: clock.now)
        module: Any = algorithms.get(name)
        self.learner = MetaLearner(name, Uneven(discrete), seed=3, device="cpu", workers=0, **settings)
        if name == "rl2":  # a value head that already says something
            g, params = torch.Generator().manual_seed(0), dict(self.learner.state.params)
            params["w_value"] = torch.randn(params["w_value"].shape, generator=g)
            self.learner.state = dataclasses.replace(self.learner.state, params=params)
        engine: Any = __import__(module.iteration.__module__, fromlist=["iteration"])

        def timed(function: Callable, seconds: float, kept: list[Any] | None = None) -> Callable:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                clock.now += seconds
                found = function(*args, **kwargs)
                if kept is not None:
                    kept.append(found)
                return found

            return wrapped

        for place in (loop, engine):
            patch.setattr(place, "time", fake)
        if name == "rl2":
            patch.setattr(rl2, "collect_trials", timed(rl2.collect_trials, PER_ROLLOUT, self.collected))
            patch.setattr(rl2, "value_units", timed(rl2.value_units, PER_UPDATE))
        else:
            collect = timed(sampler.Sampler.collect, PER_ROLLOUT, self.collected)
            patch.setattr(sampler.Sampler, "collect", collect)
            patch.setattr(engine, "advance", timed(engine.advance, PER_UPDATE))
        self.products: list[int] = []
        solve = trust_region.conjugate_gradient

        def counted(product: Callable, *args: Any) -> Any:
            self.products.append(0)

            def one(v: Any) -> Any:
                self.products[-1] += 1
                return product(v)

            return solve(one, *args)

        patch.setattr(trust_region, "conjugate_gradient", counted)
        step = self.learner._step

        def noted(state: Any) -> Any:
            self.states.append(state)
            new = step(state)
            self.states.append(new[0])
            return new

        patch.setattr(self.learner, "_step", noted)
        self.learner.learn(2, run_dir=path, eval_every=1, eval_tasks=2)
        self.rows = RunDirectory(path).metrics()


def common(run: Run, stages: int) -> dict[str, float]:
    """What every learner logs of the second iteration; one collection for each of `stages`, the evaluation's last."""
    own, later = run.collected[-2 * stages : -stages], run.collected[-stages:]
    first = run.collected[:stages]
    steps = [sum(int(r.mask.sum()) for r in part) for part in (first, own)]
    seconds = PER_ROLLOUT * stages + PER_UPDATE
    out: dict[str, float] = {
        "iteration": 2, "env_steps": sum(steps), "time/rollout": PER_ROLLOUT * stages, "time/update": PER_UPDATE,
        "time/steps_per_second": steps[1] / seconds,
    }  # fmt: skip
    for k, (r, test) in enumerate(zip(own, later, strict=True)):
        out |= {f"return/step_{k}": earned(r).mean(), f"eval/step_{k}": earned(test).mean()}
        out |= {f"success/step_{k}": successes(r), f"eval/success_{k}": successes(test)}
    out["eval/score"] = out[f"eval/step_{stages - 1}"]
    out["policy/entropy"] = over_states(entropies(own[-1].dist), own[-1].mask.numpy())
    return out | spread(own[-1].dist)


def spread(dist: Any) -> dict[str, float]:
    """Of a Gaussian's standard deviations, none of which comes near its floor here (tests/inner/test_std_floor.py)."""
    if hasattr(dist, "logits"):
        return {}
    std = np.exp(dist.log_std.double().numpy())
    assert std.min() > 0.01
    return {"policy/std": std.mean(), "policy/std_on_floor": 0.0}


def successes(r: Rollout) -> float:
    """Share of episodes that got beyond x = 0.6, told by what they observed and did."""
    mask, won = r.mask.numpy(), []
    for k in range(len(mask)):
        for e in range(mask.shape[2]):
            last = int(mask[k, :, e].sum()) - 1
            x, act = r.obs[k, last, e, 0].item(), r.act[k, last, e]
            won.append(x + (act[0].clamp(-1, 1).item() * 0.5 if act.dim() else [0.5, -0.4, 0.0][int(act)]) > 0.6)
    return float(np.mean(won))


def learned(new: Params) -> dict[str, float]:
    """Of the learned inner loop, after the iteration."""
    out: dict[str, float] = {}
    values = {name: value.double().numpy() for name, value in new.items()}
    if factors := [v.ravel() for n, v in values.items() if n == "lr" or n.startswith(("lr/", "lr_step/"))]:
        out["inner/lr_factor"] = float(np.concatenate(factors).mean())
    if masks := [v.ravel() >= 0 for n, v in values.items() if n.startswith("mask/")]:
        out["inner/mask_open"] = float(np.concatenate(masks).mean())
    if "noise" in values:
        total = sum(change for change in values["noise"])  # three steps, two actions
        out["inner/noise"] = float(np.prod(np.exp(total)) ** (1 / len(total)))
    for name in ("discount", "lambda"):
        if name in values:
            out[f"inner/{name}"] = 1 / (1 + math.exp(-float(values[name])))
    return out


def outer(run: Run, kind: dict[str, Any], adam: bool) -> dict[str, float]:
    """Loss, gradient and KL at the parameters before and after, by the slow objective."""
    config, old, new = run.learner.config, run.states[2], run.states[3]
    stages = config.inner_steps + 1
    data = double([Batch.of(config, r) for r in run.collected[-2 * stages : -stages]])
    fixed = {n: v for n, v in doubled(old.params).items() if config.adapts == "context" and n == "context"}
    before, after = ({n: v for n, v in doubled(s.meta).items() if n not in fixed} for s in (old, new))

    def slow(meta: Params) -> SlowObjective:
        """Its constants, like the gradients of first-order MAML, are those of `meta`."""
        return Noisy(config, run.learner.policy, data, fixed | meta, iteration=1, **kind)

    here, there = slow(before), slow(after)
    gradient = slopes(lambda meta: here(fixed | meta), before)
    out = {
        "outer/loss_before": float(here(fixed | before)), "outer/loss_after": float(there(fixed | after)),
        "outer/kl": divergence(there, fixed | after), "outer/gradient_norm": float(np.sqrt((gradient**2).sum())),
    }  # fmt: skip
    if adam:
        half = 0.5 * (1 + math.cos(math.pi / config.anneal_over)) if config.anneal_over else 1.0
        return out | {"outer/lr": config.outer_lr * (config.anneal_to + (1 - config.anneal_to) * half)}
    # A full step has a KL of max_kl in its second order; how much shorter this one is tells the backtracks.
    near = {n: v + 1e-3 * (after[n] - v) for n, v in before.items()}
    share = math.sqrt(divergence(here, fixed | near) / 1e-6 / config.max_kl)
    out["outer/cg_products"] = run.products[-1]
    return out | {"outer/accepted": 1, "outer/backtracks": round(math.log(share) / math.log(config.backtrack))}


BASE = {"n_tasks": K, "episodes": E, "inner_steps": 2, "hidden": (2,), "inner_lr": 0.3, "output_gain": 0.5}
ADAM = {"outer_lr": 0.03, "anneal_over": 4}

Case = tuple[str, bool, dict[str, Any], dict[str, Any]]

CASES: list[Case] = [
    ("maml_trpo", True, {"damping": 1e-5, "max_kl": 2.0, "learned_lr": "per_layer_and_step"}, {}),
    ("maml_trpo", False, {"damping": 1e-5, "max_kl": 0.05, "adapt_std": True}, {}),
    ("maml_ppo", False, ADAM | {"epochs": 3, "clip": 0.05, "learned_noise": True, "inner_steps": 3}, {"clip": 0.05}),
    ("maml_ppo", True, ADAM | {"epochs": 3, "learned_discount": True, "learned_lambda": True,
                               "gamma": 0.9, "gae_lambda": 0.8}, {"clip": 0.3}),
    ("maml_vpg", True, {"learned_mask": True, "learned_outer_lr": 0.4, "max_grad_norm": 0.05}, {"ratio": False}),
    ("promp", True, ADAM | {"epochs": 3, "clip": 0.05, "inner_kl": 0.5}, {"clip": 0.05, "inner_kl": 0.5}),
    ("fomaml", True, {"damping": 1e-5, "max_kl": 0.5}, {}),
    ("meta_sgd", False, {"damping": 1e-5, "max_kl": 0.2}, {}),
    ("maml_plus_plus", True, ADAM | {"epochs": 2, "first_order_until": 0}, {"clip": 0.3}),
    ("anil", True, {"damping": 1e-5, "max_kl": 0.1}, {}),
    ("cavia", True, {"context": 2, "damping": 1e-5, "max_kl": 0.1}, {}),
    ("e_maml", True, {"exploration": 0.5, "damping": 1e-5, "max_kl": 0.1}, {}),
    ("reptile", True, {"anneal_over": 4}, {}),
]  # fmt: skip
"""Algorithm, whether actions are discrete (their entropies differ from state to state), settings, its loss's kind."""


def by_hand(run: Run, kind: dict[str, Any]) -> dict[str, float]:
    """The second row of the log."""
    config, old, new = run.learner.config, run.states[2], run.states[3]
    out = common(run, config.inner_steps + 1) | learned(new.learned)
    if run.learner.algorithm != "reptile":
        return out | outer(run, kind, hasattr(config, "outer_lr"))
    moved = [(new.params[n].double() - v.double()).numpy().ravel() for n, v in old.params.items()]
    half = 0.5 * (1 + math.cos(math.pi / 4))
    lr = config.outer_lr * (0.01 + 0.99 * half)
    return out | {"outer/step_norm": float(np.sqrt((np.concatenate(moved) ** 2).sum())), "outer/lr": lr}


def compare(name: str, run: Run, want: dict[str, float]) -> None:
    row = {key: value for key, value in run.rows[1].items() if value is not None}
    assert row.keys() == want.keys(), f"{name}: without a value by hand, or not logged: {row.keys() ^ want.keys()}"
    for key, value in want.items():
        assert row[key] == pytest.approx(value, rel=2e-3, abs=2e-6), key
    assert all(row[key] != run.rows[0][key] for key in ("env_steps", "return/step_0", "return/step_1"))


def test_a_mask_of_zero_is_open():
    state = State({}, learned={"mask/w0": torch.tensor([[0.0, -0.1], [0.5, -2.0]]), "mask/b0": -torch.ones(4)})
    assert learned_statistics(state)["inner/mask_open"] == 2 / 8


@pytest.mark.parametrize(("name", "discrete", "settings", "kind"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_numbers_of_an_iteration_by_hand(name, discrete, settings, kind, tmp_path, monkeypatch):
    run = Run(name, discrete, BASE | settings, tmp_path, monkeypatch)
    lengths = run.collected[0].mask.sum(1)
    assert len(set(lengths.flatten().tolist())) > 2, "episodes have different lengths"
    compare(name, run, by_hand(run, kind))


# ---------------------------------------------------------------------------------------------------------------------
# RL2


def advantages(trial: dict[str, np.ndarray], gamma: float, lam: float) -> np.ndarray:
    """Generalised advantages of one trial's valid steps, from the last to the first."""
    out, after, following = np.zeros(len(trial["rew"])), 0.0, 0.0
    for t in reversed(range(len(out))):
        after = trial["rew"][t] + gamma * following - trial["value"][t] + gamma * lam * after
        out[t], following = after, trial["value"][t]
    return out


class Trials:
    """The second iteration's trials without the steps that do not count, and what PPO makes of them."""

    def __init__(self, run: Run):
        config, found = run.learner.config, run.collected[-2]
        self.run, self.config, old = run, config, run.states[2]
        units, self.units = (x.value_units.numpy() for x in (old, run.states[3]))
        self.each: list[dict[str, Any]] = []
        for k in range(K):
            for e in range(config.trials):
                valid = found.mask[k, :, e] > 0
                one = {name: getattr(found, name)[k, valid, e].double() for name in ("x", "rew", "value", "log_prob")}
                one = {name: value.numpy() for name, value in one.items()} | {"act": found.act[k, valid, e]}
                one["value"] = units[0] + units[1] * one["value"]
                one["raw"] = advantages(one, config.gamma, config.gae_lambda)
                self.each.append(one)
        raw = np.concatenate([one["raw"] for one in self.each])
        self.mean, self.std = raw.mean(), raw.std()

    def explained(self) -> float:
        error = np.concatenate([one["raw"] for one in self.each])
        target = np.concatenate([one["raw"] + one["value"] for one in self.each])
        return float(1 - error.var() / target.var())

    def losses(self, params: Params, trials: list[int]) -> dict[str, float]:
        """Of one step of Adam, at the parameters before it: means over the valid steps of its trials."""
        policy, rows = self.run.learner.policy, []
        for one in (self.each[b] for b in trials):
            hidden = torch.zeros(policy.hidden, dtype=torch.float64)
            for t in range(len(one["rew"])):
                hidden = policy.step(params, torch.as_tensor(one["x"][t]), hidden)
                dist, value = policy.heads(params, hidden)
                logits = dist.logits.numpy() - np.log(np.exp(dist.logits.numpy()).sum())
                log_ratio = logits[int(one["act"][t])] - one["log_prob"][t]
                ratio, a = math.exp(log_ratio), (one["raw"][t] - self.mean) / self.std
                clip = self.config.clip
                target = (one["raw"][t] + one["value"][t] - self.units[0]) / self.units[1]
                rows.append((-min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a), (float(value) - target) ** 2 / 2,
                             ratio - 1 - log_ratio, float(abs(ratio - 1) > clip)))  # fmt: skip
        return dict(zip(("policy_loss", "value_loss", "kl", "clip_fraction"), np.mean(rows, 0), strict=True))


RL2 = {"n_tasks": K, "trials": 2, "trial_episodes": 3, "hidden": 5, "epochs": 3, "minibatches": 2, "outer_lr": 0.03,
       "anneal_over": 4, "output_gain": 1.0, "clip": 0.1, "max_grad_norm": 0.2}  # fmt: skip


def test_the_numbers_of_an_iteration_of_rl2_by_hand(tmp_path, monkeypatch):
    steps: list[tuple[Params, Tensor]] = []
    gradients: list[Params] = []
    minibatches, step, gradient = rl2.minibatches, rl2.adam_step, rl2.gradient
    orders: list[list[int]] = []

    def noted_minibatches(*args: Any) -> Any:
        found = minibatches(*args)
        orders.extend(part.tolist() for part in found)
        return found

    def noted_step(params: Params, *args: Any) -> Any:
        steps.append((params, args[-1]))
        return step(params, *args)

    def noted_gradient(*args: Any) -> Any:
        found = gradient(*args)
        gradients.append(found[0])
        return found

    for name, function in (("minibatches", noted_minibatches), ("adam_step", noted_step), ("gradient", noted_gradient)):
        monkeypatch.setattr(rl2, name, function)
    run = Run("rl2", True, RL2, tmp_path, monkeypatch)
    found, test = run.collected[-2:]
    out: dict[str, float] = {
        "iteration": 2, "env_steps": sum(int(x.mask.sum()) for x in (run.collected[0], found)),
        "time/rollout": PER_ROLLOUT, "time/update": PER_UPDATE,
        "time/steps_per_second": int(found.mask.sum()) / (PER_ROLLOUT + PER_UPDATE),
    }  # fmt: skip
    for n, (r, t) in enumerate(zip(found.rollouts, test.rollouts, strict=True)):
        out |= {f"return/step_{n}": earned(r).mean(), f"eval/step_{n}": earned(t).mean()}
        out |= {f"success/step_{n}": successes(r), f"eval/success_{n}": successes(t)}
    out["return/trial"] = sum(out[f"return/step_{n}"] for n in range(3))
    out["eval/score"] = sum(out[f"eval/step_{n}"] for n in range(3))
    out["policy/entropy"] = float(entropies(found.dist)[found.mask.numpy() > 0].mean())
    out |= spread(found.dist)

    trials, n = Trials(run), RL2["epochs"] * RL2["minibatches"]
    each = [trials.losses(doubled(p), order) for (p, _), order in zip(steps[-n:], orders[-n:], strict=True)]
    out |= {f"outer/{name}": float(np.mean([one[name] for one in each])) for name in each[0]}
    norms = [math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values())) for grads in gradients[-n:]]
    assert max(norms) > 0.2, "some are scaled down"
    out |= {"outer/gradient_norm": float(np.mean(norms)), "outer/explained_variance": trials.explained()}
    out["outer/lr"] = 0.03 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert steps[-1][1] == pytest.approx(out["outer/lr"])
    assert 0 < out["outer/clip_fraction"] < 1
    compare("rl2", run, out)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def generalised(key: str) -> str:
    return re.sub(r"_\d+$", "_k", key)


def documented() -> set[str]:
    """The names in the tables of docs/logging.md."""
    text = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall("`(.+?)`", row)}


def logged(name: str, discrete: bool, settings: dict[str, Any], path: Path) -> set[str]:
    learner = MetaLearner(name, Uneven(discrete), device="cpu", workers=0, **settings)
    learner.learn(1, run_dir=path, eval_tasks=2)
    return {generalised(key) for key in RunDirectory(path).metrics()[0]}


def test_the_page_has_what_is_computed_by_hand_here_and_nothing_else(tmp_path):
    """Each of these tests wants a value by hand for everything that is logged; together they log all of the page."""
    found = logged("rl2", True, RL2, tmp_path / "rl2")
    for i, (name, discrete, settings, _) in enumerate(CASES):
        found |= logged(name, discrete, BASE | settings, tmp_path / str(i))
    assert found == documented()


def test_every_algorithm_has_a_case():
    assert {name for name, *_ in CASES} | {"rl2"} == set(algorithms.ALGORITHMS)
