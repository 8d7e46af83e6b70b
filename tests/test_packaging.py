"""What is in the wheel and the source archive, and that what is installed from them works without the repository."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import metarl

ROOT = Path(metarl.__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="metarl is not run from its repository"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")),
        reason="the packages build and hatchling are missing",
    ),
]


def run(*argv: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive, and a wheel that was built from it."""
    path = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(path), str(ROOT), cwd=path)
    return path


def the(dist: Path, pattern: str) -> Path:
    (found,) = dist.glob(pattern)
    return found


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def readme_lines() -> list[str]:
    """The commands with which the README installs metarl outside a clone."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (lines,) = [block.splitlines() for block in blocks if "/path/to/clone" in block]
    return lines


@pytest.fixture
def empty_venv(tmp_path: Path) -> Path:
    """A virtual environment that holds nothing, but imports what metarl depends on from this interpreter's."""
    path = tmp_path / "venv"
    venv.create(path, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    (site / "dependencies.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    return path


def test_the_readme_installs_metarl_outside_a_clone(empty_venv, tmp_path):
    """From the clone, and from a wheel of it; without a network, so without dependencies."""
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull,
               "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PATH": f"{empty_venv / 'bin'}:{os.environ['PATH']}"}  # fmt: skip
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"} | offline
    site = Path(sysconfig.get_path("purelib", vars={"base": str(empty_venv)}))

    def shell(line: str) -> None:
        done = subprocess.run(["bash", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=300)  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    direct, build, wheel = (line.replace("/path/to/clone", str(ROOT)) for line in readme_lines())
    assert not (site / "metarl").exists()  # negative control
    for lines in ([direct], [build, wheel]):
        for line in lines:
            shell(line)
        shell(f"python -I -c {shlex.quote(PROBE)} {shlex.quote(str(site))}")
        shell("pip uninstall --yes --quiet metarl-torch")
        assert not (site / "metarl").exists()


def test_no_remedy_names_a_distribution_that_is_not_on_the_index():
    """What errors tell users to install are packages of the extras, by their own names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {re.split(r"[\[<>=]", x)[0] for extra in project["optional-dependencies"].values() for x in extra}
    sources = [*(ROOT / "metarl").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]
    remedies = [(path, found) for path in sources
                for found in re.findall(r"pip install '?((?:[a-z][\w.=-]*[ \w.=-]*)+)", path.read_text())]  # fmt: skip
    named = {re.split(r"[\[<>=]", word)[0] for _, found in remedies for word in found.split(" beside ")[0].split()}
    assert {"matplotlib", "mujoco", "scikit-learn", "imageio", "metaworld"} <= named  # they are found
    assert named <= known and "metarl-torch" not in named, named - known


def test_the_wheel_holds_every_module_and_nothing_else(dist):
    names = {name for name in files_of(the(dist, "*.whl")) if ".dist-info/" not in name}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "metarl").rglob("*.py")}
    sources |= {str(p.relative_to(ROOT / "envs")) for p in (ROOT / "envs" / "metarl_envs").rglob("*.py")}
    suites = {str(p.relative_to(ROOT)) for p in (ROOT / "metarl" / "benchmark" / "suites").glob("*.toml")}
    assert suites and names == sources | suites | {"metarl/py.typed", "metarl_envs/py.typed"}
    assert {name.split("/")[0] for name in names} == {"metarl", "metarl_envs"}  # no tests, experiments, envs


def test_a_wheel_of_the_repository_is_a_wheel_of_the_source_archive(dist, tmp_path):
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    assert files_of(the(tmp_path, "*.whl")) == files_of(the(dist, "*.whl"))


def test_the_source_archive_holds_what_the_tests_need(dist):
    with tarfile.open(the(dist, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_packaging.py", "docs/logging.md"} <= names
    assert {"envs/metarl_envs/point_navigation.py", "metarl/algorithms/maml_trpo.py"} <= names
    assert not {name for name in names if name.split("/")[0] in (".git", ".venv", "runs", "experiments")}


def test_the_licence_and_the_version_are_in_the_wheel(dist):
    files = files_of(the(dist, "*.whl"))
    (metadata,) = (data.decode() for name, data in files.items() if name.endswith("/METADATA"))
    assert f"\nVersion: {metarl.__version__}\n" in metadata
    assert any(name.endswith("/licenses/LICENSE") for name in files)


PROBE = """
import importlib.metadata, sys
from pathlib import Path
here = Path(sys.argv[1])
import metarl, metarl_envs
for package in (metarl, metarl_envs):
    assert Path(package.__file__).is_relative_to(here), package.__file__
    assert (Path(package.__file__).parent / "py.typed").exists()
assert Path(str(importlib.metadata.distribution("metarl-torch").locate_file(""))) == here
family = metarl.make("PointNavigation-v0", horizon=3)
assert Path(sys.modules[type(family).__module__].__file__).is_relative_to(here)
learner = metarl.MetaLearner("maml_trpo", family, device="cpu", n_tasks=2, episodes=2, hidden=(4,)).learn(1)
assert learner.state.iteration == 1
(script,) = importlib.metadata.entry_points(group="console_scripts", name="metarl")
assert script.load()  # the command
print("families", *metarl.registered())
"""


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"], ids=["wheel", "source archive"])
def test_what_is_installed_works_without_the_repository(dist, tmp_path, pattern):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--no-build-isolation", "--no-warn-script-location", "--target", str(target), str(the(dist, pattern)),
        cwd=elsewhere)  # fmt: skip
    # The editable installation stands in this interpreter's path too; what comes first counts, and PROBE checks it.
    first = f"import sys; sys.path.insert(0, {str(target)!r})\n"
    shown = run("-I", "-c", first + PROBE, str(target), cwd=elsewhere)
    assert "PointNavigation-v0" in shown.split()
    assert (target / "bin" / "metarl").exists()
