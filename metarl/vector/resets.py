"""Resetting some of the environments: Gymnasium's `options["reset_mask"]`."""

from typing import Any

import numpy as np


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
