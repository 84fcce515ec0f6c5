import pytest

from compiler.train.schedule import factor, warmup_steps


def test_warms_up_to_one_and_falls_along_a_cosine() -> None:
    factors = [factor(step, total_steps=12, warmup=4) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    # Half way between warm-up and the end the cosine is at a half.
    assert factors[8] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] == pytest.approx(0.5 * (1 - 0.9238795), abs=1e-6)


def test_no_warmup_starts_at_one() -> None:
    assert warmup_steps(100, 0.0) == 0
    assert factor(0, total_steps=1, warmup=0) == 1.0


def test_any_warmup_takes_a_step() -> None:
    assert warmup_steps(10, 0.05) == 1
