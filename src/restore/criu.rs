//! CRIU's command lines. CRIU is kept in the image with its own loader and libraries, so that it depends on nothing that
//! the image's userland has, or is given later.

use std::path::Path;
use std::process::Command;

use crate::config::CRIU_DIR;
use crate::restore::saved;

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

fn criu(action: &str, work: &Path) -> Command {
    let directory = Path::new(CRIU_DIR);
    let mut command = Command::new(directory.join(LOADER));
    command.arg("--library-path").arg(directory.join(LIBRARIES)).arg(directory.join(PROGRAM)).arg(action);
    command.arg("--images-dir").arg(saved::images_dir()).arg("--work-dir").arg(work).args(SHARED).arg(format!("--log-file={LOG}"));
    command.env_clear();
    command
}

/// Saves a process and everything below it, which then end.
pub fn dump(root: i32, work: &Path) -> Command {
    let mut command = criu("dump", work);
    command.arg(format!("--tree={root}")).arg("--force-irmap");
    let exists = |path: &&str| Path::new(path).exists();
    command.args(WATCHED.iter().filter(|path| exists(path)).map(|path| format!("--irmap-scan-path={path}")));
    command
}

/// Restores what was saved, and ends when it runs. The process id of its root is in `PID`.
pub fn restore(work: &Path) -> Command {
    let mut command = criu("restore", work);
    command.args(["--restore-detached", "--file-validation=filesize", &format!("--pidfile={PID}")]);
    command
}

/// The last error in CRIU's log.
pub fn last_error(log: &str) -> Option<&str> {
    let error = |line: &'_ str| line.split_once("Error ").map(|(_, error)| error.trim().len()).is_some();
    // The last of them only says that restoring failed.
    let errors: Vec<&str> = log.lines().filter(|line| error(line) && !line.contains("Restoring FAILED")).collect();
    errors.last().map(|line| line.split_once("Error ").map_or(*line, |(_, error)| error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_says_what_failed() {
        let log = "(00.01) Warn  (criu/a.c:1): x\n(00.02) Error (criu/util.c:1534): rlimit: Can't setup\n(00.3)    18: Error (criu/files-reg.c:2): File x has bad size 1 (expect 2)\n(00.31) Error (criu/cr-restore.c:3): Restoring FAILED.\n";
        assert_eq!(last_error(log), Some("(criu/files-reg.c:2): File x has bad size 1 (expect 2)"));
        assert_eq!(last_error("(00.01) Warn  (criu/a.c:1): x\n"), None);
    }
}
