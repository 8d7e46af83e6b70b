"""Frozen lists of tasks: drawn once, kept in a file with a hash, the same for every contender."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metarl.checkpoint import read_json, write_json
from metarl.splits import TEST, VALIDATION, check_split, sample_split
from metarl.tasks import TaskFamily, Tasks, num_tasks, stack_tasks, task_at, validate_task

FORMAT = 1


@dataclass(frozen=True)
class TaskLists:
    """Tasks by split, `"validation"` and `"test"` among them."""

    family: str
    """The family's id."""
    seed: int
    """That they were drawn with."""
    splits: Mapping[str, Tasks]

    @property
    def hash(self) -> str:
        """Of family, splits and every value; 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._data(), sort_keys=True).encode()).hexdigest()[:16]

    def _data(self) -> dict[str, Any]:
        splits = {
            split: {name: value.tolist() for name, value in tasks.items()} for split, tasks in self.splits.items()
        }
        return {"family": self.family, "splits": splits}

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        write_json(path, {"format": FORMAT, "hash": self.hash, "seed": self.seed, **self._data()})

    @staticmethod
    def load(path: Path, family: TaskFamily) -> "TaskLists":
        """The lists that `save` wrote.

        Raises:
            ValueError: they are another family's, their tasks are none of its own, or the file was changed.
        """
        data = read_json(path)
        if data.get("format") != FORMAT or data.get("family") != family.id:
            raise ValueError(f"{path} holds tasks of {data.get('family')!r} in format {data.get('format')!r}, wanted "
                             f"are those of {family.id!r} in format {FORMAT}")  # fmt: skip
        splits = {}
        for split, tasks in data["splits"].items():
            found = {name: np.asarray(value) for name, value in tasks.items()}
            each = [validate_task(family, task_at(found, k), outside=True) for k in range(num_tasks(found))]
            splits[split] = stack_tasks(each)
        lists = TaskLists(family.id, data["seed"], splits)
        if lists.hash != data["hash"]:
            raise ValueError(f"{path} was changed: its tasks have the hash {lists.hash}, the file says {data['hash']}")
        return lists


def draw(family: TaskFamily, seed: int, counts: Mapping[str, int]) -> TaskLists:
    """This many tasks of each split; training draws its own.

    Raises:
        ValueError: a split that the family does not have, or `"validation"` or `"test"` missing.
    """
    if missing := {VALIDATION, TEST} - set(counts):
        raise ValueError(f"a benchmark needs tasks of the splits {sorted(missing)} too")
    for split in counts:
        check_split(family, split)
    splits = {
        split: sample_split(family, n, np.random.default_rng([seed, 0xBE7C]), split) for split, n in counts.items()
    }
    return TaskLists(family.id, seed, splits)
