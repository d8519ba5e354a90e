"""Check the width of the project's prose: docstrings, comments and documents.

`python tests/support/check_prose.py [PATH ...]` prints a line for each finding, and exits with 1 if
there is one. Without a path it checks the whole project.
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
CODE = ("serve", "training", "loadtest", "tests", "examples", "benchmarks")
DOCUMENTS = (
    *("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"),
    *("cluster.yaml", "pyproject.toml", "Makefile", "Dockerfile", ".ci/run", ".github/workflows/*.yml"),
    *("serve/operate/render/templates/*", "serve/**/*.toml", "serve/http/api.md"),
)

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


def docstrings(code: str) -> dict[int, str]:
    """Return the docstrings of a module and of all that it defines, by their first lines."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, owners)]
    return {node.body[0].lineno: text for node in nodes if (text := ast.get_docstring(node, clean=False))}


def check_tokens(code: str) -> Iterator[tuple[int, str]]:
    """Yield prose lines that are too long, and trailing comments that break a statement."""
    lines, documented = code.splitlines(), docstrings(code)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        line, text = token.start[0], token.string
        is_comment = token.type == tokenize.COMMENT and not PRAGMA.match(text)
        if is_comment or (token.type in TEXTS and line in documented):
            for number in range(line, token.end[0] + 1):
                if len(lines[number - 1]) > MAX_LINE:
                    length = len(lines[number - 1])
                    yield (
                        number,
                        f"this line of prose has {length} characters; at most {MAX_LINE} are allowed",
                    )
        if is_comment and CLOSING.match(lines[line - 1][: token.start[1]]):
            yield line, "this comment breaks its statement over several lines; put it above the statement"


def check_code(path: Path) -> Iterator[Finding]:
    """Yield the findings of one module."""
    for line, text in sorted(set(check_tokens(path.read_text()))):
        yield Finding(path.relative_to(ROOT), line, text)


def check_document(path: Path) -> Iterator[Finding]:
    """Yield the lines that are too long, of a document or of a file of another language.

    In a document, code blocks and table rows are exempt. In another file, only comments are
    checked.
    """
    in_code, only_comments = False, path.suffix != ".md"
    for line, text in enumerate(path.read_text().splitlines(), 1):
        if text.lstrip().startswith("```"):
            in_code = not in_code
            continue
        is_prose = COMMENT.match(text) if only_comments else not text.startswith("|") and "](http" not in text
        if not in_code and is_prose and len(text) > MAX_LINE:
            long = f"this line has {len(text)} characters; at most {MAX_LINE} are allowed"
            yield Finding(path.relative_to(ROOT), line, long)


def check(paths: list[Path]) -> list[Finding]:
    """Return the findings of files and folders."""
    found: list[Finding] = []
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += check_code(file) if file.suffix == ".py" else check_document(file)
    return found


def main(arguments: list[str]) -> int:
    """Check the paths, or the whole project without any; return the exit code."""
    paths = [Path(argument).resolve() for argument in arguments]
    if not paths:
        paths = [ROOT / folder for folder in CODE if (ROOT / folder).is_dir()]
        paths += [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    found = check(paths)
    for finding in found:
        print(finding)
    if found:
        print(f"{len(found)} findings", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
