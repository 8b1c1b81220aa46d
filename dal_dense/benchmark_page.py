"""What the tools that measure share: their arguments, the facts that figures depend on, the page that holds both."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is, and takes no shortened option for its own."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=shape, allow_abbrev=False)


def facts(tool: str, argv: Sequence[str]) -> dict[str, str]:
    """Date, command, and what the seconds of a benchmark depend on.

    Args:
        tool: file name of the program in tools.
        argv: what it was called with; of absolute paths, which are of this machine only, the last part is shown.
    """
    shown = shlex.join(f".../{Path(a).name}" if Path(a).is_absolute() else a for a in argv)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": f"`python tools/{tool} {shown}`",
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name where the system tells it (Linux), else its architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def page(title: str, facts: Mapping[str, str], lines: Iterable[str]) -> str:
    """Markdown: the title, a list of facts, the lines."""
    return "\n".join([f"# {title}", "", *(f"- {k}: {v}" for k, v in facts.items()), "", *lines, ""])


def publish(text: str, out: Path | None) -> None:
    """Print a page as it is, and write it if a file is given."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        out.write_text(text, encoding="utf-8")
