"""The C side of `chainctl.net.libbpf`: structs, signatures and errors of `libbpf.so.1`.

libbpf 1.x returns a negative errno, or NULL with errno set; its option structs grow at the end
and begin with their own size, so what is declared here keeps working with every later
`libbpf.so.1`.
"""

from __future__ import annotations

import ctypes as c
import errno
import functools
import os
from collections import deque
from typing import Any

from chainctl.errors import MendHost


class BpfError(MendHost):
    """The kernel or libbpf refused a call; `errno` says why."""

    def __init__(self, call: str, number: int, *, code: str = "C322", hint: str = "") -> None:
        super().__init__(code, f"{call}: {os.strerror(number)}", hint=hint)
        self.errno = number


words: deque[str] = deque(maxlen=20)
"""What libbpf said last. Its callback has no context, so there is one for the process."""


class Options(c.Structure):
    @classmethod
    def new(cls, **values: Any) -> Any:
        return cls(sz=c.sizeof(cls), **values)


class OpenOptions(Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("object_name", c.c_char_p),
        ("relaxed_maps", c.c_bool),
        ("pin_root_path", c.c_char_p),
        ("unused", c.c_uint32),
        ("kconfig", c.c_char_p),
        ("btf_custom_path", c.c_char_p),
    ]


class TcHook(Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("ifindex", c.c_int),
        ("attach_point", c.c_int),
        ("parent", c.c_uint32),
        ("tail", c.c_uint32),
    ]


class TcOptions(Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("prog_fd", c.c_int),
        ("flags", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("handle", c.c_uint32),
        ("priority", c.c_uint32),
        ("tail", c.c_uint32),
    ]


class BatchOptions(Options):
    _fields_ = [("sz", c.c_size_t), ("elem_flags", c.c_uint64), ("flags", c.c_uint64)]


class QueryOptions(Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("query_flags", c.c_uint32),
        ("attach_flags", c.c_uint32),
        ("prog_ids", c.c_void_p),
        ("prog_cnt", c.c_uint32),
        ("prog_attach_flags", c.c_void_p),
    ]


class RunOptions(Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("data_in", c.c_void_p),
        ("data_out", c.c_void_p),
        ("data_size_in", c.c_uint32),
        ("data_size_out", c.c_uint32),
        ("ctx_in", c.c_void_p),
        ("ctx_out", c.c_void_p),
        ("ctx_size_in", c.c_uint32),
        ("ctx_size_out", c.c_uint32),
        ("retval", c.c_uint32),
        ("repeat", c.c_int),
        ("duration", c.c_uint32),
        ("flags", c.c_uint32),
        ("cpu", c.c_uint32),
        ("batch_size", c.c_uint32),
    ]


class RawProgramInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("tag", c.c_uint8 * 8),
        ("jited_prog_len", c.c_uint32),
        ("xlated_prog_len", c.c_uint32),
        ("jited_prog_insns", c.c_uint64),
        ("xlated_prog_insns", c.c_uint64),
        ("load_time", c.c_uint64),
        ("created_by_uid", c.c_uint32),
        ("nr_map_ids", c.c_uint32),
        ("map_ids", c.c_uint64),
        ("name", c.c_char * 16),
    ]


class RawMapInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * 16),
    ]


RING_CALLBACK = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t)
_PRINT_CALLBACK = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)

_P, _I, _U, _S, _Q = c.c_void_p, c.c_int, c.c_uint32, c.c_char_p, c.c_uint64
_ANSWER_ERRNO: dict[str, list[Any]] = {
    "bpf_object__load": [_P],
    "bpf_program__fd": [_P],
    "bpf_map__fd": [_P],
    "bpf_map__set_max_entries": [_P, _U],
    "bpf_map__reuse_fd": [_P, _I],
    "bpf_map__pin": [_P, _S],
    "bpf_map__set_initial_value": [_P, _P, c.c_size_t],
    "bpf_map_create": [_I, _S, _U, _U, _U, _P],
    "bpf_map_update_elem": [_I, _P, _P, _Q],
    "bpf_map_update_batch": [_I, _P, _P, _P, _P],
    "bpf_map_lookup_elem": [_I, _P, _P],
    "bpf_map_lookup_batch": [_I, _P, _P, _P, _P, _P, _P],
    "bpf_map_delete_elem": [_I, _P],
    "bpf_map_get_next_key": [_I, _P, _P],
    "bpf_map_get_fd_by_id": [_U],
    "bpf_prog_get_fd_by_id": [_U],
    "bpf_prog_get_next_id": [_U, _P],
    "bpf_prog_query_opts": [_I, _I, _P],
    "bpf_prog_test_run_opts": [_I, _P],
    "bpf_obj_get": [_S],
    "bpf_obj_get_info_by_fd": [_I, _P, _P],
    "bpf_tc_hook_create": [_P],
    "bpf_tc_attach": [_P, _P],
    "bpf_tc_detach": [_P, _P],
    "ring_buffer__consume": [_P],
    "libbpf_num_possible_cpus": [],
}
_ANSWER_POINTER: dict[str, list[Any]] = {
    "bpf_object__open_file": [_S, _P],
    "bpf_object__find_program_by_name": [_P, _S],
    "bpf_object__find_map_by_name": [_P, _S],
    "ring_buffer__new": [_I, RING_CALLBACK, _P, _P],
}


@functools.cache
def lib() -> c.CDLL:
    try:
        loaded = c.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise MendHost(
            "C322", "libbpf is not installed", hint="install the package libbpf1"
        ) from None
    for name, arguments in (_ANSWER_ERRNO | _ANSWER_POINTER).items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = _P if name in _ANSWER_POINTER else _I
        function.errcheck = _raise_for_null if name in _ANSWER_POINTER else _raise_for_errno
    loaded.bpf_object__close.argtypes = [_P]
    loaded.bpf_object__next_map.argtypes = [_P, _P]
    loaded.bpf_object__next_map.restype = _P
    loaded.bpf_map__name.argtypes = [_P]
    loaded.bpf_map__name.restype = _S
    for name in ("bpf_map__key_size", "bpf_map__value_size", "bpf_map__max_entries"):
        getattr(loaded, name).argtypes = [_P]
        getattr(loaded, name).restype = _U
    loaded.ring_buffer__free.argtypes = [_P]
    loaded.libbpf_set_print.argtypes = [_PRINT_CALLBACK]
    loaded.libbpf_set_print.restype = _P
    loaded.libbpf_set_print(_PRINT)
    return loaded


def _raise_for_errno(answer: int, function: Any, _arguments: object) -> int:
    if answer < 0:
        raise BpfError(function.__name__, -answer)
    return answer


def _raise_for_null(answer: int | None, function: Any, _arguments: object) -> int:
    if not answer:
        raise BpfError(function.__name__, c.get_errno() or errno.ENOENT)
    return answer


def _listen(level: int, template: bytes, arguments: int) -> int:
    """Keep warnings for an error message; without this libbpf prints them on stderr."""
    if level == 0:
        line = c.create_string_buffer(512)
        c.CDLL(None).vsnprintf(line, len(line), template, c.c_void_p(arguments))
        words.append(line.value.decode(errors="replace").removeprefix("libbpf: ").strip())
    return 0


_PRINT = _PRINT_CALLBACK(_listen)
