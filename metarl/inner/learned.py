"""What the outer loop learns of the inner step: factors of step sizes, masks, the change of the noise."""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from metarl.inner.step import StepSize
from metarl.params import Params

LEARNED_LR = ("none", "scalar", "per_layer_and_step", "per_parameter")


LearnedLr = Literal["none", "scalar", "per_layer_and_step", "per_parameter"]


_PREFIXES = ("lr/", "lr_step/", "mask/")


NOISE = "noise"
"""The name of the changes of a Gaussian's log standard deviation after each inner step, [steps, A]."""


def learned_sizes(kind: LearnedLr, params: Params, moving: Collection[str], steps: int, mask: bool = False) -> Params:
    """The initial values of what is learned about the inner steps.

    Step sizes are learned as factors on a given size, all 1 at first, so that they mean the same at any size:
    "scalar" has one, `lr`; "per_parameter" one for every number (Meta-SGD, Li et al. 2017,
    https://arxiv.org/abs/1707.09835, eq. 2), `lr/NAME` like the parameter; "per_layer_and_step" one for every tensor
    and step (MAML++, Antoniou et al. 2019, https://arxiv.org/abs/1810.09502, section 4), `lr_step/NAME` [steps].

    `mask` adds `mask/NAME` like the parameter, all 1/2 at first: a number adapts while its entry is at least zero
    (sparse MAML, von Oswald et al. 2021, https://arxiv.org/abs/2110.14402, section 3).
    """
    own = {name: value for name, value in params.items() if name in moving}
    learned: Params = {}
    if kind == "scalar":
        learned["lr"] = next(iter(own.values())).new_ones(())
    elif kind == "per_layer_and_step":
        learned |= {f"lr_step/{name}": value.new_ones(max(1, steps)) for name, value in own.items()}
    elif kind == "per_parameter":
        learned |= {f"lr/{name}": torch.ones_like(value) for name, value in own.items()}
    if mask:
        learned |= {f"mask/{name}": torch.full_like(value, 0.5) for name, value in own.items()}
    return learned


def step_size(learned: Params, lr: float, step: int, moving: Collection[str]) -> StepSize:
    """The size of inner step number `step`: `lr` times what training made of `learned_sizes`.

    Steps beyond the last that has factors of its own (at test time) take that one's.
    """
    if not any(name == "lr" or name.startswith(_PREFIXES) for name in learned):
        return lr
    sizes: dict[str, Tensor] = {}
    for name in moving:
        size = torch.as_tensor(lr, dtype=torch.float64)  # one number: what it multiplies keeps its type
        if "lr" in learned:
            size = lr * learned["lr"]
        elif f"lr/{name}" in learned:
            size = lr * learned[f"lr/{name}"]
        elif f"lr_step/{name}" in learned:
            factors = learned[f"lr_step/{name}"]
            size = lr * factors[min(step, len(factors) - 1)]
        mask = learned.get(f"mask/{name}")
        sizes[name] = size if mask is None else size * open_mask(mask)
    return sizes


def noise_change(learned: Params, step: int) -> Tensor | None:
    """What is learned to be added to the log standard deviation after inner step number `step`, [A]; None: nothing, as
    after all steps beyond the last one of training."""
    changes = learned.get(NOISE)
    return None if changes is None or step >= len(changes) else changes[step]


def open_mask(mask: Tensor) -> Tensor:
    """1 where `mask` is at least zero, else 0; its derivative is taken to be 1 (straight-through), as if it were
    linear."""
    return (mask >= 0).to(mask.dtype) + (mask - mask.detach())


def split(meta: Params) -> tuple[Params, Params]:
    """Meta-parameters -> those of the policy (or of any network), and what is learned about the inner loop."""
    learned = {n: v for n, v in meta.items() if n in ("lr", "discount", "lambda", NOISE) or n.startswith(_PREFIXES)}
    return {name: value for name, value in meta.items() if name not in learned}, learned
