"""The choice of a vector environment for a family."""

import torch

from metarl.arguments import whole
from metarl.tasks import TaskFamily, check_is_family
from metarl.torch_defaults import torch_defaults
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.contract import TaskVectorEnv, fulfilled
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv


@torch_defaults
def make_vector(
    family: TaskFamily, n_tasks: int, episodes: int, device: torch.device | str = "cpu", workers: int | None = None
) -> TaskVectorEnv:
    """K*E environments of `family` as one `gymnasium.vector.VectorEnv`; results do not depend on the backend.

    Args:
        workers: None uses the family's own `make_vector` if it has one, and otherwise steps environments one by one,
            moving them into worker processes if that is faster (see `AutomaticVectorEnv` for the rule); 0 always steps
            one by one; a larger number uses this many worker processes. Numbers also override a family's own backend.

    Raises:
        ValueError: `n_tasks` or `episodes` is below 1, `workers` is negative, or the family cannot be sent to a
            process.
    """
    check_is_family(family)
    n_tasks, episodes = whole("n_tasks", n_tasks, 1), whole("episodes", episodes, 1)
    check_workers(workers)
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be cpu or cuda, got {device!r}") from None
    if workers is None:
        own = getattr(family, "make_vector", None)
        if own is None:
            return AutomaticVectorEnv(family, n_tasks, episodes)
        return fulfilled(own(n_tasks, episodes, device), family, n_tasks, episodes)
    if workers == 0:
        return LoopVectorEnv(family, n_tasks, episodes)
    return ProcessVectorEnv(family, n_tasks, episodes, workers)


def check_workers(workers: int | None) -> None:
    """Raise ValueError for an invalid number of processes (see `make_vector`)."""
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ValueError(f"workers must be a whole number and not negative, or None to choose, got {workers!r}")
