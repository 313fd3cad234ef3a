"""Facts about an installation: those of other tools, and nothing secret."""

import os
import platform
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from transferkit.runtime import diagnosis


def test_versions_are_those_of_the_packages() -> None:
    found = diagnosis.library_versions()
    assert found["python"] == platform.python_version() and found["torch"] == version("torch")
    assert diagnosis.installed_version("no-such-package") is None


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosis.devices()
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1
    assert len(found["accelerators"]) == (torch.accelerator.device_count() if torch.accelerator.is_available() else 0)


def test_the_size_of_a_folder_without_what_its_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "in/blobs").mkdir(parents=True)
    (tmp_path / "in/blobs/a").write_bytes(b"x" * 1000)
    (tmp_path / "big").write_bytes(b"x" * 10**6)
    (tmp_path / "in/link").symlink_to(tmp_path / "big")
    found = diagnosis.folder_facts(tmp_path / "in")
    assert 1000 <= found["bytes"] < 2000 and found["exists"]
    assert abs(found["free_bytes"] - shutil.disk_usage(tmp_path).free) < 10**9
    assert diagnosis.folder_facts(tmp_path / "not/there") | {"free_bytes": 0} == {
        "path": str(tmp_path / "not/there"),
        "exists": False,
        "bytes": 0,
        "free_bytes": 0,
    }


def test_caches_are_where_the_environment_says() -> None:
    found = diagnosis.caches()
    assert found["features"] == Path(os.environ["TRANSFERKIT_CACHE"]).absolute() / "features"
    assert found["torch hub"] == Path(torch.hub.get_dir())


def test_an_endpoint_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://me:secret@hub.test:444/path?token=secret")
    assert diagnosis.hosts()[0] == "https://hub.test:444"


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = diagnosis.reachable([there, "https://elsewhere.test", "https://bad:port"])
    assert found == {there: True, "https://elsewhere.test": False, "https://bad:port": False}


def test_what_is_missing_for_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.0",
        "numpy>=99",
        "onnx>=1.0; extra == 'onnx'",
        'no-such-package>=1; extra == "onnx"',
        "no-such-package[x]>=2,<3; python_version >= '3' and extra == 'other'",
        "pytest; extra == 'dev'",
        "no-such-backport; python_version < '3'",
    ]
    monkeypatch.setattr(diagnosis, "requires", lambda name: lines)
    assert diagnosis.missing_packages() == {
        "": ["numpy>=99"],
        "onnx": ["no-such-package>=1"],
        "other": ["no-such-package<3,>=2"],
    }
    assert all(Requirement(each) for needed in diagnosis.missing_packages().values() for each in needed)


def test_a_folder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(diagnosis, "requires", none)
    assert diagnosis.missing_packages() == {}
