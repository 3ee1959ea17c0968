auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
template {
  destination = "/app/secrets/env"
  contents    = <<-EOT
    # settings
    {{ range $k, $v := .Data }}{{ $k }}{{ end }}
  EOT
}

template {
  destination = "/app/secrets/json"
  contents    = "{{ with secret \"p\" }}{{ .Data | toJSON }}{{ end }}"
}
