"""`chainctl images`: build and check the images hops run from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from chainctl.cli.output import print_json, tick
from chainctl.images.image import (
    ARCHES,
    Image,
    ensure_image,
    executables,
    is_whole,
    list_images,
    machine_arch,
    pack_image,
    pin_current,
    rebuild_if_damaged,
    verify_archive,
    verify_image,
)
from chainctl.images.lock import ImageKind, render_lock
from chainctl.settings import Settings

_JSON = click.option("--json", is_flag=True, help="The same facts as JSON.")
_ARCH = click.option(
    "--arch", type=click.Choice(ARCHES), help="An architecture; this machine's unless given."
)
_KINDS = click.argument("kinds", nargs=-1, type=click.Choice([kind.value for kind in ImageKind]))


@click.group()
def images() -> None:
    """Build and check the images hops run from."""


@images.command()
@click.option("--locked", is_flag=True, help="Refuse packages other than the pinned ones.")
@_ARCH
@_JSON
def build(locked: bool, arch: str | None, json: bool) -> None:
    """Build what is missing, and what is damaged again.

    Each image is unpacked from packages that Debian signed; nothing from them is run.
    """
    settings = Settings.load()
    built: list[Image] = []
    for kind in ImageKind:
        begun = time.monotonic()
        image = ensure_image(kind, settings, arch=arch, locked=locked)
        built.append(rebuild_if_damaged(image, settings, locked=locked))
        if not json:
            _print_built(built[-1], time.monotonic() - begun)
    if json:
        print_json([_facts(image, whole=True) for image in built])


@images.command("list")
@_JSON
def list_(json: bool) -> None:
    """List the images on this machine, and whether their files are what they should be."""
    found = [(image, is_whole(image)) for image in list_images(Settings.load())]
    if json:
        print_json([_facts(image, whole=whole) for image, whole in found])
        return
    for image, whole in found:
        pinned = "pinned" if image.pinned else "not pinned by this version"
        state = "whole" if whole else "DAMAGED: chainctl images build"
        click.echo(
            f"{tick(whole)} {image.kind.value:<10} {image.digest[:12]}  {image.arch}  "
            f"{_mib(image.size)}, {_mib(image.gzip_size)} as gzip  {pinned}, {state}"
        )
        click.echo(f"  version {image.version}; can be executed: {', '.join(executables(image))}")
        click.echo(f"  {image.licence}")
        click.echo(f"  {', '.join(image.packages)}")
    if not found:
        click.echo("No images yet. Run: chainctl images build")


@images.command()
@_KINDS
@click.option(
    "--archive",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file for `docker load` instead, whoever made it; needs its kind.",
)
@_JSON
@click.pass_context
def verify(
    context: click.Context, kinds: tuple[str, ...], archive: Path | None, json: bool
) -> None:
    """Check that images keep their contract; all of them, or those of KINDS.

    One program, no shell, no right that a file could give, no library too many or too few, the
    files that its bill of materials names and no other, the digest that is pinned. Nothing of
    an image is run. Exit status 1 when one does not.
    """
    if archive is not None:
        if len(kinds) != 1:
            raise click.UsageError("say which kind of image the archive has to be")
        breaches = verify_archive(archive, ImageKind(kinds[0]))
        if json:
            print_json([{"kind": kinds[0], "archive": str(archive), "breaches": breaches}])
        else:
            said = "DO NOT USE" if breaches else "one program, ready to be loaded"
            click.echo(f"{tick(not breaches)} {kinds[0]:<10} {archive.name}  {said}")
            _print_breaches(breaches)
        context.exit(1 if breaches else 0)
    settings = Settings.load()
    chosen = [i for i in list_images(settings) if not kinds or i.kind.value in kinds]
    found = [(image, verify_image(image)) for image in chosen]
    if json:
        print_json([{**_named(image), "breaches": breaches} for image, breaches in found])
    for image, breaches in found if not json else ():
        against = "equal to the lock" if image.pinned else "not pinned by this version"
        said = "DO NOT USE" if breaches else "one program, every file named"
        click.echo(
            f"{tick(not breaches)} {image.kind.value:<10} {image.digest[:12]}  {image.arch}  "
            f"{said}, {against}"
        )
        _print_breaches(breaches)
    if not found and not json:
        click.echo("No such image yet. Run: chainctl images build")
    if not found or any(breaches for _, breaches in found):
        context.exit(1)


@images.command()
@_KINDS
@_JSON
def load(kinds: tuple[str, ...], json: bool) -> None:
    """Load images into the Docker daemon; all of them, or those of KINDS.

    Chains do that by themselves. It is for containers of your own.
    """
    from chainctl.runtime.container import Archive
    from chainctl.runtime.docker_daemon import Daemon

    settings = Settings.load()
    daemon = Daemon(settings.docker_socket)
    loaded = []
    for kind in ImageKind:
        if kinds and kind.value not in kinds:
            continue
        image = ensure_image(kind, settings)
        packed = pack_image(image)
        ids = (packed.config_digest, packed.manifest_digest)
        docker_id = daemon.have_image(Archive(ids, packed.data))
        named = {**_named(image), "reference": packed.reference, "docker_id": docker_id}
        loaded.append(named)
        if not json:
            click.echo(f"{tick(True)} {kind.value:<10} {packed.reference}  {docker_id}")
    if json:
        print_json(loaded)


@images.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_ARCH
def lock(file: Path, arch: str | None) -> None:
    """Write a lock FILE of the packages Debian has now."""
    pinned = pin_current(arch or machine_arch(), Settings.load())
    file.write_text(render_lock(pinned))
    for kind, pins in pinned.images.items():
        versions = ", ".join(f"{p.name} {p.version}" for p in pins.packages)
        click.echo(f"{tick(True)} {kind.value:<10} {pins.digest[:12]}  {versions}")


def _print_built(image: Image, seconds: float) -> None:
    click.echo(
        f"{tick(True)} {image.kind.value:<10} {image.digest[:12]}  "
        f"{_mib(image.size)}  {seconds:.1f} s"
    )
    if not image.pinned:
        click.echo(
            "Note [N701] the pinned packages are gone from Debian's mirrors; "
            f"took what is signed now: {', '.join(image.packages)}"
        )


def _print_breaches(breaches: list[str]) -> None:
    for words in breaches:
        click.echo(f"  {words}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _named(image: Image) -> dict[str, Any]:
    return {
        "kind": image.kind.value,
        "arch": image.arch,
        "digest": image.digest,
        "pinned": image.pinned,
    }


def _facts(image: Image, *, whole: bool) -> dict[str, Any]:
    return {
        **_named(image),
        "whole": whole,
        "version": image.version,
        "root": str(image.root),
        "sbom": str(image.sbom),
        "entrypoint": list(image.entrypoint),
        "executables": executables(image),
        "size": image.size,
        "gzip_size": image.gzip_size,
        "licence": image.licence,
        "packages": list(image.packages),
    }
