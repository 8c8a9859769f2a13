# One node, its data in the volume. Inside the compose network it listens without TLS; outside
# only this machine reaches it, because compose.yaml publishes it on 127.0.0.1.
storage "raft" {
  path    = "/openbao/file"
  node_id = "openbao"
}

listener "tcp" {
  address     = "0.0.0.0:8200"
  tls_disable = true
}

api_addr     = "http://openbao:8200"
cluster_addr = "http://openbao:8201"
