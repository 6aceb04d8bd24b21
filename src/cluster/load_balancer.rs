//! Gives Services of type LoadBalancer the container's own addresses: there is no cloud provider to do so, and
//! kube-proxy forwards traffic for an address in their status to their pods.
//!
//! One thread sleeps in a watch on Services, and has nothing to do if there are none of this type.
//! Another sleeps until the container joins or leaves a network.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::objects::{Ingress, List, Service};
use crate::cluster::{events, follow};
use crate::config::{API_PORT, DOCKER_PORT, DOCKER_TLS_PORT};
use crate::error::Result;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::own_addresses::{self, OwnAddresses};
use crate::readiness::State;
use crate::supervisor::Init;

const SERVICES: &str = "/api/v1/services";

/// A protocol and a port of the container's addresses, such as `("TCP", 80)`.
type Port = (String, u16);

/// Assigns addresses from now on, in threads of its own.
pub fn start(init: &Arc<Init>, api: Arc<Api>, static_ip: Ipv4Addr, network: &ClusterNetwork) -> Result<()> {
    let balancer = Arc::new(Balancer {
        api,
        taken: taken_ports(init.config.files_address.port()),
        own: OwnAddresses::new(static_ip, network)?,
        told: Mutex::default(),
    });
    let (init_of_watch, other) = (init.clone(), balancer.clone());
    let mut last = balancer.own.now()?;
    own_addresses::watch(move || {
        // Pods and Docker's networks have addresses too, which are added and removed.
        let now = other.own.now().unwrap_or_default();
        if now != last {
            last = now;
            follow::until_done(&init_of_watch, api_server, || other.assign().map(drop));
        }
    })?;
    let init_of_follow = init.clone();
    follow::start(init, "services", api_server, move || balancer.follow(&init_of_follow))
}

fn api_server(state: &State) -> bool {
    state.api_server
}

/// The container's own ports (including Docker's with TLS): a Service on one of them would cut us off from it.
fn taken_ports(files: u16) -> Vec<Port> {
    [API_PORT, DOCKER_PORT, DOCKER_TLS_PORT, files].map(|port| ("TCP".to_string(), port)).to_vec()
}

struct Balancer {
    api: Arc<Api>,
    taken: Vec<Port>,
    own: OwnAddresses,
    /// By uid: the reported reason why a Service gets no address.
    told: Mutex<BTreeMap<String, String>>,
}

impl Balancer {
    /// Processes every Service now, and again whenever one changes, until the watch ends.
    fn follow(&self, init: &Init) -> Result<()> {
        let mut version = self.assign()?;
        init.readiness.update(|state| state.services = true);
        // No bookmarks, because they would wake us every minute.
        for event in self.api.watch::<Service>(&format!("{SERVICES}?watch=1&resourceVersion={version}"))? {
            let service = event?.object;
            // Skip events that the last list already covers. Within one etcd, versions are increasing numbers.
            if is_balanced(&service) && number(&service.metadata.resource_version) > number(&version) {
                version = self.assign()?;
            }
        }
        Ok(())
    }

    /// Assigns or removes the addresses of every Service; returns the version of the list.
    fn assign(&self) -> Result<String> {
        // One call at a time, so that the later one, with the newer addresses, wins.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses: Vec<String> = self.own.now()?.iter().map(Ipv4Addr::to_string).collect();
        let list: List<Service> = self.api.get(SERVICES)?;
        let decisions = decide(&list.items, &self.taken);
        told.retain(|uid, _| decisions.iter().any(|decision| decision.service.metadata.uid == *uid && decision.due != Due::Addresses));
        for decision in &decisions {
            let wanted = match &decision.due {
                Due::Addresses => addresses.clone(),
                Due::Past => vec![],
                Due::Nothing(reason, why) => {
                    self.tell(&mut told, decision, reason, why);
                    // Its address, if it has one, comes from the other controller.
                    if *reason == OTHER_CLASS {
                        continue;
                    }
                    vec![]
                }
            };
            self.set(decision, &wanted)?;
        }
        Ok(list.metadata.resource_version)
    }

    fn set(&self, decision: &Decision, wanted: &[String]) -> Result<()> {
        if ingress_of(decision.service) == wanted {
            return Ok(());
        }
        let ingress: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip})).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { ingress.into() };
        let path = format!("/api/v1/namespaces/{}/services/{}/status", decision.service.metadata.namespace, decision.service.metadata.name);
        self.api.patch(&path, &json!({"status": {"loadBalancer": {"ingress": ingress}}}))?;
        if !wanted.is_empty() {
            log::info!(target: "services", "{} is reachable at {}", decision.name, wanted.join(" and "));
        }
        Ok(())
    }

    /// Reports once, in the log and in an Event, why a Service gets no address.
    fn tell(&self, told: &mut BTreeMap<String, String>, decision: &Decision, reason: &str, why: &str) {
        let metadata = &decision.service.metadata;
        if told.insert(metadata.uid.clone(), why.to_string()).as_deref() == Some(why) {
            return;
        }
        let is_warning = reason != OTHER_CLASS;
        let level = if is_warning { log::Level::Warn } else { log::Level::Info };
        log::log!(target: "services", level, "{} gets no address: {why}", decision.name);
        let message = format!("no address: {why}");
        let event = events::Told { api_version: "v1", kind: "Service", metadata, is_warning, reason, message: &message };
        if let Err(error) = events::tell(&self.api, &event) {
            log::debug!(target: "services", "{error}");
        }
    }
}

const PORT_CONFLICT: &str = "PortConflict";
const OTHER_CLASS: &str = "OtherClass";

#[derive(Debug, PartialEq)]
enum Due {
    Addresses,
    /// The reason as one word, and in full.
    Nothing(&'static str, String),
    /// The Service used to be a LoadBalancer, and 1.20 leaves the address in its status.
    Past,
}

struct Decision<'a> {
    service: &'a Service,
    /// `namespace/name`
    name: String,
    due: Due,
}

/// Each port can be used once: the oldest Service gets it, and no Service gets the container's own ports.
fn decide<'a>(services: &'a [Service], taken: &[Port]) -> Vec<Decision<'a>> {
    let decision = |service: &'a Service, due| Decision { service, name: service.metadata.full_name(), due };
    let past = services.iter().filter(|service| !is_typed(service) && !ingress_of(service).is_empty());
    let mut decisions: Vec<Decision> = past.map(|service| decision(service, Due::Past)).collect();
    let mut services: Vec<&Service> = services.iter().filter(|service| is_typed(service) && !is_leaving(service)).collect();
    services
        .sort_by_key(|service| (service.metadata.creation_timestamp.clone(), ingress_of(service).is_empty(), service.metadata.full_name()));
    let mut owners: Vec<(Port, String)> = taken.iter().map(|port| (port.clone(), "the container itself".to_string())).collect();
    for service in services {
        let ports: Vec<Port> = service.spec.ports.iter().map(|port| (port.protocol.clone(), port.port)).collect();
        let conflict = owners.iter().find(|(port, _)| ports.contains(port));
        let due = match (&service.spec.load_balancer_class, conflict) {
            (Some(class), _) => Due::Nothing(OTHER_CLASS, format!("it is left to whoever serves loadBalancerClass {class}")),
            (None, Some(((protocol, port), owner))) => Due::Nothing(PORT_CONFLICT, format!("port {port}/{protocol} is in use by {owner}")),
            (None, None) => Due::Addresses,
        };
        if due == Due::Addresses {
            owners.extend(ports.into_iter().map(|port| (port, service.metadata.full_name())));
        }
        decisions.push(decision(service, due));
    }
    decisions
}

/// Whether it is a LoadBalancer, or was one when it got an address.
fn is_balanced(service: &Service) -> bool {
    is_typed(service) || !ingress_of(service).is_empty()
}

fn is_typed(service: &Service) -> bool {
    service.spec.kind == "LoadBalancer"
}

fn is_leaving(service: &Service) -> bool {
    service.metadata.deletion_timestamp.is_some()
}

fn ingress_of(service: &Service) -> Vec<String> {
    let address = |ingress: &Ingress| if ingress.ip.is_empty() { ingress.hostname.clone() } else { ingress.ip.clone() };
    service.status.load_balancer.ingress.iter().map(address).collect()
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, created: &str, ports: &[(&str, u16)]) -> Value {
        let ports: Vec<Value> = ports.iter().map(|(protocol, port)| json!({"protocol": protocol, "port": port})).collect();
        json!({
            "metadata": {"namespace": "default", "name": name, "creationTimestamp": created},
            "spec": {"type": "LoadBalancer", "ports": ports},
        })
    }

    fn parsed(service: &Value) -> Service {
        serde_json::from_value(service.clone()).unwrap()
    }

    fn dues(services: &[Value]) -> Vec<(String, Due)> {
        let services: Vec<Service> = services.iter().map(parsed).collect();
        decide(&services, &taken_ports(10080)).into_iter().map(|decision| (decision.name, decision.due)).collect()
    }

    #[test]
    fn a_port_belongs_to_the_oldest_service_that_wants_it() {
        let services = [
            service("second", "2026-01-01T00:00:02Z", &[("TCP", 443), ("TCP", 80)]),
            service("first", "2026-01-01T00:00:01Z", &[("TCP", 80)]),
            service("udp", "2026-01-01T00:00:03Z", &[("UDP", 80)]),
            service("third", "2026-01-01T00:00:04Z", &[("TCP", 443)]),
        ];
        let expected = [
            ("default/first", Due::Addresses),
            ("default/second", Due::Nothing(PORT_CONFLICT, "port 80/TCP is in use by default/first".into())),
            ("default/udp", Due::Addresses),
            // The second did not get its ports, so they are free.
            ("default/third", Due::Addresses),
        ];
        assert_eq!(dues(&services), expected.map(|(name, due)| (name.to_string(), due)));
    }

    #[test]
    fn the_containers_own_ports_stay_its_own() {
        for port in [8443, 2375, 2376, 10080] {
            let due = dues(&[service("a", "", &[("TCP", port)])]).remove(0).1;
            assert_eq!(due, Due::Nothing(PORT_CONFLICT, format!("port {port}/TCP is in use by the container itself")));
            assert_eq!(dues(&[service("a", "", &[("UDP", port)])]).remove(0).1, Due::Addresses);
        }
    }

    #[test]
    fn what_is_of_another_type_or_class_or_on_its_way_out_is_left_alone() {
        let mut services = vec![service("a", "", &[]), service("b", "", &[]), service("c", "", &[])];
        services[0]["spec"]["type"] = json!("NodePort");
        services[1]["spec"]["loadBalancerClass"] = json!("example.com/other");
        services[2]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let why = "it is left to whoever serves loadBalancerClass example.com/other".to_string();
        assert_eq!(dues(&services), [("default/b".to_string(), Due::Nothing(OTHER_CLASS, why))]);
        assert!(!is_balanced(&parsed(&services[0])));
        // One that used to be a LoadBalancer has to give its address back.
        services[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.2"}]}});
        assert!(is_balanced(&parsed(&services[0])));
        assert_eq!(dues(&services[..1]), [("default/a".to_string(), Due::Past)]);
    }

    #[test]
    fn an_address_of_an_earlier_start_is_seen_as_such() {
        let mut one = service("a", "", &[("TCP", 80)]);
        assert!(ingress_of(&parsed(&one)).is_empty());
        one["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.9", "ipMode": "VIP"}]}});
        assert_eq!(ingress_of(&parsed(&one)), ["172.17.0.9"]);
    }
}
