"""Which vector environment steps a family."""

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
        workers: None takes what the family offers itself (`make_vector`), else environments one by one, which move
            into worker processes where that pays (see `AutomaticVectorEnv` for the rule); 0 is one by one; more is
            this many worker processes. 0 and more hold for families with a backend of their own too.

    Raises:
        ValueError: `n_tasks` or `episodes` is below 1, `workers` below 0, or a family that no process can take.
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
    """Raises ValueError for a number of processes that is none (see `make_vector`)."""
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ValueError(f"workers must be a whole number and not negative, or None to choose, got {workers!r}")
