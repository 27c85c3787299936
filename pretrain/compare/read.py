"""A suite's TOML -> a `Suite`, or one sentence that says what to mend."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.errors import UserError
from model.schema import Frozen, expected
from pretrain.compare.suite import NAME, NONE, MethodsConfig, Suite, SuiteConfig
from pretrain.config.explain import nearest
from pretrain.config.load import literal, tuples
from pretrain.config.plain import read_toml, require_plain, shown
from pretrain.config.tables import Tables


def read_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """The suite in a TOML file with `--table.key=value` texts laid over it.

    UserError, a sentence, for what it cannot be; its runs are checked by `matrix`.
    """
    raw = read_toml(Path(path))
    for argument in overrides:
        _override(raw, argument)
    require_plain(raw)
    try:
        # What is under [base] and the like stays as TOML has it, as a run's file would.
        suite = Suite.model_validate(raw | {key: tuples(raw[key]) for key in ("suite", "methods") if key in raw})
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [item["loc"] for item in found]
        # A list with a wrong item counts as too short besides.
        inner = [i for i in found if not any(i["loc"] != at and i["loc"] == at[: len(i["loc"])] for at in places)]
        sentences = (_sentence(item) for item in inner)
        raise UserError("; ".join(dict.fromkeys(sentences))) from None
    for wrong in _contradictions(suite):
        raise UserError(wrong)
    return suite


def _override(raw: dict[str, Any], argument: str) -> None:
    key, _, text = argument.removeprefix("--").partition("=")
    *parents, last = key.split(".")
    table: Any = raw
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict) or parents[0] not in Suite.model_fields:
        raise UserError(f"{shown(key)}: no key of a suite's table; write --suite.KEY=VALUE or --base.TABLE.KEY=VALUE")
    table[last] = literal(key, text)


def _sentence(item: Any) -> str:
    """What is wrong with one value, and where it stands."""
    path = [str(part) for part in item["loc"]]
    owner: type[Frozen] = Suite
    if path[0] == "methods" and len(path) > 1:
        owner, key = MethodsConfig, ", ".join([f"[[methods]] number {item['loc'][1] + 1}", *path[2:3]])
    else:
        owner, key = SuiteConfig if path[0] == "suite" and len(path) > 1 else Suite, ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"{shown(key)}: unknown {'table' if owner is Suite else 'key'}{nearest(path[-1], owner.model_fields)}"
    got = "" if item["type"] == "missing" else f", got {shown(repr(item['input']))}"
    return f"{shown(key)}: {expected(item)}{got}"


def _contradictions(suite: Suite) -> Iterator[str]:
    """Sentences for what does not fit together, or has no effect."""
    yield from _wrong_methods(suite)
    yield from _wrong_tables(suite)
    settings = suite.suite
    if settings.baseline not in suite.names:
        known = nearest(settings.baseline, suite.names)
        yield f"suite.baseline: {shown(repr(settings.baseline))} is none of the methods{known}"
    seeds = [*settings.seeds, *settings.more_seeds]
    if len(set(seeds)) != len(seeds):
        yield f"suite.seeds, suite.more_seeds: {seeds} has a seed twice; name each once"
    if len(set(settings.equal)) != len(settings.equal):
        yield f"suite.equal: {list(settings.equal)} has one twice; name each once"
    if settings.more_seeds and len(settings.seeds) < 2:
        yield "suite.more_seeds: has no effect with one seed in suite.seeds, which shows no spread; give two or more"


def _wrong_methods(suite: Suite) -> Iterator[str]:
    tables = {"linear": suite.linears, "optimizer": suite.optimizers, "growth": suite.growths}
    for number, listed in enumerate(suite.methods, 1):
        where = f"[[methods]] number {number}"
        if len(listed.rates) != suite.suite.rates:
            yield (
                f"{where}, rates: {len(listed.rates)} learning rates, and suite.rates asks for {suite.suite.rates} of "
                "every method, the same tuning budget for all; list as many, or change suite.rates"
            )
        if list(listed.rates) != sorted(set(listed.rates)):
            yield f"{where}, rates: {list(listed.rates)} does not rise; list each once, the smallest first"
        for kind, known in tables.items():
            for name in getattr(listed, kind):
                if name not in known and not (kind == "growth" and name == NONE):
                    names = nearest(name, [*known, *([NONE] if kind == "growth" else [])])
                    yield f"{where}, {kind}: there is no table [{kind}s.{shown(name)}]{names}"
    for kind, known in tables.items():
        used = {name for listed in suite.methods for name in getattr(listed, kind)}
        for name in known:
            if not NAME.fullmatch(name):
                yield f"{kind}s.{shown(name)}: is no name for folders; take up to 40 letters, digits, - and _"
            if kind == "growth" and name == NONE:
                yield f"growths.{NONE}: stands for no growth at all; choose another name"
            if name not in used:
                yield f"{kind}s.{name}: has no effect, as no [[methods]] names it; leave it out, or name it there"
    if sum(len(m.linear) * len(m.optimizer) * len(m.growth) for m in suite.methods) > len(suite.names):
        yield "methods: the same linear, optimizer and growth are listed twice; each method has one list of rates"


def _wrong_tables(suite: Suite) -> Iterator[str]:
    """Keys that the suite itself decides."""
    for section in ("linear", "optimizer", "growth"):
        if section in suite.base:
            yield (
                f"base.{section}: is what methods differ in; put it under [{section}s.NAME] and name it in [[methods]]"
            )
    decided = ("run", "linear", "optimizer", "growth")
    known = [section for section in Tables.model_fields if section not in decided]
    for section in suite.base:
        if section not in Tables.model_fields:
            yield f"base.{shown(section)}: unknown table{nearest(section, known)}"
    if "run" in suite.base:
        yield "base.run: the folders and seeds of the runs follow from suite.dir and suite.seeds; leave it out"
    if suite.base.get("train", {}).get("max_steps"):
        yield "base.train.max_steps: runs are compared at the end of their schedule; set base.schedule.total_steps"
    if "flops" in suite.suite.equal and suite.base.get("schedule", {}).get("name") == "cosine_restarts":
        yield (
            'suite.equal: "flops" gives runs other numbers of steps, of which base.schedule.restart_every would be no '
            'part; set equal = ["tokens"], or another base.schedule.name'
        )
    for name, table in suite.growths.items():
        if "enabled" in table:
            yield f"growths.{name}.enabled: every method that names it grows; leave it out, and name {NONE} for none"
    for name, table in suite.optimizers.items():
        if "lr" in table:
            yield f"optimizers.{name}.lr: is listed as rates in [[methods]]; leave it out"
