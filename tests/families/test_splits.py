"""Splits: nothing is chosen on test tasks; families may have further splits; tasks outside of the training range."""

import itertools
import json
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

import metarl
from metarl import MetaLearner, check_family, from_gymnasium
from metarl.cli import run as cli
from metarl.report.evaluation import FINAL, evaluation_seed
from metarl.splits import SPLITS, sample_split, split_rng, splits_of
from metarl.supervised import FewShotClasses, FewShotLearner, Sinusoid, glyphs

RNG = np.random.default_rng
TINY: dict[str, Any] = {"n_tasks": 3, "episodes": 3, "hidden": (8,), "device": "cpu"}


class Push(gym.Env):
    """Pays its action times `g`; negative ones it refuses."""

    observation_space, action_space = Box(-1.0, 1.0, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    made: list[float] = []  # noqa: RUF012

    def __init__(self, g: float = 1.0):
        if g < 0:
            raise ValueError("g must not be negative")
        self.g = g
        Push.made.append(g)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(self.g * action[0]), False, False, {}


def pushes(high: float = 15.0, **more: Any) -> Any:
    return from_gymnasium(Push, {"g": Box(5.0, high)}, horizon=4, **more)


OOD: dict[str, Any] = {"splits": {"ood": {"g": Box(15.0, 20.0)}}}


class Old:
    """A family as they were before there were further splits: it knows training and testing."""

    id, horizon = "Old-v0", 4
    observation_space, action_space = Push.observation_space, Push.action_space
    task_space = gym.spaces.Dict({"g": Box(0.0, 9.0, (), np.float64)})
    values: Any = None

    def sample(self, n, rng, split="train"):
        low, high = {"train": (0.0, 4.0), "test": (5.0, 9.0)}[split]
        values = {"train": (1.0, 2.0, 3.0), "test": (6.0, 7.0)}[split]
        return {"g": rng.choice(values, n) if self.values else rng.uniform(low, high, n)}

    def make(self, task):
        return gym.wrappers.TimeLimit(Push(float(task["g"])), self.horizon)


# ---------------------------------------------------------------------------------------------------------------------
# Which splits there are


def test_a_family_has_three_splits_or_those_that_it_states():
    assert splits_of(Old()) == SPLITS == ("train", "validation", "test")
    assert splits_of(SimpleNamespace(id="x", splits=["test", "hard", "train"])) == (*SPLITS, "hard")


@pytest.mark.parametrize("stated", ["train", ["train"], [1, 2], 5, ["train", "test", ""]])
def test_nonsense_in_splits_is_refused(stated):
    with pytest.raises(ValueError, match="splits of x "):
        splits_of(SimpleNamespace(id="x", splits=stated))


def test_no_two_splits_share_a_draw():
    names = (*SPLITS, "ood", "hard")
    draws = [set(split_rng(RNG(7), name, names).uniform(size=1000)) for name in names]
    assert all(not one & other for one, other in itertools.combinations(draws, 2))


@pytest.mark.parametrize("family", [Old(), pushes(**OOD), metarl.make("PointNavigation-v0"),
                                    metarl.make("visible:PointNavigation-v0")], ids=lambda f: f.id)  # fmt: skip
def test_an_unknown_split_is_answered_with_those_that_there_are(family):
    with pytest.raises(ValueError, match=r"has no split 'odd'; its splits are 'train', 'validation', 'test'"):
        MetaLearner("maml_trpo", family, **TINY).evaluate(2, split="odd", steps=0)


def test_a_family_that_knows_training_and_testing_is_asked_for_nothing_else():
    """Validation tasks are further training tasks: never test tasks, and never the draws of training."""
    train, validation = (sample_split(Old(), 50, RNG(0), split)["g"] for split in ("train", "validation"))
    assert validation.max() < 4 and not set(train) & set(validation)
    assert set(sample_split(Old(), 50, RNG(0), "train")["g"]) == set(train)  # as before
    finite = Old()
    finite.values = True
    assert set(sample_split(finite, 50, RNG(0), "validation")["g"]) == {1.0, 2.0, 3.0}
    assert check_family(Old(), raise_problems=False) == check_family(finite, raise_problems=False) == []


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is chosen on test tasks


def drawn_by(action: Any, family: Any) -> dict[str, set[float]]:
    """split -> tasks that `action` drew of the family."""
    drawn: dict[str, set[float]] = {}
    sample = family.sample

    def recorded(n, rng, split="train"):
        tasks = sample(n, rng, split)
        drawn.setdefault(split, set()).update(tasks["g"].tolist())
        return tasks

    family.sample = recorded
    action()
    return drawn


@pytest.mark.parametrize("algorithm", ["maml_trpo", "reptile", "rl2"])
@pytest.mark.parametrize("made", [pushes, Old])
def test_training_builds_no_environment_of_a_test_task(algorithm, made):
    settings: dict[str, Any] = {"n_tasks": 3, "device": "cpu", "workers": 0}
    settings |= {"minibatches": 1} if algorithm == "rl2" else {"episodes": 3, "hidden": (8,)}
    learner = MetaLearner(algorithm, made(), **settings)
    Push.made.clear()
    drawn = drawn_by(lambda: learner.learn(2, eval_every=1, eval_tasks=4), learner.family)
    assert "test" not in drawn
    final = set(learner.sampler.tasks(100, evaluation_seed(0, FINAL), 0, "test")["g"].tolist())
    assert not set(Push.made) & final


def test_the_choice_of_step_sizes_builds_no_environment_of_a_test_task():
    learner = MetaLearner("maml_trpo", pushes(), workers=0, **TINY)
    final = learner.sampler.tasks(5, evaluation_seed(0, FINAL), 0, "test")["g"].tolist()
    Push.made.clear()
    found = learner.evaluate(5, steps=2)
    assert set(found.tasks["g"].tolist()) == set(final) <= set(Push.made)  # the control: they are met in the end
    Push.made.clear()
    drawn = drawn_by(lambda: learner.adapt({"g": 6.0}, steps=3), learner.family)
    assert list(drawn) == ["validation"] and not set(Push.made) & set(final)


LETTERS = {"train_classes": (0, 1, 2, 3), "test_classes": (4, 5, 6), "validation_classes": (7, 8, 9)}
LABELLED = FewShotClasses("c", RNG(0).normal(size=(60, 2)), np.arange(60) % 12, ways=2, **LETTERS)


@pytest.mark.parametrize("family", [LABELLED, Sinusoid()], ids=lambda f: f.id)
def test_few_shot_learning_chooses_on_validation_tasks(family, tmp_path):
    asked: list[str] = []

    class Spy:
        id, x_shape, outputs, loss = family.id, family.x_shape, family.outputs, family.loss
        splits = family.splits

        def sample(self, n, rng, split, shots, queries):
            asked.append(split)
            return family.sample(n, rng, split, shots, queries)

    learner = FewShotLearner(Spy(), shots=1, queries=1, n_tasks=2, hidden=(4,), device="cpu")
    asked.clear()
    learner.learn(2, eval_every=1, eval_tasks=3)
    assert set(asked) == {"train", "validation"}


def test_held_out_classes_are_in_one_split_only():
    family = glyphs()
    seen = {s: set(family.sample(300, RNG(0), s, 1, 1).parameters["classes"].ravel()) for s in SPLITS}
    assert [len(classes) for classes in seen.values()] == [142, 33, 54]
    assert all(not one & other for one, other in itertools.combinations(seen.values(), 2))
    assert len(glyphs(validation_classes=()).train_classes) == 175
    with pytest.raises(ValueError, match=r"classes \[1\] are in both splits, test and validation"):
        FewShotClasses(
            "c", np.zeros((6, 2)), np.arange(6) % 3, (0, 2), (1, 0)[:1] * 2 + (1,), 2, validation_classes=(1,)
        )


def test_a_score_on_test_tasks_of_an_earlier_version_is_not_compared_with(tmp_path):
    from metarl import checkpoint

    learner = MetaLearner("maml_trpo", "PointNavigation-v0", **TINY)
    learner._best_score = 5.0
    learner.save(tmp_path / "new.safetensors")
    tensors, meta = checkpoint.load(tmp_path / "new.safetensors")
    checkpoint.save(tmp_path / "old.safetensors", tensors, {k: v for k, v in meta.items() if k != "chosen_on"})
    assert MetaLearner.load(tmp_path / "new.safetensors")._best_score == 5.0
    assert MetaLearner.load(tmp_path / "old.safetensors")._best_score is None


# ---------------------------------------------------------------------------------------------------------------------
# Further splits


def test_a_further_split_lies_where_it_says_and_widens_nothing():
    family = pushes(**OOD)
    assert family.splits == (*SPLITS, "ood") and family.task_space == pushes().task_space
    values = {split: family.sample(200, RNG(0), split)["g"] for split in family.splits}
    assert values["ood"].min() >= 15.0 and values["ood"].max() > 19.0
    assert all(x.max() <= 15.0 for split, x in values.items() if split != "ood")
    assert np.array_equal(values["test"], pushes().sample(200, RNG(0), "test")["g"])
    assert check_family(family) == [] and "in 'ood'" in repr(family)


def test_a_validation_split_follows_training_and_can_be_given():
    splits = {"train": {"g": [1.0, 2.0]}, "test": {"g": [3.0]}}
    family = from_gymnasium(Push, {}, splits=splits, horizon=4)
    assert set(family.sample(50, RNG(0), "validation")["g"]) == {1.0, 2.0} and not family.shared_splits
    own = from_gymnasium(Push, {}, splits={**splits, "validation": {"g": [4.0]}}, horizon=4)
    assert set(own.sample(50, RNG(0), "validation")["g"]) == {4.0}
    assert check_family(family) == check_family(own) == []


def test_a_family_with_further_splits_is_made_again_from_a_checkpoint(tmp_path):
    family = from_gymnasium("Pendulum-v1", {"g": Box(5.0, 10.0)}, horizon=5, splits={"ood": {"g": Box(10.0, 12.0)}})
    MetaLearner("maml_trpo", family, **TINY).save(tmp_path / "x.safetensors")
    again = MetaLearner.load(tmp_path / "x.safetensors")
    assert again.family == family and again.evaluate(2, split="ood", steps=0).tasks["g"].min() >= 10.0


def test_evaluations_of_two_splits_stand_side_by_side(tmp_path):
    learner = MetaLearner("maml_trpo", pushes(**OOD), **TINY)
    found = {split: learner.evaluate(6, split=split, steps=1) for split in ("test", "ood")}
    assert found["ood"].split == "ood" and found["ood"].tasks["g"].min() >= 15.0 >= found["test"].tasks["g"].max()
    assert "6 ood tasks" in str(found["ood"])
    for evaluation in found.values():
        evaluation.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adaptation-ood.csv", "adaptation-ood.json", "adaptation.csv", "adaptation.json",
    ]  # fmt: skip
    read = [json.loads((tmp_path / name).read_text())["split"] for name in ("adaptation.json", "adaptation-ood.json")]
    assert read == ["test", "ood"]
    with pytest.raises(ValueError, match="split='ood' has no effect with tasks="):
        learner.evaluate(split="ood", tasks={"g": np.array([6.0])})


def test_the_command_line_shows_splits_side_by_side(tmp_path, capsys):
    MetaLearner("maml_trpo", "PointNavigation-v0", **TINY).learn(1, run_dir=tmp_path / "run", eval_every=0)
    assert cli(["evaluate", str(tmp_path / "run"), "--split", "test", "ood", "--tasks", "5", "--steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "5 test and ood tasks" in shown and "test [95% interval]" in shown and "ood [95% interval]" in shown
    names = {path.name for path in (tmp_path / "run" / "evaluation").iterdir()}
    assert names >= {"adaptation.json", "adaptation-ood.json"}
    assert "adaptation-test-ood.png" in names or "no picture" in shown
    with pytest.raises(ValueError, match=r"has no split 'odd'; its splits are .*'ood'"):
        cli(["evaluate", str(tmp_path / "run"), "--split", "odd"])


def test_check_family_checks_every_split():
    class Hard(Old):
        splits = ("train", "validation", "test", "hard")

        def sample(self, n, rng, split="train"):
            if split == "hard":
                return {"g": -rng.uniform(1, 2, n)}  # which the environment refuses
            rng = split_rng(rng, split, self.splits)
            return Old.sample(self, n, rng, "train" if split == "validation" else split)

    (finding,) = check_family(Hard(), raise_problems=False)
    assert "a task of 'hard'" in finding.where and "g must not be negative" in finding.problem

    class Same(Hard):
        def sample(self, n, rng, split="train"):
            if split == "validation":
                return Hard.sample(self, n, rng, split)
            return Old.sample(self, n, rng, "test" if split == "hard" else split)

    (finding,) = check_family(Same(), raise_problems=False)
    assert finding.problem == "test and hard tasks are the same for the same generator state"


@pytest.mark.parametrize(
    "id",
    ["PointNavigation-v0", "CartPoleParams-v0", "AcrobotParams-v0", "PendulumParams-v0", "MountainCarParams-v0",
     "MountainCarContinuousParams-v0", "HalfCheetahVel-v0", "AntVel-v0", "SwimmerVel-v0", "PointNavigationSparse-v0",
     "PointNavigationPixels-v0", "HopperRandParams-v0", "Walker2dRandParams-v0", "HalfCheetahRandParams-v0"],
)  # fmt: skip
def test_ood_tasks_of_the_built_in_families_are_outside_of_their_training_tasks(id):
    if "Vel" in id or "RandParams" in id:
        pytest.importorskip("mujoco")
    family = metarl.make(id)
    trained = sample_split(family, 3000, RNG(0), "train")
    ood = sample_split(family, 500, RNG(1), "ood")
    for name, values in trained.items():
        low, high = values.min(0), values.max(0)
        inside = (ood[name] >= low + 1e-3 * (high - low)) & (ood[name] <= high - 1e-3 * (high - low))
        assert not np.all(inside.reshape(len(inside), -1), 1).any()
    for k in range(5):
        env = family.make({name: value[k] for name, value in ood.items()})
        env.reset(seed=0)
        assert np.isfinite(float(env.step(env.action_space.sample())[1]))
        env.close()


# ---------------------------------------------------------------------------------------------------------------------
# Tasks outside of the training range


def test_a_task_outside_is_adapted_to_with_a_word():
    learner = MetaLearner("maml_trpo", pushes(), **TINY)
    Push.made.clear()
    with pytest.warns(UserWarning, match=r"'g' = 20.0 lies outside Box\(5.0, 15.0") as told:
        policy = learner.adapt({"g": 20.0})
    assert policy.returns.shape == (2,) and set(Push.made) == {20.0} and told[0].filename == __file__
    with pytest.warns(UserWarning, match="lies outside") as told:
        assert learner.evaluate(tasks={"g": np.array([6.0, 30.0])}, steps=0).split == "given"
    assert [one.filename for one in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.adapt({"g": 15.0})  # the control: in the range there is nothing to say


@pytest.mark.parametrize(
    ("id", "task", "shown"),
    [
        ("BernoulliBandit-v0", {"p": [1.5] * 5}, r"'p' .* lies in Box\(0.0, 1.0"),
        ("PointNavigationCorners-v0", {"corner": 4}, r"'corner' .* lies in Discrete\(4\)"),
        ("PendulumParams-v0", {"g": 10.0, "m": -1.0, "l": 1.0}, "lies in Box"),
        ("PointNavigation-v0", {"goal": [np.nan, 0.0]}, "must be finite"),
    ],
)
def test_what_no_environment_can_be_is_refused(id, task, shown):
    family = metarl.make(id)
    if id.startswith("Pendulum"):
        task = {name: np.float32(-1.0) for name in family.task_space}
    with pytest.raises(ValueError, match=shown):
        MetaLearner("maml_trpo", family, **TINY).adapt(task)


def test_a_saved_learner_meets_a_wider_family(tmp_path):
    narrow, wide = pushes(), pushes(25.0)
    learner = MetaLearner("maml_trpo", narrow, **TINY)
    learner.save(tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=r"trained on tasks in .*15.0.*, this family has tasks in .*25.0"):
        again = MetaLearner.load(tmp_path / "x.safetensors", family=wide, device="cpu")
    assert again.evaluate(50, steps=0).tasks["g"].max() > 20.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a further split widens nothing
        MetaLearner.load(tmp_path / "x.safetensors", family=pushes(**OOD), device="cpu").evaluate(3, split="ood")


def test_a_network_that_sees_tasks_keeps_their_scale(tmp_path):
    """With another range the same task would be another number to it."""
    learner = MetaLearner("maml_trpo", metarl.visible(pushes()), **TINY)
    learner.save(tmp_path / "x.safetensors")
    with pytest.raises(metarl.checkpoint.CheckpointError, match="scaled by the range"):
        MetaLearner.load(tmp_path / "x.safetensors", family=metarl.visible(pushes(25.0)), device="cpu")
    family = metarl.visible(pushes(**OOD))
    again = MetaLearner.load(tmp_path / "x.safetensors", family=family, device="cpu")
    assert family.describe({"g": np.array([10.0, 20.0])}).ravel().tolist() == [0.0, 2.0]
    assert again.evaluate(3, split="ood", steps=0).split == "ood"
