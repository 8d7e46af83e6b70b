"""Few-shot regression and classification, with the inner loop of the meta-reinforcement learners.

from metarl.supervised import FewShotLearner, Sinusoid
learner = FewShotLearner(Sinusoid(), shots=10).learn(5000, progress_bar=True)
print(learner.evaluate(steps=10).loss)

Imports `training`, `report`, `inner` and the rooms below them.
"""

from metarl.report.evaluation import Evaluation
from metarl.supervised.classes import FewShotClasses, digits
from metarl.supervised.learner import FewShotLearner, FewShotPredictor
from metarl.supervised.letters import glyphs
from metarl.supervised.maml import Config
from metarl.supervised.methods import method
from metarl.supervised.sets import SetFamily, Sets, check_family
from metarl.supervised.sinusoid import Sinusoid

FewShotEvaluation = Evaluation
"""The result type of `evaluate`, the same as in reinforcement learning."""

__all__ = [
    "Config", "FewShotClasses", "FewShotEvaluation", "FewShotLearner", "FewShotPredictor", "SetFamily", "Sets",
    "Sinusoid", "check_family", "digits", "glyphs", "method",
]  # fmt: skip
