import pytest

from model.errors import UserError
from model.growth.plan import grow_after


@pytest.mark.parametrize(
    ("parameters", "tokens", "billions"),
    [
        (8e9, 15e12, 6.58),  # Llama 3 8B
        (7e9, 2e12, 11.11),
        (13e9, 2e12, 15.84),
        (70e9, 2e12, 42.48),
        (7e9, 300e9, 20.481),
        (3e9, 300e9, 12.960),
        (1.1e9, 100e9, 11.444),
        (410e6, 750e9, 3.287),
    ],
)
def test_the_published_rows(parameters, tokens, billions):
    found = grow_after(int(parameters), int(tokens), max_fraction=1.0)
    assert found.formula_tokens == pytest.approx(billions * 1e9, rel=1e-3)
    assert found.tokens == int(found.formula_tokens)
    assert not found.clamped


@pytest.mark.parametrize(("parameters", "tokens", "billions"), [(60e6, 1.3e9, 22.1), (350e6, 6.4e9, 20.6)])
def test_small_budgets_are_clamped(parameters, tokens, billions):
    found = grow_after(int(parameters), int(tokens))
    assert found.formula_tokens == pytest.approx(billions * 1e9, rel=5e-3)
    assert found.clamped
    assert found.tokens == pytest.approx(0.1 * tokens, abs=1)
    assert grow_after(int(parameters), int(tokens), max_fraction=0.5).tokens == pytest.approx(0.5 * tokens, abs=1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(UserError, match=r"growth\.max_fraction"):
        grow_after(10, 10, fraction)


def test_an_empty_model_or_run_is_refused():
    for parameters, tokens in ((0, 10), (10, 0)):
        with pytest.raises(UserError, match=r"growth\.at"):
            grow_after(parameters, tokens)
