#!/bin/sh
# What the entry point of Immich's Postgres image does at a first start: a cluster with checksums and the database.
set -e
bin=/usr/lib/postgresql/17/bin data=/var/lib/postgresql/data
export LC_ALL=C.UTF-8
if [ -z "$(ls -A $data 2>/dev/null)" ]; then
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    $bin/initdb -D $data -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 \
        --encoding=UTF8 --locale-provider=icu --icu-locale=und --data-checksums --no-sync --no-instructions >/tmp/initdb.log
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "CREATE DATABASE $POSTGRES_DB" | $bin/postgres --single -D $data postgres >/dev/null 2>&1
fi
exec $bin/postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp -c shared_buffers=32MB \
    -c max_connections=100 -c wal_keep_size=0 -c max_wal_size=64MB -c min_wal_size=32MB "$@"
