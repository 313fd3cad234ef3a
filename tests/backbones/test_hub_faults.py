"""What the hub refuses is one line with its remedy, whatever transformers makes of it; a token is never shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers.utils.hub
from huggingface_hub import constants, errors

from tests.backbones.families import save
from tests.running import refused, transferkit
from transferkit import Extractor, backbones
from transferkit.backbones import hub
from transferkit.errors import UserError

SECRET = "hf_" + "abcDEF123" * 4
NAME = "someone/secret-vit"


def response(status: int, **headers: str) -> httpx.Response:
    request = httpx.Request("GET", f"https://huggingface.co/{NAME}/resolve/main/config.json")
    return httpx.Response(status, headers=headers, request=request)


FAULTS: list[tuple[BaseException, str]] = [
    (
        errors.GatedRepoError(f"403 Client Error. {SECRET}", response=response(403)),
        rf"{NAME} is gated: .* accept them at https://huggingface.co/{NAME}, then log in \(hf auth login\)",
    ),
    (
        errors.RepositoryNotFoundError(f"404 Client Error. {SECRET}", response=response(404)),
        rf"the hub has no {NAME} that you may see; check its name, or, if it is private, log in \(hf auth login\)",
    ),
    (
        errors.RepositoryNotFoundError("401 Client Error.", response=response(401)),
        rf"the hub has no {NAME} that you may see; .* if it is private, log in",
    ),
    (
        errors.HfHubHTTPError("401 Client Error: Invalid credentials", response=response(401)),
        r"the hub does not accept your token; log in again",
    ),
    (
        errors.RevisionNotFoundError("404 Client Error.", response=response(404)),
        rf"{NAME} has no revision 'v9'; give a branch, a tag or a commit in `revision`",
    ),
    (
        errors.HfHubHTTPError(
            "307", response=response(307, Location="https://huggingface.co/other/vit/resolve/main/c")
        ),
        rf"{NAME} has been renamed to other/vit; give its new name",
    ),
    (errors.DisabledRepoError("403 Client Error.", response=response(403)), rf"{NAME} has been disabled"),
    (errors.HfHubHTTPError("429 Client Error.", response=response(429)), r"no more requests .* \(429\); try later"),
    (
        errors.HfHubHTTPError(f"500 Server Error with {SECRET}", response=response(500)),
        r"the configuration of .* could not be downloaded from the hub",
    ),
]


@pytest.fixture
def hub_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """The hub can be reached, and refuses; nothing is in the cache."""

    def with_fault(fault: BaseException) -> None:
        def download(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
            raise errors.LocalEntryNotFoundError("not in the cache") if local_files_only else fault

        monkeypatch.setattr(hub, "require_network", lambda *_: None)
        monkeypatch.setattr("transferkit.backbones.from_timm.require_network", lambda *_: None)
        monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", download)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setenv("HF_TOKEN", SECRET)

    return with_fault


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("prefix", ["", pytest.param("hf-hub:", marks=pytest.mark.slow)])
def test_a_refusal_is_one_line(
    prefix: str, fault: BaseException, message: str, hub_raises: Callable[[BaseException], None]
) -> None:
    hub_raises(fault)
    with pytest.raises(UserError, match=message) as caught:
        backbones.build(f"{prefix}{NAME}@v9")
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value) and "Client Error" not in str(caught.value)


def test_on_the_command_line(tmp_path: Path, hub_raises: Callable[[BaseException], None]) -> None:
    hub_raises(FAULTS[4][0])
    save("vit", tmp_path / "vit")
    images = [str(tmp_path / name) for name in ("a.png", "b.png")]
    done = transferkit("similarity", *images, "--extractor", NAME, "--revision", "v9")
    assert refused(done, f"{NAME} has no revision 'v9'; give a branch, a tag or a commit in --revision")
    hub_raises(errors.RepositoryNotFoundError("404", response=response(404)))
    done = transferkit("similarity", *images, "--extractor", "google/vit-base-patch16-24")
    assert refused(done, r"check its name \(nearest: google/vit-base-patch16-224,")


@pytest.mark.parametrize("name", ["resnet18", "someone/tiny-vit@v1"])
def test_names_without_revisions(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out `revision=main`"):
        Extractor.from_pretrained(name, "none", revision="main")
    with pytest.raises(UserError, match="without revisions; leave out `revision`"):
        Extractor.from_pretrained(tmp_path, revision="main")


@pytest.mark.usefixtures("filled_cache")
def test_a_revision_is_kept_and_read_from_the_cache() -> None:
    """Not the newest that is there."""
    repository = Path(constants.HF_HUB_CACHE, "models--someone--tiny-vit")
    old = save("deit", repository / "snapshots" / ("1" * 40))
    (repository / "refs" / "v1").write_text("1" * 40)
    for revision in ("v1", "1" * 40):
        extractor = Extractor.from_pretrained("someone/tiny-vit", revision=revision)
        assert extractor.spec()["name"] == f"someone/tiny-vit@{revision}"
        assert extractor.backbone.model.config.model_type == old.config.model_type == "deit"
    assert Extractor.from_pretrained("someone/tiny-vit").backbone.model.config.model_type == "vit"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="someone/tiny-vit@v2"):
        Extractor.from_pretrained("someone/tiny-vit@v2")
