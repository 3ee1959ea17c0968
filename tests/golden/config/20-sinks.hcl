auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
  sink "file" {
    config = { path = "token" }
  }
  sink "file" {
    wrap_ttl = "5m"
  }
  sink "vsock" {
    config = { path = "/t" }
  }
}
