"""The tool that puts bugs into modules (tests/mutation): what it changes, and that it tells noticed from unnoticed."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "mutation"))

import mutants  # noqa: E402
import run as mutation  # noqa: E402
import targets  # noqa: E402


def changed(source: str, kind: str) -> list[str]:
    """The sources with one bug of this kind."""
    return [mutant.apply(source) for mutant in mutants.mutants(source) if mutant.kind == kind]


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("operator", "x = a + b", ["x = a - b"]),
        ("operator", "x = a ** b", ["x = a * b"]),
        ("operator", "x = a <= b and c is d", ["x = a < b and c is d", "x = a <= b or c is d",
                                              "x = a <= b and c is not d"]),
        ("operator", "x = (a\n     - b)", ["x = (a\n     + b)"]),
        ("operator left out", "x = -a", ["x = (a)"]),
        ("factor left out", "x = y * mask", ["x = y"]),
        ("constant", "x = f(1, 0.5, True, 'a')", ["x = f(2, 0.5, True, 'a')", "x = f(1, 1.0, True, 'a')",
                                                 "x = f(1, 0.5, False, 'a')"]),
        ("branch", "x = a if b else c", ["x = (a)", "x = (c)"]),
        ("condition", "if a:\n    b()", ["if False:\n    b()", "if True:\n    b()"]),
        ("argument left out", "x = f(a, b=b, c=c)", ["x = f(a, c=c)", "x = f(a, b=b)"]),
        ("argument left out", "zip(a, b, strict=True)", []),
        ("arguments swapped", "x = f(a, b, 3)", ["x = f(b, a, 3)"]),
        ("call left out", "x = y.detach()", ["x = (y)"]),
        ("call left out", "x = torch.sqrt(y)", ["x = (y)"]),
        ("statement left out", "f(x)\na += 1", ["pass\na += 1", "f(x)\npass"]),
        ("constant", "x = 'ä'; y = 1", ["x = 'ä'; y = 2"]),
        ("constant", '"""1."""\nx: Literal[1]\nassert x == 1\nraise E(f"{x + 1}")', []),
    ],
)  # fmt: skip
def test_what_is_changed(kind, source, expected):
    found = [" ".join(text.split("  ")) if kind == "argument left out" else text for text in changed(source, kind)]
    assert sorted(found) == sorted(expected)


def test_a_sample_depends_on_its_seed_alone():
    found = mutants.mutants((HERE.parent / "metarl" / "formulas" / "losses.py").read_text())
    assert len(set(found)) == len(found) > 30
    one, other = (mutants.sample(found, 10, seed) for seed in (0, 1))
    assert mutants.sample(found, 10, 0) == one != other
    assert len(one) == 10 and set(one) < set(found)
    assert mutants.sample(found, None, 0) == mutants.sample(found, 10**6, 0) == found


def test_bugs_that_the_tests_notice_and_bugs_that_they_do_not(tmp_path, capsys):
    module, tests = tmp_path / "metarl" / "half.py", tmp_path / "tests" / "test_half.py"
    for path, text in (
        (module.with_name("__init__.py"), ""),
        (module, "def half(x):\n    return x / 2\n\n\ndef unseen(x):\n    return x + 1\n"),
        (tests, "from metarl.half import half\n\n\ndef test_half():\n    assert half(6) == 3\n"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = module.read_text()
    assert mutation.main(["metarl/half.py", "--root", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
    text = capsys.readouterr().out
    assert "metarl/half.py: 2 of 4 noticed" in text
    assert "SURVIVED metarl/half.py:6: operator: '+' -> '-'" in text
    assert "failed metarl/half.py:2: operator: '/' -> '*'" in text
    assert '"mutants": 4' in (tmp_path / "x.json").read_text()
    assert module.read_text() == before, "only the copy is changed"
    assert mutation.main(["metarl/half.py", "--root", str(tmp_path), "--lines", "2"]) == 0


def test_a_bug_that_hangs_is_noticed(tmp_path):
    (tmp_path / "test_loop.py").write_text("def test_loop():\n    while True:\n        pass\n")
    assert mutation.run_tests(tmp_path, ["test_loop.py"], timeout=3)[0] == "timeout"


def test_tests_that_fail_without_a_bug_are_refused(tmp_path, capsys):
    for name, text in (("metarl/one.py", "x = 1\n"), ("tests/test_one.py", "def test_one():\n    assert False\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert mutation.main(["metarl/one.py", "--root", str(tmp_path)]) == 2
    assert "fail without any mutant" in capsys.readouterr().out


def test_every_target_is_a_module_with_tests():
    for module, names in targets.ALSO.items():
        assert (HERE.parent / module).exists(), module
        for name in names:
            assert (HERE / f"{name}.py").exists(), f"{module}: there is no {name}"
    assert "tests/vector/test_mujoco.py" in targets.tests_of("metarl/vector/mujoco.py", HERE.parent)
