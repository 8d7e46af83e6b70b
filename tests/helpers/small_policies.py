"""Spaces, numbers of tasks and observations for tests of policies."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from metarl.policies.spaces import Spaces

OBS = Box(-np.inf, np.inf, (3,), np.float32)
GAUSSIAN = Spaces(OBS, Box(-1, 1, (2,), np.float32))
CATEGORICAL = Spaces(OBS, Discrete(4))
K = 3
both = pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])


def observations(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(5))
