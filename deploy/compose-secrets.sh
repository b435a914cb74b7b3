#!/bin/sh
# Make the passwords, keys and certificates that compose.yaml wants, in deploy/secrets, each readable by its user alone.
#
#   sudo deploy/compose-secrets.sh [HOST]
#
# HOST  a name or an address under which clients dial this machine, for the control plane's certificate.
#
# What is there already stays: run it again to renew the certificates, and have the daemons see them with
# `docker compose restart` (a file that is mounted by itself stays the old one until then). Keep a copy of `kek` away from
# this machine: without it the database is unreadable, and with it readable.
# SPEAKERD names the command to make certificates with, where it is not on PATH and there is no Docker.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
secrets="$here/secrets"
host=${1:-localhost}
umask 077
mkdir -p "$secrets/certs"

random() { head -c 32 /dev/urandom | base64 | tr -d '=+/\n'; }
# write NAME UID TEXT: once, for that user alone.
write() {
    [ -s "$secrets/$1" ] || printf '%s\n' "$3" > "$secrets/$1"
    chmod 0400 "$secrets/$1"
    chown "$2" "$secrets/$1"
}
secret() { sed -n "s/$2/\\1/p" "$secrets/$1"; }

ours=10001 redis=999
write postgres_password 0 "$(random)"
write database_url $ours "postgresql+asyncpg://speakerd:$(cat "$secrets/postgres_password")@database/speakerd"
write kek $ours "$(head -c 32 /dev/urandom | base64)"
[ -s "$secrets/redis.conf" ] || printf 'dir /data\nappendonly yes\nappendfsync everysec\nrequirepass %s\n' "$(random)" > "$secrets/redis.conf"
write redis.conf $redis ""
write redis_url $ours "redis://:$(secret redis.conf '^requirepass \(.*\)$')@redis:6379/0"
[ -s "$secrets/object-store.env" ] ||
    printf 'AWS_ACCESS_KEY_ID=speakerd\nAWS_SECRET_ACCESS_KEY=%s\n' "$(random)" > "$secrets/object-store.env"
write objects.json 0 "$(printf '{"identities": [{"name": "speakerd", "credentials": [{"accessKey": "speakerd", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}' \
    "$(secret object-store.env '^AWS_SECRET_ACCESS_KEY=\(.*\)$')")"

arguments="--node node-1 --node node-2 --host controlplane --host $host --days 90"
if command -v "${SPEAKERD:-speakerd}" > /dev/null; then
    # shellcheck disable=SC2086  # several arguments
    "${SPEAKERD:-speakerd}" certs init "$secrets/certs" $arguments
else
    # shellcheck disable=SC2086
    docker run --rm --user 0 --volume "$secrets/certs:/certs" speakerd:controlplane certs init /certs $arguments
fi
chmod 0400 "$secrets"/certs/*.key
chown $ours "$secrets"/certs/*.crt "$secrets"/certs/*.key
chown 0 "$secrets/certs/ca.key" # it makes certificates: no daemon has it
