"""What becomes of the directives of an OpenVPN profile that say nothing about the server.

By name: those that chainctl does the same way or in its own way, and those it refuses. What is
used is in `chainctl.spec.openvpn_profile`; what stands in neither is unknown. Names: openvpn(8),
options.c of 2.4 to 2.7.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    code: str
    reason: str


@dataclass(frozen=True)
class Refused:
    code: str
    reason: str
    """What it would do, and the way out."""


def names_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(kind: Dropped | Refused, names: str) -> dict[str, Dropped | Refused]:
    return dict.fromkeys(names.split(), kind)


SAME = names_of(
    "auth-nocache bind client nobind persist-key persist-tun pull remote-random resolv-retry"
    " route-noexec route-nopull ifconfig-noexec tls-client"
)
"""Means what every tunnel here does anyway, or what the order of candidates says."""

_OWN = Dropped("N105", "chainctl does that itself")
_PINNED = Dropped("N105", "addresses and ports of a tunnel are pinned")
_ROUTES = Dropped("N108", "a chain carries everything, by routes of its own")
_RESOLVER = Dropped("N103", "devices ask the resolver of the chain, nothing else is changed")
_SIX = Dropped("N101", "chains carry IPv4 only")
_TUNING = Dropped("N109", "tuning of this machine, the same for every tunnel")
_TELLS = Dropped("N109", "the server is told nothing about this machine")
_SYSTEM = Dropped("N109", "made for another system")
_TIMERS = Dropped("N105", "chainctl watches servers by timers of its own")

_EXECUTES = Refused("C221", "runs a program or loads code on this machine; remove the line")
_FILES = Refused("C222", "reads or writes a file of this machine; remove the line")
_ELSEWHERE = Refused(
    "C223", "sends the tunnel another way than to the server; remove the line, hops do that"
)
_CONTROLS = Refused("C224", "takes the client out of chainctl's hands; remove the line")
_SERVERS = Refused("C224", "belongs to a server, a hop is a client; take the client's profile")
_PERSON = Refused("C229", "needs a person, or a device beside the machine; such hops are not built")

TABLE: dict[str, Dropped | Refused] = {
    **_table(
        _OWN,
        "allow-compression comp-noadapt compat-mode daemon disable-dco disable-occ down-pre"
        " errors-to-stderr group key-method keysize link-mtu machine-readable-output"
        " mlock mssfix mtu-disc mtu-dynamic mtu-test mute mute-replay-warnings ncp-disable nice"
        " opt-verify prng pull-filter"
        " replay-window script-security single-session status-version suppress-timestamps syslog"
        " tls-exit tun-mtu-extra tun-mtu-max udp-mtu up-delay up-restart user verb",
    ),
    **_table(_PINNED, "float lport persist-local-ip persist-remote-ip preresolve"),
    **_table(
        _TIMERS,
        "connect-retry connect-retry-max connect-timeout hand-window inactive keepalive ping"
        " ping-exit ping-restart ping-timer-rem remap-usr1 reneg-bytes reneg-pkts"
        " server-poll-timeout session-timeout tls-timeout tran-window auth-retry",
    ),
    **_table(
        _ROUTES,
        "allow-pull-fqdn allow-recursive-routing block-local ifconfig ifconfig-nowarn max-routes"
        " redirect-gateway redirect-private route route-delay route-gateway route-metric"
        " route-table topology",
    ),
    **_table(_RESOLVER, "block-outside-dns dns register-dns"),
    **_table(
        _SIX, "block-ipv6 ifconfig-ipv6 ip-remote-hint route-ipv6 route-ipv6-gateway tun-ipv6"
    ),
    **_table(
        _TUNING,
        "bcast-buffers fast-io passtos rcvbuf shaper sndbuf socket-flags tcp-nodelay txqueuelen",
    ),
    **_table(_TELLS, "echo parameter push-peer-info setenv-safe"),
    **_table(
        _SYSTEM,
        "allow-nonadmin dhcp-internal dhcp-pre-release dhcp-release dhcp-renew ip-win32"
        " pause-exit rdns-internal route-method service show-net-up tap-sleep win-sys"
        " windows-driver",
    ),
    **_table(
        _EXECUTES,
        "auth-user-pass-verify client-connect client-crresponse client-disconnect dns-updown"
        " down engine ipchange iproute learn-address pkcs11-providers plugin providers"
        " route-pre-down route-up tls-crypt-v2-verify tls-verify up",
    ),
    **_table(
        _FILES,
        "askpass auth-gen-token-secret capath cd chroot client-config-dir config dev-node dh"
        " genkey http-proxy-user-pass ifconfig-pool-persist log log-append memstats"
        " replay-persist status tls-export-cert tmp-dir writepid",
    ),
    **_table(
        _ELSEWHERE,
        "bind-dev http-proxy http-proxy-option http-proxy-override http-proxy-retry"
        " http-proxy-timeout local mark multihome port-share proto-force"
        " remote-random-hostname socks-proxy socks-proxy-retry",
    ),
    **_table(
        _CONTROLS,
        "auth-token auth-token-user client-nat compat-names force-tls-key-material-export"
        " gremlin help inetd keying-material-exporter lladdr management"
        " management-client management-client-auth management-client-group"
        " management-client-user management-external-cert management-external-key"
        " management-forget-disconnect management-hold management-log-cache"
        " management-query-passwords management-query-proxy management-query-remote"
        " management-signal management-up-down mktun msg-channel no-iv no-name-remapping"
        " no-replay rmtun setcon show-adapters show-ciphers show-curves show-digests"
        " show-engines show-gateway show-groups show-net show-pkcs11-ids show-tls"
        " show-valid-subnets test-crypto version x509-track x509-username-field"
        " allow-deprecated-insecure-static-crypto",
    ),
    **_table(
        _SERVERS,
        "auth-gen-token auth-user-pass-optional ccd-exclusive client-cert-not-required"
        " client-to-client connect-freq connect-freq-initial disable duplicate-cn ecdh-curve"
        " hash-size ifconfig-ipv6-pool ifconfig-ipv6-push ifconfig-pool ifconfig-push"
        " ifconfig-push-constraint iroute iroute-ipv6 max-clients max-packet-size"
        " max-routes-per-client override-username push push-remove push-reset server"
        " server-bridge server-ipv6 stale-routes-check tcp-queue-limit tls-crypt-v2-max-age"
        " tls-server username-as-common-name verify-client-cert vlan-accept vlan-pvid"
        " vlan-tagging",
    ),
    **_table(
        _PERSON,
        "cryptoapicert management-external-pin pkcs11-cert-private pkcs11-id"
        " pkcs11-id-management pkcs11-pin-cache pkcs11-private-mode"
        " pkcs11-protected-authentication static-challenge",
    ),
    "pkcs12": Refused(
        "C222", "reads a file; write its parts as PEM into `<ca>`, `<cert>` and `<key>`"
    ),
    "verify-hash": Refused(
        "C229", "pins a CA by its hash; put the CA into `<ca>`, or use peer-fingerprint"
    ),
    "tls-remote": Refused(
        "C229", "is understood no more by clients; write `verify-x509-name NAME name`"
    ),
    "secret": Refused(
        "C229", "one key for ever, without TLS: whoever gets it reads all; ask for a TLS profile"
    ),
}

_RESOLV_CONF = re.compile(
    r"(/[A-Za-z0-9._-]+)*/?(update-resolv-conf|update-systemd-resolved)(\.sh)?"
)


def is_resolver_script(name: str, words: Sequence[str]) -> bool:
    """The two scripts that providers name to set the resolver: with them no tunnel is missed.

    Nothing but the bare path: with an argument it is a command line.
    """
    hook = name in ("up", "down", "route-up", "route-pre-down")
    return hook and len(words) == 1 and bool(_RESOLV_CONF.fullmatch(words[0]))
