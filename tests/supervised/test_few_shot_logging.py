"""Every number that few-shot training logs, by hand, in the second iteration (docs/algorithms/supervised.md)."""

import copy
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from supervised_twins import blobs, gradient, small
from torch import Tensor
from torch.nn import functional

import metarl
from metarl.params import Params
from metarl.supervised import FewShotLearner, Sinusoid, maml
from metarl.training.train import RunDirectory

PAGE = Path(metarl.__file__).parents[1] / "docs" / "algorithms" / "supervised.md"
SETTINGS: dict[str, dict[str, Any]] = {
    "steps": {"learned_lr": "per_layer_and_step", "inner_steps": 2, "multi_step_until": 8, "max_grad_norm": 0.01},
    "mask": {"learned_mask": True, "learned_outer_lr": 0.6, "inner_steps": 2},
    "reptile": {"outer": "reptile", "inner_steps": 2},
    "serial": {"outer": "reptile_serial", "inner_steps": 2},
}


def outputs(params: Params, x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ params["w0"] + params["b0"]) @ params["w1"] + params["b1"]


def loss_of(classes: bool, params: Params, x: Tensor, y: Tensor) -> Tensor:
    return (functional.cross_entropy if classes else functional.mse_loss)(outputs(params, x), y)


def step(classes: bool, params: Params, x: Tensor, y: Tensor, meta: Params, i: int, lr: float) -> Params:
    """An inner step, differentiable twice."""
    grads = torch.autograd.grad(loss_of(classes, params, x, y), list(params.values()), create_graph=True)
    out = {}
    for (name, value), g in zip(params.items(), grads, strict=True):
        factor = meta[f"lr_step/{name}"][i] if f"lr_step/{name}" in meta else 1.0
        if f"mask/{name}" in meta:
            mask = meta[f"mask/{name}"]
            factor = (mask >= 0).double() + mask - mask.detach()  # differentiated as if it were the mask itself
        out[name] = value - lr * factor * g
    return out


class Run:
    """Two iterations and what went in and came out."""

    def __init__(self, family: Any, settings: dict[str, Any], path: Path, patch: pytest.MonkeyPatch):
        self.classes, clock = family.loss == "cross_entropy", SimpleNamespace(now=0.0)
        self.config = small(outer_lr=0.05, anneal_over=4, **settings)
        self.drawn: list[Any] = []
        self.generators: list[np.random.Generator] = []  # as they are after the draw
        self.states: list[Any] = []
        sample, iteration = type(family).sample, maml.iteration

        def sampled(own: Any, *args: Any) -> Any:
            clock.now += 2.0
            self.drawn.append(sample(own, *args))
            self.generators.append(copy.deepcopy(args[1]))
            return self.drawn[-1]

        def iterated(*args: Any) -> Any:
            new = iteration(*args)
            self.states.append((args[3], new[0]))
            return new

        threads = maml.threads_for

        def worked(*args: Any) -> Any:
            clock.now += 5.0
            return threads(*args)

        learner = FewShotLearner(family, device="cpu", **vars(self.config))
        patch.setattr(type(family), "sample", sampled)
        patch.setattr(maml, "iteration", iterated)
        patch.setattr(maml, "threads_for", worked)
        patch.setattr(maml, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        learner.learn(2, run_dir=path, eval_every=1, eval_tasks=3)
        self.row = {key: value for key, value in RunDirectory(path).metrics()[1].items() if value is not None}

    def task(self, meta: Params, sets: Any, k: int) -> list[Params]:
        """One task's parameters after 0, 1, 2 steps on its support set."""
        params = [{n: v for n, v in meta.items() if "/" not in n}]
        for i in range(2):
            x, y = sets.x_support[k].double(), target(sets.y_support[k])
            params.append(step(self.classes, params[-1], x, y, meta, i, self.config.inner_lr))
        return params

    def query(self, params: Params, sets: Any, k: int) -> Tensor:
        return loss_of(self.classes, params, sets.x_query[k].double(), target(sets.y_query[k]))

    def objective(self, meta: Params) -> Tensor:
        """In the second iteration: the loss after the first step weighs (1 - 1/8) / 2 with a multi-step loss."""
        early = (1 - 1 / 8) / 2 if self.config.multi_step_until else 0.0
        sets, out = self.drawn[-2], []
        for k in range(3):
            _, first, last = self.task(meta, sets, k)
            out.append(early * self.query(first, sets, k) + (1 - early) * self.query(last, sets, k))
        return torch.stack(out).mean()

    def reptile(self, lr: float) -> float:
        """The mean query loss at the end of the inner loops; serially, each starts where the task before led to."""
        sets, start = self.drawn[-2], {n: v.double() for n, v in self.states[1][0].params.items()}
        x, y = (torch.cat([getattr(sets, f"{s}_{part}") for part in ("support", "query")], 1) for s in "xy")
        n, size = x.shape[1], sets.x_support.shape[1]
        orders = self.generators[-2].permuted(np.tile(np.arange(n), (3, 1)), axis=1)
        out = []
        for k in range(3):
            params = {name: value.detach().requires_grad_() for name, value in start.items()}
            for i in range(2):
                now = [orders[k][j % n] for j in range(size * i, size * (i + 1))]
                params = step(self.classes, params, x[k][now].double(), target(y[k][now]), {}, i, self.config.inner_lr)
            out.append(float(self.query(params, sets, k).detach()))
            if self.config.outer == "reptile_serial":
                start = {name: (value + lr * (params[name] - value)).detach() for name, value in start.items()}
        return float(np.mean(out))


def target(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def evaluated(run: Run) -> dict[str, float]:
    """On the tasks that were drawn last, with the new state."""
    meta = {n: v.double() for n, v in (run.states[1][1].params | run.states[1][1].learned).items()}
    sets, out = run.drawn[-1], dict[str, float]()
    meta = {n: v.detach().requires_grad_() for n, v in meta.items()}
    each = [run.task(meta, sets, k) for k in range(3)]
    for i in range(3):
        out[f"eval/step_{i}"] = float(np.mean([run.query(each[k][i], sets, k).item() for k in range(3)]))
        if run.classes:
            right = [outputs(each[k][i], sets.x_query[k].double()).argmax(-1) == sets.y_query[k] for k in range(3)]
            out[f"eval/accuracy_{i}"] = float(torch.stack(right).double().mean())
    return out | {"eval/score": out["eval/accuracy_2"] if run.classes else -out["eval/step_2"]}


@pytest.mark.parametrize("family", ["sinusoid", "blobs"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_numbers_of_an_iteration_by_hand(kind, family, tmp_path, monkeypatch):
    made: Any = Sinusoid() if family == "sinusoid" else blobs()
    run = Run(made, SETTINGS[kind], tmp_path, monkeypatch)
    old, new = run.states[1]
    want = {"iteration": 2, "time/sampling": 2.0, "time/update": 5.0} | evaluated(run)
    want["outer/lr"] = 0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)
    if run.config.outer == "adam":
        meta = {n: v.double() for n, v in (old.params | old.learned).items()}
        slopes = gradient(run.objective, meta)
        want["loss/query"] = run.objective({n: v.detach().requires_grad_() for n, v in meta.items()}).item()
        want["outer/gradient_norm"] = math.sqrt(sum(float((g**2).sum()) for g in slopes.values()))
        numbers = np.concatenate([v.numpy().ravel() for v in new.learned.values()])
        name, value = ("mask_open", (numbers >= 0).mean()) if kind == "mask" else ("lr_factor", numbers.mean())
        want[f"inner/{name}"] = float(value)
        assert family == "blobs" or abs(value - 1) > 1e-3, "it has moved"
    else:
        moved = np.concatenate([(new.params[n] - v).double().numpy().ravel() for n, v in old.params.items()])
        want["outer/step_norm"] = float(np.sqrt((moved**2).sum()))
        want["loss/query"] = run.reptile(want["outer/lr"])
    assert run.row.keys() == want.keys()
    for key, value in want.items():
        assert run.row[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def test_the_page_has_what_is_computed_by_hand_here_and_nothing_else(tmp_path, monkeypatch):
    found = set()
    for i, settings in enumerate(SETTINGS.values()):
        with monkeypatch.context() as patch:
            found |= {re.sub(r"_\d+$", "_k", key) for key in Run(blobs(), settings, tmp_path / str(i), patch).row}
    table = PAGE.read_text().partition("| name | meaning |")[2].partition("\n\n")[0]
    assert found == {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.+?)`", row)
    }
