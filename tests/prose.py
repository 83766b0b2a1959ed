"""Search for breaches of the six rules of prose in CONTRIBUTING.md; functions return breaches."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Left: what must not be written. Right: what to write instead.
GLOSSARY = {
    r"(go|goes|going|gone|went) on with": "resume",
    r"(go|goes) on from": "resume from",
    r"told|tells": "reported, shows",
    r"(pass|passed|passes) over(?! the (set|photographs|images|labelled|pre))": "skipped",
    r"lies|lie (in|on|at|below)": "is stored, is",
    r"learnt": "trained on",
    r"(begin|begins|began|begun) again": "restart",
    r"cures?|cured": "fix",
    r"in no (set|special) order": "in arbitrary order",
    r"at hand": "in memory",
    r"foretells?|foretold": "predict",
}
_FORBIDDEN = {re.compile(rf"\b({k})\b", re.IGNORECASE): v for k, v in GLOSSARY.items()}
# First words that are no verb: articles, pronouns, numerals, prepositions, nouns of this project.
NO_VERB = set(
    "a all an and any as at both but by each either every few for from how if in it its many more "
    "most no none nothing of on one only or our out some that the their them these they this those "
    "three to true two until what when where whether which who whose why with without you "
    "accuracy bytes class data embedding entry everything feature file folder fraction header id "
    "image interval kind largest line loss many mean median memory model pairs part path position "
    "probability result row seconds shown size smallest table text value width words".split()
)
ALSO_NOUNS = set("count index label name number order rank record score share step view".split())
# Nouns that are verbs as well: no verb before these words.
NOUN_BEFORE = re.compile(r"[A-Z][a-z]+ (of|->|for|in|and|by)\b|[A-Z][a-z]+ ->")
# Verbs that end in "s"; other words with that ending are plurals or third persons.
ENDS_IN_S = {"pass", "process", "compress", "express", "access", "discuss", "guess", "focus"}
CLAUSE = {"how", "what", "when", "where", "whether", "which", "who", "it", "this", "these", "they"}
IMPERATIVE = {"return", "yield", "refuse", "make", "keep", "raise", "take", "put", "give", "delete"}
THIRD_PERSON = re.compile(
    r"(Adds|Appends|Counts|Does|Gives|Hands|Holds|Keeps|Looks|Makes|Maps|Reads|Returns|Runs|Saves|"
    r"Submits|Takes|Turns|Writes) "
)
MAX_WORDS, MAX_COLUMNS = 25, 100
MADE = "<!-- made by docs/make.py from here on -->"


@dataclass(frozen=True, order=True)
class Breach:
    """One place that breaks a rule."""

    place: str
    rule: str
    text: str


def glossary(place: str, text: str) -> Iterator[Breach]:
    """Yield the words of the glossary's left side that a text has."""
    for pattern, better in _FORBIDDEN.items():
        for match in pattern.finditer(text):
            yield Breach(place, f"write {better!r}", match.group())


def begins_with_a_verb(summary: str) -> bool:
    """Return whether a summary may begin with a verb in the imperative; an approximation."""
    match = re.match(r"([A-Z][a-z]+(-[a-z]+)?)\b", summary)
    if match is None:
        return False
    word = match.group(1).lower()
    if word in NO_VERB or (word.endswith("s") and word not in ENDS_IN_S):
        return False
    return not (word in ALSO_NOUNS and NOUN_BEFORE.match(summary))


def is_noun_phrase(summary: str) -> bool:
    """Return whether the summary of a class or module may be a noun phrase; an approximation."""
    word = summary.split()[0].strip(".,:;").lower()
    return not (word in CLAUSE or word in IMPERATIVE or THIRD_PERSON.match(summary))


def docstrings(place: str, tree: ast.Module) -> Iterator[Breach]:
    """Yield docstrings that begin wrongly: functions with no verb, classes and modules with one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        summary = text.partition("\n")[0]
        where = f"{place}: {getattr(node, 'name', 'module')}"
        if isinstance(node, ast.FunctionDef):
            if not is_property(node) and not begins_with_a_verb(summary):
                yield Breach(where, "begin with a verb", summary)
        elif not is_noun_phrase(summary):
            yield Breach(where, "write a noun phrase", summary)


def is_property(node: ast.FunctionDef) -> bool:
    """Return whether a function is read as an attribute, so that a noun phrase describes it."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property"})


def python(place: str, source: str) -> Iterator[Breach]:
    """Yield the breaches of a module: docstrings, strings and comments."""
    tree = ast.parse(source)
    yield from docstrings(place, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from glossary(f"{place}:{node.lineno}", node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from glossary(f"{place}:{token.start[0]}", token.string)


def error(place: str, what: str, todo: str) -> Iterator[Breach]:
    """Yield the breaches of one error message."""
    word = re.split(r"[^A-Za-z]", what, maxsplit=1)[0]
    if re.fullmatch(r"[A-Z][a-z]+", word) and word not in PROPER:
        yield Breach(place, "begin with a small letter", what)
    for text in (what, todo):
        if re.search(r"[^.]\.$", text):
            yield Breach(place, "end without a stop", text)
    first = todo.split()[0].strip(",:;") if todo else ""
    if first.isalpha() and (first.lower() in NO_VERB - {"if"} or first[0].isupper()):
        yield Breach(place, "begin what to do with an imperative", todo)


PROPER = {"Ray", "Python", "Pillow", "Parquet", "Optuna", "Tune"}


def prose_of(page: str) -> list[tuple[int, str]]:
    """Return (line number, line) of a page without code, comments and what is made of the code."""
    page = page.partition(MADE)[0]
    lines, in_code = [], False
    for number, line in enumerate(page.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(("    ", "<!--")):
            lines.append((number, line))
    return lines


def too_wide(place: str, page: str) -> Iterator[Breach]:
    """Yield the lines wider than 100 columns; tables, headings, links and code are exempt."""
    for number, line in prose_of(page):
        fits = len(line) <= MAX_COLUMNS or len(line.split("](")[0].split("`")[0]) == 0
        fits = fits or re.fullmatch(r"- (\*\w+:\* )?`[^`]+`(: [\w ]+)?", line) is not None  # a name
        if not fits and not line.startswith(("|", "#", "![")) and "](http" not in line:
            yield Breach(f"{place}:{number}", f"wrap at {MAX_COLUMNS} characters", line)


def sentences(page: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, sentence) of the paragraphs and lists of a page; no tables, no code."""
    paragraph: list[str] = []
    start = 0
    for number, line in [*prose_of(page), (0, "")]:
        new = not line.strip() or re.match(r"\s*([-*]|\d+\.) ", line) or line[:1] in "|#!>"
        if new and paragraph:
            text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", " ".join(paragraph)))
            for part in re.split(r"(?<=[.;:!?])\s+", text):
                yield start, part
            paragraph = []
        if line.strip() and line[:1] not in "|#!":
            start = start if paragraph else number
            paragraph.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line).strip())


def long_sentences(place: str, page: str) -> Iterator[Breach]:
    """Yield sentences above 25 words; a semicolon or a colon ends one, code counts as one word."""
    for number, sentence in sentences(page):
        if len(sentence.split()) > MAX_WORDS:
            yield Breach(f"{place}:{number}", f"at most {MAX_WORDS} words", sentence)


def read(paths: list[Path], root: Path) -> Iterator[tuple[str, str]]:
    """Yield (path from the root, content) of files."""
    for path in paths:
        yield path.relative_to(root).as_posix(), path.read_text()
