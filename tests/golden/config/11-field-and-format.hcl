auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "a" {
  path   = "p"
  field  = "f"
  format = "json"
}
secret "b" {
  path = "p"
}
secret "c" {
  path   = "p"
  format = "env"
}
