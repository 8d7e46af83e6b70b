"""metarl_envs.bandit_values: against every strategy there is, by hand, and against simulation."""

import itertools
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from metarl_envs import bandit_strategies as strategies
from metarl_envs.bandit_strategies import bayes_value, gittins, play
from metarl_envs.bandit_values import (
    commit_value,
    exploration_value,
    strategy_value,
    thompson_value,
    value_bound,
)

import metarl

ROOT = Path(metarl.__file__).parents[1]


def simulated(strategy: strategies.Strategy, arms: int, pulls: int, n: int = 20_000) -> tuple[float, float]:
    """Mean total reward and its standard error."""
    rng = np.random.default_rng(3)
    total = play(strategy, rng.random((n, arms)), pulls, rng).sum(1)
    return float(total.mean()), float(total.std() / np.sqrt(n))


def values_of_all_strategies(arms: int, pulls: int) -> list[Fraction]:
    """The exact values of every strategy that maps what it has seen, in order, to an arm."""
    histories = [h for t in range(pulls) for h in itertools.product((0, 1), repeat=t)]  # outcomes so far

    def value(choice: dict[tuple[int, ...], int], history: tuple[int, ...]) -> Fraction:
        if len(history) == pulls:
            return Fraction(0)
        pulled = [choice[history[:t]] for t in range(len(history))]
        arm = choice[history]
        own = [won for a, won in zip(pulled, history, strict=True) if a == arm]
        mean = Fraction(1 + sum(own), 2 + len(own))
        return mean * (1 + value(choice, (*history, 1))) + (1 - mean) * value(choice, (*history, 0))

    return [value(dict(zip(histories, arm_of, strict=True)), ())
            for arm_of in itertools.product(range(arms), repeat=len(histories))]  # fmt: skip


@pytest.mark.parametrize(("arms", "pulls"), [(2, 2), (2, 3), (3, 3)])
def test_the_bayes_value_is_the_best_of_all_strategies(arms, pulls):
    every = values_of_all_strategies(arms, pulls)
    assert bayes_value(arms, pulls) == pytest.approx(float(max(every)), abs=1e-12)
    assert min(every) < max(every)  # there is something to choose


def test_the_value_of_a_strategy_by_hand():
    """Greedy, two arms: the first arm; after a win again (2/3), after a loss the other one (1/2)."""
    assert strategy_value(strategies.epsilon_greedy(0.0), 2, 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)
    always_first = lambda seen, rng: np.zeros(len(seen.wins), np.int64)  # noqa: E731
    assert strategy_value(always_first, 3, 7) == pytest.approx(7 / 2)


@pytest.mark.parametrize("strategy", [gittins(0.5, 10), strategies.ucb1(0.1), strategies.epsilon_greedy(0.0)])
@pytest.mark.parametrize("arms", [2, 5])
def test_the_value_of_a_strategy_is_what_it_earns(strategy, arms):
    mean, error = simulated(strategy, arms, 10)
    assert abs(strategy_value(strategy, arms, 10) - mean) < 4 * error < 0.1
    assert strategy_value(strategy, arms, 10) <= bayes_value(arms, 10) + 1e-12


def test_a_strategy_that_draws_is_refused():
    with pytest.raises(ValueError, match="deterministic"):
        strategy_value(strategies.epsilon_greedy(0.5), 5, 10)
    with pytest.raises(ValueError, match="deterministic"):
        strategy_value(strategies.thompson, 5, 10)


def test_the_value_of_thompson_sampling_by_hand_and_by_simulation():
    """After a win of two arms the same arm is taken again with probability 2/3 (its mean is 2/3 then, the other's 1/2);
    after a loss with 1/3 (mean 1/3)."""
    second = 1 / 2 * (2 / 3 * 2 / 3 + 1 / 3 * 1 / 2) + 1 / 2 * (1 / 3 * 1 / 3 + 2 / 3 * 1 / 2)
    assert thompson_value(2, 2) == pytest.approx(1 / 2 + second, abs=1e-12)
    assert thompson_value(1, 6) == pytest.approx(3)
    for arms in (3, 30):
        mean, error = simulated(strategies.thompson, arms, 8)
        assert abs(thompson_value(arms, 8) - mean) < 4 * error < 0.1


def test_the_value_of_committing_by_hand_and_by_simulation():
    assert commit_value(2, 2, 1, 3) == pytest.approx(1 + (3 / 4 * 2 / 3 + 1 / 4 * 1 / 3))
    assert commit_value(3, 2, 1, 3) == pytest.approx(1 + (3 / 4 * 2 / 3 + 1 / 4 * 1 / 2))  # the arm that is left
    for used in (3, 5):
        mean, error = simulated(strategies.explore_then_commit(2 * used, used), 5, 30)
        assert abs(commit_value(5, used, 2, 30) - mean) < 4 * error < 0.5


def test_exploring_by_hand_is_worth_more_than_earning():
    """One pull of two arms: after a win 2/3, after a loss the other arm's 1/2. Two: of one arm each, 3/4 * 2/3 + 1/4 *
    1/3, or of the same: 1/3 * 3/4 + 2/3 * 1/2."""
    assert exploration_value(2, 1) == pytest.approx(1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)
    assert exploration_value(2, 2) == pytest.approx(2 * max(3 / 4 * 2 / 3 + 1 / 4 * 1 / 3, 1 / 3 * 3 / 4 + 2 / 3 / 2))
    assert exploration_value(5, 10) > bayes_value(5, 10)


@pytest.mark.parametrize(("arms", "pulls"), [(2, 3), (5, 10), (10, 10), (2, 25)])
def test_the_bound_is_one(arms, pulls):
    assert bayes_value(arms, pulls) <= value_bound(arms, pulls) < 1.12 * bayes_value(arms, pulls)


def test_the_bound_is_known_where_one_arm_is_all():
    """Whoever knows the only arm earns what everybody earns."""
    assert value_bound(1, 10) == pytest.approx(5)
    assert value_bound(50, 100) < 87 < 100 * 50 / 51  # far below what knowing the best arm earns


# ---------------------------------------------------------------------------------------------------------------------
# The tables in the documents


def tables() -> list[tuple[str, str, dict[str, str]]]:
    """(file, row, cells) of every table whose rows are numbers of pulls and arms."""
    found = []
    for name in ("README.md", "experiments/bandits/README.md", "experiments/rl2/README.md", "docs/algorithms/rl2.md"):
        header: list[str] = []
        for line in (ROOT / name).read_text().splitlines() if (ROOT / name).exists() else []:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("|"):
                header = []
            elif not header:
                header = cells
            elif not cells[0].startswith("---"):
                found.append((name, cells[0], dict(zip(header[1:], cells[1:], strict=True))))
    return found


@cache
def exact(arms: int) -> dict[str, float]:
    return {"total": bayes_value(arms, 10), "after": exploration_value(arms, 10)}


def above(cell: str, best: float) -> bool:
    """Whether a cell has a number above `best` that is neither in brackets nor given with its standard error."""
    own = re.sub(r"± [\d.]+", "±", re.sub(r"\(.*?\)", "", cell))
    return any(float(x) > best + 5e-4 for x in re.findall(r"(?<![\d.])\d+\.\d+(?!\d*\s*±)", own))


def test_what_is_above_the_optimum_is_noticed():
    assert above("6.75", 6.714) and above("6.730 (6.6)", 6.714) and above("6.6; 6.72", 6.714)
    assert not above("6.747 ± 0.033", 6.714) and not above("6.711 (6.8)", 6.714) and not above("6.714", 6.7139)


@pytest.mark.skipif(not (ROOT / "experiments").exists(), reason="metarl is not run from its repository")
def test_no_table_has_more_than_is_possible_without_its_standard_error():
    rows = 0
    for name, row, cells in tables():
        match = re.fullmatch(r"10, (\d+)|bandit-n10-k(\d+)|10 pulls of (\d+) arms", row)
        if not match:
            continue
        rows += 1
        arms = int(next(x for x in match.groups() if x))
        after = "best possible" in cells and cells["best possible"] == f"{exact(arms)['after']:.3f}"
        best = exact(arms)["after" if after else "total"]
        assert after or cells["best possible"] == f"{best:.3f}", (name, row, cells)
        for column, cell in cells.items():
            if "published" not in column and "paper" not in column and column not in ("seeds", "training, minutes"):
                assert not above(cell, best), (name, row, column, cell)
    assert rows == 3 * 6
