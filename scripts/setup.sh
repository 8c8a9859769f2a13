#!/usr/bin/env bash
# Make this machine ready: scripts/setup.sh TIER...   (run build check test bench vm)
#
# Looks for commands, libraries and headers, not for packages, so that what is there already
# is kept whoever installed it. What is missing is installed from Debian in one call that
# removes nothing. Then makes .venv from the hashed locks. Does nothing when nothing is to do.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # where an ordinary user does not look

# tier  kind  name  Debian package  what for
needs() {
	cat <<'END'
any    python   venv              python3-venv            the Python environment
run    library  libnftables.so.1  libnftables1            the nftables layer of every namespace
run    library  libbpf.so.1       libbpf1                 loads the identity filter
run    command  runc              runc                    runs the VPN client of a hop
run    command  gpgv              gpgv                    verifies what hop images are made of
run    file     /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring  the keys for that
run    command  ip                iproute2                builds the lab
run    command  wg                wireguard-tools         configures the servers of the lab
run    command  openvpn           openvpn                 is a server of the lab
run    command  openssl           openssl                 signs for those servers
build  command  clang             clang                   compiles the identity filter
build  header   linux/bpf.h       linux-libc-dev          compiles the identity filter
build  header   asm/types.h       linux-libc-dev          compiles the identity filter
build  header   bpf/bpf_helpers.h libbpf-dev              compiles the identity filter
check  command  git               git                     lists the files to check
check  command  clang-format      clang-format            checks the form of bpf/
test   command  git               git                     lists the files to check
test   command  nft               nftables                breaks rules by hand
test   command  strace            strace                  kills before every system call
test   command  gcc               gcc                     compiles the break-in attempts
test   command  openssl           openssl                 makes certificates for it
test   header   stdio.h           libc6-dev               compiles the break-in attempts
test   command  busybox           busybox-static          is all that containers in tests hold
test   command  dockerd           docker.io               a Docker daemon of the tests' own
test   command  openssl           openssl                 makes the authority of the compose lab
bench  command  nft               nftables                the hand-wired baseline
bench  command  iperf3            iperf3                  measures throughput
vm     command  qemu-system-x86_64 qemu-system-x86       boots another kernel
vm     command  cpio              cpio                    packs the first file system of the machine
vm     command  busybox           busybox-static          is all that file system holds
END
}

environment_works() {
	.venv/bin/python -c '' 2>/dev/null
}

find_python() {
	local name path
	for name in python3.14 python3.13 python3.12 python3.11 python3; do
		while read -r path; do
			if "$path" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
				2>/dev/null; then
				echo "$path"
				return
			fi
		done < <(type -ap "$name")
	done
	return 1
}

present() {
	local kind=$1 name=$2
	case $kind in
	command) command -v "$name" >/dev/null ;;
	# Not by a pipe into grep -q, which ends early: then ldconfig fails, and with it the pipe.
	library) [[ $(ldconfig -p) == *"$name "* ]] ;;
	header) compgen -G "/usr/include/$name" >/dev/null ||
		compgen -G "/usr/include/$(uname -m)-linux-gnu/$name" >/dev/null ||
		compgen -G "/usr/local/include/$name" >/dev/null ;;
	file) [[ -e $name ]] ;;
	python) environment_works || find_python >/dev/null ;;
	esac
}

install_system() {
	local tier kind name package purpose packages=()
	while read -r tier kind name package purpose; do
		[[ " any $* " == *" $tier "* ]] || continue
		present "$kind" "$name" && continue
		echo "missing: $kind $name ($purpose), in Debian's package $package"
		[[ " ${packages[*]} " == *" $package "* ]] || packages+=("$package")
	done < <(needs)
	((${#packages[@]})) || return 0

	if ! command -v apt-get >/dev/null; then
		echo "This is no Debian system: install what is missing, then run this again." >&2
		return 1
	fi
	local apt=(apt-get install --yes --no-remove --no-install-recommends "${packages[@]}")
	if ((EUID)); then
		echo "Needs root: run sudo ${apt[*]}" >&2
		return 1
	fi
	echo "installing: ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	keep_services_off
	# An old or empty list of packages is the usual reason for a failure, so it is renewed then.
	"${apt[@]}" >.make/apt.log 2>&1 || { apt-get update && "${apt[@]}"; } >>.make/apt.log 2>&1 || {
		tail -n 20 .make/apt.log >&2
		echo "apt-get failed; nothing was removed. Its whole output: .make/apt.log" >&2
		return 1
	}
	# Tests start daemons of their own; a machine's own Docker is its owner's to switch on.
	if [[ " ${packages[*]} " == *" docker.io "* ]] && command -v systemctl >/dev/null; then
		systemctl --quiet disable docker.service docker.socket containerd.service || true
	fi
}

# What is installed here starts nothing (invoke-rc.d(8)).
keep_services_off() {
	[[ -e /usr/sbin/policy-rc.d ]] && return
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
}

make_environment() {
	local python stamp
	stamp=$(cat requirements-uv.lock requirements-dev.lock pyproject.toml | sha256sum)
	if [[ -x .venv/bin/chainctl && -f .make/venv && $(<.make/venv) == "$stamp" ]] &&
		environment_works; then
		return
	fi
	python=$(find_python) || {
		echo "No Python >= 3.11 with the module venv was found. On Debian: python3-venv" >&2
		return 1
	}
	echo "making .venv with $("$python" --version) from the hashed locks"
	rm -f .make/venv
	"$python" -m venv --clear .make/uv
	.make/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements-uv.lock
	local uv=.make/uv/bin/uv
	environment_works || "$uv" venv --quiet --clear --python "$python" .venv
	export VIRTUAL_ENV=.venv
	"$uv" pip install --quiet --compile-bytecode --require-hashes --requirement requirements-dev.lock
	"$uv" pip install --quiet --no-deps --no-build-isolation --editable .
	echo "$stamp" >.make/venv
}

mkdir -p .make
# Two calls at once (make -j, two terminals) would undo each other's work.
exec 9<.make
flock 9
install_system "$@"
make_environment
