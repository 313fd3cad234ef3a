"""The help of a verb that is a function: the options people need first, then all, from its signature and docstring.

Neither the parser nor torch is imported, so that the help is there at once.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import docstring_parser

from transferkit.cli.dialect import sections_of
from transferkit.cli.help_layout import Option, page, words, written

# The options that people need first; a verb that is not here shows the first five of its signature.
FIRST = {
    "embed": ("extractor", "weights", "out", "image_root", "batch_size"),
    "evaluate": ("out", "split", "reference", "tsne", "images"),
    "probe": ("extractor", "weights", "out", "compare", "json"),
    "benchmark": ("config", "extractors", "datasets", "out", "fast"),
    "export": ("out", "onnx", "overwrite", "name", "weights"),
    "index": ("extractor", "weights", "out", "index", "overwrite"),
    "search": ("k", "row", "html", "exact", "json"),
    "regions": ("boxes", "extractor", "weights", "out", "method"),
    "duplicates": ("threshold", "extractor", "weights", "image_root", "json"),
    "audit": ("extractor", "out", "apply", "manifest", "json"),
    "explain": ("ckpt_path", "name", "out", "class_name", "k"),
    "distill": ("teacher", "student", "weights", "out", "epochs"),
    "quickstart": ("out", "seeds", "n_per_class", "seed", "config"),
}
SHORT = 5
"""A verb of no more options shows them in one group."""
EVERY = [
    Option("config", "a YAML file with any of these options"),
    Option("print_config", "print the resulting configuration and exit"),
    Option("debug", "show tracebacks"),
    Option("help", "print this and exit"),
]


def help_text(function: Callable[..., int], verb: str) -> str:
    """Return the text of ``transferkit VERB --help``."""
    doc = docstring_parser.parse(function.__doc__ or "")
    groups = options_by_group(function)
    positional, options = groups.pop(""), [option for group in groups.values() for option in group]
    usage = " ".join([verb, *(several(function, option) for option in positional), "[options]"])
    named = {option.name: option for option in (*options, *EVERY)}
    first = FIRST.get(verb) or tuple(option.name for option in options)[:5]
    if len(options) <= SHORT:
        titled = {"Options:": [*options]}
    else:
        titled = {"Used most:": [named[name] for name in first]}
        titled |= {f"{title}:": [o for o in group if o.name not in first] for title, group in groups.items()}
    every = [option for option in EVERY if len(options) <= SHORT or option.name not in first]
    return page(usage, doc.description or "", {"Arguments:": positional, **titled, "Every command:": every})


def several(function: Callable[..., int], option: Option) -> str:
    """Return a positional argument as the usage shows it, with dots if it takes several values."""
    kind = get_type_hints(function)[option.name.lower()]
    return f"{option.name} ..." if kind == list[str] else option.name


def options_by_group(function: Callable[..., Any]) -> dict[str, list[Option]]:
    """Return title -> options of a command; positional arguments have the title ``""``, in capitals.

    The options of a dataclass among the parameters are a group, with the parameter's text as title.
    """
    texts, hints, sections = texts_of(function), get_type_hints(function), sections_of(function)
    groups: dict[str, list[Option]] = {"": []}
    more = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in sections:
            title = texts[name].rstrip(".")
            groups[title[:1].upper() + title[1:]] = fields_of(*sections[name])
        elif parameter.default is parameter.empty:
            groups[""].append(Option(name.upper(), texts[name].rstrip("."), words(hints[name])))
        else:
            more.append(Option(name, texts[name].rstrip("."), words(hints[name]), written(parameter.default)))
    return {**groups, "More": more}


def fields_of(kind: Callable[..., Any], prefix: str, fields: Sequence[str], default: Any) -> list[Option]:
    """Return the options of a section, see :class:`~transferkit.cli.dialect.Section`."""
    texts, hints = texts_of(kind), get_type_hints(kind)
    return [
        Option(prefix + field, texts[field].rstrip("."), words(hints[field]), written(getattr(default, field)))
        for field in fields
    ]


def texts_of(documented: Callable[..., Any]) -> dict[str, str]:
    """Return argument -> its text in the docstring."""
    parsed = docstring_parser.parse(documented.__doc__ or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
