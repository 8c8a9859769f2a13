"""The machine's own Debian mirror: where it is, what its signed index says, single files of it.

Files come through apt's own downloader, so that proxies, credentials and transports that are
set up for apt hold here as well. What it brings is trusted for its hash alone; the hashes come
from the lock file, or from an index under a signature that gpgv verified.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chainctl.errors import LookAgain, MendHost, RefusedByPolicy
from chainctl.host.run import run
from chainctl.images.lock import Package

_DOWNLOADER = "/usr/lib/apt/apt-helper"
_KEYRINGS = tuple(
    Path(f"/usr/share/keyrings/debian-archive-keyring.{ending}") for ending in ("gpg", "pgp")
)
_RELEASES = {
    *("bullseye", "bookworm", "trixie", "forky", "duke", "sid"),
    *("oldstable", "stable", "testing", "unstable"),
}


class MissingAtMirror(LookAgain):
    """The mirror answers, and does not have the file."""


@dataclass(frozen=True)
class Index:
    """The packages of one suite and architecture, as signed on `date`."""

    date: str
    text: str

    def package(self, name: str) -> Package:
        """Raises MendHost C707 when the suite does not have it."""
        found = re.search(rf"^Package: {re.escape(name)}\n.*?(?=^$|\Z)", self.text, re.M | re.S)
        fields = dict(re.findall(r"^(\S+): (.*)$", found[0], re.M)) if found else {}
        try:
            return Package(name, fields["Version"], fields["Filename"], fields["SHA256"])
        except KeyError:
            raise MendHost("C707", f"the archive has no package {name}") from None


def parse_sources(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Addresses of Debian archives in apt's sources, in order; `texts` are (file name, text).

    Archives of other vendors and the security archive, which holds updates only, are left out
    (sources.list(5), both formats).
    """
    found: dict[str, None] = {}
    for name, text in texts:
        entries = _paragraphs(text) if name.endswith(".sources") else _lines(text)
        for address, suites, components in entries:
            complete = [suite for suite in suites if not suite.endswith("-security")]
            if "main" in components and any(s.split("-")[0] in _RELEASES for s in complete):
                found.setdefault(address.rstrip("/"))
    return list(found)


def read_mirrors(folder: Path) -> list[str]:
    """The mirrors in apt's settings below `folder`. Raises MendHost C701 when there is none."""
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    named = [f for f in files if f.suffix in (".list", ".sources") and f.is_file()]
    mirrors = parse_sources((f.name, f.read_text(errors="replace")) for f in named)
    if not mirrors or not os.access(_DOWNLOADER, os.X_OK):
        raise MendHost(
            "C701",
            "images are assembled from Debian packages, and this machine has no Debian mirror",
            hint=f"add a Debian archive to {folder / 'sources.list'}, or copy the image directory "
            "of a machine that has one",
        )
    return mirrors


def read_index(mirrors: Iterable[str], suite: str, arch: str) -> Index:
    """The index of `suite` from the first mirror that has it, its signature verified."""
    with tempfile.TemporaryDirectory(prefix="chainctl-index-") as name:
        folder = Path(name)
        mirror = _first_with(mirrors, f"dists/{suite}/InRelease", folder / "InRelease")
        release = verified_text(folder / "InRelease")
        path = f"main/binary-{arch}/Packages.xz"
        hashes = release.partition("\nSHA256:\n")[2]
        listed = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(path)}$", hashes, re.M)
        date = re.search(r"^Date: (.*)$", release, re.M)
        if not listed or not date:
            raise MendHost("C708", f"the suite {suite} has no packages for {arch}")
        packed = folder / "Packages.xz"
        download(f"{mirror}/dists/{suite}/{path}", packed, listed[1])
        return Index(date[1], lzma.decompress(packed.read_bytes()).decode())


def verified_text(release: Path) -> str:
    """What the signers of `release` signed. Raises RefusedByPolicy C703 when it was not Debian."""
    keyring = next((k for k in _KEYRINGS if k.exists()), None)
    if keyring is None:
        raise MendHost(
            "C702",
            "Debian's keys are not installed",
            hint="install the package debian-archive-keyring",
        )
    try:
        return run(["gpgv", "--keyring", str(keyring), "--output", "-", str(release)])
    except MendHost as error:
        if error.code != "C303":
            raise
        raise RefusedByPolicy(
            "C703",
            f"the package index is not signed by Debian: {error.message}",
            hint="somebody between this machine and Debian changed it, or the keys are out of "
            "date: apt-get update && apt-get install debian-archive-keyring",
        ) from None


def fetch(package: Package, mirrors: Iterable[str], cache: Path) -> bytes:
    """The package's bytes, from `cache` if they are there. Its hash is always checked."""
    kept = cache / package.sha256
    if not (kept.exists() and _sha256(kept) == package.sha256):
        arriving = cache / f"{package.sha256}.arriving"
        _first_with(mirrors, package.path, arriving, package.sha256)
        arriving.rename(kept)
    return kept.read_bytes()


def download(address: str, target: Path, sha256: str | None = None) -> None:
    """Fetch one file. Raises MissingAtMirror C705, RefusedByPolicy C704, LookAgain C706."""
    command = [_DOWNLOADER, "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1"]
    command += ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]
    command += ["download-file", address, str(target)]
    if sha256:
        command.append(f"SHA256:{sha256}")
    refused = target.with_name(target.name + ".FAILED")
    try:
        run(command, timeout=300, env={**os.environ, "LC_ALL": "C"})
    except MendHost as error:
        raise _explain(error, address, wrong_hash=refused.exists()) from None
    finally:
        refused.unlink(missing_ok=True)
    if sha256 and _sha256(target) != sha256:
        target.unlink()
        raise _wrong_hash(address)


def _first_with(mirrors: Iterable[str], path: str, target: Path, sha256: str | None = None) -> str:
    """Download `path` from the first mirror that has it, and say which one that was."""
    missing: MissingAtMirror | None = None
    for mirror in mirrors:
        try:
            download(f"{mirror}/{path}", target, sha256)
        except MissingAtMirror as error:
            missing = error
        else:
            return mirror
    raise missing or ValueError("no mirrors given")


def _explain(error: MendHost, address: str, *, wrong_hash: bool) -> Exception:
    if error.code != "C303":
        return error
    if wrong_hash:
        return _wrong_hash(address)
    words = _without_login(error.message)
    if re.search(r"\b(404|410)\b|No such file", words):
        return MissingAtMirror("C705", f"the mirror does not have {_without_login(address)}")
    if "No space left" in words:
        return MendHost("C710", f"cannot keep the download: {words}", hint="make room on that disk")
    return LookAgain(
        "C706",
        f"cannot download {_without_login(address)}: {words}",
        hint="is there a network? images are needed once; later starts work without it",
    )


def _wrong_hash(address: str) -> RefusedByPolicy:
    return RefusedByPolicy(
        "C704",
        f"{_without_login(address)} is not the file that was pinned: its SHA-256 differs",
        hint="somebody changed it on the way, or the mirror is broken; try another mirror",
    )


def _without_login(text: str) -> str:
    return re.sub(r"//[^/\s@]*@", "//", text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in text.splitlines():
        entry = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if entry:
            yield entry[1], [entry[2]], entry[3].split()


def _paragraphs(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    plain = re.sub(r"^#.*\n", "", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n", plain):
        unfolded = re.sub(r"\n[ \t]+", " ", paragraph)
        fields = {k.lower(): v.split() for k, v in re.findall(r"^(\S+?):(.*)$", unfolded, re.M)}
        if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
            for address in fields.get("uris", []):
                yield address, fields.get("suites", []), fields.get("components", [])
