"""Top-level entries of a YAML text by their place in it, so that one value changes and no other byte does.

An emitter that keeps comments would still lay out anew what it did not change; here the text around a value is not
touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

__all__ = ["Entry", "find_entries", "replace_entry"]


@dataclass(frozen=True)
class Entry:
    """Where one top-level ``key: value`` stands; offsets in characters.

    Args:
        colon: just behind the key's colon.
        start: first character of the value; of its first line if it begins on a line of its own.
        end: just behind the value's last character.
        own_lines: whether the value begins below its key.
    """

    colon: int
    start: int
    end: int
    own_lines: bool


def find_entries(text: str) -> dict[str, Entry]:
    """The top-level entries of a YAML mapping, in their order.

    Args:
        text: a YAML text; an empty one has no entries.

    Returns:
        Key and place of each entry.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return {key.value: _place(text, key, value) for key, value in pairs}


def replace_entry(text: str, old: Entry, source: str, new: Entry) -> str:
    """``text`` with the value of one entry as it is written in another text.

    A comment behind the old value, or behind its key if the value stood below, stays behind the key's line.

    Args:
        text: the text to change.
        old: an entry of it.
        source: the text the value is taken from.
        new: an entry of that.

    Returns:
        The changed text.
    """
    line_end = _line_end(text, old.end)
    comment = text[old.colon : old.start].rstrip() if old.own_lines else text[old.end : line_end]
    if new.own_lines:
        value = f"{comment}\n{source[new.start : _line_end(source, new.end)]}"
    else:
        value = f" {source[new.start : new.end]}{comment}"
    return text[: old.colon] + value + text[line_end:]


def _place(text: str, key: yaml.Node, value: yaml.Node) -> Entry:
    own_lines = value.start_mark.line > key.end_mark.line
    start = value.start_mark.index - (value.start_mark.column if own_lines else 0)
    end = max(start, _last_character(value))
    end = start + len(text[start:end].rstrip())
    return Entry(colon=text.index(":", key.end_mark.index) + 1, start=start, end=end, own_lines=own_lines)


def _last_character(node: yaml.Node) -> int:
    """Just behind a node's own text: the end mark of a block reaches to the next entry, over comments between."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return _last_character(last[1] if isinstance(last, tuple) else last)


def _line_end(text: str, index: int) -> int:
    found = text.find("\n", index)
    return len(text) if found < 0 else found
