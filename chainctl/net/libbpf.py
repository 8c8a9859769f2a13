"""A thin ctypes binding over `libbpf.so.1`: what the filter needs of it, nothing else.

`chainctl.net.filter` is its only caller. libbpf 1.x returns a negative errno, or NULL with
errno set; its option structs grow at the end and begin with their own size, so what is declared
here keeps working with every later `libbpf.so.1`. Nothing here looks at a namespace except where
it says so.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import errno
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chainctl.errors import MendHost

LRU_HASH = 9


class BpfError(MendHost):
    """The kernel or libbpf refused a call; `errno` says why."""

    def __init__(self, call: str, number: int, *, code: str = "C322", hint: str = "") -> None:
        super().__init__(code, f"{call}: {os.strerror(number)}", hint=hint)
        self.errno = number


class ProgramInfo(NamedTuple):
    """What the kernel says about a loaded program. `tag` is a hash over its instructions."""

    id: int
    name: str
    tag: bytes
    maps: frozenset[int]


class MapInfo(NamedTuple):
    id: int
    name: str
    key_size: int
    value_size: int
    max_entries: int


class Map:
    """A map by its descriptor, which belongs to whoever opened it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = read_map_info(fd)

    def put(self, key: bytes, value: bytes) -> None:
        self._check(key, value)
        _lib().bpf_map_update_elem(self.fd, key, value, 0)

    def put_all(self, rows: Mapping[bytes, bytes]) -> None:
        """Write all rows with one call. The caller has checked that they fit."""
        if not rows:
            return
        for key, value in rows.items():
            self._check(key, value)
        count, options = c.c_uint32(len(rows)), _BatchOptions.new()
        keys, values = b"".join(rows), b"".join(rows.values())
        _lib().bpf_map_update_batch(self.fd, keys, values, c.byref(count), c.byref(options))

    def get(self, key: bytes, size: int | None = None) -> bytes | None:
        """The value; of a per-CPU map it has `size` bytes, one value for each possible CPU."""
        value = c.create_string_buffer(size or self.info.value_size)
        with _absent_is_fine():
            _lib().bpf_map_lookup_elem(self.fd, key, value)
            return value.raw
        return None

    def drop(self, key: bytes) -> None:
        """Remove the row, if there is one."""
        with _absent_is_fine():
            _lib().bpf_map_delete_elem(self.fd, key)

    def scan(self) -> Iterator[bytes]:
        """The keys, one call each; for maps that have no batches."""
        key, following = None, c.create_string_buffer(self.info.key_size)
        with _absent_is_fine():
            while True:
                _lib().bpf_map_get_next_key(self.fd, key, following)
                key = following.raw
                yield key

    def rows(self) -> dict[bytes, bytes]:
        """Everything in a map that can be read in batches: one call, 12 ms for 60 000 rows."""
        size = self.info.max_entries
        keys = c.create_string_buffer(size * self.info.key_size)
        values = c.create_string_buffer(size * self.info.value_size)
        cursor = c.create_string_buffer(max(self.info.key_size, 8))
        count, options = c.c_uint32(size), _BatchOptions.new()
        with _absent_is_fine():
            _lib().bpf_map_lookup_batch(
                self.fd, None, cursor, keys, values, c.byref(count), c.byref(options)
            )
        return dict(
            zip(
                _pieces(keys, count.value, self.info.key_size),
                _pieces(values, count.value, self.info.value_size),
                strict=True,
            )
        )

    def _check(self, key: bytes, value: bytes) -> None:
        if (len(key), len(value)) != (self.info.key_size, self.info.value_size):
            raise ValueError(f"{self.info.name}: a row of {len(key)} + {len(value)} bytes")


def _pin(root: Path | None, name: str) -> Path:
    if root is None:
        raise ValueError(f"{name} is pinned, but where?")
    return root / name


def _pieces(buffer: c.Array[c.c_char], count: int, size: int) -> Iterator[bytes]:
    whole = memoryview(buffer)[: count * size].tobytes()
    return (whole[at : at + size] for at in range(0, len(whole), size))


class Object:
    """A loaded object file. Its maps are pinned by name under `pin_root`, or found there.

    libbpf does that for maps which say so; it cannot find a DEVMAP again, to which the kernel
    adds a flag, so those are named in `device_maps`.
    """

    def __init__(
        self,
        path: Path,
        *,
        pin_root: Path | None = None,
        device_maps: Sequence[str] = (),
        sizes: Mapping[str, int] | None = None,
        constants: Mapping[str, bytes] | None = None,
    ) -> None:
        """Open and load. `sizes` replaces `max_entries`, `constants` a section's contents.

        Raises MendHost C320 when a pinned map was made for another layout, C322 when the file
        is missing or the kernel refuses the programs (libbpf's last words in the message).
        """
        lib = _lib()
        options = _OpenOptions.new(pin_root_path=str(pin_root).encode() if pin_root else None)
        _words.clear()
        self._object = lib.bpf_object__open_file(str(path).encode(), c.byref(options))
        try:
            for name, entries in (sizes or {}).items():
                lib.bpf_map__set_max_entries(self._find_map(name), entries)
            for name, content in (constants or {}).items():
                lib.bpf_map__set_initial_value(self._find_map(name), content, len(content))
            pins = {name: _pin(pin_root, name) for name in device_maps}
            made = [name for name, pin in pins.items() if not self._reuse(name, pin)]
            lib.bpf_object__load(self._object)
            for name in made:
                lib.bpf_map__pin(self._find_map(name), bytes(pins[name]))
        except BpfError as error:
            self.close()
            raise _why_not_loaded(path, error) from error

    def close(self) -> None:
        """Give back every descriptor. What is pinned or attached stays."""
        _lib().bpf_object__close(self._object)

    def program(self, name: str) -> int:
        """The descriptor of a program; it belongs to the object."""
        lib = _lib()
        found = lib.bpf_object__find_program_by_name(self._object, name.encode())
        return int(lib.bpf_program__fd(found))

    def maps(self) -> dict[str, Map]:
        """All maps by their names in the source."""
        lib = _lib()
        found: dict[str, Map] = {}
        at = lib.bpf_object__next_map(self._object, None)
        while at:
            found[lib.bpf_map__name(at).decode()] = Map(lib.bpf_map__fd(at))
            at = lib.bpf_object__next_map(self._object, at)
        return found

    def _reuse(self, name: str, pin: Path) -> bool:
        """Take the pinned map instead of a new one; False when there is none."""
        with _absent_is_fine(), _closing(_lib().bpf_obj_get(bytes(pin))) as fd:
            there, ours = read_map_info(fd), self._find_map(name)
            sizes = _lib().bpf_map__key_size(ours), _lib().bpf_map__value_size(ours)
            if (*sizes, _lib().bpf_map__max_entries(ours)) != there[2:]:
                _words.append(f"pinned map at {pin}: parameter mismatch")
                raise BpfError("reuse", errno.EINVAL)
            _lib().bpf_map__reuse_fd(ours, fd)
            return True
        return False

    def _find_map(self, name: str) -> int:
        return int(_lib().bpf_object__find_map_by_name(self._object, name.encode()))


class Ring:
    """The reading end of a ring buffer; there may be only one at a time."""

    def __init__(self, fd: int, receive: Callable[[bytes], None]) -> None:
        def take(_context: int, data: int, size: int) -> int:
            receive(c.string_at(data, size))
            return 0

        self._callback = _RING_CALLBACK(take)  # ctypes does not keep it alive
        self._ring = _lib().ring_buffer__new(fd, self._callback, None, None)

    def consume(self) -> None:
        """Hand on what has arrived; does not wait."""
        _lib().ring_buffer__consume(self._ring)

    def close(self) -> None:
        _lib().ring_buffer__free(self._ring)


def read_program_info(fd: int) -> ProgramInfo:
    ids = (c.c_uint32 * 64)()
    info = _ProgramInfo(nr_map_ids=len(ids), map_ids=c.addressof(ids))
    size = c.c_uint32(c.sizeof(info))
    _lib().bpf_obj_get_info_by_fd(fd, c.byref(info), c.byref(size))
    maps = frozenset(ids[: info.nr_map_ids])
    return ProgramInfo(info.id, info.name.decode(), bytes(info.tag), maps)


def read_map_info(fd: int) -> MapInfo:
    info = _MapInfo()
    size = c.c_uint32(c.sizeof(info))
    _lib().bpf_obj_get_info_by_fd(fd, c.byref(info), c.byref(size))
    return MapInfo(info.id, info.name.decode(), info.key_size, info.value_size, info.max_entries)


@contextlib.contextmanager
def program_by_id(number: int) -> Iterator[int]:
    """A descriptor of a loaded program, closed at the end."""
    with _closing(_lib().bpf_prog_get_fd_by_id(number)) as fd:
        yield fd


@contextlib.contextmanager
def map_by_id(number: int) -> Iterator[Map]:
    with _closing(_lib().bpf_map_get_fd_by_id(number)) as fd:
        yield Map(fd)


def pinned_id(pin: Path) -> int | None:
    """The id of the map pinned there; None when there is no such pin."""
    with _absent_is_fine(), _closing(_lib().bpf_obj_get(str(pin).encode())) as fd:
        return read_map_info(fd).id
    return None


@contextlib.contextmanager
def new_map(kind: int, name: str, key_size: int, value_size: int, entries: int) -> Iterator[int]:
    """A map that lives on only if it is put somewhere before the end of the block."""
    made = _lib().bpf_map_create(kind, name.encode(), key_size, value_size, entries, None)
    with _closing(made) as fd:
        yield fd


def possible_cpus() -> int:
    return int(_lib().libbpf_num_possible_cpus())


INGRESS, EGRESS = 1, 2


def ensure_clsact(ifindex: int) -> None:
    """The qdisc of both hooks, on a link of the calling thread's namespace."""
    hook = _TcHook.new(ifindex=ifindex, attach_point=INGRESS | EGRESS)
    try:
        _lib().bpf_tc_hook_create(c.byref(hook))
    except BpfError as error:
        if error.errno != errno.EEXIST:
            raise


def attach(ifindex: int, where: int, program: int, handle: int, priority: int) -> None:
    """Add the program, or put it in the place of the one with this handle: no packet between."""
    hook = _TcHook.new(ifindex=ifindex, attach_point=where)
    options = _TcOptions.new(prog_fd=program, flags=1, handle=handle, priority=priority)
    _lib().bpf_tc_attach(c.byref(hook), c.byref(options))


def detach(ifindex: int, where: int, handle: int, priority: int) -> None:
    hook = _TcHook.new(ifindex=ifindex, attach_point=where)
    options = _TcOptions.new(handle=handle, priority=priority)
    _lib().bpf_tc_detach(c.byref(hook), c.byref(options))


def tcx_programs(ifindex: int, where: int) -> list[int]:
    """The programs that run before every filter of clsact; none before Linux 6.6."""
    ids = (c.c_uint32 * 64)()
    options = _QueryOptions.new(prog_ids=c.addressof(ids), prog_cnt=len(ids))
    try:
        _lib().bpf_prog_query_opts(ifindex, {INGRESS: 46, EGRESS: 47}[where], c.byref(options))
    except BpfError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return []
        raise
    return list(ids[: options.prog_cnt])


def run_program(fd: int, frame: bytes, context: bytes = b"") -> int:
    """What the program answers to a frame (BPF_PROG_TEST_RUN); `context` is a `__sk_buff`."""
    data = c.create_string_buffer(frame, len(frame))
    about = c.create_string_buffer(context, len(context))
    options = _RunOptions.new(
        data_in=c.addressof(data),
        data_size_in=len(frame),
        ctx_in=c.addressof(about) if context else None,
        ctx_size_in=len(context),
        repeat=1,
    )
    _lib().bpf_prog_test_run_opts(fd, c.byref(options))
    return c.c_int32(options.retval).value


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise


_words: deque[str] = deque(maxlen=20)
"""What libbpf said last. Its callback has no context, so there is one for the process."""


def _why_not_loaded(path: Path, error: BpfError) -> MendHost:
    said = "; ".join(word for word in _words if word)
    if "parameter mismatch" in said:
        return MendHost(
            "C320",
            f"the pinned maps were made by another version: {said}",
            hint="chainctl down, then chainctl up: the filter's maps are made anew",
        )
    return BpfError(f"{path.name}: {said}", error.errno)


class _Options(c.Structure):
    @classmethod
    def new(cls, **values: Any) -> Any:
        return cls(sz=c.sizeof(cls), **values)


class _OpenOptions(_Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("object_name", c.c_char_p),
        ("relaxed_maps", c.c_bool),
        ("pin_root_path", c.c_char_p),
        ("unused", c.c_uint32),
        ("kconfig", c.c_char_p),
        ("btf_custom_path", c.c_char_p),
    ]


class _TcHook(_Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("ifindex", c.c_int),
        ("attach_point", c.c_int),
        ("parent", c.c_uint32),
        ("tail", c.c_uint32),
    ]


class _TcOptions(_Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("prog_fd", c.c_int),
        ("flags", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("handle", c.c_uint32),
        ("priority", c.c_uint32),
        ("tail", c.c_uint32),
    ]


class _BatchOptions(_Options):
    _fields_ = [("sz", c.c_size_t), ("elem_flags", c.c_uint64), ("flags", c.c_uint64)]


class _QueryOptions(_Options):
    _fields_ = [
        ("sz", c.c_size_t),
        ("query_flags", c.c_uint32),
        ("attach_flags", c.c_uint32),
        ("prog_ids", c.c_void_p),
        ("prog_cnt", c.c_uint32),
        ("prog_attach_flags", c.c_void_p),
    ]


class _RunOptions(_Options):
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


class _ProgramInfo(c.Structure):
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


class _MapInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * 16),
    ]


_RING_CALLBACK = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t)
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
    "ring_buffer__new": [_I, _RING_CALLBACK, _P, _P],
}


@functools.cache
def _lib() -> c.CDLL:
    try:
        lib = c.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise MendHost(
            "C322", "libbpf is not installed", hint="install the package libbpf1"
        ) from None
    for name, arguments in (_ANSWER_ERRNO | _ANSWER_POINTER).items():
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = _P if name in _ANSWER_POINTER else _I
        function.errcheck = _raise_for_null if name in _ANSWER_POINTER else _raise_for_errno
    lib.bpf_object__close.argtypes = [_P]
    lib.bpf_object__next_map.argtypes = [_P, _P]
    lib.bpf_object__next_map.restype = _P
    lib.bpf_map__name.argtypes = [_P]
    lib.bpf_map__name.restype = _S
    for name in ("bpf_map__key_size", "bpf_map__value_size", "bpf_map__max_entries"):
        getattr(lib, name).argtypes = [_P]
        getattr(lib, name).restype = _U
    lib.ring_buffer__free.argtypes = [_P]
    lib.libbpf_set_print.argtypes = [_PRINT_CALLBACK]
    lib.libbpf_set_print.restype = _P
    lib.libbpf_set_print(_PRINT)
    return lib


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
        _words.append(line.value.decode(errors="replace").removeprefix("libbpf: ").strip())
    return 0


_PRINT = _PRINT_CALLBACK(_listen)
