"""Tests of the script that counts code lines."""

from tests.support.count_lines import code_lines, count_packages

SOURCE = '''"""Module docstring.

Second paragraph.
"""

# A comment.
VALUE = "no docstring"  # A comment behind code.


def one() -> str:
    """Return a text of two lines."""
    # A comment.
    return """first
second"""
'''


def test_blank_lines_comments_and_docstrings_do_not_count():
    assert code_lines(SOURCE) == 4


def test_each_package_is_counted_with_its_folders(tmp_path):
    files = ("serve/app.py", "serve/operate/plan/cost.py", "training/fit/fit.py", "benchmarks/world.py")
    for file in (*files, "tests/test_app.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(SOURCE)
    assert count_packages(tmp_path) == {"serve": 8, "training": 4, "loadtest": 0, "benchmarks": 4}


def test_templates_count_without_blank_lines_and_comments(tmp_path):
    (tmp_path / "serve/templates").mkdir(parents=True)
    (tmp_path / "serve/templates/unit.service").write_text("# A comment.\n\n[Unit]\n")
    assert count_packages(tmp_path)["serve"] == 1
