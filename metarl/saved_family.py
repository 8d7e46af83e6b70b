"""What a checkpoint says of its family, and the family that a checkpoint needs."""

import json
import warnings
from pathlib import Path
from typing import Any

from metarl.checkpoint import CheckpointError
from metarl.tasks import FamilySpec, TaskFamily, make


def signature(family: TaskFamily) -> dict[str, Any]:
    """Id, spaces, horizon and, where `metarl.make` made it, its arguments, as JSON-able data."""
    spec = getattr(family, "spec", None)
    made = None if not isinstance(spec, FamilySpec) else {"id": spec.id, "kwargs": spec.kwargs}
    try:
        json.dumps(made)
    except TypeError:
        made = None  # such a family has to be passed to `load`
    spaces = {name: str(getattr(family, name)) for name in ("observation_space", "action_space", "task_space")}
    return {"id": family.id, "made": made, "horizon": family.horizon, **spaces}


def load_family(path: Path, saved: dict[str, Any], given: str | TaskFamily | None) -> TaskFamily:
    """The family with the signature `saved` in the checkpoint `path`; `given`, if that is not None.

    Raises:
        CheckpointError: none can be made, or the one that is given has other spaces or another horizon.
    """
    if given is None and saved["made"] is None:
        raise CheckpointError(f"{path} was saved by a learner that was given an object as its family, "
                              f"{saved['id']!r}: pass the same one as family=")  # fmt: skip
    if given is None:
        try:
            family = make(saved["made"]["id"], **saved["made"]["kwargs"])
        except ValueError as error:
            raise CheckpointError(f"{path} needs the family {saved['id']!r}; pass it as family=. ({error})") from None
    else:
        family = make(given) if isinstance(given, str) else given
    found = signature(family)
    differing = [key for key in saved if key != "made" and saved[key] != found[key]]
    if differing:
        was, now = ({key: of[key] for key in differing} for of in (saved, found))
        raise CheckpointError(f"{path} is a checkpoint of another family: it was saved with {was}, this one has {now}")
    if saved["made"] and found["made"] and saved["made"] != (own := json.loads(json.dumps(found["made"]))):
        of = saved["made"]["kwargs"], own["kwargs"]
        other = sorted(name for name in {*of[0], *of[1]} if of[0].get(name) != of[1].get(name))
        was, now = ({name: kwargs[name] for name in other if name in kwargs} for kwargs in of)
        warnings.warn(f"{path} was saved with {saved['id']} made with {was}, this one was made with {now}: training "
                      "and evaluation go on with this one", UserWarning, stacklevel=3)  # fmt: skip
    return family
