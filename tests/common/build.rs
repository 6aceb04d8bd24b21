//! Runs `build.sh` with a stub for docker that only says what engine it is: enough for everything up to the first
//! `docker build`.

use std::fs;
use std::process::{Command, Output};

use super::TempDir;

/// The message of a build that has come as far as the first `docker build`.
pub const WENT_ON: &str = "build of the node image failed";

/// The cases of a stub for docker that answer build.sh's questions about the engine.
pub fn engine(arch: &str) -> String {
    format!("version) echo '{arch} linux 28.5.2 Engine,containerd,' ;; info) echo '[name=seccomp,profile=builtin]' ;;")
}

/// A machine with an empty cache and the stub for docker.
pub struct Machine {
    pub home: TempDir,
}

impl Machine {
    pub fn new(arch: &str) -> Machine {
        let home = TempDir::new();
        // `docker image inspect` fails: there are no images.
        home.script("bin/docker", &format!("case $1 in {} build) exit 9 ;; image) exit 1 ;; esac", engine(arch)));
        fs::create_dir_all(home.join("tmp")).unwrap();
        Machine { home }
    }

    /// Makes a bundle with these files, as `--bundle-only` seals it. Returns its path.
    pub fn bundle(&self, files: &[(&str, &str)]) -> String {
        for (name, text) in [&[("bundle.env", "KUBERNETES_VERSION=v1.36.2\nARCH=amd64\n")], files].concat() {
            self.home.write(&format!("bundle/{name}"), text);
        }
        let directory = self.home.join("bundle");
        let seal = "find * -type f ! -name SHA256SUMS -exec sha256sum {} + >SHA256SUMS";
        assert!(Command::new("sh").args(["-c", seal]).current_dir(&directory).status().unwrap().success());
        directory.to_string_lossy().into_owned()
    }

    /// Runs build.sh with `settings` and otherwise only the variables that `command` sets.
    pub fn build(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Build {
        let mut command = self.command(arguments, settings);
        let output = command.output().unwrap();
        assert_eq!(fs::read_dir(self.home.join("tmp")).unwrap().count(), 0, "temporary files are left");
        Build(output)
    }

    pub fn command(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
        // A shell cannot trap a signal that it was started to ignore, as under nohup or in the background.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", concat!(env!("CARGO_MANIFEST_DIR"), "/build.sh")])
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{}:{}", self.home.join("bin").display(), std::env::var("PATH").unwrap()));
        command.env("HOME", self.home.path()).env("TMPDIR", self.home.join("tmp")).env("KIND_CACHE", self.home.join("cache"));
        command.envs(settings.iter().copied());
        command
    }
}

pub struct Build(Output);

impl Build {
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    #[track_caller]
    pub fn went_on(&self) {
        self.went_on_with("docker");
    }

    /// The same with another engine's command.
    #[track_caller]
    pub fn went_on_with(&self, engine: &str) {
        assert!(self.said().contains(&format!("{engine} {WENT_ON}")), "{}", self.said());
    }

    #[track_caller]
    pub fn failed_with(&self, words: &[&str]) {
        let said = self.said();
        assert_eq!(self.0.status.code(), Some(1), "{said}");
        assert!(!said.contains(WENT_ON), "it went on: {said}");
        let last = said.lines().rfind(|line| line.starts_with("build: error: ")).unwrap_or_else(|| panic!("no error: {said}"));
        for word in words {
            assert!(last.contains(word), "{word} is not in: {said}");
        }
    }
}
