auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
template {
  destination = "/app/secrets/a"
  contents    = "static"
  source      = "/etc/a.tpl"
}
template {
  destination = "/app/secrets/b"
}
template {
  destination = "/app/secrets/c"
  source      = "/nonexistent/c.tpl"
}
template {
  destination = "/app/secrets/d"
  source      = "tests/golden/config/18-source.tpl"
}
template {
  destination = "/app/secrets/e"
  source      = "/dev/zero"
}
