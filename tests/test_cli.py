"""The command line: what each command does, in this process."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from commands import SMALL, TRAIN, by_hand, main
from tiny_runs import contents, same_params

import metarl
from metarl import AdaptedPolicy, MetaLearner, cli, tasks
from metarl.algorithms import maml_trpo
from metarl.splits import splits_of
from metarl.training.train import BEST, LATEST


def help_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.run([*argv, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations, started from the command line."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert cli.run([*TRAIN, "--iterations", "3", "--eval-every", "2", "--out", str(path)]) == 0
    return path


# ---------------------------------------------------------------------------------------------------------------------
# train


def test_training_is_what_python_does(run):
    loaded = MetaLearner.load(run)
    assert same_params(loaded.state.params, by_hand(3).state.params)
    assert loaded.state.iteration == 3


def test_the_directory_has_a_name_of_its_own_where_none_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([*TRAIN, "--iterations", "1", "--seed", "7"]) == 0
    assert (tmp_path / "runs/PointNavigation-v0-maml_trpo-seed7" / LATEST).exists()
    assert "metarl evaluate runs/PointNavigation-v0-maml_trpo-seed7" in capsys.readouterr().out


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_left_alone(run, monkeypatch, capsys):
    before = contents(run)
    assert main(monkeypatch, *TRAIN, "--iterations", "3", "--out", str(run)) == 2
    error = capsys.readouterr().err
    assert f"{run} is not empty" in error
    assert f"metarl train --resume {run}" in error
    assert contents(run) == before


OTHER = {"hidden": ("3", "5"), "value_hidden": ("3",), "baseline": ("time",),
         "activation": ("relu",), "graph_tasks": ("1",), "inner_steps": ("2",),
         "gae_lambda": ("0.5",), "inner_gradient": ("lvc",), "network": ("mlp",), "channels": ("8", "4"),
         "exploration": ("0.5",), "reward_baseline": ("0.5",), "loss_per": ("episode",),
         "lr_schedule": ("1.0", "0.5"), "learned_lr": ("per_parameter",), "inner_optimizer": ("adam",),
         "adapts": ("context",)}  # fmt: skip
NEEDS = {"learned_lambda": {"gae_lambda": 0.9}, "adapts": {"context": 5}}
"""Settings that make no sense without another one."""


def other(field: dataclasses.Field) -> tuple[tuple[str, ...], Any]:
    """A value that is not the default -> as words of a command line, as Python has it."""
    if field.name in OTHER:
        words = OTHER[field.name]
        numbers = tuple(float(word) if "." in word else int(word) if word.isdigit() else word for word in words)
        return words, numbers if isinstance(field.default, tuple) else numbers[0]
    if isinstance(field.default, bool):
        return (), not field.default
    value = field.default + 1 if isinstance(field.default, int) else field.default * 0.9
    return (str(value),), value


@pytest.mark.parametrize("field", dataclasses.fields(maml_trpo.Config), ids=lambda field: field.name)
def test_every_setting_of_the_algorithm_is_an_option(field, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(cli, "_train", lambda name, options, config: seen.append(config) or 0)
    (words, value), needs = other(field), NEEDS.get(field.name, {})
    option = "--" + ("no-" if value is False else "") + field.name.replace("_", "-")
    rest = [word for name, x in needs.items() for word in ("--" + name.replace("_", "-"), str(x))]
    assert cli.run(["train", "maml_trpo", "X-v0", option, *words, *rest]) == 0
    assert seen == [maml_trpo.Config(**{field.name: value, **needs})]
    assert seen != [maml_trpo.Config(**needs)]


def test_every_setting_stands_in_the_help_with_its_default(capsys):
    text = help_of(capsys, "train", "maml_trpo")
    for field in (*dataclasses.fields(maml_trpo.Config), *dataclasses.fields(cli.TrainOptions)):
        if field.name != "family":
            assert f"--{field.name.replace('_', '-')}" in text
    assert "(default: 64 64)" in re.sub(r"\s+", " ", text.replace("│", ""))


def test_every_setting_of_the_algorithm_is_explained_in_the_help(capsys):
    text = re.sub(r"\s+", " ", help_of(capsys, "train", "maml_trpo").replace("│", ""))
    assert text.count("(default:") >= len(dataclasses.fields(maml_trpo.Config))
    assert "Lower bound of that standard deviation." in text


def test_settings_reach_the_run_and_survive_a_resume(tmp_path):
    argv = [*TRAIN, "--iterations", "1", "--inner-lr", "0.25", "--eval-every", "0", "--checkpoint-every", "3"]
    cli.run([*argv, "--out", str(tmp_path)])
    cli.run(["train", "--resume", str(tmp_path), "--iterations", "2", "--threads", "1", "--no-progress"])
    loaded = MetaLearner.load(tmp_path)
    assert loaded.config.inner_lr == 0.25
    assert loaded.state.iteration == 2
    assert not (tmp_path / BEST).exists()  # no evaluation in the resumed part either


# ---------------------------------------------------------------------------------------------------------------------
# resume


def test_a_finished_run_says_so(run, capsys):
    before = contents(run)
    assert cli.run(["train", "--resume", str(run)]) == 0
    assert "has done its 3 iterations; --iterations sets a new total" in capsys.readouterr().out
    assert contents(run) == before


@pytest.mark.parametrize("argv", [["--resume", "{}"], ["--resume={}"]])
def test_resuming_goes_on_to_a_new_total(tmp_path, argv):
    cli.run([*TRAIN, "--iterations", "1", "--out", str(tmp_path)])
    words = [word.format(tmp_path) for word in argv]
    assert cli.run(["train", *words, "--iterations", "2", "--threads", "1", "--no-progress"]) == 0
    assert same_params(MetaLearner.load(tmp_path).state.params, by_hand(2).state.params)


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, "train", "--resume", str(tmp_path)) == 2
    assert "config.json does not exist; is" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# evaluate, adapt, list


def test_evaluating_prints_a_table_and_writes_numbers_and_a_picture(run, tmp_path, capsys):
    assert cli.run(["evaluate", str(run), "--tasks", "3", "--step-sizes", "0.5", "0.25", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    expected = MetaLearner.load(run / BEST).evaluate(3, step_sizes=(0.5, 0.25))
    for row in expected.rows():
        assert f"{row.mean:.2f} [{row.mean_low:.2f}, {row.mean_high:.2f}]" in text
    assert sorted(contents(tmp_path)) == ["adaptation.csv", "adaptation.json", "adaptation.png"]
    assert (tmp_path / "adaptation.csv").read_text().count("\n") == 4
    assert len(np.unique(matplotlib.image.imread(tmp_path / "adaptation.png"))) > 10


def test_results_go_into_the_run_by_default(run, capsys):
    cli.run(["evaluate", str(run), "--tasks", "2", "--no-figures"])
    assert sorted(contents(run / "evaluation")) == ["adaptation.csv", "adaptation.json"]


@pytest.mark.parametrize(("words", "file"), [([], BEST), (["--checkpoint", "latest"], LATEST)])
def test_the_state_that_is_evaluated(run, tmp_path, capsys, words, file):
    (tmp_path / "run").mkdir()
    for name, iterations in ((BEST, 1), (LATEST, 2)):
        by_hand(iterations).save(tmp_path / "run" / name)
    cli.run(["evaluate", str(tmp_path / "run"), "--tasks", "2", "--no-figures", *words])
    assert f"iteration {1 if file == BEST else 2}: 2 test tasks" in capsys.readouterr().out


def test_a_run_without_a_best_state_is_evaluated_in_its_latest(tmp_path, capsys):
    by_hand(2).save(tmp_path / LATEST)
    cli.run(["evaluate", str(tmp_path), "--tasks", "2", "--no-figures"])
    assert "iteration 2: 2 test tasks" in capsys.readouterr().out


def test_one_file_can_be_evaluated(tmp_path, capsys):
    by_hand(1).save(tmp_path / "x.safetensors")
    cli.run(["evaluate", str(tmp_path / "x.safetensors"), "--tasks", "2", "--no-figures"])
    assert (tmp_path / "evaluation" / "adaptation.csv").exists()


def test_without_matplotlib_the_numbers_are_written_all_the_same(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.run(["evaluate", str(run), "--tasks", "2", "--out", str(tmp_path)]) == 0
    assert "no picture: figures need matplotlib: pip install matplotlib" in capsys.readouterr().out
    assert sorted(contents(tmp_path)) == ["adaptation.csv", "adaptation.json"]


def test_adapting_saves_a_policy(run, tmp_path, capsys):
    out = tmp_path / "policy"
    assert cli.run(["adapt", str(run), "--task", "goal=-0.3,0.2", "--steps", "2", "--out", str(out)]) == 0
    expected = MetaLearner.load(run / BEST).adapt({"goal": [-0.3, 0.2]}, steps=2)
    assert same_params(AdaptedPolicy.load(out).params, expected.params)
    text = capsys.readouterr().out
    assert f"return after 1 inner step: {expected.returns[1]:.2f}" in text
    assert f"wrote {out}.safetensors" in text


def test_the_list_names_every_algorithm_and_family(capsys):
    assert cli.run(["list"]) == 0
    text = capsys.readouterr().out
    assert "maml_trpo" in text
    assert set(metarl.registered()) <= set(text.split())


def test_the_list_names_every_prefix_with_an_example_that_works(capsys):
    assert cli.run(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for prefix in (tasks.GYMNASIUM, tasks.VISIBLE):
        line = cli.PREFIXES[f"{prefix}:ID"]
        assert f"{prefix}:ID {line}" in text
        example, *options = shlex.split(line.partition(" like ")[2])
        family = metarl.make(example, **cli._parse_kwargs(options[1:]))
        assert family.id == example
        assert len(family.sample(3, np.random.default_rng(0))) == 1


def test_the_list_names_the_splits_of_every_family(capsys):
    assert cli.run(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split()).partition("with the splits train, validation, test and")[2]
    ids = list(metarl.registered())
    for id, end in zip(ids, [*ids[1:], "families of your own"], strict=True):
        shown = text.partition(f" {id} ")[2].partition(f" {end}")[0]
        try:
            known = splits_of(metarl.make(id))
        except (ImportError, ValueError):  # needs an extra, or an argument
            continue
        assert shown and shown.endswith(" Further split: ood.") == ("ood" in known)
        assert set(known) <= {"train", "validation", "test", "ood"}


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_overview(capsys, argv, status):
    assert cli.run(argv) == status
    text = capsys.readouterr().out
    assert all(f"metarl {command}" in text for command in cli.COMMANDS)


def test_the_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"metarl {metarl.__version__}\n"


@pytest.mark.parametrize("argv", [["train", "--help"], ["train"]])
def test_train_alone_names_the_algorithms(capsys, argv):
    assert cli.run(argv) == (0 if len(argv) == 2 else 2)
    assert "algorithms: maml_trpo" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "adapt", "list"])
def test_every_command_has_help(capsys, command):
    assert f"metarl {command}" in help_of(capsys, command)


# ---------------------------------------------------------------------------------------------------------------------
# Images, and normalised observations


@pytest.mark.parametrize(
    ("family", "options", "settings"),
    [
        ("PointNavigationPixels-v0", ["--channels", "3", "4"], {"channels": (3, 4)}),
        ("PointNavigationPixels-v0", ["--network", "mlp"], {"network": "mlp"}),
        ("PointNavigation-v0", ["--normalize-obs"], {"normalize_obs": True}),
    ],
    ids=["convolutions", "without", "normalised"],
)
def test_every_command_serves_every_kind_of_observation(tmp_path, family, options, settings):
    run = tmp_path / "run"
    argv = ["train", "maml_trpo", family, *SMALL, *options, "--eval-every", "0", "--out", str(run)]
    assert cli.run([*argv, "--iterations", "1"]) == 0
    assert cli.run(["train", "--resume", str(run), "--iterations", "2", "--threads", "1", "--device", "cpu",
                    "--no-progress"]) == 0  # fmt: skip
    by_python = MetaLearner("maml_trpo", metarl.make(family, horizon=5), device="cpu", n_tasks=2, episodes=2,
                            hidden=(8,), **settings).learn(2, eval_every=0)  # fmt: skip
    assert same_params(MetaLearner.load(run).state.params, by_python.state.params)
    few = ["--tasks", "2", "--episodes", "2", "--steps", "1"]
    assert cli.run(["evaluate", str(run), *few, "--threads", "1", "--device", "cpu"]) == 0
    assert (run / "evaluation" / "adaptation.png").exists()
    policy = tmp_path / "p.safetensors"
    assert cli.run(["adapt", str(run), "--task", "goal=0.3,-0.2", "--out", str(policy)]) == 0
    observation = by_python.family.make({"goal": [0.3, -0.2]}).reset(seed=0)[0]
    action, _ = AdaptedPolicy.load(policy).predict(observation, deterministic=True)
    want, _ = by_python.adapt({"goal": [0.3, -0.2]}).predict(observation, deterministic=True)
    np.testing.assert_allclose(action, want, atol=1e-6)
