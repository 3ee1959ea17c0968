auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "db_password" {
  pth   = "database/creds/app"
  field = "password"
}
