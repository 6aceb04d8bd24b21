//! Gives Services of type LoadBalancer the container's own addresses: there is no cloud provider to do so, and
//! kube-proxy forwards traffic for an address in their status to their pods.
//!
//! One thread sleeps in a watch on Services, and has nothing to do if there are none of this type.
//! Another sleeps until the container joins or leaves a network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{json, Value};

use crate::cluster::api::{Api, Change};
use crate::cluster::objects::{Ingress, Service};
use crate::cluster::{events, watcher};
use crate::config::{API_PORT, DOCKER_PORT, DOCKER_TLS_PORT};
use crate::error::Result;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::own_addresses::{self, OwnAddresses};
use crate::readiness::State;
use crate::supervisor::Init;

const SERVICES: &str = "/api/v1/services";

/// A protocol and a port of the container's addresses, such as `("TCP", 80)`.
type Port = (String, u16);

/// Assigns addresses from now on, in threads of its own, unless that is another controller's task.
pub fn start(init: &Arc<Init>, api: Arc<Api>, static_ip: Ipv4Addr, network: &ClusterNetwork) -> Result<()> {
    if !init.config.load_balancer {
        init.readiness.update(|state| state.services = true);
        return Ok(());
    }
    let balancer = Arc::new(Balancer {
        api,
        taken: taken_ports(init.config.files_addresses.iter().map(|files| files.address.port())),
        own: OwnAddresses::new(static_ip, network),
        services: Mutex::default(),
    });
    let (init_of_watch, other) = (init.clone(), balancer.clone());
    let mut last = balancer.own.now()?;
    own_addresses::watch(&init.readiness, move || {
        // Pods and Docker's networks have addresses too, which are added and removed.
        let now = other.own.now().unwrap_or_default();
        if now != last {
            last = now;
            watcher::until_done(&init_of_watch, api_server, || other.assign(&mut other.services()));
        }
    })?;
    let init_of_services = init.clone();
    watcher::start(init, "services", api_server, move || balancer.watch(&init_of_services))
}

fn api_server(state: &State) -> bool {
    state.api_server
}

/// The container's own ports (including Docker's with TLS): a Service on one of them would cut us off from it.
fn taken_ports(files: impl Iterator<Item = u16>) -> Vec<Port> {
    [API_PORT, DOCKER_PORT, DOCKER_TLS_PORT].into_iter().chain(files).map(|port| ("TCP".to_string(), port)).collect()
}

struct Balancer {
    api: Arc<Api>,
    taken: Vec<Port>,
    own: OwnAddresses,
    services: Mutex<Services>,
}

/// The Services that are LoadBalancers, or have the address of one, by uid.
#[derive(Default)]
struct Services(BTreeMap<String, Balanced>);

#[derive(Default)]
struct Balanced {
    service: Service,
    /// The addresses that it was given here.
    given: BTreeSet<String>,
    /// Why it gets no address, as was reported last.
    reported: String,
}

impl Balanced {
    /// Whether another controller has given it its addresses since. A late report of what it had before ours looks the same,
    /// and is followed by that of ours.
    fn has_others(&self) -> bool {
        !self.given.is_empty() && ingress_of(&self.service).iter().any(|address| !self.given.contains(address))
    }
}

impl Services {
    /// Takes in what the API server reports. Returns whether there may be something to assign.
    fn apply(&mut self, change: Change<Service>) -> bool {
        match change {
            Change::All(services) => {
                self.0.retain(|uid, _| services.iter().any(|service| service.metadata.uid == *uid));
                for service in services {
                    self.apply(Change::Put(service));
                }
                true
            }
            Change::Put(service) if is_balanced(&service) => {
                let uid = service.metadata.uid.clone();
                self.0.entry(uid).or_default().service = service;
                true
            }
            Change::Put(service) | Change::Deleted(service) => self.0.remove(&service.metadata.uid).is_some(),
        }
    }
}

impl Balancer {
    /// Kept while addresses are assigned, so that of two threads the later one, with the newer addresses, wins.
    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns addresses now, and again whenever a Service changes, until the watch ends.
    fn watch(&self, init: &Init) -> Result<()> {
        self.api.watch(SERVICES, |change| {
            let mut services = self.services();
            if services.apply(change) {
                self.assign(&mut services)?;
            }
            init.readiness.update(|state| state.services = true);
            Ok(())
        })
    }

    /// Assigns or removes the addresses of every Service.
    fn assign(&self, services: &mut Services) -> Result<()> {
        let addresses: Vec<String> = self.own.now()?.iter().map(Ipv4Addr::to_string).collect();
        let due = decide(&services.0.values().collect::<Vec<_>>(), &self.taken);
        for (balanced, due) in services.0.values_mut().zip(due) {
            let Balanced { service, given, reported } = balanced;
            let wanted = match due {
                Due::Addresses => {
                    reported.clear();
                    &addresses[..]
                }
                Due::Past => &[],
                Due::Nothing(reason, why) => {
                    self.report(service, reported, reason, why);
                    // Its address, if it has one, comes from the other controller.
                    if reason == OTHER_CONTROLLER {
                        continue;
                    }
                    &[]
                }
                Due::Leaving => continue,
            };
            self.set(service, wanted)?;
            given.extend(wanted.iter().cloned());
        }
        Ok(())
    }

    fn set(&self, service: &mut Service, wanted: &[String]) -> Result<()> {
        if ingress_of(service) == wanted {
            return Ok(());
        }
        let ingress: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip})).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { ingress.into() };
        let path = format!("/api/v1/namespaces/{}/services/{}/status", service.metadata.namespace, service.metadata.name);
        self.api.patch(&path, &json!({"status": {"loadBalancer": {"ingress": ingress}}}))?;
        // The watch reports it a moment later; until then it is not due again.
        service.status.load_balancer.ingress = wanted.iter().map(|ip| Ingress { ip: ip.clone(), ..Ingress::default() }).collect();
        if !wanted.is_empty() {
            log::info!(target: "services", "{} is reachable at {}", service.metadata.full_name(), wanted.join(" and "));
        }
        Ok(())
    }

    /// Reports once, in the log and in an Event, why a Service gets no address.
    fn report(&self, service: &Service, reported: &mut String, reason: &str, why: String) {
        if *reported == why {
            return;
        }
        *reported = why;
        let is_warning = reason != OTHER_CONTROLLER;
        let level = if is_warning { log::Level::Warn } else { log::Level::Info };
        log::log!(target: "services", level, "{} gets no address from kind: {reported}", service.metadata.full_name());
        let message = format!("no address from kind: {reported}");
        let event =
            events::Report { api_version: "v1", kind: "Service", metadata: &service.metadata, is_warning, reason, message: &message };
        if let Err(error) = events::create(&self.api, &event) {
            log::debug!(target: "services", "{error}");
        }
    }
}

const PORT_CONFLICT: &str = "PortConflict";
const OTHER_CONTROLLER: &str = "OtherController";

#[derive(Clone, Debug, PartialEq)]
enum Due {
    Addresses,
    /// The reason as one word, and in full.
    Nothing(&'static str, String),
    /// The Service used to be a LoadBalancer, and 1.20 leaves the address in its status.
    Past,
    /// It is being deleted.
    Leaving,
}

/// What is due for each Service. Each port can be used once: the oldest Service gets it, and no Service gets the
/// container's own ports.
fn decide(services: &[&Balanced], taken: &[Port]) -> Vec<Due> {
    let of_others = |balanced: &Balanced| {
        let addresses = ingress_of(&balanced.service).join(" and ");
        Due::Nothing(OTHER_CONTROLLER, format!("another controller has given it {addresses}"))
    };
    let past = |balanced: &&Balanced| if balanced.has_others() { of_others(balanced) } else { Due::Past };
    let mut due: Vec<Due> = services.iter().map(past).collect();
    let typed = services.iter().copied().enumerate().filter(|(_, balanced)| is_typed(&balanced.service));
    let mut oldest_first: Vec<(usize, &Balanced)> = typed.collect();
    oldest_first.sort_by_key(|(_, Balanced { service, .. })| {
        (service.metadata.creation_timestamp.clone(), ingress_of(service).is_empty(), service.metadata.full_name())
    });
    let mut owners: Vec<(Port, String)> = taken.iter().map(|port| (port.clone(), "the container itself".to_string())).collect();
    for (index, balanced) in oldest_first {
        let service = &balanced.service;
        let ports: Vec<Port> = service.spec.ports.iter().map(|port| (port.protocol.clone(), port.port)).collect();
        let conflict = owners.iter().find(|(port, _)| ports.contains(port));
        due[index] = match (&service.spec.load_balancer_class, conflict) {
            _ if service.metadata.deletion_timestamp.is_some() => Due::Leaving,
            (Some(class), _) => Due::Nothing(OTHER_CONTROLLER, format!("it is left to whoever serves loadBalancerClass {class}")),
            (None, _) if balanced.has_others() => of_others(balanced),
            (None, Some(((protocol, port), owner))) => Due::Nothing(PORT_CONFLICT, format!("port {port}/{protocol} is in use by {owner}")),
            (None, None) => Due::Addresses,
        };
        if due[index] == Due::Addresses {
            owners.extend(ports.into_iter().map(|port| (port, service.metadata.full_name())));
        }
    }
    due
}

/// Whether it is a LoadBalancer, or was one when it got an address.
fn is_balanced(service: &Service) -> bool {
    is_typed(service) || !ingress_of(service).is_empty()
}

fn is_typed(service: &Service) -> bool {
    service.spec.kind == "LoadBalancer"
}

fn ingress_of(service: &Service) -> Vec<String> {
    let address = |ingress: &Ingress| if ingress.ip.is_empty() { ingress.hostname.clone() } else { ingress.ip.clone() };
    service.status.load_balancer.ingress.iter().map(address).collect()
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

    fn balanced(service: &Value) -> Balanced {
        Balanced { service: parsed(service), ..Balanced::default() }
    }

    fn dues(services: &[Value]) -> Vec<Due> {
        let services: Vec<Balanced> = services.iter().map(balanced).collect();
        decide(&services.iter().collect::<Vec<_>>(), &taken_ports([10080, 10081].into_iter()))
    }

    #[test]
    fn a_port_belongs_to_the_oldest_service_that_wants_it() {
        let services = [
            service("second", "2026-01-01T00:00:02Z", &[("TCP", 443), ("TCP", 80)]),
            service("first", "2026-01-01T00:00:01Z", &[("TCP", 80)]),
            service("udp", "2026-01-01T00:00:03Z", &[("UDP", 80)]),
            // The second did not get its ports, so they are free.
            service("third", "2026-01-01T00:00:04Z", &[("TCP", 443)]),
        ];
        let conflict = Due::Nothing(PORT_CONFLICT, "port 80/TCP is in use by default/first".into());
        assert_eq!(dues(&services), [conflict, Due::Addresses, Due::Addresses, Due::Addresses]);
    }

    /// What the API server reports, and whether addresses are to be assigned because of it.
    #[test]
    fn only_what_concerns_a_load_balancer_makes_work() {
        let with = |uid: &str, kind: &str, status: Value| {
            let mut service = service(uid, "", &[("TCP", 80)]);
            (service["metadata"]["uid"], service["spec"]["type"], service["status"]) = (json!(uid), json!(kind), status);
            parsed(&service)
        };
        let (plain, typed) = (|uid| with(uid, "ClusterIP", Value::Null), |uid| with(uid, "LoadBalancer", Value::Null));
        let address = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.2"}]}});
        let mut services = Services::default();
        for (what, change, makes_work, kept) in [
            ("the list", Change::All(vec![plain("a"), typed("b"), typed("c")]), true, "b c"),
            ("a new Service of another type", Change::Put(plain("d")), false, "b c"),
            ("its end", Change::Deleted(plain("d")), false, "b c"),
            ("a new LoadBalancer", Change::Put(typed("e")), true, "b c e"),
            ("another type, with the address", Change::Put(with("b", "ClusterIP", address)), true, "b c e"),
            // A Service that waits for its port can have it now.
            ("another type, without an address", Change::Put(plain("c")), true, "b e"),
            ("the end of a LoadBalancer", Change::Deleted(typed("b")), true, "e"),
            ("a list after an outage", Change::All(vec![typed("f")]), true, "f"),
        ] {
            assert_eq!(services.apply(change), makes_work, "{what}");
            assert_eq!(services.0.keys().map(String::as_str).collect::<Vec<_>>().join(" "), kept, "{what}");
        }
    }

    #[test]
    fn the_containers_own_ports_stay_its_own() {
        for port in [8443, 2375, 2376, 10080, 10081] {
            let taken = Due::Nothing(PORT_CONFLICT, format!("port {port}/TCP is in use by the container itself"));
            assert_eq!(dues(&[service("a", "", &[("TCP", port)]), service("b", "", &[("UDP", port)])]), [taken, Due::Addresses]);
        }
    }

    #[test]
    fn what_is_of_another_type_or_class_or_on_its_way_out_is_left_alone() {
        let mut services = [service("a", "", &[]), service("b", "", &[]), service("c", "", &[])];
        services[0]["spec"]["type"] = json!("NodePort");
        services[1]["spec"]["loadBalancerClass"] = json!("example.com/other");
        services[2]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let why = "it is left to whoever serves loadBalancerClass example.com/other".to_string();
        assert_eq!(dues(&services[1..]), [Due::Nothing(OTHER_CONTROLLER, why), Due::Leaving]);
        assert!(!is_balanced(&parsed(&services[0])));
        // One that used to be a LoadBalancer has to give its address back.
        services[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.2"}]}});
        assert!(is_balanced(&parsed(&services[0])));
        assert_eq!(dues(&services[..1]), [Due::Past]);
    }

    /// MetalLB, for example, which takes no loadBalancerClass unless it is told to.
    #[test]
    fn a_service_that_another_controller_has_given_an_address_is_left_to_it() {
        let mut one = service("a", "", &[("TCP", 80)]);
        let due = |service: &Value, given: &[&str]| {
            let given = given.iter().map(|address| address.to_string()).collect();
            let other = balanced(&self::service("b", "2026-01-01T00:00:00Z", &[("TCP", 80)]));
            decide(&[&Balanced { given, ..balanced(service) }, &other], &[])
        };
        for (address, given, is_ours) in [
            ("10.9.9.9", &[][..], true),
            ("172.17.0.2", &["172.17.0.2"], true),
            // The container has left a network.
            ("172.17.0.2", &["172.17.0.2", "172.18.0.2"], true),
            ("10.9.9.9", &["172.17.0.2"], false),
        ] {
            one["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
            let why = Due::Nothing(OTHER_CONTROLLER, format!("another controller has given it {address}"));
            let conflict = Due::Nothing(PORT_CONFLICT, "port 80/TCP is in use by default/a".into());
            let expected = if is_ours { [Due::Addresses, conflict] } else { [why, Due::Addresses] };
            assert_eq!(due(&one, given), expected, "{address} {given:?}");
        }
        one["spec"]["type"] = json!("ClusterIP");
        assert!(matches!(due(&one, &["172.17.0.2"])[0], Due::Nothing(OTHER_CONTROLLER, _)), "it is not ours to take away");
    }

    #[test]
    fn an_address_of_an_earlier_start_is_seen_as_such() {
        let mut one = service("a", "", &[("TCP", 80)]);
        assert!(ingress_of(&parsed(&one)).is_empty());
        one["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.9", "ipMode": "VIP"}]}});
        assert_eq!(ingress_of(&parsed(&one)), ["172.17.0.9"]);
    }
}
