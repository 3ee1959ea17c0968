auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
template {
  destination = "/app/secrets/x"
  contents    = "static"
  command     = "pkill -HUP app"
  on_change   = { restart = true }
}
listener "tcp" {
  address = "127.0.0.1:8100"
}
env_template "DB" {
  contents = "static"
}
exit_after_auth = true
