# shellcheck shell=bash
# Shared by the installers: Debian packages, and pieces that are made once and kept in the cache folder. Wants common.sh.
#
# An installer sets PACKAGES, SERVICES (those of them that would start a server) and has_other_way PACKAGE (whether something that
# isn't the package will do), and defines make_<piece> DIR and, if a piece needs it, settle_<piece>.

missing_packages() {
  local package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed && continue
    has_other_way "$package" && continue
    echo "$package"
  done
}

make_packages() {
  local missing package log made_policy='' policy=/usr/sbin/policy-rc.d
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" = 0 ] || die "these Debian packages are missing; install them as root: ${missing[*]}"
  # The servers of these packages must not start: each user starts its own, on its own ports.
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made_policy=1
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  # apt says much that nobody reads unless it fails.
  log=$CARILLON_CACHE/packages.log
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"; } \
    </dev/null >"$log" 2>&1 || { tail -n 20 "$log"; die "apt-get failed; all that it said is in $log"; }
  [ ! -d /run/systemd/system ] || for package in "${SERVICES[@]}"; do
    case " ${missing[*]} " in *" $package "*) systemctl disable -q "$package" ;; esac
  done
  [ -z "$made_policy" ] || rm -f $policy
  trap - EXIT
}

packages() {
  local started missing
  started=$(seconds_now)
  missing=$(missing_packages | tr '\n' ' ')
  if [ -z "$missing" ]; then
    say "$(printf '%-12s already there' packages)"
    return
  fi
  say "$(printf '%-12s installing %s…' packages "$missing")"
  make_packages >&2
  say "$(printf '%-12s installed in %s s' packages "$(seconds_since "$started")")"
}

# go_build FOLDER OUT LDFLAGS PACKAGE
go_build() {
  command -v go >/dev/null || die "Go is missing (1.21 or later): put it on the PATH"
  (cd "$1" && CGO_ENABLED=0 nice -n 10 go build -trimpath -ldflags "-s -w $3" -o "$2" "$4")
}

settle() { if declare -F "settle_$1" >/dev/null; then "settle_$1"; fi; }

# piece NAME DIR: makes it beside its place and moves it there when it's whole, so that an install that was
# interrupted leaves no half-made piece. DIR ends in a dash and what it was made from; folders made from something else go.
piece() {
  local name=$1 dir=$2 started old
  started=$(seconds_now)
  if [ -d "$dir" ]; then
    settle "$name"
    say "$(printf '%-12s already there (%s)' "$name" "$dir")"
    return
  fi
  say "$(printf '%-12s building …' "$name")"
  rm -rf "$dir.part"
  mkdir -p "$dir.part"
  "make_$name" "$dir.part"
  mv "$dir.part" "$dir"
  settle "$name"
  for old in "${dir%-*}"-*; do
    [ "$old" = "$dir" ] || rm -rf "$old"
  done
  say "$(printf '%-12s built in %s s' "$name" "$(seconds_since "$started")")"
}
