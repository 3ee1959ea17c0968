auto_auth {
  method "approle" {
    config = {
      role_id   = "0b5f9f0e"
      secret_id = "hunter2"
    }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
