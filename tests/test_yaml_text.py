"""Editing one value of a YAML text and nothing else."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bundle.yaml_text import find_entries, replace_entry

NAMES = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: name not in {"y", "n"})
LEAVES = (
    st.none() | st.booleans() | st.integers(-9, 999) | st.floats(-1e3, 1e3) | st.text("ab:#@$%'\"- ,[]{}\n", max_size=9)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


def replace(base: str, task: str) -> str:
    (key,) = find_entries(task)
    return replace_entry(base, find_entries(base)[key], task, find_entries(task)[key])


@pytest.mark.parametrize(
    ("base", "task", "expected"),
    [
        # One line for one line: the comment behind the value stays, with its distance.
        ("a: 1\nkey: [1,2]   # why\nb: 2\n", "key: [3, 4]\n", "a: 1\nkey: [3, 4]   # why\nb: 2\n"),
        # A block becomes one line: the comment behind the key stays, those inside belonged to the old value.
        ("key:  # why\n  - 1  # first\n  - 2\n# next\nb: 2\n", "key: [3]\n", "key: [3]  # why\n# next\nb: 2\n"),
        # One line becomes a block, with the comments inside the new value; what follows it in its file is not taken.
        ("key: null  # why\n\nb: 2\n", "key:\n  x: 1  # in\n  y: 2  # end\n\n# after\nc: 3\n", None),
        # A block for a block; an unindented sequence, as some write it, is still a value.
        ("key:\n  x: 1\n  # old\n  z: 2\n\n# kept\nb: 2\n", "key:\n- 1\n- 2", "key:\n- 1\n- 2\n\n# kept\nb: 2\n"),
        # Last line without an end, an empty value, quotes that the config language needs.
        ("b: 2\nkey:", 'key: "@other"\n', 'b: 2\nkey: "@other"'),
        # A key that carries separators of the config language, and a flow value over two lines.
        ('"a#b": {x: 1,\n  y: 2}  # why\nb: 2\n', '"a#b": 7\n', '"a#b": 7  # why\nb: 2\n'),
    ],
)
def test_one_value_changes_and_comments_stay(base: str, task: str, expected: str | None) -> None:
    if expected is None:
        key = find_entries(task)["key"]
        changed = replace_entry(base, find_entries(base)["key"], task, key)
        assert changed == "key:  # why\n  x: 1  # in\n  y: 2  # end\n\nb: 2\n"
    else:
        assert replace(base, task) == expected


def test_an_empty_text_has_no_entries() -> None:
    assert find_entries("") == {} == find_entries("# only a comment\n")


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), st.data(), st.booleans(), st.booleans())
def test_any_value_takes_the_place_of_any_other(base: dict, data: st.DataObject, block: bool, new_block: bool) -> None:
    key = data.draw(st.sampled_from(sorted(base)))
    value = data.draw(VALUES)
    text, task = write(base, block=block), write({key: value}, block=new_block)
    entry = find_entries(text)[key]
    changed = replace(text, task)
    assert yaml.safe_load(changed) == {**base, key: value}
    assert changed.startswith(text[: entry.colon])
    assert changed.endswith(text[entry.end :])


def write(values: dict, *, block: bool) -> str:
    """YAML in either style: values over lines of their own, or each on its key's line."""
    if block:
        return yaml.safe_dump(values, default_flow_style=False, sort_keys=False)
    dumped = {key: yaml.safe_dump([value], default_flow_style=True, width=10**6) for key, value in values.items()}
    return "".join(f"{key}: {value.strip()[1:-1]}\n" for key, value in dumped.items())
