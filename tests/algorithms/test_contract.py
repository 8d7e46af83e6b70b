"""The contract of algorithms: all twelve keep it, and each way to break it is found by itself."""

import ast
import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import metarl
from metarl import MetaLearner, algorithms, check_algorithm
from metarl.algorithms import maml_vpg
from metarl.algorithms.check import AlgorithmError

SMALL: dict[str, Any] = {"n_tasks": 2, "episodes": 2, "hidden": (4,)}
ROOT = Path(metarl.__file__).parent


def settings(name: str) -> dict[str, Any]:
    return {"n_tasks": 2, "hidden": 4, "minibatches": 1} if name == "rl2" else SMALL


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_all_algorithms_keep_the_contract(name):
    assert check_algorithm(algorithms.get(name), **settings(name)) == []


# ---------------------------------------------------------------------------------------------------------------------
# One broken algorithm for each way to be wrong


def broken(**changes: Any) -> SimpleNamespace:
    """MAML-VPG with something else in its place; what is None is left out."""
    names = {name: getattr(maml_vpg, name) for name in ("Config", "State", "init", "iteration", "evaluate")}
    found = {**names, "__name__": "broken", **changes}
    return SimpleNamespace(**{name: value for name, value in found.items() if value is not None})


@dataclass
class Thawed:
    n_tasks: int = 2


@dataclass(frozen=True)
class Bare:
    inner_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class WithoutDefault(maml_vpg.Config):
    wanted: int


@dataclass(frozen=True)
class Epochs(maml_vpg.Config):
    @property
    def unit(self) -> str:
        return "epoch"


SizelessConfig = dataclass(frozen=True)(
    type("SizelessConfig", (), {"__annotations__": {"n_tasks": int, "episodes": int, "inner_steps": int}, "n_tasks": 1,
                                "episodes": 1, "inner_steps": 1, "unit": "inner step", "policy": None})
)  # fmt: skip


@dataclass(frozen=True)
class Forgetful:
    params: dict = field(default_factory=dict)
    WARM_START: ClassVar = ("params",)


@dataclass(frozen=True)
class Undecided:
    params: dict
    iteration: int = 0
    env_steps: int = 0
    obs_stats: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Mistaken(Undecided):
    WARM_START: ClassVar = ("params", "critic")


@dataclass(frozen=True)
class Holding(maml_vpg.State):
    code: Any = None


def init_with(**changes: Any) -> Any:
    def init(config: Any, policy: Any, family: Any, seed: int, device: Any = "cpu") -> Any:
        return replace(maml_vpg.init(config, policy, family, seed, device), **changes)

    return init


def random_init(config: Any, policy: Any, family: Any, seed: int, device: Any = "cpu") -> Any:
    return maml_vpg.init(config, policy, family, int(torch.randint(1000, ())) + 10, device)


def holding_init(config: Any, policy: Any, family: Any, seed: int, device: Any = "cpu") -> Any:
    state = maml_vpg.init(config, policy, family, seed, device)
    return Holding(**{f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, code=print)


def iteration_then(change: Any) -> Any:
    def iteration(setup: Any, state: Any) -> Any:
        return change(state, *maml_vpg.iteration(setup, state))

    return iteration


def in_place(old: Any, state: Any, stats: Any) -> Any:
    for value in old.params.values():
        value += 1
    return state, stats


def noisy(old: Any, state: Any, stats: Any) -> Any:
    return replace(state, params={n: x + 0.1 * torch.rand(()) for n, x in state.params.items()}), stats


def result_with(**changes: Any) -> Any:
    def evaluate(setup: Any, state: Any, tasks: Any, episodes: int, step_sizes: Any) -> Any:
        found = maml_vpg.evaluate(setup, state, tasks, episodes, step_sizes)
        names = ("returns", "success_rates", "rollouts", "score", "policy_for")
        kept = {name: getattr(found, name) for name in names} | changes
        return SimpleNamespace(**{name: x for name, x in kept.items() if x != "gone"})

    return evaluate


def fails(*_: Any, **__: Any) -> Any:
    raise KeyError("of mine")


class Still:
    def predict(self, obs: Any) -> Any:
        return torch.full((2,), 9.0).numpy(), None


BROKEN: dict[str, tuple[Any, str, str]] = {
    "a name is missing": (broken(evaluate=None), "the module", "has no evaluate"),
    "settings that can change": (broken(Config=Thawed), "Config", "is no frozen dataclass"),
    "a setting without default": (broken(Config=WithoutDefault), "Config", "its field 'wanted' has no default"),
    "settings that lack a name": (broken(Config=Bare), "Config", "has no n_tasks, episodes, unit, policy"),
    "another unit": (broken(Config=Epochs), "Config", "unit is 'epoch'"),
    "steps without sizes": (broken(Config=SizelessConfig), "Config", "has no training_step_sizes, sized_steps"),
    "a state that is no dataclass": (broken(State=dict), "State", "is no dataclass"),
    "a state that does not count": (broken(State=Forgetful), "State", "has no field iteration, env_steps, obs_stats"),
    "nothing said of a warm start": (broken(State=Undecided), "State", "does not say what a warm start takes over"),
    "a warm start of no field": (broken(State=Mistaken), "State", "WARM_START names critic"),
    "other arguments": (broken(iteration=lambda config, sampler, state: 0), "iteration", "cannot be called with"),
    "init raises": (broken(init=lambda c, p, f, s, d: fails()), "init", "raised KeyError: 'of mine'"),
    "init returns no state": (broken(init=lambda c, p, f, s, d: {}), "init", "returned a dict"),
    "it starts late": (broken(init=init_with(iteration=3)), "init", "starts at iteration 3"),
    "parameters that are none": (broken(init=init_with(params=[1.0])), "init", "params is no dict of tensors"),
    "init without its seed": (broken(init=random_init), "init", "gives other parameters for the same seed"),
    "iteration raises": (broken(iteration=lambda setup, state: fails()), "iteration", "raised KeyError: 'of mine'"),
    "iteration returns a state alone": (
        broken(iteration=iteration_then(lambda old, state, stats: state)), "iteration", "returned a State"),
    "it writes into the old state": (broken(iteration=iteration_then(in_place)), "iteration", "changed the state"),
    "it does not count": (
        broken(iteration=iteration_then(lambda old, state, stats: (replace(state, iteration=0), stats))),
        "iteration", "iteration went from 0 to 0"),
    "it counts other steps": (
        broken(iteration=iteration_then(lambda old, state, stats: (replace(state, env_steps=7), stats))),
        "iteration", "counted 7 environment steps and took 80"),
    "parameters that are not finite": (
        broken(iteration=iteration_then(lambda old, state, stats: (
            replace(state, params={name: x * torch.nan for name, x in state.params.items()}), stats))),
        "iteration", "are not finite"),
    "a next state that is no data": (
        broken(iteration=iteration_then(lambda old, state, stats: (
            replace(state, learned={"now": lambda: 0}), stats))),
        "iteration", "its state cannot be saved and loaded"),
    "it logs too little": (
        broken(iteration=iteration_then(lambda old, state, stats: (state, {"time/update": 0.0}))),
        "iteration", "its statistics lack return/step_0, time/rollout"),
    "it logs what is no number": (
        broken(iteration=iteration_then(lambda old, state, stats: (state, stats | {"mood": "good"}))),
        "iteration", "its statistics mood are no numbers"),
    "it is random": (broken(iteration=iteration_then(noisy)), "iteration", "gives another state when it is called"),
    "a state that holds code": (broken(State=Holding, init=holding_init), "State", "cannot be saved and loaded"),
    "evaluate raises": (broken(evaluate=lambda s, st, t, e, z: fails()), "evaluate", "raised KeyError: 'of mine'"),
    "a result that lacks a name": (broken(evaluate=result_with(score="gone")), "evaluate", "its result has no score"),
    "returns of another shape": (
        broken(evaluate=result_with(returns=torch.zeros(2, 2))), "evaluate", "have the shape (2, 2)"),
    "rollouts of another number": (broken(evaluate=result_with(rollouts=[])), "evaluate", "has 0 rollouts"),
    "a score that is none": (broken(evaluate=result_with(score=torch.ones(2))), "evaluate", "score is tensor"),
    "a policy that raises": (broken(evaluate=result_with(policy_for=fails)), "evaluate", "predict raised KeyError"),
    "a policy of other spaces": (
        broken(evaluate=result_with(policy_for=lambda task: Still())), "evaluate", "which is not in Box"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_algorithm_has_the_one_finding_that_it_was_broken_for(name):
    module, where, problem = BROKEN[name]
    own = SMALL if issubclass(module.Config, maml_vpg.Config) else {}
    found = check_algorithm(module, raise_problems=False, **own)
    assert [(one.where, problem in one.problem) for one in found] == [(where, True)], found
    with pytest.raises(AlgorithmError, match="broken has 1 problem"):
        check_algorithm(module, **own)


def test_a_namespace_without_a_name_and_a_path_are_told_what_they_lack():
    nameless = SimpleNamespace(**{name: x for name, x in vars(broken()).items() if name != "__name__"})
    with pytest.raises(AlgorithmError, match=r"a SimpleNamespace has 1 problem(.|\n)*has no __name__"):
        check_algorithm(nameless)
    with pytest.raises(ValueError, match=r"takes a module or an object with its names, got 'es.py': import the file"):
        check_algorithm("es.py")


def test_a_learner_refuses_what_can_be_seen_to_be_no_algorithm():
    with pytest.raises(AlgorithmError, match="has no evaluate"):
        MetaLearner(broken(evaluate=None), "PointNavigation-v0")


@pytest.mark.parametrize("name", ["maml_vpg", "rl2"])
def test_a_result_gives_every_task_its_own_policy(name):
    learner = MetaLearner(name, metarl.make("PointNavigation-v0", horizon=5), device="cpu", **settings(name))
    found = learner.evaluate(n_tasks=3, steps=1, details=True).details
    whose = []
    for task in range(3):
        policy = found.policy_for(task)
        assert policy.returns.tolist() == pytest.approx(found.returns[task].mean(-1).tolist())
        whose.append(policy.memory.hidden if name == "rl2" else policy.params["w0"])
        expected = found.memory.hidden[task, 0] if name == "rl2" else found.params[-1]["w0"][task]
        assert torch.equal(whose[-1], expected)
    assert not torch.equal(whose[0], whose[1])  # the control: tasks differ


# ---------------------------------------------------------------------------------------------------------------------
# Who may know what

OWNERS = {"MLPPolicy": "policies", "CNNPolicy": "policies", "ModulePolicy": "policies", "GRUPolicy": "policies",
          "AdaptedPolicy": "adapted", "RecurrentPolicy": "adapted"}  # fmt: skip


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]


def told_apart_by_type(path: Path) -> list[str]:
    """isinstance of a policy outside of the room that owns its type."""
    room, out = path.relative_to(ROOT).parts[0], []
    for call in calls(path):
        if call.func.id == "isinstance":
            names = {x.id for x in ast.walk(call.args[1]) if isinstance(x, ast.Name)}
            out += [f"{path.name}:{call.lineno} {x}" for x in names if OWNERS.get(x, room) != room]
    return out


def sniffed(path: Path) -> list[str]:
    """getattr with a default, or hasattr, of settings."""
    out = []
    for call in calls(path):
        asked = call.func.id == "hasattr" or (call.func.id == "getattr" and len(call.args) == 3)
        if asked and ast.unparse(call.args[0]).rpartition(".")[2] == "config":
            out.append(f"{path.name}:{call.lineno}")
    return out


FILES = sorted(path for path in ROOT.rglob("*.py") if "sb3" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_asks_for_the_type_of_a_policy_or_whether_settings_have_a_name(path):
    if path.name != "check.py":  # whose task it is
        assert told_apart_by_type(path) == [] and sniffed(path) == []


def test_the_search_finds_what_it_looks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "learner.py"
    path.write_text("isinstance(p, GRUPolicy)\nhasattr(self.config, 'inner_lr')\ngetattr(config, 'x', 0)\n")
    assert len(told_apart_by_type(path)) == 1 and len(sniffed(path)) == 2
