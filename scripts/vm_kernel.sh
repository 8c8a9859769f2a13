#!/usr/bin/env bash
# Fetch Debian's kernel for the test machine into .make/vm, without installing it: apt verifies
# it, and nothing of this host's own boot changes. Does nothing when it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .make/vm
cd .make/vm

[[ -e kernel/complete ]] && exit
package=$(apt-cache depends linux-image-"$(dpkg --print-architecture)" |
	sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
echo "fetching ${package:?not known to apt; run apt-get update} for the test machine"
rm -rf kernel ./*.deb
apt-get download "$package" >../apt.log 2>&1 || { apt-get update && apt-get download "$package"; } >>../apt.log 2>&1
dpkg-deb --extract ./*.deb kernel
rm ./*.deb
busybox depmod -b "$PWD/kernel" "${package#linux-image-}"
touch kernel/complete
