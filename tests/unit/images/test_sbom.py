"""The bill of materials is valid SPDX and says what is in the image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spdx_tools.spdx.model.relationship import RelationshipType
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from chainctl.images.debian import Assembled, assemble
from chainctl.images.lock import ImageKind
from chainctl.images.sbom import parse_sbom, render_sbom
from tests.conftest import Golden
from tests.unit.images.elves import elf
from tests.unit.images.test_debian import package

SIGNED = "Sat, 12 Sep 2026 07:55:41 UTC"


@pytest.fixture
def made() -> Assembled:
    library = package(
        "libc6",
        {"./lib/x86_64-linux-gnu/libc.so.6": elf()},
        "Source: glibc (2.41-1)\nBuilt-Using: gcc-14 (= 14.2-1), libstdc++6 (= 1:14-1+b2)\n",
    )
    program = package("wireguard-go", {"./usr/bin/wireguard-go": elf(needed=["libc.so.6"])})
    return assemble(ImageKind.WIREGUARD, "amd64", [library, program])


def document(made: Assembled) -> str:
    return render_sbom(ImageKind.WIREGUARD, "amd64", SIGNED, made)


def test_it_is_valid_spdx(made: Assembled, tmp_path: Path) -> None:
    path = tmp_path / "sbom.spdx.json"
    path.write_text(document(made))
    parsed = parse_file(str(path))
    assert validate_full_spdx_document(parsed) == []
    linked = {
        (r.spdx_element_id, r.related_spdx_element_id)
        for r in parsed.relationships
        if r.relationship_type == RelationshipType.STATIC_LINK
    }
    assert linked == {
        ("SPDXRef-deb-libc6", "SPDXRef-source-gcc-14"),
        ("SPDXRef-deb-libc6", "SPDXRef-source-libstdc-plus--plus-6"),
    }


def test_its_text_is_known(made: Assembled, golden: Golden) -> None:
    golden(Path(__file__).parent / "golden" / "sbom.spdx.json", document(made))


def test_it_says_which_package_each_file_came_from(made: Assembled) -> None:
    raw = json.loads(document(made))
    names = {file["SPDXID"]: file["fileName"] for file in raw["files"]}
    came = {
        names[r["spdxElementId"]]: r["relatedSpdxElement"]
        for r in raw["relationships"]
        if r["relationshipType"] == "EXPANDED_FROM_ARCHIVE"
    }
    assert came == {
        "./usr/bin/wireguard-go": "SPDXRef-deb-wireguard-go",
        "./usr/lib/x86_64-linux-gnu/libc.so.6": "SPDXRef-deb-libc6",
    }


def test_it_names_no_host_and_nothing_of_the_machine(made: Assembled) -> None:
    assert "://" not in document(made)


@pytest.mark.parametrize(
    "junk", ["{}", "[]", '{"files": [{}]}', '{"files": [{"fileName": "x", "checksums": []}]}', ""]
)
def test_another_document_is_refused(junk: str) -> None:
    with pytest.raises(ValueError, match=r"bill of materials|Expecting"):
        parse_sbom(junk)
