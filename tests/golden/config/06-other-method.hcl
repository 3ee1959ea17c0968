auto_auth {
  method "kubernetes" {
    config = { role = "app" }
  }
}
secret "x" {
  path = "p"
  field = "f"
}
