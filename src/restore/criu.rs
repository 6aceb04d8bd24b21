//! CRIU's command lines. CRIU is kept in the image with its own loader and libraries, so that it depends on nothing that
//! the image's userland has, or is given later.

use std::path::Path;
use std::process::Command;

use crate::config::CRIU_DIR;

/// In `CRIU_DIR`: the program, the loader, and the libraries.
pub const PROGRAM: &str = "criu";
pub const LOADER: &str = "ld.so";
pub const LIBRARIES: &str = "lib";
/// What CRIU writes besides its images, into its working directory.
pub const LOG: &str = "criu.log";
pub const PID: &str = "pid";

/// Where programs of the control plane watch files: CRIU looks there for a watched file of which it knows the inode alone.
const WATCHED: [&str; 4] = ["/etc/kubernetes", "/usr/libexec/kubernetes", "/etc/ssl", "/var/lib/etcd"];
/// The options that a dump and a restore share. The connections between the programs are saved with them; nobody else
/// is connected, so nothing has to be kept from the network meanwhile, which would cost a call of iptables each.
const SHARED: [&str; 5] = ["--tcp-established", "--network-lock=skip", "--file-locks", "--manage-cgroups=ignore", "-v2"];

pub fn exists() -> bool {
    Path::new(CRIU_DIR).join(PROGRAM).exists()
}

fn criu(action: &str, images: &Path, work: &Path) -> Command {
    let directory = Path::new(CRIU_DIR);
    let mut command = Command::new(directory.join(LOADER));
    command.arg("--library-path").arg(directory.join(LIBRARIES)).arg(directory.join(PROGRAM)).arg(action);
    command.arg("--images-dir").arg(images).arg("--work-dir").arg(work).args(SHARED).arg(format!("--log-file={LOG}"));
    command.env_clear();
    command
}

/// Saves a process and everything below it in `images`. They then end.
pub fn dump(root: i32, images: &Path, work: &Path) -> Command {
    let mut command = criu("dump", images, work);
    command.arg(format!("--tree={root}")).arg("--force-irmap");
    let exists = |path: &&str| Path::new(path).exists();
    command.args(WATCHED.iter().filter(|path| exists(path)).map(|path| format!("--irmap-scan-path={path}")));
    command
}

/// Restores what was saved, and ends when it runs. The process id of its root is in `PID`. The CPU may have fewer
/// registers than that of the bake, even none that need XSAVE: `Machine` has seen to it that nothing uses them.
pub fn restore(images: &Path, work: &Path) -> Command {
    let mut command = criu("restore", images, work);
    command.args(["--restore-detached", "--file-validation=filesize", "--cpu-cap=none", &format!("--pidfile={PID}")]);
    command
}

/// The first error in CRIU's log that stopped it: those that follow are only its consequences.
pub fn error_in(log: &str) -> Option<&str> {
    let mut errors = log.lines().filter_map(|line| line.split_once("Error ").map(|(_, error)| error));
    errors.find(|error| !HARMLESS.iter().any(|harmless| error.contains(harmless)))
}

/// CRIU wants more files for itself than it may have where CAP_SYS_RESOURCE is missing, and works with less.
const HARMLESS: [&str; 2] = ["rlimit: Can't setup RLIMIT_NOFILE for self", "FAILED"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_that_stopped_criu_is_found() {
        let log = "(00.01) Warn  (criu/a.c:1): x
(00.02) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.30)     18: Error (criu/files-reg.c:2294): File x has bad mode 040755 (expect 040700)
(00.30)     18: Error (criu/files.c:1221): Unable to open fd=10 id=0x14
(00.31) Error (criu/cr-restore.c:2331): Restoring FAILED.
";
        assert_eq!(error_in(log), Some("(criu/files-reg.c:2294): File x has bad mode 040755 (expect 040700)"));
        assert_eq!(error_in("(00.01) Warn  (criu/a.c:1): x\n"), None);
    }
}
