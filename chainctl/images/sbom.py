"""What an image is made of, as SPDX 2.3 in JSON: written when it is built, read to verify it.

A document names every package with its source and licence, what was linked into it, and every
file with its hashes. It depends on the image and its lock alone.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from chainctl.images.debian import Assembled, Part
from chainctl.images.lock import LICENCES, ImageKind, licence_of
from chainctl.images.root import digest

_UNKNOWN = "NOASSERTION"


@dataclass(frozen=True)
class Sbom:
    """The facts of a document that are compared with an image."""

    files: Mapping[str, str]
    """Path in the root, and its SHA-256."""
    packages: tuple[str, ...]
    """`name version` of each Debian package."""


def render_sbom(kind: ImageKind, arch: str, signed: str, made: Assembled) -> str:
    """`signed` is the date of the lock, as Debian writes it."""
    tree_digest = digest(made.root)
    files = {
        path: node.content
        for path, node in sorted(made.root.items())
        if stat.S_ISREG(node.mode) and isinstance(node.content, bytes)
    }
    linked = sorted({name for part in made.parts for name in part.built_using})
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"chainctl-{kind.value}-{arch}",
        "documentNamespace": f"urn:chainctl:image:{tree_digest}",
        "creationInfo": {
            "created": parsedate_to_datetime(signed).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: chainctl"],
        },
        "packages": [
            _image(kind, tree_digest, files),
            *(_binary(part, arch) for part in made.parts),
            *(_source(name) for name in linked),
        ],
        "files": [_file(path, content) for path, content in files.items()],
        "relationships": _relationships(made, files),
    }
    return json.dumps(document, indent=1) + "\n"


def parse_sbom(text: str) -> Sbom:
    """Raises ValueError when `text` is not a document that `render_sbom` wrote."""
    try:
        document = json.loads(text)
        files = {
            entry["fileName"].removeprefix("./"): next(
                sum_["checksumValue"]
                for sum_ in entry["checksums"]
                if sum_["algorithm"] == "SHA256"
            )
            for entry in document["files"]
        }
        packages = tuple(
            f"{package['name']} {package['versionInfo']}"
            for package in document["packages"]
            if package["SPDXID"].startswith("SPDXRef-deb-")
        )
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"not a bill of materials of an image: {error!r}") from None
    return Sbom(files, packages)


def _image(kind: ImageKind, tree_digest: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    # The verification code of SPDX 2.3, 7.9: one hash over the sorted hashes of all files.
    together = "".join(sorted(_sha1(content) for content in files.values()))
    return {
        "SPDXID": "SPDXRef-image",
        "name": f"chainctl/{kind.value}",
        "versionInfo": tree_digest[:12],
        "primaryPackagePurpose": "CONTAINER",
        "licenseDeclared": licence_of(kind),
        **_NOT_SAID,
        "filesAnalyzed": True,
        "packageVerificationCode": {"packageVerificationCodeValue": _sha1(together.encode())},
    }


def _binary(part: Part, arch: str) -> dict[str, Any]:
    package = part.package
    # A purl leaves `:` and `~` as they are and encodes `+` (package-url/purl-spec).
    address = f"pkg:deb/debian/{quote(package.name)}@{quote(package.version, safe=':~')}"
    return {
        "SPDXID": _id("deb", package.name),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": "Organization: Debian",
        "packageFileName": package.path.rpartition("/")[2],
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "sourceInfo": f"built by Debian from {part.source}",
        "licenseDeclared": LICENCES[package.name],
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"{address}?arch={arch}",
            }
        ],
        **_NOT_SAID,
    }


def _source(name_version: str) -> dict[str, Any]:
    name, _, version = name_version.partition(" ")
    return {
        "SPDXID": _id("source", name),
        "name": name,
        "versionInfo": version,
        "supplier": "Organization: Debian",
        "licenseDeclared": _UNKNOWN,
        **_NOT_SAID,
    }


_NOT_SAID = {
    "downloadLocation": _UNKNOWN,
    "filesAnalyzed": False,
    "licenseConcluded": _UNKNOWN,
    "copyrightText": _UNKNOWN,
}


def _file(path: str, content: bytes) -> dict[str, Any]:
    return {
        "SPDXID": _file_id(path),
        "fileName": f"./{path}",
        "fileTypes": ["BINARY" if content.startswith(b"\x7fELF") else "TEXT"],
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": _sha1(content)},
            {"algorithm": "SHA256", "checksumValue": hashlib.sha256(content).hexdigest()},
        ],
        "licenseConcluded": _UNKNOWN,
        "licenseInfoInFiles": [_UNKNOWN],
        "copyrightText": _UNKNOWN,
    }


def _relationships(made: Assembled, files: Mapping[str, bytes]) -> list[dict[str, str]]:
    found = [("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")]
    for part in made.parts:
        package = _id("deb", part.package.name)
        found.append(("SPDXRef-image", "CONTAINS", package))
        found += [
            (package, "STATIC_LINK", _id("source", name.partition(" ")[0]))
            for name in part.built_using
        ]
    found += [("SPDXRef-image", "CONTAINS", _file_id(path)) for path in files]
    # What no package brought, such as the names of the users, is the image's own.
    found += [
        (_file_id(path), "EXPANDED_FROM_ARCHIVE", _id("deb", part.package.name))
        for part in made.parts
        for path in part.files
        if path in files
    ]
    return [
        {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
        for one, kind, other in found
    ]


def _sha1(content: bytes) -> str:
    """SPDX wants it of every file, as a name, not as a proof."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _file_id(path: str) -> str:
    return f"SPDXRef-file-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def _id(kind: str, name: str) -> str:
    """Only letters, digits, `.` and `-` may be in one (SPDX 2.3, 7.2)."""
    return f"SPDXRef-{kind}-{name.replace('+', '-plus-')}"
