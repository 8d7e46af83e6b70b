"""Meta-World's own observation and reward code, run once for many environments.

The package writes them for one environment: `obs[4:7]` is an object's position, `np.linalg.norm` of it a number.
With the environments as the *last* axis the same code means the same for N of them: `obs[4:7]` is [3, N], the norm
of it [N]. So nothing is copied or rewritten: the package's own functions are called with a stand-in for the
environment, and with a few names that they look up (`np`, `float`, `min`, `Rotation`, ...) replaced by ones that leave
the last axis alone. Where the code branches on numbers that differ between environments, the call is given up and
repeated for the two groups.

`tests/envs/test_metaworld.py` holds every one of the 50 classes against the package itself, step by step.
"""

import builtins
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation


class Fork(Exception):
    """A branch that some environments take and others do not."""

    def __init__(self, taken: np.ndarray):
        super().__init__("environments take different branches")
        self.taken = taken  # [N] bool


class Batched(np.ndarray):
    """Numbers of N environments, [..., N]; indexing and arithmetic are those of a single one's [...]."""

    def __bool__(self) -> bool:
        flags = np.asarray(self, bool)
        if flags.all():
            return True
        if not flags.any():
            return False
        raise Fork(np.ndarray.reshape(flags, -1))

    def reshape(self, *shape: int) -> Any:  # type: ignore[override]
        return np.ndarray.reshape(self, (*shape, self.shape[-1]))

    def item(self) -> Any:  # type: ignore[override]
        """The single number of every environment."""
        return np.ndarray.item(self) if self.ndim == 0 else np.ndarray.reshape(self, self.shape[-1])


def batch(value: Any) -> Any:
    """`value` with the environments on its last axis, as a `Batched`."""
    return np.asarray(value).view(Batched)


class _LastAxis:
    """NumPy for single environments, leaving the last axis of batches alone."""

    def __init__(self) -> None:
        self.linalg = types.SimpleNamespace(norm=self._norm)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def _norm(self, x: Any, ord: Any = None) -> Batched:
        x = batch(x)
        return np.sqrt((x * x).sum(0)) if x.ndim > 1 else np.abs(x)

    def array(self, items: Any, dtype: Any = None) -> Batched:
        if isinstance(items, np.ndarray):
            return items.copy() if isinstance(items, Batched) else batch(items[..., None])
        return batch(np.stack(np.broadcast_arrays(*(np.asarray(x) for x in self._columns(items)))))

    def _columns(self, items: Sequence[Any]) -> list[Any]:
        """Each item with an axis for the environments, of length 1 if it is the same for all."""
        return [x if isinstance(x, Batched) else np.asarray(x)[..., None] for x in items]

    def concatenate(self, items: Sequence[Any]) -> Batched:
        columns = [x[None] if x.ndim == 1 else x for x in self._columns(items)]
        n = max(x.shape[-1] for x in columns)
        return batch(np.concatenate([np.broadcast_to(x, (*x.shape[:-1], n)) for x in columns]))

    hstack = concatenate

    def zeros(self, length: int) -> Batched:
        return batch(np.zeros((length, self.n)))

    n = 1  # environments in this call; for arrays that do not come from others

    def copy(self, x: Any) -> Any:
        return x.copy()

    def where(self, condition: Any, yes: Any, no: Any) -> Batched:
        return batch(np.where(condition, yes, no))

    def all(self, x: Any) -> Any:
        return batch(np.all(np.asarray(x).reshape(-1, x.shape[-1]), 0)) if isinstance(x, Batched) else np.all(x)


def _cast(kind: type) -> Callable[[Any], Any]:
    """`float` or `bool` of every environment's number; of float32 ones `float` gives 64 bits, as of a single one."""
    return lambda x: x.astype(kind, copy=False) if isinstance(x, Batched) else kind(x)


def _extreme(ufunc: Callable[[Any, Any], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(first: Any, *rest: Any) -> Any:
        if not any(isinstance(x, Batched) for x in (first, *rest)):
            return function(first, *rest)
        for x in rest:
            first = ufunc(first, x)
        return first

    return extreme


class _Rotation:
    """The one use of scipy's class: rotation matrices [3, 3, N] to quaternions [4, N]."""

    def __init__(self, matrices: Batched):
        self.matrices = np.moveaxis(np.asarray(matrices), -1, 0)

    from_matrix = classmethod(lambda cls, matrices: cls(matrices))

    def as_quat(self) -> Batched:
        return batch(Rotation.from_matrix(self.matrices).as_quat().T)


class Code:
    """A Meta-World class whose methods run for many environments. Not safe for several threads at once."""

    def __init__(self, cls: type):
        self.cls = cls
        self.numpy = _LastAxis()
        self._names = {
            "np": self.numpy, "Rotation": _Rotation, "float": _cast(float), "bool": _cast(bool),
            "min": _extreme(np.minimum, builtins.min), "max": _extreme(np.maximum, builtins.max),
        }  # fmt: skip
        self._globals: dict[int, dict[str, Any]] = {}
        self._static: dict[str, Any] = {}

    def rebound(self, function: Any) -> Any:
        """The same code, looking up our names."""
        while "func" in function.__code__.co_freevars:  # the package's decorator: what it wraps
            function = function.__closure__[function.__code__.co_freevars.index("func")].cell_contents
        names = self._names_for(function.__globals__)
        new = types.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
        new.__kwdefaults__ = function.__kwdefaults__
        return new

    def _names_for(self, old: dict[str, Any]) -> dict[str, Any]:
        """A module's names, its functions rebound, other modules' functions and this class's static methods too."""
        if id(old) in self._globals:
            return self._globals[id(old)]
        new = self._globals[id(old)] = old | self._names
        for name, value in old.items():
            if inspect.isfunction(value) and value.__module__.startswith("metaworld."):
                new[name] = self.rebound(value)
            elif inspect.ismodule(value) and value.__name__.startswith("metaworld.utils"):
                new[name] = types.SimpleNamespace(**self._names_for(vars(value)))
            elif value is self.cls:
                new[name] = _StaticMethods(self)
        return new

    def lookup(self, name: str) -> Any:
        """A class attribute as it is stored, functions rebound."""
        if name not in self._static:
            found = inspect.getattr_static(self.cls, name)
            if inspect.isfunction(found):
                found = self.rebound(found)
            elif isinstance(found, staticmethod):
                found = staticmethod(self.rebound(found.__func__))
            elif isinstance(found, property):
                found = property(self.rebound(found.fget))
            elif isinstance(found, np.ndarray):
                found = batch(found[..., None])
            self._static[name] = found
        return self._static[name]


class _StaticMethods:
    """The class where its methods call each other by its name."""

    def __init__(self, code: Code):
        self._code = code

    def __getattr__(self, name: str) -> Any:
        found = self._code.lookup(name)
        return found.__func__ if isinstance(found, staticmethod) else found


class StandIn:
    """What the package's methods get as `self`: attributes, simulator state and model of N environments."""

    def __init__(self, code: Code, attributes: "Attributes", data: "Columns", model: Any, index: np.ndarray):
        vars(self).update(_code=code, _attributes=attributes, _index=index, data=_Named(data, index),
                          model=_Model(model, index), touching_main_object=False)  # fmt: skip
        code.numpy.n = len(index)

    def __getattr__(self, name: str) -> Any:
        if name in self._attributes:
            return self._attributes.read(name, self._index, self.data._columns)
        found = self._code.lookup(name)
        if inspect.isfunction(found):
            return types.MethodType(found, self)
        if isinstance(found, property):
            assert found.fget is not None
            return found.fget(self)
        return found.__func__ if isinstance(found, staticmethod) else found

    def __setattr__(self, name: str, value: Any) -> None:
        self._attributes.write(name, value, self._index)


def call(code: Code, attributes: "Attributes", data: "Columns", model: Any, n: int,
         function: Callable[[Any, np.ndarray], np.ndarray]) -> np.ndarray:  # fmt: skip
    """`function(stand-in, indices)` [..., n], for as many groups of environments as take different branches."""

    def run(index: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        try:
            return [(index, function(StandIn(code, attributes, data, model, index), index))]
        except Fork as fork:
            taken = np.broadcast_to(fork.taken, index.shape)
        return run(index[taken]) + run(index[~taken])

    groups = run(np.arange(n))
    if len(groups) == 1:
        return groups[0][1]
    out = np.empty((*groups[0][1].shape[:-1], n))
    for index, part in groups:
        out[..., index] = part
    return out


# ---------------------------------------------------------------------------------------------------------------------
# What the stand-in reads: simulator state, model, the environments' own attributes

FIELDS = {"body": ("xpos", "xquat", "xmat"), "site": ("site_xpos", "site_xmat"), "geom": ("geom_xpos", "geom_xmat")}
LIVE = ("xpos", "xquat", "xmat", "site_xpos", "site_xmat", "geom_xpos", "geom_xmat", "qpos")


class Columns:
    """Fields of N simulator states, gathered when asked for."""

    def __init__(self, datas: Sequence[Any], model: Any):
        self.model = model
        self._datas = datas
        self._views: dict[tuple[str, int, tuple[int, ...]], list[np.ndarray]] = {}  # of every simulator state
        self._cache: dict[tuple[str, int, tuple[int, ...]], Batched] = {}

    def forget(self) -> None:
        """The states have changed."""
        self._cache.clear()

    def read(self, field: str, start: int, shape: tuple[int, ...]) -> Batched:
        """The numbers [*shape, N] from `start` on in the flattened field."""
        key = (field, start, shape)
        if key not in self._cache:
            if key not in self._views:
                stop = start + int(np.prod(shape))
                self._views[key] = [getattr(data, field).reshape(-1)[start:stop] for data in self._datas]
            found = np.concatenate(self._views[key]).reshape(len(self._datas), *shape)
            self._cache[key] = batch(np.ascontiguousarray(np.moveaxis(found, 0, -1)))
        return self._cache[key]


class _Named:
    """`data.body(name).xpos`, `data.joint(name).qpos` and their like, [..., N]."""

    def __init__(self, columns: Columns, index: np.ndarray):
        self._columns, self._index = columns, index

    @property
    def qpos(self) -> Any:
        return self._columns.read("qpos", 0, (self._columns.model.nq,))[:, self._index]

    def joint(self, name: str) -> Any:
        start = int(self._columns.model.joint(name).qposadr[0])
        return types.SimpleNamespace(qpos=self._columns.read("qpos", start, (1,))[:, self._index])

    def __getattr__(self, kind: str) -> Any:
        if kind not in FIELDS:
            raise AttributeError(f"the batched simulator state has no {kind!r}")
        return lambda name: _Element(self._columns, kind, getattr(self._columns.model, kind)(name).id, self._index)


class _Element:
    """One body, site or geom of N environments."""

    def __init__(self, columns: Columns, kind: str, id: int, index: np.ndarray):
        self._columns, self._kind, self.id, self._index = columns, kind, id, index

    def __getattr__(self, name: str) -> Any:
        field = name if self._kind == "body" else f"{self._kind}_{name}"
        if field not in LIVE:
            raise AttributeError(f"the batched simulator state has no {field!r}")
        width = {"xpos": 3, "xquat": 4, "xmat": 9}[name]
        return self._columns.read(field, self.id * width, (width,))[..., self._index]


class _Model:
    """Positions of the N environments' own models."""

    def __init__(self, models: Sequence[Any], index: np.ndarray):
        self._models, self._index = models, index

    def body(self, name: str) -> Any:
        found = np.array([self._models[i].body(name).pos for i in self._index])
        return types.SimpleNamespace(pos=batch(found.T))


class Attributes:
    """The environments' own attributes after their reset, from one environment of the package for each of them.

    Some are views of the simulator's state (`self.init_left_pad = self.get_body_com(...)`), which move with it; the
    package's rewards then see them move, and so do ours.
    """

    def __init__(self, snapshots: Sequence[dict[str, Any]]):
        self._n = len(snapshots)
        # What only some have was written in a step and is written again before it is read.
        names = [name for name in snapshots[0] if all(name in s for s in snapshots)]
        self._values = {name: self._stack([s[name] for s in snapshots]) for name in names}

    def _stack(self, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, (np.ndarray, np.floating)) and first.dtype.kind in "fiub":
            return batch(np.stack([np.asarray(value) for value in values], -1))
        if isinstance(first, float) and any(value != first for value in values):
            return batch(np.array(values))
        return first

    def snapshot(self, i: int) -> dict[str, Any]:
        """A copy of one environment's own."""
        return {name: np.array(np.asarray(value)[..., i]) if isinstance(value, Batched) else value
                for name, value in self._values.items()}  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def read(self, name: str, index: np.ndarray, columns: Columns) -> Any:
        value = self._values[name]
        if isinstance(value, View):
            return columns.read(value.field, value.start, value.shape)[..., index]
        return value[..., index] if isinstance(value, Batched) else value

    def write(self, name: str, value: Any, index: np.ndarray) -> None:
        if not isinstance(value, Batched):
            self._values[name] = value
            return
        if not isinstance(self._values.get(name), Batched):
            self._values[name] = batch(np.full((*value.shape[:-1], self._n), np.nan))
        self._values[name][..., index] = value


class View(tuple):
    """An attribute that is a view of a simulator field: (field, first flat index, shape)."""

    field = property(lambda self: self[0])
    start = property(lambda self: self[1])
    shape = property(lambda self: self[2])


def snapshot(attributes: dict[str, Any], data: Any) -> dict[str, Any]:
    """A copy of one environment's numbers, strings and flags; views of `data` as `View`."""
    out: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            out[name] = _as_view(value, data) or value.copy()
        elif value is None or isinstance(value, (bool, int, float, str, np.number)):
            out[name] = value
    return out


def _as_view(value: np.ndarray, data: Any) -> View | None:
    for field in LIVE:
        whole = getattr(data, field)
        if value.size and value.dtype == whole.dtype and np.shares_memory(value, whole):
            return View((field, (value.ctypes.data - whole.ctypes.data) // whole.itemsize, value.shape))
    return None
