"""Few-shot classification of printed letters: 175 to train on, 54 others to be tested on, 5-way, 1 and 5 shots.

    python experiments/glyphs/run.py choose             # every method's inner step size, on validation letters
    python experiments/glyphs/run.py train --seed 0     # one seed; resumes where it was interrupted
    python experiments/glyphs/run.py report             # table and figure from all trained seeds

Every method is meta-trained on the training letters of `metarl.supervised.glyphs`, and adapted to the same 400 tasks of
telling 5 held-out letters apart by 10 gradient steps on 1 or 5 type faces of each. Its inner step size was chosen on
validation letters, a fifth of the training letters, by shorter runs on the other training letters. The baselines start
from random weights, or from a network that was trained to name all training letters and gets a new last layer, with
the step size of a grid that does best on 300 tasks with the validation letters. And there is the nearest neighbour
among the support set's pixels, which learns nothing. Nothing was chosen by the test letters. Needs matplotlib.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarl.checkpoint import read_json, write_json
from metarl.inner.settings import head_of
from metarl.supervised import FewShotClasses, FewShotLearner, Sets, glyphs, method

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import few_shot  # noqa: E402

ITERATIONS = 300
SHARED: dict[str, Any] = {"n_tasks": 16, "queries": 5, "inner_steps": 3, "hidden": (64, 64)}
ADAM = {"outer_lr": 0.003}
META = ("maml", "fomaml", "reptile", "anil", "meta_sgd", "maml_plus_plus")
CHOSEN = HERE / "results" / "chosen.json"
INNER_LR = (0.1, 0.3, 1.0)
"""Step sizes tried on the validation letters, for every method: one run of `TRIAL` iterations with 1 shot each."""
TRIAL = 150


def letters() -> FewShotClasses:
    """All 175 letters for training: this experiment chooses settings on `validation()`, in trainings of its own."""
    return glyphs(validation_classes=())


def settings(name: str) -> dict[str, Any]:
    chosen = {"inner_lr": read_json(CHOSEN)["chosen"][name]} if name in META else {}
    return settings_for(name, ITERATIONS) | chosen


def settings_for(name: str, iterations: int) -> dict[str, Any]:
    """All but the inner step size; as many inner steps for all but Reptile, which learns from them alone."""
    if name == few_shot.SCRATCH:
        return SHARED
    own = method(name, iterations)
    if name == "reptile":
        return SHARED | own
    return SHARED | own | ADAM | {"anneal_over": iterations, "inner_steps": min(3, own.get("inner_steps", 3))}


@dataclass(frozen=True)
class Naming:
    """One task for all: name every training letter. (With 175 names it is no task out of `FewShotClasses`, whose test
    split would need as many.)"""

    letters: FewShotClasses
    id: str = "naming all training letters"
    loss: Literal["cross_entropy"] = "cross_entropy"

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.letters.x_shape

    @property
    def outputs(self) -> int:
        return len(self.letters.train_classes)

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        """As many examples as tasks of the family have."""
        names = np.array(self.letters.train_classes)
        places = np.flatnonzero(np.isin(self.letters.y, names))
        some = rng.choice(places, (n, (shots + queries) * self.letters.ways))
        x, y = self.letters.x[some], np.searchsorted(names, self.letters.y[some])
        support = shots * self.letters.ways
        return Sets(x[:, :support], y[:, :support], x[:, support:], y[:, support:])


def family_of(name: str) -> FewShotClasses | Naming:
    return Naming(letters()) if name == few_shot.PRETRAINED else letters()


def with_new_head(named: FewShotLearner) -> FewShotLearner:
    """The network that names letters, with a last layer of random weights for as many classes as tasks have."""
    fresh = FewShotLearner(letters(), seed=named.seed, device="cpu", **SHARED)
    body = {name: value for name, value in named.state.params.items() if name not in head_of(list(named.state.params))}
    fresh.state = replace(fresh.state, params=fresh.state.params | body)
    return fresh


def validation() -> FewShotClasses:
    """Of the training letters, every fifth in upper and lower case is for validation and the others for training."""
    all_letters = letters()
    names = list(dict.fromkeys(chr(label).lower() for label in all_letters.train_classes))
    valid = tuple(label for label in all_letters.train_classes if chr(label).lower() in names[2::5])
    rest = tuple(label for label in all_letters.train_classes if label not in valid)
    return replace(all_letters, id="letters for validation", train_classes=rest, test_classes=valid)


def test_sets(shots: int, protocol: dict[str, int]) -> Sets:
    """The same tasks for everybody."""
    return drawn(letters(), shots, protocol)


def tuning_sets(shots: int, protocol: dict[str, int]) -> Sets:
    return drawn(validation(), shots, protocol)


def drawn(family: FewShotClasses, shots: int, protocol: dict[str, int]) -> Sets:
    rng = np.random.default_rng(protocol["seed"])
    return family.sample(protocol["tasks"], rng, "test", shots, protocol["queries"])


EXPERIMENT = few_shot.Experiment(
    HERE, ITERATIONS, settings, (*META, few_shot.PRETRAINED, few_shot.SCRATCH), family_of, test_sets, tuning_sets,
    test={"tasks": 400, "queries": 10, "seed": 1_357_911}, tuning={"tasks": 300, "queries": 10, "seed": 24_680},
    label=chr, with_new_head=with_new_head,
)  # fmt: skip


def choose() -> None:
    """The inner step size of each method with the best accuracy on validation letters after all steps."""
    family, sets = validation(), tuning_sets(1, EXPERIMENT.tuning)
    trials: dict[str, dict[str, float]] = {}
    for name in META:
        trials[name] = {}
        for size in INNER_LR:
            own = settings_for(name, TRIAL) | {"inner_lr": size, "shots": 1}
            learner = FewShotLearner(family, device="cpu", **own)
            try:
                learner.learn(TRIAL)
            except ValueError as error:  # the steps were too large
                print(name, size, error)
                continue
            found = learner.evaluate(sets=sets, step_sizes=[size] * few_shot.STEPS)
            trials[name][str(size)] = round(float(few_shot.accuracy(found)[-1]), 4)
            print(name, size, trials[name][str(size)], flush=True)
    best = {name: float(max(found, key=lambda size: found[size])) for name, found in trials.items()}
    CHOSEN.parent.mkdir(exist_ok=True)
    write_json(CHOSEN, {"iterations": TRIAL, "protocol": EXPERIMENT.tuning, "accuracy": trials, "chosen": best})


if __name__ == "__main__":
    few_shot.main(EXPERIMENT, __doc__, {"choose": choose})
