"""The parts of docs/ that are made of the code, by `python docs/make.py`.

Configuration reference from the schema, every error message from the source, the tables of scale.md
from its formulas, and the rest of the index. A page keeps the text before its marker.
"""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *sys.path]

from pipeline import errors, scale
from pipeline.config import Config
from pipeline.config.help import SCHEMA, expected
from pipeline.config.strict_yaml import write_value

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
    kind: str
    what: str
    todo: str


def configuration() -> str:
    """A table for each section of the schema."""
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
    """Every failure with its own words, from all calls of an error's class."""
    found = set()
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text())
        # A text that is put together above the call, under a name of its own.
        named = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found |= set(_messages(node, named))
    return sorted(message for message in found if any(part.isalpha() for part in message.what))


def _messages(call: ast.Call, named: dict[str, ast.expr]) -> Iterator[Message]:
    name = ast.unparse(call.func).rpartition(".")[2]
    keywords = {k.arg: k.value for k in call.keywords}
    first = call.args[0] if call.args else keywords.get("what")
    if name not in KINDS or first is None:
        return
    todo = keywords.get("todo", ast.Constant(""))
    if isinstance(todo, ast.Name):
        todo = named.get(todo.id, todo)
    for what in _texts(first):
        yield Message(KINDS[name].exit_code, name, what, next(_texts(todo), ""))


def _texts(node: ast.expr) -> Iterator[str]:
    """What an expression may say; nothing when it is not written where it is raised."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"<{_name(part)}>"
            for part in node.values
        )
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in _texts(node.left):
            yield from (left + right for right in _texts(node.right) or ())


def _name(part: ast.expr) -> str:
    """A short name for what is filled in: the last word of the expression."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    words = [n.attr if isinstance(n, ast.Attribute) else n.id
             for n in ast.walk(value) if isinstance(n, ast.Attribute | ast.Name)]  # fmt: skip
    return words[0] if words else "..."


def troubleshooting() -> str:
    """A table of messages for each exit code."""
    parts = []
    for kind in KINDS.values():
        rows = [m for m in messages() if m.kind == kind.__name__]
        if rows:
            doc = (kind.__doc__ or "").partition("\n")[0].removesuffix(".")
            body = "\n".join(f"| {_cell(m.what)} | {_cell(m.todo)} |" for m in rows)
            head = f"## Exit code {kind.exit_code}: {doc[0].lower()}{doc[1:]}"
            parts.append(f"{head}\n\n| message | what to do |\n| --- | --- |\n{body}\n")
    return "\n".join(parts)


def scale_tables() -> str:
    """What `python -m pipeline.scale` prints."""
    with redirect_stdout(io.StringIO()) as text:
        scale.main([])
    return text.getvalue()


def index() -> str:
    """The pages that the text above does not link yet, with their titles."""
    own = (ROOT / "docs" / "README.md").read_text().partition(MARKER)[0]
    lines = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        if path.name != "README.md" and f"]({path.name})" not in own:
            title = path.read_text().partition("\n")[0].lstrip("# ")
            lines.append(f"- [{path.name}]({path.name}): {title}")
    return "\n".join(lines)


PAGES = {
    "README.md": index,
    "configuration.md": configuration,
    "troubleshooting.md": troubleshooting,
    "scale.md": scale_tables,
}


def page(name: str) -> str:
    """A page as it should be: its own text up to the marker, then what is made."""
    own = (ROOT / "docs" / name).read_text().partition(MARKER)[0]
    return f"{own.rstrip()}\n\n{MARKER}\n{PAGES[name]().rstrip()}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(name))
