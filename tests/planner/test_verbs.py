"""What a command does with an error, whatever the verb."""

import click
import pytest

from planner.verbs import Failure, failures


def test_an_error_of_the_system_is_one_sentence() -> None:
    with (
        pytest.raises(Failure, match=r"^no space left on device: /full/disk$") as caught,
        failures(),
    ):
        raise OSError(28, "No space left on device", "/full/disk")
    assert caught.value.exit_code == 1


def test_an_interruption_has_its_own_exit_code() -> None:
    with pytest.raises(click.exceptions.Exit) as caught, failures():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
