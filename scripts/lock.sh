#!/usr/bin/env bash
# Renew the hashed locks to the newest versions that pyproject.toml allows, for every platform
# and every Python it supports. The locks name no index: they are good with any mirror.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
	local output=$1
	shift
	.make/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --output-file "$output" "$@" >/dev/null
}

compile requirements.lock pyproject.toml
compile requirements-dev.lock pyproject.toml --group dev
compile requirements-uv.lock - <<<"uv"
