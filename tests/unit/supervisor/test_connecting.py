"""When an OpenVPN client may try again, also after the clock was set back."""

from __future__ import annotations

import pytest

from chainctl.model.fault import Fault, Said
from chainctl.runtime.openvpn import OpenVpnStatus
from chainctl.runtime.openvpn_words import Account, State
from chainctl.supervisor.connecting import LOGIN_PAUSE, _is_of, _may_go_on

NOW = 1_795_272_000.0


def refused(at: float) -> OpenVpnStatus:
    account = Account(said=Said(Fault.AUTH, "refused the login"), said_at=at)
    return OpenVpnStatus(None, State("RECONNECTING"), account, 0, 0, waits=True)


@pytest.mark.parametrize(
    ("ago", "may"), [(0, False), (1, False), (LOGIN_PAUSE, True), (-1000, True)]
)
def test_a_pause_ends_and_none_is_longer_for_a_clock_that_was_set_back(
    ago: float, may: bool
) -> None:
    assert _may_go_on(refused(NOW - ago), NOW) is may


@pytest.mark.parametrize(
    ("at", "is_new"), [(-1, False), (0, True), (3, True), (4, True), (6, False)]
)
def test_a_complaint_of_before_or_of_a_time_to_come_is_old(at: float, is_new: bool) -> None:
    assert _is_of(refused(NOW + at), int(NOW), NOW + 3) is is_new
