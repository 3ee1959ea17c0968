auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "x" {
  path  = "p"
  field = "f"
  mode  = 640
}
filesystem {
  dir_mode = 0999
}
