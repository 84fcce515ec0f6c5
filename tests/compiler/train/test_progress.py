import io

from compiler.train.progress import Status, clock, figures, report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status(step: int, validation_loss: float | None = None) -> Status:
    return Status(
        step=step,
        total_steps=3,
        loss=2.5,
        validation_loss=validation_loss,
        tokens_per_second=1234.5,
        seconds_left=65.0,
    )


def test_a_log_gets_the_first_and_the_last_step() -> None:
    log = io.StringIO()
    with report("acme", log) as reporter:
        reporter.say("hello")
        for step in (1, 2, 3):
            reporter.step(status(step, 2.25))
    assert log.getvalue().splitlines() == [
        "acme: hello",
        "acme: step 1/3  loss 2.5000  validation 2.2500  1,234 tokens/s  1:05 left",
        "acme: step 3/3  loss 2.5000  validation 2.2500  1,234 tokens/s  1:05 left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    terminal = Terminal()
    with report("acme", terminal) as reporter:
        reporter.say("hello")
        reporter.step(status(3))
    shown = terminal.getvalue()
    assert "hello" in shown
    assert "3/3" in shown


def test_quiet_says_nothing() -> None:
    log = io.StringIO()
    with report("acme", log, quiet=True) as reporter:
        reporter.say("hello")
        reporter.step(status(3))
    assert log.getvalue() == ""


def test_figures_without_validation() -> None:
    assert figures(status(1)) == "loss 2.5000  1,234 tokens/s  1:05 left"


def test_clock() -> None:
    assert [clock(5.4), clock(65), clock(7205)] == ["0:05", "1:05", "2:00:05"]
