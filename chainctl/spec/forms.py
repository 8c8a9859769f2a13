"""Forms that a value of the chain file can have: a word, a number, yes or no, a choice, servers.

Each form says three things in one place: what the loader takes, what the JSON Schema says
about it, and what a person reads who wrote something else. `schema` gives every key its form.
Regular expressions are such that Python and ECMAScript agree.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from chainctl.spec.words import nearest, quote
from chainctl.spec.yaml_text import PathInFile


class Form(ABC):
    """Used as `Annotated[type, form]`; `validate` raises `refusal(…)` for what it does not take."""

    @abstractmethod
    def validate(self, value: object) -> Any: ...

    @abstractmethod
    def schema(self) -> JsonSchemaValue: ...

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return self.schema()


def refusal(code: str, message: str, at: PathInFile = ()) -> PydanticCustomError:
    """About the value, or about what stands in it `at` that path."""
    # The message goes in as a value: as a template its braces would be read as fields.
    context = {"code": code, "message": message, "at": at}
    return PydanticCustomError("complaint", "{code} {message}", context)


@dataclass(frozen=True)
class Word(Form):
    """A string that matches `pattern` as a whole, turned into a value by `parse`.

    `parse` raises ValueError with a sentence for what the pattern cannot say.
    """

    code: str
    pattern: str
    expected: str
    parse: Callable[[str], Any] = str
    later: str = ""
    """Words of the design that mean something, but not yet (a pattern)."""

    def validate(self, value: object) -> Any:
        if isinstance(value, str) and self.later and re.fullmatch(self.later, value):
            raise refusal("C105", f"`{value}` is not built yet; expected {self.expected}")
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise refusal(self.code, f"expected {self.expected}, found {_not_a_word(value)}")
        try:
            return self.parse(value)
        except ValueError as error:
            raise refusal(self.code, str(error)) from None

    def schema(self) -> JsonSchemaValue:
        if re.fullmatch(r"[a-z|]+", self.pattern):
            return {"type": "string", "enum": self.pattern.split("|")}
        return {"type": "string", "pattern": f"^{self.pattern}$"}


@dataclass(frozen=True)
class Number(Form):
    """From `low` to `high`, both included."""

    code: str
    low: int
    high: int
    whole: bool = True

    def validate(self, value: object) -> int | float:
        number: float = math.nan  # Lies between no two numbers.
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        if self.low <= number <= self.high and not (self.whole and number % 1):
            return int(number) if self.whole else float(number)
        kind = "a whole number" if self.whole else "a number"
        words = f"expected {kind} from {self.low} to {self.high}, found {_describe(value)}"
        raise refusal(self.code, words)

    def schema(self) -> JsonSchemaValue:
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Flag(Form):
    code: str

    def validate(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise refusal(self.code, f"expected `true` or `false`, found {_describe(value)}")
        return value

    def schema(self) -> JsonSchemaValue:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice(Form):
    """One of `words`, or a list of them; read as the set of what they stand for."""

    code: str
    expected: str
    words: Mapping[str, Any]
    always: str = ""
    """A word that has to be among them."""
    may_be_empty: bool = False

    def validate(self, value: object) -> frozenset[Any]:
        written = value if isinstance(value, list) else [value]
        words: list[str] = []
        for number, item in enumerate(written):
            at: PathInFile = (number,) if isinstance(value, list) else ()
            if not isinstance(item, str) or item not in self.words:
                raise refusal(self.code, self.unexpected(item), at)
            if item in words:
                raise refusal(self.code, f"{quote(item)} stands here a second time", at)
            words.append(item)
        if not words and not self.may_be_empty:
            raise refusal(self.code, f"expected {self.expected}, found an empty list")
        if self.always and self.always not in words:
            raise refusal(self.code, f"`{self.always}` has to be among them")
        return frozenset(self.words[word] for word in words)

    def unexpected(self, item: object) -> str:
        words = f"expected {self.expected}, found {_not_a_word(item)}"
        meant = nearest(item, self.words) if isinstance(item, str) and len(item) > 2 else ""
        return f"{words}.{meant}" if meant else words

    def schema(self) -> JsonSchemaValue:
        word: JsonSchemaValue = {"type": "string"}
        if len(self.words) > 20:
            word["pattern"] = f"^({'|'.join(self.words)})$"
        else:
            word["enum"] = list(self.words)
        several = {"type": "array", "items": word, "uniqueItems": True}
        if self.always:
            several["contains"] = {"const": self.always}
        elif not self.may_be_empty:
            several["minItems"] = 1
        return {"anyOf": [{"const": self.always} if self.always else word, several]}


@dataclass(frozen=True)
class Account:
    """One key for many servers: a profile of the provider, and the list of its servers."""

    account: str
    list: str
    """Both are paths, relative to the chain file."""


Source: TypeAlias = str | Account
"""Where servers of a pool come from; a string is a path or pattern of profiles."""


@dataclass(frozen=True)
class Servers(Form):
    """A source, or a list of them."""

    def validate(self, value: object) -> tuple[Source, ...]:
        if not isinstance(value, list):
            return (_source(value, ()),)
        if not value:
            raise refusal("C117", "expected at least one path or pattern, found an empty list")
        return tuple(_source(item, (number,)) for number, item in enumerate(value))

    def schema(self) -> JsonSchemaValue:
        path = {"type": "string", "minLength": 1}
        account = {
            "type": "object",
            "properties": {"account": path, "list": path},
            "required": ["account", "list"],
            "additionalProperties": False,
        }
        source = [path | {"not": {"const": "vault"}}, account]
        several = {"type": "array", "items": {"anyOf": source}, "minItems": 1}
        return {"anyOf": [*source, several]}


def _source(value: object, at: PathInFile) -> Source:
    if value == "vault" or (isinstance(value, dict) and "vault" in value):
        raise refusal("C105", "servers from Vault are not built yet; name files here", at)
    if isinstance(value, dict):
        return _account(value, at)
    if not isinstance(value, str) or not value:
        expected = (
            "a path or pattern such as `./profiles/*.conf`, `{account: …, list: …}`, "
            "or a list of them"
        )
        raise refusal("C117", f"expected {expected}, found {_not_a_word(value)}", at)
    return value


def _account(value: Mapping[str, object], at: PathInFile) -> Account:
    keys = ("account", "list")
    for key in value:
        if key not in keys:
            meant = nearest(key, keys) or " Expected `account` and `list`."
            raise refusal("C117", f"the key {quote(key)} is unknown here.{meant}", (*at, key))
    for key in keys:
        path = value.get(key)
        if key not in value:
            raise refusal("C117", f"`{key}` is missing: expected `{{account: …, list: …}}`", at)
        if not isinstance(path, str) or not path:
            raise refusal("C117", f"expected a path, found {_not_a_word(path)}", (*at, key))
    return Account(str(value["account"]), str(value["list"]))


def _not_a_word(value: object) -> str:
    reason = ", which is not a word" if isinstance(value, bool | int | float) else ""
    return _describe(value) + reason


def _describe(value: object) -> str:
    match value:
        case None | "":
            return "nothing"
        case bool() | int() | float():
            return quote(json.dumps(value))
        case dict():
            return "keys"
        case list():
            return "a list"
    return quote(value)
