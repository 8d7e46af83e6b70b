"""What the tests of worker processes share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from process_episodes import E, K
from processes import nothing_left

from metarl.vector.process import ProcessVectorEnv


@pytest.fixture
def no_process_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
def start() -> Iterator[Callable[..., ProcessVectorEnv]]:
    """Makes process environments that are closed after the test."""
    made: list[ProcessVectorEnv] = []

    def make(family: Any, n_tasks: int = K, episodes: int = E, workers: int = 2, **more: Any) -> ProcessVectorEnv:
        made.append(ProcessVectorEnv(family, n_tasks, episodes, workers, **more))
        return made[-1]

    yield make
    for env in made:
        env.close()
    made.clear()
