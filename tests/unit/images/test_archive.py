"""The archive says of a root what is so, in bytes that depend on nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.images.archive import Archive, pack, render_tar
from chainctl.images.lock import LICENCES, RECIPES, ImageKind
from chainctl.images.root import Node

ROOT = {
    "usr": Node(stat.S_IFDIR | 0o755),
    "usr/bin": Node(stat.S_IFDIR | 0o755),
    "usr/bin/openvpn": Node(stat.S_IFREG | 0o755, b"\x7fELF program"),
    "bin": Node(stat.S_IFLNK | 0o777, "usr/bin"),
}


@pytest.fixture
def archive() -> Archive:
    return pack(ImageKind.OPENVPN, "arm64", ROOT)


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def blob(files: dict[str, bytes], digest: str) -> Any:
    data = files[f"blobs/sha256/{digest.removeprefix('sha256:')}"]
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    return json.loads(data) if data.startswith(b"{") else data


paths = st.text("abc/.-", min_size=1, max_size=100).filter(
    lambda p: p == p.strip("/.") and "//" not in p and "/./" not in p and "/../" not in p
)
nodes = st.one_of(
    st.builds(
        Node, st.integers(0, 0o777).map(lambda m: stat.S_IFREG | m), st.binary(max_size=1100)
    ),
    st.builds(Node, st.just(stat.S_IFLNK | 0o777), st.text("ab/.", min_size=1)),
)


@given(st.dictionaries(paths, nodes, max_size=5))
def test_a_tar_reader_finds_what_was_put_in(root: dict[str, Node]) -> None:
    with tarfile.open(fileobj=io.BytesIO(render_tar(root))) as tar:
        found = {member.name: member for member in tar}
        assert set(found) == set(root)
        for path, node in root.items():
            member = found[path]
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            assert member.mode == stat.S_IMODE(node.mode)
            if isinstance(node.content, str):
                assert (member.issym(), member.linkname) == (True, node.content)
            else:
                file = tar.extractfile(member)
                assert file is not None
                assert file.read() == node.content


def test_a_path_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        render_tar({"a" * 101: Node(stat.S_IFREG | 0o644, b"")})


def test_docker_and_oci_are_told_the_same(archive: Archive) -> None:
    files = members(archive.data)
    (docker,) = json.loads(files["manifest.json"])
    (listed,) = json.loads(files["index.json"])["manifests"]
    assert listed["digest"] == archive.manifest_digest
    manifest = blob(files, archive.manifest_digest)
    assert manifest["config"]["digest"] == archive.config_digest
    assert docker["Config"].endswith(archive.config_digest.removeprefix("sha256:"))
    assert docker["RepoTags"] == [archive.reference]
    layer = files[docker["Layers"][0]]
    assert manifest["layers"][0] == {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": blob(files, archive.config_digest)["rootfs"]["diff_ids"][0],
        "size": len(layer),
    }
    assert members(layer) == {"usr/bin/openvpn": b"\x7fELF program"}


def test_it_runs_as_nobody_and_names_the_licences(archive: Archive) -> None:
    config = blob(members(archive.data), archive.config_digest)
    assert config["architecture"] == "arm64"
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/usr/sbin/openvpn"]
    licences = config["config"]["Labels"]["org.opencontainers.image.licenses"]
    assert "GPL-2.0-only WITH openvpn-openssl-exception" in licences
    assert "(BSD-3-Clause OR GPL-2.0-only)" in licences


def test_every_package_has_a_licence() -> None:
    assert set(LICENCES) == {name for recipe in RECIPES.values() for name in recipe.packages}


def test_its_bytes_are_known() -> None:
    """Of all versions of Python and machines; whoever changes them changes every image's id."""
    archive = pack(ImageKind.PAUSE, "amd64", ROOT)
    expected = "34e1ebf4abc2bcb217e6f06d58848903a43d23478ed5e5d0af0e587bd5afcb9f"
    assert hashlib.sha256(archive.data).hexdigest() == expected
