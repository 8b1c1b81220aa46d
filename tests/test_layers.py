"""The import graph is a DAG, and each framework has one door."""

import ast
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

PACKAGE = Path(__file__).parents[1] / "dal_dense"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(f) for f in FILES}


def imported(path: Path) -> set[str]:
    """Modules this file imports anywhere, inside functions too; `if TYPE_CHECKING` blocks apart."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in NAMES else node.module for a in node.names
            }
    return found


def test_no_import_cycle_even_inside_functions() -> None:
    graph = {module_name(f): {m for m in imported(f) if m in NAMES} - {module_name(f)} for f in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail("import cycle: " + " -> ".join((*path[path.index(name) :], name)))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize(
    ("framework", "door"),
    [
        ("monai", "tasks/monai_"),
        ("detectron2", "tasks/detectron2_"),
        ("pydicom", "sources/dicom"),
        ("triton", "uncertainty_triton"),
    ],
)
def test_only_its_door_imports_a_framework(framework: str, door: str) -> None:
    users = {
        f.relative_to(PACKAGE).as_posix()
        for f in FILES
        if any(m == framework or m.startswith(framework + ".") for m in imported(f))
    }
    assert {u for u in users if not u.startswith(door)} == set()


def test_the_engine_sees_offers_only() -> None:
    allowed = {"dal_dense.errors", "dal_dense.noise", "dal_dense.offers", "dal_dense.regions", "dal_dense.config"}
    for file in (PACKAGE / "acquire").glob("*.py"):
        parts = ("dal_dense.acquire", "dal_dense.select")
        ours = {m for m in imported(file) if m.startswith("dal_dense") and not m.startswith(parts)}
        assert ours <= allowed, f"{file.name} imports {sorted(ours - allowed)}"


def test_selection_knows_no_offers() -> None:
    for file in (PACKAGE / "select").glob("*.py"):
        ours = {m for m in imported(file) if m.startswith("dal_dense") and not m.startswith("dal_dense.select")}
        assert ours <= {"dal_dense", "dal_dense.noise"}, f"{file.name} imports {sorted(ours)}"


def test_settings_load_without_torch() -> None:
    light = {f"dal_dense.{name}" for name in ("cli", "config", "config_data", "config_task", "errors")}
    for name in light:
        path = PACKAGE / f"{name.split('.')[1]}.py"
        assert not {m for m in imported(path) if m.split(".")[0] in {"torch", "monai", "numpy"}}
        assert {m for m in imported(path) if m.startswith("dal_dense")} <= light


def test_rooms_stay_small() -> None:
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 400, f"{file} has over 400 lines"
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno + 1 <= 75, f"{file}:{node.lineno} {node.name} has over 75 lines"


def test_shapes_are_checked_in_tests() -> None:
    from dal_dense.select.blocks import square

    with pytest.raises(TypeCheckError):
        square(torch.zeros(3))
