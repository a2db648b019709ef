# shellcheck shell=bash
# Cassandra from its jars: one node, or three on 127.0.0.1, .2 and .3.

# cassandra_address NODE: where it speaks CQL. Only a single node can listen elsewhere than on loopback.
cassandra_address() { if [ "$CASSANDRA_NODES" = 1 ]; then echo "$ADDRESS"; else echo "127.0.0.$1"; fi; }

start_cassandra() {
  local node=$1 dir=$RUN/cassandra-$1 jars address gossip_address token=0 package port commit_log java=() archive classpath
  jars=$(cassandra_dir)
  needs "$jars"
  case $CASSANDRA_NODES in
    1) ;;
    3)
      case $ADDRESS in 127.*) ;; *) die "three Cassandra nodes listen on loopback only; leave CARILLON_STORES_ADDR out" ;; esac
      case $node in 1) token=-9223372036854775808 ;; 2) token=-3074457345618258603 ;; 3) token=3074457345618258602 ;; esac
      ;;
    *) usage_error "CARILLON_CASSANDRA_NODES is 1 or 3, not $CASSANDRA_NODES" ;;
  esac
  address=$(cassandra_address "$node")
  gossip_address=127.0.0.$node
  for port in "$address/$CASSANDRA_PORT" "$gossip_address/$CASSANDRA_STORAGE_PORT"; do
    if (exec 3<>"/dev/tcp/$port") 2>/dev/null; then
      die "port ${port/\//:} is taken by something else; set CARILLON_CASSANDRA_PORT and CARILLON_CASSANDRA_STORAGE_PORT"
    fi
  done
  # A single node is also the only copy: what it acknowledged must be on disk when a test kills it.
  commit_log='commitlog_sync: batch'
  [ "$CASSANDRA_TUNING" = test ] || commit_log=$'commitlog_sync: periodic\ncommitlog_sync_period: 10000ms'
  mkdir -p "$dir/conf" "$dir/tmp"
  cat >"$dir/conf/cassandra.yaml" <<YAML
cluster_name: carillon
num_tokens: 1
initial_token: $token
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "127.0.0.1:$CASSANDRA_STORAGE_PORT"}]
listen_address: $gossip_address
storage_port: $CASSANDRA_STORAGE_PORT
rpc_address: $address
native_transport_port: $CASSANDRA_PORT
auto_bootstrap: false
$commit_log
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
auto_snapshot: false
hinted_handoff_enabled: true
concurrent_reads: 16
concurrent_writes: 16
concurrent_counter_writes: 16
file_cache_size: 64MiB
key_cache_size: 16MiB
counter_cache_size: 8MiB
memtable_heap_space: 192MiB
memtable_offheap_space: 64MiB
memtable_allocation_type: heap_buffers
disk_failure_policy: stop
uuid_sstable_identifiers_enabled: true
materialized_views_enabled: false
read_request_timeout: 10s
write_request_timeout: 10s
counter_write_request_timeout: 10s
cas_contention_timeout: 5s
YAML
  cat >"$dir/conf/logback.xml" <<'XML'
<configuration>
  <appender name="FILE" class="ch.qos.logback.core.FileAppender">
    <file>${cassandra.logdir}/system.log</file>
    <encoder><pattern>%-5level [%thread] %date{ISO8601} %F:%L - %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="FILE"/></root>
</configuration>
XML
  for package in java.base/{jdk.internal.misc,jdk.internal.ref,sun.nio.ch} java.management.rmi/com.sun.jmx.remote.internal.rmi \
    java.rmi/sun.rmi.{registry,server,transport.tcp} java.sql/java.sql; do
    java+=(--add-exports "$package=ALL-UNNAMED")
  done
  for package in java.base/{java.lang,java.lang.module,java.lang.reflect,java.io,java.net,java.nio,java.util,java.util.concurrent,java.util.concurrent.atomic} \
    java.base/{jdk.internal.loader,jdk.internal.ref,jdk.internal.reflect,jdk.internal.math,jdk.internal.module,jdk.internal.util.jar,sun.nio.ch} \
    jdk.management/com.sun.management.internal; do
    java+=(--add-opens "$package=ALL-UNNAMED")
  done
  # The archive of loaded classes is only taken for the class path that it was made with, in the same order.
  classpath=$(printf '%s:' "$jars"/lib/*.jar)
  archive=$jars/classes.jsa
  if [ "$CASSANDRA_TUNING" = test ]; then
    # Every test has a keyspace of its own, and the node keeps something of each table in memory.
    java+=(-Xms256M -Xmx1792M -XX:TieredStopAtLevel=1
      -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=$([ "$node" = 1 ] && echo 500 || echo 10000)
      -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.consistent.rangemovement=false)
    if [ -f "$archive" ]; then java+=("-XX:SharedArchiveFile=$archive"); fi
    if [ -n "${CASSANDRA_RECORD_CLASSES:-}" ]; then java+=("-XX:ArchiveClassesAtExit=$archive"); fi
  else
    java+=(-Xms1024M -Xmx1024M)
  fi
  launch "$RUN" "cassandra-$node" "$dir/stdout.log" java "${java[@]}" -Xss512k -XX:+UseSerialGC -XX:-UsePerfData -Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off \
    -Djdk.attach.allowAttachSelf=true -Djava.net.preferIPv4Stack=true -Dio.netty.tryReflectionSetAccessible=true \
    -Dcassandra.storagedir="$dir" -Dcassandra.logdir="$dir" -Djava.io.tmpdir="$dir/tmp" -Djna.tmpdir="$dir/tmp" \
    -Dcassandra.config="file://$dir/conf/cassandra.yaml" -Dlogback.configurationFile="$dir/conf/logback.xml" -Dcassandra-foreground=yes \
    -cp "${classpath%:}" org.apache.cassandra.service.CassandraDaemon
}

# cql ADDRESS CONSISTENCY STATEMENT: sends it over the native protocol (version 4) and prints the answer's
# opcode and, for a result, its kind: "8 2" is rows, "8 1" nothing, "8 5" a schema change, "0" an error.
cql() {
  # shellcheck disable=SC2016
  timeout 12 bash -c '
    exec 3<>"/dev/tcp/$0/$1" || exit 1
    u16() { printf "\\%03o\\%03o" $(($1 >> 8 & 255)) $(($1 & 255)); }
    u32() { u16 $(($1 >> 16)); u16 $(($1 & 65535)); }
    # STARTUP {CQL_VERSION: 3.0.0}, answered with READY (2); then QUERY.
    printf "\4\0\0\0\1\0\0\0\26\0\1\0\13CQL_VERSION\0\0053.0.0" >&3
    [ "$(head -c 9 <&3 | od -An -tu1 | awk "{print \$5}")" = 2 ] || exit 1
    printf "\4\0\0\1\7$(u32 $((4 + ${#3} + 3)))$(u32 ${#3})%s$(u16 "$2")\0" "$3" >&3
    set -- $(head -c 13 <&3 | od -An -tu1)
    if [ "$5" = 8 ]; then echo "8 ${13}"; else echo "$5"; fi
  ' "$1" "$CASSANDRA_PORT" "$2" "$3" 2>/dev/null
}

cassandra_answers() { [ "$(cql "$1" 1 'SELECT release_version FROM system.local')" = '8 2' ]; }

# Three nodes that answer don't yet agree that they are three: each must reach all of them.
settle_cassandra() {
  local node
  [ "$CASSANDRA_NODES" -gt 1 ] || return 0
  await 60 'a keyspace on all nodes' cassandra_does 127.0.0.1 1 "CREATE KEYSPACE IF NOT EXISTS testbed WITH replication = {'class': 'SimpleStrategy', 'replication_factor': $CASSANDRA_NODES}" &&
    await 60 'a table on all nodes' cassandra_does 127.0.0.1 1 'CREATE TABLE IF NOT EXISTS testbed.reached (node int PRIMARY KEY)' ||
    die "the Cassandra nodes don't agree on a schema: see $RUN/cassandra-*/system.log"
  for ((node = 1; node <= CASSANDRA_NODES; node++)); do
    # Consistency 5 is ALL.
    await 60 'a write to all nodes' cassandra_does "127.0.0.$node" 5 "INSERT INTO testbed.reached (node) VALUES ($node)" ||
      die "Cassandra node $node doesn't reach the others: see $RUN/cassandra-$node/system.log"
  done
  cassandra_does 127.0.0.1 1 'DROP KEYSPACE testbed' || die "the keyspace testbed can't be dropped"
}

cassandra_does() { case $(cql "$@") in 8*) true ;; *) false ;; esac; }
