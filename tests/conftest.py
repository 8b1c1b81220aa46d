"""Options and fixtures for all tests."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

from tests import checks

if TYPE_CHECKING:
    import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--data-root`: where the public data sets lie."""
    parser.addoption("--data-root", default="../shared/data", help="folder of the public data sets")


HEAVY = (
    "jinja2",
    "jsonargparse",
    "matplotlib.figure",
    "monai.networks.nets",
    "pydicom",
    "rich.progress",
    "scipy.ndimage",
)


def pytest_configure(config: pytest.Config) -> None:
    """One thread in programs that tests start, too; shapes are checked in every module that names some.

    Large libraries load before that hook sees them: what a hooked module is the first to import is compiled anew, 20 s
    in each process. Modules without shapes stay as they are: mypy has checked their types, and the checks of every call
    would take more time than the calls.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for name in HEAVY:
            importlib.import_module(name)
        install_import_hook(modules_with_shapes(), "tests.checks.counted")


def modules_with_shapes() -> list[str]:
    """The package's modules that import jaxtyping; not those whose functions Triton compiles from their text."""
    root = Path(__file__).parents[1]
    files = [file for file in root.glob("dal_dense/**/*.py") if "from jaxtyping import" in file.read_text("utf-8")]
    files = [file for file in files if not file.stem.endswith("_triton")]
    return [".".join(file.relative_to(root).with_suffix("").parts) for file in files]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: none is left to run alone at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session")
def data_root(pytestconfig: pytest.Config) -> Path:
    """Folder of the public data sets (mark the test `data`); skips where it is absent."""
    root = Path(pytestconfig.getoption("--data-root"))
    root = root if root.is_absolute() else pytestconfig.rootpath / root
    if not root.is_dir():
        pytest.skip(f"no public data at {root}; give --data-root")
    return root.resolve()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tests' networks are tiny: a second thread only waits for the first, and for its neighbours."""
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Shapes are checked from the first call of each test and its fixtures."""
    checks.begin()


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator["torch.device"]:
    """A device that is not the CPU: a stand-in for one everywhere, and a GPU where there is one."""
    import torch

    from tests.elsewhere import elsewhere

    if request.param == "stand-in":
        with elsewhere() as found:
            yield found
    elif torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        pytest.skip("no CUDA device")
