vault {
  address = "https://bao:8200"

auto_auth {
}
