"""Few-shot classification of handwritten digits: trained on 0 to 4, tested on 5 to 9, 5-way, 1 and 5 shots.

    python experiments/digits/run.py train --seed 0     # one seed; resumes where it was interrupted
    python experiments/digits/run.py report             # table and figure from all trained seeds

Every method is meta-trained on the digits 0 to 4 and their quarter turns (20 classes), and adapted to the same 400
tasks of telling 5, 6, 7, 8 and 9 apart by 10 gradient steps on 1 or 5 examples of each. The baselines start from random
weights, or from a network that was trained to name the digits 0 to 4, with the step size of a grid that does best on
300 other tasks with the test digits (in the baselines' favour: the methods take the size they were trained with). And
there is the nearest neighbour among the support set's pixels, which learns nothing. Needs scikit-learn.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from metarl.supervised import FewShotClasses, Sets, digits, method

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import few_shot  # noqa: E402

ITERATIONS = 300
SHARED: dict[str, Any] = {"n_tasks": 16, "queries": 5, "inner_lr": 0.1, "inner_steps": 5, "hidden": (64,),
                          "anneal_over": ITERATIONS}  # fmt: skip
METHODS = ("maml", "fomaml", "reptile", "anil", "meta_sgd", "maml_plus_plus", few_shot.PRETRAINED)


def settings(name: str) -> dict[str, Any]:
    return SHARED | ({} if name == few_shot.SCRATCH else method(name, ITERATIONS))


def family_of(name: str) -> FewShotClasses:
    return digits(shuffled=False) if name == few_shot.PRETRAINED else digits(rotations=True)


def test_sets(shots: int, protocol: dict[str, int]) -> Sets:
    """The same tasks for everybody."""
    rng = np.random.default_rng(protocol["seed"])
    return digits().sample(protocol["tasks"], rng, "test", shots, protocol["queries"])


EXPERIMENT = few_shot.Experiment(
    HERE, ITERATIONS, settings, (*METHODS, few_shot.SCRATCH), family_of, test_sets, tuning_sets=test_sets,
    test={"tasks": 400, "queries": 15, "seed": 1_357_911}, tuning={"tasks": 300, "queries": 15, "seed": 24_680},
)  # fmt: skip

if __name__ == "__main__":
    few_shot.main(EXPERIMENT, __doc__, {})
