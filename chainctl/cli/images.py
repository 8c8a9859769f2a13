"""`chainctl images`: build and check the images hops run from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from chainctl.cli.output import print_json, tick
from chainctl.images.image import (
    Image,
    ensure_image,
    is_whole,
    list_images,
    machine_arch,
    pin_current,
    rebuild_if_damaged,
)
from chainctl.images.lock import ImageKind, render_lock
from chainctl.settings import Settings

_JSON = click.option("--json", is_flag=True, help="The same facts as JSON.")


@click.group()
def images() -> None:
    """Build and check the images hops run from."""


@images.command()
@click.option("--locked", is_flag=True, help="Refuse packages other than the pinned ones.")
@_JSON
def build(locked: bool, json: bool) -> None:
    """Build what is missing, and what is damaged again.

    Each image is unpacked from packages that Debian signed; nothing from them is run.
    """
    settings = Settings.load()
    built: list[Image] = []
    for kind in ImageKind:
        begun = time.monotonic()
        image = ensure_image(kind, settings, locked=locked)
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
        click.echo(f"{tick(whole)} {image.kind.value:<10} {image.digest[:12]}  {pinned}, {state}")
        click.echo(f"  {', '.join(image.packages)}")
    if not found:
        click.echo("No images yet. Run: chainctl images build")


@images.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--arch", help="Debian's name of the architecture; default: this machine's.")
def lock(file: Path, arch: str | None) -> None:
    """Write a lock FILE of the packages Debian has now."""
    pinned = pin_current(arch or machine_arch(), Settings.load())
    file.write_text(render_lock(pinned))
    for kind, pins in pinned.images.items():
        versions = ", ".join(f"{p.name} {p.version}" for p in pins.packages)
        click.echo(f"{tick(True)} {kind.value:<10} {pins.digest[:12]}  {versions}")


def _print_built(image: Image, seconds: float) -> None:
    size = sum(f.lstat().st_size for f in image.root.rglob("*") if f.is_file())
    click.echo(
        f"{tick(True)} {image.kind.value:<10} {image.digest[:12]}  "
        f"{size / 2**20:.1f} MiB  {seconds:.1f} s"
    )
    if not image.pinned:
        click.echo(
            "Note [N701] the pinned packages are gone from Debian's mirrors; "
            f"took what is signed now: {', '.join(image.packages)}"
        )


def _facts(image: Image, *, whole: bool) -> dict[str, Any]:
    return {
        "kind": image.kind.value,
        "digest": image.digest,
        "root": str(image.root),
        "entrypoint": list(image.entrypoint),
        "pinned": image.pinned,
        "whole": whole,
        "packages": list(image.packages),
    }
