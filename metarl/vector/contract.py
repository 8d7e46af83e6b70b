"""What a reset of many environments has to do: which of them (`options["reset_mask"]`), and whether to build them."""

from typing import Any

import numpy as np

from metarl.tasks import Tasks


def reset_mask(options: dict[str, Any] | None, num_envs: int) -> np.ndarray | None:
    """Which environments are to be reset, bool [num_envs]; None where all are.

    Raises:
        ValueError: a mask of another shape or type, or one that names no environment.
    """
    mask = (options or {}).get("reset_mask")
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(f"reset_mask must be bool [{num_envs}], got {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        raise ValueError("reset_mask names no environment; leave the reset out, or reset_mask to reset all")
    return None if mask.all() else mask


class LastTasks:
    """The tasks that environments were last built for. A reset that passes the very same dict again keeps them.

    The rollouts of one adaptation share one dict. It must be the same object, not merely an equal one: whatever an
    unclean reset leaves behind then stays within one adaptation, and results do not depend on what ran before it.
    """

    def __init__(self) -> None:
        self.forget()

    def keep(self, tasks: Tasks) -> None:
        """Environments have been built for `tasks`."""
        self._tasks: Tasks | None = tasks
        self._values = {name: np.array(value) for name, value in tasks.items()}

    def forget(self) -> None:
        """The next reset with tasks builds environments."""
        self._tasks, self._values = None, {}

    def are(self, tasks: Tasks) -> bool:
        """Whether `tasks` are those, with the values that they had."""
        if tasks is not self._tasks or tasks.keys() != self._values.keys():
            return False
        return all(np.array_equal(tasks[name], value) for name, value in self._values.items())
