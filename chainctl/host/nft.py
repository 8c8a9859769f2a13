"""The one door to nftables: libnftables by ctypes, in the namespace of the calling thread.

The library is what the `nft` program itself is made of (libnftables(3)); in process one
transaction takes about a millisecond instead of a process start. A context is made for each
call because its netlink socket belongs to the namespace in which it was opened.
"""

from __future__ import annotations

import ctypes
import functools
import json
from typing import Any

from chainctl.errors import MendHost

_STATELESS = 1 << 2  # NFT_CTX_OUTPUT_* of nftables/libnftables.h
_TERSE = 1 << 11
_JSON = 1 << 4
_NUMERIC = 0b1111 << 7


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise MendHost(
            "C304", "libnftables is not installed", hint="install the package nftables"
        ) from None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
        getattr(lib, name).restype = ctypes.c_char_p
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.nft_run_cmd_from_buffer.restype = ctypes.c_int
    return lib


class NftError(MendHost):
    """nftables refused a transaction; nothing of it was applied."""


def apply(commands: str) -> None:
    """Apply `commands` as one transaction: all of it or nothing. Raises NftError C305."""
    _run(commands, flags=0)


def read_table(family: str, table: str) -> str | None:
    """The table without counters and without what its named sets hold; None when there is none.

    Two readings of an unchanged table are equal, so that a hash of it shows tampering.
    """
    try:
        return _run(f"list table {family} {table}\n", flags=_STATELESS | _NUMERIC | _TERSE)
    except NftError as error:
        if "No such file or directory" in error.message:
            return None
        raise


def read_json(command: str) -> Any:
    """The answer to `command` (for example `list ruleset`) as parsed JSON."""
    return json.loads(_run(command, flags=_JSON))


def _run(commands: str, *, flags: int) -> str:
    lib = _library()
    ctx = lib.nft_ctx_new(0)
    try:
        lib.nft_ctx_buffer_output(ctx)
        lib.nft_ctx_buffer_error(ctx)
        lib.nft_ctx_output_set_flags(ctx, flags)
        failed = lib.nft_run_cmd_from_buffer(ctx, commands.encode())
        if failed:
            words = (lib.nft_ctx_get_error_buffer(ctx) or b"").decode().strip()
            raise NftError("C305", f"nftables refused: {words}")
        return (lib.nft_ctx_get_output_buffer(ctx) or b"").decode()
    finally:
        lib.nft_ctx_free(ctx)
