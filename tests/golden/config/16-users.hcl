auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
app {
  user = "nosuchuser"
}
filesystem {
  user  = "0:0"
  group = "0"
}
