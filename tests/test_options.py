"""Every option of every command reaches what it is for: the engine, the file, the thread count, not just the parser.

The options are those of the dataclasses in `metarl.cli`. Each has a case here: the words that set it, and a claim about
the calls that were made deep inside (or the files written) that holds with those words and does not hold without them.
An option without a case fails, and so does an option that is parsed and dropped on the way.
"""

import dataclasses
import functools
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress
import torch
from tiny_runs import TINY, point, same_params

import metarl
from metarl import AdaptedPolicy, MetaLearner, checkpoint, cli, learner
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.algorithms import maml_trpo, rl2, source
from metarl.report import figures
from metarl.rollout import sampler
from metarl.tasks import num_tasks
from metarl.training.train import BEST, LATEST, RunDirectory

SEED = 7  # of the cases; the runs here have 0 and 1


# ---------------------------------------------------------------------------------------------------------------------
# What is recorded


@dataclasses.dataclass
class Outcome:
    """What a command did."""

    calls: list[tuple[str, dict[str, Any]]]
    """(name, arguments by name), in the order in which the calls were made."""
    directory: Path
    """The working directory it ran in."""
    text: str = ""

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def record(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, owner: Any, name: str, label: str) -> None:
    """Let `owner.name` do what it does, and note what it is called with."""
    true = getattr(owner, name)
    builtin = inspect.isbuiltin(true)  # torch's have no signature
    signature = inspect.signature((lambda value: None) if builtin else true)

    @functools.wraps(true)
    def noted(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        outcome.calls.append((label, dict(bound.arguments)))
        return true(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)


ENVIRONMENT = type(point().make({"goal": np.zeros(2, np.float32)}))

RECORDED: tuple[tuple[Any, str, str], ...] = (
    (maml_trpo, "iteration", "iteration"), (maml_trpo, "evaluate", "evaluate"), (rl2, "evaluate", "evaluate"),
    (sampler.Sampler, "tasks", "tasks"), (sampler, "make_vector", "make_vector"),
    (learner, "load_family", "load_family"), (source, "of_checkpoint", "of_checkpoint"),
    (learner, "resolve_device", "resolve_device"),
    (torch, "set_num_threads", "set_num_threads"),
    (checkpoint, "save", "save"), (rich.progress.Progress, "__init__", "progress"),
    (AdaptedPolicy, "predict", "predict"), (RecurrentPolicy, "predict", "predict"), (ENVIRONMENT, "reset", "reset"),
)  # fmt: skip
"""Where options end: nothing below these decides for itself what they say."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `a` and `b`, of other seeds, and `r` of RL2; the best state is not the latest."""
    path = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 0), ("b", 1)):
        made = MetaLearner("maml_trpo", metarl.make("PointNavigation-v0", horizon=5), seed=seed, device="cpu", **TINY)
        made.learn(2, run_dir=path / name, eval_every=0)
        first = MetaLearner("maml_trpo", metarl.make("PointNavigation-v0", horizon=5), seed=seed, device="cpu", **TINY)
        first.learn(1, eval_every=0).save(path / name / BEST)
    small = {"n_tasks": 2, "trials": 2, "trial_episodes": 2, "hidden": 8, "minibatches": 1}
    made = MetaLearner("rl2", metarl.make("PointNavigation-v0", horizon=5), device="cpu", **small)
    made.learn(1, run_dir=path / "r", eval_every=0)
    return path


Words = dict[str, tuple[str, ...] | None]
"""Option -> its words on the command line; None: it is not given. Positional ones have their names without dashes."""

BASE: dict[str, Words] = {
    "train": {"algorithm": ("maml_trpo",), "family": ("PointNavigation-v0",), "--family-kwargs": ("horizon=5",),
              "--n-tasks": ("2",), "--episodes": ("2",), "--hidden": ("8",), "--threads": ("1",), "--no-progress": (),
              "--iterations": ("2",), "--eval-tasks": ("2",), "--out": ("run",)},
    "resume": {"--resume": ("a",), "--iterations": ("4",), "--threads": ("1",), "--no-progress": ()},
    "evaluate": {"run": ("a",), "--tasks": ("2",), "--no-figures": (), "--threads": ("1",)},
    "adapt": {"run": ("a",), "--task": ("goal=0.3,-0.2",)},
    "render": {"run": ("a",), "--out": ("film.gif",)},
}  # fmt: skip
"""The shortest sensible form of every command."""

OPTIONS = {"train": cli.TrainOptions, "resume": cli.ResumeOptions, "evaluate": cli.EvaluateOptions,
           "adapt": cli.AdaptOptions, "render": cli.RenderOptions, "list": cli.ListOptions}  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, runs: Path, directory: Path, command: str, change: Words) -> Outcome:
    """Run a command as in `BASE`, changed, in `directory`, where copies of the runs are."""
    shutil.copytree(runs, directory, dirs_exist_ok=True)
    outcome = Outcome([], directory)
    words = {name: value for name, value in (BASE[command] | change).items() if value is not None}
    argv = ["train" if command == "resume" else command]
    for name, values in words.items():
        argv += [*([name] if name.startswith("-") else []), *values]
    with monkeypatch.context() as patch:
        patch.chdir(directory)
        for owner, name, label in RECORDED:
            record(patch, outcome, owner, name, label)
        assert cli.run(argv) == 0
    return outcome


# ---------------------------------------------------------------------------------------------------------------------
# The cases


Claim = Callable[[Outcome], bool]


def evaluated(claim: Callable[[dict[str, Any]], bool]) -> Claim:
    """Of every adaptation on the tasks that are reported."""
    return lambda outcome: all(claim(x) for x in reported(outcome)) and bool(reported(outcome))


def reported(outcome: Outcome) -> list[dict[str, Any]]:
    """The adaptations whose results are shown, written or filmed: the last; of a film, both."""
    return outcome.of("evaluate")[-1:] if outcome.of("reset") == [] else outcome.of("evaluate")


def saved_iterations(outcome: Outcome) -> list[int]:
    return [x["meta"]["state"]["iteration"] for x in outcome.of("save") if Path(x["path"]).name == LATEST]


def starts_from(name: str, file: str = LATEST, first: str = "iteration") -> Claim:
    """The first state that is worked with is that of a run."""

    def claim(outcome: Outcome) -> bool:
        saved = MetaLearner.load(outcome.directory / name / file, device="cpu")
        return same_params(outcome.of(first)[0]["state"].params, saved.state.params)

    return claim


def starts_from_best(name: str) -> Claim:
    return starts_from(name, BEST, "evaluate")


def starts_from_initial_b(outcome: Outcome) -> bool:
    """The initial state of a run with `SEED`, which its environments and tasks follow too."""
    fresh = MetaLearner("maml_trpo", point(), seed=SEED, device="cpu", **TINY)
    first = outcome.of("iteration")[0]
    return same_params(first["state"].params, fresh.state.params) and first["setup"].seed == SEED


def resumes_from(name: str) -> Claim:
    def claim(outcome: Outcome) -> bool:
        path = outcome.directory / name
        rows = RunDirectory(path).metrics()
        return outcome.of("iteration")[0]["state"].iteration == 2 and rows[-1]["iteration"] == 4

    return claim


def vector_workers(outcome: Outcome) -> bool:
    return {x["workers"] for x in outcome.of("make_vector")} == {0}


def on_cpu(outcome: Outcome) -> bool:
    return outcome.of("resolve_device")[0]["device"] == "cpu"


def two_threads(outcome: Outcome) -> bool:
    return outcome.of("set_num_threads")[0] == {"value": 2}


def shown(outcome: Outcome) -> bool:
    return outcome.of("progress")[-1]["disable"] is False


def draws_and_adapts_with_the_seed(outcome: Outcome) -> bool:
    """The tasks that are reported, and the episodes in them."""
    drawn = any(x["seed"] == SEED and x["split"] == "test" for x in outcome.of("tasks"))
    return drawn and all(x["setup"].seed == SEED for x in reported(outcome))


def films_with_the_seed(outcome: Outcome) -> bool:
    """The task that is drawn, and the episodes that are filmed."""
    drawn = any(x["seed"] == SEED and x["n"] == 1 and x["split"] == "test" for x in outcome.of("tasks"))
    return drawn and [x["seed"] for x in outcome.of("reset")] == [SEED, SEED]


def goal(outcome: Outcome) -> bool:
    return all(np.allclose(x["tasks"]["goal"], [[-0.1, 0.4]]) for x in outcome.of("evaluate"))


def sizes(*expected: float) -> Claim:
    """The inner steps of the last adaptation."""
    return lambda outcome: tuple(outcome.of("evaluate")[-1]["step_sizes"]) == expected


def steps(expected: int) -> Claim:
    return lambda outcome: len(outcome.of("evaluate")[-1]["step_sizes"]) == expected


def episodes(expected: int) -> Claim:
    return evaluated(lambda x: x["episodes"] == expected)


def exists(name: str) -> Claim:
    return lambda outcome: (outcome.directory / name).exists()


def not_exists(name: str) -> Claim:
    return lambda outcome: not (outcome.directory / name).exists()


def iterations(expected: int) -> Claim:
    return lambda outcome: len(outcome.of("iteration")) == expected


def logged_evaluations(expected: int) -> Claim:
    return lambda outcome: (
        sum(row["eval/score"] is not None for row in RunDirectory(outcome.directory / "run").metrics()) == expected
    )


def tasks(expected: int) -> Claim:
    return evaluated(lambda x: num_tasks(x["tasks"]) == expected)


def outside_of_the_square(outcome: Outcome) -> bool:
    """All goals of the last adaptation are."""
    return bool((np.abs(outcome.of("evaluate")[-1]["tasks"]["goal"]).max(1) > 0.5).all())


def trusted(outcome: Outcome) -> bool:
    return [x["trust"] for x in outcome.of("load_family")] == [True]


def named(outcome: Outcome) -> bool:
    return [x["given"] for x in outcome.of("load_family")] == ["PointNavigation-v0"]


def named_algorithm(outcome: Outcome) -> bool:
    return [x["given"] for x in outcome.of("of_checkpoint")] == ["maml_trpo"]


NAMED: dict[str, tuple[Words, Claim]] = {
    "family": ({"--family": ("PointNavigation-v0",)}, named),
    "algorithm": ({"--algorithm": ("maml_trpo",)}, named_algorithm),
    "trust": ({"--trust": ()}, trusted),
}
"""What the commands that load a checkpoint have in common."""

CASES: dict[str, dict[str, tuple[Words, Claim]]] = {
    "train": {
        "family": ({"family": ("PointNavigationSparse-v0",)},
                   lambda o: {x["self"].family.id for x in o.of("tasks")} == {"PointNavigationSparse-v0"}),
        "iterations": ({"--iterations": ("3",)}, iterations(3)),
        "seed": ({"--seed": (str(SEED),)}, starts_from_initial_b),
        "start_from": ({"--start-from": ("b",)}, starts_from("b", BEST)),
        "trust": ({"--start-from": ("b",), "--trust": ()}, trusted),
        "out": ({"--out": ("elsewhere",)}, exists("elsewhere/latest.safetensors")),
        "device": ({"--device": ("cpu",)}, on_cpu),
        "threads": ({"--threads": ("2",)}, two_threads),
        "workers": ({"--workers": ("0",)}, vector_workers),
        "family_kwargs": ({"--family-kwargs": ("horizon=4",)},
                          lambda o: {x["self"].family.horizon for x in o.of("tasks")} == {4}),
        "eval_every": ({"--eval-every": ("1",)}, logged_evaluations(2)),
        "eval_tasks": ({"--eval-tasks": ("3",)}, tasks(3)),
        "eval_step_sizes": ({"--eval-step-sizes": ("0.3", "0.2")}, sizes(0.3, 0.2)),
        "checkpoint_every": ({"--checkpoint-every": ("1",)}, lambda o: 1 in saved_iterations(o)),
        "progress": ({"--no-progress": None}, shown),
    },
    "resume": NAMED | {
        "resume": ({"--resume": ("b",)}, resumes_from("b")),
        "iterations": ({"--iterations": ("5",)}, iterations(3)),
        "device": ({"--device": ("cpu",)}, on_cpu),
        "threads": ({"--threads": ("2",)}, two_threads),
        "workers": ({"--workers": ("0",)}, vector_workers),
        "progress": ({"--no-progress": None}, shown),
    },
    "evaluate": NAMED | {
        "run": ({"run": ("b",)}, starts_from_best("b")),
        "checkpoint": ({"--checkpoint": ("latest",)}, starts_from("a", LATEST, "evaluate")),
        "split": ({"--split": ("ood",)}, outside_of_the_square),
        "tasks": ({"--tasks": ("3",)}, tasks(3)),
        "episodes": ({"--episodes": ("3",)}, episodes(3)),
        "steps": ({"--steps": ("2",)}, steps(2)),
        "step_sizes": ({"--step-sizes": ("0.3", "0.2")}, sizes(0.3, 0.2)),
        "seed": ({"--seed": (str(SEED),)}, draws_and_adapts_with_the_seed),
        "device": ({"--device": ("cpu",)}, on_cpu),
        "threads": ({"--threads": ("2",)}, two_threads),
        "workers": ({"--workers": ("0",)}, vector_workers),
        "out": ({"--out": ("elsewhere",)}, exists("elsewhere/adaptation.json")),
        "figures": ({"--no-figures": None}, exists("a/evaluation/adaptation.png")),
    },
    "adapt": NAMED | {
        "run": ({"run": ("b",)}, starts_from_best("b")),
        "task": ({"--task": ("goal=-0.1,0.4",)}, goal),
        "checkpoint": ({"--checkpoint": ("latest",)}, starts_from("a", LATEST, "evaluate")),
        "steps": ({"--steps": ("2",)}, steps(2)),
        "step_sizes": ({"--step-sizes": ("0.3", "0.2")}, sizes(0.3, 0.2)),
        "episodes": ({"--episodes": ("3",)}, episodes(3)),
        "seed": ({"--seed": (str(SEED),)}, evaluated(lambda x: x["setup"].seed == SEED)),
        "out": ({"--out": ("elsewhere",)}, exists("elsewhere.safetensors")),
    },
    "render": NAMED | {
        "run": ({"run": ("b",)}, starts_from_best("b")),
        "task": ({"--task": ("goal=-0.1,0.4",)}, goal),
        "checkpoint": ({"--checkpoint": ("latest",)}, starts_from("a", LATEST, "evaluate")),
        "steps": ({"--steps": ("2",)}, steps(2)),
        "step_sizes": ({"--step-sizes": ("0.3", "0.2")}, sizes(0.3, 0.2)),
        "episodes": ({"--episodes": ("3",)}, episodes(3)),
        "seed": ({"--seed": (str(SEED),)}, films_with_the_seed),
        "stochastic": ({"--stochastic": ()}, lambda o: {x["deterministic"] for x in o.of("predict")} == {False}),
        "out": ({"--out": ("elsewhere.gif",)}, exists("elsewhere.gif")),
    },
    "list": {},
}  # fmt: skip

RL2_CASES = {
    "evaluate": ("tasks", "episodes", "steps", "seed", "workers"),
    "adapt": ("task", "steps", "episodes", "seed"),
    "render": ("task", "steps", "episodes", "seed", "stochastic"),
}
"""The options that RL2, which has no step sizes and an engine of its own, is to obey as well."""


def test_every_command_has_its_options_listed_here():
    defined = {x for name, x in vars(cli).items() if name.endswith("Options") and dataclasses.is_dataclass(x)}
    assert set(OPTIONS.values()) == defined
    elsewhere = {"benchmark", "compare"}  # tests/benchmark
    assert set(OPTIONS) | elsewhere == {*cli.COMMANDS, "resume"}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_has_a_case(command):
    missing = {field.name for field in dataclasses.fields(OPTIONS[command])} ^ set(CASES[command])
    assert not missing, f"metarl {command}: no case in this file for {sorted(missing)}, or one for no option"


@pytest.fixture(scope="module")
def base(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    """The outcomes of the commands as they stand in `BASE`."""

    @functools.cache
    def made(command: str, run: str) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            change: Words = {} if run == "a" else {"run": (run,)}
            return call(patch, runs, tmp_path_factory.mktemp(command), command, change)

    return made


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, cases in CASES.items() for option in cases]
)
def test_every_option_reaches_its_call_with_its_value(command, option, runs, base, tmp_path, monkeypatch, capsys):
    change, claim = CASES[command][option]
    assert not claim(base(command, "a")), "the claim has to fail without the option"
    assert claim(call(monkeypatch, runs, tmp_path, command, change))


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, names in RL2_CASES.items() for option in names]
)
def test_options_reach_rl2_too(command, option, runs, base, tmp_path, monkeypatch, capsys):
    change, claim = CASES[command][option]
    assert not claim(base(command, "r")), "the claim has to fail without the option"
    assert claim(call(monkeypatch, runs, tmp_path, command, change | {"run": ("r",)}))


@pytest.mark.parametrize("command", ["train", "evaluate", "adapt", "render"])  # a resumed run keeps its settings
def test_a_family_in_a_file_reaches_its_call_too(command, runs, base, tmp_path, monkeypatch, capsys):
    (tmp_path / "family.py").write_text(
        "import metarl\ndef make_family():\n    return metarl.make('PointNavigation-v0', horizon=5)\n"
    )
    change: Words = {"--family": ("family.py:make_family",)}
    if command == "train":
        change = {"family": ("family.py:make_family",), "--family-kwargs": None}

    def claim(outcome: Outcome) -> bool:
        made = {x["self"].family.spec.id for x in outcome.of("tasks")}
        given = [x["given"] for x in outcome.of("load_family")]
        return made == {"family.py:make_family"} if command == "train" else given == ["family.py:make_family"]

    assert not claim(base(command, "a"))
    assert claim(call(monkeypatch, runs, tmp_path, command, change))


@pytest.mark.parametrize("option", ["device", "workers", "tasks", "seed"])
def test_options_hold_for_a_checkpoint_file_as_for_a_run(option, runs, tmp_path, monkeypatch, capsys):
    change, claim = CASES["evaluate"][option]
    file: Words = {"run": (f"a/{LATEST}",)}
    assert not claim(call(monkeypatch, runs, tmp_path / "without", "evaluate", file))
    assert claim(call(monkeypatch, runs, tmp_path / "with", "evaluate", file | change))


def test_a_film_shows_the_policy_before_any_step_and_after_the_steps_of_training(base):
    assert [len(x["step_sizes"]) for x in base("render", "a").of("evaluate")] == [0, 1]


def test_the_picture_of_an_evaluation_has_the_paths_of_its_episodes(runs, tmp_path, monkeypatch, capsys):
    drawn: list[Any] = []
    figure = figures.evaluation_figure
    monkeypatch.setattr(figures, "evaluation_figure", lambda *args: drawn.append(figure(*args)) or drawn[-1])
    call(monkeypatch, runs, tmp_path, "evaluate", {"--no-figures": None})
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 4
    assert [title.partition(":")[0] for title in titles[-2:]] == ["before adaptation", "after 3 inner steps"]
