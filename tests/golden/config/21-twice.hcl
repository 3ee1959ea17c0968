auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
vault {
}
vault {
}
filesystem {
  path = "/a"
  path = "/b"
}
