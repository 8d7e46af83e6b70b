"""A value network as baseline: the expected return from an observation and time, one network for every stage.

Fitted to a task's own episodes, a baseline with many features takes up their noise; one for all tasks, carried from
one meta-iteration to the next, has seen other episodes. It does not know the task, so what it is fitted to, and added
to, is `usual_returns`: the returns of an episode that earns its task's mean reward in every step.

Its parameters are data like those of a policy: stage s (before inner step s, the last one after all of them) has slice
s of every tensor. S stages, I inputs, N valid steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metarl import random
from metarl.formulas import losses, optimizers
from metarl.formulas.returns import discounted_returns
from metarl.inner.advantages import usual_returns
from metarl.inner.baseline import inputs_of, num_inputs
from metarl.parallel import task_chunks, thread_map
from metarl.params import Params
from metarl.policies import normalize, stacked_mlp
from metarl.policies.base import dense_layers
from metarl.policies.spaces import Spaces
from metarl.rollout.rollout import Rollout

MINIBATCH = 4096
"""Steps that one step of Adam is taken on, at most."""
_ADAM = "adam/"
_SCALES = ("count", "mean", "m2")  # of the inputs, as `metarl.policies.normalize` has them


def start(spaces: Spaces, stages: int, hidden: Sequence[int], generator: torch.Generator) -> Params:
    """The network before any data: Xavier-uniform weights, the value 0 everywhere."""
    sizes = (num_inputs(spaces), *hidden, 1)
    each = [dense_layers(generator, sizes) for _ in range(stages)]
    net = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    net[f"w{len(hidden)}"].zero_()
    zero = torch.zeros(stages, sizes[0], dtype=torch.float64)
    scales = {"count": zero[:, 0].clone(), "mean": zero, "m2": zero.clone(), "shift": zero[:, 0].clone(),
              "unit": torch.ones(stages, dtype=torch.float64)}  # fmt: skip
    memory = {_ADAM + name: torch.zeros_like(x) for name, x in optimizers.adam_start(net).items()}
    memory[_ADAM + optimizers.COUNT] = torch.zeros(stages, dtype=torch.float64)
    return net | scales | memory


@torch.no_grad()
def values(params: Params, rollout: Rollout, gamma: float, stage: int) -> Tensor:
    """The value of every step, float64 [K, T, E]; of stages later than those of training by the last one's network."""
    own, (K, T, E) = _of_stage(params, stage), rollout.mask.shape
    chunks = task_chunks(K, T * E, rollout.mask.device)
    net, scaled = _network(own), _scaler(own)
    out = thread_map(lambda chunk: _forward(net, scaled(inputs_of(rollout[chunk]).flatten(0, 1))), chunks)
    return usual_returns(rollout, gamma) + own["shift"] + own["unit"] * torch.cat(out).reshape(K, T, E)


def fitted(
    params: Params, stages: Sequence[Sequence[Rollout]], gamma: float, lr: float, steps: int, iteration: int
) -> Params:
    """The networks after `steps` steps of Adam on the returns of one meta-iteration.

    Args:
        stages: for every stage, its rollouts.
        iteration: of training, the key of which steps come into which minibatch.
    """
    parts = [_fitted(_of_stage(params, s), rollouts, gamma, lr, steps, random.generator_seed(iteration, s))
             for s, rollouts in enumerate(stages)]  # fmt: skip
    return {name: torch.stack([part[name] for part in parts]) for name in params}


def _of_stage(params: Params, stage: int) -> Params:
    return {name: value[min(stage, len(value) - 1)] for name, value in params.items()}


def _fitted(own: Params, rollouts: Sequence[Rollout], gamma: float, lr: float, steps: int, seed: int) -> Params:
    x, y = (torch.cat(both) for both in zip(*(_data(rollout, gamma) for rollout in rollouts), strict=True))
    own = _rescaled(own | _statistics(own, x), y)
    x, target = _scaler(own)(x), ((y - own["shift"]) / own["unit"]).float()
    generator = torch.Generator().manual_seed(seed)
    net = _network(own)
    memory = {name.removeprefix(_ADAM): value for name, value in own.items() if name.startswith(_ADAM)}
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < min(MINIBATCH, len(x)):
            order = torch.randperm(len(x), generator=generator)
        some, order = order[:MINIBATCH].to(x.device), order[MINIBATCH:]
        leaves = {name: value.detach().requires_grad_() for name, value in net.items()}
        with torch.enable_grad():
            value = _forward(leaves, x[some])
            loss = losses.squared_error(value[None, None], target[some][None, None], torch.ones_like(value)[None, None])
            grads = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
        direction, memory = optimizers.adam(grads, memory)
        net = {name: value - lr * direction[name] for name, value in net.items()}
    return own | net | {_ADAM + name: value for name, value in memory.items()}


@torch.no_grad()
def _data(rollout: Rollout, gamma: float) -> tuple[Tensor, Tensor]:
    """The inputs [N, I] and the returns, less the usual ones, float64 [N], of the valid steps."""
    valid = rollout.mask.flatten() > 0
    y = discounted_returns(rollout.rew.double(), gamma) - usual_returns(rollout, gamma)
    return inputs_of(rollout).flatten(0, 1)[valid], y.flatten()[valid]


def _statistics(own: Params, x: Tensor) -> Params:
    """Those of the inputs with x [N, I] added."""
    stats = {name: own[name] for name in _SCALES}
    return normalize.update(stats, x[None, :, None], torch.ones_like(x[None, :, None, 0]))


def _rescaled(own: Params, y: Tensor) -> Params:
    """The network in units of the mean and standard deviation of y, its values as they were (van Hasselt et al. 2016,
    https://arxiv.org/abs/1602.07714, proposition 1)."""
    shift, unit = y.mean(), y.std(correction=0)
    unit = torch.where(unit > 0, unit, own["unit"])
    last = len(_network(own)) // 2 - 1
    w, b = own[f"w{last}"], own[f"b{last}"]
    factor = own["unit"] / unit
    return own | {"shift": shift, "unit": unit, f"w{last}": (w.double() * factor).to(w.dtype),
                  f"b{last}": (b.double() * factor + (own["shift"] - shift) / unit).to(b.dtype)}  # fmt: skip


def _network(own: Params) -> Params:
    """Weights and biases alone."""
    return {name: value for name, value in own.items() if name[0] in "wb" and name[1:].isdigit()}


def _scaler(own: Params) -> Callable[[Tensor], Tensor]:
    """Inputs [N, I] -> the same with mean 0 and standard deviation 1."""
    return normalize.scaler({name: own[name] for name in _SCALES}, own["mean"].device)


def _forward(net: Params, x: Tensor) -> Tensor:
    """x [N, I], scaled -> [N], in the network's units."""
    stacked = {name: value[None] for name, value in net.items()}
    return stacked_mlp.forward(stacked, x[None], "tanh").out[0, :, 0]
