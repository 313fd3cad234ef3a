"""Caches that the tests fill, and a pickle that leaves a mark."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.backbones.families import save


@pytest.fixture
def filled_cache() -> Path:
    """A snapshot of ``someone/tiny-vit`` as huggingface_hub keeps it in ``HF_HOME``."""
    repository = Path(constants.HF_HUB_CACHE, "models--someone--tiny-vit")
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    save("vit", snapshot)
    return snapshot


@pytest.fixture
def hostile(tmp_path: Path) -> type[object]:
    """A class whose unpickling creates the file ``mark`` in ``tmp_path``."""

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "mark",)

    return Hostile
