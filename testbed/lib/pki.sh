# shellcheck shell=bash
# The test node's certificates: one authority, and a kubeconfig for each component. They live as long as the node.

# make_pki DIR ADDRESS NODE [PORT]
make_pki() {
  mkdir -p "$1"
  chmod 700 "$1"
  (cd "$1" && make_certificates "$2" "$3" "${4:-6443}") || die "openssl couldn't make the node's certificates in $1"
}

make_certificates() {
  set -e
  local address=$1 node=$2 port=$3 name
  make_key ca
  openssl req -x509 -new -key ca.key -subj /CN=carillon-testbed -days 30 -out ca.crt -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
  sign apiserver /CN=kube-apiserver serverAuth \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$address"
  sign kubelet "/O=system:nodes/CN=system:node:$node" serverAuth,clientAuth "DNS:$node,IP:$address"
  sign apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
  sign front-proxy /CN=front-proxy-client clientAuth
  sign admin /O=system:masters/CN=admin clientAuth
  sign controller-manager /CN=system:kube-controller-manager clientAuth
  sign scheduler /CN=system:kube-scheduler clientAuth
  sign kube-proxy /CN=system:kube-proxy clientAuth
  sign coredns /CN=coredns clientAuth
  make_key service-account
  openssl ec -in service-account.key -pubout -out service-account.pub 2>/dev/null
  for name in admin controller-manager scheduler kube-proxy coredns kubelet; do write_kubeconfig "$name" "$address" "$port"; done
}

make_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# sign NAME SUBJECT EXTENDED_USAGE [ALTERNATIVE_NAMES]
sign() {
  make_key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  {
    echo keyUsage=critical,digitalSignature
    echo "extendedKeyUsage=$3"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

# write_kubeconfig USER ADDRESS PORT
write_kubeconfig() {
  cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: carillon-testbed
clusters:
  - name: carillon-testbed
    cluster:
      server: https://$2:$3
      certificate-authority-data: $(base64 -w0 ca.crt)
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "$1.crt")
      client-key-data: $(base64 -w0 "$1.key")
contexts:
  - name: carillon-testbed
    context: {cluster: carillon-testbed, user: $1}
YAML
}
