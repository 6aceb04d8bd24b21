//! Which images were built or loaded on this node, and which were pulled from a registry.
//!
//! Whoever pulls an image labels its blobs with the repository that they come from, before the image has a name: dockerd
//! and CRI alike, since containerd's client does it. Later on blobs of other images are labelled as well: a pod that runs
//! an image that was built here, which then goes through a pull (`local_registry`), or a build that begins with it. So an
//! image is looked at when it gets its name, and one that was made here is labelled as such, for as long as its blob is
//! there.

use std::collections::BTreeSet;

use crate::daemons::content::{self, Labels};
use crate::daemons::image_records::Record;
use crate::error::Result;

/// Prefix of containerd's label, before a registry's host name. Its value is a list of repositories.
const SOURCE: &str = "containerd.io/distribution.source.";
/// Prefix of our label, before an image's registry and repository.
const MADE_HERE: &str = "kind/made-here.";

/// The name of an image as containerd has it, such as `docker.io/library/app:1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Name<'a> {
    /// With a port if it has one.
    pub host: &'a str,
    pub repository: &'a str,
    pub reference: Reference<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reference<'a> {
    Tag(&'a str),
    Digest(&'a str),
}

impl<'a> Name<'a> {
    /// `None` for names that no registry could have, such as dockerd's and CRI's own.
    pub fn parse(name: &'a str) -> Option<Name<'a>> {
        let (host, rest) = name.split_once('/')?;
        let (repository, reference) = match rest.split_once('@') {
            Some((repository, digest)) => (repository, Reference::Digest(digest)),
            None => rest.rsplit_once(':').map(|(repository, tag)| (repository, Reference::Tag(tag)))?,
        };
        Name::new(host, repository, reference)
    }

    /// The host becomes the name of a directory, and all of it a part of containerd's keys.
    pub fn new(host: &'a str, repository: &'a str, reference: Reference<'a>) -> Option<Name<'a>> {
        let is =
            |text: &str, more: &[u8]| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte));
        let is_reference = match reference {
            Reference::Tag(tag) => is(tag, b"._-"),
            Reference::Digest(digest) => is(digest, b":+._-"),
        };
        let is_name = is(host, b".-_:[]") && !host.starts_with('.') && is(repository, b"._-/") && is_reference;
        is_name.then_some(Name { host, repository, reference })
    }

    pub fn is_of_same_repository(&self, other: &Name) -> bool {
        (self.host, self.repository) == (other.host, other.repository)
    }

    /// Whether a registry's repository is where a blob with these labels comes from.
    fn is_pulled(&self, labels: &Labels) -> bool {
        let source = format!("{SOURCE}{}", host_name(self.host));
        labels.get(&source).is_some_and(|list| list.split(',').any(|repository| repository == self.repository))
    }

    fn label(&self) -> String {
        format!("{MADE_HERE}{}/{}", self.host, self.repository)
    }
}

/// Without the port, as in containerd's labels.
fn host_name(host: &str) -> &str {
    let end = match host.rfind(']') {
        Some(end) => end + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    host[..end].trim_start_matches('[').trim_end_matches(']')
}

/// What follows from a blob's labels.
#[derive(Debug, PartialEq)]
enum Origin {
    Pulled,
    MadeHere,
    /// And it has no label yet that says so.
    NewHere,
}

fn origin(name: &Name, labels: &Labels) -> Origin {
    if labels.contains_key(&name.label()) {
        Origin::MadeHere
    } else if name.is_pulled(labels) {
        Origin::Pulled
    } else {
        Origin::NewHere
    }
}

/// Whether an image was built or loaded here under its name, and from now on will still count as such.
pub fn is_made_here(record: &Record) -> Result<bool> {
    let (Some(name), Some(labels)) = (Name::parse(&record.name), content::labels(&record.target)?) else { return Ok(false) };
    let origin = origin(&name, &labels);
    if origin == Origin::NewHere {
        content::add_label(&record.target, &name.label(), "true")?;
    }
    Ok(origin != Origin::Pulled)
}

/// Images that were looked at: each with the digest that its name has referred to.
#[derive(Default)]
pub struct Seen(BTreeSet<(String, String)>);

impl Seen {
    pub fn new(records: &[Record]) -> Seen {
        Seen(records.iter().map(pair).collect())
    }

    /// Looks at each image that was not there the last time.
    pub fn look(&mut self, records: &[Record]) -> Result<()> {
        let now: BTreeSet<_> = records.iter().map(pair).collect();
        self.0.retain(|earlier| now.contains(earlier));
        for record in records.iter().filter(|record| !self.0.contains(&pair(record))).collect::<Vec<_>>() {
            is_made_here(record)?;
            self.0.insert(pair(record));
        }
        Ok(())
    }
}

fn pair(record: &Record) -> (String, String) {
    (record.name.clone(), record.target.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_containerd_splits_them() {
        for (name, expected) in [
            ("docker.io/library/app:1", Some(("docker.io", "library/app", Reference::Tag("1")))),
            ("localhost:5000/app:1", Some(("localhost:5000", "app", Reference::Tag("1")))),
            ("r.example/a/b@sha256:aa", Some(("r.example", "a/b", Reference::Digest("sha256:aa")))),
            ("sha256:aa", None),
            ("moby-dangling@sha256:aa", None),
            ("docker.io/library/app", None),
            ("../x:1", None),
            ("a\"b/x:1", None),
            ("host/:1", None),
            ("host/x:", None),
        ] {
            let name = Name::parse(name);
            assert_eq!(name.map(|name| (name.host, name.repository, name.reference)), expected);
        }
    }

    #[test]
    fn what_was_pulled_is_from_its_own_repository_and_was_not_here_before() {
        let app = "docker.io/library/app:latest";
        for (name, labels, expected) in [
            (app, &[][..], Origin::NewHere),
            (app, &[("containerd.io/gc.root", "baked")], Origin::NewHere),
            (app, &[("containerd.io/distribution.source.docker.io", "library/app")], Origin::Pulled),
            (app, &[("containerd.io/distribution.source.docker.io", "library/a,library/app")], Origin::Pulled),
            // The same image under another name, or from another registry.
            (app, &[("containerd.io/distribution.source.docker.io", "library/app2,x/library/app")], Origin::NewHere),
            (app, &[("containerd.io/distribution.source.quay.io", "library/app")], Origin::NewHere),
            // It went through a pull of a pod's later.
            (
                app,
                &[("containerd.io/distribution.source.docker.io", "library/app"), ("kind/made-here.docker.io/library/app", "true")],
                Origin::MadeHere,
            ),
            (
                app,
                &[("containerd.io/distribution.source.docker.io", "library/app"), ("kind/made-here.docker.io/library/other", "true")],
                Origin::Pulled,
            ),
            ("localhost:5000/app:1", &[("containerd.io/distribution.source.localhost", "app")], Origin::Pulled),
            ("[::1]:5000/app:1", &[("containerd.io/distribution.source.::1", "app")], Origin::Pulled),
        ] {
            let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            assert_eq!(origin(&Name::parse(name).unwrap(), &labels), expected, "{name} {labels:?}");
        }
    }
}
