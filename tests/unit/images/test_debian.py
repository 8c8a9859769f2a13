"""An image holds what its program needs and nothing else, and its digest sees every byte."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.errors import MendHost
from chainctl.images.deb import Entry, File, Link
from chainctl.images.debian import assemble, closure
from chainctl.images.lock import ImageKind, Package
from chainctl.images.root import Node, digest
from tests.unit.images.elves import elf
from tests.unit.images.test_deb import deb, member

PROGRAM = "/usr/bin/wireguard-go"
LIBS = "/usr/lib/x86_64-linux-gnu"


def package(name: str, files: dict[str, bytes], fields: str = "") -> tuple[Package, bytes]:
    """One as it is pinned, and its bytes."""
    files = {**files, f"./usr/share/doc/{name}/copyright": f"rights of {name}".encode()}
    data = deb([member(n) for n in files], files, f"Package: {name}\n{fields}")
    path = f"pool/main/x/{name}_1.0-1_amd64.deb"
    return Package(name, "1.0-1", path, hashlib.sha256(path.encode()).hexdigest()), data


def test_the_closure_follows_needed_libraries_the_loader_and_links() -> None:
    tree: dict[str, Entry] = {
        PROGRAM: File(elf(interpreter="/lib64/ld.so", needed=["libc.so.6"])),
        "/usr/lib64/ld.so": Link("../lib/x86_64-linux-gnu/ld.so"),
        f"{LIBS}/ld.so": File(elf()),
        f"{LIBS}/libc.so.6": File(elf(needed=["libdeep.so"])),
        "/opt/libdeep.so": File(b""),
        f"{LIBS}/libdeep.so": File(elf()),
        "/usr/bin/sh": File(elf()),
    }
    assert closure(tree, PROGRAM, "amd64") == set(tree) - {"/usr/bin/sh", "/opt/libdeep.so"}


def test_a_missing_library_is_named() -> None:
    tree = {PROGRAM: File(elf(needed=["libgone.so"]))}
    with pytest.raises(ValueError, match=r"libgone\.so"):
        closure(tree, PROGRAM, "amd64")


def test_only_what_the_program_needs_is_taken_and_there_is_no_shell() -> None:
    names = {
        "./usr/bin/wireguard-go": elf(interpreter="/lib64/ld.so", needed=["libc.so.6"]),
        "./lib64/ld.so": elf(),
        "./bin/sh": elf(),
        "./lib/x86_64-linux-gnu/libc.so.6": elf(),
    }
    made = assemble(ImageKind.WIREGUARD, "amd64", [package("some", names)])
    root = made.root
    programs = {p for p, node in root.items() if stat.S_ISREG(node.mode) and node.mode & 0o111}
    assert programs == {"usr/bin/wireguard-go", "usr/lib64/ld.so"}
    assert root["usr/lib/x86_64-linux-gnu/libc.so.6"].mode == stat.S_IFREG | 0o644
    assert root["run/wireguard"].content is None
    assert root["lib64"].content == "usr/lib64"
    assert all("/" not in p or p.rpartition("/")[0] in root for p in root)
    assert all(node.mode & 0o6000 == 0 for node in root.values())


def test_each_package_is_named_with_its_source_its_licence_and_what_it_gave() -> None:
    library = package(
        "libc6",
        {"./lib/x86_64-linux-gnu/libc.so.6": elf()},
        "Source: glibc (2.41-1)\nBuilt-Using: gcc-14 (= 14.2-1), nothing (>= 1)\n"
        "Static-Built-Using: golang-1.24 (= 1.24.4-1)\n",
    )
    program = package("wireguard-go", {"./usr/bin/wireguard-go": elf(needed=["libc.so.6"])})
    made = assemble(ImageKind.WIREGUARD, "amd64", [program, library])
    assert [part.source for part in made.parts] == ["wireguard-go 1.0-1", "glibc 2.41-1"]
    assert [part.built_using for part in made.parts] == [
        (),
        ("gcc-14 14.2-1", "golang-1.24 1.24.4-1"),
    ]
    assert [part.files for part in made.parts] == [
        ("usr/bin/wireguard-go",),
        ("usr/lib/x86_64-linux-gnu/libc.so.6",),
    ]
    assert made.parts[1].copyright == b"rights of libc6"


def test_a_package_without_its_licence_is_refused() -> None:
    names = {"./usr/bin/wireguard-go": elf()}
    bare = deb([member(n) for n in names], names)
    with pytest.raises(MendHost, match="some comes without its licence"):
        assemble(ImageKind.WIREGUARD, "amd64", [(Package("some", "1", "pool/x", "0"), bare)])


def test_packages_without_the_program_are_a_clear_error() -> None:
    with pytest.raises(MendHost, match="wireguard-go is in none of the packages") as caught:
        assemble(ImageKind.WIREGUARD, "amd64", [package("some", {})])
    assert caught.value.code == "C707"


nodes = st.builds(Node, st.sampled_from([0o100644, 0o100755]), st.binary(max_size=8))
roots = st.dictionaries(st.text("ab/", min_size=1, max_size=4), nodes, min_size=1, max_size=4)


@given(roots, roots)
def test_two_trees_have_one_digest_only_when_they_are_equal(
    one: dict[str, Node], other: dict[str, Node]
) -> None:
    assert (digest(one) == digest(other)) == (one == other)
    assert digest(one) == digest(dict(reversed(one.items())))


@given(roots)
def test_the_digest_sees_a_mode_that_changed(root: dict[str, Node]) -> None:
    path = next(iter(root))
    changed = {**root, path: replace(root[path], mode=root[path].mode ^ 0o111)}
    assert digest(changed) != digest(root)
