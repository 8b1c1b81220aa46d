"""What the pages show is true: settings are the code's, example configs are accepted, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from dal_dense.config import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if "_build" not in p.parts)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def whole(block: str) -> bool:
    """Is this example a whole config, not some keys of one?"""
    return "\nrun_dir:" in block and "\ndata_root:" in block


def examples() -> list[tuple[str, str]]:
    return [(page.name, block) for page in PAGES for block in BLOCK.findall(page.read_text()) if whole(block)]


def test_settings_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tools" / "settings_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run `python tools/settings_page.py`"


def test_there_are_examples() -> None:
    assert len(examples()) >= 4


@pytest.mark.parametrize("name, block", examples(), ids=[n for n, _ in examples()])
def test_example_configs_are_accepted(name: str, block: str) -> None:
    Config.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_are_accepted(path: Path) -> None:
    Config.model_validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lost = [to for to in LINK.findall(text) if "://" not in to and not (page.parent / to).exists()]
    assert lost == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda p: p.name)
def test_no_path_of_one_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|home|tmp|root|Users)/\S*", page.read_text()) == []
