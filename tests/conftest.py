"""No test reaches the network, or the caches of whoever runs it; and what several files of tests start from."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: processes of tests run side by side
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run that was begun in the background would ignore it
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is first imported, which reads it once: here, and not in
__import__("huggingface_hub.constants")  # a test that takes it away

_FIXTURES = ("command_fixtures", "hub_server", "page_fixtures", "photo_fixtures")
pytest.register_assert_rewrite(*_FIXTURES)  # before a test imports them


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline import zero_shot

    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("SIGHTLINE_MODEL", raising=False)
    monkeypatch.setattr(zero_shot, "_memory", {})


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Training data: a folder per class, eight small images of each of four colours."""
    from tiny_run import draw_colours

    return draw_colours(tmp_path)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever a test left behind must not keep the run from ending: it is named, and left to die."""
    if hasattr(config, "workerinput"):
        return  # a process of pytest-xdist, which the first one ends
    threads = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    children = [process.name for process in multiprocessing.active_children() if not process.daemon]
    if threads or children:
        print(f"\nleft behind by some test: {', '.join(threads + children)}")
        sys.stdout.flush()
        os._exit(getattr(config, "exit_status", 1))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]
