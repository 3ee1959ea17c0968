auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
template {
  destination = "/etc/app/db.conf"
  contents    = "static"
}
