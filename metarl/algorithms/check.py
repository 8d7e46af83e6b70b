"""Tell whoever brings their own algorithm what is wrong with it, where, and how to fix it.

    from metarl import check_algorithm

    check_algorithm(my_module)                            # raises AlgorithmError with everything it found
    check_algorithm(my_module, family, hidden=(8,))       # on a family of yours, with these settings

It looks at the five names of `metarl.algorithms.contract`, then runs two iterations and an evaluation on two small
tasks, twice with the same seed, through a file and back. It cannot tell whether the algorithm learns.
"""

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box

from metarl import algorithms, checkpoint
from metarl.algorithms.contract import EPISODE, INNER_STEP, STATISTICS
from metarl.algorithms.results import RESULT
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import Task, TaskFamily, Tasks
from metarl.torch_defaults import torch_defaults

FUNCTIONS = {
    "init": ("config", "policy", "family", "seed", "device"),
    "iteration": ("setup", "state"),
    "evaluate": ("setup", "state", "tasks", "episodes", "step_sizes"),
}
CONFIG = ("n_tasks", "episodes", "inner_steps", "unit", "policy")
SIZED = ("training_step_sizes", "sized_steps")
STATE = ("params", "iteration", "env_steps", "obs_stats")

DATA_ONLY = (
    "keep data only: tensors, numbers, words, None, and lists, tuples, dicts and dataclasses of these; make every dict "
    "of tensors in init with the names that it will have"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an algorithm."""

    problem: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}\n    To fix it: {self.remedy}"


class AlgorithmError(ValueError):
    """A module is no algorithm; `findings` has the reasons, the message all of them in words."""

    def __init__(self, name: str, findings: Sequence[Finding]):
        self.findings = list(findings)
        super().__init__("\n".join([f"{name} has {len(findings)} problem(s)", *(f"- {f}" for f in findings)]))


@torch_defaults
def check_algorithm(
    module: Any, family: TaskFamily | None = None, *, seed: int = 0, raise_problems: bool = True, **settings: Any
) -> list[Finding]:
    """Everything that can be found wrong with an algorithm.

    Args:
        module: with the five names of `metarl.algorithms.contract`.
        family: to run it on; by default a small one with two-dimensional actions and ten steps.
        settings: of its `Config`; by default those it has, on two tasks.
        raise_problems: raise instead of returning what was found.

    Returns:
        The findings; a stage whose findings would make a later one meaningless ends the search.

    Raises:
        AlgorithmError: there is a finding and `raise_problems` is set.
    """
    if isinstance(module, str):
        raise ValueError(f"check_algorithm takes a module or an object with its names, got {module!r}: import the file "
                         "and pass the module; MetaLearner takes a path")  # fmt: skip
    findings = list(_check_names(module))
    if not findings:
        findings = list(_check_runs(module, family or _Reach(), seed, settings))
    if findings and raise_problems:
        raise AlgorithmError(_name(module), findings)
    return findings


def checked_algorithm(module: Any, name: str | None = None) -> Any:
    """The module, if it has everything that can be checked without running it.

    Args:
        name: what errors call it; by default the module's own name.

    Raises:
        AlgorithmError: it has not.
        ValueError: no module at all.
    """
    if not any(hasattr(module, name) for name in ("Config", "State", "init", "iteration")):
        algorithms.get(module)
    if findings := list(_check_names(module)):
        raise AlgorithmError(name or _name(module), findings)
    return module


def _name(module: Any) -> str:
    return str(getattr(module, "__name__", f"a {type(module).__name__}"))


# ---------------------------------------------------------------------------------------------------------------------
# What can be seen without running it


def _check_names(module: Any) -> Iterator[Finding]:
    missing = [name for name in ("Config", "State", *FUNCTIONS) if not hasattr(module, name)]
    if missing:
        yield Finding(f"has no {', '.join(missing)}", "the module",
                      "define the five names Config, State, init, iteration and evaluate "
                      "(docs/your_own_algorithm.md)")  # fmt: skip
        return
    if not isinstance(getattr(module, "__name__", None), str):
        yield Finding("has no __name__, which runs are called by", f"the {type(module).__name__}",
                      "give it one, like SimpleNamespace(__name__='my_algorithm', ...)")  # fmt: skip
        return
    yield from _check_config(module.Config)
    yield from _check_state(module.State)
    for name, wanted in FUNCTIONS.items():
        try:
            inspect.signature(getattr(module, name)).bind(*wanted)
        except TypeError as error:
            yield Finding(f"cannot be called with ({', '.join(wanted)}): {error}", name, "take these arguments")


def _check_config(kind: Any) -> Iterator[Finding]:
    if not dataclasses.is_dataclass(kind) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009
        yield Finding("is no frozen dataclass", "Config", "decorate it with @dataclass(frozen=True)")
        return
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield Finding(f"its field {field.name!r} has no default", "Config", "give every setting a default")
            return
    make: Any = kind
    try:
        config: Any = make()
    except Exception as error:
        yield Finding(f"its defaults are refused: {error}", "Config", "make Config() work")
        return
    if missing := [name for name in CONFIG if not hasattr(config, name)]:
        yield Finding(f"has no {', '.join(missing)}", "Config", "see metarl.algorithms.contract.Config")
        return
    if config.unit not in (INNER_STEP, EPISODE):
        yield Finding(f"unit is {config.unit!r}", "Config", f"say {INNER_STEP!r}, a step with a size, or {EPISODE!r}")
    elif config.unit == INNER_STEP and (missing := [name for name in SIZED if not hasattr(config, name)]):
        yield Finding(f"has no {', '.join(missing)}, though its unit is an inner step", "Config",
                      f"say which sizes steps have, or that the unit is {EPISODE!r}")  # fmt: skip


def _check_state(kind: Any) -> Iterator[Finding]:
    if not dataclasses.is_dataclass(kind):
        yield Finding("is no dataclass", "State", "decorate it with @dataclass(frozen=True)")
        return
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in STATE if name not in names]:
        yield Finding(f"has no field {', '.join(missing)}", "State", "see metarl.algorithms.contract.State")
    kept = getattr(kind, "WARM_START", None)
    if kept is None:
        yield Finding("does not say what a warm start takes over", "State",
                      'name the fields: WARM_START: ClassVar = ("params", "obs_stats")')  # fmt: skip
    elif unknown := [name for name in kept if name not in names]:
        yield Finding(f"WARM_START names {', '.join(unknown)}, which are no fields of it", "State",
                      f"its fields are {', '.join(names)}")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What it does


class _Counting(Sampler):
    """Counts the environment steps that are taken."""

    taken = 0

    def collect(self, *args: Any, **kwargs: Any) -> Rollout:
        rollout = super().collect(*args, **kwargs)
        self.taken += rollout.steps
        return rollout


def _check_runs(module: Any, family: Any, seed: int, settings: dict[str, Any]) -> Iterator[Finding]:
    def tried(where: str, call: Callable[[], Any]) -> tuple[Any, list[Finding]]:
        try:
            return call(), []
        except Exception as error:
            problem = f"raised {type(error).__name__}: {error}"
            return None, [Finding(problem, where, "see the error's own traceback: call it as check_algorithm does")]

    config = module.Config(**({"n_tasks": 2} | settings))
    policy, found = tried("Config.policy", lambda: config.policy(spaces_of(family)))
    if found:
        yield from found
        return
    setup = Setup(config, _Counting(family), policy, seed)
    try:
        state, found = tried("init", lambda: module.init(config, policy, family, seed, "cpu"))
        again, _ = tried("init", lambda: module.init(config, policy, family, seed, "cpu"))
        found = found or list(_check_start(module, state, again))
        if found:
            yield from found
            return
        before = checkpoint.pack_state(checkpoint.on_device(state, "cpu"))
        output, found = tried("iteration", lambda: module.iteration(setup, state))
        steps = setup.sampler.taken
        found = found or list(_check_iteration(module, state, before, output, steps))
        if found:
            yield from found
            return
        new = output[0]
        second, found = tried("iteration", lambda: module.iteration(setup, state)[0])
        if not found and not _equal(new, second):
            remedy = (
                "draw random numbers from setup.seed and state.iteration alone (metarl.random), and keep nothing else"
            )
            found = [Finding("gives another state when it is called again", "iteration", remedy)]
        yield from found or _check_saving(module, setup, state, new)
        yield from _check_evaluation(module, setup, new, family)
    finally:
        setup.sampler.close()


def _check_start(module: Any, state: Any, again: Any) -> Iterator[Finding]:
    if not isinstance(state, module.State):
        yield Finding(f"returned a {type(state).__name__}", "init", "return a State")
        return
    try:
        checkpoint.pack_state(state)
    except TypeError as error:
        yield Finding(f"cannot be saved and loaded: {error}", "State", DATA_ONLY)
        return
    if (state.iteration, state.env_steps) != (0, 0):
        yield Finding(f"starts at iteration {state.iteration} with {state.env_steps} steps", "init", "start both at 0")
    if not isinstance(state.params, dict) or not all(isinstance(x, torch.Tensor) for x in state.params.values()):
        yield Finding("params is no dict of tensors", "init", "take the policy's own: policy.init(generator)")
    elif not _equal(state, again):
        yield Finding("gives other parameters for the same seed", "init",
                      "seed a torch.Generator of your own with metarl.random.generator_seed(seed, 0)")  # fmt: skip


def _check_iteration(module: Any, state: Any, before: Any, output: Any, steps: int) -> Iterator[Finding]:
    if not isinstance(output, tuple) or len(output) != 2 or not isinstance(output[0], module.State):
        yield Finding(f"returned a {type(output).__name__}", "iteration", "return the next State and statistics")
        return
    new, stats = output
    try:
        checkpoint.pack_state(new)
    except TypeError as error:
        yield Finding(f"its state cannot be saved and loaded: {error}", "iteration", DATA_ONLY)
        return
    bad = [name for name, value in new.params.items() if not bool(torch.as_tensor(value).isfinite().all())]
    if bad:
        yield Finding(f"its parameters {', '.join(bad)} are not finite", "iteration", "stop before anything is NaN")
        return
    if not _same_data(before, checkpoint.pack_state(state)):
        yield Finding("changed the state that it was given", "iteration", "make new tensors and return a new State")
    if new.iteration != state.iteration + 1:
        yield Finding(f"iteration went from {state.iteration} to {new.iteration}", "iteration", "count one further")
    if steps and new.env_steps - state.env_steps != steps:
        yield Finding(f"counted {new.env_steps - state.env_steps} environment steps and took {steps}", "iteration",
                      "add rollout.steps of every rollout to env_steps")  # fmt: skip
    if missing := [name for name in STATISTICS if name not in stats]:
        yield Finding(f"its statistics lack {', '.join(missing)}", "iteration", "log them (docs/logging.md)")
    wrong = [name for name, value in stats.items() if not isinstance(value, int | float | np.number)]
    if wrong:
        yield Finding(f"its statistics {', '.join(wrong)} are no numbers", "iteration", "log numbers: x.item()")


def _check_saving(module: Any, setup: Setup[Any], state: Any, new: Any) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        try:
            tensors, rest = checkpoint.pack_state(new)
            checkpoint.save(path, tensors, {"state": rest})
            tensors, meta = checkpoint.load(path)
            back = checkpoint.unpack_state(module.State, tensors, meta["state"], state, "cpu")
        except Exception as error:
            yield Finding(f"cannot be saved and loaded: {error}", "State", DATA_ONLY)
            return
    if not _equal(new, back):
        yield Finding("comes back from a file with other values", "State", "keep data only")
    elif not _equal(module.iteration(setup, new)[0], module.iteration(setup, back)[0]):
        yield Finding("goes on differently from a file", "iteration", "keep everything that it depends on in State")


def _check_evaluation(module: Any, setup: Setup[Any], state: Any, family: TaskFamily) -> Iterator[Finding]:
    sizes: Sequence[Any] = (None,)
    if setup.config.unit == INNER_STEP:
        sizes = setup.config.training_step_sizes(1)
    tasks = setup.sampler.tasks(2, 1, 0, "test")
    try:
        found = module.evaluate(setup, state, tasks, 2, sizes)
    except Exception as error:
        yield Finding(f"raised {type(error).__name__}: {error}", "evaluate", "see the error's own traceback")
        return
    if missing := [name for name in RESULT if not hasattr(found, name)]:
        yield Finding(f"its result has no {', '.join(missing)}", "evaluate", "see metarl.algorithms.contract.Result")
        return
    if tuple(found.returns.shape) != (2, 2, 2):
        yield Finding(f"returns of 2 tasks, 1 step and 2 episodes have the shape {tuple(found.returns.shape)}",
                      "evaluate", "make them [tasks, steps + 1, episodes]")  # fmt: skip
    if len(found.rollouts) != 2:
        yield Finding(f"has {len(found.rollouts)} rollouts for 1 step", "evaluate", "keep one before and after each")
    if not isinstance(found.score, float):
        yield Finding(f"score is {found.score!r}", "evaluate", "make it a float, the higher the better")
    env = family.make({name: value[0] for name, value in tasks.items()})
    obs, _ = env.reset(seed=0)
    try:
        action = found.policy_for(0).predict(obs)[0]
    except Exception as error:
        yield Finding(f"policy_for(0).predict raised {type(error).__name__}: {error}", "evaluate",
                      "return an AdaptedPolicy or a RecurrentPolicy")  # fmt: skip
        return
    if not family.action_space.contains(action):
        yield Finding(f"policy_for(0) acts with {action!r}, which is not in {family.action_space}", "evaluate",
                      "return an AdaptedPolicy or a RecurrentPolicy with the policy's own spaces")  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    return _same_data(checkpoint.pack_state(one), checkpoint.pack_state(other))


def _same_data(one: tuple[dict[str, Any], Any], other: tuple[dict[str, Any], Any]) -> bool:
    (a, rest), (b, other_rest) = one, other
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) and rest == other_rest


class _Reach:
    """A point that is pushed towards a goal, in ten steps: small, and learnable."""

    id, horizon = "Reach", 10
    observation_space, action_space = Box(-10, 10, (2,), np.float32), Box(-1, 1, (2,), np.float32)
    task_space = gym.spaces.Dict({"goal": Box(-1, 1, (2,), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        return {"goal": rng.uniform(-1, 1, (n, 2)).astype(np.float32)}

    def make(self, task: Task) -> gym.Env:
        return _ReachEnv(task["goal"])


class _ReachEnv(gym.Env):
    observation_space, action_space = _Reach.observation_space, _Reach.action_space

    def __init__(self, goal: np.ndarray):
        self.goal = goal

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.at = np.zeros(2, np.float32)
        return self.at.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.at = (self.at + 0.2 * np.clip(action, -1, 1)).astype(np.float32)
        return self.at.copy(), -float(np.linalg.norm(self.at - self.goal)), False, False, {}
