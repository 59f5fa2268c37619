"""A progress bar for work that takes a while, on a terminal alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn


class Report(Protocol):
    def __call__(self, done: int, of: int | None = None, /) -> object: ...


PATIENCE = 0.5  # seconds of work before a bar appears


@contextmanager
def progress_bar(what: str, console: "Console | None", total: int | None = None) -> Iterator["Report"]:
    """A function to call with how many are done and, where `total` did not say it, of how many.

    Args:
        console: where the bar is drawn; nowhere if None.
    """
    if console is None:
        yield lambda done, of=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _rate_column(),
        TimeRemainingColumn(),
    )
    # Results pass by the bar: stdout may be a file.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
    task = bar.add_task(what, total=total)
    start = threading.Timer(PATIENCE, bar.start)
    start.daemon = True
    start.start()
    try:
        yield lambda done, of=None: bar.update(task, completed=done, total=of)
    finally:
        start.cancel()
        start.join()
        bar.stop()


def _rate_column() -> "ProgressColumn":
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")

    return Rate()
