"""A suite: which contenders meet which families, with which budgets, as a TOML file or a few words."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from metarl.arguments import whole
from metarl.benchmark import contenders
from metarl.benchmark.contract import Adaptation
from metarl.families.registry import make
from metarl.suggestions import did_you_mean

EXAMPLES = Path(__file__).parent / "suites"
"""Suites that come with the package, by the name of their file."""


class SuiteError(ValueError):
    """A suite that cannot be run; the message names the entry and says what to write."""


@dataclass(frozen=True)
class FamilyEntry:
    """One family of a suite."""

    id: str
    """What `metarl.make` takes."""
    budget: int = 1_000_000
    """Environment steps for training, including those spent on validation tasks."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Of the family."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of every contender that trains by policy gradients and adapts by gradient steps: step sizes, say."""
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the suite's `adaptation`."""


@dataclass(frozen=True)
class ContenderEntry:
    """One contender of a suite."""

    kind: str
    """Which contender it is: `metarl.benchmark.contenders.get`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its settings, on every family."""
    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its settings on single families, by their names in the suite."""
    label: str = ""
    """What it is called in tables and figures; empty: what it calls itself."""


@dataclass(frozen=True)
class Suite:
    """Cells of contender x family x seed."""

    name: str
    families: Mapping[str, FamilyEntry]
    contenders: Mapping[str, ContenderEntry]
    seeds: int = 3
    first_seed: int = 0
    adaptation: Adaptation = field(default_factory=Adaptation)
    tasks: Mapping[str, int] = field(default_factory=lambda: {"validation": 20, "test": 40})
    """How many tasks of each split are drawn; other splits than these two are reported beside the test split."""
    task_seed: int = 20_000

    def cells(self) -> list["Cell"]:
        """All cells, seed by seed: the first seed of everything comes first."""
        return [Cell(self, family, contender, self.first_seed + s)
                for s in range(self.seeds) for family in self.families for contender in self.contenders]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One contender on one family with one seed."""

    suite: Suite
    family: str
    contender: str
    seed: int

    @property
    def path(self) -> Path:
        """Its directory, below that of the benchmark."""
        return Path("cells") / self.family / self.contender / f"seed{self.seed}"

    @property
    def adaptation(self) -> Adaptation:
        """The suite's, with what the family's entry changes."""
        return replace(self.suite.adaptation, **self.suite.families[self.family].adaptation)

    def made_family(self) -> Any:
        """The family."""
        entry = self.suite.families[self.family]
        return make(entry.id, **entry.kwargs)

    def made_contender(self) -> Any:
        """The contender, with the settings of its own and of the family's."""
        entry = self.suite.contenders[self.contender]
        shared = {} if entry.kind in SETTLED else dict(self.suite.families[self.family].settings)
        return contenders.get(entry.kind, {**shared, **entry.options, **entry.families.get(self.family, {})})


SETTLED = ("random", "rl2", "scratch_ppo")
"""Contenders to which a family's shared `settings`, those of gradient steps, do not apply."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read(path: Path | str) -> Suite:
    """The suite in a TOML file, or one that comes with the package, by its name.

    Raises:
        SuiteError: no such file, no TOML, or an entry that makes no sense.
    """
    path = Path(path)
    if not path.exists() and (EXAMPLES / f"{path}.toml").exists():
        path = EXAMPLES / f"{path}.toml"
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in EXAMPLES.glob("*.toml")))
        raise SuiteError(
            f"there is no suite {path}: name a TOML file, or one that comes with metarl: {known}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{path} is no TOML: {error}") from None
    return from_data(data, path.stem, str(path))


def from_data(data: Mapping[str, Any], name: str, where: str = "the suite") -> Suite:
    """A suite from nested dicts.

    Raises:
        SuiteError: an entry that is unknown, missing or wrong.
    """
    data = dict(data)
    families = {
        key: _entry(FamilyEntry, {"id": key, **value}, f"[families.{key}] of {where}")
        for key, value in _table(data, "families", where).items()
    }
    chosen = {}
    for key, value in _table(data, "contenders", where).items():
        value = dict(value)
        known = {f.name for f in fields(ContenderEntry)}
        options = {**value.pop("options", {}), **{n: value.pop(n) for n in list(value) if n not in known}}
        chosen[key] = _entry(
            ContenderEntry, {"kind": key, **value, "options": options}, f"[contenders.{key}] of {where}"
        )
    rest = {n: v for n, v in data.items() if n not in ("families", "contenders")}
    if "adaptation" in rest:
        rest["adaptation"] = _entry(Adaptation, rest["adaptation"], f"[adaptation] of {where}")
    suite = _entry(Suite, {"name": name, **rest, "families": families, "contenders": chosen}, where)
    check(suite, where)
    return suite


def _table(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = data.get(name)
    if not isinstance(found, Mapping) or not found or not all(isinstance(x, Mapping) for x in found.values()):
        raise SuiteError(f"{where} needs a table [{name}.NAME] for each of its {name}")
    return found


def _entry(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise SuiteError(f"{where} has no entry {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")
    return kind(**values)


def check(suite: Suite, where: str = "the suite") -> None:
    """Raise SuiteError for what could not be run, before anything is: every family and contender is made once."""
    whole("seeds", suite.seeds, 1)
    for name, number in {**vars(suite.adaptation), **suite.tasks}.items():
        whole(name, number, 1)
    if missing := {"validation", "test"} - set(suite.tasks):
        raise SuiteError(f"[tasks] of {where} needs a number of {' and '.join(sorted(missing))} tasks")
    for key in suite.families:
        for contender in suite.contenders:
            cell = Cell(suite, key, contender, 0)
            try:
                whole("budget", suite.families[key].budget, 1)
                cell.made_family(), cell.adaptation, cell.made_contender()
            except (ValueError, TypeError, ImportError) as error:
                raise SuiteError(f"{contender} on {key} in {where}: {error}") from error
    for entry in suite.contenders.values():
        for family in entry.families:
            if family not in suite.families:
                raise SuiteError(f"{entry.kind} has settings for {family!r}, which is no family of {where}")


def of_words(families: Sequence[str], chosen: Sequence[str], seeds: int, budget: int) -> Suite:
    """The suite of a command line: ids of families, names of contenders."""
    return from_data(
        {"families": {name: {"budget": budget} for name in families}, "contenders": {name: {} for name in chosen},
         "seeds": seeds},
        "benchmark", "the command line",
    )  # fmt: skip
