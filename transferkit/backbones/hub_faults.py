"""What the Hugging Face Hub refuses, each in one line with its remedy; a token is never shown."""

import re
from collections.abc import Iterator

from transferkit.backbones.other_layouts import other_layout
from transferkit.backbones.spelling import near_names
from transferkit.errors import UserError, first_line

TOKEN = re.compile(r"\bhf_\w{4,}")
MOVED = (301, 302, 307, 308)


def hub_fault(name: str, what: str, error: BaseException) -> UserError:
    """Return the error to show for what the hub library raised while it downloaded.

    Args:
        name: hub id, with a revision after ``@`` if one was asked for.
        what: what was downloaded, for the message.
        error: what was raised, by the hub library or by transformers because of it.
    """
    from huggingface_hub import errors

    place, _, revision = name.partition("@")
    for cause in causes(error):
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(cause, errors.GatedRepoError):
            return UserError(
                f"{place} is gated: its authors ask you to accept their terms; accept them at "
                f"https://huggingface.co/{place}, then log in (hf auth login) or set HF_TOKEN"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return UserError(f"{place} has no revision {revision!r}; give a branch, a tag or a commit in `revision`")
        if isinstance(cause, errors.DisabledRepoError):
            return UserError(f"{place} has been disabled by the hub; give another model")
        if status in MOVED:
            new = re.sub(r"^https?://[^/]+/(?:api/models/)?", "", str(response.headers.get("Location", "")))  # type: ignore[union-attr]
            new = "/".join(new.split("/resolve/")[0].split("/")[:2])
            return UserError(f"{place} has been renamed{f' to {new}' if new else ''}; give its new name")
        if status == 401 and "nvalid" in str(cause):
            return UserError("the hub does not accept your token; log in again (hf auth login), or unset HF_TOKEN")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return UserError(
                f"the hub has no {place} that you may see; check its name{nearest(place)}, or, if it is private, "
                "log in (hf auth login) or set HF_TOKEN"
            )
        missing = isinstance(cause, errors.EntryNotFoundError) and not isinstance(cause, errors.LocalEntryNotFoundError)
        files = files_of(place, revision) if missing else []
        if layout := other_layout(files):
            return UserError(f"{place} is {layout}")
        if files and "config.json" not in files:
            return UserError(
                f"{place} is in no layout of transformers or timm (it has no config.json); "
                "give the name of its network, and its weights as a file in `weights`"
            )
        if status == 429:
            return UserError(f"the hub takes no more requests for {place} for now (429); try later, or log in")
    text = TOKEN.sub("hf_…", first_line(error))
    return UserError(f"the {what} of {name} could not be downloaded from the hub: {text}")


def files_of(place: str, revision: str) -> list[str]:
    """Return the names of a repository's files; empty where the hub does not tell."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(place, revision=revision or None)
    except Exception:  # whatever the hub refuses
        return []


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def nearest(name: str) -> str:
    """Return the known names nearest to one, as a remark."""
    found = near_names(name, 2, cutoff=0.8)
    if name.partition("@")[0] in found:
        return ""
    return f" (nearest: {', '.join(found)})" if found else ""
