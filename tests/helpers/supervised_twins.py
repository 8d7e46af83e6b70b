"""Slow, obvious forms of few-shot learning, task by task, for the tests of `metarl.supervised`; small families."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metarl.params import Params
from metarl.supervised import FewShotClasses, FewShotLearner, Sets, Sinusoid, maml
from metarl.supervised.maml import Config
from metarl.supervised.networks import MLPNetwork

SMALL: dict[str, Any] = {"n_tasks": 3, "shots": 4, "queries": 5, "hidden": (4,), "activation": "tanh", "inner_lr": 0.3}
NETWORK = MLPNetwork((1,), 1, (4,), "tanh")
FAMILY = Sinusoid()


def small(**settings: Any) -> Config:
    return Config(**(SMALL | settings))


def double(sets: Sets) -> Sets:
    parts = (sets.x_support, sets.y_support, sets.x_query, sets.y_query)
    return Sets(*(part.double() if part.is_floating_point() else part for part in parts))


def sinusoids(n: int = 3, shots: int = 4, queries: int = 5, seed: int = 0) -> Sets:
    """In float64, with small inputs, where tanh units are not saturated."""
    family = Sinusoid(x_range=(-1.0, 1.0), amplitude=(0.5, 1.0))
    return double(family.sample(n, np.random.default_rng(seed), "train", shots, queries))


def blobs(classes: int = 8, each: int = 30, ways: int = 3, seed: int = 0, **settings: Any) -> FewShotClasses:
    """Classes that are clouds around random places in the plane; the last half is held out."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(classes, 1, 2)) * 3 + 0.3 * rng.normal(size=(classes, each, 2))
    y = np.repeat(np.arange(classes), each)
    labels = tuple(range(classes))
    return FewShotClasses(
        "blobs", x.reshape(-1, 2), y, labels[: classes // 2], labels[classes // 2 :], ways, **settings
    )


def start(network: Any = NETWORK, seed: int = 0) -> Params:
    """Parameters in float64, biases too away from zero."""
    params = network.init(torch.Generator().manual_seed(seed))
    noise = torch.Generator().manual_seed(seed + 1)
    return {n: v.double() + 0.3 * torch.randn(v.shape, generator=noise).double() for n, v in params.items()}


def plain_outputs(params: Params, x: Tensor) -> Tensor:
    """One task's outputs, params without a task axis."""
    return functional.linear(torch.tanh(functional.linear(x, params["w0"].T, params["b0"])), params["w1"].T,
                             params["b1"])  # fmt: skip


def plain_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(plain_outputs(params, x), y)


def plain_step(params: Params, x: Tensor, y: Tensor, lr: float, names: Any = None) -> Params:
    """One task's parameters after a gradient step, differentiable twice."""
    names = list(params) if names is None else names
    grads = torch.autograd.grad(plain_loss(params, x, y), [params[n] for n in names], create_graph=True)
    return params | {n: params[n] - lr * g for n, g in zip(names, grads, strict=True)}


def finite_differences(function: Any, at: Params, width: float = 1e-6) -> Params:
    """The gradient of a scalar function of parameters, number by number."""
    out = {name: torch.zeros_like(value) for name, value in at.items()}
    for name, value in at.items():
        for i in range(value.numel()):
            shift = torch.zeros_like(value).flatten()
            shift[i] = width
            up, down = (function(at | {name: value + s * shift.view_as(value)}) for s in (1, -1))
            out[name].view(-1)[i] = (up - down) / (2 * width)
    return out


def gradient(function: Any, at: Params) -> Params:
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    grads = torch.autograd.grad(function(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def mean_query_loss(config: Config, sets: Sets, meta: Params, iteration: int = 0, network: Any = NETWORK,
                    family: Any = FAMILY) -> torch.Tensor:  # fmt: skip
    return maml.query_loss(config, family, network, meta, sets, iteration).mean()


def tiny(family: Any = None, **settings: Any) -> FewShotLearner:
    """A learner whose iterations take hundredths of a second."""
    return FewShotLearner(family or Sinusoid(), device="cpu", **(SMALL | settings))
