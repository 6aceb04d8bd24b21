//! The subcommands of kubernetes-sigs/kind that makefiles call, for the cluster that there is (`kind.sh`).

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::Error;

const SCRIPT: &str = include_str!("kind.sh");

/// Becomes the script. Returns only if that is impossible.
pub fn run(arguments: &[String]) -> Error {
    let cause = Command::new("sh").args(["-c", SCRIPT, "kind"]).args(arguments).exec();
    Error::new(format!("cannot run sh: {cause}"))
}
