"""Every command and every piece of code in the tutorial, run in its order in an empty folder."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w.]+\.(?:yaml|py))\n")
"""First line of a block that is to be saved under this name."""
REFUSED = "was begun with other settings"
"""Output of the one command that is shown to fail."""


def same(expected: str, got: str) -> bool:
    """Like doctest: `...` stands for anything, spaces and line ends count alike."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, got, options)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command line of a console block with the output that the page shows."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield line, output


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and output of `python SCRIPT ARGUMENTS`, in this process: each of its own would load torch anew."""
    python, *argv = shlex.split(line)
    assert python == "python"
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        patch.setenv("COLUMNS", "160")
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.slow
@pytest.mark.timeout(1500)  # about one minute on an idle core
def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tools", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {"__name__": "tutorial"}
    printed = ""
    ran = 0
    for language, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        named = NAMED.match(content)
        if named:
            (tmp_path / named[1]).write_text(content, encoding="utf-8")
        elif language == "console":
            for line, expected in commands(content):
                status, output = run(line, capsys)
                refused = REFUSED in expected
                assert (status != 0) == refused, f"{line}\n{output}"
                assert same(expected, output), f"{line}\nshown:\n{expected}\ngot:\n{output}"
                ran += 1
        elif language == "python":
            exec(compile(content, str(PAGE), "exec"), known)
            printed = capsys.readouterr().out
            ran += 1
        elif language == "text":
            assert same(content, printed), f"shown:\n{content}\ngot:\n{printed}"
    assert ran >= 10
