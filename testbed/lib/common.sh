# shellcheck shell=bash
# Shared by the testbed's commands: where things live, how processes are started, found again and stopped.
#
# A process that the testbed starts carries CARILLON_TESTBED=<run folder>:<part> in its environment, and so do
# its children. That is how it is found again, even when the command that started it was killed: a pid file
# could name somebody else's process by then.

set -euo pipefail

TESTBED=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CARILLON_CACHE=${CARILLON_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set; set CARILLON_CACHE to a folder for caches}/.cache}/carillon}
export CARILLON_CACHE

# --- talking ---

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
usage_error() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 64; }

seconds_now() { date +%s.%N; }
seconds_since() { awk -v from="$1" -v to="$(seconds_now)" 'BEGIN { printf "%.1f", to - from }'; }

# --- what install made, by the content that it was made from ---

# made_from FILE...: twelve digits that change when any of the files does.
made_from() { cat -- "$@" | sha256sum | cut -c1-12; }

kubernetes_dir() { echo "$CARILLON_CACHE/kubernetes-$(made_from "$TESTBED"/tools/kubernetes/{go.mod,go.sum,cluster/main.go,pause/main.go})"; }
coredns_dir() { echo "$CARILLON_CACHE/coredns-$(made_from "$TESTBED"/tools/coredns/{go.mod,go.sum,main.go})"; }
helm_dir() { echo "$CARILLON_CACHE/helm-$(made_from "$TESTBED"/tools/helm/{go.mod,go.sum})"; }
prometheus_dir() { echo "$CARILLON_CACHE/prometheus-$(made_from "$TESTBED"/tools/prometheus/{go.mod,go.sum})"; }
kubeconform_dir() { echo "$CARILLON_CACHE/kubeconform-$(made_from "$TESTBED"/tools/kubeconform/{go.mod,go.sum})"; }
tiltfile_dir() { echo "$CARILLON_CACHE/tiltfile-$(made_from "$TESTBED"/tools/tiltfile/{go.mod,go.sum,main.go})"; }
definitions_dir() { echo "$CARILLON_CACHE/definitions-$(made_from "$TESTBED/tools/definitions/pinned")"; }
smtp_dir() { echo "$CARILLON_CACHE/smtp-$(made_from "$TESTBED"/tools/smtp/{requirements.txt,server.py})"; }
cassandra_dir() { echo "$CARILLON_CACHE/cassandra-$(made_from "$TESTBED/tools/cassandra/pom.xml")"; }

# needs DIR: the folder that install should have made.
needs() { [ -d "$1" ] || die "$1 is missing: run testbed/install first"; }
needs_command() { command -v "$1" >/dev/null || die "$1 is not installed: run testbed/install first"; }

# --- processes ---

# launch RUN PART LOG COMMAND...: starts the command in a session of its own, detached from this terminal.
# File descriptor 9 is the lock that the commands hold: a server that inherited it would hold it for ever.
launch() {
  local run=$1 part=$2 log=$3
  shift 3
  CARILLON_TESTBED="$run:$part" setsid nohup "$@" >>"$log" 2>&1 </dev/null 9>&- &
  disown
}

# pids_of RUN PART: the live processes of a part; PART '*' means all of them.
pids_of() {
  local mark="CARILLON_TESTBED=$1:$2" whole_line=-x file pid
  if [ "$2" = '*' ]; then
    mark="CARILLON_TESTBED=$1:"
    whole_line=
  fi
  # shellcheck disable=SC2086
  { grep -slzF $whole_line -- "$mark" /proc/[0-9]*/environ || true; } | while read -r file; do
    pid=${file#/proc/}
    pid=${pid%/environ}
    if is_live "$pid"; then echo "$pid"; fi
  done
}

# is_live PID: false once it has closed its files. Until the last thread has ended, a zombie may still hold ports.
is_live() {
  local threads=("/proc/$1/task/"*)
  [ -d "/proc/$1" ] || return 1
  [ ${#threads[@]} -gt 1 ] || ! grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"
}

# signal_part RUN PART SIGNAL
signal_part() {
  local pids
  mapfile -t pids < <(pids_of "$1" "$2")
  [ ${#pids[@]} -eq 0 ] || kill -s "$3" "${pids[@]}" 2>/dev/null || true
}

# stop RUN PART SECONDS: asks, waits that long, then insists.
stop() {
  local pids
  mapfile -t pids < <(pids_of "$1" "$2")
  signal_part "$1" "$2" TERM
  # A paused process can't act on a request.
  signal_part "$1" "$2" CONT
  all_gone "$3" "${pids[@]}" || kill_now "$1" "$2"
}

kill_now() {
  local pids round
  # Twice, for what a process may have started while it was being killed.
  for round in 1 2; do
    mapfile -t pids < <(pids_of "$1" "$2")
    [ ${#pids[@]} -gt 0 ] || return 0
    signal_part "$1" "$2" KILL
    all_gone 10 "${pids[@]}" || [ "$round" = 1 ] || die "these processes of $2 survive SIGKILL: ${pids[*]}"
  done
}

# all_gone SECONDS PID...: whether they all end in that time.
all_gone() {
  local until=$((SECONDS + $1)) pid
  shift
  for pid in "$@"; do
    while is_live "$pid"; do
      [ "$SECONDS" -lt "$until" ] || return 1
      sleep 0.02
    done
  done
}

# await SECONDS WHAT COMMAND...: polls until the command succeeds.
await() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.1
  done
}

# one_at_a_time FILE: two commands over the same folder wait for each other.
one_at_a_time() {
  mkdir -p "$(dirname "$1")"
  exec 9>"$1"
  flock -n 9 || { say "another testbed command is at work; waiting for it"; flock 9; }
}

# has_address ADDRESS: whether it's one of this machine's.
has_address() { case $1 in 127.*) true ;; *) ip -o -4 address show | grep -qF " $1/" ;; esac; }
