"""How large a hop's image is, as one would ship it: a tar file, gzip at its best."""

from __future__ import annotations

import gzip

from bench.harness import Result, at_most, row
from chainctl.images.image import ensure_image, pack_image
from chainctl.images.lock import ImageKind
from chainctl.settings import Settings


@row("image_wireguard", unit="MiB", target=at_most(3))
def image_wireguard() -> Result:
    return _size(ImageKind.WIREGUARD)


@row("image_openvpn", unit="MiB", target=at_most(6))
def image_openvpn() -> Result:
    return _size(ImageKind.OPENVPN)


def _size(kind: ImageKind) -> Result:
    archive = pack_image(ensure_image(kind, Settings.load())).data
    size = len(gzip.compress(archive, compresslevel=9, mtime=0)) / 2**20
    return Result(size, samples=[size])
