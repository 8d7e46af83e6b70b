"""What all tests share: one thread, and a device to run on."""

from collections.abc import Iterator

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("repeatable")

torch.set_num_threads(1)  # for fixtures that outlive a test

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.fixture(scope="session", autouse=True)
def sb3_logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stable-baselines3's own models make a directory for logs in /tmp that they never delete, unless told where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_record_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files that are trained with here are noted elsewhere than in the user's own record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARL_TRUSTED_FILES", str(tmp_path_factory.mktemp("trusted") / "files.json"))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Timings and rounding that do not depend on the machine's cores; whatever a test sets is undone after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is, one after the other."""
    return request.param
