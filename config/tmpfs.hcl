# Without FUSE: the container needs no privilege, only a tmpfs of limited size at /app/secrets
# (`docker run --read-only --tmpfs /app/secrets:size=1m,mode=0700,uid=1000,gid=1000`).
vault {
  address = "https://bao.example:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/run/secrets/role_id"
      secret_id_file_path                 = "/run/secrets/secret_id"
      remove_secret_id_file_after_reading = false # Docker's secrets cannot be removed
    }
  }
}

filesystem {
  path     = "/app/secrets"
  fallback = "tmpfs"
  size     = "1MiB"
}

secret "api_key" {
  path  = "secret/my-app"
  field = "api_key"
}

app {
  command = ["/app/server"]
}
