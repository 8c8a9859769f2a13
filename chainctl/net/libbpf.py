"""A thin ctypes binding over `libbpf.so.1`: what the filter needs of it, nothing else.

Called by `chainctl.net.filter` and `chainctl.net.clsact`; the declarations are in
`chainctl.net.libbpf_abi`. A link is always one of the calling thread's namespace.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import errno
import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from chainctl.errors import MendHost
from chainctl.net import libbpf_abi as abi
from chainctl.net.libbpf_abi import BpfError

LRU_HASH = 9


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
        self._reading = threading.Lock()
        self._room: tuple[mmap.mmap, mmap.mmap] | None = None

    def put(self, key: bytes, value: bytes) -> None:
        self._check(key, value)
        abi.lib().bpf_map_update_elem(self.fd, key, value, 0)

    def put_all(self, rows: Mapping[bytes, bytes]) -> None:
        """Write all rows with one call. The caller has checked that they fit."""
        if not rows:
            return
        for key, value in rows.items():
            self._check(key, value)
        count, options = c.c_uint32(len(rows)), abi.BatchOptions.new()
        keys, values = b"".join(rows), b"".join(rows.values())
        abi.lib().bpf_map_update_batch(self.fd, keys, values, c.byref(count), c.byref(options))

    def get(self, key: bytes, size: int | None = None) -> bytes | None:
        """The value; of a per-CPU map it has `size` bytes, one value for each possible CPU."""
        value = c.create_string_buffer(size or self.info.value_size)
        with _absent_is_fine():
            abi.lib().bpf_map_lookup_elem(self.fd, key, value)
            return value.raw
        return None

    def get_each(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """`get` for many, in a third of the time."""
        value, look_up = c.create_string_buffer(self.info.value_size), abi.lib().bpf_map_lookup_elem
        found: list[bytes | None] = []
        for key in keys:
            try:
                look_up(self.fd, key, value)
                found.append(value.raw)
            except BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
                found.append(None)
        return found

    def drop(self, key: bytes) -> None:
        """Remove the row, if there is one."""
        with _absent_is_fine():
            abi.lib().bpf_map_delete_elem(self.fd, key)

    def scan(self) -> Iterator[bytes]:
        """The keys, one call each; for maps that have no batches."""
        key, following = None, c.create_string_buffer(self.info.key_size)
        with _absent_is_fine():
            while True:
                abi.lib().bpf_map_get_next_key(self.fd, key, following)
                key = following.raw
                yield key

    def rows(self) -> dict[bytes, bytes]:
        """Everything in a map that can be read in batches: one call, 12 ms for 60 000 rows."""
        return self.split(self.raw())

    def count(self) -> int:
        """Of the rows that are there."""
        keys, _ = self.raw()
        return len(keys) // self.info.key_size

    def rows_of(self, at: int, beginnings: Collection[bytes]) -> dict[bytes, bytes]:
        """Those whose keys have one of these, all of a length, from their byte `at` on."""
        if not beginnings:
            return {}
        keys, values = self.raw()
        wide, long = self.info.key_size, self.info.value_size
        end = at + len(next(iter(beginnings)))
        return {
            keys[row * wide : (row + 1) * wide]: values[row * long : (row + 1) * long]
            for row in range(len(keys) // wide)
            if keys[row * wide + at : row * wide + end] in beginnings
        }

    def raw(self) -> tuple[bytes, bytes]:
        """The same as it comes: all keys, and all values. Equal if nothing has changed."""
        with self._reading:
            return self._read()

    def _read(self) -> tuple[bytes, bytes]:
        size = self.info.max_entries
        if self._room is None:
            # Of anonymous memory only what the kernel writes to is ever there.
            self._room = (
                mmap.mmap(-1, size * self.info.key_size),
                mmap.mmap(-1, size * self.info.value_size),
            )
        keys, values = ((c.c_char * len(room)).from_buffer(room) for room in self._room)
        cursor = c.create_string_buffer(max(self.info.key_size, 8))
        count, options = c.c_uint32(size), abi.BatchOptions.new()
        with _absent_is_fine():
            abi.lib().bpf_map_lookup_batch(
                self.fd, None, cursor, keys, values, c.byref(count), c.byref(options)
            )
        return (
            self._room[0][: count.value * self.info.key_size],
            self._room[1][: count.value * self.info.value_size],
        )

    def split(self, raw: tuple[bytes, bytes]) -> dict[bytes, bytes]:
        """Rows from what `raw` returned."""
        sizes = self.info.key_size, self.info.value_size
        keys, values = (_pieces(part, size) for part, size in zip(raw, sizes, strict=True))
        return dict(zip(keys, values, strict=True))

    def _check(self, key: bytes, value: bytes) -> None:
        if (len(key), len(value)) != (self.info.key_size, self.info.value_size):
            raise ValueError(f"{self.info.name}: a row of {len(key)} + {len(value)} bytes")


def _pin(root: Path | None, name: str) -> Path:
    if root is None:
        raise ValueError(f"{name} is pinned, but where?")
    return root / name


def _pieces(whole: bytes, size: int) -> Iterator[bytes]:
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
        lib = abi.lib()
        options = abi.OpenOptions.new(pin_root_path=str(pin_root).encode() if pin_root else None)
        abi.words.clear()
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
        abi.lib().bpf_object__close(self._object)

    def program(self, name: str) -> int:
        """The descriptor of a program; it belongs to the object."""
        lib = abi.lib()
        found = lib.bpf_object__find_program_by_name(self._object, name.encode())
        return int(lib.bpf_program__fd(found))

    def maps(self) -> dict[str, Map]:
        """All maps by their names in the source."""
        lib = abi.lib()
        found: dict[str, Map] = {}
        at = lib.bpf_object__next_map(self._object, None)
        while at:
            found[lib.bpf_map__name(at).decode()] = Map(lib.bpf_map__fd(at))
            at = lib.bpf_object__next_map(self._object, at)
        return found

    def _reuse(self, name: str, pin: Path) -> bool:
        """Take the pinned map instead of a new one; False when there is none."""
        with _absent_is_fine(), _closing(abi.lib().bpf_obj_get(bytes(pin))) as fd:
            there, ours = read_map_info(fd), self._find_map(name)
            sizes = abi.lib().bpf_map__key_size(ours), abi.lib().bpf_map__value_size(ours)
            if (*sizes, abi.lib().bpf_map__max_entries(ours)) != there[2:]:
                abi.words.append(f"pinned map at {pin}: parameter mismatch")
                raise BpfError("reuse", errno.EINVAL)
            abi.lib().bpf_map__reuse_fd(ours, fd)
            return True
        return False

    def _find_map(self, name: str) -> int:
        return int(abi.lib().bpf_object__find_map_by_name(self._object, name.encode()))


class Ring:
    """The reading end of a ring buffer; there may be only one at a time."""

    def __init__(self, fd: int, receive: Callable[[bytes], None]) -> None:
        def take(_context: int, data: int, size: int) -> int:
            receive(c.string_at(data, size))
            return 0

        self._callback = abi.RING_CALLBACK(take)  # ctypes does not keep it alive
        self._ring = abi.lib().ring_buffer__new(fd, self._callback, None, None)

    def consume(self) -> None:
        """Hand on what has arrived; does not wait."""
        abi.lib().ring_buffer__consume(self._ring)

    def close(self) -> None:
        abi.lib().ring_buffer__free(self._ring)


def read_program_info(fd: int) -> ProgramInfo:
    ids = (c.c_uint32 * 64)()
    info = abi.RawProgramInfo(nr_map_ids=len(ids), map_ids=c.addressof(ids))
    size = c.c_uint32(c.sizeof(info))
    abi.lib().bpf_obj_get_info_by_fd(fd, c.byref(info), c.byref(size))
    maps = frozenset(ids[: info.nr_map_ids])
    return ProgramInfo(info.id, info.name.decode(), bytes(info.tag), maps)


def read_map_info(fd: int) -> MapInfo:
    info = abi.RawMapInfo()
    size = c.c_uint32(c.sizeof(info))
    abi.lib().bpf_obj_get_info_by_fd(fd, c.byref(info), c.byref(size))
    return MapInfo(info.id, info.name.decode(), info.key_size, info.value_size, info.max_entries)


@contextlib.contextmanager
def program_by_id(number: int) -> Iterator[int]:
    """A descriptor of a loaded program, closed at the end."""
    with _closing(abi.lib().bpf_prog_get_fd_by_id(number)) as fd:
        yield fd


@contextlib.contextmanager
def map_by_id(number: int) -> Iterator[Map]:
    with _closing(abi.lib().bpf_map_get_fd_by_id(number)) as fd:
        yield Map(fd)


def pinned_id(pin: Path) -> int | None:
    """The id of the map pinned there; None when there is no such pin."""
    with _absent_is_fine(), _closing(abi.lib().bpf_obj_get(str(pin).encode())) as fd:
        return read_map_info(fd).id
    return None


@contextlib.contextmanager
def new_map(kind: int, name: str, key_size: int, value_size: int, entries: int) -> Iterator[int]:
    """A map that lives on only if it is put somewhere before the end of the block."""
    made = abi.lib().bpf_map_create(kind, name.encode(), key_size, value_size, entries, None)
    with _closing(made) as fd:
        yield fd


def possible_cpus() -> int:
    return int(abi.lib().libbpf_num_possible_cpus())


INGRESS, EGRESS = 1, 2


def ensure_clsact(ifindex: int) -> None:
    """The qdisc of both hooks, on a link of the calling thread's namespace."""
    hook = abi.TcHook.new(ifindex=ifindex, attach_point=INGRESS | EGRESS)
    try:
        abi.lib().bpf_tc_hook_create(c.byref(hook))
    except BpfError as error:
        if error.errno != errno.EEXIST:
            raise


def attach(ifindex: int, where: int, program: int, handle: int, priority: int) -> None:
    """Add the program, or put it in the place of the one with this handle: no packet between."""
    hook = abi.TcHook.new(ifindex=ifindex, attach_point=where)
    options = abi.TcOptions.new(prog_fd=program, flags=1, handle=handle, priority=priority)
    abi.lib().bpf_tc_attach(c.byref(hook), c.byref(options))


def detach(ifindex: int, where: int, handle: int, priority: int) -> None:
    hook = abi.TcHook.new(ifindex=ifindex, attach_point=where)
    options = abi.TcOptions.new(handle=handle, priority=priority)
    abi.lib().bpf_tc_detach(c.byref(hook), c.byref(options))


def tcx_programs(ifindex: int, where: int) -> list[int]:
    """The programs that run before every filter of clsact; none before Linux 6.6."""
    ids = (c.c_uint32 * 64)()
    options = abi.QueryOptions.new(prog_ids=c.addressof(ids), prog_cnt=len(ids))
    try:
        abi.lib().bpf_prog_query_opts(ifindex, {INGRESS: 46, EGRESS: 47}[where], c.byref(options))
    except BpfError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return []
        raise
    return list(ids[: options.prog_cnt])


def newest_program(after: int) -> int:
    """The highest id of a loaded program from `after` on; ids are not used again soon."""
    number = c.c_uint32(after)
    with _absent_is_fine():
        while True:
            abi.lib().bpf_prog_get_next_id(number.value, c.byref(number))
    return number.value


def run_program(fd: int, frame: bytes, context: bytes = b"") -> int:
    """What the program answers to a frame (BPF_PROG_TEST_RUN); `context` is a `__sk_buff`."""
    data = c.create_string_buffer(frame, len(frame))
    about = c.create_string_buffer(context, len(context))
    options = abi.RunOptions.new(
        data_in=c.addressof(data),
        data_size_in=len(frame),
        ctx_in=c.addressof(about) if context else None,
        ctx_size_in=len(context),
        repeat=1,
    )
    abi.lib().bpf_prog_test_run_opts(fd, c.byref(options))
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


def _why_not_loaded(path: Path, error: BpfError) -> MendHost:
    said = "; ".join(word for word in abi.words if word)
    if "parameter mismatch" in said:
        return MendHost(
            "C320",
            f"the pinned maps were made by another version: {said}",
            hint="chainctl down, then chainctl up: the filter's maps are made anew",
        )
    hint = "" if path.is_file() else "make bpf"
    return BpfError(f"{path.name}: {said}", error.errno, hint=hint)
