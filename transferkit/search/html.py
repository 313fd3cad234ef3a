"""Search results as one self-contained HTML page with thumbnails: no scripts, no network access."""

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from transferkit.images.decoding import ImageError
from transferkit.runtime.files import atomic_path
from transferkit.runtime.page_files import check_page_place
from transferkit.runtime.text import for_html
from transferkit.search.query import Hit

SIDE = 320  # pixels of a thumbnail's longer side: sharp at half the size on a high-resolution screen

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dade, #3a3d44); --soft: light-dark(#5c6270, #a3a9b5);
  --card: light-dark(#f5f6f8, #22252b) }
* { box-sizing: border-box }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem; max-width: 80rem;
  background: light-dark(#fff, #16181c); color: light-dark(#16181c, #eceef1) }
h1 { font-size: 1.4rem; margin: 0 0 .25rem }
h2 { font-size: 1rem; margin: 1.75rem 0 .75rem }
p { color: var(--soft); margin: 0; overflow-wrap: anywhere }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)) }
li { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; background: var(--card) }
.picture { aspect-ratio: 1; display: grid; place-items: center; color: var(--soft); text-align: center;
  padding: .25rem; background: light-dark(#e9ebee, #101216) }
img { display: block; width: 100%; height: 100%; object-fit: contain; min-height: 0 }
.words { padding: .5rem .65rem .65rem; font-size: .85rem; overflow-wrap: anywhere }
.first { display: flex; justify-content: space-between; gap: .5rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.soft { color: var(--soft) }
""".strip()


def write_page(
    path: str | Path,
    title: str,
    summary: str,
    queries: Sequence[tuple[str, Callable[[], Tensor]]],
    hits: Sequence[tuple[Hit, Callable[[], Tensor]]],
) -> None:
    """Write the page atomically.

    Args:
        path: the HTML file.
        title: its heading.
        summary: a line below the heading.
        queries: name and reader (-> uint8 (3, H, W)) of each query.
        hits: each result and its reader.

    Raises:
        UserError: the file cannot be written.
    """
    check_page_place(path)
    with ThreadPoolExecutor() as pool:
        asked = list(pool.map(lambda query: picture(query[1], query[0]), queries))
        found = list(pool.map(lambda hit: picture(hit[1], f"result {hit[0].rank}: {hit[0].path}"), hits))
    query_cards = (
        f'<li>{image}<div class="words soft">{breakable(name)}</div></li>'
        for image, (name, _) in zip(asked, queries, strict=True)
    )
    hit_cards = (card(image, hit) for image, (hit, _) in zip(found, hits, strict=True))
    page = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{for_html(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>",
            f"<h1>{for_html(title)}</h1>\n<p>{for_html(summary)}</p>",
            "<h2>Query</h2>\n<ol>",
            *query_cards,
            "</ol>\n<h2>Results</h2>\n<ol>",
            *hit_cards,
            "</ol>\n</main>\n</body>\n</html>\n",
        ]
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def card(image: str, hit: Hit) -> str:
    """Return one result as HTML: image, rank, cosine, label and path."""
    label = f'<div><span class="soft">label</span> {for_html(hit.label)}</div>' if hit.label is not None else ""
    return (
        f'<li>{image}<div class="words"><div class="first"><b>{hit.rank}</b><span>cosine {hit.cosine:.4f}</span></div>'
        f'{label}<div class="soft">{breakable(hit.path)}</div></div></li>'
    )


def picture(read: Callable[[], Tensor], name: str) -> str:
    """Return a thumbnail with its alternative text, or the reason why the image cannot be read."""
    try:
        source = thumbnail(read())
    except ImageError as error:
        return f'<div class="picture">{for_html(f"no picture: {error}")}</div>'
    return f'<div class="picture"><img alt="{for_html(name)}" src="{source}"></div>'


def thumbnail(image: Tensor) -> str:
    """Return an image, uint8 (3, H, W), as a ``data:`` URI of a JPEG of at most 320 pixels per side."""
    small = Image.fromarray(image.movedim(0, -1).contiguous().numpy())
    small.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def breakable(path: str) -> str:
    """Return a path as HTML that breaks lines after slashes."""
    return for_html(path).replace("/", "/<wbr>")
