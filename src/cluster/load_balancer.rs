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
    for line in api.watch(&format!("{SERVICES}?watch=1&resourceVersion={version}"))? {
        let line = line.map_err(|cause| Error::new(format!("the watch on services ended: {cause}")))?;
        let event: Value = serde_json::from_str(&line).map_err(|cause| Error::new(format!("a broken event: {cause}")))?;
        let Some(service) = event.get("object").filter(|_| event.get("type").and_then(Value::as_str) != Some("ERROR")) else {
            return Err(Error::new(format!("the API server ended the watch on services: {line}")));
        };
        // Events up to what was listed last are old news. Versions of one etcd are numbers that grow.
        if is_balanced(service) && number(resource_version(service)) > number(&version) {
            version = assign_addresses(api, address, taken, &mut told)?;
        }
    }
    Ok(())
}

/// Gives every Service what it is due; returns the version of the list.
fn assign_addresses(api: &Api, address: Ipv4Addr, taken: &[Port], told: &mut Vec<String>) -> Result<String> {
    let list = api.get(SERVICES)?;
    let services: Vec<&Value> = list.get("items").and_then(Value::as_array).into_iter().flatten().collect();
    let decisions = decide(&services, taken);
    for decision in &decisions {
        let wanted = if decision.due == Due::Address { json!([{"ip": address.to_string()}]) } else { Value::Null };
        if let Due::Nothing(why) = &decision.due {
            if !told.contains(&decision.name) {
                log::warn!(target: "services", "{} gets no address: {why}", decision.name);
            }
        }
        if ingress_of(decision.service) == addresses(&wanted) {
            continue;
        }
        let path = format!("{}/status", decision.path()?);
        api.patch(&path, &json!({"status": {"loadBalancer": {"ingress": wanted}}}))?;
        if decision.due == Due::Address {
            log::info!(target: "services", "{} is reachable at {address}", decision.name);
        }
    }
    *told = decisions.into_iter().filter(|decision| matches!(decision.due, Due::Nothing(_))).map(|decision| decision.name).collect();
    Ok(resource_version(&list).to_string())
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
    service: &'a Value,
    /// `namespace/name`
    name: String,
    due: Due,
}

impl Decision<'_> {
    fn path(&self) -> Result<String> {
        let (namespace, name) = self.name.split_once('/').ok_or_else(|| Error::new("a service without a name"))?;
        Ok(format!("/api/v1/namespaces/{namespace}/services/{name}"))
    }
}

/// One address serves each port once: the oldest Service has it, and nobody has the container's own.
fn decide<'a>(services: &[&'a Value], taken: &[Port]) -> Vec<Decision<'a>> {
    let text = |service: &Value, path: &str| service.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let name = |service: &Value| format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"));
    let past = services.iter().copied().filter(|service| !is_typed(service) && !ingress_of(service).is_empty());
    let mut decisions: Vec<Decision> = past.map(|service| Decision { service, name: name(service), due: Due::Past }).collect();
    let mut services: Vec<&Value> = services.iter().copied().filter(|service| is_ours(service)).collect();
    services.sort_by_key(|service| (text(service, "/metadata/creationTimestamp"), name(service)));
    let mut owners: Vec<(Port, String)> = taken.iter().map(|port| (port.clone(), "the container itself".to_string())).collect();
    for service in services {
        let (name, ports) = (name(service), ports(service));
        let conflict = owners.iter().find(|(port, _)| ports.contains(port));
        let due = match conflict {
            Some(((protocol, port), owner)) => Due::Nothing(format!("port {port}/{protocol} is in use by {owner}")),
            None => Due::Address,
        };
        if due == Due::Address {
            owners.extend(ports.into_iter().map(|port| (port, name.clone())));
        }
        decisions.push(Decision { service, name, due });
    }
    decisions
}

/// Whether it is of the type, or was when it got an address.
fn is_balanced(service: &Value) -> bool {
    is_typed(service) || !ingress_of(service).is_empty()
}

fn is_typed(service: &Value) -> bool {
    service.pointer("/spec/type").and_then(Value::as_str) == Some("LoadBalancer")
}

/// One with a class is another controller's, which the user has installed.
fn is_ours(service: &Value) -> bool {
    is_typed(service) && service.pointer("/spec/loadBalancerClass").is_none() && service.pointer("/metadata/deletionTimestamp").is_none()
}

fn ports(service: &Value) -> Vec<Port> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let port = |port: &Value| {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_string();
        Some((protocol, port.get("port")?.as_u64()?.try_into().ok()?))
    };
    ports.filter_map(port).collect()
}

fn ingress_of(service: &Value) -> Vec<String> {
    service.pointer("/status/loadBalancer/ingress").map(addresses).unwrap_or_default()
}

fn addresses(ingress: &Value) -> Vec<String> {
    let ip = |entry: &Value| entry.get("ip").or_else(|| entry.get("hostname"))?.as_str().map(str::to_string);
    ingress.as_array().into_iter().flatten().filter_map(ip).collect()
}

fn resource_version(object: &Value) -> &str {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or("0")
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

    fn dues(services: &[Value]) -> Vec<(String, Due)> {
        let services: Vec<&Value> = services.iter().collect();
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
        assert!(!is_balanced(&services[0]));
        // One that was of the type once has to give its address back.
        services[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.2"}]}});
        assert!(is_balanced(&services[0]));
        assert_eq!(dues(&services), [("default/a".to_string(), Due::Past)]);
    }

    #[test]
    fn an_address_of_an_earlier_start_is_seen_as_such() {
        let mut one = service("a", "", &[("TCP", 80)]);
        assert!(ingress_of(&one).is_empty());
        one["status"] = json!({"loadBalancer": {"ingress": [{"ip": "172.17.0.9", "ipMode": "VIP"}]}});
        assert_eq!(ingress_of(&one), ["172.17.0.9"]);
        assert_ne!(ingress_of(&one), addresses(&json!([{"ip": "172.17.0.2"}])));
        assert!(addresses(&Value::Null).is_empty());
    }
}
