//! Keeps the images' names in containerd in order while Docker, kubelet and a job change them.
//!
//! Baked images keep their names. `docker rmi` and `docker system prune -a` remove the names of every image that no
//! Docker container uses, including those of the cluster's pods, and a pod that starts later would not find its
//! image. The content that a name refers to is never removed (`save::images`), so lost names are created again. A
//! name that is in use is never replaced. This begins before Docker runs.
//!
//! The CRI plugin gives every image that it hears of a second name, `sha256:…`, the digest of its configuration.
//! Such a name shows up in `docker images`, and keeps on disk what Docker has deleted. CRI finds an image
//! under any of its names and does not need this one, so we delete it as soon as it appears. What it pulls has a name by
//! digest, too, which does the same if it comes from our own registry; that one is deleted a moment later.
//!
//! New images are looked at for where they come from (`made_here`), and for the registry that they are named after
//! (`pull_hosts`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemons::containerd;
use crate::daemons::image_records::{self, Changes, Record};
use crate::daemons::local_registry::Given;
use crate::daemons::made_here::{self, Name};
use crate::error::Result;
use crate::node::pull_hosts;
use crate::node::state_dir::StateDir;
use crate::readiness::{Operation, Reset};
use crate::supervisor::Init;
use crate::threads;

/// How long to wait before following events again.
const RETRY: Duration = Duration::from_secs(1);
/// After how many failures in a row the log says so.
const LOGGED_AFTER: u32 = 3;
/// Docker moves a name to another image by deleting and creating it, and fails if we have created it in between.
/// If that may be going on, we wait this many steps before we restore a missing name.
const PATIENCE: u32 = 10;
const STEP: Duration = Duration::from_millis(100);
/// As many steps after a pull's name appears, the pull no longer needs it: it looks the image up under that name.
const PULL_PATIENCE: u32 = 30;
/// Prefix, before the digest, of the name that dockerd gives to an image that would be left without one.
const DANGLING: &str = "moby-dangling@";
/// Prefix of the names that the CRI plugin gives.
pub const ID: &str = "sha256:";

/// The names of the baked images, or of those that were put into the image since.
pub fn baked() -> Vec<Record> {
    image_records::load(&StateDir::current().image_names()).unwrap_or_else(|error| {
        log::warn!(target: "images", "baked images that lose their names do not get them back: {error}");
        vec![]
    })
}

/// Follows containerd in a thread of its own, which sleeps until something happens to an image.
pub fn keep(init: &Arc<Init>, baked: Vec<Record>, given: Arc<Given>) -> Result<()> {
    let init = init.clone();
    let body = move || {
        let mut failures = 0;
        while !init.readiness.is_over() {
            match keep_until_containerd_ends(&baked, &given) {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    // Only once, and not while containerd is merely being restarted.
                    let ends = init.readiness.is_over() || init.readiness.state().reset == Reset::Requested(Operation::SaveAndStop);
                    if failures == LOGGED_AFTER && !ends {
                        log::warn!(
                            target: "images",
                            "image names are not kept in step: images may lack a name, have one too many, or not be found by pods \
                             that always pull: {error}"
                        );
                    }
                }
            }
            init.readiness.pause(RETRY);
        }
    };
    threads::start("images", body)
}

/// Deletes CRI's names. No pod may be starting.
pub fn tidy(given: &Given) -> Result<()> {
    settle(&[], given, &mut Seen::default())?;
    let there = image_records::list()?;
    given
        .names()
        .keys()
        .filter(|name| there.iter().any(|record| record.name == **name))
        .try_for_each(|name| image_records::delete(name, true))
}

/// What we know in addition to what containerd lists.
#[derive(Default)]
struct Seen {
    /// Missing names, and how many steps each has been waited for.
    missing: BTreeMap<String, u32>,
    /// How many names have been restored and not yet logged.
    restored: usize,
    /// Names by digest that a pod's pull has left (`local_registry`): when it was answered, and how many steps ago it ended.
    left: BTreeMap<String, (Instant, u32)>,
}

impl Seen {
    /// Notes which names of a pod's pull there are. A pull that was answered since begins the wait again.
    fn note_left(&mut self, there: &[Record], given: &Given) {
        let names = given.names().into_iter().filter(|(name, _)| there.iter().any(|record| record.name == *name));
        let waited =
            |name: &str, answered| self.left.get(name).filter(|(earlier, _)| *earlier == answered).map_or(0, |(_, waited)| *waited);
        self.left = names
            .map(|(name, answered)| {
                let waited = waited(&name, answered);
                (name, (answered, waited))
            })
            .collect();
    }

    /// How long to wait for the next change.
    fn limit(&self) -> Option<Duration> {
        (self.restored > 0 || !self.missing.is_empty() || !self.left.is_empty()).then_some(STEP)
    }

    /// Called when nothing has happened for that long.
    fn pass(&mut self) {
        self.missing.values_mut().for_each(|waited| *waited += 1);
        self.left.values_mut().for_each(|(_, waited)| *waited += 1);
        match std::mem::take(&mut self.restored) {
            0 => {}
            1 => log::info!(target: "images", "a baked image had lost its name and has it again"),
            count => log::info!(target: "images", "{count} baked images had lost their names and have them again"),
        }
    }
}

/// Keeps the names in order until containerd ends.
fn keep_until_containerd_ends(baked: &[Record], given: &Given) -> Result<()> {
    let mut changes = Changes::subscribe()?;
    let mut seen = Seen::default();
    // The bake has looked at those.
    let mut origins = made_here::Seen::new(baked);
    // containerd does not say when its events begin, so we look once more to find earlier changes.
    let mut first = Some(STEP);
    loop {
        let there = settle(baked, given, &mut seen)?;
        origins.look(&there)?;
        if let Err(error) = pull_hosts::set_hosts_of_images(hosts(&there)) {
            log::warn!(target: "images", "pods cannot pull images that were built here under a new registry's name: {error}");
        }
        match changes.wait(first.take().or(seen.limit()))? {
            Some(true) => {}
            Some(false) => seen.pass(),
            None => return Ok(()),
        }
    }
}

/// The registries that images are named after.
fn hosts(there: &[Record]) -> BTreeSet<String> {
    there.iter().filter_map(|record| Name::parse(&record.name)).map(|name| name.host.to_string()).collect()
}

/// Returns what there was.
fn settle(baked: &[Record], given: &Given, seen: &mut Seen) -> Result<Vec<Record>> {
    let there = image_records::list()?;
    seen.note_left(&there, given);
    let left = |name: &str| seen.left.get(name).map(|(_, waited)| *waited >= PULL_PATIENCE);
    let plan = Plan::new(baked, &there, |name| seen.missing.get(name).is_some_and(|waited| *waited >= PATIENCE), left);
    seen.missing.retain(|name, _| plan.wait.contains(&name.as_str()));
    for name in &plan.wait {
        seen.missing.entry(name.to_string()).or_default();
    }
    for record in &plan.create {
        if image_records::create(record)? {
            seen.restored += 1;
        } else if !image_records::list()?.iter().any(|there| there.name == record.name) {
            return Err(containerd::error(format!("containerd does not give the baked image {} its name back", record.name)));
        }
    }
    for (name, is_last) in &plan.delete {
        image_records::delete(name, *is_last)?;
        given.forget(name);
    }
    Ok(there)
}

/// The changes that put the names in order.
#[derive(Debug, PartialEq)]
struct Plan<'a> {
    create: Vec<&'a Record>,
    /// Each with whether it is its image's last name.
    delete: Vec<(&'a str, bool)>,
    /// Baked names that may be about to be given to another image.
    wait: Vec<&'a str>,
}

impl<'a> Plan<'a> {
    /// `waited` says whether a missing name has been waited for, `left` whether a name that a pull has left has been.
    fn new(baked: &'a [Record], there: &'a [Record], waited: impl Fn(&str) -> bool, left: impl Fn(&str) -> Option<bool>) -> Plan<'a> {
        // Before dockerd moves a name to another image, it makes sure that the old image has another name.
        let is_named = |target: &str| there.iter().any(|record| record.target == target && !is_id(&record.name));
        let missing = baked.iter().filter(|record| !there.iter().any(|there| there.name == record.name));
        let (wait, create): (Vec<&Record>, Vec<&Record>) = missing.partition(|record| is_named(&record.target) && !waited(&record.name));
        let is_back = |target: &str| create.iter().any(|record| record.target == target);
        let is_kept = |target: &str| {
            let stays = |record: &&Record| !is_id(&record.name) && left(&record.name).is_none();
            there.iter().filter(stays).any(|record| record.target == target) || is_back(target)
        };
        let ids = there.iter().filter(|record| is_id(&record.name) || left(&record.name) == Some(true));
        let ids = ids.map(|record| (record.name.as_str(), !is_kept(&record.target)));
        let dangling = there.iter().filter(|record| record.name.starts_with(DANGLING) && is_back(&record.target));
        let delete = ids.chain(dangling.map(|record| (record.name.as_str(), false))).collect();
        Plan { delete, wait: wait.into_iter().map(|record| record.name.as_str()).collect(), create }
    }
}

/// Whether CRI created a name, from the digest of an image's configuration.
fn is_id(name: &str) -> bool {
    name.strip_prefix(ID).is_some_and(|digest| digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemons::image_records::tests::record;

    /// Names to create, to delete, and to wait for, of images that are given as `name target`.
    fn plan(baked: &[&str], there: &[&str], waited: &[&str]) -> (Vec<String>, Vec<(String, bool)>, Vec<String>) {
        let records = |list: &[&str]| {
            let pairs = list.iter().map(|pair| pair.split_once(' ').unwrap());
            pairs.map(|(name, target)| record(name, target)).collect::<Vec<_>>()
        };
        let (baked, there) = (records(baked), records(there));
        let left = |name: &str| name.contains("@pulled").then(|| name.ends_with('!'));
        let plan = Plan::new(&baked, &there, |name| waited.contains(&name), left);
        (
            plan.create.iter().map(|record| record.name.clone()).collect(),
            plan.delete.iter().map(|(name, is_last)| (name.to_string(), *is_last)).collect(),
            plan.wait.iter().map(|name| name.to_string()).collect(),
        )
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn lost_names_are_created_and_none_is_replaced() {
        let baked = ["a:1 A", "b:1 B", "b:2 B"];
        for (there, waited, create, wait) in [
            (&["a:1 A", "b:1 B", "b:2 B", "mine:1 M"][..], &[][..], &[][..], &[][..]),
            // Another image's by now.
            (&["a:1 M", "b:1 B", "b:2 M"], &[], &[], &[]),
            (&["b:1 B", "b:2 B"], &[], &["a:1"], &[]),
            (&[], &[], &["a:1", "b:1", "b:2"], &[]),
            // Docker is giving it to another image, or has deleted one of two names.
            (&["moby-dangling@A A", "b:1 B", "b:2 B"], &[], &[], &["a:1"]),
            (&["a:1 A", "b:2 B"], &[], &[], &["b:1"]),
            (&["a:1 A", "b:2 B"], &["b:1"], &["b:1"], &[]),
            // CRI's own name does not count.
            (&["sha256:aa A", "b:1 B", "b:2 B"], &[], &["a:1"], &[]),
        ] {
            let planned = plan(&baked, there, waited);
            assert_eq!((planned.0, planned.2), (texts(create), texts(wait)), "{there:?}");
        }
    }

    #[test]
    fn what_cri_names_a_second_time_loses_that_name() {
        let delete = |there: &[&str], waited: &[&str]| plan(&["a:1 A"], there, waited).1;
        let gone = |list: &[(&str, bool)]| list.iter().map(|(name, is_last)| (name.to_string(), *is_last)).collect::<Vec<_>>();
        assert_eq!(delete(&["a:1 A", "mine:1 M", "mine@sha256:aa M"], &[]), []);
        assert_eq!(delete(&["a:1 A", "sha256:aa A", "mine:1 M", "sha256:bb M"], &[]), gone(&[("sha256:aa", false), ("sha256:bb", false)]));
        // The last name of an image takes the image with it.
        assert_eq!(delete(&["a:1 A", "sha256:bb M"], &[]), gone(&[("sha256:bb", true)]));
        assert_eq!(delete(&["sha256:aa A"], &[]), gone(&[("sha256:aa", false)]));
        // Docker's own stand-in goes when the name is back.
        assert_eq!(delete(&["moby-dangling@A A", "moby-dangling@M M"], &[]), []);
        assert_eq!(delete(&["moby-dangling@A A", "moby-dangling@M M"], &["a:1"]), gone(&[("moby-dangling@A", false)]));
        assert_eq!(delete(&["a:1 M", "moby-dangling@A A"], &[]), []);
        // A pull's name goes when the pull is over, and keeps nothing.
        assert_eq!(delete(&["a:1 A", "m:1 M", "m@pulled M"], &[]), []);
        assert_eq!(delete(&["a:1 A", "m:1 M", "m@pulled! M", "m@other M"], &[]), gone(&[("m@pulled!", false)]));
        assert_eq!(delete(&["a:1 A", "sha256:bb M", "m@pulled M"], &[]), gone(&[("sha256:bb", true)]));
        assert_eq!(delete(&["a:1 A", "m@pulled! M"], &[]), gone(&[("m@pulled!", true)]));
    }
}
