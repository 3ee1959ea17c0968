//! Keeps the shape of the code true: layers, no circle in a folder, no type name twice, the gates
//! of `unsafe` and of time, docs, lengths, names. Each broken rule is named with file and line;
//! `cargo test --test tidy -- --nocapture` prints the exceptions of today in the same way. Clippy's
//! rules stand in `Cargo.toml`.

#![allow(clippy::too_many_lines, reason = "a table has as many lines as rows")]

use baofs::exit::Exit;
use std::fs;
use std::path::Path;

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["sys", "memory"];
/// Words, numbers and signs of a file: one that holds more is asking to be two, or to be simpler.
const TOKENS: usize = 12_000;
/// Circles between the files of a folder that still exist. This list must shrink.
const CIRCLES: &[&str] = &[
    "`fetch::checkpoint` uses `fetch::requests`, which needs it",
    "`fetch::requests` uses `fetch::checkpoint`, which needs it",
];
/// Type names that may exist twice: none.
const REPEATED: &[&str] = &[];
/// Words that say nothing about what a thing does.
const EMPTY_WORDS: &[&str] = &["Manager", "Helper", "Utils", "Common", "Misc"];

#[test]
fn the_code_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let layers = layers(&fs::read_to_string(root.join("src/lib.rs")).expect("src/lib.rs"));
    assert!(
        layers.len() > 10,
        "the table of layers in src/lib.rs cannot be read: {layers:?}"
    );
    let mut broken = Vec::new();
    for dir in ["src", "tests", "benches", "examples"] {
        for (path, text) in rust_files(root, Path::new(dir)) {
            broken.extend(check(&path, &text, &layers));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_folder_has_a_circle() {
    let uses = uses_in_folders(&program());
    assert!(uses.len() > 50, "uses are not found: {uses:?}");
    let found = circles(&uses);
    let what = |(path, line, user, used): &Use| {
        let what = format!("`{user}` uses `{used}`, which needs it");
        (path.clone(), *line, what)
    };
    let mut found: Vec<_> = found.into_iter().map(what).collect();
    found.dedup();
    let broken = judge(found, CIRCLES);
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_type_name_exists_twice() {
    let broken = judge(repeated_types(&program()), REPEATED);
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// The files of the program, without those of tests.
fn program() -> Vec<(String, String)> {
    let mut files = rust_files(Path::new(env!("CARGO_MANIFEST_DIR")), Path::new("src"));
    files.retain(|(path, _)| !path.ends_with("/tests.rs"));
    files.sort();
    files
}

#[test]
fn the_readme_names_every_exit_code() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("README.md");
    let missing: Vec<u8> = Exit::ALL
        .iter()
        .map(|exit| exit.code())
        .filter(|code| !readme.contains(&format!("| {code} |")))
        .collect();
    assert!(
        missing.is_empty(),
        "README.md lacks the exit codes {missing:?}"
    );
}

/// The table behind README's security section: a case in quotes, or a function behind the last
/// `::`.
#[test]
fn the_readme_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let (_, after) = readme
        .split_once("Each of these is a test.")
        .expect("the table");
    let (section, _) = after.split_once("\n## ").expect("a section after it");
    let cells: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1))
        .skip(1)
        .collect();
    let code: String = ["src", "tests"]
        .into_iter()
        .flat_map(|dir| rust_files(root, Path::new(dir)))
        .map(|(_, text)| text)
        .collect();
    let cases = cells
        .iter()
        .flat_map(|cell| cell.split('"').skip(1).step_by(2))
        .map(|name| format!("\"{name}\""));
    let named = cells
        .iter()
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| !name.contains('/'));
    let functions = named.map(|name| format!("fn {}(", name.rsplit("::").next().unwrap_or(name)));
    let missing: Vec<String> = cases
        .chain(functions)
        .filter(|text| !code.contains(text))
        .collect();
    assert!(
        cells.len() > 10 && missing.is_empty(),
        "{} rows; not found: {missing:?}",
        cells.len()
    );
}

#[test]
fn what_is_broken_is_found() {
    let layers = layers(
        "//! | layer | module | job |\n//! |---|---|---|\n//! | 0 | [`sys`], [`clock`] | x, not [`y`] |\n//! | 0 | [`names`], [`exit`] | x |\n\
         //! | 1 | [`observe`] | x |\n//! | 4 | [`lease`] | x |\n//! | 5 | [`fuse`], [`tmpfs`] | x |\n//! | 6 | [`fetch`] | x |\n",
    );
    let doc = |text: &str| format!("//! Doc.\n{text}\n");
    let table: &[(&str, String, &[&str])] = &[
        (
            "src/tmpfs/x.rs",
            doc("use crate::sys::mount;\nuse crate::tmpfs::y;\nuse super::z;"),
            &[],
        ),
        (
            "src/tmpfs/x.rs",
            doc("use crate::fuse::tree;"),
            &["src/tmpfs/x.rs:2: `tmpfs` (layer 5) may not use `fuse` (layer 5)"],
        ),
        (
            "src/clock.rs",
            doc("\nfn f() { crate::observe::f() }"),
            &["src/clock.rs:3: `clock` (layer 0) may not use `observe` (layer 1)"],
        ),
        (
            "src/lease/mod.rs",
            doc("use crate::{names::{FileId, LeaseId},\n    fetch, exit::Exit};"),
            &["src/lease/mod.rs:2: `lease` (layer 4) may not use `fetch` (layer 6)"],
        ),
        (
            "src/lease/mod.rs",
            doc("use crate::nowhere;"),
            &["src/lease/mod.rs:2: `nowhere` has no layer"],
        ),
        (
            "src/nowhere/mod.rs",
            doc(""),
            &["src/nowhere/mod.rs:1: `nowhere` has no layer"],
        ),
        (
            "src/exit.rs",
            doc(
                "// crate::fetch, unsafe { Instant::now() }\nconst X: &str = \"unsafe { crate::fetch }\";",
            ),
            &[],
        ),
        (
            "src/exit.rs",
            doc("const X: char = '\"';\nfn f() { unsafe { g() } }"),
            &["src/exit.rs:3: `unsafe` outside of its gates"],
        ),
        (
            "src/exit.rs",
            doc("const X: &str = r#\"\"\n\"#; unsafe fn f() {}"),
            &["src/exit.rs:3: `unsafe` outside of its gates"],
        ),
        ("src/sys/x.rs", doc("fn f() { unsafe { g() } }"), &[]),
        (
            "src/lib.rs",
            doc("pub mod fetch;\npub use crate::fetch::run;"),
            &[],
        ),
        (
            "src/fetch/mod.rs",
            doc("fn f() { Instant::now(); }"),
            &["src/fetch/mod.rs:2: `Instant::now` outside of `clock`"],
        ),
        (
            "src/clock.rs",
            doc("fn f() { Instant::now(); SystemTime::now(); }"),
            &[],
        ),
        ("tests/x.rs", doc("fn f() { Instant::now(); }"), &[]),
        (
            "tests/x.rs",
            doc("#[allow(dead_code)]\nfn f() {}"),
            &["tests/x.rs:2: a lint is silenced without a reason"],
        ),
        (
            "tests/x.rs",
            doc("#[expect(\n    dead_code,\n    reason = \"x\",\n)]\nfn f() { x.expect(\"y\") }"),
            &[],
        ),
        (
            "src/exit.rs",
            "use std::io;\n".to_owned(),
            &["src/exit.rs:1: no `//!` doc at the top"],
        ),
        (
            "src/exit.rs",
            doc(&"x;\n".repeat(6_001)),
            &["src/exit.rs:1: 12002 tokens, more than 12000"],
        ),
        (
            "src/exit.rs",
            doc("pub struct LeaseManager;"),
            &["src/exit.rs:2: `LeaseManager` says nothing: name what it does"],
        ),
        (
            "src/fuse/utils.rs",
            doc(""),
            &["src/fuse/utils.rs:1: `utils` says nothing: name what it does"],
        ),
    ];
    for (path, text, expected) in table {
        assert_eq!(check(path, text, &layers), *expected, "{path}: {text}");
    }
}

#[test]
fn circles_and_repeated_names_are_found() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let files = [
        file("src/fuse/mod.rs", "mod a; use a::A; struct A;"),
        file("src/fuse/a.rs", "use super::{b::{self, B}, C};\nenum A {}"),
        file(
            "src/fuse/b.rs",
            "\nuse crate::fuse::c;\nmod tests {\nuse super::a; struct B; }",
        ),
        file(
            "src/fuse/c.rs",
            "//! super::b\nfn f() { super::a::f(); super::d::f() }",
        ),
        file("src/fuse/d.rs", "use crate::{fuse, tmpfs::a}; struct B;"),
        file("src/tmpfs/mod.rs", "pub mod deep;"),
        file("src/tmpfs/deep/mod.rs", "pub mod e; fn f() { e::f() }"),
        file("src/tmpfs/deep/e.rs", "use super::super::a::f;"),
        file("src/tmpfs/a.rs", "use super::deep;"),
    ];
    let uses = uses_in_folders(&files);
    let found = circles(&uses);
    let found: Vec<String> = found
        .iter()
        .map(|(path, line, user, used)| format!("{path}:{line} {user} {used}"))
        .collect();
    let expected = [
        "src/fuse/a.rs:1 fuse::a fuse::b",
        "src/fuse/a.rs:1 fuse::a fuse::b",
        "src/fuse/b.rs:2 fuse::b fuse::c",
        "src/fuse/c.rs:2 fuse::c fuse::a",
        "src/tmpfs/deep/e.rs:1 tmpfs::deep tmpfs::a",
        "src/tmpfs/a.rs:1 tmpfs::a tmpfs::deep",
    ];
    assert_eq!(found, expected);
    let repeated = repeated_types(&files);
    let repeated: Vec<String> = repeated
        .iter()
        .map(|(path, line, name)| format!("{path}:{line} {name}"))
        .collect();
    assert_eq!(repeated, ["src/fuse/mod.rs:1 A", "src/fuse/a.rs:2 A"]);
    let one = || vec![("src/x.rs".to_owned(), 3, "what".to_owned())];
    assert_eq!(judge(one(), &["what"]), Vec::<String>::new());
    assert_eq!(judge(one(), &[]), ["src/x.rs:3: what"]);
    assert_eq!(
        judge(Vec::new(), &["gone"]),
        ["the exception \"gone\" is not needed: remove it"]
    );
}

/// A module of layer n may use the layers below n, and itself: the modules and their layers.
type Layers = Vec<(String, usize)>;

/// Reads the table in the crate's doc: `| 6 | [`fetch`], [`serve`] | what they do |`.
fn layers(lib: &str) -> Layers {
    let mut layers = Layers::new();
    for row in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split('|');
        let (number, modules) = (
            cells.next().unwrap_or_default().trim(),
            cells.next().unwrap_or_default(),
        );
        if let Ok(number) = number.parse() {
            layers.extend(
                modules
                    .split(['[', '`', ']', ',', ' '])
                    .filter(|part| !part.is_empty())
                    .map(|module| (module.to_owned(), number)),
            );
        }
    }
    layers
}

/// Files with their text.
type Files = [(String, String)];

/// Everything that is broken in one file.
fn check(path: &str, text: &str, layers: &Layers) -> Vec<String> {
    let code = code_of(text);
    let mut broken = Vec::new();
    if !text.starts_with("//!") {
        broken.push((1, "no `//!` doc at the top".to_owned()));
    }
    let tokens = tokens(&code);
    if tokens > TOKENS {
        broken.push((1, format!("{tokens} tokens, more than {TOKENS}")));
    }
    check_names(path, &code, &mut broken);
    check_silenced(text, &code, &mut broken);
    if let Some(module) = path
        .strip_prefix("src/")
        .and_then(|rest| rest.split(['/', '.']).next())
        .filter(|module| !matches!(*module, "lib" | "main"))
    {
        check_layers(module, &code, layers, &mut broken);
        check_gates(module, &code, &mut broken);
    }
    broken.sort();
    broken
        .into_iter()
        .map(|(line, what)| format!("{path}:{line}: {what}"))
        .collect()
}

/// Text without its in-file tests: what only tests use is no layer and no name of the program.
fn program_of(text: &str) -> String {
    let code = code_of(text);
    let end = code.find("\nmod tests {").unwrap_or(code.len());
    code[..end].to_owned()
}

/// The module of a file: `src/fuse/tree.rs` is `fuse::tree`, `src/fuse/mod.rs` is `fuse`.
fn module_of(path: &str) -> Vec<&str> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    path.trim_end_matches("/mod").split('/').collect()
}

/// A use of one module of a folder by another one: file, line, `fuse::tree`, `fuse::session`.
type Use = (String, usize, String, String);

/// Every use between two modules of one folder. Modules of the crate's top have layers instead.
fn uses_in_folders(files: &Files) -> Vec<Use> {
    let modules: Vec<Vec<&str>> = files.iter().map(|(path, _)| module_of(path)).collect();
    let mut uses = Vec::new();
    for ((file, text), own) in files.iter().zip(&modules) {
        let code = program_of(text);
        for (at, base, after) in relative_paths(&code, own) {
            for path in paths(&code[after..]) {
                let path = [base.clone(), path].concat();
                let shared = own.iter().zip(&path).take_while(|(a, b)| a == b).count();
                if shared == 0 || shared == own.len() || shared == path.len() {
                    continue;
                }
                let other = &path[..=shared];
                if modules.iter().any(|module| module == other) {
                    let own = own[..=shared].join("::");
                    uses.push((file.clone(), line_of(&code, at), own, other.join("::")));
                }
            }
        }
    }
    uses
}

/// Where each path begins that starts at the crate or at a parent, the module that it starts at,
/// and where the rest of the path begins.
fn relative_paths<'a>(code: &str, own: &[&'a str]) -> Vec<(usize, Vec<&'a str>, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        found.push((at, Vec::new(), at + "crate::".len()));
    }
    for (at, word) in code.match_indices("super::") {
        if code[..at].ends_with(word) {
            continue;
        }
        let (mut base, mut after) = (own.to_vec(), at);
        while code[after..].starts_with(word) {
            base.pop();
            after += word.len();
        }
        found.push((at, base, after));
    }
    found
}

/// The uses that are part of a circle.
fn circles(uses: &[Use]) -> Vec<&Use> {
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut at) = (vec![from], 0);
        while at < seen.len() {
            for (_, _, user, used) in uses {
                if user == seen[at] && !seen.contains(&used.as_str()) {
                    seen.push(used);
                }
            }
            at += 1;
        }
        seen.contains(&to)
    };
    let closes = |(_, _, user, used): &&Use| reaches(used, user);
    uses.iter().filter(closes).collect()
}

/// The types that have the name of another one: file, line, name.
fn repeated_types(files: &Files) -> Vec<(String, usize, String)> {
    let mut types = Vec::new();
    for (path, text) in files {
        let (code, mut previous) = (program_of(text), "");
        for (at, word) in words(&code) {
            if matches!(previous, "struct" | "enum" | "trait" | "union") {
                types.push((path.clone(), line_of(&code, at), word.to_owned()));
            }
            previous = word;
        }
    }
    let repeated = |name: &str| types.iter().filter(|(.., other)| other == name).count() > 1;
    let found = types.iter().filter(|(.., name)| repeated(name));
    found.cloned().collect()
}

/// Prints what an exception covers; gives what none covers, and the exceptions that cover nothing.
fn judge(found: Vec<(String, usize, String)>, exceptions: &[&str]) -> Vec<String> {
    let mut broken = Vec::new();
    for exception in exceptions {
        if !found.iter().any(|(.., what)| what == exception) {
            broken.push(format!(
                "the exception {exception:?} is not needed: remove it"
            ));
        }
    }
    for (path, line, what) in found {
        if exceptions.contains(&what.as_str()) {
            println!("{path}:{line}: {what} (excepted)");
        } else {
            broken.push(format!("{path}:{line}: {what}"));
        }
    }
    broken
}

/// Line, counted from 1, and what is wrong there.
type Broken = Vec<(usize, String)>;

fn check_layers(module: &str, code: &str, layers: &Layers, broken: &mut Broken) {
    let layer = |module: &str| {
        layers
            .iter()
            .find(|(name, _)| name == module)
            .map(|(_, layer)| *layer)
    };
    let Some(own) = layer(module) else {
        return broken.push((1, format!("`{module}` has no layer")));
    };
    for (at, _) in code.match_indices("crate::") {
        for path in paths(&code[at + "crate::".len()..]) {
            let used = path[0];
            match layer(used) {
                None => broken.push((line_of(code, at), format!("`{used}` has no layer"))),
                Some(other) if other < own || used == module => {}
                Some(other) => {
                    broken.push((
                        line_of(code, at),
                        format!("`{module}` (layer {own}) may not use `{used}` (layer {other})"),
                    ));
                }
            }
        }
    }
}

fn check_gates(module: &str, code: &str, broken: &mut Broken) {
    if !UNSAFE.contains(&module) {
        let found = words(code).filter(|(_, word)| *word == "unsafe");
        broken.extend(found.map(|(at, _)| {
            (
                line_of(code, at),
                "`unsafe` outside of its gates".to_owned(),
            )
        }));
    }
    for clock in ["Instant::now", "SystemTime::now"]
        .iter()
        .filter(|_| module != "clock")
    {
        broken.extend(
            code.match_indices(clock)
                .map(|(at, _)| (line_of(code, at), format!("`{clock}` outside of `clock`"))),
        );
    }
}

fn check_names(path: &str, code: &str, broken: &mut Broken) {
    let says_nothing = |name: &str| format!("`{name}` says nothing: name what it does");
    let stem = Path::new(path)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if EMPTY_WORDS
        .iter()
        .any(|word| stem.eq_ignore_ascii_case(word))
    {
        broken.push((1, says_nothing(stem)));
    }
    let mut previous = "";
    for (at, word) in words(code) {
        if matches!(previous, "struct" | "enum" | "trait" | "type")
            && EMPTY_WORDS.iter().any(|empty| word.ends_with(empty))
        {
            broken.push((line_of(code, at), says_nothing(word)));
        }
        previous = word;
    }
}

fn check_silenced(text: &str, code: &str, broken: &mut Broken) {
    for opening in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
        for (at, _) in code.match_indices(opening) {
            let attribute = code[at..].split(']').next().unwrap_or_default();
            if !attribute.contains("reason =") {
                broken.push((
                    line_of(text, at),
                    "a lint is silenced without a reason".to_owned(),
                ));
            }
        }
    }
}

/// The paths that `text` begins with: one, or each of a group, by their words.
fn paths(text: &str) -> Vec<Vec<&str>> {
    if let Some(group) = text.strip_prefix('{') {
        return parts(group).into_iter().flat_map(paths).collect();
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    match rest.strip_prefix("::") {
        Some(rest) => paths(rest)
            .into_iter()
            .map(|path| [vec![word], path].concat())
            .collect(),
        None => vec![vec![word]],
    }
}

/// The parts of the group whose `{` stands before `text`.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    parts
}

/// Words of `code` with their positions.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let start = code.as_ptr() as usize;
    code.split(move |c| !word(c))
        .filter(|part| !part.is_empty())
        .map(move |part| (part.as_ptr() as usize - start, part))
}

/// How many words, numbers and signs `code` has, however its lines are wrapped.
fn tokens(code: &str) -> usize {
    let is_sign = |c: &char| !c.is_alphanumeric() && *c != '_' && !c.is_whitespace();
    words(code).count() + code.chars().filter(is_sign).count()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// `text` with comments, strings and characters blanked; positions and lines stay as they are.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = quoted(rest);
        let (taken, next) = rest.split_at(blank.unwrap_or(first.len_utf8()));
        match blank {
            None => code.push_str(taken),
            Some(_) => code.extend(taken.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' })),
        }
        rest = next;
    }
    code
}

/// The length of the comment, string or character that `text` begins with.
fn quoted(text: &str) -> Option<usize> {
    let until = |from: usize, end: &str| {
        text[from..]
            .find(end)
            .map_or(text.len(), |at| from + at + end.len())
    };
    let hashes = text
        .strip_prefix('r')
        .map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    if text.starts_with("//") {
        Some(text.find('\n').unwrap_or(text.len()))
    } else if text.starts_with("/*") {
        Some(until(2, "*/"))
    } else if text.starts_with('r') && text[1 + hashes..].starts_with('"') {
        Some(until(2 + hashes, &format!("\"{}", "#".repeat(hashes))))
    } else if text.starts_with('"') {
        Some(closing(text, '"'))
    } else if text.starts_with("'\\") {
        Some(closing(text, '\''))
    } else {
        // 'x' is a character, 'x a lifetime.
        let mut chars = text.char_indices();
        let third = (chars.next()?.1 == '\'').then(|| chars.nth(1)).flatten();
        third.filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
    }
}

/// Where the literal that `text` begins with ends.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// All Rust files below `dir`, as paths relative to `root`, with their text.
fn rust_files(root: &Path, dir: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(root.join(dir)) else {
        return files;
    };
    for entry in entries {
        let path = dir.join(entry.expect("an entry").file_name());
        if root.join(&path).is_dir() {
            files.extend(rust_files(root, &path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push((
                path.display().to_string(),
                fs::read_to_string(root.join(&path)).expect("a readable file"),
            ));
        }
    }
    files
}
