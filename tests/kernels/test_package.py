import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"


def test_a_foreign_name_explains_the_clash_with_the_hugging_face_package():
    with pytest.raises(ImportError, match=r"get_kernel.*Hugging Face.*PYTHONSAFEPATH=1"):
        from kernels import get_kernel  # noqa: F401


def test_dunder_lookups_and_submodules_behave_as_for_any_package():
    import kernels

    assert getattr(kernels, "__wrapped__", None) is None
    from kernels.linear_cross_entropy import linear_cross_entropy

    assert callable(linear_cross_entropy)


def test_kernels_import_neither_model_nor_pretrain():
    code = (
        "import sys, kernels.linear_cross_entropy, kernels.sparse_low_rank_linear\n"
        "assert not {'model', 'pretrain', 'pydantic', 'transformers'} & {m.split('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_roles_are_told_apart_by_name():
    """Whatever has a kernel or a fast path has a definition beside it; Triton is imported where the name says so."""
    for path in KERNELS.rglob("*.py"):
        if path.stem.startswith("in_"):
            assert {"__init__.py", "reference.py"} <= {sibling.name for sibling in path.parent.iterdir()}, path
        if "import triton" in path.read_text():
            assert path.name in ("in_triton.py", "triton_helpers.py"), path
        if path.name == "reference.py":
            assert "in_t" not in path.read_text(), f"{path}: the definition rests on a fast path"
