auto_auth {
  method "approle" {
    config = { role_id_file_path = "/r" }
  }
}
secret "a" {
  path      = "p"
  field     = "f"
  stale     = "dead"
  on_change = {}
}
secret "b" {
  path  = "p"
  field = "f"
  on_change {
    signal  = "KILL"
    command = ["reload", "--password", "hunter2"]
    timeout = "0s"
  }
}
secret "c" {
  path      = "p"
  field     = "f"
  on_change = { restart = false, debounce = "soon", splay = "-1s" }
}
secret "d" {
  path      = "p"
  field     = "f"
  on_change = { signal = "HUP", timeout = "5s" }
}
secret "e" {
  path      = "p"
  field     = "f"
  on_change = { command = "reload --password hunter2" }
}
secret "f" {
  path      = "p"
  field     = "f"
  on_change = "HUP"
}
template {
  destination = "/app/secrets/g"
  contents    = "x"
  command     = "true"
  exec {
    timeout     = "5s"
    enabled     = false
    env         = { custom = ["TOKEN=hunter2"] }
    kill_signal = "INT"
  }
}
template {
  destination     = "/app/secrets/h"
  contents        = "x"
  command         = ["", "x"]
  command_timeout = "never"
}
app {
  on_hup       = "restart"
  no_new_privs = "perhaps"
  seccomp      = "unconfined"
  on_change    = { signals = "HUP" }
}
