import pytest
import torch

from compiler.train.loss import (
    causal_lm_loss,
    classification_loss,
    linear_cross_entropy,
)

VOCABULARY, WIDTH = 37, 8


def case(tokens: int, dtype: torch.dtype, *, ignored: float = 0.3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    labels = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100
    return hidden, head, labels


def reference(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = (hidden @ head.T).float()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (5, 4), (8, 4), (64, 7), (64, None)])
@pytest.mark.parametrize("trains_head", [False, True])
def test_equals_cross_entropy_on_full_logits(
    tokens: int, chunk: int | None, trains_head: bool
) -> None:
    hidden, head, labels = case(tokens, torch.float32, ignored=0.3 if tokens > 1 else 0.0)
    head.requires_grad_(trains_head)
    leaves = [hidden, head] if trains_head else [hidden]
    expected = reference(hidden, head, labels)
    expected_gradients = torch.autograd.grad(3.0 * expected, leaves)

    loss, targets = linear_cross_entropy(hidden, head, labels, chunk_tokens=chunk)
    gradients = torch.autograd.grad(3.0 * loss, leaves)

    assert targets == int((labels != -100).sum())
    # Sums of at most 64 terms of size about 10, in fp32: 64 * 10 * 2^-24 = 4e-5.
    torch.testing.assert_close(loss, expected, rtol=0.0, atol=5e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0.0, atol=5e-5)


def test_bf16_products_keep_an_fp32_softmax() -> None:
    hidden, head, labels = case(64, torch.bfloat16)
    expected = reference(hidden, head, labels)
    (expected_gradient,) = torch.autograd.grad(expected, hidden)
    loss, _ = linear_cross_entropy(hidden, head, labels, chunk_tokens=16)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.dtype == torch.float32
    # Both round the logits to bf16 once, so the values agree to fp32's rounding.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    # The gradient of the logits is rounded to bf16: one part in 256 of entries up to about 3.
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.0, atol=0.02)


def test_all_tokens_ignored() -> None:
    hidden, head, labels = case(6, torch.float32, ignored=1.1)
    head.requires_grad_()
    loss, targets = linear_cross_entropy(hidden, head, labels)
    loss.backward()
    assert (loss.item(), targets) == (0.0, 0)
    assert hidden.grad is not None
    assert head.grad is not None
    assert not hidden.grad.any()
    assert not head.grad.any()


def test_a_certain_and_an_impossible_label() -> None:
    """Logits 200 apart: probabilities that fp32 rounds to one and to zero."""
    hidden = torch.tensor([[200.0], [200.0]], requires_grad=True)
    head = torch.tensor([[1.0], [0.0]])
    loss, _ = linear_cross_entropy(hidden, head, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == 200.0
    assert gradient.flatten().tolist() == [0.0, 1.0]


def test_without_grad_the_loss_is_the_same() -> None:
    hidden, head, labels = case(20, torch.float32)
    loss, _ = linear_cross_entropy(hidden, head, labels)
    with torch.no_grad():
        evaluated, _ = linear_cross_entropy(hidden, head, labels)
    assert not evaluated.requires_grad
    assert torch.equal(loss.detach(), evaluated)


def test_a_causal_model_predicts_the_next_token() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, WIDTH, generator=generator)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator)
    labels = torch.randint(0, VOCABULARY, (2, 5), generator=generator)
    labels[0, :3] = -100
    expected = reference(hidden[:, :-1].flatten(0, 1), head, labels[:, 1:].flatten())
    loss, targets = causal_lm_loss(hidden, head, labels)
    assert targets == 2 + 4
    torch.testing.assert_close(loss, expected)


def test_classes_sum_over_the_rows() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]])
    loss, rows = classification_loss(logits, torch.tensor([0, 1, -100]))
    # ln 2 for the first row, ln(1 + e^-2) for the second.
    assert rows == 2
    assert float(loss) == pytest.approx(0.693147 + 0.126928, abs=1e-5)
