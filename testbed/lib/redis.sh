# shellcheck shell=bash
# Redis servers without persistence: what tests may rely on is what a failover leaves, which is nothing.

# start_redis PART PORT [OPTION...]
start_redis() {
  local part=$1 port=$2 dir=$RUN/$1
  shift 2
  needs_command redis-server
  mkdir -p "$dir"
  # set-proc-title would write over the environment that pids_of reads.
  launch "$RUN" "$part" "$dir/stdout.log" redis-server --port "$port" --bind "$ADDRESS" --protected-mode no --dir "$dir" \
    --save '' --appendonly no --daemonize no --set-proc-title no "$@"
}

redis_answers() { [ "$(timeout 2 redis-cli -h "$ADDRESS" -p "$1" ping 2>&1)" = PONG ]; }

settle_redis_cluster() {
  local port
  if ! redis-cli -h "$ADDRESS" -p "$REDIS_CLUSTER_PORT" cluster info | grep -q cluster_state:ok; then
    redis-cli --cluster create "$ADDRESS:$REDIS_CLUSTER_PORT" "$ADDRESS:$((REDIS_CLUSTER_PORT + 1))" "$ADDRESS:$((REDIS_CLUSTER_PORT + 2))" \
      --cluster-replicas 0 --cluster-yes >"$RUN/redis-cluster-1/create.log" || die "the Redis cluster couldn't be made: see $RUN/redis-cluster-1/create.log"
  fi
  for port in $REDIS_CLUSTER_PORT $((REDIS_CLUSTER_PORT + 1)) $((REDIS_CLUSTER_PORT + 2)); do
    await 20 "cluster" redis_cluster_is_whole "$port" || die "the Redis cluster isn't whole after 20 s: see $RUN/redis-cluster-*"
  done
}

redis_cluster_is_whole() { redis-cli -h "$ADDRESS" -p "$1" cluster info | grep -q cluster_state:ok; }
