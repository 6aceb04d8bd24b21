//! Events with which the init informs users about their objects: `kubectl describe` and `kubectl get events` show them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::objects::Metadata;
use crate::error::Result;
use crate::sys;

const COMPONENT: &str = "kind";

/// An object, and a message about it.
pub struct Report<'a> {
    /// Such as `v1` and `Service`.
    pub api_version: &'a str,
    pub kind: &'a str,
    pub metadata: &'a Metadata,
    pub is_warning: bool,
    /// One word in CamelCase.
    pub reason: &'a str,
    pub message: &'a str,
}

/// Creates the Event, unless it was already created, possibly by an earlier start.
pub fn create(api: &Api, report: &Report) -> Result<()> {
    api.create(&format!("/api/v1/namespaces/{}/events", report.metadata.namespace), &report.event(sys::now()))
}

impl Report<'_> {
    fn event(&self, now: u64) -> Value {
        let (metadata, now) = (self.metadata, sys::utc(now));
        json!({
            "metadata": {"namespace": metadata.namespace, "name": self.name()},
            "involvedObject": {
                "apiVersion": self.api_version,
                "kind": self.kind,
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
            },
            "type": if self.is_warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "message": self.message,
            "source": {"component": COMPONENT},
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
        })
    }

    /// The same name for the same message about the same object.
    fn name(&self) -> String {
        // Its keys are always the same, unlike those of a HashMap.
        let mut hasher = DefaultHasher::new();
        (&self.metadata.uid, self.reason, self.message).hash(&mut hasher);
        format!("{COMPONENT}.{:016x}", hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_of_whom_what_and_when_and_has_one_name_for_each_thing_said() {
        let metadata = |uid: &str| Metadata { namespace: "shop".into(), name: "web".into(), uid: uid.into(), ..Metadata::default() };
        let (one, other) = (metadata("u1"), metadata("u2"));
        let report =
            |metadata, message| Report { api_version: "v1", kind: "Service", metadata, is_warning: true, reason: "PortConflict", message };
        let event = report(&one, "taken").event(951_827_696);
        assert_eq!(event["lastTimestamp"], "2000-02-29T12:34:56Z");
        assert_eq!(
            event["involvedObject"],
            json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "u1"})
        );
        assert_eq!((&event["type"], &event["reason"], &event["message"]), (&json!("Warning"), &json!("PortConflict"), &json!("taken")));
        assert_eq!(report(&one, "taken").name(), report(&one, "taken").name());
        for another in [report(&one, "free"), report(&other, "taken")] {
            assert_ne!(another.name(), report(&one, "taken").name());
        }
    }
}
