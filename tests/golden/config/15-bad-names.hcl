auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "..data" {
  path  = "p"
  field = "f"
}
secret "a/b" {
  path  = "p//q"
  field = "f"
}
secret {
  path = "p"
}
template {
  destination = "/app/secrets/sub/x"
  contents    = "static"
}
