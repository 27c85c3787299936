"""tests/faults/README.md, made of the table of faults and the marks in the sources: `python tests/faults_page.py`."""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from faults.table import FAULTS, PROTECTIONS

TESTS = Path(__file__).parent
PAGE = TESTS / "faults" / "README.md"

INTRODUCTION = """# Faults

What can happen to a run, what is promised then, and the tests that make it happen: with real processes, signals and
files, on one machine without a GPU. `bash launch/fault_suite.sh [OUT.json]` runs all of them and says of each fault
what became of it; the quick ones are part of `bash launch/test.sh`. The last column names the line without which tests
of the fault were seen to fail.

This page is made by `python tests/faults_page.py`. The faults are in `table.py`; a test has its faults in its mark,
`pytest.mark.fault("F3")`. The moments within Sparlow at which a process can be killed are in
`pretrain/machine/fault.py`.

| fault | what happens | what is promised | tests | protection |
|---|---|---|---|---|
"""


def named(tree: ast.AST) -> Iterator[str]:
    """The faults of all marks within `tree`; "*" where a name is not written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
            yield from (arg.value if isinstance(arg, ast.Constant) else "*" for arg in node.args)


@functools.cache
def marked_tests() -> dict[str, tuple[str, ...]]:
    """The faults of every marked test function, `file::name`, as the sources have them: nothing is imported."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        of_all = [n for node in tree.body if _assigns(node, "pytestmark") for n in named(node)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = of_all + [name for decorator in node.decorator_list for name in named(decorator)]
                if names:
                    found[f"{path.relative_to(TESTS.parent)}::{node.name}"] = tuple(dict.fromkeys(names))
    return found


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def page() -> str:
    """The text of the page."""
    lines = []
    for name, fault in FAULTS.items():
        files = defaultdict(list)
        for test, faults in marked_tests().items():
            if name in faults:
                file, _, function = test.partition("::")
                files[file.removeprefix("tests/")].append(function.removeprefix("test_"))
        tests = "<br>".join(f"`{file}`: {', '.join(functions)}" for file, functions in files.items())
        protection = PROTECTIONS.get(name, "")
        cells = (name, fault.happens, fault.promise, tests, protection and f"`{protection}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return INTRODUCTION + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
