//! Services of type LoadBalancer get the container's own address: no cloud is there that would give
//! them one, and kube-proxy brings traffic for an address in their status to their pods.
//!
//! One thread sleeps in a watch on Services; where there is none of the type, it has nothing to do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::objects::{Ingress, List, Service};
use crate::config::{API_PORT, DOCKER_PORT};
use crate::error::{Error, Result};
use crate::node::network;
use crate::supervisor::Init;

const SERVICES: &str = "/api/v1/services";
/// After an error, doubled up to the last: the API server may be down for a moment, or for good.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A protocol and a port of the container's address, such as `("TCP", 80)`.
type Port = (String, u16);

/// Gives addresses in a thread of its own, from now on.
pub fn start(init: &Arc<Init>, api: Arc<Api>, static_ip: Ipv4Addr) -> Result<()> {
    let address = network::own_address(static_ip)?;
    let init = init.clone();
    let body = move || {
        let taken = taken_ports(init.config.files_address.port());
        let mut pause = FIRST_PAUSE;
        while !init.shutdown.stopping() && init.readiness.wait_until(|state| state.api_server) {
            match follow(&init, &api, address, &taken) {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    log::debug!(target: "services", "{error}");
                    init.shutdown.pause(pause);
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    };
    let started = thread::Builder::new().name("services".into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread for services: {cause}")))
}

/// The container's own ports (Docker's with TLS too): one with a Service on it would not reach us any more.
fn taken_ports(files: u16) -> Vec<Port> {
    [API_PORT, DOCKER_PORT, DOCKER_PORT + 1, files].map(|port| ("TCP".to_string(), port)).to_vec()
}

/// Looks at every Service now, and again whenever one changes, until the watch ends.
fn follow(init: &Init, api: &Api, address: Ipv4Addr, taken: &[Port]) -> Result<()> {
    let mut told = vec![];
    let mut version = assign_addresses(api, address, taken, &mut told)?;
    init.readiness.update(|state| state.services = true);
    // Without bookmarks, which would wake us every minute.
    for event in api.watch::<Service>(&format!("{SERVICES}?watch=1&resourceVersion={version}"))? {
        let service = event?.object;
        // Events up to what was listed last are old news. Versions of one etcd are numbers that grow.
        if is_balanced(&service) && number(&service.metadata.resource_version) > number(&version) {
            version = assign_addresses(api, address, taken, &mut told)?;
        }
    }
    Ok(())
}

/// Gives every Service what it is due; returns the version of the list.
fn assign_addresses(api: &Api, address: Ipv4Addr, taken: &[Port], told: &mut Vec<String>) -> Result<String> {
    let list: List<Service> = api.get(SERVICES)?;
    let decisions = decide(&list.items, taken);
    for decision in &decisions {
        if let Due::Nothing(why) = &decision.due {
            if !told.contains(&decision.name) {
                log::warn!(target: "services", "{} gets no address: {why}", decision.name);
            }
        }
        let wanted = if decision.due == Due::Address { vec![address.to_string()] } else { vec![] };
        if ingress_of(decision.service) == wanted {
            continue;
        }
        let ingress: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip})).collect();
        let ingress = if ingress.is_empty() { Value::Null } else { ingress.into() };
        let path = format!("/api/v1/namespaces/{}/services/{}/status", decision.service.metadata.namespace, decision.service.metadata.name);
        api.patch(&path, &json!({"status": {"loadBalancer": {"ingress": ingress}}}))?;
        if decision.due == Due::Address {
            log::info!(target: "services", "{} is reachable at {address}", decision.name);
        }
    }
    *told = decisions.into_iter().filter(|decision| matches!(decision.due, Due::Nothing(_))).map(|decision| decision.name).collect();
    Ok(list.metadata.resource_version)
}

#[derive(Debug, PartialEq)]
enum Due {
    Address,
    /// Why it gets none.
    Nothing(String),
    /// It was of the type once, and 1.20 leaves the address in its status.
    Past,
}

struct Decision<'a> {
    service: &'a Service,
    /// `namespace/name`
    name: String,
    due: Due,
}

/// One address serves each port once: the oldest Service has it, and nobody has the container's own.
fn decide<'a>(services: &'a [Service], taken: &[Port]) -> Vec<Decision<'a>> {
    let decision = |service: &'a Service, due| Decision { service, name: service.metadata.full_name(), due };
    let past = services.iter().filter(|service| !is_typed(service) && !ingress_of(service).is_empty());
    let mut decisions: Vec<Decision> = past.map(|service| decision(service, Due::Past)).collect();
    let mut services: Vec<&Service> = services.iter().filter(|service| is_ours(service)).collect();
    services.sort_by_key(|service| (service.metadata.creation_timestamp.clone(), service.metadata.full_name()));
    let mut owners: Vec<(Port, String)> = taken.iter().map(|port| (port.clone(), "the container itself".to_string())).collect();
    for service in services {
        let ports: Vec<Port> = service.spec.ports.iter().map(|port| (port.protocol.clone(), port.port)).collect();
        let due = match owners.iter().find(|(port, _)| ports.contains(port)) {
            Some(((protocol, port), owner)) => Due::Nothing(format!("port {port}/{protocol} is in use by {owner}")),
            None => Due::Address,
        };
        if due == Due::Address {
            owners.extend(ports.into_iter().map(|port| (port, service.metadata.full_name())));
        }
        decisions.push(decision(service, due));
    }
    decisions
}

/// Whether it is of the type, or was when it got an address.
fn is_balanced(service: &Service) -> bool {
    is_typed(service) || !ingress_of(service).is_empty()
}

fn is_typed(service: &Service) -> bool {
    service.spec.kind == "LoadBalancer"
}

/// One with a class is another controller's, which the user has installed.
fn is_ours(service: &Service) -> bool {
    is_typed(service) && service.spec.load_balancer_class.is_none() && service.metadata.deletion_timestamp.is_none()
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
            ("default/first", Due::Address),
            ("default/second", Due::Nothing("port 80/TCP is in use by default/first".into())),
            ("default/udp", Due::Address),
            // The second did not get what it asked for, so nothing of it is in the way.
            ("default/third", Due::Address),
        ];
        assert_eq!(dues(&services), expected.map(|(name, due)| (name.to_string(), due)));
    }

    #[test]
    fn the_containers_own_ports_stay_its_own() {
        for port in [8443, 2375, 2376, 10080] {
            let due = dues(&[service("a", "", &[("TCP", port)])]).remove(0).1;
            assert_eq!(due, Due::Nothing(format!("port {port}/TCP is in use by the container itself")));
            assert_eq!(dues(&[service("a", "", &[("UDP", port)])]).remove(0).1, Due::Address);
        }
    }

    #[test]
    fn what_is_of_another_type_or_class_or_on_its_way_out_is_left_alone() {
        let mut services = vec![service("a", "", &[]), service("b", "", &[]), service("c", "", &[])];
        services[0]["spec"]["type"] = json!("NodePort");
        services[1]["spec"]["loadBalancerClass"] = json!("example.com/other");
        services[2]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(dues(&services).is_empty());
        assert!(!is_balanced(&parsed(&services[0])));
        // One that was of the type once has to give its address back.
        services[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.2"}]}});
        assert!(is_balanced(&parsed(&services[0])));
        assert_eq!(dues(&services), [("default/a".to_string(), Due::Past)]);
    }

    #[test]
    fn an_address_of_an_earlier_start_is_seen_as_such() {
        let mut one = service("a", "", &[("TCP", 80)]);
        assert!(ingress_of(&parsed(&one)).is_empty());
        one["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.9", "ipMode": "VIP"}]}});
        assert_eq!(ingress_of(&parsed(&one)), ["172.17.0.9"]);
    }
}
