"""Bad settings in one line: which one, its value, the rule, and for a misspelt name the nearest
right one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]

_TOOK_ITS_PLACE = {"ngrams": "fused", "sandbox": "in_workers"}


class Settings(BaseModel):
    """Base of all settings: frozen, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt name, or the list of known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def validated(model: type[SettingsT], given: Mapping[str, Any], where: str) -> SettingsT:
    """``model(**given)``, or a one-line ConfigError that starts with ``where`` and names the
    setting."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_explain(model, e) for e in error.errors())
        ) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    kind = error["type"]
    if kind == "extra_forbidden":
        shown, owners, _ = _follow(model, path[:-1])
        known = {name for owner in owners for name in owner.model_fields}
        hint = _gone(path[-1], known) or nearest(path[-1], known)
        return f"unknown setting {'.'.join([*shown, path[-1]])!r}.{hint}"
    shown, owners, description = _follow(model, path)
    name = ".".join(shown)
    tags = sorted(filter(None, map(_tag, owners)))
    if kind == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        return f"unknown {name} {tag!r}.{_gone(tag, tags) or nearest(tag, tags)}"
    if kind == "union_tag_not_found":
        return f"{name} needs a type: one of {', '.join(tags)}; got {error['input']!r}"
    if not path:
        return str(error["msg"]).removeprefix("Value error, ")
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{name} = {error['input']!r}: {message}{f' ({description})' if description else ''}"


def _gone(name: str, known: Collection[str]) -> str:
    """What took the place of a name of an earlier version, if it is one."""
    now = _TOOK_ITS_PLACE.get(name)
    return f" {now!r} took its place." if now is not None and now in known else ""


def _follow(
    model: type[BaseModel], path: list[str]
) -> tuple[list[str], list[type[BaseModel]], str | None]:
    """What a pydantic error's path leads to: the path as the user wrote it, the settings there,
    their description.

    pydantic adds the tag of a union's member to the path, which the user did not write.
    """
    shown: list[str] = []
    here = [model]
    description = None
    for part in path:
        tagged = [owner for owner in here if _tag(owner) == part]
        if (
            len(here) > 1 and tagged
        ):  # before the fields: a member's tag may be the name of another's field
            here = tagged
            continue
        fields = [owner.model_fields[part] for owner in here if part in owner.model_fields]
        if fields:
            description = fields[0].description
            here = [inner for field in fields for inner in _models_in(field.annotation)]
        shown.append(part)
    return shown, here, description


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return field.default if field is not None and isinstance(field.default, str) else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    inner = getattr(annotation, "__args__", ())
    if (
        not inner and isinstance(annotation, type) and issubclass(annotation, BaseModel)
    ):  # on 3.10 tuple[int] is a type
        return [annotation]
    return [m for part in inner for m in _models_in(part)]
