"""``models``: backbones by name, with what one asks before choosing one."""

from transferkit.cli import console
from transferkit.cli.parsing import call
from transferkit.errors import UserError


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    pattern = arguments[1:2] if len(arguments) > 1 and not arguments[1].startswith("-") else []
    given = [f"--pattern={pattern[0]}", *arguments[2:]] if pattern else arguments[1:]
    return call(models, [arguments[0], *given])


def models(pattern: str | None = None, json: bool = False) -> int:
    """List backbones by name; nothing is downloaded.

    Those of torchvision and well-known ones of transformers; with a pattern also timm's, where it is installed. Other
    models of the Hugging Face Hub open as well, see docs/backbones.md.

    Args:
        pattern: part of the name, or a pattern with * such as 'vit*dino*'. It may also come without --pattern, first.
        json: print one JSON object.
    """
    from transferkit.backbones.catalog import find_models
    from transferkit.backbones.spelling import near_names

    found = find_models(pattern)
    if not found:
        near = near_names(pattern or "")
        hint = f"; nearest: {', '.join(near)}" if near else "; leave it out to list all"
        raise UserError(f"no known model matches {pattern!r}{hint}")
    if json:
        console.as_json({"models": [model._asdict() for model in found]})
        return 0
    console.table(
        ("name", "library", "parameters", "width", "pixels", "poolings", "words"),
        [
            (
                model.name, model.library, model.parameters, model.embed_dim, model.image_size,
                ", ".join(model.poolings) or None, "yes" if model.words else "no",
            )
            for model in found
        ],
    )  # fmt: skip
    if any(model.embed_dim is None for model in found):
        console.note("models of another release of timm are described for a pattern that fits few of them")
    if any(model.words for model in found):
        console.note("words: asked by words with pooling projection, by zeroshot and search --text")
    return 0
