# shellcheck shell=bash
# RabbitMQ without systemd, with a port mapper (epmd) of its own. Both keep their data over a restart.

start_rabbitmq() {
  local dir=$RUN/rabbitmq
  [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || die "rabbitmq-server is not installed: run testbed/install first"
  mkdir -p "$dir"/{mnesia,log,home}
  cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = $ADDRESS:$RABBITMQ_PORT
loopback_users = none
log.console = false
log.file.level = warning
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 200MB
CONF
  printf '[].\n' >"$dir/enabled_plugins"
  [ -n "$(pids_of "$RUN" rabbitmq-epmd)" ] ||
    launch "$RUN" rabbitmq-epmd "$dir/epmd.log" epmd -port "$RABBITMQ_EPMD_PORT" -address 127.0.0.1
  await 5 epmd rabbitmq_epmd_listens || die "epmd doesn't listen on $RABBITMQ_EPMD_PORT: see $dir/epmd.log; is the port taken?"
  launch "$RUN" rabbitmq "$dir/stdout.log" env \
    HOME="$dir/home" RABBITMQ_NODENAME="carillon$RABBITMQ_PORT@localhost" RABBITMQ_NODE_IP_ADDRESS="$ADDRESS" RABBITMQ_NODE_PORT="$RABBITMQ_PORT" \
    RABBITMQ_DIST_PORT=$((RABBITMQ_PORT + 20000)) RABBITMQ_MNESIA_BASE="$dir/mnesia" RABBITMQ_LOG_BASE="$dir/log" \
    RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" RABBITMQ_PID_FILE="$dir/pid" \
    RABBITMQ_CONF_ENV_FILE=/dev/null ERL_EPMD_PORT="$RABBITMQ_EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1 \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}' \
    /usr/lib/rabbitmq/bin/rabbitmq-server
}

rabbitmq_epmd_listens() { (exec 3<>"/dev/tcp/127.0.0.1/$RABBITMQ_EPMD_PORT") 2>/dev/null; }

# AMQP's handshake: a server that is ready answers the protocol header with connection.start, a method frame (1).
# It stops listening to strangers while it boots.
rabbitmq_answers() {
  local first
  first=$(timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "AMQP\0\0\11\1" >&3 && head -c 1 <&3 | od -An -tu1' "$ADDRESS" "$RABBITMQ_PORT" 2>/dev/null)
  [ "$((first))" = 1 ]
}
