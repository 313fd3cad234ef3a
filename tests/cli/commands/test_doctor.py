"""``doctor``: the same facts as text and JSON, no secrets, no network where it is not wanted."""

import json
import socket
import subprocess
import sys

import pytest

import transferkit as package
from tests.running import transferkit
from transferkit.runtime import diagnosis

SECRET = "hf_doNotShowThis"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, SECRET)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://me:{SECRET}@proxy.test:1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://me:{SECRET}@hub.test")


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--offline"], ["--offline", "--json"]])
def test_it_says_what_is_there_and_no_secret(arguments: list[str]) -> None:
    done = transferkit("doctor", *arguments)
    assert (done.status, done.err) == (0, "") and SECRET not in done.out and "me:" not in done.out
    assert package.__version__ in done.out and "torch hub" in done.out
    assert ("hub.test" in done.out) == ("--offline" not in arguments)


def test_json_and_text_are_the_same_facts() -> None:
    facts = json.loads(transferkit("doctor", "--json", "--offline").out)
    text = transferkit("doctor", "--offline").out
    assert set(facts) == {"versions", "devices", "caches", "working_folder", "network", "missing"}
    assert facts["versions"] == diagnosis.library_versions() and facts["network"] == {}
    for name, version in facts["versions"].items():
        assert f"  {name}" in text and str(version or "not installed") in text
    assert all(each["path"] in text for each in facts["caches"].values())
    assert {"HEIC images", "JPEG XL images", "AVIF images"} < set(facts["missing"])


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert transferkit("doctor", "--offline").status == 0


def test_what_is_missing_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "requires", lambda name: ["no-such-package>=1,<2; extra == 'sky'", "torch>=1"])
    text = transferkit("doctor", "--offline").out
    assert "sky" in text and "missing: pip install 'no-such-package<2,>=1'" in text
    assert "transferkit itself  complete" in text


@pytest.mark.parametrize("library", ["torch", pytest.param("huggingface_hub", marks=pytest.mark.slow)])
def test_a_broken_installation_is_a_line_of_the_result(library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from transferkit.cli import run; run(['doctor', '--offline'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "versions" in done.stdout
    assert ("torch       cannot be imported: " in done.stdout) == (library == "torch"), done.stdout
