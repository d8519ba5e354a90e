"""Count the code lines of the packages: `python tests/support/count_lines.py [CHECKOUT]`.

A code line is a line of a `.py` file or of a template that is not blank, not a comment and not part
of a docstring.
"""

import ast
import sys
from pathlib import Path

PACKAGES = ("serve", "training", "loadtest", "benchmarks")
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source):
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(map(str.strip, source.split("\n")), start=1)
    return sum(1 for number, line in lines if line and line[0] != "#" and number not in docstrings)


def template_lines(text):
    lines = map(str.strip, text.splitlines())
    return sum(1 for line in lines if line and line[0] != "#")


def count_packages(root):
    def count(package):
        code = sum(code_lines(path.read_text()) for path in (root / package).rglob("*.py"))
        return code + sum(
            template_lines(path.read_text()) for path in (root / package).rglob("templates/*.*")
        )

    return {package: count(package) for package in PACKAGES}


if __name__ == "__main__":
    counts = count_packages(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
    for name, number in {**counts, "total": sum(counts.values())}.items():
        print(f"{name:10} {number:7,}")
