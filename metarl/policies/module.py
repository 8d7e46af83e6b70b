"""Any `nn.Module` as an adaptable policy."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metarl.formulas.distributions import Distribution
from metarl.params import Params
from metarl.policies.base import check_std, floored_log_std, log_std_init
from metarl.policies.spaces import Spaces, distribution_of
from metarl.policies.stacked_module import StackedModule


@dataclass(frozen=True)
class ModulePolicy:
    """Any `nn.Module` that maps [N, O] to [N, A] (action means in policy units, or logits), made adaptable.

    Every task has its own copy of the module's parameters; see `metarl.policies.stacked_module.StackedModule`.

    Raises:
        ValueError: the module does not map [N, O] to [N, A].
    """

    spaces: Spaces
    module: nn.Module
    init_std: float = 1.0
    min_std: float = 1e-3
    stacked: StackedModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_std(self.init_std, self.min_std)
        stacked = StackedModule(self.module, (self.spaces.obs_dim,), self.spaces.act_dim)
        object.__setattr__(self, "stacked", stacked)
        object.__setattr__(self, "module", stacked.module)

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def memory(self) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        """Its standard deviations. The module is code, which is not stored in files and has to be passed when
        loading."""
        return {"init_std": self.init_std, "min_std": self.min_std}

    def settings(self) -> dict[str, Any]:
        """The algorithm settings that create the same policy around the module."""
        return {"min_std": self.min_std}

    @property
    def batched(self) -> bool:
        """Whether the tasks run under `torch.func.vmap`."""
        return self.stacked.batched

    def init(self, generator: torch.Generator) -> Params:
        """The module's current parameters; `generator` is not used."""
        params = self.stacked.init()
        return params if self.spaces.discrete else params | {"log_std": log_std_init(self.spaces, self.init_std)}

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        x = obs.reshape(obs.shape[0], -1, obs.shape[-1])
        out = self.stacked.forward(params, x)
        log_std = floored_log_std(params, self.min_std)
        return distribution_of(out.reshape(*obs.shape[:-1], out.shape[-1]), log_std, self.spaces.sizes)
