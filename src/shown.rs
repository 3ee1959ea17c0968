//! Foreign texts, cut and cleaned for a log line, a report and a terminal. Invariants: a
//! `Shown<MAX>` has at most `MAX` characters, and no character moves a cursor, ends a line, changes
//! the direction of writing or is invisible; a deserialised `Shown` follows the same rules.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Deref, RangeInclusive};

/// A name: of a file, of a secret's field.
pub type ShownName = Shown<64>;
/// A cause: the text of a server, a library or the kernel about a failure.
pub type ShownCause = Shown<300>;
/// A message of a log line or of a health check, which may repeat names and causes.
pub type ShownLine = Shown<800>;

/// At most `MAX` characters (not bytes) of a text: white space is a space, a control or format
/// character is U+FFFD, and the last character is `…` where the text was longer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Shown<const MAX: usize>(String);

impl<const MAX: usize, T: AsRef<str>> From<T> for Shown<MAX> {
    fn from(text: T) -> Self {
        let mut rest = text.as_ref().chars();
        let mut shown: String = rest.by_ref().take(MAX).map(visible).collect();
        if rest.next().is_some() {
            shown.pop();
            shown.push('…');
        }
        Self(shown)
    }
}

impl<const MAX: usize> Shown<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Deref for Shown<MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Shown<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The shown character for `c`.
fn visible(c: char) -> char {
    match c {
        _ if c.is_whitespace() => ' ',
        _ if c.is_control() || is_format(c) => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

/// The code points of `is_format`.
const FORMATS: &[RangeInclusive<u32>] = &[
    0xAD..=0xAD,
    0x34F..=0x34F,
    0x600..=0x605,
    0x61C..=0x61C,
    0x6DD..=0x6DD,
    0x70F..=0x70F,
    0x890..=0x891,
    0x8E2..=0x8E2,
    0x115F..=0x1160,
    0x17B4..=0x17B5,
    0x180B..=0x180F,
    0x200B..=0x200F,
    0x2028..=0x202E,
    0x2060..=0x206F,
    0x3164..=0x3164,
    0xFE00..=0xFE0F,
    0xFEFF..=0xFEFF,
    0xFFA0..=0xFFA0,
    0xFFF0..=0xFFFB,
    0x110BD..=0x110BD,
    0x110CD..=0x110CD,
    0x13430..=0x1343F,
    0x1BCA0..=0x1BCA3,
    0x1D173..=0x1D17A,
    0xE0000..=0xE0FFF,
];

/// Whether `c` is a format character (Unicode 16, general category Cf: signs of direction, joiners,
/// tags), or a character of another category without width (fillers, selectors of variants).
fn is_format(c: char) -> bool {
    let code = u32::from(c);
    FORMATS.iter().any(|range| range.contains(&code))
}

/// The number of bytes to insert, remove or replace for turning `a` into `b`: for "did you mean".
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            let inserted = row[j] + 1;
            let removed = corner + 1;
            row[j + 1] = replaced.min(inserted).min(removed);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_and_what_is_shown_of_them() {
        for (text, shown) in [
            ("", ""),
            ("password", "password"),
            ("pässwörd 密码 🔑", "pässwörd 密码 🔑"),
            ("a\u{1b}[31m\u{7}b", "a\u{fffd}[31m\u{fffd}b"),
            ("a\u{9b}31mb\u{7f}", "a\u{fffd}31mb\u{fffd}"),
            (
                "one\ntwo\r\n\tthree\u{85}\u{2028}\u{2029}\u{a0}",
                "one two   three    ",
            ),
            (
                "\u{202e}drowssap\u{202c}\u{2066}\u{200f}",
                "\u{fffd}drowssap\u{fffd}\u{fffd}\u{fffd}",
            ),
            (
                "pass\u{200b}\u{200d}\u{feff}\u{ad}word\u{e0041}",
                "pass\u{fffd}\u{fffd}\u{fffd}\u{fffd}word\u{fffd}",
            ),
        ] {
            assert_eq!(&*ShownName::from(text), shown, "{text:?}");
        }
        let (fits, longer) = ("x".repeat(64), "x".repeat(65));
        assert_eq!(&*ShownName::from(fits.as_str()), fits);
        assert_eq!(&*ShownName::from(longer), "x".repeat(63) + "…");
        assert_eq!(format!("[{:5}]", ShownName::from("ab")), "[ab   ]");
    }

    #[test]
    fn distances() {
        for (a, b, n) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("path", "pth", 1),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }

    /// A random text with many characters that must not be shown.
    fn any_text() -> impl Strategy<Value = String> {
        let bad = prop::sample::select(
            "\u{0}\u{1b}\n\r\u{7f}\u{80}\u{9b}\u{ad}\u{200b}\u{200f}\u{2028}\u{202e}\u{2069}\u{feff}".chars().collect::<Vec<_>>(),
        );
        proptest::collection::vec(
            prop_oneof![any::<char>(), bad, prop::char::range(' ', '~')],
            0..900,
        )
        .prop_map(|all| all.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_is_shown_is_short_and_harmless(text in any_text()) {
            let shown = ShownCause::from(text.as_str());
            prop_assert_eq!(shown.chars().count(), text.chars().count().min(300));
            prop_assert!(!shown.chars().any(|c| c.is_control() || is_format(c) || (c.is_whitespace() && c != ' ')));
            prop_assert_eq!(&ShownCause::from(&*shown), &shown, "twice is as once");
            let json = serde_json::to_string(&shown).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<ShownCause>(&json).expect("the same"), &shown);
            let hostile = serde_json::to_string(&text).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<ShownCause>(&hostile).expect("cleaned"), &shown);
        }
    }
}
