"""Check the prose of the project: docstrings, comments, messages, names and documents.

`python tests/support/check_prose.py [PATH ...]` prints one line a finding and exits with 1 if
there is any. Text in backticks is exempt: keys, names of metrics, commands and headers.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MAX_LINE = 100
CODE = ("serve", "training", "loadtest", "benchmarks", "tests", "examples")
DOCUMENTS = (
    *("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"),
    *("cluster.yaml", "pyproject.toml", "Makefile", "Dockerfile", ".ci/run", ".github/workflows/*.yml"),
    *("serve/operate/render/templates/*", "serve/**/*.toml", "serve/http/api.md"),
)

# A docstring opens with a verb in the imperative or with the standard noun.
OPENINGS = ("What", "Whether", "How", "Who", "Which")

# Wordings of our own, each with the field's word or with what to do about it.
WORDINGS = {
    r"\bthe short way\b": "fast path",
    r"\bturns? of the (event )?loop\b": "event-loop iteration, or loop lag",
    r"\bladder\b": "load shedding",
    r"\boutbox\b": "exposure buffer",
    r"\b(seal|seals|sealed)\b": "manifest checksum",
    r"\b(to roll|rolls|rolled|rolling) (it|them|the journal|a segment|segments|the rest)\b": "flush, or write out",
    r"\bdealt\b": "assigned",
    r"\bcondemned\b": "quarantined",
    r"\blaws?\b": "data-generating process",
    r"\bhindsight\b": "target leakage",
    r"\btwins?\b": "duplicates",
    r"\bslips?\b": "typo",
    r"\bby and by\b": "incrementally",
    r"\basked of\b": "read from, or requested of with a subject",
    r"(?<!there )\b(is|are|was|were) no [a-z]": "say what it is not: 'is not a', or what to do",
    r"\bof which nothing\b": "name the noun",
    r"\bwhat it is asked\b": "name the noun",
    r"\bcome again\b": "retry",
    r"\bit is the \w+'s, of\b": "subject, verb, object",
    r"\bthat they take longer tells\b": "subject, verb, object",
}

# Parts of identifiers that the table of words replaces.
NAMES = {
    "turn": "iteration, lag",
    "turns": "loop lag",
    "outbox": "exposure buffer",
    "seal": "checksum",
    "sealed": "checksum",
    "dealt": "assigned",
    "condemned": "quarantined",
    "law": "data-generating process",
    "laws": "data-generating processes",
    "scene": "simulator state",
    "hindsight": "leakage",
    "twin": "duplicate",
    "twins": "duplicates",
    "slip": "typo",
    "tell": "report, log, return",
    "tells": "reports",
    "told": "reported, logged",
    "said": "printed, reported",
    "says": "message",
    "knows": "holds",
}

PRAGMA = re.compile(r"# (noqa\b|type: ?ignore|ruff:|fmt:|mypy:)")
# A line that is a comment, or the help of a Makefile's target.
COMMENT = re.compile(r"\s*@?#|[a-z]+:.* ## ")
CLOSING = re.compile(r"\s*[)\]}]+,?:?\s*$")
TEXTS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))


class Finding(NamedTuple):
    """One place where the prose breaks a rule."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        """Return the finding as editors read it."""
        return f"{self.path}:{self.line}: {self.text}"


def check_wordings(prose: str) -> Iterator[str]:
    """Yield each wording of our own in a text; code in backticks is exempt."""
    plain = re.sub(r"\s+", " ", re.sub(r"``[^`]*``|`[^`]*`", "`code`", prose))
    for pattern, instead in WORDINGS.items():
        for found in re.finditer(pattern, plain, re.IGNORECASE):
            yield f"{found[0]!r}: write {instead}"


def check_names(code: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each class, function and variable with a word of our own in its name."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case (
                ast.arg(arg=name)
                | ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
            ):
                pass
            case _:
                continue
        if name.startswith("test_"):
            continue
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
        for word in words:
            if word.lower() in NAMES:
                yield node.lineno, f"name {name!r}: write {NAMES[word.lower()]}"


def docstrings(code: str) -> dict[int, str]:
    """Return the docstrings of a module and what it defines, by the line where each starts."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, owners)]
    return {node.body[0].lineno: text for node in nodes if (text := ast.get_docstring(node, clean=False))}


def check_openings(code: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring that opens with a relative clause."""
    for line, text in docstrings(code).items():
        first = text.split(maxsplit=1)[0].rstrip(",:")
        if first in OPENINGS:
            yield line, f"docstring opens with {first!r}: open with a verb or noun"


def check_tokens(code: str) -> Iterator[tuple[int, str]]:
    """Yield findings in comments and texts, and trailing comments that break a statement."""
    lines, documented, before = code.splitlines(), docstrings(code), None
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        line, text = token.start[0], token.string
        is_comment = token.type == tokenize.COMMENT and not PRAGMA.match(text)
        is_text = token.type in TEXTS and " " in text
        # A constant in triple quotes is code of another language or a page.
        if is_comment or line in documented or (is_text and '"""' not in text):
            yield from ((line, found) for found in check_wordings(text))
        if is_comment or (is_text and line in documented):
            for number in range(line, token.end[0] + 1):
                if len(lines[number - 1]) > MAX_LINE:
                    yield number, f"prose line of {len(lines[number - 1])} characters: at most {MAX_LINE}"
        if is_comment and before and before.start == (line - 1, token.start[1]):
            # A wording that is broken over two lines of a comment.
            both = {*check_wordings(f"{before.string} {text.lstrip('# ')}")}
            yield from (
                (line, found) for found in both - {*check_wordings(text)} - {*check_wordings(before.string)}
            )
        if token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            before = token if is_comment else None
        if is_comment and CLOSING.match(lines[line - 1][: token.start[1]]):
            yield line, "a trailing comment breaks the statement over lines: put it above"


def check_code(path: Path) -> Iterator[Finding]:
    """Yield what is to be mended in one module."""
    code = path.read_text()
    found = list(check_tokens(code))
    if "tests" not in path.relative_to(ROOT).parts:
        found += [*check_names(code), *check_openings(code)]
    for line, text in sorted(set(found)):
        yield Finding(path.relative_to(ROOT), line, text)


def check_document(path: Path) -> Iterator[Finding]:
    """Yield findings in a document, or in the comments of a file of another language.

    Code blocks, and the length of code and of table rows, are exempt.
    """
    in_code, only_comments = False, path.suffix != ".md"
    for line, text in enumerate(path.read_text().splitlines(), 1):
        if text.lstrip().startswith("```"):
            in_code = not in_code
            continue
        if in_code or (only_comments and "#" not in text):
            continue
        prose = text[text.index("#") :] if only_comments else text
        for said in check_wordings(re.sub(r"\]\([^)]*\)", "]", prose)):
            yield Finding(path.relative_to(ROOT), line, said)
        is_prose = COMMENT.match(text) if only_comments else not text.startswith("|") and "](http" not in text
        if len(text) > MAX_LINE and is_prose:
            yield Finding(path.relative_to(ROOT), line, f"line of {len(text)} characters: at most {MAX_LINE}")


def check(paths: list[Path]) -> list[Finding]:
    """Return the findings of files and folders."""
    found: list[Finding] = []
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += check_code(file) if file.suffix == ".py" else check_document(file)
    return found


def main(arguments: list[str]) -> int:
    """Check the paths named, or the whole project."""
    paths = [Path(argument).resolve() for argument in arguments]
    if not paths:
        paths = [ROOT / folder for folder in CODE]
        paths += [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    found = check(paths)
    for finding in found:
        print(finding)
    if found:
        print(f"{len(found)} findings", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
