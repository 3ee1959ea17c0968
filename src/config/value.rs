//! Text to values: durations, sizes, permission bits, addresses, signals. Invariant: pure; an error
//! says what is expected and never repeats the text.

use super::plan::{Address, Fallback, Level, LogFormat, OnHup, Scheme, Seccomp, Stale};
use nix::sys::signal::Signal;
use std::time::Duration;

/// What is wrong with a text, and what to do.
pub(super) type Bad = (&'static str, &'static str);

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

/// Go's durations (`1h30m`, `1.5s`, `300ms`), with `d` for days; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, Bad> {
    const BAD: Bad = (
        "this is no duration",
        "write it as `90s`, `5m`, `1h30m`, `500ms`, or as a number of seconds",
    );
    let mut rest = text.trim();
    if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
        return rest.parse().map(Duration::from_secs).map_err(|_| BAD);
    }
    let mut total = Duration::ZERO;
    loop {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = number.parse::<f64>().map_err(|_| BAD)? * one_of(UNITS, unit, BAD)?;
        total = Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .ok_or(BAD)?;
        rest = tail;
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// A duration that is not zero.
pub(super) fn positive(text: &str) -> Result<Duration, Bad> {
    match duration(text)? {
        Duration::ZERO => Err(("this cannot be zero", "")),
        some => Ok(some),
    }
}

/// How often to read again: 20 ms at least, which no sane server is asked for; it bounds a slip of
/// the pen.
pub(super) fn interval(text: &str) -> Result<Duration, Bad> {
    match duration(text)? {
        short if short < Duration::from_millis(20) => Err(("this is less than 20ms", "")),
        some => Ok(some),
    }
}

/// A number of bytes: `4194304`, `4096KiB`, `4MiB`, `4m`. All units are powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, Bad> {
    const BAD: Bad = (
        "this is no size",
        "write it as `4MiB`, `512KiB`, `4m`, or as a number of bytes",
    );
    let text = text.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let shift = match text[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(BAD),
    };
    let bytes = text[..digits]
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or(BAD)?;
    if bytes < 4096 {
        Err(("this is less than a page (4096 bytes)", ""))
    } else {
        Ok(bytes)
    }
}

/// Permission bits in octal digits.
pub(super) fn octal(text: &str) -> Result<u32, Bad> {
    const BAD: Bad = (
        "these are no permission bits",
        "write them in octal between 0000 and 0777, as in `\"0400\"`",
    );
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let bits = u32::from_str_radix(digits, 8).map_err(|_| BAD)?;
    if bits > 0o777 || digits.starts_with('+') {
        Err(BAD)
    } else {
        Ok(bits)
    }
}

/// Permission bits that are written as a number: only with the zero that makes them octal.
pub(super) fn octal_number(text: &str) -> Result<u32, Bad> {
    if text == "0" || (text.starts_with('0') && text.len() > 1) {
        return octal(text);
    }
    Err((
        "permission bits without a leading zero are a decimal number",
        "write them in octal, as in `0400`, or in JSON `\"0400\"`",
    ))
}

/// A boolean as Go parses one.
pub(super) fn boolean(text: &str) -> Result<bool, Bad> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(("this is neither true nor false", "write `true` or `false`")),
    }
}

/// A boolean that can only be true.
pub(super) fn truth(text: &str) -> Result<(), Bad> {
    if boolean(text)? {
        Ok(())
    } else {
        Err(("this can only be `true`", "leave it away"))
    }
}

/// A whole number from 1 on: a version of KV v2.
pub(super) fn version(text: &str) -> Result<u32, Bad> {
    text.parse().ok().filter(|&n| n > 0).ok_or((
        "this is no version number",
        "versions are whole numbers from 1 on",
    ))
}

/// The signal of a name, with or without `SIG`, or of a number.
pub(super) fn signal(text: &str) -> Result<Signal, Bad> {
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    let by_number = || Signal::try_from(text.parse::<i32>().ok()?).ok();
    match name.parse().ok().or_else(by_number) {
        Some(Signal::SIGKILL | Signal::SIGSTOP) => Err((
            "no application can handle this signal",
            "use TERM, INT, HUP, USR1 ...",
        )),
        Some(signal) => Ok(signal),
        None => Err(("this is no signal", "use TERM, INT, HUP, USR1 ...")),
    }
}

/// What `text` stands for among `words`.
fn one_of<T: Copy>(words: &[(&str, T)], text: &str, bad: Bad) -> Result<T, Bad> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, meant)| *meant)
        .ok_or(bad)
}

/// `tmpfs` or `none`.
pub(super) fn fallback(text: &str) -> Result<Fallback, Bad> {
    one_of(
        &[("none", Fallback::None), ("tmpfs", Fallback::Tmpfs)],
        text,
        ("this is no fallback", "it is `tmpfs` or `none`"),
    )
}

/// What a secret past its life means for the health of all.
pub(super) fn stale(text: &str) -> Result<Stale, Bad> {
    const BAD: Bad = (
        "this is no state of health",
        "it is `degraded` or `unhealthy`",
    );
    one_of(
        &[
            ("degraded", Stale::Degraded),
            ("unhealthy", Stale::Unhealthy),
        ],
        text,
        BAD,
    )
}

/// What HUP does.
pub(super) fn on_hup(text: &str) -> Result<OnHup, Bad> {
    const BAD: Bad = (
        "this is nothing that HUP can do",
        "it is `both`, `app` or `refresh`",
    );
    one_of(
        &[
            ("both", OnHup::Both),
            ("app", OnHup::App),
            ("refresh", OnHup::Refresh),
        ],
        text,
        BAD,
    )
}

/// The application's filter of system calls.
pub(super) fn seccomp(text: &str) -> Result<Seccomp, Bad> {
    const BAD: Bad = (
        "this is no filter of system calls",
        "it is `default` or `inherit`",
    );
    one_of(
        &[
            ("default", Seccomp::Default),
            ("inherit", Seccomp::Inherited),
        ],
        text,
        BAD,
    )
}

/// A log level, by the names that `bao` knows too.
pub(super) fn level(text: &str) -> Result<Level, Bad> {
    match text.to_ascii_lowercase().as_str() {
        "error" | "err" => Ok(Level::Error),
        "warn" | "warning" => Ok(Level::Warn),
        "info" | "notice" => Ok(Level::Info),
        "debug" => Ok(Level::Debug),
        "trace" => Ok(Level::Trace),
        _ => Err((
            "this is no log level",
            "it is `error`, `warn`, `info`, `debug` or `trace`",
        )),
    }
}

/// A log format; `standard` is `bao`'s word for text.
pub(super) fn log_format(text: &str) -> Result<LogFormat, Bad> {
    const BAD: Bad = ("this is no log format", "it is `text` or `json`");
    one_of(
        &[
            ("text", LogFormat::Text),
            ("standard", LogFormat::Text),
            ("json", LogFormat::Json),
        ],
        text,
        BAD,
    )
}

/// `scheme://host[:port][/prefix]`.
pub(super) fn address(text: &str) -> Result<Address, Bad> {
    const HINT: &str = "write it as `https://HOST:8200`";
    let (scheme, rest) = match text.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(_) => return Err(("an address begins with `https://` or `http://`", HINT)),
        None => return Err(("the address lacks its scheme", HINT)),
    };
    let (authority, prefix) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if rest.contains(['?', '#', ' ']) || rest.contains(char::is_control) {
        return Err(("an address ends with its path", HINT));
    }
    if authority.contains('@') {
        return Err(("an address cannot hold a user or a password", HINT));
    }
    let (host, port) = match authority.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, rest),
        Some(_) => return Err(("this is no IPv6 address", HINT)),
        None => authority
            .find(':')
            .map_or((authority, ""), |at| authority.split_at(at)),
    };
    let port = match (port.strip_prefix(':'), scheme) {
        (Some(port), _) => port
            .parse()
            .ok()
            .filter(|&p| p > 0)
            .ok_or(("this is no port", HINT))?,
        (None, _) if !port.is_empty() => return Err(("this is no port", HINT)),
        (None, Scheme::Https) => 443,
        (None, Scheme::Http) => 80,
    };
    if host.is_empty() || host.contains(':') && !authority.starts_with('[') {
        return Err(("the address names no host", HINT));
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
