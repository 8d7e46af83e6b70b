"""Contenders that adapt by policy-gradient steps on each task's own episodes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarl.benchmark.contract import Policies, Test, Training, settings_text
from metarl.benchmark.meter import BudgetSpent
from metarl.checkpoint import read_json, write_json
from metarl.inner.loop import InnerStep, detached_step, lr_unit
from metarl.inner.loss import Batch
from metarl.inner.settings import GradientSettings
from metarl.learner import MetaLearner, make_config
from metarl.params import Params, expand
from metarl.report.step_sizes import FACTORS, choose
from metarl.rollout.acting import Memoryless
from metarl.tasks import TaskFamily, num_tasks

LONG = 1_000_000
"""More iterations than any budget has."""
SPENT = "spent.json"
"""Environment steps counted up to each iteration."""
RESERVE = 0.1
"""Share of the training budget that is kept for choosing step sizes on validation tasks."""


@dataclass(frozen=True)
class Learned:
    """A learner, and the step sizes that it adapts with."""

    learner: Any
    step_sizes: tuple[float, ...]
    chosen: str = ""
    """How they were found."""


def adapted(learned: Learned, test: Test, config: GradientSettings | None = None) -> Iterator[Policies]:
    """Step by step: episodes, a gradient step for every task, the policies after it."""
    learner, state = learned.learner, learned.learner.state
    config = config or learner.config
    initial = params = expand(state.params, test.n_tasks)
    memory, unit = Params(), lr_unit(config, state.params)
    yield Policies(Memoryless(learner.policy, params), state.obs_stats)
    for k, size in enumerate(learned.step_sizes):
        rollout = test.collect(learner.policy, params, k, state.obs_stats)
        to_take = InnerStep(Batch.of(config, rollout, state, k), size * unit, k, initial, state.learned)
        params, memory = detached_step(config, learner.policy, params, to_take, memory)
        yield Policies(Memoryless(learner.policy, params), state.obs_stats, (k + 1) * test.adaptation.episodes)


def trained(run: Training, algorithm: str, settings: Mapping[str, Any]) -> Any:
    """A learner that has trained until the budget, less the reserve, is used up; its best state by validation tasks.

    An interrupted training goes on from its last checkpoint, with the steps that were counted up to that.
    """
    limit, meter, directory = run.meter.limit, run.meter, run.directory / "run"
    if (directory / "latest.safetensors").exists():
        learner = MetaLearner.load(directory / "latest.safetensors", family=run.family, device="cpu")
        meter.spent = _counted(run.directory / SPENT, learner.state.iteration)
    else:
        learner = MetaLearner(algorithm, run.family, seed=run.seed, device="cpu", **settings)
    spent = {str(learner.state.iteration): meter.spent}

    def note(stats: Mapping[str, Any]) -> None:
        spent[str(int(stats["iteration"]))] = meter.spent
        write_json(run.directory / SPENT, spent)

    if limit is not None:
        meter.limit = limit - int(RESERVE * limit)
    with meter.planned():
        learner.learn(LONG, run_dir=directory, eval_every=10, eval_tasks=10, callback=note)
    meter.limit = limit
    if learner.state.iteration == 0:
        raise BudgetSpent(f"a budget of {limit} environment steps does not reach for one iteration of {algorithm}: "
                          "raise it, or lower n_tasks and episodes")  # fmt: skip
    best = directory / "best.safetensors"
    return MetaLearner.load(best, family=run.family, device="cpu") if best.exists() else learner


def _counted(path: Path, iteration: int) -> int:
    """The steps that were counted up to an iteration. A kill between saving a state and noting its steps leaves those
    of the iteration before, to which what every iteration took so far is added."""
    spent = {int(name): steps for name, steps in (read_json(path) if path.exists() else {"0": 0}).items()}
    last = max((name for name in spent if name <= iteration), default=0)
    each = spent.get(last, 0) / max(1, last)
    return spent.get(last, 0) + round(each * (iteration - last))


def with_step_sizes(run: Training, learner: Any) -> Learned:
    """The learner with as many step sizes as the protocol has units. Those of steps that training does not have are
    chosen on as many validation tasks as what is left of the budget allows."""
    steps, fixed, episodes = run.adaptation.steps, learner.config.sized_steps, run.adaptation.episodes
    usual = learner.config.training_step_sizes(steps)
    each = sum(len(FACTORS) * (k + 2) for k in range(fixed, steps)) * episodes * run.family.horizon
    most = num_tasks(run.validation) if not each else int(min(num_tasks(run.validation), run.meter.left // each))
    if steps <= fixed or most < 2:
        return Learned(learner, usual, "" if steps <= fixed else "training's: too little of the budget was left")
    tasks = {name: value[:most] for name, value in run.validation.items()}

    def play(sizes: tuple[float, ...]) -> tuple[float, int]:
        before = run.meter.spent
        found = learner.evaluate(tasks=tasks, episodes=episodes, step_sizes=sizes, seed=run.seed)
        return float(found.mean[-1]), run.meter.spent - before

    choice = choose(play, usual, fixed, most)
    return Learned(learner, choice.sizes, choice.text())


@dataclass(frozen=True)
class MetaLearned:
    """A gradient-based meta-learner of the package."""

    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_config(self.algorithm, self.settings)

    @property
    def label(self) -> str:
        return self.algorithm

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Learned:
        return with_step_sizes(run, trained(run, self.algorithm, self.settings))

    def adapt(self, learned: Learned, test: Test) -> Iterator[Policies]:
        return adapted(learned, test)


GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors on `inner_lr` that an untrained policy's step size is chosen from."""


def best_size(run: Training, learner: Any, grid: Sequence[float] = GRID) -> Learned:
    """The learner with the step size that does best on the validation tasks, the same in every step."""
    best, value, tried = learner.config.inner_lr, float("-inf"), dict[float, float]()
    with run.meter.planned():
        for factor in grid:
            size = factor * learner.config.inner_lr
            found = learner.evaluate(tasks=run.validation, episodes=run.adaptation.episodes, seed=run.seed,
                                     step_sizes=(size,) * run.adaptation.steps)  # fmt: skip
            tried[size] = float(found.mean[-1])
            if tried[size] > value:
                best, value = size, tried[size]
    return Learned(learner, (best,) * run.adaptation.steps, f"tried on validation tasks: {settings_text_of(tried)}")


def settings_text_of(tried: Mapping[float, float]) -> str:
    return settings_text({f"{size:g}": round(value, 2) for size, value in tried.items()})


@dataclass(frozen=True)
class RandomInitialisation:
    """An untrained policy, adapted by the same steps as the meta-learners'."""

    options: dict[str, Any] = field(default_factory=dict)
    label: str = "random initialisation, adapted"
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        make_config("maml_trpo", self.options)

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Learned:
        """Trains nothing: only the step size is chosen."""
        settings = {"inner_optimizer": self.optimizer, **self.options}
        return best_size(run, MetaLearner("maml_trpo", run.family, seed=run.seed, device="cpu", **settings))

    def adapt(self, learned: Learned, test: Test) -> Iterator[Policies]:
        return adapted(learned, test)


@dataclass(frozen=True)
class Scratch(RandomInitialisation):
    """Policy-gradient training from scratch in each task: Adam, with its step size chosen on validation tasks."""

    label: str = "from scratch, policy gradient"
    optimizer: str = "adam"
