import io

from rich.console import Console

from enginehouse_builder.display import Display


def _shown(*, is_terminal: bool, quiet: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=40, highlight=False)
    display = Display(quiet=quiet, console=console)
    with display.stage("export") as stage:
        stage.report("tracing [bold]Bert[/bold]")
        stage.result = "8 labels, and a line that is longer than the terminal is wide [x]"
    display.note("done")
    return out.getvalue()


def test_without_a_terminal_there_are_plain_whole_lines() -> None:
    first, second, third = _shown(is_terminal=False).splitlines()
    assert first == "   export … tracing [bold]Bert[/bold]"
    assert second.startswith("   export    0.0 s  8 labels, and")
    assert second.endswith("wide [x]")
    assert third == "done"


def test_on_a_terminal_the_result_stays() -> None:
    shown = _shown(is_terminal=True)
    assert "8 labels" in shown
    assert "\x1b[" in shown


def test_quiet_shows_nothing() -> None:
    assert not _shown(is_terminal=False, quiet=True)
