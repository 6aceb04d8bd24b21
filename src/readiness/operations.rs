//! What clients ask for: that the cluster is reset (`POST /reset`), or saved (`POST /save`).

use crate::readiness::state::{Operation, Reset, State};
use crate::readiness::{Known, Readiness};

/// The header that such a request must have, with `Operation::name`. No form or link of a web page can send it.
pub const GUARD: &str = "X-Kind";
/// What a browser adds to every POST of a page's, even to the page's own host, and nobody else does.
pub const ORIGIN: &str = "Origin";

/// A status, and what a person can read.
type Answer = (&'static str, String);

/// Why nobody may ask for an operation in this way, if so. `client_limits` has seen to it that the host is this container.
pub fn forbids(operation: Operation, is_post: bool, header: impl Fn(&str) -> Option<String>) -> Option<Answer> {
    let name = operation.name();
    if !is_post {
        return Some(("405 Method Not Allowed\r\nAllow: POST", format!("a {name} is requested with POST\n")));
    }
    let own = header("Host").map(|host| format!("http://{host}"));
    let why = if header(GUARD).is_none_or(|sent| sent != name) {
        format!("a {name} needs the header {GUARD}: {name}, for example: curl -X POST -H '{GUARD}: {name}' .../{name}\n")
    } else if header(ORIGIN).is_some_and(|origin| Some(origin) != own) {
        format!("web pages other than kind's own may not {name} the cluster\n")
    } else {
        return None;
    };
    Some(("403 Forbidden", why))
}

/// The answer to a client whose operation has begun, or was `refused` for this reason.
pub fn answer(operation: Operation, refused: Option<String>) -> Answer {
    let done = match operation {
        Operation::Reset | Operation::ResetToBaked => "the cluster begins again: wait for kubernetes-ready\n",
        Operation::Save => "the cluster is being saved: wait for kubernetes-ready\n",
        Operation::SaveAndStop => "the cluster is being saved: wait until the container has ended\n",
    };
    match refused {
        Some(why) => ("409 Conflict", format!("the cluster cannot be {}: {why}\n", if operation.saves() { "saved" } else { "reset" })),
        None => ("202 Accepted", done.to_string()),
    }
}

impl Readiness {
    /// Whether `request` would begin something: it is neither refused nor going on already.
    pub fn would_begin(&self, operation: Operation) -> bool {
        let known = self.known();
        known.in_progress().is_none() && known.refuses(operation).is_none()
    }

    /// Ends the cluster, so that the boot's thread does what a client has asked for. Before this returns, nothing says any more that
    /// it is ready. While the same operation goes on, this begins no further one.
    ///
    /// # Errors
    /// It cannot be done now, and this is why.
    pub fn request(&self, operation: Operation) -> std::result::Result<(), &'static str> {
        let mut known = self.known();
        if known.in_progress() == Some(operation) {
            return Ok(());
        }
        if let Some(why) = known.refuses(operation) {
            return Err(why);
        }
        let what = if operation.saves() { "the cluster is saved as it is" } else { "the cluster begins again" };
        log::info!(target: operation.name(), "requested: {what}");
        self.end_cluster(&mut known, Reset::Requested(operation));
        known.operation = Some(operation);
        known.record_milestone(operation.name(), true);
        known.write_files(&self.shared.directory);
        Ok(())
    }

    /// Waits for an operation. `None` if the container stops.
    pub fn wait_for_operation(&self) -> Option<Operation> {
        let requested = |state: &State| match state.reset {
            Reset::Requested(operation) => Some(operation),
            Reset::No | Reset::Ending | Reset::Removing => None,
        };
        self.wait_until(|state| requested(state).is_some()).then(|| requested(&self.state()))?
    }
}

impl Known {
    /// The operation that goes on just now.
    fn in_progress(&self) -> Option<Operation> {
        self.operation.filter(|_| !self.was_ready && self.state.failure.is_none() && !self.state.ending)
    }

    fn refuses(&self, operation: Operation) -> Option<&'static str> {
        match self.in_progress() {
            Some(earlier) if earlier == operation => None,
            Some(_) => Some("it is just being reset or saved: wait for kubernetes-ready"),
            None => self.state.refuses(operation, self.was_ready),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_needs_a_header_that_no_page_can_send() {
        for (is_post, headers, status) in [
            (false, &[("X-Kind", "reset")][..], "405"),
            (true, &[], "403"),
            (true, &[("X-Kind", "save")], "403"),
            (true, &[("X-Kind", "reset"), ("Origin", "http://localhost:10081")], "403"),
            (true, &[("X-Kind", "reset"), ("Host", "localhost:10081"), ("Origin", "http://localhost:8080")], "403"),
            (true, &[("X-Kind", "reset"), ("Host", "localhost:10081"), ("Origin", "https://localhost:10081")], "403"),
            (true, &[("X-Kind", "reset"), ("Host", "localhost:10081"), ("Origin", "null")], "403"),
            (true, &[("Host", "localhost:10081"), ("Origin", "http://localhost:10081")], "403"),
            (true, &[("X-Kind", "reset")], ""),
            (true, &[("X-Kind", "reset"), ("Host", "localhost:10081"), ("Origin", "http://localhost:10081")], ""),
        ] {
            let header = |wanted: &str| headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_string());
            let refused = forbids(Operation::Reset, is_post, header).map_or("", |(status, _)| &status[..3]);
            assert_eq!(refused, status, "{is_post} {headers:?}");
        }
    }
}
