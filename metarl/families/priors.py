"""How the values of one task parameter are drawn, and their space.

`prior` accepts anything that specifies a distribution: a Gymnasium space (uniform), a frozen `scipy.stats`
distribution, a sequence of values (each equally likely), or a function with a space. Values are only drawn from the
generator passed in.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from metarl.policies.spaces import HUGE
from metarl.suggestions import did_you_mean, nearest

KINDS = (
    "a bounded Box, a Discrete, MultiDiscrete or MultiBinary space (uniform in it), a frozen scipy.stats distribution, "
    "a list of values, or a pair (function of (rng, n), space)"
)


class Prior(Protocol):
    """A distribution over one parameter's values."""

    @property
    def space(self) -> Space:
        """The space of a task's entry."""
        ...

    @property
    def countable(self) -> bool:
        """Whether two independent draws can be equal."""
        ...

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """`n` draws, [n, *space.shape]."""
        ...

    def to_json(self) -> Any:
        """JSON-serialisable data that `prior` accepts, or None if there is no such form."""
        ...


def prior(name: str, value: Any) -> Prior:
    """The prior specified by `value`. A Box of shape (1,), such as `Box(5.0, 15.0)`, gives a single number.

    Raises:
        ValueError: `value` is not one of `KINDS` (the message names the parameter).
    """
    try:
        return _prior(value)
    except ValueError as error:
        raise ValueError(f"parameter {name!r}: {error}") from None


def _prior(value: Any) -> Prior:
    if isinstance(value, Space):  # before Mapping, which a Dict space is too
        return _uniform(value)
    if isinstance(value, Mapping):
        return _from_json(value)
    if hasattr(value, "rvs") and hasattr(value, "random_state"):
        return Frozen(value)
    if isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and isinstance(value[1], Space):
        return Drawn(value[0], _number(value[1]))
    if isinstance(value, tuple) and len(value) == 2 and all(_is_number(x) for x in value):
        low, high = sorted(value)
        raise ValueError(f"{value!r} may mean a range or two values: write Box({low}, {high}) for all between them, "
                         f"[{value[0]}, {value[1]}] for one of the two")  # fmt: skip
    if isinstance(value, tuple) and len(value) == 2 and _are_bounds(*value):
        low, high = (np.asarray(x).tolist() for x in value)
        raise ValueError(f"{value!r} may mean a range or two values: write Box(np.array({low}), np.array({high}), "
                         f"dtype=np.float32) for all between them, [{low}, {high}] for one of the two")  # fmt: skip
    if isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return _finite(list(value))
    if callable(value):
        raise ValueError(f"a function needs the space of the values that it draws, ({value!r}, Box(...))")
    if isinstance(value, bool | int | float | str | np.generic):
        raise ValueError(f"{value!r} is one fixed value, which belongs in make_kwargs; a distribution is {KINDS}")
    raise ValueError(f"a distribution is {KINDS}, got {value!r}")


def _is_whole(box: Box) -> bool:
    return bool(np.issubdtype(box.dtype, np.integer))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _are_bounds(low: Any, high: Any) -> bool:
    """Whether two arrays or lists of numbers could be the bounds of a range."""
    if not all(isinstance(x, np.ndarray | list | tuple) for x in (low, high)):
        return False
    try:
        low, high = np.asarray(low), np.asarray(high)
    except ValueError:  # of different lengths
        return False
    return low.shape == high.shape and all(x.dtype.kind in "iuf" for x in (low, high))


def _uniform(space: Space) -> "Uniform":
    if not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        raise ValueError(f"a distribution is {KINDS}, got {space}")
    if isinstance(space, Box) and not (space.is_bounded() and np.abs([space.low, space.high]).max(initial=0) < HUGE):
        raise ValueError(f"there is no uniform distribution on {space}; give bounds or a distribution such as "
                         "scipy.stats.norm(0, 1)")  # fmt: skip
    return Uniform(_number(space))


def _number(space: Space) -> Space:
    """A Box of shape (1,) as one of shape ()."""
    if isinstance(space, Box) and space.shape == (1,):
        return Box(space.low[0], space.high[0], (), _type(space))
    return space


def _finite(values: list[Any]) -> "Numbers | Choices":
    if not values:
        raise ValueError("a list of values needs at least one")
    try:
        array = np.asarray(values)
    except ValueError:  # of different lengths
        return Choices(tuple(values))
    if not np.issubdtype(array.dtype, np.number) or any(isinstance(value, bool | np.bool_) for value in values):
        return Choices(tuple(values))
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {values}")
    return Numbers(_tuples(array.tolist()))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------------------
# The kinds


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution on a bounded space."""

    space: Any

    @property
    def countable(self) -> bool:
        space = self.space
        return not isinstance(space, Box) or _is_whole(space) or bool((space.low == space.high).all())

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        space = self.space
        shape = (n, *(space.shape or ()))
        if isinstance(space, Box) and not _is_whole(space):
            return rng.uniform(space.low, space.high, shape).astype(space.dtype)
        low, high = _ends(space)
        return rng.integers(low, high, shape, endpoint=True).astype(space.dtype)

    def to_json(self) -> Any:
        space = self.space
        if isinstance(space, Box):
            return {"box": [space.low.tolist(), space.high.tolist()], "dtype": str(space.dtype)}
        if isinstance(space, Discrete):
            return {"discrete": int(space.n), "start": int(space.start)}
        if isinstance(space, MultiDiscrete):
            return {"multidiscrete": space.nvec.tolist(), "start": space.start.tolist()}
        return {"multibinary": space.n if isinstance(space.n, int) else list(space.n)}

    def __str__(self) -> str:
        return f"uniform in {self.space}"


def _ends(space: Any) -> tuple[Any, Any]:
    """The smallest and the largest value of every entry."""
    if isinstance(space, Box):
        return space.low, space.high
    if isinstance(space, MultiBinary):
        return 0, 1
    if isinstance(space, Discrete):
        return int(space.start), int(space.start + space.n - 1)
    return space.start, space.start + space.nvec - 1


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen `scipy.stats` distribution; with array arguments, or a multivariate distribution, it draws arrays."""

    distribution: Any

    @property
    def countable(self) -> bool:
        return hasattr(self.distribution, "pmf")

    @property
    def space(self) -> Box:
        low, high = self._support()
        if not self.countable:
            return Box(low, high, low.shape, np.float64)
        limits = np.iinfo(np.int64)
        low, high = (np.clip(x, limits.min + 1024, limits.max - 1024).astype(np.int64) for x in (low, high))
        return Box(low, high, low.shape, dtype=np.int64)

    def _support(self) -> tuple[np.ndarray, np.ndarray]:
        if hasattr(self.distribution, "support"):
            low, high = self.distribution.support()
        else:
            # Of two draws: some multivariate distributions give one alone a further axis.
            shape = np.shape(self.distribution.rvs(size=2, random_state=np.random.default_rng(0)))[1:]
            low, high = np.full(shape, -math.inf), np.full(shape, math.inf)
        return np.asarray(low, np.float64), np.asarray(high, np.float64)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        space = self.space
        shape = (n, *space.shape)
        size = shape if hasattr(self.distribution, "support") else n
        return np.asarray(self.distribution.rvs(size=size, random_state=rng)).reshape(shape).astype(space.dtype)

    def _key(self) -> tuple[Any, ...]:
        """The data that identify a distribution; SciPy's own objects compare by identity."""
        family = getattr(self.distribution, "dist", None)
        if family is None:
            return (id(self.distribution),)
        arguments = [(k, np.asarray(v).tolist()) for k, v in sorted(self.distribution.kwds.items())]
        return family.name, [np.asarray(x).tolist() for x in self.distribution.args], arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(str(self._key()))

    def to_json(self) -> Any:
        import scipy.stats

        name, *rest = self._key()
        if not rest or type(getattr(scipy.stats, name, None)) is not type(self.distribution.dist):
            return None
        return {"scipy": name, "args": rest[0], "kwds": dict(rest[1])}

    def __str__(self) -> str:
        name, *rest = self._key()
        if not rest:
            return repr(self.distribution)
        return f"scipy.stats.{name}({', '.join([*map(str, rest[0]), *(f'{k}={v}' for k, v in rest[1])])})"


@dataclass(frozen=True)
class Numbers:
    """A finite set of numbers, or of arrays of one shape; a task contains the value itself."""

    values: tuple[Any, ...]
    countable = True

    @property
    def space(self) -> Box:
        array = np.asarray(self.values)
        return Box(array.min(0), array.max(0), array.shape[1:], array.dtype.type)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return np.asarray(self.values)[rng.integers(len(self.values), size=n)]

    def to_json(self) -> Any:
        return np.asarray(self.values).tolist()

    def __str__(self) -> str:
        return f"one of {list(self.values)}"


@dataclass(frozen=True, eq=False)
class Choices:
    """A finite set of any objects; a task contains the index into `among` (all values; only `values` are drawn)."""

    values: tuple[Any, ...]
    among: tuple[Any, ...] = ()
    countable = True

    @property
    def space(self) -> Discrete:
        return Discrete(len(self.among or self.values))

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return np.array(self.positions())[rng.integers(len(self.values), size=n)]

    def positions(self) -> list[int]:
        """The index of each of `values` in `among`."""
        return [_position(value, self.among or self.values) for value in self.values]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choices) and _equal(self.values, other.values) and _equal(self.among, other.among)

    def __hash__(self) -> int:
        return hash((len(self.values), len(self.among)))

    def to_json(self) -> Any:
        return list(self.values)

    def __str__(self) -> str:
        return f"one of {list(self.values)}, by its index"


def _position(value: Any, among: Sequence[Any]) -> int:
    """The first index of `value` in `among`, or -1."""
    return next((i for i, other in enumerate(among) if _equal(value, other)), -1)


def _equal(a: Any, b: Any) -> bool:
    """`a == b`, where both may be or hold arrays."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    return a is b or bool(a == b)


@dataclass(frozen=True)
class Drawn:
    """Values drawn by a function of (rng, n) -> [n, *space.shape]."""

    function: Callable[[np.random.Generator, int], Any]
    space: Any

    @property
    def countable(self) -> bool:
        return not isinstance(self.space, Box) or bool(np.issubdtype(self.space.dtype, np.integer))

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        values = np.asarray(self.function(rng, n))
        shape = (n, *(self.space.shape or ()))
        if values.size != math.prod(shape) or values.shape[:1] != (n,):
            raise ValueError(f"{self.function!r} must draw an array of shape {shape}, got {values.shape}")
        return values.reshape(shape).astype(self.space.dtype)

    def to_json(self) -> Any:
        return None

    def __str__(self) -> str:
        return f"by {getattr(self.function, '__name__', repr(self.function))} in {self.space}"


# ---------------------------------------------------------------------------------------------------------------------
# Several splits of one parameter


def together(name: str, priors: Sequence[Prior], usual: int | None = None) -> tuple[list[Prior], Space]:
    """The priors of one parameter in several splits, expressed in one space. The space contains all choices, and the
    numbers of the first `usual` splits (by default all; those of other splits may lie outside).

    Raises:
        ValueError: the splits draw values of different shapes or kinds.
    """
    if all(isinstance(p, Choices) for p in priors):
        among: list[Any] = []
        for p in priors:
            for value in p.values:  # type: ignore[attr-defined]
                among += [value] if _position(value, among) < 0 else []
        joined: list[Prior] = [Choices(p.values, tuple(among)) for p in priors]  # type: ignore[attr-defined]
        return joined, joined[0].space
    spaces: list[Any] = [p.space for p in priors]
    first = spaces[0]
    if all(space == first for space in spaces):
        return list(priors), first
    if any(type(space) is not type(first) or space.shape != first.shape for space in spaces):
        kinds = dict.fromkeys(map(str, spaces))
        raise ValueError(f"parameter {name!r} is {' in one split, '.join(kinds)} in another: use one kind")
    lows, highs = zip(*(_ends(space) for space in spaces), strict=True)
    if isinstance(first, Box):
        dtype = np.result_type(*(space.dtype for space in spaces)).type
        return list(priors), Box(np.min(lows[:usual], 0), np.max(highs[:usual], 0), first.shape, dtype)
    low, high = np.min(lows, 0), np.max(highs, 0)
    if isinstance(first, Discrete):
        return list(priors), Discrete(int(high - low) + 1, start=int(low))
    return list(priors), MultiDiscrete(high - low + 1, start=low)


def in_common(a: Prior, b: Prior) -> bool:
    """Whether both may draw the same value."""
    if not (a.countable and b.countable):
        return False
    one, other = _values(a), _values(b)
    return one is None or other is None or not one.isdisjoint(other)


def _values(p: Prior) -> set[Hashable] | None:
    """All values, or None if there may be very many."""
    if isinstance(p, Numbers):
        return set(p.values)
    if isinstance(p, Choices):
        return set(p.positions())
    if isinstance(p, Uniform) and isinstance(p.space, Discrete):
        low, high = _ends(p.space)
        return set(range(low, high + 1))
    return None


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def _from_json(data: Mapping[str, Any]) -> Prior:
    """The prior in the form written by `to_json`, or by a user on the command line."""
    known = {
        "box": ("dtype",), "discrete": ("start",), "multidiscrete": ("start",), "multibinary": (),
        "scipy": ("args", "kwds"),
    }  # fmt: skip
    kind = next((key for key in data if key in known), None)
    if kind is None:
        word = next(iter(data), "")
        hint = did_you_mean(word, known) if nearest(str(word), known) else ""
        raise ValueError(f"a distribution as a dict has one of the keys {list(known)}, got {word!r}{hint}")
    unknown = set(data) - {kind, *known[kind]}
    if unknown:
        raise ValueError(f"{dict(data)!r} has the unknown key(s) {sorted(unknown)}, {kind!r} takes {known[kind]}")
    value = data[kind]
    if kind == "box":
        if not isinstance(value, Sequence) or len(value) != 2:
            raise ValueError(f"a box is written {{'box': [low, high]}}, got {dict(data)!r}")
        low, high = (np.asarray(x, data.get("dtype", "float32")) for x in value)
        return _uniform(Box(low, high, low.shape, low.dtype.type))
    if kind == "discrete":
        return _uniform(Discrete(value, start=data.get("start", 0)))
    if kind == "multidiscrete":
        return _uniform(MultiDiscrete(value, start=data.get("start")))
    if kind == "multibinary":
        return _uniform(MultiBinary(value))
    return _frozen(value, data.get("args", ()), data.get("kwds", {}))


def _frozen(name: str, args: Sequence[Any], kwds: Mapping[str, Any]) -> Frozen:
    import scipy.stats

    known = [n for n in dir(scipy.stats) if isinstance(getattr(scipy.stats, n), scipy.stats.rv_continuous
                                                       | scipy.stats.rv_discrete)]  # fmt: skip
    if name not in known:  # nothing else of the module is called
        raise ValueError(f"scipy.stats has no distribution {name!r}{did_you_mean(name, known)}")
    return Frozen(getattr(scipy.stats, name)(*args, **kwds))


def _type(space: Space) -> Any:
    return None if space.dtype is None else space.dtype.type
