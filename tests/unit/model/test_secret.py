from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import pytest

from chainctl.model.secret import Secret

KEY = "4GgaQCy68nzNsUE5aJ9fuLzHhB65tAlwbmA72MWnOm8="


@dataclass(frozen=True)
class _Holder:
    key: Secret


def test_nothing_that_prints_shows_it() -> None:
    secret = Secret(KEY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        "%s" % secret,  # noqa: UP031
        repr(_Holder(secret)),
        json.dumps({"key": secret}, default=str),
        repr([secret]),
    ]
    assert not [text for text in shown if KEY in text]
    assert repr(secret) == "Secret(…)"
    assert secret.reveal() == KEY


@pytest.mark.parametrize("leak", [copy.deepcopy, copy.copy, pickle.dumps, vars])
def test_no_copy_carries_it_away(leak: object) -> None:
    assert callable(leak)
    with pytest.raises(TypeError):
        leak(Secret(KEY))


def test_compares_and_digests_by_content() -> None:
    assert Secret(KEY) == Secret(KEY)
    assert Secret(KEY) != Secret(KEY.lower())
    assert Secret(KEY) != KEY
    assert len({Secret(KEY), Secret(KEY), Secret("")}) == 2
    assert Secret(KEY).digest() == Secret(KEY).digest() != Secret("").digest()
    assert KEY not in Secret(KEY).digest()
