auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
template {
  destination = "/app/secrets/x"
  contents    = "static"
}
