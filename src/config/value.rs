//! Text to values: durations, sizes, permission bits, addresses, signals. Invariant: pure. An error
//! repeats the text only for values that cannot hold a secret, and never an address, which can hold
//! a password.

use super::plan::{Address, Fallback, Level, LogFormat, OnHup, Scheme, Seccomp, Stale};
use crate::shown::ShownName;
use nix::sys::signal::Signal;
use std::time::Duration;

/// Units of time in seconds.
const UNITS: &[(&str, f64)] = &[
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86400.0),
];

/// The message for a text that is not a `what`.
fn invalid(what: &str, text: &str, expected: &str) -> String {
    let text = ShownName::from(text);
    format!("invalid {what} `{text}`: expected {expected}")
}

/// Parses a duration as Go writes it (`1h30m`, `1.5s`, `300ms`), with `d` for days; a number
/// without a unit is in seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    go_duration(text.trim())
        .ok_or_else(|| invalid("duration", text, "a number and a unit, such as `30s`"))
}

fn go_duration(mut rest: &str) -> Option<Duration> {
    if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(rest.parse().ok()?));
    }
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = Duration::ZERO;
    loop {
        let tail = rest.trim_start_matches(in_number);
        let number = &rest[..rest.len() - tail.len()];
        rest = tail.trim_start_matches(|c| !in_number(c));
        let unit = &tail[..tail.len() - rest.len()];
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let seconds = number.parse::<f64>().ok()? * factor;
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        if rest.is_empty() {
            return Some(total);
        }
    }
}

/// Parses a duration above zero.
pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(invalid("duration", text, "more than zero")),
        some => Ok(some),
    }
}

/// Parses the time between two reads: at least 20 ms. The bound catches typing errors; no server
/// should be asked more often.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < Duration::from_millis(20) => {
            Err(invalid("interval", text, "at least `20ms`"))
        }
        some => Ok(some),
    }
}

/// Parses a number of bytes: `4194304`, `4096KiB`, `4MiB`, `4m`. All units are powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match bytes(text) {
        None => Err(invalid(
            "size",
            text,
            "a number of bytes, or a number and a unit, such as `4MiB`",
        )),
        Some(..4096) => Err(invalid("size", text, "at least one page (4096 bytes)")),
        Some(bytes) => Ok(bytes),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[number.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Parses permission bits in octal digits.
pub(super) fn octal(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(bits) if bits <= 0o777 && !digits.starts_with('+') => Ok(bits),
        Ok(_) | Err(_) => Err(invalid(
            "mode",
            text,
            "octal digits from `0000` to `0777`, such as `\"0400\"`",
        )),
    }
}

/// Parses permission bits that are written as a number: a leading zero is required, because a
/// number without one is decimal.
pub(super) fn octal_number(text: &str) -> Result<u32, String> {
    if text.starts_with('0') {
        return octal(text);
    }
    Err(invalid(
        "mode",
        text,
        "octal digits with a leading zero, such as `0400` (in JSON `\"0400\"`)",
    ))
}

/// Parses a boolean as Go does.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(invalid("boolean", text, "`true` or `false`")),
    }
}

/// Parses a boolean that must be true.
pub(super) fn truth(text: &str) -> Result<(), String> {
    if boolean(text)? {
        Ok(())
    } else {
        Err(invalid("value", text, "`true`, or no such key"))
    }
}

/// Parses a version of KV v2: a whole number from 1.
pub(super) fn version(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => Err(invalid("version", text, "a whole number from 1")),
    }
}

/// Parses the name of a signal, with or without `SIG`, or its number.
pub(super) fn signal(text: &str) -> Result<Signal, String> {
    const NAMES: &str = "a name such as `TERM`, `INT`, `HUP` or `USR1`";
    let upper = text.to_ascii_uppercase();
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number),
        Err(_) => format!("SIG{}", upper.trim_start_matches("SIG")).parse(),
    };
    match signal {
        Ok(Signal::SIGKILL | Signal::SIGSTOP) => {
            let text = ShownName::from(text);
            Err(format!(
                "invalid signal `{text}`: no process can handle this signal; expected {NAMES}"
            ))
        }
        Ok(signal) => Ok(signal),
        Err(_) => Err(invalid("signal", text, NAMES)),
    }
}

/// Parses the fallback for FUSE.
pub(super) fn fallback(text: &str) -> Result<Fallback, String> {
    match text {
        "none" => Ok(Fallback::None),
        "tmpfs" => Ok(Fallback::Tmpfs),
        _ => Err(invalid("fallback", text, "`tmpfs` or `none`")),
    }
}

/// Parses the health of an agent that serves an expired secret.
pub(super) fn stale(text: &str) -> Result<Stale, String> {
    match text {
        "degraded" => Ok(Stale::Degraded),
        "unhealthy" => Ok(Stale::Unhealthy),
        _ => Err(invalid(
            "state of health",
            text,
            "`degraded` or `unhealthy`",
        )),
    }
}

/// Parses the receivers of SIGHUP.
pub(super) fn on_hup(text: &str) -> Result<OnHup, String> {
    match text {
        "both" => Ok(OnHup::Both),
        "app" => Ok(OnHup::App),
        "refresh" => Ok(OnHup::Refresh),
        _ => Err(invalid(
            "action for SIGHUP",
            text,
            "`both`, `app` or `refresh`",
        )),
    }
}

/// Parses the application's filter of system calls.
pub(super) fn seccomp(text: &str) -> Result<Seccomp, String> {
    match text {
        "default" => Ok(Seccomp::Default),
        "inherit" => Ok(Seccomp::Inherited),
        _ => Err(invalid(
            "filter of system calls",
            text,
            "`default` or `inherit`",
        )),
    }
}

/// Parses a log level, by the names that `bao` accepts too.
pub(super) fn level(text: &str) -> Result<Level, String> {
    match text.to_ascii_lowercase().as_str() {
        "error" | "err" => Ok(Level::ERROR),
        "warn" | "warning" => Ok(Level::WARN),
        "info" | "notice" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err(invalid(
            "log level",
            text,
            "`error`, `warn`, `info`, `debug` or `trace`",
        )),
    }
}

/// Parses a log format; `standard` is the word of `bao` for text.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" | "standard" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(invalid("log format", text, "`text` or `json`")),
    }
}

/// Parses `scheme://host[:port][/prefix]`.
pub(super) fn address(text: &str) -> Result<Address, String> {
    server(text).map_err(|why| {
        format!("invalid address: {why}; expected a URL such as `https://HOST:8200`")
    })
}

fn server(text: &str) -> Result<Address, &'static str> {
    let (scheme, rest) = match text.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(_) => return Err("the scheme is neither `https` nor `http`"),
        None => return Err("the scheme is missing"),
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, prefix) = rest.split_at(end);
    if rest.contains(['?', '#', ' ']) || rest.contains(char::is_control) {
        return Err("characters follow the path");
    }
    if authority.contains('@') {
        return Err("a user or a password is not allowed");
    }
    let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, rest),
        Some(_) => return Err("the IPv6 address is invalid"),
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    let port = match (port, scheme) {
        ("", Scheme::Https) => 443,
        ("", Scheme::Http) => 80,
        _ => port
            .strip_prefix(':')
            .and_then(|number| number.parse().ok())
            .filter(|&number| number > 0)
            .ok_or("the port is invalid")?,
    };
    if host.is_empty() || host.contains(':') && !authority.starts_with('[') {
        return Err("the host is missing");
    }
    let prefix = prefix.trim_end_matches('/');
    let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
    Ok(Address {
        scheme,
        host: host.to_owned(),
        port,
        prefix: prefix.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("30", 30_000),
            ("0", 0),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("300ms", 300),
            ("2d", 172_800_000),
            ("0s", 0),
            (" 5m ", 300_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1x",
            "1h30",
            "1 h",
            "..s",
            "1e3s",
            "99999999999999999999",
            "9e99d",
            "1M",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive("0s").is_err() && interval("19ms").is_err() && interval("20ms").is_ok());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4MiB", 4 << 20),
            ("4m", 4 << 20),
            ("64 KiB", 65536),
            ("1g", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "4x", "4095", "-1", "4.5m", "99999999999g"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn permission_bits() {
        for (text, bits) in [("0400", 0o400), ("644", 0o644), ("0o755", 0o755), ("0", 0)] {
            assert_eq!(octal(text), Ok(bits), "{text}");
        }
        for text in ["", "0888", "01000", "-1", "rw", "+400"] {
            assert!(octal(text).is_err(), "{text}");
        }
        assert_eq!(octal_number("0640"), Ok(0o640));
        assert!(octal_number("640").is_err() && octal_number("256").is_err());
    }

    #[test]
    fn signals() {
        for (text, expected) in [
            ("TERM", Signal::SIGTERM),
            ("SIGHUP", Signal::SIGHUP),
            ("usr1", Signal::SIGUSR1),
            ("2", Signal::SIGINT),
        ] {
            assert_eq!(signal(text), Ok(expected), "{text}");
        }
        for text in ["", "KILL", "SIGSTOP", "9", "99", "HUPP"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let at = |text: &str| {
            address(text).map(|a| (a.scheme == Scheme::Https, a.host, a.port, a.prefix))
        };
        for (text, tls, host, port, prefix) in [
            ("https://bao.example:8200", true, "bao.example", 8200, ""),
            ("http://127.0.0.1:8200/", false, "127.0.0.1", 8200, ""),
            ("https://[::1]:8200", true, "::1", 8200, ""),
            ("https://gw/bao/", true, "gw", 443, "/bao"),
            ("http://gw/bao/v1/", false, "gw", 80, "/bao"),
        ] {
            assert_eq!(
                at(text),
                Ok((tls, host.into(), port, prefix.into())),
                "{text}"
            );
        }
        for text in [
            "",
            "bao:8200",
            "unix:///run/bao",
            "https://",
            "https://u:p@h",
            "https://h:0",
            "https://h:x",
            "https://::1",
            "https://[x]",
            "https://h/?a",
            "https://[::1]8200",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn messages() {
        let long = "x".repeat(100);
        for (error, message) in [
            (
                duration("5x").err(),
                "invalid duration `5x`: expected a number and a unit, such as `30s`",
            ),
            (
                boolean("a\n\x1b").err(),
                "invalid boolean `a \u{fffd}`: expected `true` or `false`",
            ),
            (
                address("https://u:hunter2@h").err(),
                "invalid address: a user or a password is not allowed; expected a URL such as `https://HOST:8200`",
            ),
        ] {
            assert_eq!(error.as_deref(), Some(message));
        }
        assert!(level(&long).is_err_and(|message| !message.contains(&long)));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,20}|[0-9.]{0,8}[a-z]{0,3}|https?://\\PC{0,12}") {
            let _ = (duration(&text), size(&text), octal(&text), octal_number(&text), signal(&text), address(&text), version(&text));
        }

        #[test]
        fn whole_seconds_are_read_back(seconds in 0_u64..1_000_000) {
            prop_assert_eq!(duration(&seconds.to_string()), Ok(Duration::from_secs(seconds)));
            prop_assert_eq!(duration(&format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60)), Ok(Duration::from_secs(seconds)));
        }
    }
}
