"""POET's rotations and its merge, against dense matrices in float64."""

import pytest
import torch

from model.errors import UserError
from model.linear import Poet, build_linear
from model.linear.merging import begin_again

IN, OUT, BLOCK = 24, 36, 6
SCALE = 0.25


def make(size=0.4, **changes):
    """One whose skew matrices have entries of about `size`."""
    linear = build_linear(Poet.Config(block=BLOCK, **changes), IN, OUT, "q")
    linear.reset_parameters(0)
    turn(linear, size)
    return linear


@torch.no_grad()
def turn(linear, size, seed=1):
    for Q in linear.parameters():
        Q.normal_(0, size / linear.scale, generator=torch.Generator().manual_seed(seed + len(Q)))


def rotation(Q):
    """A block-diagonal matrix, written from the definition."""
    blocks = []
    for row in Q.double().tolist():
        K, numbers = torch.zeros(BLOCK, BLOCK, dtype=torch.float64), iter(row)
        for i in range(BLOCK):
            for j in range(i + 1, BLOCK):
                K[i, j] = SCALE * next(numbers)
                K[j, i] = -K[i, j]
        eye = torch.eye(BLOCK, dtype=torch.float64)
        blocks.append((eye + K) @ (eye + K + K @ K + K @ K @ K + K @ K @ K @ K))
    return torch.block_diag(*blocks)


def permutation(order):
    """The matrix that puts x[order[i]] at place i."""
    return torch.eye(len(order), dtype=torch.float64)[order.long()]


def dense(linear):
    """W as a product of dense matrices in float64."""
    to_out, to_in = permutation(linear.order_out), permutation(linear.order_in)
    return to_out.T @ rotation(linear.Q_out) @ linear.weight.double() @ rotation(linear.Q_in) @ to_in


def test_output_and_gradients_are_those_of_the_dense_product():
    linear = make(0.05)
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(0), requires_grad=True)
    dy = torch.randn(5, OUT, generator=torch.Generator().manual_seed(1))
    y = linear(x)
    y.backward(dy)
    W = dense(linear)
    torch.testing.assert_close(y.double(), x.detach().double() @ W.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear.dense_weight().double(), W, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), dy.double() @ W, rtol=1e-5, atol=1e-5)
    for Q in linear.parameters():  # by differences: the gradient of the dense product is none of this code
        place, step = (1, 4), 1e-3
        with torch.no_grad():
            Q[place] += step
            above = (dense(linear) @ x.detach().double().T * dy.double().T).sum()
            Q[place] -= 2 * step
            below = (dense(linear) @ x.detach().double().T * dy.double().T).sum()
            Q[place] += step
        assert Q.grad[place].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-3)


def test_it_begins_with_rows_of_length_one_and_no_rotation():
    linear = build_linear(Poet.Config(block=BLOCK), IN, OUT, "q")
    linear.reset_parameters(0)
    torch.testing.assert_close(linear.dense_weight().norm(dim=1), torch.ones(OUT))
    assert torch.equal(linear.dense_weight(), dense(linear).float())
    assert sorted(linear.order_in.tolist()) == list(range(IN))
    assert linear.order_in.tolist() != list(range(IN))


def test_singular_values_stay_over_merges_while_the_weight_moves():
    linear = make(0.0)
    first = linear.dense_weight()
    expected, orders = torch.linalg.svdvals(first.double()), []
    for index in range(1, 21):
        turn(linear, 0.03, seed=index)
        before = linear.dense_weight()
        linear.merge(0, index)
        torch.testing.assert_close(linear.dense_weight(), before, rtol=0, atol=1e-6)
        orders.append(tuple(linear.order_in.tolist()))
    torch.testing.assert_close(torch.linalg.svdvals(linear.dense_weight().double()), expected, rtol=1e-5, atol=1e-5)
    assert (linear.dense_weight() - first).norm() > 0.5 * first.norm()
    assert len(set(orders)) == 20


def test_the_error_of_a_block_is_of_the_tenth_power():
    def error(size):
        linear = make()
        with torch.no_grad():
            linear.Q_in.copy_(torch.ones_like(linear.Q_in) * size / SCALE)
        R = rotation(linear.Q_in)
        return (R.T @ R - torch.eye(IN, dtype=torch.float64)).norm()

    assert error(0.1) / error(0.05) == pytest.approx(2**10, rel=0.2)
    P, _ = make(0.05)._rotations()
    torch.testing.assert_close(P.mT @ P, torch.eye(BLOCK).expand_as(P), rtol=0, atol=1e-5)


def test_moments_begin_again_at_their_mean():
    squares = torch.rand(4, 15, generator=torch.Generator().manual_seed(0))
    assert not begin_again("exp_avg", squares).any()
    assert torch.equal(begin_again("exp_avg_sq", squares), torch.full_like(squares, squares.mean().item()))


def test_a_block_that_does_not_divide_a_side_names_key_and_module():
    with pytest.raises(UserError, match=r"linear\.block 5 does not divide both sides of q \(36 x 24\).* divisor of 12"):
        build_linear(Poet.Config(block=5), IN, OUT, "q")


def test_flops_are_those_of_its_products():
    tokens = 10
    products = 4 * IN * OUT + 6 * BLOCK * (IN + OUT)
    made = 18 * BLOCK**3 * (IN + OUT) // BLOCK
    assert Poet.training_flops(Poet.Config(block=BLOCK), IN, OUT, tokens, None, 2) == 2 * (tokens * products + made)
