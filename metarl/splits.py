"""Splits of a family: the sets or distributions that tasks are drawn from for different purposes.

Every family has `"train"` (for meta-training), `"validation"` (for periodic evaluations, which choose the best state,
and for choosing step sizes) and `"test"` (for reported results; nothing is chosen on it). A family that declares
`splits` may have others, such as `"ood"` for tasks outside the training distribution.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
"""The splits of a family that does not declare any."""

_KEYS = {TRAIN: 0, TEST: 1}


def splits_of(family: Any) -> tuple[str, ...]:
    """The splits that can be drawn from: those that the family declares in `splits`, and always `"validation"`.

    Raises:
        ValueError: `splits` is not a list of names that includes `"train"` and `"test"`.
    """
    stated = getattr(family, "splits", SPLITS)
    if isinstance(stated, str) or not all(isinstance(name, str) and name for name in _listed(family, stated)):
        raise ValueError(f"splits of {family.id} must be a list of names like {list(SPLITS)}, got {stated!r}")
    names = tuple(dict.fromkeys((*SPLITS, *stated)))
    if missing := {TRAIN, TEST} - set(stated):
        raise ValueError(f"splits of {family.id} are {list(stated)}: every family needs {sorted(missing)}")
    return names


def _listed(family: Any, stated: Any) -> list[Any]:
    try:
        return list(stated)
    except TypeError:
        raise ValueError(f"splits of {family.id} must be a list of names like {list(SPLITS)}, got {stated!r}") from None


def states_validation(family: Any) -> bool:
    """Whether the family defines its own validation tasks."""
    return VALIDATION in getattr(family, "splits", ())


def check_split(family: Any, split: Any) -> None:
    """Raise ValueError if the family has no such split; the message lists its splits."""
    known = splits_of(family)
    if split not in known:
        raise ValueError(f"{family.id} has no split {split!r}; its splits are {', '.join(map(repr, known))}")


def sample_split(family: Any, n: int, rng: np.random.Generator, split: str, *more: Any) -> Any:
    """`family.sample(n, rng, split, *more)` for any of `splits_of(family)`.

    A family that does not declare a validation split gets one: further draws of its training tasks, with a generator
    that training never uses. If those are a fixed list, validation tasks are training tasks; they are never test tasks.

    Raises:
        ValueError: the family has no such split.
    """
    check_split(family, split)
    if split == VALIDATION and not states_validation(family):
        return family.sample(n, split_rng(rng, VALIDATION), TRAIN, *more)
    return family.sample(n, rng, split, *more)


def split_rng(rng: np.random.Generator, split: str, splits: Sequence[str] = SPLITS) -> np.random.Generator:
    """A generator that depends on `rng` and on `split`, so that no two splits ever share a draw.

    Without it `sample(n, default_rng(0), "test")` would return the same tasks as `sample(n, default_rng(0), "train")`,
    so that an evaluation with the training seed would test on the training tasks.

    Args:
        splits: the allowed names, for a family whose splits are not the standard ones.

    Raises:
        ValueError: `split` is not among `splits`, or `rng` is not a generator.
    """
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a numpy.random.Generator, like numpy.random.default_rng(0), got {rng!r}")
    if split not in splits:
        raise ValueError(f"split must be one of {tuple(splits)}, got {split!r}")
    key = _KEYS[split] if split in _KEYS else len(_KEYS) + zlib.crc32(split.encode())
    return np.random.default_rng([int(rng.integers(2**63)), key])
