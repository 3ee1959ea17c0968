# The native form: a `secret` block is one file and needs no template.
vault {
  address = "https://bao.example:8200"
  ca_cert = "/etc/bao/ca.pem"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/bao/role_id"
      secret_id_file_path = "/etc/bao/secret_id" # removed after the login by default
    }
  }
}

filesystem {
  path     = "/app/secrets"
  mode     = 0400 # of the files: only the application's user can read them
  dir_mode = 0755 # of the directory: names are not secret
  size     = "4MiB"
}

# Both files come from one lease and change together, so the application gets one signal.
secret "db_user" {
  path  = "database/creds/my-app-role"
  field = "username"
}

secret "db_password" {
  path  = "database/creds/my-app-role"
  field = "password"
}

# KV v2, with or without `data/` in the path.
secret "api_key" {
  path      = "secret/my-app"
  field     = "api_key"
  refresh   = "1m"
  stale     = "unhealthy"                                                 # the health when the secret could not be read again
  on_change = { command = ["/usr/bin/my-app", "reload"], timeout = "5s" } # instead of the application's signal
}

secret "my-app.json" {
  path   = "secret/my-app"
  format = "json"
}

# A value that combines several fields.
template {
  destination = "/app/secrets/database.url"
  contents    = <<-EOT
    {{- with secret "database/creds/my-app-role" -}}
    postgresql://{{ .Data.username }}:{{ .Data.password }}@db.example/my-app
    {{- end -}}
  EOT
}

app {
  command      = ["/usr/bin/python3", "/app/app.py"]
  wait         = "30s"
  stop_signal  = "TERM"
  stop_timeout = "6s"
  on_change    = { signal = "HUP", splay = "10s" } # replicas do not reload at the same time
}

log {
  level  = "info"
  format = "text"
}
