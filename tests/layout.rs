//! Modules are in layers: a module imports only from its own layer and those below, and no two files import each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the bottom up: a module may import itself and those before it.
const ORDER: [&str; 25] = [
    "error",
    "threads",
    "files",
    "sys",
    "listen",
    "http",
    "subnet",
    "logger",
    "config",
    "readiness",
    "supervisor",
    "openssl",
    "node",
    "daemons",
    "versions",
    "cluster",
    "restore",
    "save",
    "boot",
    "bake",
    "status",
    "logs",
    "namesake",
    "ask",
    "cli",
];

/// Pairs of a file and a module path that it imports, such as `("cluster/etcd.rs", "cluster::api")`, without unit tests.
type Imports = Vec<(String, String)>;

fn imports_of(file: &str, text: &str) -> Imports {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut imports = vec![];
    for part in code.split("crate::").skip(1) {
        let end = part.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(part.len());
        let prefix = part[..end].trim_end_matches(':');
        // `crate::cluster::{api, wait}` names two modules.
        let names: Vec<&str> = match part[end..].strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').map(|name| name.trim().split("::").next().unwrap()).collect(),
            None => vec![""],
        };
        imports.extend(names.iter().map(|name| (file.to_string(), format!("{prefix}::{name}").trim_matches(':').to_string())));
    }
    imports
}

/// The file of the longest prefix of a module path that names a file.
fn file_of(path: &str, files: &BTreeSet<String>) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").collect();
    while !parts.is_empty() {
        let stem = parts.join("/");
        let found = [format!("{stem}.rs"), format!("{stem}/mod.rs")].into_iter().find(|file| files.contains(file));
        if found.is_some() {
            return found;
        }
        parts.pop();
    }
    None
}

fn violations(sources: &BTreeMap<String, String>) -> Vec<String> {
    let files: BTreeSet<String> = sources.keys().cloned().collect();
    let module = |file: &str| file.split(['/', '.']).next().unwrap().to_string();
    let level = |module: &str| ORDER.iter().position(|name| *name == module);
    let mut violations = vec![];
    let mut edges = BTreeSet::new();
    for (file, text) in sources.iter().filter(|(file, _)| *file != "main.rs") {
        let Some(own) = level(&module(file)) else {
            violations.push(format!("{file} is not in the order of modules (ORDER in tests/layout.rs)"));
            continue;
        };
        for (_, path) in imports_of(file, text) {
            let target = file_of(&path, &files);
            match level(path.split("::").next().unwrap()) {
                Some(other) if other <= own => edges.extend(target.filter(|target| target != file).map(|target| (file.clone(), target))),
                _ => violations.push(format!("{file} imports {path}, which is in a higher layer")),
            }
        }
    }
    let cycles = edges.iter().filter(|(a, b)| a < b && edges.contains(&(b.clone(), a.clone())));
    violations.extend(cycles.map(|(a, b)| format!("{a} and {b} import each other")));
    violations
}

fn read(directory: &Path, prefix: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            read(&entry.path(), &format!("{name}/"), sources);
        } else {
            sources.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn imports_run_one_way_and_no_two_files_import_each_other() {
    let mut sources = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 40, "the sources are not found");
    assert_eq!(violations(&sources), Vec::<String>::new());
}

/// The negative control: the check finds what it is for.
#[test]
fn cycles_and_imports_from_higher_layers_are_found() {
    let sources = |pairs: &[(&str, &str)]| pairs.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect();
    let cycle = sources(&[
        ("node/mod.rs", ""),
        ("node/a.rs", "use crate::node::{b, c};\n"),
        ("node/b.rs", "fn f() { crate::node::a::g() }\n"),
        ("node/c.rs", ""),
    ]);
    assert_eq!(violations(&cycle), ["node/a.rs and node/b.rs import each other"]);
    let upward = sources(&[("node/mod.rs", "use crate::boot::scripts;\n"), ("boot/scripts.rs", "use crate::node;\n")]);
    assert_eq!(
        violations(&upward),
        ["node/mod.rs imports boot::scripts, which is in a higher layer", "boot/scripts.rs and node/mod.rs import each other"][..1]
    );
    let only_in_tests = sources(&[("node/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::boot;\n}"), ("boot/mod.rs", "")]);
    assert!(violations(&only_in_tests).is_empty());
    assert_eq!(violations(&sources(&[("stray.rs", "")])), ["stray.rs is not in the order of modules (ORDER in tests/layout.rs)"]);
}
