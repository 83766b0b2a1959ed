"""The parts of docs/ that are made of the code, by `python docs/make.py`.

Configuration reference from the schema, every error message from the source, the library from its
docstrings, the tables of scale.md from its formulas, those of evidence.md from the results of
`benchmarks.evidence`, and the rest of the index. A page keeps the text before its marker.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *sys.path]

import sdclr
from pipeline import errors
from pipeline.cli import scale
from pipeline.cluster import startup
from pipeline.config import Config
from pipeline.config.help import SCHEMA, expected
from pipeline.config.strict_yaml import write_value
from pipeline.storage import causes

LINES = "<lines>"
MARKER = "<!-- made by docs/make.py from here on -->\n"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.PipelineError)
}


@dataclass(frozen=True, order=True)
class Message:
    """One failure that the source can raise; `<name>` stands for what is filled in."""

    exit_code: int
    id: str
    kind: str
    what: str
    todo: str


def configuration() -> str:
    """Return a table for each section of the schema."""
    parts = []
    for section, keys in SCHEMA.items():
        kind = Config.model_fields[section].annotation
        doc = (kind.__doc__ or "").strip().partition("\n")[0]
        rows = [
            f"| `{section}.{key}` | `{write_value(entry['default'])}` | "
            f"{_cell(expected(section, key))} | {_cell(entry.get('description', ''))} |"
            for key, entry in keys.items()
        ]
        head = f"## {section}\n\n{doc}\n\n| key | default | takes | meaning |\n"
        head += "| --- | --- | --- | --- |"
        parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)


def messages() -> list[Message]:
    """Return every failure with its own words, from all calls of an error class."""
    found = set()
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        source = Source(ast.parse(path.read_text()))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                found |= set(source.messages(node))
    found |= set(_of_tables())
    # What only joins lines of others, as that of wrong keys does, says nothing here.
    told = (m for m in found if m.what != LINES and any(part.isalpha() for part in m.what))
    return sorted(told)


def _of_tables() -> Iterator[Message]:
    """Yield the causes that stand in tables: of storage, and of a failed start of Ray."""
    tables = {
        "StorageError": [v for v in vars(causes).values() if isinstance(v, causes.Cause)],
        "ClusterError": startup.CAUSES,
    }
    tables["StorageError"] += [*causes.S3, *causes.LOCAL]
    for kind, rows in tables.items():
        for cause in rows:
            what, todo = (re.sub(r"\{(\w+)\}", r"<\1>", t) for t in (cause.what, cause.todo))
            if kind == "StorageError":
                what = f"could not <action>: {what or '<reason>'}"
            yield Message(KINDS[kind].exit_code, cause.id, kind, what, todo)


class Source:
    """A module, in which a text may stand above the call that needs it, or in the caller."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        # Inner functions come after outer ones, so the innermost one stays.
        self.function_of = {id(n): function for function in functions for n in ast.walk(function)}

    def messages(self, call: ast.Call) -> Iterator[Message]:
        """Yield the messages of a call of an error class; nothing for other calls."""
        name = ast.unparse(call.func).rpartition(".")[2]
        keywords = {k.arg: k.value for k in call.keywords}
        id_, first = (*call.args, None, None)[:2]
        if name not in KINDS or first is None or not isinstance(id_, ast.Constant):
            return
        todo = keywords.get("todo", ast.Constant(""))
        for what in self.texts(first):
            yield Message(KINDS[name].exit_code, id_.value, name, what, next(self.texts(todo), ""))

    def texts(self, node: ast.expr) -> Iterator[str]:
        """Yield the texts that an expression may have; nothing if it is defined elsewhere."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(map(self._part, node.values))
        elif isinstance(node, ast.IfExp):
            yield from self.texts(node.body)
            yield from self.texts(node.orelse)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            for left in self.texts(node.left):
                yield from (left + right for right in self.texts(node.right) or ())
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".join"):
            yield LINES
        elif isinstance(node, ast.Subscript):
            yield from self.texts(node.value)
        elif isinstance(node, ast.Name):
            for value in self._values(node):
                yield from self.texts(value)

    def _part(self, part: ast.expr) -> str:
        """Return a part of an f-string: its text, a constant's, or a name for a filled-in value."""
        filled = part.value if isinstance(part, ast.FormattedValue) else None
        if isinstance(filled, ast.Name) and filled.id.isupper():
            return next(self.texts(filled), f"<{_name(part)}>")
        return str(part.value) if isinstance(part, ast.Constant) else f"<{_name(part)}>"

    def _values(self, name: ast.Name) -> Iterator[ast.expr]:
        """Yield the values of a name: its newest assignments above, or what callers pass."""
        function = self.function_of.get(id(name))
        where: ast.Module | ast.FunctionDef = function or self.tree
        above = {
            node.lineno: node.value
            for node in ast.walk(where)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == name.id
            and node.lineno < name.lineno
        }
        used = [
            node.lineno
            for node in ast.walk(where)
            if isinstance(node, ast.Raise) and node.lineno < name.lineno - 1
        ]
        since = max((line for line in used if line < max(above, default=0)), default=0)
        if above:
            yield from (value for line, value in above.items() if line > since)
        elif function and name.id in (names := [a.arg for a in function.args.args]):
            for node in ast.walk(self.tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == function.name:
                    given = dict(zip(names, node.args, strict=False))
                    given |= {k.arg: k.value for k in node.keywords if k.arg}
                    if name.id in given:
                        yield given[name.id]
        elif function:
            yield from (
                node.value
                for node in self.tree.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name.id
            )


def _name(part: ast.expr) -> str:
    """Return a short name for what is filled in: the last word of the expression."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    words = [n.attr if isinstance(n, ast.Attribute) else n.id
             for n in ast.walk(value) if isinstance(n, ast.Attribute | ast.Name)]  # fmt: skip
    return words[0] if words else "..."


def troubleshooting() -> str:
    """Return a table of messages for each exit code."""
    parts = []
    for kind in KINDS.values():
        rows = [m for m in messages() if m.kind == kind.__name__]
        if rows:
            doc = (kind.__doc__ or "").partition("\n")[0].removesuffix(".")
            if kind is errors.PipelineError:
                doc = "a bug, or an exported file that did not pass its check"
            body = "\n".join(f"| {m.id} | {_cell(m.what)} | {_cell(m.todo)} |" for m in rows)
            head = f"## Exit code {kind.exit_code}: {doc[0].lower()}{doc[1:]}"
            parts.append(f"{head}\n\n| id | message | what to do |\n| --- | --- | --- |\n{body}\n")
    return "\n".join(parts)


def scale_tables() -> str:
    """Return what `python -m pipeline.cli.scale` prints."""
    with redirect_stdout(io.StringIO()) as text:
        scale.main([])
    return text.getvalue()


def index() -> str:
    """List the pages that the text above does not link yet, with their titles."""
    own = (ROOT / "docs" / "README.md").read_text().partition(MARKER)[0]
    lines = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        if path.name != "README.md" and f"]({path.name})" not in own:
            title = path.read_text().partition("\n")[0].lstrip("# ")
            lines.append(f"- [{path.name}]({path.name}): {title}")
    return "\n".join(lines)


def library() -> str:
    """Return a section for each public name of `sdclr`, by module, from signature and docstring."""
    names: dict[str, list[str]] = {}
    for name in sdclr.__all__:
        module = getattr(getattr(sdclr, name), "__module__", "")
        names.setdefault(module if module.startswith("sdclr") else "sdclr", []).append(name)
    parts = []
    for module, members in sorted(names.items()):
        doc = inspect.getdoc(sys.modules[module]) or ""
        parts.append(f"## {module}\n\n{doc.partition(chr(10))[0]}\n")
        parts += [_entry(name, getattr(sdclr, name)) for name in members]
    return "\n".join(parts)


def _entry(name: str, member: object) -> str:
    if not callable(member):
        return f"### {name}\n\n`{member!r}`\n"
    head = f"### {name}\n\n```text\n{_signature(name, member)}\n```\n\n"
    head += f"{_markdown(inspect.getdoc(member))}\n"
    methods = [
        f"- `{key}`: {(inspect.getdoc(value) or '').partition(chr(10))[0]}"
        for key, value in vars(member).items()
        if isinstance(member, type) and not key.startswith("_") and inspect.getdoc(value)
        if inspect.isfunction(value) or isinstance(value, property | classmethod)
    ]
    return head + (
        "\n**Methods and properties:**\n\n" + "\n".join(methods) + "\n" if methods else ""
    )


def _signature(name: str, member: Callable[..., Any]) -> str:
    """Write a signature on one line, or with one parameter a line where that is too wide."""
    try:
        signature = str(inspect.signature(member))
    except ValueError:  # an exception without a constructor of its own
        return name
    text = re.sub(r"<factory>|<object object at 0x[0-9a-f]+>", "...", f"{name}{signature}")
    text = text.replace("'", "")
    if len(text) <= 100:
        return text
    parameters, _, returned = text.removeprefix(f"{name}(").rpartition(")")
    split = re.split(r", (?![^\[]*\])", parameters)
    return f"{name}(\n" + "".join(f"    {part},\n" for part in split) + f"){returned}"


def _markdown(doc: str | None) -> str:
    """Turn a docstring of Google's form into Markdown: sections become lists."""
    lines: list[str] = []
    in_section = False
    for line in (doc or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            in_section = True
            lines += ["", f"**{line}**", ""] if lines[-1:] != [""] else [f"**{line}**", ""]
        elif in_section and (entry := re.match(r"    ([\w, *]+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif in_section and line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            in_section = in_section and not line
            lines.append(line)
    return "\n".join(lines)


def evidence() -> str:
    """Return the text that `python -m benchmarks.evidence table` wrote, without its title."""
    text = (ROOT / "benchmarks" / "results" / "evidence" / "evidence.md").read_text()
    return re.sub(r"(?m)^(?=\w|- ).*$", lambda line: _wrapped(line[0]), text.partition("\n")[2])


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, 100, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False
    )


PAGES = {
    "README.md": index,
    "api.md": library,
    "configuration.md": configuration,
    "evidence.md": evidence,
    "troubleshooting.md": troubleshooting,
    "scale.md": scale_tables,
}


def page(name: str) -> str:
    """Return a page as it should be: its own text up to the marker, then the made part."""
    own = (ROOT / "docs" / name).read_text().partition(MARKER)[0]
    return f"{own.rstrip()}\n\n{MARKER}\n{PAGES[name]().rstrip()}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(name))
