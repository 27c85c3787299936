"""Random damage to configuration files and overrides: a Config or a UserError, never anything else."""

import random

import pytest
from fuzzing import fuzz, mutated
from support import ROOT, TINY

from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.config.tables import Tables, members, table_type

pytestmark = [pytest.mark.fault("F10"), pytest.mark.fault("F45")]

TEXTS = [TINY.format(run="run", data="data").encode(), *(path.read_bytes() for path in ROOT.glob("configs/*.toml"))]
KEYS = sorted(
    {
        f"{section}.{key}"
        for section in Tables.model_fields
        for table in (*members(section).values(), table_type(section, {}))
        if table
        for key in table.model_fields
    }
)
VALUES = (
    *("", "0", "1", "-1", "2", "1.5", "-0.0", "nan", "-inf", "1e308", "1e400", "5e-324", "true", "1979-05-27"),
    *("07:32:00", "[]", "[1]", "[2, 2]", "[0.5, nan]", "[['a']]", "[" * 9, "[" * 2000, "[" * 60 + "]" * 60),
    *("{}", "{a = 1}", "[1, 'a', {}]", '""', '"x"', '"a\\u0000b"', '"../x"', '"' + "y" * 5000 + '"', '"\\ud800"'),
    *("'''", '"/dev/null"', '"' + "/" * 5000 + '"', "9" * 5000, "0x" + "f" * 5000, "a\nb", "1\n[model]\nx = 1"),
    *(str(sign * 2**power) for sign in (1, -1) for power in (31, 53, 62, 63, 64, 400)),
    *("\0", "\udcff", "formula", "stack", "zero", "sparse_low_rank", "galore_adamw", "int8", "8bit"),
)
SECTIONS = (
    *("a.b", "model.", "optimizer.name", "linear.name", "growth.enabled", "model.dim.x", "\udcff.b", "model.\0"),
    "k" * 3000,
)


def file_case(folder):
    path = folder / "c.toml"

    def case(rng: random.Random) -> None:
        path.write_bytes(mutated(rng, rng.choice(TEXTS)))
        assert isinstance(load_config(path), Config)

    return case


def keys_case(folder):
    """Random values of random keys, half of them in a file."""
    path = folder / "c.toml"

    def case(rng: random.Random) -> None:
        chosen = [rng.choice(KEYS if rng.random() < 0.9 else SECTIONS) for _ in range(rng.randint(1, 4))]
        pairs = [(key, rng.choice(VALUES)) for key in chosen]
        if rng.random() < 0.5:
            tables = [f"[{key.partition('.')[0]}]\n{key.partition('.')[2]} = {value}\n" for key, value in pairs]
            path.write_bytes("".join(tables).encode("utf-8", "surrogateescape"))
            load_config(path)
        else:
            load_config(rng.choice([None, ROOT / "configs" / "quickstart.toml"]), [f"--{k}={v}" for k, v in pairs])

    return case


CASES = {"files": file_case, "keys": keys_case}


@pytest.mark.parametrize("kind", CASES)
def test_a_few(tmp_path, kind):
    assert fuzz(kind, 125, CASES[kind](tmp_path)) > 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many(tmp_path, kind):
    assert fuzz(kind, 8_000, CASES[kind](tmp_path)) > 4_000
