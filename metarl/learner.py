"""MetaLearner: the main class of the package, in the style of stable-baselines3."""

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from metarl import algorithms, checkpoint
from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.adapted.starting import meta_policy, started_from
from metarl.algorithms import source
from metarl.algorithms.check import checked_algorithm
from metarl.algorithms.contract import EPISODE, INNER_STEP, Algorithm
from metarl.algorithms.results import checked_result, checked_state, checked_step
from metarl.arguments import file_path, new_file, positive_sizes, whole, yes_or_no
from metarl.checkpoint import CheckpointError
from metarl.families.files import remember
from metarl.families.registry import make
from metarl.families.saved import load_family, origin_of, signature
from metarl.parallel import keep_freed_memory, resolve_device
from metarl.policies.base import Policy
from metarl.policies.kinds import described_policy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import check_same_spaces, spaces_of
from metarl.policies.stacked_module import second_derivatives_of
from metarl.recurrent.trials import shown_episodes
from metarl.report.evaluation import (
    FINAL,
    GIVEN,
    PERIODIC,
    STEP_SIZES,
    Evaluation,
    checked_step_sizes,
    evaluation_seed,
)
from metarl.report.step_sizes import TASKS, Choice, Kept, choose, choose_once
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.rollout.setup import Setup
from metarl.splits import TEST, VALIDATION
from metarl.suggestions import config_from, known_arguments
from metarl.tasks import TaskFamily, Tasks, check_is_family, num_tasks, requested_task, stack_tasks, task_at
from metarl.torch_defaults import torch_defaults
from metarl.training import saved
from metarl.training.contract import Kind, Stats
from metarl.training.directory import BEST, ENTRIES, resume_command
from metarl.training.learn import Options, learn
from metarl.training.saved import portable, restore
from metarl.training.train import returns_and_speed
from metarl.training.warm_start import (
    network_of,
    settings_of,
    start_from,
    with_policy,
)

KIND = Kind(
    name="learner",
    entries=ENTRIES,
    resume=resume_command,
    progress=returns_and_speed,
    measure="return",
    timesteps=lambda state: state.env_steps,
    predictor=lambda learner: meta_policy(learner.policy, learner.state.params, learner.state.obs_stats),
)


def make_config(module: str | Any, values: Mapping[str, Any]) -> Any:
    """The algorithm's `Config` from a mapping. Raises ValueError for an unknown key, naming the nearest known one."""
    module = algorithms.get(module) if isinstance(module, str) else module
    help = f"; `metarl train {source.typed(module)} --help` lists all"
    return config_from(module.Config, values, algorithms.name_of(module), help)


class MetaLearner:
    """Meta-train, evaluate, adapt, save.

    Args:
        algorithm: its name, as shown by `metarl list`; or your own algorithm with the five names of
            `metarl.algorithms.contract` (docs/your_own_algorithm.md): a module, or `"path/to/file.py"` or
            `"path/to/file.py:NAME"`, a Python file or an object in one.
        family: a family's id, `"path/to/file.py:NAME"` (a family, or a function or class that makes one, in a Python
            file), or any object that is a family (see `metarl.TaskFamily`).
        seed: together with the config, determines every number of the run.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        policy: an `nn.Module` from [N, O] to [N, A], used instead of the network that the config describes; or a policy
            to start from (`metarl.sb3.from_sb3(model)`, `AdaptedPolicy.load(path)`), which supplies network, parameters
            and observation statistics; or your own kind of policy (see `metarl.policies.base`).
        workers: number of processes that step environments; None chooses automatically, 0 steps them in this process
            (see `metarl.make_vector`). Results do not depend on it. The processes end with the learner, or on `close`.
        config: settings of the algorithm, which are fields of its `Config`.

    Raises:
        ValueError: an unknown algorithm, family or setting, unsupported spaces, or a policy made for other spaces.
    """

    @torch_defaults
    def __init__(
        self,
        algorithm: str | ModuleType | Algorithm,
        family: str | TaskFamily,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        policy: nn.Module | AdaptedPolicy | Policy | None = None,
        workers: int | None = None,
        **config: Any,
    ):
        self._module: Any = source.named(algorithm) if isinstance(algorithm, str) else checked_algorithm(algorithm)
        self._algorithm_source = source.source_of(algorithm, self._module)
        self.algorithm = source.name_of(algorithm, self._module)
        start = started_from(policy)
        self.config = make_config(self._module, config if start is None else settings_of(start, config))
        self.family = make(family) if isinstance(family, str) else family
        check_is_family(self.family)
        self.seed = _checked_seed(seed)
        self.device = resolve_device(device)
        spaces = spaces_of(self.family)
        if start is not None:
            check_same_spaces("another environment", start.policy.spaces, self.family)
        network = network_of(policy, start)
        if network is None or isinstance(network, nn.Module):
            self.policy: Any = self.config.policy(spaces, network)
        else:
            check_same_spaces("the spaces of this policy", network.spaces, self.family)
            self.policy = network
        self._policy_given = network is not None
        first = self._module.init(self.config, self.policy, self.family, self.seed, self.device)
        self.state = checked_state(self._module, first)
        if start is not None:
            self.state = with_policy(self.state, start, self.device)
        self.state = checkpoint.in_own_memory(self.state)
        self.sampler = Sampler(self.family, self.device, workers)
        self._best_score: float | None = None
        self._choices = Kept()  # of step sizes
        self._run_dir: Path | None = None  # the run that this learner is the state of
        self._latest_is_damaged = False  # in that run, so that this is its previous state
        self._started_from: dict[str, Any] | None = None  # the learner that this one started from, described
        self._family_in_file: dict[str, Any] | None = None  # its signature, in the file that this was loaded from

    def __repr__(self) -> str:
        state = self.state
        return (f"MetaLearner({self.algorithm!r}, {self.family.id!r}, seed={self.seed}, device={str(self.device)!r}): "
                f"{state.iteration} iterations, {state.env_steps:,} environment steps")  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy. Environments and their processes are not copied; the copy creates its own."""
        return portable(self) | {"_module": source.portable(self._module), "_choices": Kept()}

    @torch_defaults
    def __setstate__(self, state: dict[str, Any]) -> None:
        module = state["_module"]
        restore(self, state | {"_module": importlib.import_module(module) if isinstance(module, str) else module})
        self.sampler.device = self.device

    @torch_defaults
    def start_from(self, other: "MetaLearner | Path | str", *, trust: bool = False) -> "MetaLearner":
        """Initialise this learner with what another one has learned: the policy's parameters, the observation
        statistics, and whatever both learn about the inner loop (step sizes, noise, mask, discount). `learn` then
        continues from there.

        Unlike `load`, it keeps this learner's settings, family and seed, so that training can continue with more inner
        steps, another algorithm or a harder family. Iterations and steps are counted from 0, and the outer optimiser
        is reset. Learned step sizes are factors on `inner_lr`, and apply to this learner's; additional inner steps use
        the factors of the last one.

        Args:
            other: a learner with the same network and spaces; or its run directory (the best state) or a checkpoint.
            trust: as in `load`, if `other` is a run or checkpoint.

        Raises:
            ValueError: this learner has already been trained, or the two do not fit.
            CheckpointError: the file is damaged.

        Warns:
            UserWarning: the other learner has learned something about its inner loop that is not learned here.
        """
        path = None if isinstance(other, MetaLearner) else file_path("start_from's learner", other)
        found = other if isinstance(other, MetaLearner) else _best_of(Path(other), yes_or_no("trust", trust))
        name = f"{found.algorithm} on {found.family.id}"
        check_same_spaces(name, found.policy.spaces, self.family)
        own, its = (policy.describe().get("activation") for policy in (self.policy, found.policy))
        start_from(self, found, (self.algorithm, name), (own, its), path)
        return self

    def close(self) -> None:
        """Close the environments and end their processes. They are recreated when needed again."""
        self.sampler.close()

    def __enter__(self) -> "MetaLearner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    @known_arguments
    @torch_defaults
    def learn(
        self,
        iterations: int,
        *,
        run_dir: Path | str | None = None,
        callback: Any = None,
        progress_bar: bool = False,
        eval_every: int = 10,
        eval_tasks: int = 20,
        eval_step_sizes: Sequence[float] = (),
        checkpoint_every: int = 10,
    ) -> "MetaLearner":
        """Run `iterations` further meta-iterations.

        Args:
            run_dir: directory for metrics and checkpoints (without it, nothing is written). A directory that holds
                another run is refused; this learner's own run is continued.
            callback: called with the statistics of every iteration; returning False stops training. May also be a
                stable-baselines3 callback, or a list of both kinds (docs/stable_baselines3.md says which work).
            progress_bar: show iteration, returns, speed and remaining time.
            eval_every: iterations between evaluations on validation tasks, which select the best state; the last
                iteration is always followed by one; 0 disables them.
            eval_tasks: number of validation tasks per evaluation.
            eval_step_sizes: its inner steps, one size per step; by default as in training (at least one step).
            checkpoint_every: write the latest state after this many iterations, and when training ends or is
                interrupted.
        """
        eval_step_sizes = positive_sizes("eval_step_sizes", eval_step_sizes)
        options = Options(iterations, run_dir, callback, progress_bar, eval_every, eval_tasks, checkpoint_every,
                          {"eval_step_sizes": list(eval_step_sizes)})  # fmt: skip
        keep_freed_memory()
        remember(origin_of(self.family))
        remember(source.origin_of(self._module))
        sizes = self._step_sizes(None, list(eval_step_sizes) or None, self._default_steps(1))
        learn(self, KIND, options, partial(self._evaluated, n_tasks=options.eval_tasks, sizes=sizes))
        return self

    def _step(self, state: Any) -> tuple[Any, Stats]:
        with second_derivatives_of(getattr(self.policy, "module", self.policy)):
            output = self._module.iteration(Setup(self.config, self.sampler, self.policy, self.seed), state)
        new, stats = checked_step(self._module, output)
        seconds = max(stats["time/rollout"] + stats["time/update"], 1e-9)
        stats["env_steps"] = new.env_steps
        stats["time/steps_per_second"] = (new.env_steps - state.env_steps) / seconds
        return new, stats

    def _evaluated(self, state: Any, n_tasks: int, sizes: Sequence[float | None]) -> Stats:
        """Statistics of a periodic evaluation."""
        seed = evaluation_seed(self.seed, PERIODIC)
        tasks = self.sampler.tasks(n_tasks, seed, 0, VALIDATION)
        curve = self._evaluate(state, self.sampler, tasks, self.config.episodes, sizes, seed)
        mean = curve.returns.mean((0, 2)).tolist()
        stats = {f"eval/step_{k}": mean[k] for k in shown_episodes(len(mean))}
        if (rates := curve.success_rates) is not None:
            stats |= {f"eval/success_{k}": rates[:, k].mean().item() for k in shown_episodes(len(mean))}
        return stats | {"eval/score": curve.score}

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluation and adaptation

    @known_arguments
    @torch_defaults
    def evaluate(
        self,
        n_tasks: int = 100,
        *,
        episodes: int | None = None,
        steps: int | None = None,
        step_sizes: Sequence[float] | None = None,
        tasks: Tasks | None = None,
        seed: int | None = None,
        details: bool = False,
        split: str | None = None,
    ) -> Evaluation:
        """The adaptation curve on test tasks: mean return after 0, 1, ..., `steps` inner steps.

        Args:
            n_tasks: number of tasks to draw.
            episodes: episodes per task before and after every step; by default as in training.
            steps: inner steps, by default 3; for RL2, the episodes of a trial after the first, by default as in
                training.
            step_sizes: one size per step (`steps` is then not needed). By default those used in training; the sizes of
                steps beyond those of training (and of `lr_schedule`) are chosen on validation tasks.
            tasks: evaluate on these instead of drawing tasks. Tasks outside the range that the family draws from are
                accepted with a UserWarning.
            seed: seed of tasks and episodes; by default derived from the run's seed.
            details: keep all rollouts and parameters in the result.
            split: the split to draw from, by default `"test"`.

        Raises:
            ValueError: the family has no such split, or both `tasks` and `split` are given.
        """
        sizes = self._step_sizes(steps, step_sizes, self._default_steps(3, 3))
        episodes = self.config.episodes if episodes is None else whole("episodes", episodes, 1)
        details = yes_or_no("details", details)
        n_tasks = whole("n_tasks", n_tasks if tasks is None else num_tasks(tasks), 1)
        keep_freed_memory()
        seed = evaluation_seed(self.seed, FINAL) if seed is None else _checked_seed(seed)
        if tasks is not None and split is not None:
            raise ValueError(f"split={split!r} has no effect with tasks=, because nothing is drawn: leave one out")
        split = GIVEN if tasks is not None else split or TEST
        if tasks is None:
            tasks = self.sampler.tasks(n_tasks, seed, 0, split)
        else:
            asked = partial(requested_task, self.family, stacklevel=5)
            tasks = stack_tasks(list(map(asked, [task_at(tasks, i) for i in range(num_tasks(tasks))])))
        sizes, choice = self._chosen_sizes(sizes, step_sizes, episodes)
        found = self._evaluate(self.state, self.sampler, tasks, episodes, sizes, seed)
        returns = found.returns.mean(2).cpu().double().numpy()
        rates = None if found.success_rates is None else found.success_rates.cpu().double().numpy()
        return Evaluation(returns, sizes, {"episodes": episodes}, tasks, seed, found if details else None, rates,
                          choice, split, unit=self.config.unit)  # fmt: skip

    @known_arguments
    @torch_defaults
    def adapt(
        self,
        task: Mapping[str, Any] | gym.Env,
        *,
        steps: int | None = None,
        episodes: int | None = None,
        step_sizes: Sequence[float] | None = None,
        horizon: int | None = None,
        seed: int | None = None,
    ) -> AdaptedPolicy | RecurrentPolicy:
        """Adapt to one environment; the meta-parameters are not changed. RL2 returns a `RecurrentPolicy` that starts
        with the memory left by the first of its trials.

        Args:
            task: a task of the family (with a UserWarning if it is outside the range that the family draws from); or a
                plain Gymnasium environment with the same spaces, which need not belong to any family. If the family
                has its own wrappers (`wrap`), they are applied to it.
            steps: inner steps; by default as many as in training (at least 1).
            episodes: episodes per step; by default as in training.
            step_sizes: one size per step. By default those used in training; the sizes of further steps are chosen on
                validation tasks, as in `evaluate`.
            horizon: steps per episode in a plain environment; by default its own limit, or the family's.
            seed: seed of the episodes.

        Raises:
            ValueError: the task is not a task of the family, or the environment has other spaces.
        """
        sizes = self._step_sizes(steps, step_sizes, self._default_steps(1))
        episodes = self.config.episodes if episodes is None else whole("episodes", episodes, 1)
        seed = evaluation_seed(self.seed, FINAL) if seed is None else _checked_seed(seed)
        horizon = None if horizon is None else whole("horizon", horizon, 1)
        sampler: Sampler | EnvSampler = self.sampler
        tasks: Tasks = {"env": np.zeros(1)}
        if isinstance(task, gym.Env):
            limit = horizon or _time_limit(task) or self.family.horizon
            wrap = getattr(self.family, "wrap", None)
            env = task if wrap is None else wrap(task)
            check_same_spaces(self.family.id, self.policy.spaces, env)
            sampler = EnvSampler(env, limit, self.device, self.sampler.reports_success)
        else:
            tasks = stack_tasks([requested_task(self.family, task, stacklevel=5)])
        sizes, _ = self._chosen_sizes(sizes, step_sizes, episodes)
        found = self._evaluate(self.state, sampler, tasks, episodes, sizes, seed)
        self.sampler.reports_success |= sampler.reports_success
        return found.policy_for(0)

    def _evaluate(
        self,
        state: Any,
        sampler: Sampler | EnvSampler,
        tasks: Tasks,
        episodes: int,
        sizes: Sequence[float | None],
        seed: int,
    ) -> Any:
        setup = Setup(self.config, sampler, self.policy, seed)
        return checked_result(self._module, self._module.evaluate(setup, state, tasks, episodes, sizes))

    def _chosen_sizes(
        self, usual: tuple[float | None, ...], given: Sequence[float] | None, episodes: int
    ) -> tuple[tuple[float | None, ...], Choice | None]:
        """`usual`, with the sizes of steps beyond those of training chosen on validation tasks, unless `given`."""
        if given is not None or self.config.unit != INNER_STEP or len(usual) <= self.config.sized_steps:
            return usual, None
        seed = evaluation_seed(self.seed, STEP_SIZES)
        tasks = self.sampler.tasks(TASKS, seed, 0, VALIDATION)

        def play(sizes: tuple[float, ...]) -> tuple[float, int]:
            found = self._evaluate(self.state, self.sampler, tasks, episodes, sizes, seed)
            return float(found.returns[:, -1].mean()), sum(rollout.steps for rollout in found.rollouts)

        def make() -> Choice:
            return choose(play, [size for size in usual if size is not None], self.config.sized_steps, num_tasks(tasks))

        choice, self._choices = choose_once(self._choices, self.state, (episodes, len(usual)), make)
        return choice.sizes, choice

    def _default_steps(self, least: int, otherwise: int | None = None) -> int:
        """The number of inner steps, as in training or `otherwise`, at least `least`; trials are as long as in
        training."""
        if self.config.unit == EPISODE:
            return self.config.inner_steps
        return max(least, self.config.inner_steps if otherwise is None else otherwise)

    def _step_sizes(self, steps: int | None, sizes: Sequence[float] | None, otherwise: int) -> tuple[float | None, ...]:
        """The sizes of `steps` inner steps (`otherwise` if neither is given), None if they have no size."""
        if self.config.unit == INNER_STEP:
            return checked_step_sizes(steps, sizes, self.config.training_step_sizes, otherwise)
        if sizes is not None:
            raise ValueError(f"{self.algorithm} has no inner step sizes, got {sizes!r}: leave them out; "
                             "steps= says how many further episodes a trial has")  # fmt: skip
        return (None,) * len(checked_step_sizes(steps, None, lambda n: (1.0,) * n, otherwise))

    # -----------------------------------------------------------------------------------------------------------------
    # Saving and loading

    def describe(self) -> dict[str, Any]:
        """Algorithm, family, settings and seed as JSON-serialisable data: everything needed to recreate this
        learner."""
        return {
            "algorithm": self.algorithm,
            "family": signature(self.family),
            "config": saved.settings_as_data(self.config),
            "seed": self.seed,
            "policy": self.policy.kind,
            **({"algorithm_source": self._algorithm_source} if self._algorithm_source else {}),
            **({} if self._made_again else {"described_policy": self.policy.describe()}),
        }

    @property
    def _made_again(self) -> bool:
        """The policy's type if the user supplied it or its module, or the kind that the settings describe."""
        return not self._policy_given or self.policy.kind == ModulePolicy.__name__

    @torch_defaults
    def save(self, path: Path | str) -> None:
        """Write a checkpoint: one file, replaced atomically."""
        checkpoint.save(new_file("path", path), *self._packed(self.state, self._best_score))

    def _packed(self, state: Any, best: float | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors, meta = saved.packed(KIND, self.describe(), state, best)
        return tensors, meta | {"reports_success": self.sampler.reports_success}

    @classmethod
    @torch_defaults
    def load(
        cls,
        path: Path | str,
        family: str | TaskFamily | None = None,
        *,
        device: str | torch.device = "auto",
        policy: nn.Module | AdaptedPolicy | None = None,
        workers: int | None = None,
        algorithm: str | ModuleType | Algorithm | None = None,
        trust: bool = False,
    ) -> "MetaLearner":
        """The learner as it was saved; further training continues bit for bit.

        A file runs no code by itself, but it names the family it needs. Families of this package, registered families
        and those of packages that have already been imported are created from the file's header, with plain arguments.
        Any other package, and file paths or addresses among the arguments, are accepted only if `family` names them or
        `trust` allows them.

        Args:
            path: a checkpoint, or a run directory (its latest state).
            family: needed unless the learner's family came from `metarl.make`. A family that `metarl.make` created with
                other arguments is refused if its spaces differ; if they agree, a UserWarning shows both. The id of a
                Gymnasium environment (`"gym:package:Name-v0"`) that matches the checkpoint's allows importing its
                package; the arguments are the checkpoint's.
            policy: needed if the learner was given its own module, directly or in the policy that it started from.
            workers: number of processes that step environments, as in a new learner.
            algorithm: needed if the learner was given a module: that module, or a file as in a new learner. If the
                learner was created from a file, needed if the file has changed or you have not trained with it before.
            trust: import whatever package the file names, and use whatever arguments it contains.

        Raises:
            CheckpointError: the file is damaged, is not trusted, or was saved with another family or policy.
            ValueError: the device is not available.

        Warns:
            UserWarning: the latest state of a run is damaged, and the previous one is used.
        """
        trust, device = yes_or_no("trust", trust), resolve_device(device)

        def make(file: Path, meta: dict[str, Any]) -> MetaLearner:
            if (policy is None) == (meta["policy"] == ModulePolicy.__name__):
                remedy = "pass that module as policy=" if policy is None else "leave policy= out"
                raise CheckpointError(f"{file} was saved by a learner with a policy of type {meta['policy']}: {remedy}")
            own = load_family(file, meta["family"], family, trust, bool(meta["config"].get("task_critic")))
            brought: Any = policy
            if described := meta.get("described_policy"):  # of a kind that no settings make
                brought = described_policy(meta["policy"], spaces_of(own), described, trust)
            module = source.of_checkpoint(file, meta, algorithm, trust)
            learner = cls(module, own, seed=meta["seed"], device=device, policy=brought, workers=workers,
                          **saved.saved_settings(meta["config"]))  # fmt: skip
            learner.algorithm = meta["algorithm"]  # a file that was renamed since still goes on with the same run
            learner._family_in_file = meta["family"]
            learner.sampler.reports_success = meta.get("reports_success") is True  # older ones do not say it
            return learner

        return saved.load(KIND, file_path("path", path), make)


def _best_of(path: Path, trust: bool) -> MetaLearner:
    """The learner of a checkpoint or of a run: its best state, or its latest if none has been chosen."""
    try:
        return MetaLearner.load(path / BEST if (path / BEST).exists() else path, device="cpu", trust=trust)
    except CheckpointError as error:
        if not path.exists():
            raise
        raise CheckpointError(f"{error} (start_from also takes a learner: MetaLearner.load(path, ...))") from None


def _checked_seed(seed: int) -> int:
    seed = whole("seed", seed)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return seed


def _time_limit(env: gym.Env) -> int | None:
    return None if env.spec is None else env.spec.max_episode_steps
