"""K*E environments at once, each backend a `gymnasium.vector.VectorEnv`: task-major, never reset by itself."""

import torch
from gymnasium.vector import VectorEnv

from metarl.tasks import TaskFamily
from metarl.torch_defaults import torch_defaults
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError
from metarl.vector.tensor import TensorFamily, TensorVectorEnv

__all__ = [
    "AutomaticVectorEnv", "LoopVectorEnv", "ProcessVectorEnv", "TensorFamily", "TensorVectorEnv", "WorkerError",
    "check_workers", "make_vector",
]  # fmt: skip


@torch_defaults
def make_vector(
    family: TaskFamily, n_tasks: int, episodes: int, device: torch.device | str = "cpu", workers: int | None = None
) -> VectorEnv:
    """K*E environments of `family` as one; results do not depend on the choice among these backends.

    Args:
        workers: None takes what the family offers itself (`make_vector`), else environments one by one, which move
            into worker processes where that pays (see `AutomaticVectorEnv` for the rule); 0 is one by one; more is
            so many worker processes. 0 and more hold for families with a backend of their own too.

    Raises:
        ValueError: `n_tasks` or `episodes` is below 1, `workers` below 0, or a family that no process can take.
    """
    for name, value in (("n_tasks", n_tasks), ("episodes", episodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_workers(workers)
    if workers is None:
        own = getattr(family, "make_vector", None)
        return AutomaticVectorEnv(family, n_tasks, episodes) if own is None else own(n_tasks, episodes, device)
    if workers == 0:
        return LoopVectorEnv(family, n_tasks, episodes)
    return ProcessVectorEnv(family, n_tasks, episodes, workers)


def check_workers(workers: int | None) -> None:
    """Raises ValueError for a number of processes that is none (see `make_vector`)."""
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ValueError(f"workers must be a whole number and not negative, or None to choose, got {workers!r}")
