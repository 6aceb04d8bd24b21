//! The error type: what was tried, on what, why it failed, and what the user can do about it.

use std::fmt;
use std::path::Path;

pub type Result<T> = std::result::Result<T, Error>;

/// A message for the user, advice if there is any, and the exit status to end with.
#[derive(Debug)]
pub struct Error {
    what: String,
    advice: Option<String>,
    status: u8,
}

impl Error {
    pub fn new(what: impl Into<String>) -> Self {
        Error { what: what.into(), advice: None, status: 1 }
    }

    /// A failed operation on a path, as "cannot OPERATION PATH: CAUSE".
    pub fn io(operation: &str, path: impl AsRef<Path>, cause: impl fmt::Display) -> Self {
        Error::new(format!("cannot {operation} {}: {cause}", path.as_ref().display()))
    }

    /// Of a command that asks the init of this container, where there is none.
    pub fn does_not_run_here() -> Self {
        Error::new("kind does not run in this container").advise(
            "To ask one that does: `docker exec CONTAINER kind ...`, or in a job wait-for-kind.sh and http://kind:10080. To start it here: its own entrypoint, `kind run`",
        )
    }

    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Sets the exit status of a process that ends with this error. The default is 1.
    pub fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        match &self.advice {
            Some(advice) => write!(f, ". {advice}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_with_its_advice() {
        let error = Error::io("read", "/kind/cluster.json", "No such file").advise("Bake the image again");
        assert_eq!(error.to_string(), "cannot read /kind/cluster.json: No such file. Bake the image again");
    }
}
