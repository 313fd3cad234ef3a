"""What people type in place of a backbone's name, and the known names nearest to it."""

import difflib
import re
from pathlib import Path

from transferkit.backbones.known_models import known_models

ADDRESS = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?(?!datasets/|spaces/|docs/|blog/|papers/)"
    r"(?P<place>[^/?#]+/[^/?#]+)(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+))?(?:[/?#].*)?"
)
# Names in the authors' own code (torch.hub, openai/CLIP, MobileCLIP) -> the same weights in transformers or timm.
ELSEWHERE = {
    f"dinov2_vit{letter}14{suffix}": f"facebook/dinov2-{'with-registers-' if suffix else ''}{size}"
    for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    for suffix in ("", "_reg")
} | {
    name: f"openai/clip-vit-{size}-patch{patch}"
    for size, patch in (("base", 16), ("base", 32), ("large", 14))
    for name in (f"ViT-{size[0].upper()}/{patch}", f"ViT-{size[0].upper()}-{patch}")
}
ELSEWHERE |= {f"mobileclip_s{size}": f"fastvit_mci{size}.apple_mclip" for size in range(3)}
ELSEWHERE["mobileclip"] = ELSEWHERE["mobileclip_s0"]


def plain_name(name: str) -> str:
    """Return the name of a backbone as the libraries take it, from an address of the Hugging Face Hub or a path.

    >>> plain_name("https://huggingface.co/facebook/dinov2-small/tree/v1")
    'facebook/dinov2-small@v1'
    >>> plain_name("facebook/dinov2-small/")
    'facebook/dinov2-small'

    Args:
        name: as it is given; ``~`` is the home directory.
    """
    name = name.strip()
    if found := ADDRESS.fullmatch(name):
        revision = found["revision"] or "main"
        return found["place"] if revision == "main" else f"{found['place']}@{revision}"
    if name.startswith(("~/", "~\\")):
        name = str(Path(name).expanduser())
    return name.rstrip("/") or name


def near_names(name: str, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the known names nearest to one that was not found, the best first.

    >>> near_names("DINOv2-smal", most=1)
    ['facebook/dinov2-small']

    Args:
        name: what was given; case, owner and tag do not matter.
        most: how many.
        cutoff: how alike they are, see :func:`difflib.get_close_matches`.
    """
    names: dict[str, str] = {}
    for known in known_models():
        names.setdefault(simplified(known.name), known.name)
    wanted = simplified(name)
    alike = difflib.get_close_matches(wanted, names, n=most, cutoff=cutoff)
    parts = [key for key in names if len(wanted) > 2 and wanted in key]
    parts.sort(key=lambda key: (not key.startswith(wanted), len(key)))
    elsewhere = [ELSEWHERE[name]] if name in ELSEWHERE else []
    return list(dict.fromkeys([*elsewhere, *(names[key] for key in (*parts[:most], *alike))]))[:most]


def simplified(name: str) -> str:
    """Return a name in small letters, without its owner and its tag."""
    model = name.lower().rpartition("/")[2]
    return re.sub(r"\.[a-z]\w*$", "", model.partition("@")[0]).replace("-", "_")


def is_path(name: str) -> bool:
    """Return whether a name can only be a path, of this or another system."""
    return name.startswith((".", "/", "~")) or "\\" in name or name[1:2] == ":" or name.count("/") > 1
