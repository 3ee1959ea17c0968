//! Searches the memory of a process as root can read it, for values in all the forms in which a
//! program may keep them.

use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are compared with zeros before they are searched.
const PAGE: usize = 4096;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// One form of one value.
#[derive(Debug)]
struct Needle {
    /// The name of the value and of the form.
    name: String,
    bytes: Vec<u8>,
}

/// The values to be searched for, in every form.
#[derive(Debug)]
pub(crate) struct Needles(Vec<Needle>);

/// The result of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finds {
    /// How often each form of each value stands in the memory, without the zeros.
    pub(crate) counts: BTreeMap<String, usize>,
    /// How many mappings of `memfd_secret(2)` could be read.
    pub(crate) locked: usize,
}

impl Needles {
    /// The forms of each named value: plain, JSON where it differs, hex, and base64 as it stands
    /// at each of the three offsets in a longer text.
    pub(crate) fn of(values: &[(&str, &str)]) -> Self {
        let mut needles = Vec::new();
        for (name, value) in values {
            assert!(value.len() >= 8, "`{name}` is too short to be searched for");
            let json = serde_json::Value::from(*value).to_string();
            let json = json[1..json.len() - 1].to_owned();
            let hex: Vec<_> = value.bytes().map(|byte| format!("{byte:02x}")).collect();
            let hex = hex.concat();
            let mut forms = vec![("hex", hex.to_uppercase()), ("hex", hex)];
            if json != *value {
                forms.push(("json", json));
            }
            forms.extend((0..3).map(|offset| ("base64", base64_within(value, offset))));
            let add = |(form, text): (&str, String)| Needle {
                name: format!("{name} {form}"),
                bytes: text.into_bytes(),
            };
            needles.push(Needle {
                name: (*name).to_owned(),
                bytes: value.as_bytes().to_vec(),
            });
            needles.extend(forms.into_iter().map(add));
        }
        Self(needles)
    }

    /// Searches all memory of `pid` that root can read through `/proc/PID/mem`.
    pub(crate) fn find_in(&self, pid: Pid) -> Finds {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
        let memory = File::open(format!("/proc/{pid}/mem")).expect("root opens it");
        let mut finds = Finds::default();
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let (low, high) = range.split_once('-').expect("a line has a range");
            let address = |hex| usize::from_str_radix(hex, 16).expect("an address is hexadecimal");
            let (low, high) = (address(low), address(high));
            if !rights.starts_with('r') {
                continue;
            }
            let mut bytes = vec![0; high - low];
            if memory.read_exact_at(&mut bytes, low as u64).is_ok() {
                finds.locked += usize::from(line.contains("secretmem"));
                self.count(&bytes, &mut finds.counts);
            }
        }
        finds
    }

    /// The values that rest in `pid`: of three scans the least count of each. A response that is
    /// being parsed during one scan is no find.
    pub(crate) fn rest_in(&self, pid: Pid) -> Finds {
        let mut finds = self.find_in(pid);
        for _ in 0..2 {
            let again = self.find_in(pid);
            finds
                .counts
                .retain(|name, _| again.counts.contains_key(name));
            for (name, count) in &mut finds.counts {
                *count = (*count).min(again.counts[name]);
            }
            finds.locked = finds.locked.max(again.locked);
        }
        finds
    }

    fn count(&self, bytes: &[u8], counts: &mut BTreeMap<String, usize>) {
        // Most pairs of bytes begin no needle: one look into a table tells.
        let mut begins = vec![false; 1 << 16];
        for needle in &self.0 {
            begins[pair(&needle.bytes)] = true;
        }
        let (zeros, mut at) = ([0; PAGE], 0);
        while at + 1 < bytes.len() {
            if at % PAGE == 0 && bytes[at..].starts_with(&zeros) {
                at += PAGE;
                continue;
            }
            if begins[pair(&bytes[at..])] {
                for needle in &self.0 {
                    if bytes[at..].starts_with(&needle.bytes) {
                        *counts.entry(needle.name.clone()).or_default() += 1;
                    }
                }
            }
            at += 1;
        }
    }
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// The characters of base64 that `value` alone determines when `offset` bytes stand before it.
fn base64_within(value: &str, offset: usize) -> String {
    let mut bytes = vec![0; offset];
    bytes.extend(value.bytes());
    let whole = bytes.len() * 8 / 6;
    bytes.extend([0, 0]);
    let mut text = String::new();
    for three in bytes.chunks_exact(3) {
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(BASE64[(bits >> shift & 63) as usize]));
        }
    }
    text[(offset * 8).div_ceil(6)..whole].to_owned()
}

#[test]
fn every_form_of_a_value_is_found() {
    let needles = Needles::of(&[("value", "a \"quoted\" value")]);
    let mut counts = BTreeMap::new();
    let text = "a \"quoted\" value, a \\\"quoted\\\" value, YSAicXVvdGVkIiB2YWx1ZQ==, \
        eGEgInF1b3RlZCIgdmFsdWU=, eHhhICJxdW90ZWQiIHZhbHVl, 61202271756f746564222076616c7565";
    needles.count(text.as_bytes(), &mut counts);
    let expected = [
        ("value", 1),
        ("value base64", 3),
        ("value hex", 1),
        ("value json", 1),
    ];
    assert_eq!(
        counts,
        expected
            .map(|(name, count)| (name.to_owned(), count))
            .into()
    );
}
