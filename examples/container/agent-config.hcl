# Both files come from one lease. The server's address is in BAO_ADDR.
auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/bao/role_id"
      secret_id_file_path                 = "/etc/bao/secret_id"
      remove_secret_id_file_after_reading = false # a restarted container reads the file again
    }
  }
}

secret "db_user" {
  path  = "database/creds/my-app-role"
  field = "username"
}

secret "db_password" {
  path  = "database/creds/my-app-role"
  field = "password"
}
