"""N-way, K-shot classification from any labelled examples, with held-out test classes; handwritten digits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np

from metarl.printing import fields_text
from metarl.report.figures import MissingExtraError
from metarl.splits import SPLITS, TEST, VALIDATION, check_split, split_rng
from metarl.supervised.sets import LossName, Sets, as_tensor


@dataclass(frozen=True, eq=False)
class FewShotClasses:
    """Tasks of classifying examples into `ways` classes, which are drawn for every task and numbered in random order.

    Task parameters: `classes` [ways], the labels behind class numbers 0, 1, ..., ways - 1.
    Splits: the disjoint sets `train_classes`, `validation_classes` and `test_classes`. Without `validation_classes`,
        validation tasks are further draws of classes and examples from the training split.
    Input: an example from `x`, unchanged. Target: its class number within the task. Loss: cross-entropy.
    Examples of a class are drawn without replacement, so no query example is in the support set.
    Source: the protocol of Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, section 4.1.

    Raises:
        ValueError: a class is in two splits or has no examples, or a split has fewer than `ways` classes.
    """

    id: str
    x: np.ndarray
    """[examples, ...], floats."""
    y: np.ndarray
    """[examples], their labels."""
    train_classes: tuple[int, ...]
    test_classes: tuple[int, ...]
    ways: int = 5
    shuffled: bool = True
    """Number the classes of every task at random. Otherwise the numbers always follow the order of the split's classes,
    so that a network can memorise them; for baselines."""
    loss: LossName = "cross_entropy"
    validation_classes: tuple[int, ...] = ()
    """Classes held out from training, on which the best state is chosen; if empty, validation tasks use the training
    classes."""
    splits: ClassVar[tuple[str, ...]] = SPLITS
    _examples: dict[int, np.ndarray] = field(init=False, repr=False)  # the indices of every class's examples

    __repr__ = fields_text

    def __post_init__(self) -> None:
        examples = {int(label): np.flatnonzero(self.y == label) for label in np.unique(self.y)}
        object.__setattr__(self, "_examples", examples)
        object.__setattr__(self, "x", np.asarray(self.x, np.float32))
        if len(self.x) != len(self.y) or np.ndim(self.y) != 1:
            raise ValueError(f"need one label for every example, got x {self.x.shape} and y {np.shape(self.y)}")
        stated = [("train", self.train_classes), ("test", self.test_classes)]
        stated += [("validation", self.validation_classes)] if self.validation_classes else []
        for (one, first), (other, second) in combinations(stated, 2):
            if both := sorted(set(first) & set(second)):
                raise ValueError(f"the classes {both} are in both splits, {one} and {other}: results on {other} tasks "
                                 "would be for classes that were used in training or model selection")  # fmt: skip
        if missing := sorted({label for _, classes in stated for label in classes} - examples.keys()):
            raise ValueError(f"there are no examples of the classes {missing}, only of {sorted(examples)}")
        for split, classes in stated:
            if len(classes) < self.ways or self.ways < 2:
                raise ValueError(f"{self.ways}-way tasks need at least 2 ways, and at least that many classes in the "
                                 f"{split} split, which has {len(classes)}")  # fmt: skip

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def outputs(self) -> int:
        """One logit per class of a task."""
        return self.ways

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        """Draw `n` tasks with `shots` + `queries` examples of each of their classes.

        Raises:
            ValueError: a class has too few examples.
        """
        check_split(self, split)
        if split == VALIDATION and not self.validation_classes:
            rng = split_rng(rng, VALIDATION)  # other draws than training's
        of = {TEST: self.test_classes, VALIDATION: self.validation_classes or self.train_classes}
        among = np.array(of.get(split, self.train_classes))
        least = min(among, key=lambda label: len(self._examples[label]))
        if shots + queries > len(self._examples[least]):
            raise ValueError(f"{shots} shots and {queries} queries of every class are more than the "
                             f"{len(self._examples[least])} examples of class {least}")  # fmt: skip
        classes = np.stack([
            rng.permutation(among)[: self.ways] if self.shuffled else among[: self.ways] for _ in range(n)
        ])  # fmt: skip
        index = np.stack([
            [rng.choice(self._examples[label], shots + queries, replace=False) for label in drawn] for drawn in classes
        ])  # fmt: skip  # [n, ways, shots + queries]
        numbers = np.broadcast_to(np.arange(self.ways)[:, None], index.shape)
        support, query = ((index[..., part].reshape(n, -1), numbers[..., part].reshape(n, -1))
                          for part in (slice(shots), slice(shots, None)))  # fmt: skip
        support_x, support_y, query_x, query_y = map(
            as_tensor, (self.x[support[0]], support[1], self.x[query[0]], query[1])
        )
        return Sets(support_x, support_y, query_x, query_y, {"classes": classes})


def digits(
    ways: int = 5, test_classes: Sequence[int] = (5, 6, 7, 8, 9), rotations: bool = False, shuffled: bool = True,
    validation_classes: Sequence[int] = (),
) -> FewShotClasses:  # fmt: skip
    """Few-shot tasks from scikit-learn's 1797 handwritten digits, images [1, 8, 8] in [0, 1].

    They are part of the package scikit-learn (from Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten
    Digits"): nothing is downloaded.

    Args:
        test_classes: the digits held out for testing; all others except `validation_classes` are for training.
        rotations: treat training digits rotated by 90, 180 and 270 degrees as additional classes (as Santoro et al.
            2016, https://arxiv.org/abs/1605.06065, did with characters), which gives four times as many. Held-out
            digits are not rotated. Class numbers are digit + 10 * quarter turns.
        validation_classes: the digits held out to choose the best state. Empty by default: 5-way training and test
            tasks use up all ten digits, so validation tasks are drawn from the training digits.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from None
    data = load_digits()
    x, y = (data.images / 16.0)[:, None], data.target
    held_out, validation = tuple(test_classes), tuple(validation_classes)
    train = tuple(digit for digit in range(10) if digit not in (*held_out, *validation))
    if rotations:
        turned = [(np.rot90(x, quarter, (2, 3)), y + 10 * quarter) for quarter in range(4)]
        x, y = (np.concatenate(parts) for parts in zip(*turned, strict=True))
        train = tuple(digit + 10 * quarter for quarter in range(4) for digit in train)
    settings = f"ways={ways}, test_classes={held_out}, rotations={rotations}, shuffled={shuffled}"
    settings += f", validation_classes={validation}" if validation else ""
    return FewShotClasses(
        f"digits({settings})", x, y, train, held_out, ways, shuffled, validation_classes=validation
    )  # fmt: skip
