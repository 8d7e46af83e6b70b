"""Few-shot tasks as data (a support set to adapt on, a query set to evaluate on), and the protocol of their family."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from metarl.printing import fields_text
from metarl.splits import check_split as check_split
from metarl.splits import sample_split, splits_of

LossName = Literal["mse", "bce", "cross_entropy"]


@dataclass(frozen=True, repr=False)
class Sets:
    """The data of K tasks. Accepts arrays and tensors; arrays of floats become float32, arrays of integers int64.

    Raises:
        ValueError: shapes that do not fit together, or an empty set.
    """

    x_support: Tensor  # [K, N, ...]
    y_support: Tensor  # [K, N, A], or [K, N] of class numbers
    x_query: Tensor  # [K, M, ...]
    y_query: Tensor  # [K, M, A], or [K, M]
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Task parameters, each [K, ...], if the family provides them. Learners do not use them."""

    __repr__ = fields_text

    def __post_init__(self) -> None:
        for name in ("x_support", "y_support", "x_query", "y_query"):
            object.__setattr__(self, name, as_tensor(getattr(self, name)))
        for part in ("support", "query"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.dim() < 3 or y.dim() not in (2, 3) or x.shape[:2] != y.shape[:2] or not x.numel():
                raise ValueError(f"the {part} set needs x [K, N, ...] and y [K, N, A] or [K, N] with the same K and N, "
                                 f"at least 1 each, got {tuple(x.shape)} and {tuple(y.shape)}")  # fmt: skip
        for letter in "xy":
            support, query = getattr(self, f"{letter}_support"), getattr(self, f"{letter}_query")
            if len(support) != len(query) or support.shape[2:] != query.shape[2:]:
                raise ValueError(f"{letter}_support and {letter}_query need the same shape except for the number "
                                 f"of examples, got {tuple(support.shape)} and {tuple(query.shape)}")  # fmt: skip

    @property
    def n_tasks(self) -> int:
        """K."""
        return len(self.x_support)

    def __getitem__(self, tasks: slice) -> "Sets":
        parameters = {name: value[tasks] for name, value in self.parameters.items()}
        return Sets(self.x_support[tasks], self.y_support[tasks], self.x_query[tasks], self.y_query[tasks], parameters)

    def to(self, device: torch.device) -> "Sets":
        """The same sets on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("x_support", "y_support", "x_query", "y_query")}
        return replace(self, **moved)


def as_tensor(values: Any) -> Tensor:
    """Arrays, lists or numbers as a tensor, with floats as float32; a tensor is returned unchanged."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    return torch.as_tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


@runtime_checkable
class SetFamily(Protocol):
    """A distribution over few-shot tasks. No base class is needed: any object with these members is a family.

    Optional: `splits`, the names that `sample` accepts as `split`. A family without it is asked for `"train"` and
    `"test"` only; its validation tasks are further draws from the training split.
    """

    id: str
    """A name that identifies what is drawn. It is stored in checkpoints and compared when they are loaded."""
    x_shape: tuple[int, ...]
    """The shape of one input."""
    outputs: int
    """Number of outputs per input: values for "mse", logits for "bce", classes for "cross_entropy"."""
    loss: LossName
    """What is predicted: "mse": real values; "bce": 0 or 1 for each output; "cross_entropy": one class."""

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        """Draw `n` tasks from a split (`"train"`, `"test"`, or another one in `splits`), each with a support set of
        `shots` examples and a query set of `queries`; in classification, this many per class."""
        ...


def check_family(family: Any) -> None:
    """Check a family of sets by drawing two tasks from every split.

    Raises:
        TypeError: a member is missing.
        ValueError: the sets drawn differ from what the family declares.
    """
    if not isinstance(family, SetFamily):
        needed = ("id", "x_shape", "outputs", "loss", "sample")
        missing = [name for name in needed if not hasattr(family, name)]
        raise TypeError(f"{type(family).__name__} is not a family of sets: it lacks {missing}")
    if family.loss not in ("mse", "bce", "cross_entropy"):
        raise ValueError(f"{family.id}: loss must be 'mse', 'bce' or 'cross_entropy', got {family.loss!r}")
    for split in splits_of(family):
        sets = sample_split(family, 2, np.random.default_rng(0), split, 1, 1)
        if not isinstance(sets, Sets):
            raise ValueError(f"{family.id}: sample must return metarl.supervised.Sets, got {type(sets).__name__}")
        if sets.n_tasks != 2:
            raise ValueError(f"{family.id}: sample was asked for 2 tasks and gave {sets.n_tasks}")
        check_sets(family, sets)


def check_sets(family: SetFamily, sets: Sets) -> None:
    """Raise ValueError if the sets differ from what the family declares."""
    if sets.x_support.shape[2:] != tuple(family.x_shape) or not sets.x_support.is_floating_point():
        raise ValueError(f"{family.id}: inputs must be floats of the shape {tuple(family.x_shape)}, got "
                         f"{sets.x_support.dtype} {tuple(sets.x_support.shape[2:])}")  # fmt: skip
    for y in (sets.y_support, sets.y_query):
        check_targets(family, y)


def check_targets(family: SetFamily, y: Tensor) -> None:
    """Raise ValueError if the targets [K, N, ...] are not what the family's loss needs."""
    if family.loss == "cross_entropy":
        if y.dim() != 2 or y.dtype != torch.int64:
            raise ValueError(f"{family.id}: classes must be whole numbers [K, N], got {y.dtype} {tuple(y.shape)}")
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= family.outputs):
            raise ValueError(f"{family.id}: classes must be 0 to {family.outputs - 1}, got {int(y.min())} to "
                             f"{int(y.max())}")  # fmt: skip
        return
    if y.dim() != 3 or y.shape[2] != family.outputs or not y.is_floating_point():
        raise ValueError(f"{family.id}: targets must be floats [K, N, {family.outputs}], got {y.dtype} "
                         f"{tuple(y.shape)}")  # fmt: skip
    if family.loss == "bce" and not bool(((y == 0) | (y == 1)).all()):
        raise ValueError(f"{family.id}: binary targets must be 0 or 1")
