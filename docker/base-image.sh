#!/bin/sh
# base-image.sh [MIRROR]: makes the base image `threadline-base` with debootstrap, for engines that cannot pull one.
# MIRROR is a Debian mirror; without it, the one in this machine's apt sources is used. Needs root for debootstrap.
set -eu
suite=bookworm
image=threadline-base:$suite
# What the Dockerfile would install: here, because a container being built may have no network.
packages=openssh-server,openssh-client,procps,iproute2

main() {
    mirror=${1:-$(machines_mirror)}
    [ -n "$mirror" ] || stop "no Debian mirror in this machine's apt sources; give one as the argument"
    [ "$(id -u)" -eq 0 ] || stop "debootstrap needs root: run it with sudo"
    command -v debootstrap >/dev/null 2>&1 || stop "debootstrap is missing: make deps"

    root=$(mktemp -d)
    trap 'rm -rf --one-file-system "$root"' EXIT
    trap 'exit 130' INT TERM
    keep_services_down
    echo "making $image with debootstrap; this takes a minute or two"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; rm -f "$root.log"; stop "debootstrap failed"; }
    rm -f "$root.log"
    slim_down
    tar --numeric-owner -C "$root" -c . | docker import - "$image" >/dev/null
    echo "$image is ready"
}

stop() {
    echo "base-image.sh: $1" >&2
    exit 1
}

# The first Debian archive that apt knows, whichever form its sources have.
machines_mirror() {
    # shellcheck disable=SC2016 # apt-get's own variables
    apt-get indextargets --format '$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)' 2>/dev/null |
        awk -v suite="$suite" '$1 == "Packages" && $2 == suite && $3 == "main" { print $4; exit }'
}

keep_services_down() {
    mkdir -p "$root/usr/sbin"
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

# Neither package lists nor the mirror's address belong in the image.
slim_down() {
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
        "$root"/var/log/bootstrap.log "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
    : > "$root/etc/apt/sources.list"
    rm -f "$root"/etc/ssh/ssh_host_*
}

main "$@"
