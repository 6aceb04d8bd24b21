//! Looks for a secret wherever it may have been kept: as it is, in base64, and in whatever is packed, however deep.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine;

use crate::engine::session;
use crate::process::run;

/// For a gigabyte that is not in the page cache.
const LIMIT: Duration = Duration::from_secs(300);
/// A layer in an image in an image is four deep.
const DEPTH: usize = 12;
/// How the first bytes of gzip, zstd and xz read in base64, and those of gzip in base64 twice, as Helm keeps
/// its releases. The rest has to be long enough to be more than an accident.
const PACKED_IN_BASE64: &str = "(H4sI|KLUv|/Td6WFo|SDRzS)[A-Za-z0-9+/]{24,}={0,2}";

/// What is looked for: a name for it, and its bytes.
pub type Mark = (String, String);

/// Where the files at or below a path hold a password, in any form, as lines for a person.
pub fn found_in(path: &Path, user: &str, password: &str) -> Vec<String> {
    search(path, &forms(user, password)).into_iter().map(|(what, place)| format!("{what}: {place}")).collect()
}

/// A login is kept as base64 of `user:password`; base64 of anything longer that holds the password has
/// it at one of three offsets, where all but the characters at its ends are always the same.
pub fn forms(user: &str, password: &str) -> Vec<Mark> {
    let mut forms =
        vec![("as it is".to_string(), password.to_string()), ("a login in base64".into(), BASE64.encode(format!("{user}:{password}")))];
    for offset in 0..3 {
        let whole = BASE64.encode(format!("{}{password}", &"xx"[..offset]));
        let (first, last) = ([0, 2, 3][offset], (offset + password.len()) * 8 / 6);
        forms.push((format!("in base64, from offset {offset}"), whole[first..last].to_string()));
    }
    forms
}

/// Every mark that the files at or below `path` hold, and where. What is packed is searched as it is and unpacked.
pub fn search(path: &Path, marks: &[Mark]) -> BTreeSet<(String, String)> {
    let work = Work::new();
    let mut found = BTreeSet::new();
    let (mut level, mut next) = (vec![(path.to_path_buf(), String::new())], vec![]);
    for _ in 0..DEPTH {
        for (path, place) in level.drain(..) {
            let at = |file: &Path| match file.strip_prefix(&path) {
                Ok(below) if below != Path::new("") => format!("{place}/{}", below.display()),
                _ => place.clone(),
            };
            for (file, text) in grep(&path, &["--fixed-strings"], marks.iter().map(|(_, text)| text.as_str())) {
                let what = marks.iter().find(|(_, mark)| *mark == text).expect("grep found one of them");
                found.insert((what.0.clone(), at(&file)));
            }
            for (file, text) in grep(&path, &["--extended-regexp"], [PACKED_IN_BASE64]) {
                // Not all that looks like base64 is.
                let whole = text.trim_end_matches('=').get(..text.trim_end_matches('=').len() / 4 * 4).unwrap_or_default();
                if let Ok(decoded) = BASE64.decode(&text).or_else(|_| BASE64.decode(whole)) {
                    let to = work.next();
                    fs::write(&to, decoded).expect("the temporary directory has room");
                    next.push((to, format!("{} from base64:", at(&file))));
                }
            }
            for file in files(&path) {
                let to = work.next();
                if unpack(&file, &to) {
                    next.push((to, at(&file)));
                }
            }
            // What is searched makes room for what was in it; the first level is not ours.
            if path.starts_with(&work.0) {
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
        std::mem::swap(&mut level, &mut next);
    }
    assert!(level.is_empty(), "still packed after {DEPTH} times: {level:?}");
    found
}

/// Whether a file, or any file below a directory, holds this text as it is.
pub fn holds(path: &Path, wanted: &str) -> bool {
    !grep(path, &["--fixed-strings"], [wanted]).is_empty()
}

/// Which files hold which of the patterns.
fn grep<'a>(path: &Path, options: &[&str], patterns: impl IntoIterator<Item = &'a str>) -> Vec<(PathBuf, String)> {
    let mut command = Command::new("grep");
    // Lines end at NUL, of which such files have many: without line breaks they would be whole files.
    command.args(["--recursive", "--text", "--null-data", "--null", "--with-filename", "--only-matching", "--devices=skip"]).args(options);
    let outcome = run(command.args(patterns.into_iter().flat_map(|pattern| ["-e", pattern])).arg("--").arg(path).env("LC_ALL", "C"), LIMIT);
    assert!(outcome.status.code().is_some_and(|code| code < 2), "{outcome}");
    let words: Vec<&str> = outcome.stdout.split('\0').collect();
    let found: BTreeSet<(PathBuf, String)> = words.chunks_exact(2).map(|pair| (PathBuf::from(pair[0]), pair[1].to_string())).collect();
    found.into_iter().collect()
}

/// Every regular file at or below a path; links are not followed.
fn files(path: &Path) -> Vec<PathBuf> {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    if !metadata.is_dir() {
        return if metadata.is_file() { vec![path.to_path_buf()] } else { vec![] };
    }
    let entries = fs::read_dir(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    entries.flat_map(|entry| files(&entry.expect("the directory can be read").path())).collect()
}

/// Unpacks a file if it is packed: what is in it is at `to` then.
fn unpack(file: &Path, to: &Path) -> bool {
    let mut head = vec![];
    File::open(file).and_then(|file| file.take(512).read_to_end(&mut head)).unwrap_or_else(|cause| panic!("{}: {cause}", file.display()));
    if head.get(257..262) == Some(b"ustar") {
        fs::create_dir(to).expect("the temporary directory has room");
        let tar = run(Command::new("tar").args(["--extract", "--no-same-owner", "--file"]).arg(file).arg("-C").arg(to), LIMIT);
        assert!(tar.succeeded(), "{tar}");
        return true;
    }
    let program = match head.as_slice() {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => return false,
    };
    let (input, output) = (File::open(file).expect("it was just read"), File::create(to).expect("the temporary directory has room"));
    let unpacked = Command::new(program).args(["-d", "-c"]).stdin(input).stdout(output).stderr(Stdio::null()).status();
    // What only begins like it, or is cut, is searched as far as it goes.
    unpacked.unwrap_or_else(|cause| panic!("cannot run {program}: {cause}"));
    true
}

/// A directory for what is unpacked, removed at the end.
struct Work(PathBuf, Cell<usize>);

impl Work {
    fn new() -> Work {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = session().dir.join(format!("unpacked-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).expect("the session's directory can be written");
        Work(path, Cell::new(0))
    }

    fn next(&self) -> PathBuf {
        self.1.set(self.1.get() + 1);
        self.0.join(self.1.get().to_string())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_password_is_found_in_every_form() {
    let (user, password) = ("e2e", "pass-1234-word");
    let dir = std::env::temp_dir().join(format!("kind-secrets-{}", std::process::id()));
    fs::create_dir_all(dir.join("below")).unwrap();
    let file = dir.join("below/file");
    for (text, forms) in [
        (password.to_string(), 1),
        (BASE64.encode(format!("{user}:{password}")), 1),
        (BASE64.encode(format!("{{{password}}}")), 1),
        (BASE64.encode(format!("{{{{{password}}}}}")), 1),
        (BASE64.encode(format!("{{{{{{{password}}}}}}}")), 1),
        ("pass-1234".to_string(), 0),
    ] {
        fs::write(&file, format!("{}{text} and more", "p".repeat((1 << 20) - 7))).unwrap();
        let found = found_in(&dir, user, password);
        assert_eq!(found.len(), forms, "{text}: {found:?}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_is_packed_is_found_however_deep() {
    let dir = std::env::temp_dir().join(format!("kind-packed-{}", std::process::id()));
    // Enough text beside it that no way to pack it keeps it readable.
    let plain = "seq 300; echo pass-1234-word; seq 300";
    for pack in [
        "gzip",
        "zstd",
        "xz",
        "gzip | base64 -w 0",
        "gzip | base64 -w 0 | base64 -w 0",
        "zstd | base64 -w 0",
        "cat >in && tar -cz in",
        "cat >in && tar -c in | zstd >inner && tar -c inner | gzip >outer && rm in inner && tar -c outer",
        "gzip | gzip | base64 -w 0 | xz",
    ] {
        fs::create_dir_all(&dir).unwrap();
        let script = format!("mkdir out && ({plain}) | ({pack}) >out/packed");
        run(Command::new("sh").args(["-c", &script]).current_dir(&dir), LIMIT).ok();
        assert!(!holds(&dir.join("out"), "pass-1234-word"), "{pack} hides nothing, and proves nothing");
        let found = found_in(&dir.join("out"), "e2e", "pass-1234-word");
        assert!(found.iter().any(|line| line.starts_with("as it is: /packed")), "{pack}: {found:?}");
        assert!(found_in(&dir.join("out"), "e2e", "pass-1234-wort").is_empty(), "{pack}");
        assert!(dir.join("out/packed").exists(), "what is searched is left alone");
        fs::remove_dir_all(&dir).unwrap();
    }
}
