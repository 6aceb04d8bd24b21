//! `status.json`: everything that the other files say, in one document for programs. Its fields are described in
//! docs/jobs.md; fields may be added, but none changes.

use serde::{Deserialize, Serialize};

use crate::readiness::state::{ControlPlane, State};

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    pub has_cluster: bool,
    pub docker_ready: bool,
    pub kubernetes_ready: bool,
    /// `None` until it is decided.
    pub control_plane: Option<ControlPlaneDocument>,
    pub failed: Option<String>,
    pub waiting: Vec<String>,
    pub timeline: Vec<Milestone>,
}

#[derive(Deserialize, Serialize)]
pub struct ControlPlaneDocument {
    pub restored: bool,
    pub message: String,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Milestone {
    #[serde(rename = "milestone")]
    pub name: String,
    /// Since the init started.
    pub seconds: f64,
    /// Of the cluster rather than of the node: gone when another cluster begins.
    #[serde(skip)]
    pub of_cluster: bool,
}

impl Document {
    pub fn new(state: &State, timeline: &[Milestone]) -> Document {
        let restored = state.control_plane == ControlPlane::Restored;
        Document {
            has_cluster: state.has_cluster,
            docker_ready: state.docker_ready(),
            kubernetes_ready: state.kubernetes_ready(),
            control_plane: state.control_plane_note.clone().map(|message| ControlPlaneDocument { restored, message }),
            failed: state.failure.as_ref().map(|failure| failure.why.clone()),
            waiting: state.waiting(),
            timeline: timeline.to_vec(),
        }
    }

    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("neither maps nor anything else in it can fail");
        json + "\n"
    }

    /// For people: the states, what is not ready, and the timeline.
    pub fn to_text(&self) -> String {
        let yes_no = |is_ready| if is_ready { "yes" } else { "no" };
        let mut text = format!("docker-ready      {}\nkubernetes-ready  {}\n", yes_no(self.docker_ready), yes_no(self.kubernetes_ready));
        if let Some(control_plane) = &self.control_plane {
            text.push_str(&format!("control plane     {}\n", control_plane.message));
        }
        if let Some(why) = &self.failed {
            text.push_str(&format!("failed            {why}\n"));
        }
        if !self.waiting.is_empty() {
            // The job's own pods, and containers that stand for restored programs.
            let waited_for = if self.kubernetes_ready { " (kubernetes-ready does not depend on it)" } else { "" };
            text.push_str(&format!("\nnot ready{waited_for}\n"));
            text.extend(self.waiting.iter().map(|line| format!("  {line}\n")));
        }
        text.push_str("\nseconds  milestone\n");
        text.extend(self.timeline.iter().map(|milestone| format!("{:>7.3}  {}\n", milestone.seconds, milestone.name)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::state::tests::ready;
    use crate::readiness::Failure;

    /// What programs rely on: names and types of all fields.
    #[test]
    fn the_document_is_as_documented() {
        let timeline = [Milestone { name: "store".into(), seconds: 0.041, of_cluster: false }];
        let note = Some("restored in 0.61 s".into());
        let failed = State { failure: Some(Failure::new("out of order", 1)), dns: false, ..ready() };
        for (state, json) in [
            (
                State { control_plane: ControlPlane::Restored, control_plane_note: note, ..ready() },
                r#"{"hasCluster": true, "dockerReady": true, "kubernetesReady": true, "failed": null, "waiting": [],
                    "controlPlane": {"restored": true, "message": "restored in 0.61 s"}, "timeline": [{"milestone": "store", "seconds": 0.041}]}"#,
            ),
            (
                failed,
                r#"{"hasCluster": true, "dockerReady": true, "kubernetesReady": false, "failed": "out of order", "waiting": ["the DNS: no answer yet"],
                    "controlPlane": null, "timeline": [{"milestone": "store", "seconds": 0.041}]}"#,
            ),
        ] {
            let document: serde_json::Value = serde_json::from_str(&Document::new(&state, &timeline).to_json()).unwrap();
            assert_eq!(document, serde_json::from_str::<serde_json::Value>(json).unwrap());
        }
    }

    #[test]
    fn the_jobs_own_pods_are_told_apart_from_what_is_waited_for() {
        let mut document = Document::new(&ready(), &[]);
        assert!(!document.to_text().contains("not ready"));
        document.waiting = vec!["default/app: ContainerCreating".into()];
        assert!(document.to_text().contains("\nnot ready (kubernetes-ready does not depend on it)\n  default/app"));
        document.kubernetes_ready = false;
        assert!(document.to_text().contains("\nnot ready\n  default/app"));
    }
}
