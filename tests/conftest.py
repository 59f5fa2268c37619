"""No test reaches the network, or the caches of whoever runs it."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is first imported, which reads it once


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline import zero_shot

    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("SIGHTLINE_MODEL", raising=False)
    monkeypatch.setattr(zero_shot, "_memory", {})
