"""Reading the command line: YAML, `--any.key value`, and one clear line for each mistake.

Nothing heavy is imported here, so a wrong setting is told within a second.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from pydantic import BaseModel, ValidationError

from dal_dense.config import Config
from dal_dense.errors import ConfigError, DalDenseError, Stopped

UNREADABLE = (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What odd YAML raises."""

PAIRS = "pairs in braces, as in {0: background, 1: liver}"
LISTS = {"query.sizes": "[[64, 64, 48]]", "size": "[192, 320]"}
"""How a setting looks that is no list of three numbers; `size` is that of made-up frames."""

SPINS = "1000"
"""Turns that a thread waits before it sleeps."""


def load_config(argv: Sequence[str], *, prog: str = "train_al.py", description: str = "") -> Config:
    """Settings from `--config FILE` and overrides, in the order given; all of them checked.

    Raises:
        ConfigError: with one line a mistake: field, value, what to do.
        SystemExit: after `--help`.
    """
    try:
        for name, value in _given(argv):
            _refuse_odd(name, value)
        values = _parser(prog, description).parse_args(list(argv)).as_dict()
    except ArgumentError as problem:
        raise ConfigError(_one_line(str(problem))) from None
    except (TypeError, ValueError, RecursionError) as problem:  # of odd YAML, which the parser does not look for
        raise ConfigError(f"config: cannot be understood ({_first_line(str(problem))}); mend the file") from None
    values.pop("config", None)
    try:
        config = Config.model_validate(values)
    except ValidationError as problem:
        lines = {_name(e): _told(e) for e in reversed(problem.errors(include_url=False))}  # one of each, the first
        raise ConfigError("\n".join(reversed(lines.values()))) from None
    missing = list(missing_files(config))
    if missing:
        raise ConfigError("\n".join(missing))
    return config


def _given(argv: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name as they stand in files and arguments; the parser tells of what cannot be read."""
    for i, argument in enumerate(argv):
        name, equal, text = argument.partition("=")
        text = text if equal else "".join(argv[i + 1 : i + 2])
        if name == "--config":
            with contextlib.suppress(OSError):  # settings in place of a path
                if Path(text).is_file():
                    yield from _flat("", _read(Path(text)))
        elif name.startswith("--"):
            with contextlib.suppress(*UNREADABLE):
                yield from _flat(name[2:], yaml.safe_load(text))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind = _kind(name)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}".lstrip("."), inner)
    else:
        yield name, value


def _read(file: Path) -> Any:
    """What a file of settings holds; None if the parser will not take it either.

    Raises:
        ConfigError: naming a key that is set twice and its line, for YAML would take the last one without a word;
            or a file that is no text.
    """
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"config: {file} is not UTF-8 text; save it as such") from None
    except yaml.YAMLError:
        return None
    try:
        root = loader.get_single_node()
        values = None if root is None else loader.construct_document(root)
    except UNREADABLE:
        return None
    finally:
        loader.dispose()
    nodes, seen = [root], set[int]()  # an alias is its anchor's very node
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            if str(key.value) in keys and key.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(f"{file}: {key.value} is set again in line {key.start_mark.line + 1}; keep one")
            keys.add(str(key.value))
            nodes.append(value)
    return values


def _refuse_odd(name: str, value: Any) -> None:
    """The parser would take `true` for the number 1, and the label value 1.7 for 1.

    Raises:
        ConfigError: naming the setting.
    """
    kind = str(_kind(name))
    if isinstance(value, dict) and "dict" in kind and any(type(key) is not int for key in value):
        raise ConfigError(f"{name}: got {value!r}; expected {PAIRS}; correct it, or see --help")
    if re.search(r"\b(int|float)\b", kind) and _holds_truth(value):
        raise ConfigError(
            f"{name}: got {value!r}; true, false, yes and no are neither numbers nor names; quote names, or see --help"
        )


def _holds_truth(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_truth, value.values()))
    return any(map(_holds_truth, value)) if isinstance(value, list) else isinstance(value, bool)


@functools.cache  # building it takes longer than all that it does
def _parser(prog: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; later arguments override it")
    parser.add_class_arguments(Config, as_group=False)
    return parser


def missing_files(config: Config) -> Iterator[str]:
    """One line for each path that the settings name and that is not there."""
    root = config.data_root
    if not _is(root, "folder"):
        yield f"data_root: no folder at {root}; give the folder that holds the data (--data_root PATH)"
        return
    data = config.data
    for name in ("weights", "config_file"):
        file = getattr(config.task.detection, name)
        if config.task.name != "monai_segmentation" and file is not None and not _is(Path(file), "file"):
            yield f"task.detection.{name}: no file at {file}; give the path of one, or leave the setting out"
    files: dict[str, str | None] = {"split_file": data.split_file, "group_table": data.group_table}
    folders: dict[str, str | None] = {}
    if data.format in ("msd", "nnunet", "coco"):
        files["listing"] = data.listing or "dataset.json"
    if data.format == "coco":
        files["test_listing"] = data.test_listing
    if data.format in ("folder", "coco", "dicom"):
        folders["images"] = data.images
    knows = config.annotator.name == "oracle" or config.annotator.initial_masks not in ("none", ())
    if data.format == "folder" or (data.format == "dicom" and knows):
        folders["masks"] = data.masks
    for kind, named in (("file", files), ("folder", folders)):
        for field, value in named.items():
            if value is not None and not _is(root / value, kind):
                fact = f"is no {kind}" if _is(root / value, "any") else f"is not in {root}"
                none = ", or set null if there are none (with annotator.name: people)" if field == "masks" else ""
                yield f"data.{field}: {value} {fact}; correct the path, which is relative to data_root{none}"
    run = config.run_dir
    if not _can_be_a_folder(run):
        yield f"run_dir: {run} is a file, or lies under one, or cannot be a path; give a folder (--run_dir PATH)"


def _is(path: Path, kind: str) -> bool:
    """Is there such a file, folder or either? What the system refuses as a path is none."""
    try:
        return {"file": path.is_file, "folder": path.is_dir, "any": path.exists}[kind]()
    except (OSError, ValueError):
        return False


def _can_be_a_folder(path: Path) -> bool:
    try:
        return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists()).is_dir()
    except (OSError, ValueError):
        return False


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "").strip()


def _one_line(text: str) -> str:
    """The parser's words as `field: fact; what to do`."""
    key = re.search(r'Parser key "([\w.]+)":?', text)
    told = _no_such_value(text) or _no_such_setting(text) or (key and wrong_value(key[1], text))
    if told:
        return told
    fact = " ".join(text.split())
    if "Problems parsing config" in text:
        fact = fact.split(": ", 1)[1].replace('in "<unicode string>", ', "in ")
        return f"config: not valid YAML: {fact}; mend the file"
    if key:
        return f"{key[1]}: {fact.removeprefix(key[0]).strip()}; correct it, or see --help"
    return f"config: {fact.rstrip('.')}; correct it, or see --help"


def _no_such_value(text: str) -> str | None:
    """A value, word or file that is not there."""
    lacking = re.search(r"argument --([\w.]+): expected one argument", text)
    if lacking:
        return f"{lacking[1]}: no value given; write --{lacking[1]} VALUE"
    required = re.search(r"arguments are required: (.+)", text)
    if required:
        return f"{required[1]}: not set; set it in the config file or as --{required[1].split(',')[0]} VALUE"
    stray = re.search(r"unrecognized arguments: ([^-].*)", text)
    if stray:
        remedy = f"--config {stray[1]}" if stray[1].endswith((".yaml", ".yml")) else "--any.key value"
        return f"{stray[1]}: no setting; write {remedy}"
    if "Path is not a file" in text:
        return f"config: {text.rsplit(': ', 1)[1]} is no file; give the path of a YAML file (see configs/)"
    if "File does not exist" in text:
        return f"config: {text.split(': ', 1)[1]}; give the path of a YAML file (see configs/)"
    if text.startswith("Unexpected config:"):
        return "config: holds no settings; write them as in the files of configs/"
    return None


def _no_such_setting(text: str) -> str | None:
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if unknown:
        return _unknown(f"{unknown[1]}.{unknown[2].removeprefix(unknown[1] + '.')}")
    unknown = re.search(
        r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.-]+)|Key '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        text,
    )
    return _unknown(next(g for g in unknown.groups() if g)) if unknown else None


def wrong_value(name: str, text: str) -> str | None:
    """A value of another type, or out of bounds."""
    group = re.search(r"Unable to load config .([^\s'\"]*)", text)
    if group:
        return f"{name}: got {group[1]!r}; expected settings of its own below it; see --help"
    text = text.replace("typing.Literal", "one of ")
    value = re.search(r"Got value: ([^\n]*)", text)
    given = re.search(r"Given value: ([^\n]*)", text)
    if "<class 'NoneType'>" in text:
        given = re.search(r"Given value: ([^\n]*)\Z", text.strip())  # of the whole, not of a part of it
        got = f"got {given[1]!r}; " if given else ""
        return f"{name}: {got}expected {_in_words(name)} or null; correct it, or see --help"
    if "<class 'tuple'>" in text and value is None:
        return f"{name}: got {given[1] if given else '?'!r}; expected a list in brackets, as in [a, b], or see --help"
    wanted = re.search(
        r"(Input should be [^\[]*|String should match [^\[]*|(?:Tuple|List) should have [^\[]*|Expected an? [^\n]*)",
        text.split("Got value")[0],
    )
    if wanted is None:
        return None
    expected = re.sub(r"Expected an? ", "expected ", wanted[1]).strip().rstrip(".")
    for kind, word in TYPES.items():
        expected = expected.replace(f"<class '{kind}'>", word)
    count = re.search(r"tuple with (\d+) elements|should have (at least \d+)", expected)
    if count and name not in LISTS:
        expected = f"expected {count[1] or count[2]} numbers in brackets"
    elif count or "tuple" in expected:
        expected = f"expected a list in brackets, as in {LISTS.get(name, '[64, 64, 48]')}"
    value = value or given
    got = f"got {value[1].strip()!r}; " if value else ""
    return f"{name}: {got}{_plain(expected)}; correct it, or see --help"


def _kind(name: str) -> Any:
    """Type of a setting or group by dotted name, of all settings for ""; None if there is none."""
    kind: Any = Config
    for part in name.split(".") if name else ():
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        kind = fields[part].annotation if part in fields else None
    return kind


def _in_words(name: str) -> str:
    """What a setting that may be null is otherwise."""
    kind = str(_kind(name))
    if "dict" in kind:
        return PAIRS
    if "tuple" in kind:
        return f"{kind.count(',') + 1} numbers in brackets"
    return next((word for name, word in TYPES.items() if name in kind), "a value")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, list(setting_names(Config)), n=1)
    hint = f"did you mean {near[0]}?" if near else "see --help for all of them"
    return f"{name}: no such setting; {hint}"


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, nested ones included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation, f"{prefix}{name}.")


def _name(mistake: Mapping[str, Any]) -> str:
    """The setting; what pydantic says beyond it is which of several types did not fit, or a place in a list."""
    names = itertools.takewhile(lambda part: str(part).isidentifier(), mistake["loc"])
    return ".".join(map(str, names)) or "config"


def _told(mistake: Mapping[str, Any]) -> str:
    """One mistake that pydantic found, as it describes it; a rule of ours names the value itself."""
    name, fact = _name(mistake), _plain(mistake["msg"])
    if mistake["type"] == "value_error":
        whole = fact if name == "config" else f"{name}.{fact}"  # a rule of a group begins with the setting's own name
        begins = re.match(r"[\w.]+", whole)
        setting = begins[0].rstrip(".") if begins else name
        return whole if setting != name and setting in setting_names(Config) else f"{name}: {fact}"
    if mistake["type"] == "model_type":
        return f"{name}: got {mistake['input']!r}; expected settings of its own below it; see --help"
    return f"{name}: got {mistake['input']!r}; {fact}; correct it, or see --help"


TYPES = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}
"""What a setting must be, in words."""


def _plain(message: str) -> str:
    plain = message.removeprefix("Value error, ").replace("Input should be", "expected")
    plain = plain.replace("String should match pattern", "expected")
    plain = re.sub(r"greater than or equal to (\S+)", r"\1 or more", plain)
    return plain.replace("less than or equal to", "at most").replace("greater than", "more than")


def command(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """What every command does around its work.

    What a user can mend becomes one clear message and an exit status; bugs keep their traceback. Status 0: done;
    1: something is wrong; 2: a setting is wrong; 130: stopped, and resumable.
    """

    def guarded(argv: list[str]) -> int:
        share_cores()
        try:
            return main(argv)
        except ConfigError as problem:
            return _complain(str(problem), 2)
        except DalDenseError as problem:
            return _complain(str(problem), 1)
        except (Stopped, KeyboardInterrupt):
            return _complain("stopped; all that was recorded is safe. Run the same command to go on.", 130)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return _complain(
                f"the disk is full ({problem.filename or 'while writing'}); all that was recorded is safe. "
                "Free some space and run the same command to go on.",
                1,
            )

    return guarded


def share_cores() -> None:
    """Threads that wait for each other soon sleep; called before torch loads, which reads this once.

    By default they keep their cores busy 300 times as long: beside another program, more than they compute. For torch
    with GNU's OpenMP, which its wheels for Linux bring; others do not read it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # the user has not said how they wait
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _complain(text: str, status: int) -> int:
    sys.stderr.write("".join(f"{line}\n" for line in text.splitlines()))
    return status
