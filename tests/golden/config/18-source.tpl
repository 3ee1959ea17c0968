user=
{{ with secret "p" }}{{ .Data.user }}
