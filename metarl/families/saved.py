"""What a checkpoint says of its family, and the family that a checkpoint needs.

Whoever shares a checkpoint chooses what its header says. Making the family that it names imports a package and calls
a constructor, so only what is imported already, or what the user has named, is made without further permission.
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.checkpoint import CheckpointError
from metarl.families import files
from metarl.families.registry import entry_point_module, is_registered, make, make_from_file
from metarl.source_files import Origin
from metarl.tasks import GYMNASIUM, OWN_PACKAGES, VISIBLE, FamilySpec, TaskFamily
from metarl.warn import warn_caller

MANY = 10**7
"""Whole numbers beyond it, among the arguments that a header gives, could ask for all of the memory."""
_BOX = re.compile(r"Box\((?:[^()]|\[[^\]]*\])*?, (\([\d, ]*\), \w+)\)", re.DOTALL)
"""A Box as text; its shape and dtype."""
_PACKAGE = re.compile(rf"^((?:{VISIBLE}:)*{GYMNASIUM}:).*:([^:]+)$")
_WORD = re.compile(r"[\w +-]*")
_OF_FILES = re.compile(r"(^|_)(file|path|dir|directory|folder|url|uri|xml|filename)s?($|_)", re.IGNORECASE)


def signature(family: TaskFamily) -> dict[str, Any]:
    """Id, spaces, horizon and, where `metarl.make` made it, its arguments, as JSON-able data."""
    spec = getattr(family, "spec", None)
    made: dict[str, Any] | None = None
    if isinstance(spec, FamilySpec):
        made = {"id": spec.id, "kwargs": spec.kwargs}
        made |= {} if spec.origin is None else {"sha256": spec.origin.sha256}
    try:
        json.dumps(made)
    except TypeError:
        made = None  # such a family has to be passed to `load`
    spaces = {name: str(getattr(family, name)) for name in ("observation_space", "action_space", "task_space")}
    space = family.observation_space
    if family.id.startswith(f"{VISIBLE}:") and isinstance(space, gym.spaces.Box):  # written so before float64 was kept
        with np.errstate(over="ignore"):
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        spaces["observation_space"] = str(gym.spaces.Box(low, high, dtype=np.float32))
    return {"id": family.id, "made": made, "horizon": family.horizon, **spaces}


def origin_of(family: TaskFamily) -> Origin | None:
    """The file of the user's own that a family was named by, None for others."""
    spec = getattr(family, "spec", None)
    return spec.origin if isinstance(spec, FamilySpec) else None


def load_family(
    path: Path, saved: dict[str, Any], given: str | TaskFamily | None, trust: bool = False, scaled: bool = False
) -> TaskFamily:
    """The family with the signature `saved` in the checkpoint `path`; `given`, if that is not None. Its parameters may
    have other ranges than they had in training, with a UserWarning.

    Args:
        scaled: the learner has a network that sees tasks, scaled by their ranges.

    Raises:
        CheckpointError: none can be made, it would import or open what the user did not name, or the one that is given
            has other spaces or another horizon.
    """
    made = saved["made"]
    named = given if isinstance(given, str) and made is not None and _names(given, made["id"]) else None
    if given is None or named is not None:
        family = _from_header(path, saved, named, trust)
    else:
        family = _given(path, given)
    found = signature(family)
    differing = [key for key in saved if key != "made" and saved[key] != found[key]]
    if "id" in differing and same_id(saved["id"], found["id"]):
        differing.remove("id")
    if differing == ["task_space"] and given is not None and _same_parameters(saved, found):
        if not scaled and not family.id.startswith(f"{VISIBLE}:"):
            warn_caller(f"{path} was trained on tasks in {saved['task_space']}, this family has tasks in "
                        f"{found['task_space']}: training and evaluation go on with this one")  # fmt: skip
            return family
        raise CheckpointError(
            f"{path} shows tasks to a network, scaled by the range {saved['task_space']}; in {found['task_space']} the "
            "same task would look different. Keep the range, and name further tasks as a split: from_gymnasium(..., "
            'splits={"ood": {...}})'
        )
    if differing:
        was, now = ({key: of[key] for key in differing} for of in (saved, found))
        raise CheckpointError(f"{path} is a checkpoint of another family: it was saved with {was}, this one has {now}")
    if made and found["made"] and not same_made(made, own := json.loads(json.dumps(found["made"]))):
        of = made["kwargs"], own["kwargs"]
        other = sorted(name for name in {*of[0], *of[1]} if of[0].get(name) != of[1].get(name))
        was, now = ({name: kwargs[name] for name in other if name in kwargs} for kwargs in of)
        ids = (made["id"], own["id"]) if made["id"] != own["id"] else (saved["id"], "this one")
        warn_caller(f"{path} was saved with {ids[0]} made with {was}, {ids[1]} was made with {now}: training and "
                    f"evaluation go on with this one")  # fmt: skip
    return family


def _same_parameters(saved: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two task spaces differ in the bounds of numbers only."""
    kinds = [_BOX.sub(r"Box(\1)", signed["task_space"]) for signed in (saved, found)]
    return kinds[0] == kinds[1]


def same_signature(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two signatures are of the same family, as far as they tell."""
    one, other = ({**x, "made": None, "id": ""} for x in (a, b))
    return one == other and same_id(a.get("id", ""), b.get("id", "")) and same_made(a.get("made"), b.get("made"))


def same_made(a: dict[str, Any] | None, b: dict[str, Any] | None) -> bool:
    """Whether two families were made alike. Of a file of the user's own the arguments count: it may have been edited or
    moved, which `_from_header` warns of; and whether an object is like a family that was made, nobody can tell."""
    if a is None or b is None:
        return True
    if "sha256" in a and "sha256" in b:
        return a["kwargs"] == b["kwargs"]
    one, other = (
        {**x, "id": "", "kwargs": {n: value for n, value in x["kwargs"].items() if n != "id"}} for x in (a, b)
    )
    return one == other and same_id(a["id"], b["id"])  # the family's own id is compared beside this


def same_id(a: str, b: str) -> bool:
    """Whether two ids name the same environment: of two packages not even one of the same name."""
    short = without_package(a), without_package(b)
    return a == b or (short[0] == short[1] and (a == short[0] or b == short[1]))


def without_package(id: str) -> str:
    """`gym:package:Name-v0` as `gym:Name-v0`, which earlier versions wrote for a package that was imported; any other
    id as it is."""
    return _PACKAGE.sub(r"\1\2", id)


def _names(given: str, id: str) -> bool:
    """Whether the family that the user names is the one that a file names."""
    return same_id(given, id) or files.same_object(given, id)


def _given(path: Path, given: str | TaskFamily) -> TaskFamily:
    if not isinstance(given, str):
        return given
    try:
        return make(given)
    except (ValueError, ImportError, OSError) as error:
        raise CheckpointError(f"{path} cannot be loaded with the family {given!r}: {error}") from error


def _from_header(path: Path, saved: dict[str, Any], named: str | None, trust: bool) -> TaskFamily:
    """The family that a header names, with the arguments that it gives.

    Args:
        named: what the user has called it, if the user has.
    """
    if saved["made"] is None:
        raise CheckpointError(f"{path} was saved by a learner that was given an object as its family, "
                              f"{saved['id']!r}: pass the same one as family=; on the command line --family "
                              "FILE.py:NAME, an object in a Python file that is or makes the family")  # fmt: skip
    id, kwargs = saved["made"]["id"], saved["made"]["kwargs"]
    if named is not None and same_id(named, id):
        id = named  # the user's word says which package may be imported
    if not trust:
        if named is None and (package := unnamed_package(id)) is not None:
            word = shlex.quote(id)
            raise CheckpointError(
                f"{path} asks to import {package!r}, for its family {id!r}. If you trust the file, import {package} "
                f"before loading it, or pass family={id!r} or trust=True; on the command line --family {word} or "
                "--trust"
            )
        if (found := untrusted_argument(kwargs)) is not None:
            raise CheckpointError(
                f"{path} asks to make its family {id!r} with {found}. If you trust the file, pass trust=True, or the "
                "family itself as family=; on the command line --trust"
            )
    reference = files.reference_in(id)
    if reference is None and ".py" in id and not is_registered(id):
        raise CheckpointError(f"{path} names the family {id!r}, which is none")  # no file is looked into for a hint
    try:
        if reference is not None:
            return make_from_file(_file(path, saved["made"], reference, named, trust), id, kwargs)
        return make(id, **kwargs)
    except CheckpointError:
        raise
    except (ValueError, MemoryError, ImportError, OSError) as error:
        raise CheckpointError(f"{path} needs the family {saved['id']!r}; pass it as family=. ({error})") from error


def _file(path: Path, made: dict[str, Any], reference: str, named: str | None, trust: bool) -> Origin:
    """The file of the user's own that a header's family comes from."""
    sha256 = made.get("sha256")
    if named is not None:
        origin = files.named(files.reference_in(named) or reference)
        files.check_unchanged(origin, sha256)
        return origin
    try:
        return files.asked_for(reference, sha256, trust, made["id"])
    except files.UntrustedFileError as error:
        raise CheckpointError(f"{path} {error}") from None


def unnamed_package(id: str) -> str | None:
    """The package that making the family `id` would import although nobody has named it yet, None if there is none."""
    if files.reference_in(id) is not None:
        return None  # `_file` decides
    prefix, _, rest = id.partition(":")
    if prefix == VISIBLE and rest:
        return unnamed_package(rest)
    if prefix == GYMNASIUM and rest:
        module, colon, name = rest.rpartition(":")
        if colon:
            return None if module in sys.modules else module
        known = gym.registry.get(name)
        entry = None if known is None else known.entry_point
        module = entry.partition(":")[0] if isinstance(entry, str) else ""
    else:
        module = "" if is_registered(id) else entry_point_module(id) or ""
    top = module.partition(".")[0]
    return None if not module or module in sys.modules or top in OWN_PACKAGES or _registers(top) else module


def _registers(package: str) -> bool:
    """Whether a package that is imported already announced its own modules."""
    found = sys.modules.get(package)
    return found is not None and getattr(found, "__file__", None) is not None  # no namespace that others share


def untrusted_argument(kwargs: Any, name: str = "") -> str | None:
    """The first argument that could name a file or an address, or is a huge number, described; None if none is."""
    if isinstance(kwargs, Mapping):
        for key, value in kwargs.items():
            if key == "id" and not name:  # only a name for the family
                continue
            if isinstance(value, str) and value and _OF_FILES.search(key):
                return f"the file or address {key}={value!r}"
            if (found := untrusted_argument(value, key)) is not None:
                return found
    elif isinstance(kwargs, list):
        return next((x for value in kwargs if (x := untrusted_argument(value, name)) is not None), None)
    elif isinstance(kwargs, str) and not _WORD.fullmatch(kwargs):
        return f"the file or address {name}={kwargs!r}"
    elif isinstance(kwargs, int) and abs(kwargs) > MANY:
        return f"the number {name}={kwargs!r}"
    return None
