"""experiments/digits and experiments/glyphs: what their scripts compute, and that their commands are understood."""

import re
import shlex
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from experiment_scripts import EXPERIMENTS, script

from metarl.supervised import FewShotLearner, Sets, check_family, glyphs
from metarl.supervised.learner import make_config

pytestmark = pytest.mark.skipif(not EXPERIMENTS.exists(), reason="metarl is not run from its repository")


@pytest.fixture(params=["digits", "glyphs"])
def module(request) -> ModuleType:
    return script(request.param)


def test_the_commands_that_are_written_are_understood(module, monkeypatch):
    name, reached = module.HERE.name, []
    text = f"{module.__doc__}\n{(module.HERE / 'README.md').read_text()}"
    found = re.findall(rf"python experiments/{name}/run\.py ([^\n;]*)", text)
    argvs = [shlex.split(line.replace("$seed", "0"), comments=True) for line in found]
    monkeypatch.setattr(module.few_shot.torch, "set_num_threads", lambda _: None)
    for command in ("train", "report"):
        monkeypatch.setattr(module.few_shot, command, lambda *_, command=command: reached.append(command))
    more = {"choose": lambda: reached.append("choose")} if name == "glyphs" else {}
    for argv in argvs:
        monkeypatch.setattr(sys, "argv", ["run.py", *argv])
        module.few_shot.main(module.EXPERIMENT, module.__doc__, more)
    assert reached == [argv[0] for argv in argvs] and {"train", "report", *more} == set(reached)
    monkeypatch.setattr(sys, "argv", ["run.py", "train", "--seeds", "0"])
    with pytest.raises(SystemExit):  # the control
        module.few_shot.main(module.EXPERIMENT, module.__doc__, more)


def test_the_settings_of_every_method_are_valid(module):
    configs = [make_config(module.EXPERIMENT.settings(name)) for name in module.EXPERIMENT.names]
    assert len({(config.n_tasks, config.queries, config.hidden) for config in configs}) == 1


def test_the_nearest_neighbour_by_hand(module):
    x_support, x_query = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.1, 0.0], [0.9, 0.8], [0.2, 0.3]]])
    sets = Sets(x_support, torch.tensor([[1, 0]]), x_query, torch.tensor([[1, 0, 0]]))
    assert module.few_shot.nearest_neighbour(sets) == pytest.approx(2 / 3)


def test_a_seed_s_results_are_written_and_reported(module, monkeypatch, tmp_path):
    if module.HERE.name == "digits":
        pytest.importorskip("sklearn")
    small = {"tasks": 2, "queries": 3, "seed": 0}
    experiment = replace(module.EXPERIMENT, folder=tmp_path, test=small, tuning=small)
    monkeypatch.setattr(module.few_shot, "GRID", (0.1, 0.2))
    names = ("maml", "pretrained", "from scratch")
    module.few_shot.train(experiment, 0, tmp_path / "runs", names, 2)
    module.few_shot.report(experiment)
    rows = (tmp_path / "results" / "table.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:6]] == [f"| {name}" for name in (*names, "nearest neighbour")]
    found = module.few_shot.read_json(tmp_path / "results" / "maml-1shot-seed0.json")
    cells = [line.split(",") for line in (tmp_path / "results" / "maml-1shot-seed0.csv").read_text().splitlines()]
    assert found["iterations"] == 2 and len(cells) == 3 and len(cells[1][1]) == 5
    np.testing.assert_allclose(np.array([row[2:] for row in cells[1:]], float).mean(0), found["accuracy"], atol=1e-3)
    assert f"{found['accuracy'][10]:.1%}" in rows[2]
    before = module.few_shot.read_json(tmp_path / "runs" / "maml-1shot-seed0.json")
    module.few_shot.train(experiment, 0, tmp_path / "runs", names, 2)  # nothing is left to do
    assert module.few_shot.read_json(tmp_path / "runs" / "maml-1shot-seed0.json") == before


# ---------------------------------------------------------------------------------------------------------------------
# Letters


def test_what_is_chosen_is_chosen_on_training_letters():
    module, letters = script("glyphs"), glyphs(validation_classes=())
    chosen = module.validation()
    assert set(chosen.train_classes) | set(chosen.test_classes) == set(letters.train_classes)
    assert not set(chosen.train_classes) & set(chosen.test_classes)
    assert 30 <= len(chosen.test_classes) <= 40
    lower, upper = ({chr(c).lower() for c in split} for split in (chosen.train_classes, chosen.test_classes))
    assert not lower & upper
    drawn = module.tuning_sets(1, module.EXPERIMENT.tuning).parameters["classes"]
    assert set(drawn.ravel()) <= set(chosen.test_classes)


def test_the_pretrained_network_names_training_letters():
    naming = script("glyphs").Naming(glyphs(validation_classes=()))
    check_family(naming)
    sets = naming.sample(2, np.random.default_rng(0), "train", 1, 5)
    assert sets.x_query.shape == (2, 25, 1, 16, 16) and naming.outputs == 175
    letters = naming.letters
    for x, y in zip(sets.x_query[1], sets.y_query[1], strict=True):
        places = np.flatnonzero((letters.x == x.numpy()).all((1, 2, 3)))  # two where faces share a letter
        assert set(letters.y[places]) == {letters.train_classes[y]}


def test_its_last_layer_is_drawn_anew():
    module = script("glyphs")
    named = FewShotLearner(
        module.Naming(glyphs(validation_classes=())), seed=4, device="cpu", **module.settings("pretrained")
    ).learn(1)
    own = module.with_new_head(named)
    assert torch.equal(own.state.params["w0"], named.state.params["w0"])
    assert own.state.params["w2"].shape == (64, 5) and own.network.n_outputs == 5
    fresh = FewShotLearner(glyphs(validation_classes=()), seed=4, device="cpu", **module.SHARED)
    assert torch.equal(own.state.params["w2"], fresh.state.params["w2"])
    assert not torch.equal(own.state.params["w0"], fresh.state.params["w0"])
