# A configuration of `bao agent` as it is: baofs starts with it unchanged (BAO_ADDR comes from the environment).
pid_file = "/var/run/bao-agent.pid"

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/bao/role_id"
      secret_id_file_path                 = "/etc/bao/secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
  # Served as /app/secrets/bao-token, and linked from here: a link holds no secret.
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
