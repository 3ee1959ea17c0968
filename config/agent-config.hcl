# A configuration of `bao agent`, which baofs reads without changes. The environment sets BAO_ADDR.
pid_file = "/var/run/bao-agent.pid"

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/bao/role_id"
      secret_id_file_path                 = "/etc/bao/secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
  # baofs serves the token as /app/secrets/bao-token and makes `path` a link to the file, so that no secret is on a disk.
  sink "file" {
    config = {
      path = "/tmp/bao-token"
    }
  }
}

template {
  destination = "/app/secrets/db_password"
  contents    = "{{ with secret \"database/creds/my-app-role\" }}{{ .Data.password }}{{ end }}"
}
