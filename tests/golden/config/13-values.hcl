auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
vault {
  address         = "bao:8200"
  tls_skip_verify = "perhaps"
}
filesystem {
  path     = "secrets"
  size     = "lots"
  fallback = "disk"
}
app {
  wait        = "soon"
  stop_signal = "KILL"
  command     = "python app.py"
}
log {
  level = "loud"
}
