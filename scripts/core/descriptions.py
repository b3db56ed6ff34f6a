"""Components described as configs, so that weights can name the transforms and the network they were trained with.

A config refers to components by ``@id``, which gives the built object, not its text. The description is therefore read
from the object: from its attributes, or from the constructor arguments that :func:`records_arguments` keeps.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

from monai.transforms import Transform

__all__ = ["describe_component", "describe_transform", "describe_transforms", "records_arguments"]

T = TypeVar("T")


def records_arguments(kind: type[T]) -> type[T]:
    """Class decorator: instances keep their constructor arguments, defaults included, in ``constructor_arguments``."""
    signature, initialise = inspect.signature(kind), kind.__init__

    @functools.wraps(initialise)
    def initialise_and_record(self: T, *positional: Any, **named: Any) -> None:
        initialise(self, *positional, **named)
        if type(self) is kind:
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()
            self.constructor_arguments = dict(bound.arguments)  # type: ignore[attr-defined]

    kind.__init__ = initialise_and_record  # type: ignore[method-assign, assignment]
    return kind


def describe_component(component: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Class and constructor arguments of a component whose class :func:`records_arguments`, as a config."""
    arguments = {key: value for key, value in component.constructor_arguments.items() if key not in without}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    return {"_target_": _name(type(component)), **plain}


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__.startswith("monai.") else f"{kind.__module__}.{kind.__qualname__}"


def describe_transform(transform: object) -> dict[str, Any]:
    """A transform's class and plain arguments, in the form of a config, as far as the instance keeps them.

    MONAI's dictionary transforms delegate to an array transform, whose attributes count as theirs.
    """
    kind = type(transform)
    described: dict[str, Any] = {"_target_": _name(kind)}
    holders = [transform, *(part for part in vars(transform).values() if isinstance(part, Transform))]
    for argument in [name for name in inspect.signature(kind).parameters if name not in ("keys", "allow_missing_keys")]:
        value = next((getattr(holder, argument) for holder in holders if hasattr(holder, argument)), None)
        if isinstance(value, list | tuple):
            value = [describe_transform(part) if isinstance(part, Transform) else part for part in value]
        if isinstance(value, bool | int | float | str) or (isinstance(value, list) and not any(map(callable, value))):
            described[argument] = value
    return described


def describe_transforms(names: Sequence[str], transforms: Sequence[object]) -> dict[str, dict[str, Any]]:
    """:func:`describe_transform` of several transforms, by name."""
    return {name: describe_transform(transform) for name, transform in zip(names, transforms, strict=True)}
