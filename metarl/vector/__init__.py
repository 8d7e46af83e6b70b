"""K*E environments at once, each backend a `gymnasium.vector.VectorEnv`: task-major, never reset by itself."""

import torch
from gymnasium.vector import VectorEnv

from metarl.tasks import TaskFamily
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.tensor import TensorFamily, TensorVectorEnv

__all__ = ["LoopVectorEnv", "TensorFamily", "TensorVectorEnv", "make_vector"]


def make_vector(family: TaskFamily, n_tasks: int, episodes: int, device: torch.device | str = "cpu") -> VectorEnv:
    """The fastest vector environment that `family` offers; one by one where it offers none.

    Raises:
        ValueError: `n_tasks` or `episodes` is below 1.
    """
    for name, value in (("n_tasks", n_tasks), ("episodes", episodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    own = getattr(family, "make_vector", None)
    return LoopVectorEnv(family, n_tasks, episodes) if own is None else own(n_tasks, episodes, device)
