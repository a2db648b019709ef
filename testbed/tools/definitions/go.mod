// Nothing is built of these modules: they carry the definitions (CRDs) of other operators, pinned by go.sum.
module carillon.chat/testbed/definitions

go 1.24

require github.com/prometheus-operator/prometheus-operator v0.85.0
