"""N-way, K-shot classification out of any labelled examples, with classes held out for testing; handwritten digits."""

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
    """Tasks of telling `ways` classes apart, which are drawn anew for every task, in an order drawn anew.

    Task parameters: `classes` [ways], the labels behind class numbers 0, 1, ..., ways - 1.
    Splits: the classes of `train_classes`, `validation_classes` and `test_classes`, no class in two of them. Without
        `validation_classes`, validation tasks are further draws of classes and examples from the training split.
    Input: an example as it stands in `x`. Target: its class number within the task. Loss: cross-entropy.
    Examples of a class are drawn without replacement, so no query example is in the support set.
    Source: the protocol of Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, section 4.1.

    Raises:
        ValueError: classes that are in two splits or have no examples, or fewer of them than `ways`.
    """

    id: str
    x: np.ndarray
    """[examples, ...], floats."""
    y: np.ndarray
    """[examples], the label of each."""
    train_classes: tuple[int, ...]
    test_classes: tuple[int, ...]
    ways: int = 5
    shuffled: bool = True
    """Draw which class has which number anew for every task. Without it the numbers are always in the order of
    its split's classes, and a network can learn them by heart: for baselines."""
    loss: LossName = "cross_entropy"
    validation_classes: tuple[int, ...] = ()
    """Held out from training to choose the best state on; empty: validation tasks have training classes."""
    splits: ClassVar[tuple[str, ...]] = SPLITS
    _places: dict[int, np.ndarray] = field(init=False, repr=False)

    __repr__ = fields_text

    def __post_init__(self) -> None:
        places = {int(label): np.flatnonzero(self.y == label) for label in np.unique(self.y)}
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "x", np.asarray(self.x, np.float32))
        if len(self.x) != len(self.y) or np.ndim(self.y) != 1:
            raise ValueError(f"need one label for every example, got x {self.x.shape} and y {np.shape(self.y)}")
        stated = [("train", self.train_classes), ("test", self.test_classes)]
        stated += [("validation", self.validation_classes)] if self.validation_classes else []
        for (one, first), (other, second) in combinations(stated, 2):
            if both := sorted(set(first) & set(second)):
                raise ValueError(f"the classes {both} are in both splits, {one} and {other}: results on {other} tasks "
                                 "would be on classes that were trained on or chosen by")  # fmt: skip
        if missing := sorted({label for _, classes in stated for label in classes} - places.keys()):
            raise ValueError(f"there are no examples of the classes {missing}, only of {sorted(places)}")
        for split, classes in stated:
            if len(classes) < self.ways or self.ways < 2:
                raise ValueError(f"{self.ways}-way tasks need at least 2 ways, and as many classes in the {split} "
                                 f"split, which has {len(classes)}")  # fmt: skip

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def outputs(self) -> int:
        """One logit for every class of a task."""
        return self.ways

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        """Draw `n` tasks, and `shots` + `queries` examples of each of their classes.

        Raises:
            ValueError: a class has not that many.
        """
        check_split(self, split)
        if split == VALIDATION and not self.validation_classes:
            rng = split_rng(rng, VALIDATION)  # other draws than training's
        of = {TEST: self.test_classes, VALIDATION: self.validation_classes or self.train_classes}
        among = np.array(of.get(split, self.train_classes))
        least = min(among, key=lambda label: len(self._places[label]))
        if shots + queries > len(self._places[least]):
            raise ValueError(f"{shots} shots and {queries} queries of every class are more than the "
                             f"{len(self._places[least])} examples of class {least}")  # fmt: skip
        classes = np.stack([
            rng.permutation(among)[: self.ways] if self.shuffled else among[: self.ways] for _ in range(n)
        ])  # fmt: skip
        index = np.stack([
            [rng.choice(self._places[label], shots + queries, replace=False) for label in own] for own in classes
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
    """Few-shot tasks out of scikit-learn's 1797 handwritten digits, images [1, 8, 8] in [0, 1].

    They come with the package scikit-learn (from Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten
    Digits"): nothing is downloaded.

    Args:
        test_classes: the digits held out for testing; all others but `validation_classes` are for training.
        rotations: training digits turned by 90, 180 and 270 degrees are classes of their own (as Santoro et al. 2016,
            https://arxiv.org/abs/1605.06065, did with characters): four times as many to train on. Those held out
            are not turned. Class numbers are digit + 10 * quarter turns.
        validation_classes: the digits held out to choose the best state on. By default none: of ten digits, 5-way
            tasks to train on and to test on leave none over, and validation tasks are drawn from the training digits.

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
