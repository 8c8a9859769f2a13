"""Packages are read as trees; merged /usr, links and hard links come out right."""

from __future__ import annotations

import io
import tarfile

import pytest

from chainctl.images.deb import Entry, File, Link, control, follow, normal, unpack


def deb(
    members: list[tarfile.TarInfo], contents: dict[str, bytes], fields: str = "Package: some\n"
) -> bytes:
    """A package as dpkg-deb writes it: an ar archive of three members."""
    parts = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", _tar([member("./md5sums"), member("./control")], fields)),
        ("data.tar.xz/", _tar(members, contents)),
    ]
    out = b"!<arch>\n"
    for name, content in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def _tar(members: list[tarfile.TarInfo], contents: dict[str, bytes] | str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for one in members:
            if isinstance(contents, str):
                content = contents.encode() if one.name == "./control" else b"words"
            else:
                content = contents.get(one.name, b"")
            one.size = len(content)
            archive.addfile(one, io.BytesIO(content))
    return data.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_files_links_and_hard_links_are_unpacked_below_a_merged_usr() -> None:
    package = deb(
        [
            member("./lib/libx.so.1.2"),
            member("./usr/lib/libx.so.1", tarfile.SYMTYPE, "libx.so.1.2"),
            member("./usr/bin/twin", tarfile.LNKTYPE, "./lib/libx.so.1.2"),
            member("./usr/share", tarfile.DIRTYPE),
        ],
        {"./lib/libx.so.1.2": b"code"},
    )
    assert unpack(package) == {
        "/usr/lib/libx.so.1.2": File(b"code"),
        "/usr/lib/libx.so.1": Link("libx.so.1.2"),
        "/usr/bin/twin": File(b"code"),
    }


def test_control_fields_are_read_with_their_continued_lines() -> None:
    fields = "Package: some\nBuilt-Using: a (= 1),\n b (= 2)\nDescription: short\n long\n .\n"
    assert control(deb([], {}, fields)) == {
        "Package": "some",
        "Built-Using": "a (= 1), b (= 2)",
        "Description": "short long .",
    }


@pytest.mark.parametrize("junk", [b"", b"!<arch>\n", b"PK\x03\x04"])
def test_what_is_no_package_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="not a Debian package"):
        unpack(junk)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./lib64/ld.so", "/usr/lib64/ld.so"),
        ("usr/bin/x", "/usr/bin/x"),
        ("/libexec/x", "/libexec/x"),
        ("../../etc/x", "/etc/x"),
    ],
)
def test_paths_are_normal_and_never_leave_the_root(path: str, expected: str) -> None:
    assert normal(path) == expected


def test_links_are_followed_and_loops_end() -> None:
    tree: dict[str, Entry] = {
        "/usr/lib/a": Link("b"),
        "/usr/lib/b": Link("/lib/c"),
        "/usr/lib/c": File(b""),
        "/usr/lib/loop": Link("loop"),
    }
    assert follow(tree, "/lib/a") == ("/usr/lib/c", ("/usr/lib/a", "/usr/lib/b"))
    assert follow(tree, "/lib/loop") == (None, ("/usr/lib/loop",))
    assert follow(tree, "/lib/none") == (None, ())
