secret "x" {
  path = "p"
  field = "f"
}
