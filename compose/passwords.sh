#!/usr/bin/env bash
# Make the passwords and keys that compose.yaml needs, each once, below compose/secrets.
# The images read them as the user 1000, so they belong to him: run it as root or as that user.
set -euo pipefail
cd "$(dirname "$0")"
umask 077

make() {
	local name=$1
	if [[ -s secrets/$name ]]; then
		cat >/dev/null
		return
	fi
	cat >"secrets/$name.new"
	chmod 0400 "secrets/$name.new"
	((EUID)) || chown 1000:1000 "secrets/$name.new"
	mv "secrets/$name.new" "secrets/$name"
	echo "made compose/secrets/$name"
}

random() {
	head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

mkdir -p secrets
((EUID)) || chown 1000:1000 secrets
random | make elastic
random | make kibana
make kibana.yml <<END
server.host: 0.0.0.0
elasticsearch.hosts: ["http://elasticsearch:9200"]
elasticsearch.username: kibana_system
elasticsearch.password: "$(cat secrets/kibana)"
xpack.encryptedSavedObjects.encryptionKey: "$(random)"
xpack.reporting.encryptionKey: "$(random)"
xpack.security.encryptionKey: "$(random)"
telemetry.optIn: false
END
