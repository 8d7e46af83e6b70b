"""A benchmark from end to end on probe families with known answers, its files, and what goes wrong in a cell."""

import csv
import json

import numpy as np
import pytest
import torch
from probes import Locks, PointGoal, TwoArms, setup

import metarl
from metarl.algorithms import maml_trpo
from metarl.benchmark import cell, results, run
from metarl.benchmark.contenders import gradient, specialists
from metarl.benchmark.contract import Adaptation, Training
from metarl.benchmark.meter import Meter, MeteredFamily
from metarl.benchmark.suite import from_data
from metarl.families import registry
from metarl.formulas.distributions import Categorical, Gaussian
from metarl.report.figures import save_figure
from metarl.tasks import stack_tasks

FAST = {"n_tasks": 8, "episodes": 10, "hidden": [8], "inner_lr": 2.0}
CONTENDERS = {"random": {}, "multi_task": FAST, "oracle": FAST, "maml_trpo": {**FAST, "max_kl": 0.05},
              "transfer": FAST, "random_init": FAST, "scratch": FAST,
              "rl2": {"n_tasks": 30, "trials": 2, "hidden": 16, "trial_episodes": 3, "outer_lr": 0.01}}  # fmt: skip


@pytest.fixture(autouse=True)
def families(monkeypatch):
    monkeypatch.setitem(registry._registry, TwoArms.id, TwoArms)
    monkeypatch.setitem(registry._registry, PointGoal.id, PointGoal)


def arms(contenders: dict = CONTENDERS, **more) -> dict:
    return {"seeds": 1, "tasks": {"validation": 4, "test": 6}, "contenders": contenders,
            "adaptation": {"steps": 2, "episodes": 10, "eval_episodes": 30},
            "families": {"arms": {"id": TwoArms.id, "budget": 20_000}}, **more}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._registry, TwoArms.id, TwoArms)
        failed = run.run(from_data(arms(), "probe"), out, 1)
    assert failed == []
    return out


def test_two_arms_have_the_answers_that_are_known(done):
    """Half without the task, all with it; whoever adapts learns which arm it is."""
    found = {row["contender"]: row for row in results.summary(done)}
    assert set(found) == set(CONTENDERS)
    for name in ("random", "multi_task"):
        assert found[name]["adapted"] == pytest.approx(0.5, abs=0.12)
    for name in ("oracle", "maml_trpo", "random_init", "scratch", "rl2"):
        assert found[name]["adapted"] > 0.85, name
    assert found["maml_trpo"]["zero_shot"] < 0.7 < found["oracle"]["zero_shot"]
    assert [found[name]["score"] for name in ("oracle", "random")] == pytest.approx([1.0, 0.0])
    assert found["maml_trpo"]["episodes_to_90"] in (10, 20)


def test_no_contender_takes_more_steps_than_its_budget(done):
    for one in results.cells(done):
        assert one["training_steps"] <= 20_000
        assert not one["training_exceeded"] and not one["splits"]["test"]["exceeded"], one["contender"]
    spent = {one["contender"]: one for one in results.cells(done)}
    assert spent["random"]["training_steps"] == 0
    assert spent["multi_task"]["training_steps"] > 15_000
    assert spent["maml_trpo"]["splits"]["test"]["steps"] == [0.0, 10.0, 20.0]
    assert spent["rl2"]["splits"]["test"]["episodes"] == [0, 1, 2]


def test_every_contender_meets_the_same_tasks(done):
    cells = results.cells(done)
    assert len({one["tasks_hash"] for one in cells}) == 1
    assert all(one["splits"]["test"]["tasks"] == cells[0]["splits"]["test"]["tasks"] for one in cells)


def test_files_have_a_row_for_every_task_and_unit_and_for_every_contender(done):
    results.write(done)
    with (done / results.ROWS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_maml = [row for row in rows if row["contender"] == "maml_trpo"]
    assert len(of_maml) == 6 * 3 and {row["unit"] for row in of_maml} == {"0", "1", "2"}
    curve = results.curves(done)["arms"]["maml_trpo"]
    got = np.mean([float(row["return"]) for row in of_maml if row["unit"] == "2"])
    assert got == pytest.approx(curve.returns[:, -1].mean())
    assert {row["good"] for row in rows} == {"0", "1"}  # the parameter of the task
    with (done / results.SUMMARY).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(CONTENDERS)


def test_the_table_and_the_figure_show_every_contender(done, tmp_path):
    from metarl.benchmark import figures
    from metarl.printing import as_text

    text = as_text(results.table(done, "arms"))
    assert "random policy" in text and "maml_trpo" in text and "RL²" in text
    pytest.importorskip("matplotlib")
    made = figures.figure(results.curves(done))
    labels = made.axes[0].get_legend_handles_labels()[1]
    assert "maml_trpo" in labels and "multi-task, one shared model" in labels
    assert save_figure(made, tmp_path / "a.png").stat().st_size > 5000


def test_what_is_done_is_skipped_and_another_suite_is_refused(done, monkeypatch):
    called = []
    monkeypatch.setattr(cell, "run", lambda *args: called.append(args))
    run.run(from_data(arms(), "probe"), done, 1)
    assert called == []
    with pytest.raises(ValueError, match=r"a benchmark with other entries \(tasks\)"):
        run.run(from_data(arms(tasks={"validation": 4, "test": 7}), "probe"), done, 1)


def test_one_cells_failure_is_reported_and_not_fatal(tmp_path, monkeypatch):
    train = gradient.MetaLearned.train
    monkeypatch.setattr(gradient.MetaLearned, "train", lambda *_: 1 / 0)
    said = []
    two = from_data(arms({"maml_trpo": FAST, "random": {}}), "probe")
    failed = run.run(two, tmp_path, 1, lambda cell, outcome: said.append((cell.contender, outcome)))
    assert [one.contender for one in failed] == ["maml_trpo"]
    assert said[0][1].startswith("failed: ZeroDivisionError") and said[1] == ("random", "done")
    assert "ZeroDivisionError" in results.failures(tmp_path)[0].read_text()
    monkeypatch.setattr(gradient.MetaLearned, "train", train)
    assert run.run(two, tmp_path, 1) == [] and results.failures(tmp_path) == []


def test_cells_in_processes_give_the_numbers_of_cells_in_this_one(tmp_path):
    data = {"seeds": 1, "tasks": {"validation": 2, "test": 2}, "contenders": {"random": {}, "random_init": FAST},
            "adaptation": {"steps": 1, "episodes": 2, "eval_episodes": 2},
            "families": {"nav": {"id": "PointNavigation-v0", "kwargs": {"horizon": 5}, "budget": 400}}}  # fmt: skip
    found = []
    for jobs in (1, 2):
        assert run.run(from_data(data, "s"), tmp_path / str(jobs), jobs) == []
        found.append([one["splits"]["test"]["returns"] for one in results.cells(tmp_path / str(jobs))])
    assert found[0] == found[1]


def test_a_contender_that_does_not_fit_is_left_out_with_the_reason(tmp_path):
    said = []
    run.run(from_data(arms({"mine": {"kind": f"{__file__}:Picky"}}), "s"), tmp_path, 1,
            lambda cell, outcome: said.append(outcome))  # fmt: skip
    assert said == ["left out: only for Thursdays"]
    assert results.summary(tmp_path) == []


class Picky(gradient.MetaLearned):
    """A contender from a file of one's own."""

    def __init__(self, options: dict):
        super().__init__("maml_trpo", options)

    def fits(self, family) -> str:
        return "only for Thursdays"


def test_an_interrupted_training_goes_on_with_the_steps_that_were_counted(tmp_path):
    def training(limit: int | None) -> Training:
        meter = Meter(limit)
        return Training(MeteredFamily(TwoArms(), meter), meter, 0, tmp_path, Adaptation(), stack_tasks([{"good": 0}]))

    settings = {"n_tasks": 8, "episodes": 10, "hidden": (4,)}
    first = training(2000)
    gradient.trained(first, "maml_trpo", settings)
    state = metarl.MetaLearner.load(tmp_path / "run" / "latest.safetensors", family=TwoArms()).state
    second = training(5000)
    learner = gradient.trained(second, "maml_trpo", settings)
    spent = json.loads((tmp_path / gradient.SPENT).read_text())
    assert 0 < spent[str(state.iteration)] <= 1800
    assert second.meter.spent <= 4500
    last = metarl.MetaLearner.load(tmp_path / "run" / "latest.safetensors", family=TwoArms()).state
    assert last.iteration > state.iteration and learner is not None


def test_a_kill_between_a_state_and_its_count_does_not_end_the_cell(tmp_path):
    (tmp_path / "spent.json").write_text('{"0": 0, "10": 500, "11": 550}')
    assert gradient._counted(tmp_path / "spent.json", 11) == 550
    assert gradient._counted(tmp_path / "spent.json", 10) == 500
    assert gradient._counted(tmp_path / "spent.json", 12) == 600
    assert gradient._counted(tmp_path / "gone.json", 3) == 0


def test_a_budget_that_does_not_reach_for_one_iteration_is_a_failure_that_says_so(tmp_path):
    said = []
    data = arms({"maml_trpo": FAST, "oracle": FAST, "averaged": {"episodes": 10}})
    data["families"]["arms"]["budget"] = 50
    failed = run.run(from_data(data, "s"), tmp_path, 1, lambda cell, outcome: said.append(outcome))
    assert len(failed) == 3 and results.summary(tmp_path) == []
    assert all("a budget of 50 environment steps does not reach for one" in outcome for outcome in said)


# ---------------------------------------------------------------------------------------------------------------------
# Specialists


def test_the_mean_of_probabilities_and_the_moments_of_a_mixture_by_hand():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, float(np.log(3.0))]]])  # one half, and three quarters
    got = specialists.mixed(Categorical(logits))
    assert torch.softmax(got.logits, -1)[0, 1].item() == pytest.approx(0.625)
    dist = Gaussian(torch.tensor([[[-1.0]], [[1.0]]]), torch.log(torch.tensor([[[1.0]], [[2.0]]])))
    one = specialists.mixed(dist)
    assert one.mean.item() == 0.0
    assert one.log_std.exp().item() ** 2 == pytest.approx((1 + 4) / 2 + 1)


def test_specialists_know_their_task_and_one_made_of_all_knows_none(tmp_path):
    data = arms({name: {"episodes": 10, "hidden": [4], "specialists": 4, "lr": 0.1}
                 for name in ("averaged", "ensemble", "distilled")})  # fmt: skip
    data["families"]["arms"]["budget"] = 2000
    assert run.run(from_data(data, "s"), tmp_path, 1) == []
    for row in results.summary(tmp_path):
        assert row["adapted"] == pytest.approx(0.5, abs=0.15), row["contender"]
    meter = Meter(2000)
    training = Training(MeteredFamily(TwoArms(), meter), meter, 0, tmp_path, Adaptation(), stack_tasks([{"good": 0}]))
    teachers = specialists.specialised(training, {"episodes": 10, "hidden": (4,), "specialists": 4, "lr": 0.1})
    assert teachers.rollout.returns.mean() > 0.9
    assert meter.spent <= 2000 and not meter.exceeded


def test_a_student_of_two_teachers_that_disagree_takes_the_mean_of_their_probabilities():
    """KL(teachers || student) is smallest there; the divergence the other way round, at their geometric mean, 0.91."""
    _, policy, _ = setup(TwoArms(), maml_trpo.Config(hidden=()))
    logits = torch.tensor([[0.0, np.log(99.0)], [0.0, 0.0]])  # 0.99 and 0.5
    params = {"w0": torch.zeros(2, 1, 2), "b0": logits.float()}
    sampler, _, _ = setup(TwoArms(), maml_trpo.Config(hidden=()))
    rollout = sampler.collect(sampler.tasks(2, 0, 0), 10, policy, params, 0, 0, 0)
    teachers = specialists.Specialists(policy, params, rollout)
    student = specialists.distilled(teachers, policy, {n: torch.zeros_like(v[0]) for n, v in params.items()}, 600, 0.02)
    chance = torch.softmax((student["w0"].sum(0) + student["b0"]), -1)[1]
    assert chance.item() == pytest.approx(0.745, abs=0.01)


def test_an_ensemble_is_left_out_where_the_mean_of_its_actions_is_none_of_them():
    made = specialists.EnsembleOfSpecialists({})
    assert "several choices" in made.fits(Locks()) and made.fits(TwoArms()) == ""


def test_a_student_acts_as_its_teacher_where_that_goes(tmp_path):
    meter = Meter(4000)
    training = Training(MeteredFamily(PointGoal(), meter), meter, 0, tmp_path, Adaptation(),
                        stack_tasks([{"goal": np.zeros(2)}]))  # fmt: skip
    teachers = specialists.specialised(training, {"episodes": 10, "hidden": (8,), "specialists": 1})
    start = teachers.policy.init(torch.Generator().manual_seed(1))
    student = specialists.distilled(teachers, teachers.policy, start, steps=400)
    obs = teachers.rollout.obs
    want = teachers.policy.distribution(teachers.params, obs).mean
    before, after = (
        float((teachers.policy.distribution({n: v[None] for n, v in one.items()}, obs).mean - want).square().mean())
        for one in (start, student)
    )
    assert after < 0.05 * before
