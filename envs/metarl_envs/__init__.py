"""The built-in task families: a plug-in of metarl like any other, found through entry points.

Importing this package makes single environments of them known to Gymnasium, the task parameters as keyword arguments:

    gymnasium.make("metarl_envs:metarl_envs/PointNavigation-v0", goal=(0.3, -0.2), render_mode="rgb_array")

The part before the colon is the module that Gymnasium imports first; whoever has imported it can leave that out.
A family with a `default_task` (Gymnasium's own constants, where it varies those) needs no parameter named.
"""

import importlib.metadata
import inspect
from typing import Any

import gymnasium as gym

NAMESPACE = "metarl_envs"


def register_gymnasium() -> None:
    """Register every family of this package as `metarl_envs/<id>` with Gymnasium; twice does no harm."""
    for id in _entry_points():
        if f"{NAMESPACE}/{id}" not in gym.registry:
            gym.register(f"{NAMESPACE}/{id}", f"{__name__}:make_env", kwargs={"family_id": id})


def make_env(family_id: str, render_mode: str | None = None, **kwargs: Any) -> gym.Env:
    """One environment: `kwargs` are the task's parameters and whatever the family itself takes (arms, horizon, ...).

    Raises:
        ValueError: a task parameter is missing, unknown or outside its space; the message names it.
    """
    from metarl import make, tasks  # here, so that the import of this package by Gymnasium stays light

    taken = inspect.signature(_entry_points()[family_id].load()).parameters
    family: Any = make(family_id, **{name: value for name, value in kwargs.items() if name in taken})
    given = {name: value for name, value in kwargs.items() if name not in taken}
    task = tasks.validate_task(family, {**getattr(family, "default_task", {}), **given})
    return family.make(task) if render_mode is None else family.make(task, render_mode=render_mode)


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group="metarl.families")
    return {point.name: point for point in points if point.module.partition(".")[0] == __name__}


register_gymnasium()
