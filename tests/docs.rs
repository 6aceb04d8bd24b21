//! What the documentation says of settings and commands is what the code knows.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Names that the documentation uses as examples, or that belong to wait-for-kind.sh or to kubernetes-sigs/kind.
const OTHERS: [&str; 12] = [
    "KIND_BENCH_BEFORE",
    "KIND_BENCH_ENGINE",
    "KIND_BENCH_PULLS",
    "KIND_CI_BUNDLE",
    "KIND_IMAGE",
    "KIND_BUNDLE",
    "KIND_HOST",
    "KIND_PORT",
    "KIND_TIMEOUT",
    "KIND_TEST_SECRET",
    "KIND_EXPERIMENTAL_DOCKER_NETWORK",
    "KIND_EXPERIMENTAL_PROVIDER",
];
/// For tests alone.
const INTERNAL: [&str; 1] = ["KIND_ROOT"];
const PAGES: [&str; 2] = ["docs", "scripts/debian"];

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

/// The words in a text that look like names of our settings.
fn settings_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("KIND_") && word.len() > "KIND_".len()).map(str::to_string).collect()
}

/// The files below a directory with one of these extensions.
fn files(directory: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(directory).unwrap_or_else(|cause| panic!("{directory}: {cause}")) {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&name, extensions));
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<String> {
    let pages = PAGES.iter().flat_map(|directory| files(directory, &[".md"]));
    pages.chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_string)).collect()
}

fn code() -> String {
    let sources = files("src", &[".rs", ".sh"]).into_iter().chain(files("scripts", &[".sh"]));
    let sources = sources.chain(["build.sh", "wait-for-kind.sh", "run.sh"].map(str::to_string));
    sources.map(|path| read(path).split("#[cfg(test)]\nmod tests").next().unwrap().to_string()).collect()
}

fn without(names: BTreeSet<String>, left_out: &[&str]) -> BTreeSet<String> {
    names.into_iter().filter(|name| !left_out.contains(&name.as_str())).collect()
}

/// The settings of a start are the constants of config.rs; those of a build are what `./build.sh --help` lists.
fn settings_of_start() -> BTreeSet<String> {
    let text = read("src/config.rs");
    let constants = text.lines().filter(|line| line.contains("const ") && line.contains(": &str = \"KIND_"));
    without(constants.flat_map(settings_in).collect(), &["KIND_", "KIND_ROOT"])
}

fn help_of(script: &str) -> String {
    let output = Command::new("bash").args([script, "--help"]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_setting_is_in_the_page_of_settings_and_in_the_help() {
    let page = settings_in(&read("docs/settings.md"));
    let start = settings_of_start();
    assert!(start.contains("KIND_LISTEN") && start.len() >= 14, "the search finds them: {start:?}");
    let help = settings_in(&read("src/cli.rs"));
    for name in &start {
        assert!(page.contains(name), "{name} is not in docs/settings.md");
        assert!(help.contains(name), "{name} is not in the help of the program");
    }
    for name in settings_in(&help_of("build.sh")) {
        assert!(page.contains(&name), "{name} is not in docs/settings.md");
    }
}

#[test]
fn every_setting_that_a_page_names_is_known_to_the_code() {
    let known = settings_in(&code());
    for page in pages() {
        let unknown: Vec<String> = settings_in(&read(&page)).into_iter().filter(|name| !known.contains(name)).collect();
        let unknown: Vec<&String> = unknown.iter().filter(|name| !OTHERS.contains(&name.as_str())).collect();
        assert!(unknown.is_empty(), "{page} names {unknown:?}");
    }
}

#[test]
fn every_setting_that_the_code_reads_is_in_the_page_of_settings() {
    let page = settings_in(&read("docs/settings.md"));
    let scripts = files("scripts", &[".sh"]).into_iter().chain(["build.sh".to_string()]).map(read).collect::<String>();
    let read_there: BTreeSet<String> = scripts.split("${").skip(1).flat_map(|part| settings_in(part.split('}').next().unwrap())).collect();
    assert!(read_there.contains("KIND_CACHE"), "{read_there:?}");
    for name in without(read_there, &[&OTHERS[..], &INTERNAL[..], &["KIND_LAB_MIRROR"]].concat()) {
        assert!(page.contains(&name), "{name} is not in docs/settings.md");
    }
}

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let (text, fence) = (read(page), format!("```{language}\n"));
    let blocks = text.split(&fence).skip(1);
    blocks.map(|block| block.split("\n```").next().unwrap().to_string()).collect()
}

/// Our scripts that a line of shell calls, with the options that it gives them.
fn calls(line: &str) -> Vec<(&'static str, Vec<String>)> {
    const SCRIPTS: [(&str, &str); 5] = [
        ("./build.sh", "build.sh"),
        ("./test.sh", "test.sh"),
        ("scripts/release.sh", "scripts/release.sh"),
        ("wait-for-kind.sh", "wait-for-kind.sh"),
        ("tests/stress/kills.py", "tests/stress/kills.py"),
    ];
    let mut calls = vec![];
    for part in line.split(['|', ';', '&']).map(|part| part.split(" #").next().unwrap()) {
        let words: Vec<&str> = part.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| SCRIPTS.iter().any(|(call, _)| word.ends_with(call))) else { continue };
        let script = SCRIPTS.iter().find(|(call, _)| words[at].ends_with(call)).unwrap().1;
        let options = words[at + 1..].iter().filter(|word| word.starts_with("--"));
        calls.push((script, options.map(|option| option.split('=').next().unwrap().to_string()).collect()));
    }
    calls
}

#[test]
fn every_shell_block_is_shell_and_gives_our_scripts_options_that_they_have() {
    let mut checked = 0;
    for page in pages() {
        for block in blocks(&page, "sh") {
            let output = Command::new("bash").args(["-n", "-c", &block]).output().unwrap();
            assert!(output.status.success(), "{page}: {}:\n{block}", String::from_utf8_lossy(&output.stderr));
            for (script, options) in block.lines().flat_map(calls) {
                assert!(Path::new(script).exists(), "{page}: there is no {script}");
                let help = if script.ends_with(".py") { read(script) } else { help_of(script) };
                for option in options {
                    assert!(help.contains(&option), "{page}: {script} has no {option}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 5, "only {checked} options were found");
}

/// The negative control.
#[test]
fn a_call_with_options_is_recognised() {
    let line = "KUBERNETES_VERSION=1.36 ./build.sh --bundle DIR --no-such IMAGE || exit # --comment";
    assert_eq!(calls(line), [("build.sh", vec!["--bundle".to_string(), "--no-such".to_string()])]);
    assert!(settings_in("`KIND_LISTEN` and KIND_…").contains("KIND_LISTEN"));
    assert!(Command::new("bash").args(["-n", "-c", "if true"]).output().is_ok_and(|output| !output.status.success()));
}

/// The first cells of the table below this heading, as the texts in code font that each contains.
fn first_cells(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let section = text.split(&format!("## {heading}\n")).nth(1).unwrap_or_else(|| panic!("{page} has no {heading}"));
    let rows = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| ")).skip(1);
    let cell = |row: &str| row.split(" | ").next().unwrap().split('`').skip(1).step_by(2).map(str::to_string).collect();
    rows.map(cell).collect()
}

#[test]
fn what_a_start_is_said_to_say_is_in_the_code() {
    let code = code();
    let cells = first_cells("docs/troubleshooting.md", "A start that ends at once");
    assert!(cells.len() > 5 && cells.iter().all(|cell| !cell.is_empty()), "{cells:?}");
    for text in cells.into_iter().flatten() {
        assert!(code.contains(&text), "no message contains {text:?}");
    }
}
